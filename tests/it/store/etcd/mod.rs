//! The etcd store, on a real etcd.

mod auth;
mod batches;
mod corrupt;
mod endpoints;
mod fake;
mod faults;
mod identity;
mod lapses;
mod late_writes;
mod leases;
mod lost_answers;
mod opening;
mod outcomes;
mod revoked;
mod service;
mod size;
mod tls;
mod watches;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::GetOptions;
use onced::clock::{Clock, Moment};
use onced::record::{OnLapse, Record, RecordKey};
use onced::store::etcd::{EtcdConfig, EtcdStore};
use onced::store::{Loaded, RecordStore, Watch};
use prost::Message;

use super::conformance::conformance;
use super::fixture::{Fixture, PATIENCE, claim, create, in_progress, key_in};
use crate::support::etcd::EtcdProcess;
use crate::support::proxy::Proxy;

conformance!(Etcd::start());

/// A prefix of an etcd, and a connection to it that can be cut.
struct Etcd {
    proxy: Proxy,
    config: EtcdConfig,
    /// The same store, past the proxy.
    direct: EtcdConfig,
    clock: StoppableClock,
}

impl Etcd {
    /// One of the shared etcd.
    async fn start() -> Self {
        Self::at(EtcdProcess::shared().config()).await
    }

    async fn at(direct: EtcdConfig) -> Self {
        let proxy = Proxy::start(direct.endpoints[0].clone()).await;
        let config = EtcdConfig { endpoints: vec![proxy.endpoint()], ..direct.clone() };
        Self { proxy, config, direct, clock: StoppableClock::default() }
    }
}

#[async_trait]
impl Fixture for Etcd {
    async fn store(&self) -> Arc<dyn RecordStore> {
        let clock = self.clock.clock();
        Arc::new(EtcdStore::connect(self.config.clone(), clock).await.unwrap())
    }

    async fn restart(&self, last: Arc<dyn RecordStore>) -> Arc<dyn RecordStore> {
        drop(last);
        self.proxy.close();
        self.proxy.open();
        self.clock.go_on();
        self.store().await
    }

    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn expire(&self, key: &RecordKey) {
        // The lease that it hangs on, and the one that it hung on at first: they would have ended by now.
        let config = &self.direct;
        let mut leases = Vec::new();
        if let Some(now) = raw_at(config, key, None).await {
            leases.push(now.retention_lease);
            leases.extend(raw_at(config, key, Some(now.created)).await.map(|raw| raw.retention_lease));
        }
        leases.sort_unstable();
        leases.dedup();
        for lease in leases.into_iter().filter(|&lease| lease != 0) {
            // It may have been revoked before.
            let _ = client(config).await.lease_client().revoke(lease).await;
        }
    }

    async fn cut(&self) {
        self.proxy.mute();
        // The leases at hand stay good enough: what is cut off is the write.
        self.clock.stop();
    }
}

/// The system's clock, until it is stopped: then it stays where it was when last read.
#[derive(Clone, Default)]
struct StoppableClock {
    stopped: Arc<AtomicBool>,
    last: Arc<Mutex<Moment>>,
}

impl StoppableClock {
    fn clock(&self) -> Clock {
        let (own, system) = (self.clone(), Clock::system());
        Clock::from_fn(move || {
            let mut last = own.last.lock().unwrap();
            if !own.stopped.load(Ordering::SeqCst) {
                *last = system.now();
            }
            *last
        })
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    fn go_on(&self) {
        self.stopped.store(false, Ordering::SeqCst);
    }
}

/// A lock TTL that does not lapse in a test.
const LONG: Duration = Duration::from_secs(600);

fn long_claim() -> Record {
    Record { state: in_progress(LONG, OnLapse::TakeOver), ..claim("holder") }
}

fn long_held() -> Record {
    Record { state: in_progress(LONG, OnLapse::Hold), ..claim("holder") }
}

async fn open(config: &EtcdConfig) -> Arc<dyn RecordStore> {
    Arc::new(EtcdStore::connect(config.clone(), Clock::system()).await.unwrap())
}

/// Creates many records, some at once.
async fn create_all(store: &Arc<dyn RecordStore>, keys: &[RecordKey], record: &Record) {
    for some in keys.chunks(100) {
        futures_util::future::join_all(some.iter().map(|key| create(store, key, record))).await;
    }
}

fn keys(count: usize) -> Vec<RecordKey> {
    (0..count).map(|i| key_in("many", &format!("k{i}"))).collect()
}

/// Waits for a hint after which `done` holds of what is there.
async fn hinted(
    watch: &mut Watch,
    store: &Arc<dyn RecordStore>,
    key: &RecordKey,
    done: impl Fn(&Loaded) -> bool,
) {
    let hints = async {
        loop {
            watch.changed().await;
            if store.load(key).await.unwrap().is_some_and(|loaded| done(&loaded)) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, hints).await.expect("a hint");
}

/// What etcd itself has of a record.
pub struct Raw {
    pub retention_lease: i64,
    pub lock_lease: i64,
    created: i64,
}

async fn raw(config: &EtcdConfig, key: &RecordKey) -> Raw {
    raw_at(config, key, None).await.expect("a record")
}

pub async fn raw_at(config: &EtcdConfig, key: &RecordKey, revision: Option<i64>) -> Option<Raw> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Placement {
        #[prost(int64, tag = "20")]
        lock_lease: i64,
    }
    let name = format!("{}/r/{}/{}", config.prefix, key.namespace.as_str(), key.key.as_str());
    let at = revision.map(|revision| GetOptions::new().with_revision(revision));
    let read = client(config).await.get(name, at).await.unwrap();
    let kv = read.kvs().first()?;
    let lock_lease = Placement::decode(kv.value()).unwrap().lock_lease;
    Some(Raw { retention_lease: kv.lease(), lock_lease, created: kv.create_revision() })
}

/// A client of etcd, to look at what is there and to meddle.
async fn client(config: &EtcdConfig) -> etcd_client::Client {
    etcd_client::Client::connect(&config.endpoints, None).await.unwrap()
}

pub async fn revoke(config: &EtcdConfig, lease: i64) {
    client(config).await.lease_client().revoke(lease).await.unwrap();
}
