//! What one writes with etcd's own lock service: a session's lease, a lock of the key, and a put of the outcome that
//! checks that the lock is still held.

use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Client, Compare, CompareOp, LockOptions, PutOptions, Txn, TxnOp};
use onced::record::limits::{LOCK_TTL_DEFAULT, RETENTION_DEFAULT};
use tokio::task::AbortHandle;

use super::{Claim, Way, Work};
use crate::options::Options;

/// A connection, and the lease that all its locks hang on.
struct Session {
    client: Client,
    lease: i64,
    keeper: AbortHandle,
}

pub struct V3Lock {
    sessions: Vec<Session>,
    prefix: String,
}

impl Session {
    async fn open(endpoint: &str) -> anyhow::Result<Self> {
        let client = Client::connect([endpoint], None).await?;
        let ttl = i64::try_from(LOCK_TTL_DEFAULT.as_secs())?;
        let lease = client.lease_client().grant(ttl, None).await?.id();
        let keeper = tokio::spawn(keep_alive(client.clone(), lease, LOCK_TTL_DEFAULT / 3)).abort_handle();
        Ok(Self { client, lease, keeper })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

async fn keep_alive(client: Client, lease: i64, pause: Duration) -> anyhow::Result<()> {
    let (mut keeper, mut answers) = client.lease_client().keep_alive(lease).await?;
    loop {
        tokio::time::sleep(pause).await;
        keeper.keep_alive().await?;
        answers.message().await?.context("the stream has ended")?;
    }
}

impl V3Lock {
    pub async fn connect(options: &Options, endpoint: &str, prefix: &str) -> anyhow::Result<Self> {
        let mut sessions = Vec::new();
        for _ in 0..options.channels {
            sessions.push(Session::open(endpoint).await?);
        }
        Ok(Self { sessions, prefix: prefix.to_owned() })
    }

    fn session(&self, caller: usize) -> &Session {
        &self.sessions[caller % self.sessions.len()]
    }

    fn lock_name(&self, key: &str) -> String {
        format!("/{}/locks/{key}", self.prefix)
    }

    /// The key that a lock is made of: etcd's lock service names it by the lease.
    fn lock_key(&self, key: &str, lease: i64) -> String {
        format!("{}/{lease:x}", self.lock_name(key))
    }

    fn outcome_name(&self, key: &str) -> String {
        format!("/{}/outcomes/{key}", self.prefix)
    }

    /// Puts the outcome of a key while its lock is held, and gives that back.
    async fn put(&self, client: &Client, key: &str, lock_key: Vec<u8>, outcome: Bytes) -> anyhow::Result<()> {
        let retention = i64::try_from(RETENTION_DEFAULT.as_secs())?;
        let retention = client.lease_client().grant(retention, None).await?.id();
        let held = Compare::create_revision(lock_key.clone(), CompareOp::Greater, 0);
        let put = TxnOp::put(self.outcome_name(key), outcome, Some(PutOptions::new().with_lease(retention)));
        let answer = client.kv_client().txn(Txn::new().when([held]).and_then([put])).await?;
        anyhow::ensure!(answer.succeeded(), "a lock of ours is lost");
        client.lock_client().unlock(lock_key).await?;
        Ok(())
    }
}

#[async_trait]
impl Way for V3Lock {
    async fn begin(&self, caller: usize, key: &str) -> anyhow::Result<Claim> {
        let Session { client, lease, .. } = self.session(caller);
        let options = LockOptions::new().with_lease(*lease);
        let lock = client.lock_client().lock(self.lock_name(key), Some(options)).await?;
        anyhow::ensure!(lock.key() == self.lock_key(key, *lease).as_bytes(), "a lock has another name");
        // Who waited for the lock may find the work done.
        let found = client.kv_client().get(self.outcome_name(key), None).await?;
        anyhow::ensure!(found.kvs().is_empty(), "somebody else wrote a key of ours");
        Ok(Claim { token: 0, lease: *lease })
    }

    async fn complete(&self, caller: usize, key: &str, claim: Claim, outcome: Bytes) -> anyhow::Result<()> {
        let Session { client, .. } = self.session(caller);
        self.put(client, key, self.lock_key(key, claim.lease).into_bytes(), outcome).await
    }

    async fn outcome(&self, key: &str) -> anyhow::Result<Bytes> {
        let mut read = self.sessions[0].client.kv_client().get(self.outcome_name(key), None).await?;
        let kv = read.take_kvs().pop().context("the key is absent")?;
        Ok(kv.value().to_vec().into())
    }

    async fn share(&self, caller: usize, key: &str, work: &Work) -> anyhow::Result<(bool, Bytes)> {
        let Session { client, .. } = self.session(caller);
        // On a lease of its own, which etcd grants: those of one lease do not keep each other out.
        let lock = client.lock_client().lock(self.lock_name(key), None).await?;
        let mut found = client.kv_client().get(self.outcome_name(key), None).await?;
        if let Some(kv) = found.take_kvs().pop() {
            client.lock_client().unlock(lock.key()).await?;
            return Ok((false, kv.value().to_vec().into()));
        }
        tokio::time::sleep(work.time).await;
        self.put(client, key, lock.key().to_vec(), work.outcome.clone()).await?;
        Ok((true, work.outcome.clone()))
    }
}
