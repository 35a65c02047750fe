//! What the suite needs of a store under test, and the records it writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use onced::record::limits::{LOCK_TTL_MIN, RETENTION_MIN};
use onced::record::{
    DoubtCause, FencingToken, Key, Lock, Namespace, OnLapse, Outcome, OutcomeResult, Record, RecordKey,
    RequestId, State, Timestamp,
};
use onced::store::{Expected, Loaded, Recalled, RecordStore, Revision, Swapped};

/// A store under test, with fresh data of its own, and power over its world.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// A handle on the store. Where several servers may share one, each call is another server.
    async fn store(&self) -> Arc<dyn RecordStore>;

    /// Ends all servers and starts one on the same data, in good health again. `last` is the last handle that
    /// the test holds.
    async fn restart(&self, last: Arc<dyn RecordStore>) -> Arc<dyn RecordStore>;

    /// Lets time pass: by moving the clock that the store was given, or by waiting.
    async fn pass(&self, time: Duration);

    /// Has the retention of a record pass, if it has one: as if that time had passed, and no other record
    /// mattered.
    async fn expire(&self, key: &RecordKey);

    /// From now until the restart, no write is confirmed, and what becomes of it is unknown.
    async fn cut(&self);
}

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A key in the namespace `suite`.
pub fn key(name: &str) -> RecordKey {
    key_in("suite", name)
}

pub fn key_in(namespace: &str, name: &str) -> RecordKey {
    RecordKey { namespace: namespace_named(namespace), key: Key::new(name).unwrap() }
}

pub fn namespace_named(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

/// A new claim, with the shortest lock and retention, told from others by its owner.
pub fn claim(owner: &str) -> Record {
    Record {
        fencing_token: FencingToken::THIS_WRITE,
        attempt: 1,
        request_id: RequestId([7; 16]),
        owner: owner.to_owned(),
        fingerprint: None,
        checkpoint: None,
        began_at: Timestamp::from_micros(1_000_000),
        retention: RETENTION_MIN,
        state: in_progress(LOCK_TTL_MIN, OnLapse::TakeOver),
    }
}

pub fn in_progress(lock_ttl: Duration, on_lapse: OnLapse) -> State {
    State::InProgress { lock_ttl, on_lapse, armed_at: Timestamp::from_micros(1_000_000) }
}

/// A claim that is in doubt once it lapses.
pub fn held(owner: &str) -> Record {
    Record { state: in_progress(LOCK_TTL_MIN, OnLapse::Hold), ..claim(owner) }
}

pub fn in_doubt(owner: &str) -> Record {
    let cause = DoubtCause::Release("no idea".to_owned());
    Record { state: State::InDoubt { since: Timestamp::from_micros(2_000_000), cause }, ..claim(owner) }
}

/// A record completed with this response.
pub fn completed(owner: &str, response: impl Into<Bytes>) -> Record {
    let outcome = Outcome {
        result: OutcomeResult::Response(response.into()),
        content_type: "application/octet-stream".to_owned(),
        metadata: BTreeMap::from([("where".to_owned(), "here".to_owned())]),
    };
    let completed_at = Timestamp::from_micros(3_000_000);
    let state = State::Completed { outcome: Arc::new(outcome), completed_at, resolved_from: None };
    Record { state, ..claim(owner) }
}

/// Writes what must be written, and tells its revision.
pub async fn write(
    store: &Arc<dyn RecordStore>,
    key: &RecordKey,
    expected: Expected,
    next: Option<&Record>,
) -> Revision {
    match store.swap(key, expected, next).await.unwrap() {
        Swapped::Done(revision) => revision,
        Swapped::Conflict(current) => panic!("{key:?} is {current:?} instead of {expected:?}"),
    }
}

/// Creates a record that must be absent.
pub async fn create(store: &Arc<dyn RecordStore>, key: &RecordKey, record: &Record) -> Revision {
    write(store, key, Expected::Absent, Some(record)).await
}

/// What is in memory of a record, and stands.
pub async fn recall(store: &Arc<dyn RecordStore>, key: &RecordKey) -> Option<Loaded> {
    match store.recall(key)? {
        Recalled::Now(loaded) => Some(loaded),
        Recalled::Checked(check) => check.await.unwrap(),
    }
}

/// Loads a record that must be there.
pub async fn load(store: &Arc<dyn RecordStore>, key: &RecordKey) -> Loaded {
    let loaded = store.load(key).await.unwrap();
    loaded.unwrap_or_else(|| panic!("{key:?} is absent"))
}

/// What a load brings of `record`, written at `revision` and with its lock held.
pub fn as_written(record: &Record, revision: Revision) -> Loaded {
    Loaded { record: Arc::new(record.clone().written_at(revision.0)), revision, lock: Lock::Held }
}

/// Lets the lock of a record, armed for `lock_ttl` just now, lapse. A store may take its time to say so.
pub async fn lapse(
    fixture: &dyn Fixture,
    store: &Arc<dyn RecordStore>,
    key: &RecordKey,
    lock_ttl: Duration,
) -> Loaded {
    const STEP: Duration = Duration::from_millis(100);
    fixture.pass(lock_ttl).await;
    let mut waited = Duration::ZERO;
    loop {
        let loaded = load(store, key).await;
        if loaded.lock == Lock::Lapsed {
            return loaded;
        }
        assert!(waited < PATIENCE, "the lock of {key:?} did not lapse");
        fixture.pass(STEP).await;
        waited += STEP;
    }
}
