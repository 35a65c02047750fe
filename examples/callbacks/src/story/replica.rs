//! A replica of the service, a process of its own, and calls to it.

use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// More than any call here takes, so that what hangs is a failure.
const PATIENCE: Duration = Duration::from_secs(60);
const SIGABRT: i32 = 6;

pub struct Replica {
    pub name: &'static str,
    address: String,
    process: Child,
}

impl Replica {
    /// Starts the service that lies beside this program.
    pub async fn start(name: &'static str, naive: bool, dies_while_settling: bool) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("callbacks");
        let mut command = Command::new(&program);
        command.arg("127.0.0.1:0").stdout(Stdio::piped()).kill_on_drop(true);
        if naive {
            command.arg("--naive");
        }
        if dies_while_settling {
            command.env("DIE_WHILE_SETTLING", "1");
        }
        let mut process = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut said = BufReader::new(process.stdout.take().context("no standard output")?).lines();
        let line = said.next_line().await?.with_context(|| format!("{name} did not start"))?;
        let address =
            line.strip_prefix("listening on ").with_context(|| format!("{name} said {line:?}"))?.to_owned();
        Ok(Self { name, address, process })
    }

    /// Waits for its end, and tells whether it was the crash that it was started for.
    pub async fn aborted(&mut self) -> anyhow::Result<bool> {
        let end = tokio::time::timeout(PATIENCE, self.process.wait()).await.context("it does not end")??;
        Ok(end.signal() == Some(SIGABRT))
    }

    /// Lets it expect a callback, and returns where to.
    pub async fn expect(&self, order_id: &str) -> anyhow::Result<String> {
        let body = serde_json::json!({ "order_id": order_id }).to_string();
        let answer = self.post("/payments", &body).await?;
        println!("  a payment for {order_id} at {}: {}", self.name, answer.status);
        let callback =
            answer.body["callback"].as_str().with_context(|| format!("no callback in {answer}"))?;
        Ok(callback.to_owned())
    }

    pub async fn wait_for(&self, callback: &str, seconds: u64) -> anyhow::Result<Answer> {
        self.call(Method::GET, &format!("{callback}?wait={seconds}"), "").await
    }

    pub async fn post(&self, path: &str, body: &str) -> anyhow::Result<Answer> {
        self.call(Method::POST, path, body).await
    }

    async fn call(&self, method: Method, path: &str, body: &str) -> anyhow::Result<Answer> {
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))?;
        let call = async {
            let response = client.request(request).await?;
            let status = response.status().as_u16();
            let replayed = response.headers().contains_key("idempotent-replayed");
            let body = response.into_body().collect().await?.to_bytes();
            anyhow::Ok(Answer { status, replayed, body: serde_json::from_slice(&body)? })
        };
        tokio::time::timeout(PATIENCE, call).await.context("no answer in a minute")?
    }
}

pub struct Answer {
    pub status: u16,
    /// It is said to be that of an earlier call.
    pub replayed: bool,
    pub body: Value,
}

impl Answer {
    pub fn detail(&self) -> &str {
        self.body["detail"].as_str().unwrap_or_default()
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.body["receipt"].as_str() {
            Some(receipt) => {
                let replayed = if self.replayed { ", replayed" } else { "" };
                write!(
                    f,
                    "{}, {}, receipt {receipt:.8}{replayed}",
                    self.status,
                    self.body["status"].as_str().unwrap_or_default()
                )
            }
            None => write!(f, "{}, {}", self.status, self.detail()),
        }
    }
}
