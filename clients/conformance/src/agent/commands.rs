//! What an agent is told to do.

use std::pin::Pin;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use onced_client::{Client, Error, fingerprint};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::run::{self, Finish, RunCommand};
use crate::told::reason;
use crate::{Agent, Refused};

/// A command that was begun, until it is done.
pub type Doing = Pin<Box<dyn Future<Output = Result<Value, Refused>> + Send>>;

#[derive(Deserialize)]
struct Connect {
    client: String,
    servers: Option<String>,
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
    token: Option<String>,
    token_file: Option<String>,
    timeout: Option<u64>,
    owner: Option<String>,
}

/// Begins a command. What is over at once is done by then.
pub async fn begin(agent: &Agent, command: &Value) -> Doing {
    let begun = match command["do"].as_str().unwrap_or_default() {
        "connect" => connect(agent, command).map(done),
        "run" => read::<RunCommand>(command).and_then(|command| run::start(agent, command)).map(done),
        "finish" => finish(agent, command).map(done),
        "checkpoint" => checkpoint(agent, command),
        "claim" => claim(agent, command).map(done),
        "cancel" => match running(agent, command) {
            Ok(run) => {
                run.cancel().await;
                Ok(done(json!({})))
            }
            Err(refused) => Err(refused),
        },
        "fingerprint" => fingerprint_of(command).map(done),
        "counts" => {
            client(agent, command).map(|client| done(json!({"unprotected": client.unprotected_runs()})))
        }
        "close" => close(agent, command),
        unknown => Err(Refused::invalid(format!("{unknown:?} is no command"))),
    };
    begun.unwrap_or_else(|refused| Box::pin(std::future::ready(Err(refused))))
}

fn done(answer: Value) -> Doing {
    Box::pin(std::future::ready(Ok(answer)))
}

fn read<T: DeserializeOwned>(command: &Value) -> Result<T, Refused> {
    T::deserialize(command).map_err(Refused::invalid)
}

fn named<'a>(command: &'a Value, field: &str) -> Result<&'a str, Refused> {
    command[field].as_str().ok_or_else(|| Refused::invalid(format!("the command has no {field}")))
}

fn client(agent: &Agent, command: &Value) -> Result<Client, Refused> {
    agent.client(named(command, "client")?)
}

fn running(agent: &Agent, command: &Value) -> Result<std::sync::Arc<run::Running>, Refused> {
    agent.run(named(command, "run")?)
}

pub fn bytes_of(field: &Value) -> Result<Vec<u8>, Refused> {
    let text = field.as_str().ok_or_else(|| Refused::invalid("bytes are written in base64"))?;
    BASE64.decode(text).map_err(Refused::invalid)
}

fn connect(agent: &Agent, command: &Value) -> Result<Value, Refused> {
    let connect: Connect = read(command)?;
    let mut builder = Client::builder(connect.servers.unwrap_or_default());
    if let Some(ca) = connect.ca {
        builder = builder.ca_file(ca);
    }
    if let (Some(cert), Some(key)) = (connect.cert, connect.key) {
        builder = builder.identity_files(cert, key);
    }
    if let Some(token) = connect.token {
        builder = builder.token(token);
    }
    if let Some(file) = connect.token_file {
        builder = builder.token_file(file);
    }
    if let Some(timeout) = connect.timeout {
        builder = builder.timeout(Duration::from_millis(timeout));
    }
    if let Some(owner) = connect.owner {
        builder = builder.owner(owner);
    }
    agent.add_client(&connect.client, builder.build().map_err(Refused::invalid)?);
    Ok(json!({}))
}

fn finish(agent: &Agent, command: &Value) -> Result<Value, Refused> {
    running(agent, command)?.finish(Finish::of(command)?)?;
    Ok(json!({}))
}

fn checkpoint(agent: &Agent, command: &Value) -> Result<Doing, Refused> {
    let claim = running(agent, command)?.claim()?;
    let data = bytes_of(&command["data"])?;
    Ok(Box::pin(async move {
        let refused = |error: Error| Refused { kind: "refused", message: told_of(&error) };
        claim.save_checkpoint(data).await.map_err(refused)?;
        Ok(json!({}))
    }))
}

fn told_of(error: &Error) -> String {
    reason(error).map_or_else(|| error.to_string(), |reason| format!("{reason}: {error}"))
}

fn claim(agent: &Agent, command: &Value) -> Result<Value, Refused> {
    let claim = running(agent, command)?.claim()?;
    Ok(json!({
        "token": claim.fencing_token().to_string(),
        "attempt": claim.attempt().to_string(),
        "left": u64::try_from(claim.lock_left().as_millis()).unwrap_or(u64::MAX),
        "lost": claim.is_lost().map(crate::told::loss),
        "protected": claim.protected(),
    }))
}

fn fingerprint_of(command: &Value) -> Result<Value, Refused> {
    let unfit = |error: fingerprint::Unfit| Refused { kind: "unfit", message: error.to_string() };
    let digest = match named(command, "kind")? {
        "bytes" => fingerprint::bytes(bytes_of(&command["data"])?),
        "json" => fingerprint::json_of_text(named(command, "text")?).map_err(unfit)?,
        "fields" => {
            let pointers = command["pointers"].as_array().into_iter().flatten();
            let pointers: Option<Vec<&str>> = pointers.map(Value::as_str).collect();
            let pointers = pointers.ok_or_else(|| Refused::invalid("pointers are texts"))?;
            fingerprint::fields_of_text(named(command, "text")?, &pointers).map_err(unfit)?
        }
        unknown => return Err(Refused::invalid(format!("{unknown:?} is no kind of fingerprint"))),
    };
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(json!({"digest": digest}))
}

fn close(agent: &Agent, command: &Value) -> Result<Doing, Refused> {
    let client = client(agent, command)?;
    let patience = Duration::from_millis(command["patience"].as_u64().unwrap_or_default());
    // It is closing from now on, whenever its end is waited for.
    let closing = tokio::spawn(async move { client.close(patience).await });
    Ok(Box::pin(async move {
        let ended = closing.await.map_err(Refused::invalid)?;
        Ok(json!({"ended": ended}))
    }))
}
