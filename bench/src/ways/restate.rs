//! Restate: a call with an idempotency key is the whole pair.

use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use hyper::header::HeaderValue;
use serde_json::json;

use super::http::{Http, post};
use super::{Claim, Way, Work};
use crate::options::Options;
use crate::programs::restate::Restate;

pub struct RestateCalls {
    connections: Vec<Http>,
    ingress: u16,
}

impl RestateCalls {
    pub async fn connect(options: &Options, restate: &Restate) -> anyhow::Result<Self> {
        let mut connections = Vec::new();
        for _ in 0..options.channels {
            connections.push(Http::connect(restate.ingress).await?);
        }
        Ok(Self { connections, ingress: restate.ingress })
    }

    /// Whether a call with this key did its work, and what it answers.
    async fn call(&self, caller: usize, key: &str, work: &Work) -> anyhow::Result<(bool, Bytes)> {
        let id = fastrand::u64(..).to_string();
        let response = std::str::from_utf8(&work.outcome)?;
        let input = json!({ "id": id, "ms": work.time.as_millis() as u64, "response": response });
        let body = serde_json::to_vec(&input)?;
        let mut request = post(self.ingress, "/bench/run", body.into())?;
        request.headers_mut().insert("idempotency-key", HeaderValue::from_str(key)?);
        let mut connection = self.connections[caller % self.connections.len()].clone();
        let answer = connection.send(request).await?;
        let text = String::from_utf8_lossy(answer.body());
        anyhow::ensure!(answer.status().is_success(), "the server says {}: {text}", answer.status());
        // An answer tells the id of the call whose work it comes from.
        let (answer_id, response): (String, String) =
            serde_json::from_slice(answer.body()).context("the answer is not as the service gives it")?;
        Ok((answer_id == id, response.into()))
    }
}

#[async_trait]
impl Way for RestateCalls {
    async fn begin(&self, _caller: usize, _key: &str) -> anyhow::Result<Claim> {
        Ok(Claim::default())
    }

    async fn complete(&self, caller: usize, key: &str, _claim: Claim, outcome: Bytes) -> anyhow::Result<()> {
        let work = Work { time: Duration::ZERO, outcome };
        let (ran, answer) = self.call(caller, key, &work).await?;
        anyhow::ensure!(ran && answer == work.outcome, "a new key is answered with something else");
        Ok(())
    }

    async fn outcome(&self, key: &str) -> anyhow::Result<Bytes> {
        let again = Work { time: Duration::ZERO, outcome: Bytes::new() };
        let (ran, answer) = self.call(0, key, &again).await?;
        anyhow::ensure!(!ran, "a completed key was executed again");
        Ok(answer)
    }

    async fn share(&self, caller: usize, key: &str, work: &Work) -> anyhow::Result<(bool, Bytes)> {
        self.call(caller, key, work).await
    }
}
