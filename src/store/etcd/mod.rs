//! The etcd store: one key per record, locks and retention on shared leases. The only place that knows
//! etcd-client.
//!
//! - `keyspace`: where things lie in etcd.
//! - `client`: calls, bounded in time.
//! - `call_error`: what their failures mean; `advice`: how these are told.
//! - `endpoints`: which endpoint they go to; `attempt`: what came of it there.
//! - `dial`: how a connection is made.
//! - `identity`: whether it reaches the store that was opened; `clones`: whether all that reach it reach one.
//! - `status`: how full etcd is.
//! - `leases`: the shared leases.
//! - `write`: conditional writes, and the transactions that carry them.
//! - `queue`, `commit`, `read`: group commit, of writes and of reads.
//! - `outcomes`: those that were read lately.
//! - `lapses`: which locks are known to be over.
//! - `watch`: watches that go on after a stream is lost.

mod advice;
mod attempt;
mod call_error;
mod client;
mod clones;
mod commit;
mod dial;
mod endpoints;
mod identity;
mod keyspace;
mod lapses;
#[cfg(test)]
mod lapses_tests;
mod leases;
#[doc(hidden)]
pub mod measuring;
mod open;
mod outcomes;
mod queue;
mod read;
mod status;
mod watch;
mod write;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{GetOptions, KeyValue, TxnOp};

use self::call_error::CallError;
use self::client::{EtcdClient, TXN_MAX_OPS};
use self::commit::Commits;
use self::keyspace::Keyspace;
use self::lapses::Lapses;
use self::leases::{Lease, Leases, Purpose};
use self::outcomes::Outcomes;
use self::read::Reads;
use self::status::Room;
use self::watch::{Hints, Subject, Watcher};
use self::write::{Put, Write, Written, mod_revision, revision};
use super::encoding::{Placement, decode, encode};
use super::hub::Hub;
use super::{Expected, Loaded, Page, Recalled, RecordStore, StoreError, Swapped, Watch};
use crate::clock::{Clock, Moment};
use crate::record::{Key, Lifetime, Lock, Namespace, Record, RecordKey};

#[cfg(any(test, fuzzing))]
pub use keyspace::fuzzing;

pub use dial::{EtcdLogin, EtcdTls, Network};
pub use keyspace::{PREFIX_DEFAULT, PREFIX_MAX_BYTES};
pub use open::OpenError;
pub use status::{QUOTA_DEFAULT_BYTES, SizeWatch};

/// How old a write may be when it is sent. What comes later is rebuilt by its caller, with fresh times.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(3);
/// How often a write is tried with other leases, when the ones it had are gone.
const LEASE_ATTEMPTS: usize = 3;
/// How many records of a namespace are read at once: etcd mostly takes their sentinels in one transaction.
const SCAN_MAX: usize = TXN_MAX_OPS;

/// Where and how to reach etcd.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// The members of the cluster, as host:port.
    pub endpoints: Vec<String>,
    /// What all keys of the store begin with, slashes around it not counting; empty: [`PREFIX_DEFAULT`].
    pub prefix: String,
    /// How long one call to etcd may take, tries at several endpoints included.
    pub call_timeout: Duration,
    /// What TLS stands on; `None`: without TLS.
    pub tls: Option<EtcdTls>,
    /// Who we are; `None`: etcd does not ask.
    pub login: Option<EtcdLogin>,
    /// How its size is watched.
    pub size: SizeWatch,
    /// What it is reached over.
    pub network: Network,
}

impl EtcdConfig {
    /// The store below `prefix` of the cluster at `endpoints`, with the usual timeout of 3 s.
    pub fn new(endpoints: Vec<String>, prefix: impl Into<String>) -> Self {
        let call_timeout = Duration::from_secs(3);
        Self {
            endpoints,
            prefix: prefix.into(),
            call_timeout,
            tls: None,
            login: None,
            size: SizeWatch::default(),
            network: Network::system(),
        }
    }
}

/// A store in etcd. Several servers may share one.
pub struct EtcdStore {
    client: EtcdClient,
    clock: Clock,
    keyspace: Keyspace,
    hub: Hub,
    lapses: Lapses,
    locks: Leases,
    retentions: Leases,
    commits: Commits,
    reads: Reads,
    outcomes: Outcomes,
    records_watcher: Watcher,
    room: Room,
    /// Watches as long as the store lives.
    _sentinels_watcher: Watcher,
}

