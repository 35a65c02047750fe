//! The coordinator: two servers on one store, with faults between each and the store.

mod rules;
mod waiting;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use onced::coordinator::{Applied, Begun, Claimed, Coordinator, Error, Patience, Settings};
use onced::record::{
    Begin, Command, Disposition, FencingToken, Key, Namespace, OnLapse, Outcome, OutcomeResult, RecordKey,
    Refusal, RequestId, View,
};
use onced::store::embedded::EmbeddedStore;
use onced::store::{Loaded, RecordStore};

use crate::support::clock::ManualClock;
use crate::support::faulty::FaultyStore;

/// Two servers on one store.
struct World {
    time: ManualClock,
    store: Arc<dyn RecordStore>,
    one: Server,
    two: Server,
}

/// A server, and the store as it sees it.
#[derive(Clone)]
struct Server {
    coordinator: Coordinator,
    store: Arc<FaultyStore>,
    time: ManualClock,
}

impl World {
    fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let time = ManualClock::new();
        let store: Arc<dyn RecordStore> = Arc::new(EmbeddedStore::in_memory(time.clock()).expect("opens"));
        let server = || {
            let faulty = FaultyStore::new(Arc::clone(&store));
            let coordinator =
                Coordinator::new(Arc::<FaultyStore>::clone(&faulty), time.clock(), settings.clone());
            Server { coordinator, store: faulty, time: time.clone() }
        };
        let (one, two) = (server(), server());
        Self { time, store, one, two }
    }

    async fn stored(&self) -> Loaded {
        self.store.load(&key()).await.expect("loads").expect("a record")
    }
}

impl Server {
    fn patience(&self, wait: Duration) -> Patience {
        let arrived = self.time.clock().now();
        Patience { arrived, until: arrived + wait, busy: None }
    }

    async fn begin(&self, request: Begin, wait: Duration) -> Result<Begun, Error> {
        self.coordinator.begin(key(), request, self.patience(wait)).await
    }

    /// Begins and receives the claim.
    async fn claim(&self, request: Begin) -> Claimed {
        let mut claimed = self.won(request).await;
        claimed.delivered();
        claimed
    }

    /// Begins and wins the claim, which the caller has not received yet.
    async fn won(&self, request: Begin) -> Claimed {
        match self.begin(request, Duration::ZERO).await {
            Ok(Begun::Claimed(claimed)) => claimed,
            other => panic!("not a claim: {other:?}"),
        }
    }

    async fn lookup(&self, wait: Duration) -> Result<View, Error> {
        self.coordinator.lookup(key(), self.patience(wait)).await
    }

    async fn complete(&self, token: FencingToken, response: &'static [u8]) -> Result<Applied, Error> {
        let outcome = outcome(response);
        self.coordinator.apply(key(), Command::Complete { token, outcome, retention: None }, None).await
    }

    async fn renew(&self, token: FencingToken) -> Result<Applied, Error> {
        self.coordinator.apply(key(), Command::Renew { token, checkpoint: None }, None).await
    }

    async fn release(&self, token: FencingToken) -> Result<Applied, Error> {
        let (disposition, reason) = (Disposition::Retry, String::new());
        self.coordinator.apply(key(), Command::Release { token, disposition, reason }, None).await
    }
}

fn key() -> RecordKey {
    let namespace = Namespace::new("tests").expect("a namespace");
    RecordKey { namespace, key: Key::new("order-1").expect("a key") }
}

const LOCK_TTL: Duration = Duration::from_secs(10);
const RETENTION: Duration = Duration::from_secs(60);

fn request(id: u8) -> Begin {
    Begin {
        request_id: RequestId([id; 16]),
        owner: "tester".to_owned(),
        fingerprint: None,
        lock_ttl: LOCK_TTL,
        retention: RETENTION,
        on_lapse: OnLapse::TakeOver,
    }
}

fn outcome(response: &'static [u8]) -> Arc<Outcome> {
    Arc::new(Outcome {
        result: OutcomeResult::Response(response.into()),
        content_type: String::new(),
        metadata: BTreeMap::new(),
    })
}

/// The response of a completed view.
fn response(view: &View) -> Vec<u8> {
    match &view.record().state {
        onced::record::State::Completed { outcome, .. } => match &outcome.result {
            OutcomeResult::Response(bytes) => bytes.to_vec(),
            OutcomeResult::Error { .. } => panic!("an error outcome"),
        },
        _ => panic!("not completed: {view:?}"),
    }
}

fn replay(begun: Result<Begun, Error>) -> Vec<u8> {
    match begun {
        Ok(Begun::Standing(view)) => response(&view),
        other => panic!("not a replay: {other:?}"),
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> Refusal {
    match result {
        Err(Error::Refused { refusal, .. }) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

/// Lets the tasks of the servers run until `done` says so; fails after a generous time.
async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    for _ in 0..2_000 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never happened: {what}");
}
