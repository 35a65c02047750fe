//! AWS Powertools for Python: the call of a function that it makes idempotent is the whole pair.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::UnixStream;

use super::{Claim, POLL, Way, Work};
use crate::programs::powertools::Powertools;

type Connection = BufStream<UnixStream>;

/// Calls to programs that use the library; each has a thread for every connection.
pub struct PowertoolsCalls {
    sockets: Vec<PathBuf>,
    /// Those that nobody uses now, of each program.
    idle: Vec<Mutex<Vec<Connection>>>,
}

impl PowertoolsCalls {
    pub fn new(programs: &[Powertools]) -> Self {
        let sockets = programs.iter().map(Powertools::socket).collect();
        Self { sockets, idle: programs.iter().map(|_| Mutex::default()).collect() }
    }

    /// Whether the function was executed, and what it returned; `None` if another call of it is under way.
    async fn call(&self, caller: usize, key: &str, work: &Work) -> anyhow::Result<Option<(bool, Bytes)>> {
        let program = caller % self.sockets.len();
        let idle = || self.idle[program].lock().unwrap_or_else(PoisonError::into_inner);
        let unused = idle().pop();
        let mut connection = match unused {
            Some(connection) => connection,
            None => BufStream::new(UnixStream::connect(&self.sockets[program]).await?),
        };
        let call = [format!("{key} {} ", work.time.as_secs_f64()).as_bytes(), &work.outcome, b"\n"].concat();
        connection.write_all(&call).await?;
        connection.flush().await?;
        let mut line = String::new();
        connection.read_line(&mut line).await?;
        idle().push(connection);
        match line.trim_end_matches('\n').split_once(' ').context("the program has ended")? {
            ("error", error) => anyhow::bail!("the library says: {error}"),
            ("busy", _) => Ok(None),
            (word, answer) => Ok(Some((word == "executed", Bytes::from(answer.to_owned())))),
        }
    }
}

#[async_trait]
impl Way for PowertoolsCalls {
    async fn begin(&self, _caller: usize, _key: &str) -> anyhow::Result<Claim> {
        Ok(Claim::default())
    }

    async fn complete(&self, caller: usize, key: &str, _claim: Claim, outcome: Bytes) -> anyhow::Result<()> {
        let work = Work { time: Duration::ZERO, outcome };
        let answer = self.call(caller, key, &work).await?;
        anyhow::ensure!(answer == Some((true, work.outcome)), "a new key is answered with something else");
        Ok(())
    }

    async fn outcome(&self, key: &str) -> anyhow::Result<Bytes> {
        let again = Work { time: Duration::ZERO, outcome: Bytes::new() };
        let (executed, answer) = self.call(0, key, &again).await?.context("the key is not completed")?;
        anyhow::ensure!(!executed, "a completed key was executed again");
        Ok(answer)
    }

    async fn share(&self, caller: usize, key: &str, work: &Work) -> anyhow::Result<(bool, Bytes)> {
        loop {
            if let Some(answer) = self.call(caller, key, work).await? {
                return Ok(answer);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