impl EtcdStore {
    /// Opens a store, and marks its prefix if it is new. Takes a few calls' time at most.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn connect(config: EtcdConfig, clock: Clock) -> Result<Self, OpenError> {
        let keyspace = open::keyspace(&config)?;
        let (client, home) = open::client(&config, &keyspace).await?;
        let hub = Hub::default();
        let lapses = Lapses::new(hub.clone());
        let hints = Hints { keyspace: keyspace.clone(), hub: hub.clone(), lapses: lapses.clone() };
        let sentinels_watcher = Watcher::start(client.clone(), hints.clone());
        let watching = sentinels_watcher.watch(Subject::Sentinels);
        if !matches!(tokio::time::timeout(client.call_timeout(), watching).await, Ok(Ok(()))) {
            let why = "it answers reads, but did not begin a watch".to_owned();
            return Err(OpenError::unreachable(&config, why));
        }
        let leases = |purpose| Leases::new(client.clone(), clock.clone(), purpose);
        Ok(Self {
            locks: leases(Purpose::Locks(keyspace.clone())),
            retentions: leases(Purpose::Retention),
            commits: Commits::new(client.clone(), keyspace.clone(), home, clock.clone()),
            reads: Reads::new(client.clone()),
            outcomes: Outcomes::default(),
            records_watcher: Watcher::start(client.clone(), hints),
            _sentinels_watcher: sentinels_watcher,
            room: Room::watch(client.clone(), keyspace.meta(), config.size),
            client,
            clock,
            keyspace,
            hub,
            lapses,
        })
    }

    /// A record as read from etcd, its lock not yet looked at: that of the lease, if there is one.
    fn read(&self, key: &RecordKey, kv: &KeyValue) -> Result<(Loaded, Option<i64>), StoreError> {
        let revision = revision(kv.mod_revision());
        let decoded = decode(kv.value(), revision)?;
        let lease = match (decoded.record.lock_ttl(), decoded.placement.lock_lease) {
            (None, _) => None,
            (Some(_), 0) => {
                return Err(StoreError::corrupt("it is in progress but names no lease"));
            }
            (Some(_), lease) => Some(lease),
        };
        self.lapses.note(key, revision, lease);
        Ok((Loaded { record: Arc::new(decoded.record), revision, lock: Lock::Held }, lease))
    }

    /// A record as read from etcd, and whether its lock has lapsed; as it is now, if it was written meanwhile.
    async fn loaded(&self, key: &RecordKey, mut kv: KeyValue) -> Result<Option<Loaded>, StoreError> {
        loop {
            let (loaded, lease) = self.read(key, &kv)?;
            match lease {
                Some(lease) if self.is_over(lease).await? => {}
                Some(_) | None => {
                    self.outcomes.remember(key, &loaded.record, kv);
                    return Ok(Some(loaded));
                }
            }
            // A claim that was renewed in time leaves its old lease to end. It has lapsed only if it is found
            // on that lease after the end.
            match self.get_record(key).await? {
                Some(now) if now.mod_revision() == kv.mod_revision() => {
                    return Ok(Some(Loaded { lock: Lock::Lapsed, ..loaded }));
                }
                Some(now) => kv = now,
                None => return Ok(None),
            }
        }
    }

    async fn get_record(&self, key: &RecordKey) -> Result<Option<KeyValue>, StoreError> {
        self.reads.get(self.keyspace.record(key)).await.map_err(CallError::of_read)
    }

    /// Whether a lock lease has ended: as the watch has shown, or else as etcd says now.
    async fn is_over(&self, lease: i64) -> Result<bool, StoreError> {
        if self.lapses.is_gone(lease) {
            return Ok(true);
        }
        let held = self.reads.is_there(self.keyspace.sentinel(lease)).await.map_err(CallError::of_read)?;
        if !held {
            self.lapses.gone(lease);
        }
        Ok(!held)
    }

    /// Which of several lock leases had ended when etcd was at `revision`.
    async fn over_at(&self, revision: i64, leases: HashSet<i64>) -> Result<HashSet<i64>, StoreError> {
        let get = |&lease: &i64| {
            let options = GetOptions::new().with_keys_only().with_revision(revision);
            TxnOp::get(self.keyspace.sentinel(lease), Some(options))
        };
        let leases: Vec<i64> = leases.into_iter().collect();
        let (mut over, mut asked, mut at_once) = (HashSet::new(), 0, TXN_MAX_OPS);
        while asked < leases.len() {
            let some = &leases[asked..leases.len().min(asked + at_once)];
            let reads = match self.client.get_all(some.iter().map(get).collect()).await {
                // An operator may have lowered the limit.
                Err(CallError::Unfit(_)) if at_once > 1 => {
                    at_once /= 2;
                    continue;
                }
                reads => reads.map_err(CallError::of_read)?,
            };
            over.extend(some.iter().zip(&reads).filter(|(_, read)| read.kvs().is_empty()).map(|(it, _)| *it));
            asked += some.len();
        }
        over.iter().for_each(|&lease| self.lapses.gone(lease));
        Ok(over)
    }

    /// What to put for a record: its leases are chosen here, so after the load whose revision is expected.
    async fn prepare(&self, next: &Record) -> Result<Put, StoreError> {
        let ready = |leases: &Leases, time: Option<Duration>| match time {
            Some(time) => leases.take_ready(time).map(Some),
            None => Some(None),
        };
        let lock = ready(&self.locks, next.lock_ttl());
        let retention = ready(&self.retentions, retention_time(next));
        let (lock, retention) = match (lock, retention) {
            (Some(lock), Some(retention)) => (lock, retention),
            // Boxed, as it is seldom needed and would make every swap's future larger.
            (None, _) | (_, None) => Box::pin(self.leases(next)).await?,
        };
        let lock_lease = lock.as_ref().map_or(0, |lease: &Arc<Lease>| lease.id);
        let value = encode(next, &Placement { lock_lease, ..Placement::default() });
        Ok(Put { value, retention, lock })
    }

    /// The leases for a record, its lock's and the one it hangs on; waits for their grants.
    async fn leases(&self, next: &Record) -> Result<(Option<Arc<Lease>>, Option<Arc<Lease>>), StoreError> {
        async fn take(leases: &Leases, time: Option<Duration>) -> Result<Option<Arc<Lease>>, CallError> {
            match time {
                Some(time) => leases.take(time).await.map(Some),
                None => Ok(None),
            }
        }
        let both = async {
            tokio::try_join!(take(&self.locks, next.lock_ttl()), take(&self.retentions, retention_time(next)))
        };
        match tokio::time::timeout(WRITE_WAIT_MAX, both).await {
            Ok(leases) => leases.map_err(not_written),
            Err(_) => Err(StoreError::NotApplied("etcd did not grant a lease in time".to_owned())),
        }
    }

    /// Prepares and sends a write once.
    async fn write(
        &self,
        called: Moment,
        name: &Arc<str>,
        expected: Expected,
        next: Option<&Record>,
    ) -> Result<Attempt, StoreError> {
        let put = match next {
            Some(next) => Some(self.prepare(next).await?),
            None => None,
        };
        let (lock, retention) = match &put {
            Some(put) => (put.lock.clone(), put.retention.clone()),
            None => (None, None),
        };
        let expected = mod_revision(expected);
        match self.commits.write(Write { name: Arc::clone(name), expected, put }, called).await {
            Ok(Written::Done(revision)) => Ok(Attempt::Done(revision)),
            Ok(Written::Lost(current)) => Ok(Attempt::Lost(current)),
            Ok(Written::LockGone) => {
                self.locks.discard(lock.as_ref());
                Ok(Attempt::LeaseGone)
            }
            Ok(Written::Foreign) => Err(StoreError::NotApplied(format!(
                "etcd no longer has the store that was opened: {} is gone or another one; if that is meant to be so, \
                 restart onced",
                self.keyspace.meta()
            ))),
            // It may be that of a neighbour in the transaction: etcd does not say whose.
            Err(CallError::LeaseNotFound) => {
                self.retentions.discard(retention.as_ref());
                Ok(Attempt::LeaseGone)
            }
            Err(CallError::NoSpace(text)) => Err(Box::pin(self.settle_full(name, expected, text)).await),
            Err(
                CallError::Refused(text)
                | CallError::Unfit(text)
                | CallError::Unreachable(text)
                | CallError::Foreign(text),
            ) => Err(StoreError::NotApplied(text)),
            Err(error @ (CallError::LeaseExists | CallError::TooLarge | CallError::Unknown(_))) => {
                Err(StoreError::OutcomeUnknown(error.into_text()))
            }
        }
    }

    /// The error of a write that etcd answered with NOSPACE. The write that first hits the quota is applied
    /// all the same, so the record is looked at: unchanged after the answer, it was not this write.
    async fn settle_full(&self, name: &str, expected: i64, text: String) -> StoreError {
        match self.reads.mod_revision(name.to_owned()).await {
            Ok(unchanged) if unchanged == expected => StoreError::Full(text),
            Ok(_) | Err(_) => StoreError::OutcomeUnknown(text),
        }
    }
}

