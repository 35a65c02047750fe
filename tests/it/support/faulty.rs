//! A store in front of another that delays, loses and holds back what passes through it, and counts it. Each
//! server of a test has its own in front of the one they share.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use onced::record::{Key, Namespace, Record, RecordKey};
use onced::store::{Expected, Loaded, Page, Recalled, RecordStore, StoreError, Swapped, Watch};
use tokio::sync::Semaphore;

/// What befalls one operation.
#[derive(Clone)]
pub enum Fault {
    /// Nothing.
    None,
    /// It fails before it is applied.
    FailBefore,
    /// It panics before it is applied.
    Panic,
    /// It is applied, its answer is lost.
    LoseAnswer,
    /// It is applied when the gate opens, its answer then comes.
    HoldBefore(Gate),
    /// It is applied at once; its answer comes when the gate opens.
    HoldAnswer(Gate),
    /// Its answer is lost at once, and it is applied when the gate opens: a write that lands late.
    LandLate(Gate),
}

/// Opens once. Tells a test when an operation has come to it.
#[derive(Clone)]
pub struct Gate {
    reached: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Gate {
    /// A shut gate.
    pub fn new() -> Self {
        Self { reached: Arc::new(Semaphore::new(0)), open: Arc::new(Semaphore::new(0)) }
    }

    /// Waits until an operation has come to the gate.
    pub async fn reached(&self) {
        self.reached.acquire().await.expect("never closed").forget();
    }

    /// Lets it pass.
    pub fn open(&self) {
        self.open.add_permits(1);
    }

    /// An operation comes to it.
    pub(super) async fn pass(&self) {
        self.reached.add_permits(1);
        self.open.acquire().await.expect("never closed").forget();
    }
}

/// How often each fault was met, by its name.
pub type Counts = BTreeMap<&'static str, u64>;

/// Those that a run has to meet. Of the writes that came late few may have landed.
pub const COUNTED: [&str; 4] =
    ["loads that failed", "writes that came late", "writes that failed", "writes whose answer was lost"];

/// The store of one server, faults included.
pub struct FaultyStore {
    inner: Arc<dyn RecordStore>,
    swap_faults: Mutex<VecDeque<Fault>>,
    load_faults: Mutex<VecDeque<Fault>>,
    deaf: AtomicBool,
    recalls: AtomicBool,
    loads: AtomicU64,
    swaps: AtomicU64,
    met: Arc<Mutex<Counts>>,
    /// Signalled when a write that landed late has landed (or lost).
    landed: Arc<Semaphore>,
}

impl FaultyStore {
    /// In front of `inner`, without faults yet.
    pub fn new(inner: Arc<dyn RecordStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            swap_faults: Mutex::default(),
            load_faults: Mutex::default(),
            deaf: AtomicBool::new(false),
            recalls: AtomicBool::new(false),
            loads: AtomicU64::new(0),
            swaps: AtomicU64::new(0),
            met: Arc::default(),
            landed: Arc::new(Semaphore::new(0)),
        })
    }

    /// What befalls the next swaps, in order.
    pub fn plan_swaps(&self, faults: impl IntoIterator<Item = Fault>) {
        self.swap_faults.lock().expect("not poisoned").extend(faults);
    }

    /// What befalls the next loads, in order.
    pub fn plan_loads(&self, faults: impl IntoIterator<Item = Fault>) {
        self.load_faults.lock().expect("not poisoned").extend(faults);
    }

    /// Nothing befalls anybody from here on.
    pub fn forget_plans(&self) {
        self.swap_faults.lock().expect("not poisoned").clear();
        self.load_faults.lock().expect("not poisoned").clear();
    }

    /// From here on watches tell nothing.
    pub fn drop_hints(&self) {
        self.deaf.store(true, Ordering::SeqCst);
    }

    /// From here on it recalls what `inner` does: that meets no fault here.
    pub fn let_recall(&self) {
        self.recalls.store(true, Ordering::SeqCst);
    }

    /// How many loads and swaps have been sent.
    pub fn trips(&self) -> u64 {
        self.loads.load(Ordering::SeqCst) + self.swaps.load(Ordering::SeqCst)
    }

    /// How many swaps have been sent.
    pub fn swaps(&self) -> u64 {
        self.swaps.load(Ordering::SeqCst)
    }

    /// What befell operations until now. An answer that was lost is one of a write that was done.
    pub fn met(&self) -> Counts {
        self.met.lock().expect("not poisoned").clone()
    }

    /// Waits until a write that was to land late has met the store.
    pub async fn landed(&self) {
        self.landed.acquire().await.expect("never closed").forget();
    }

    fn next(faults: &Mutex<VecDeque<Fault>>) -> Fault {
        faults.lock().expect("not poisoned").pop_front().unwrap_or(Fault::None)
    }
}

