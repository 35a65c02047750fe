//! What one writes against Redis: a claim is `SET NX PX`, and its completion a script that checks who holds it.

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use onced::record::limits::{LOCK_TTL_DEFAULT, RETENTION_DEFAULT};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo as _, Script};

use super::{Claim, POLL, Way, Work};
use crate::load::HANGS;
use crate::options::Options;
use crate::programs::redis::Redis;

/// Puts the outcome in the place of the claim, if that is still ours.
const COMPLETE: &str = r#"
if redis.call("GET", KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call("SET", KEYS[1], ARGV[2], "PX", ARGV[3])
return 1
"#;
/// What an outcome begins with, unlike a claim.
const DONE: &[u8] = b"done:";

pub struct RedisWay {
    connections: Vec<MultiplexedConnection>,
    complete: Script,
}

impl RedisWay {
    pub async fn connect(options: &Options, redis: &Redis) -> anyhow::Result<Self> {
        // The client leaves Nagle's algorithm on, and gives up after half a second, unless told otherwise.
        let info = format!("redis://127.0.0.1:{}", redis.port).into_connection_info()?;
        let client = Client::open(info.set_tcp_settings(TcpSettings::default().set_nodelay(true)))?;
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(HANGS));
        let mut connections = Vec::new();
        for _ in 0..options.channels {
            connections.push(client.get_multiplexed_async_connection_with_config(&config).await?);
        }
        let this = Self { connections, complete: Script::new(COMPLETE) };
        this.complete.prepare_invoke().load_async(&mut this.connection(0)).await?;
        Ok(this)
    }

    /// Claims a key that nobody holds or has completed.
    async fn claim(&self, caller: usize, key: &str) -> anyhow::Result<Option<Claim>> {
        let token = fastrand::u64(..);
        let mut set = redis::cmd("SET");
        set.arg(key).arg(claim_value(token)).arg("NX").arg("PX").arg(LOCK_TTL_DEFAULT.as_millis() as u64);
        let answer: Option<String> = set.query_async(&mut self.connection(caller)).await?;
        Ok(answer.map(|_| Claim { token, lease: 0 }))
    }

    /// The outcome of a key, if it has one.
    async fn completed(&self, caller: usize, key: &str) -> anyhow::Result<Option<Bytes>> {
        let mut get = redis::cmd("GET");
        let value: Option<Vec<u8>> = get.arg(key).query_async(&mut self.connection(caller)).await?;
        Ok(value.and_then(|value| Some(value.strip_prefix(DONE)?.to_vec().into())))
    }

    fn connection(&self, caller: usize) -> MultiplexedConnection {
        self.connections[caller % self.connections.len()].clone()
    }
}

fn claim_value(token: u64) -> String {
    format!("claim:{token:016x}")
}

#[async_trait]
impl Way for RedisWay {
    async fn begin(&self, caller: usize, key: &str) -> anyhow::Result<Claim> {
        self.claim(caller, key).await?.context("somebody else wrote a key of ours")
    }

    async fn complete(&self, caller: usize, key: &str, claim: Claim, outcome: Bytes) -> anyhow::Result<()> {
        let mut script = self.complete.key(key);
        script.arg(claim_value(claim.token)).arg([DONE, &outcome].concat());
        script.arg(RETENTION_DEFAULT.as_millis() as u64);
        let completed: bool = script.invoke_async(&mut self.connection(caller)).await?;
        anyhow::ensure!(completed, "a claim of ours is not there");
        Ok(())
    }

    async fn outcome(&self, key: &str) -> anyhow::Result<Bytes> {
        self.completed(0, key).await?.context("the key is not completed")
    }

    async fn share(&self, caller: usize, key: &str, work: &Work) -> anyhow::Result<(bool, Bytes)> {
        loop {
            if let Some(claim) = self.claim(caller, key).await? {
                tokio::time::sleep(work.time).await;
                self.complete(caller, key, claim, work.outcome.clone()).await?;
                return Ok((true, work.outcome.clone()));
            }
            if let Some(outcome) = self.completed(caller, key).await? {
                return Ok((false, outcome));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