/// What came of sending a write once.
enum Attempt {
    Done(super::Revision),
    Lost(Option<KeyValue>),
    /// Nothing was written, for a lease had ended that is now dropped.
    LeaseGone,
}

/// How long it is to be kept; `None`: for ever.
fn retention_time(record: &Record) -> Option<Duration> {
    match record.lifetime() {
        Lifetime::AtLeast(time) => Some(time),
        Lifetime::Forever => None,
    }
}

/// The error of a write that was not even sent.
fn not_written(error: CallError) -> StoreError {
    match error {
        CallError::NoSpace(text) => StoreError::Full(text),
        error => StoreError::NotApplied(error.into_text()),
    }
}

#[async_trait]
impl RecordStore for EtcdStore {
    async fn load(&self, key: &RecordKey) -> Result<Option<Loaded>, StoreError> {
        match self.get_record(key).await? {
            Some(kv) => self.loaded(key, kv).await,
            None => Ok(None),
        }
    }

    fn recall<'a>(&'a self, key: &'a RecordKey) -> Option<Recalled<'a>> {
        let kv = self.outcomes.get(key)?;
        Some(Recalled::Checked(Box::pin(async move {
            // What was not written since is as it was, so that etcd need not send it again.
            let now = self.reads.mod_revision(self.keyspace.record(key)).await.map_err(CallError::of_read)?;
            if now != kv.mod_revision() {
                self.outcomes.forget(key);
                return Ok(None);
            }
            self.read(key, &kv).map(|(loaded, _)| Some(loaded))
        })))
    }

