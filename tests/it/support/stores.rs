//! Stores for tests: decorators of a real one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use onced::clock::Clock;
use onced::record::{Key, Namespace, Record, RecordKey};
use onced::store::embedded::EmbeddedStore;
use onced::store::{Expected, Loaded, Page, RecordStore, StoreError, Swapped, Watch};
use tokio::sync::watch;

/// A store whose writes can be held up, or made to fail, and whose trips are counted.
pub struct Controlled {
    inner: Arc<dyn RecordStore>,
    held: watch::Sender<bool>,
    claims_held: watch::Sender<bool>,
    away: AtomicBool,
    trips: AtomicUsize,
}

impl Controlled {
    /// A store that does as `inner` until told otherwise.
    pub fn new(inner: Arc<dyn RecordStore>) -> Arc<Self> {
        let (held, claims_held) = (watch::Sender::new(false), watch::Sender::new(false));
        Arc::new(Self { inner, held, claims_held, away: AtomicBool::new(false), trips: AtomicUsize::new(0) })
    }

    /// A store in memory.
    pub fn in_memory() -> Arc<Self> {
        Self::new(Arc::new(EmbeddedStore::in_memory(Clock::system()).unwrap()))
    }

    /// Holds writes up from now on, or lets them go on.
    pub fn hold_writes(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Holds up writes that make a claim from now on, or lets them go on.
    pub fn hold_claims(&self, held: bool) {
        self.claims_held.send_replace(held);
    }

    /// Makes every trip fail from now on, or not.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    /// How many trips callers have caused.
    pub fn trips(&self) -> usize {
        self.trips.load(Ordering::SeqCst)
    }

    /// Waits until callers have caused so many trips.
    pub async fn reached(&self, trips: usize) {
        let reached = async {
            while self.trips() < trips {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reached).await.expect("nobody reaches the store");
    }

    fn trip(&self, namespace: &Namespace) -> Result<(), StoreError> {
        // The server's own sign of life is nobody's call.
        if namespace.as_str() != "onced.health" {
            self.trips.fetch_add(1, Ordering::SeqCst);
        }
        if self.away.load(Ordering::SeqCst) {
            return Err(StoreError::NotApplied("told to be away".to_owned()));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl RecordStore for Controlled {
    async fn load(&self, key: &RecordKey) -> Result<Option<Loaded>, StoreError> {
        self.trip(&key.namespace)?;
        self.inner.load(key).await
    }

    async fn swap(
        &self,
        key: &RecordKey,
        expected: Expected,
        next: Option<&Record>,
    ) -> Result<Swapped, StoreError> {
        self.trip(&key.namespace)?;
        // Their senders live as long as this store.
        let _ = self.held.subscribe().wait_for(|held| !held).await;
        if next.is_some_and(Record::makes_claim) {
            let _ = self.claims_held.subscribe().wait_for(|held| !held).await;
        }
        self.inner.swap(key, expected, next).await
    }

    async fn watch(&self, key: &RecordKey) -> Result<Watch, StoreError> {
        self.trip(&key.namespace)?;
        self.inner.watch(key).await
    }

    async fn scan(
        &self,
        namespace: &Namespace,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        self.trip(namespace)?;
        self.inner.scan(namespace, after, limit).await
    }
}