fn count(met: &Mutex<Counts>, what: &'static str) {
    *met.lock().expect("not poisoned").entry(what).or_default() += 1;
}

fn lost() -> StoreError {
    StoreError::OutcomeUnknown("the answer was lost (planned)".to_owned())
}

fn failed() -> StoreError {
    StoreError::NotApplied("it was not sent (planned)".to_owned())
}

#[async_trait]
impl RecordStore for FaultyStore {
    async fn load(&self, key: &RecordKey) -> Result<Option<Loaded>, StoreError> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        match Self::next(&self.load_faults) {
            Fault::None => self.inner.load(key).await,
            Fault::Panic => panic!("planned"),
            Fault::FailBefore | Fault::LoseAnswer | Fault::LandLate(_) => {
                count(&self.met, "loads that failed");
                Err(failed())
            }
            Fault::HoldBefore(gate) => {
                gate.pass().await;
                self.inner.load(key).await
            }
            Fault::HoldAnswer(gate) => {
                let answer = self.inner.load(key).await;
                gate.pass().await;
                answer
            }
        }
    }

    fn recall<'a>(&'a self, key: &'a RecordKey) -> Option<Recalled<'a>> {
        self.recalls.load(Ordering::SeqCst).then(|| self.inner.recall(key)).flatten()
    }

    async fn swap(
        &self,
        key: &RecordKey,
        expected: Expected,
        next: Option<&Record>,
    ) -> Result<Swapped, StoreError> {
        self.swaps.fetch_add(1, Ordering::SeqCst);
        match Self::next(&self.swap_faults) {
            Fault::None => self.inner.swap(key, expected, next).await,
            Fault::Panic => panic!("planned"),
            Fault::FailBefore => {
                count(&self.met, "writes that failed");
                Err(failed())
            }
            Fault::LoseAnswer => {
                if let Swapped::Done(_) = self.inner.swap(key, expected, next).await? {
                    count(&self.met, "writes whose answer was lost");
                }
                Err(lost())
            }
            Fault::HoldBefore(gate) => {
                gate.pass().await;
                self.inner.swap(key, expected, next).await
            }
            Fault::HoldAnswer(gate) => {
                let answer = self.inner.swap(key, expected, next).await;
                gate.pass().await;
                answer
            }
            Fault::LandLate(gate) => {
                let (inner, landed) = (Arc::clone(&self.inner), Arc::clone(&self.landed));
                let met = Arc::clone(&self.met);
                let (key, next) = (key.clone(), next.cloned());
                tokio::spawn(async move {
                    gate.pass().await;
                    count(&met, "writes that came late");
                    if let Ok(Swapped::Done(_)) = inner.swap(&key, expected, next.as_ref()).await {
                        count(&met, "writes that landed late");
                    }
                    landed.add_permits(1);
                });
                Err(lost())
            }
        }
    }

    async fn watch(&self, key: &RecordKey) -> Result<Watch, StoreError> {
        if !self.deaf.load(Ordering::SeqCst) {
            return self.inner.watch(key).await;
        }
        // A watch of a key that nobody touches.
        let key = Key::new("a key that nobody touches").expect("a key");
        let namespace = Namespace::new("nobody").expect("a namespace");
        self.inner.watch(&RecordKey { namespace, key }).await
    }

    async fn scan(
        &self,
        namespace: &Namespace,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        self.inner.scan(namespace, after, limit).await
    }
}