    async fn swap(
        &self,
        key: &RecordKey,
        expected: Expected,
        next: Option<&Record>,
    ) -> Result<Swapped, StoreError> {
        let called = self.clock.now();
        if next.is_some_and(Record::makes_claim)
            && let Some(why) = self.room.scarce()
        {
            return Err(StoreError::Full(why));
        }
        let name = self.keyspace.record(key).into();
        for _ in 0..LEASE_ATTEMPTS {
            match self.write(called, &name, expected, next).await? {
                Attempt::Done(revision) => return Ok(Swapped::Done(revision)),
                Attempt::Lost(None) => return Ok(Swapped::Conflict(None)),
                Attempt::Lost(Some(kv)) => {
                    return Ok(Swapped::Conflict(Box::pin(self.loaded(key, kv)).await?));
                }
                Attempt::LeaseGone => {}
            }
        }
        Err(StoreError::NotApplied(
            "the leases for it ended again and again before it was written".to_owned(),
        ))
    }

    async fn watch(&self, key: &RecordKey) -> Result<Watch, StoreError> {
        let subject = Subject::Record(key.clone());
        let on_end = {
            let (watcher, lapses, subject) =
                (self.records_watcher.clone(), self.lapses.clone(), subject.clone());
            let key = key.clone();
            move || {
                watcher.unwatch(subject);
                lapses.forget(&key);
            }
        };
        let watch = self.hub.watch(key, Some(Box::new(on_end)));
        let confirmed = self.records_watcher.watch(subject);
        match tokio::time::timeout(self.client.call_timeout(), confirmed).await {
            Ok(Ok(())) => Ok(watch),
            Ok(Err(_)) | Err(_) => {
                Err(StoreError::NotApplied("etcd did not begin a watch in time".to_owned()))
            }
        }
    }

    async fn scan(
        &self,
        namespace: &Namespace,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let start = self.keyspace.records(namespace);
        // The next name after '/' ends the namespace; the next key after another is that and a zero byte.
        let end = format!("{}0", start.trim_end_matches('/'));
        let from = match after {
            Some(key) => format!("{start}{}\0", key.as_str()),
            None => start,
        };
        let mut limit = limit.clamp(1, SCAN_MAX);
        let read = loop {
            let rows = i64::try_from(limit).unwrap_or(1);
            let options = GetOptions::new().with_range(end.as_str()).with_limit(rows);
            match self.client.get(from.as_str(), Some(options)).await {
                // Large records: fewer at once.
                Err(CallError::TooLarge) if limit > 1 => limit = (limit / 4).max(1),
                read => break read.map_err(CallError::of_read)?,
            }
        };
        let mut records = Vec::with_capacity(read.kvs().len());
        for kv in read.kvs() {
            let key = self.keyspace.key_of(namespace, kv.key());
            let key = key.ok_or_else(|| StoreError::corrupt("it has a name that onced gives none"))?;
            let key = RecordKey { namespace: namespace.clone(), key };
            let (loaded, lease) = self.read(&key, kv).map_err(|error| error.of(&key))?;
            records.push((key.key, loaded, lease));
        }
        // Their locks as they were just then: a claim that was renewed since has left its lease to end.
        let revision = read.header().map_or(0, |header| header.revision());
        let over = self.over_at(revision, records.iter().filter_map(|(.., lease)| *lease).collect()).await?;
        for (_, loaded, lease) in &mut records {
            if lease.is_some_and(|lease| over.contains(&lease)) {
                loaded.lock = Lock::Lapsed;
            }
        }
        let next = records.last().filter(|_| read.more()).map(|(key, ..)| key.clone());
        Ok(Page { records: records.into_iter().map(|(key, loaded, _)| (key, loaded)).collect(), next })
    }
}
