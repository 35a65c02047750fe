//! A store without a service around it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use onced::clock::{Clock, wall_time};
use onced::record::limits::{LOCK_TTL_DEFAULT, RETENTION_DEFAULT};
use onced::record::{
    FencingToken, Key, Namespace, OnLapse, Outcome, OutcomeResult, Record, RecordKey, RequestId, State,
};
use onced::store::embedded::EmbeddedStore;
use onced::store::etcd::{EtcdConfig, EtcdStore};
use onced::store::{Expected, RecordStore, Revision, Swapped};
use tempfile::TempDir;

use super::{Claim, Way};

/// A store, used as the coordinator uses it: Begin expects no record, Complete the one of its claim.
pub struct StoreWay {
    pub store: Arc<dyn RecordStore>,
    /// Removed after the store is closed.
    _dir: Option<TempDir>,
}

impl StoreWay {
    pub async fn etcd(endpoints: &str, prefix: &str) -> anyhow::Result<Self> {
        let endpoints = endpoints.split(',').map(str::to_owned).collect();
        let config = EtcdConfig::new(endpoints, prefix);
        let store = EtcdStore::connect(config, Clock::system()).await?;
        Ok(Self { store: Arc::new(store), _dir: None })
    }

    pub fn embedded() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("onced-bench-").tempdir()?;
        let store = EmbeddedStore::open(dir.path(), Clock::system())?;
        Ok(Self { store: Arc::new(store), _dir: Some(dir) })
    }

    /// Writes a record that must be as expected.
    pub async fn write(
        &self,
        key: &RecordKey,
        expected: Expected,
        next: &Record,
    ) -> anyhow::Result<Revision> {
        match self.store.swap(key, expected, Some(next)).await? {
            Swapped::Done(revision) => Ok(revision),
            Swapped::Conflict(_) => anyhow::bail!("somebody else wrote a key of ours"),
        }
    }
}

/// A key as the store names it.
pub fn record_key(key: &str) -> anyhow::Result<RecordKey> {
    let namespace = Namespace::new("bench").context("a namespace")?;
    Ok(RecordKey { namespace, key: Key::new(key).context("a key")? })
}

/// A claim about to be written.
pub fn in_progress(lock_ttl: Duration, retention: Duration) -> Record {
    let now = wall_time();
    Record {
        fencing_token: FencingToken::THIS_WRITE,
        attempt: 1,
        request_id: RequestId(fastrand::u128(..).to_ne_bytes()),
        owner: "bench".to_owned(),
        fingerprint: None,
        checkpoint: None,
        began_at: now,
        retention,
        state: State::InProgress { lock_ttl, on_lapse: OnLapse::TakeOver, armed_at: now },
    }
}

/// The same, completed.
fn completed(token: u64, response: Bytes) -> Record {
    let (content_type, metadata) = (String::new(), BTreeMap::new());
    let outcome = Outcome { result: OutcomeResult::Response(response), content_type, metadata };
    let state =
        State::Completed { outcome: Arc::new(outcome), completed_at: wall_time(), resolved_from: None };
    Record { fencing_token: FencingToken(token), state, ..in_progress(LOCK_TTL_DEFAULT, RETENTION_DEFAULT) }
}

#[async_trait]
impl Way for StoreWay {
    async fn begin(&self, _caller: usize, key: &str) -> anyhow::Result<Claim> {
        let record = in_progress(LOCK_TTL_DEFAULT, RETENTION_DEFAULT);
        let revision = self.write(&record_key(key)?, Expected::Absent, &record).await?;
        Ok(Claim { token: revision.0, lease: 0 })
    }

    async fn complete(&self, _caller: usize, key: &str, claim: Claim, outcome: Bytes) -> anyhow::Result<()> {
        let record = completed(claim.token, outcome);
        self.write(&record_key(key)?, Expected::At(Revision(claim.token)), &record).await?;
        Ok(())
    }

    async fn outcome(&self, key: &str) -> anyhow::Result<Bytes> {
        let loaded = self.store.load(&record_key(key)?).await?.context("the key is absent")?;
        match &loaded.record.state {
            State::Completed { outcome, .. } => match &outcome.result {
                OutcomeResult::Response(response) => Ok(response.clone()),
                OutcomeResult::Error { .. } => anyhow::bail!("the outcome is an error"),
            },
            _ => anyhow::bail!("the key is not completed"),
        }
    }
}
