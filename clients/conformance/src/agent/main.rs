//! The agent of the Rust client: reads commands from its standard input, one a line, and writes answers and events to
//! its standard output (clients/README.md).

mod commands;
mod run;
mod told;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use onced_client::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::run::Running;

/// What the commands of an agent share.
#[derive(Clone)]
pub struct Agent {
    says: UnboundedSender<Value>,
    clients: Arc<Mutex<HashMap<String, Client>>>,
    runs: Arc<Mutex<HashMap<String, Arc<Running>>>>,
}

/// Why a command cannot be done.
pub struct Refused {
    pub kind: &'static str,
    pub message: String,
}

impl Refused {
    /// The command makes no sense, or what it is to use cannot be used.
    pub fn invalid(message: impl ToString) -> Self {
        Self { kind: "invalid", message: message.to_string() }
    }
}

impl Agent {
    pub fn says(&self, what: Value) {
        // Nobody is there any more when the agent ends.
        let _ = self.says.send(what);
    }

    pub fn client(&self, name: &str) -> Result<Client, Refused> {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.get(name).cloned().ok_or_else(|| Refused::invalid(format!("no client is called {name}")))
    }

    pub fn add_client(&self, name: &str, client: Client) {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), client);
    }

    pub fn run(&self, name: &str) -> Result<Arc<Running>, Refused> {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.get(name).cloned().ok_or_else(|| Refused::invalid(format!("no run is called {name}")))
    }

    pub fn add_run(&self, name: &str, run: Arc<Running>) {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), run);
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let (says, said) = unbounded_channel();
    let writing = tokio::spawn(write(said));
    let agent = Agent { says, clients: Arc::default(), runs: Arc::default() };
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let command: Value = serde_json::from_str(&line)?;
        let agent = agent.clone();
        // What comes to be begun is begun in the order in which it was asked for; what takes time holds nobody up.
        let doing = commands::begin(&agent, &command).await;
        tokio::spawn(async move {
            let id = &command["id"];
            agent.says(match doing.await {
                Ok(ok) => json!({"id": id, "ok": ok}),
                Err(Refused { kind, message }) => {
                    json!({"id": id, "error": {"kind": kind, "message": message}})
                }
            });
        });
    }
    // It ends when its input does, whatever is under way.
    writing.abort();
    Ok(())
}

async fn write(mut said: UnboundedReceiver<Value>) -> std::io::Result<()> {
    let mut output = tokio::io::stdout();
    while let Some(what) = said.recv().await {
        output.write_all(format!("{what}\n").as_bytes()).await?;
        output.flush().await?;
    }
    Ok(())
}
