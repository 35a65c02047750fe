//! Load, decide, swap; settle unknown outcomes; wait. One [`Coordinator`] serves all keys of a server.
//!
//! Nothing is recognised, everything is decided anew: after an unknown outcome the record is loaded and the
//! state machine asked again. No decision rests on a request id or token that merely looks like our own.

mod apply;
mod claimed;
#[doc(hidden)]
pub mod measuring;
mod meters;
mod room;
#[cfg(test)]
mod room_tests;
mod rooms;
mod waiter;

use std::any::Any;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, Moment, wall_time};
use crate::record::{Begin, Command, Key, Lock, Namespace, Record, RecordKey, Refusal, View};
use crate::store::{Expected, Loaded, Recalled, RecordStore, Revision, StoreError, Swapped, Watch};
use crate::telemetry::span::{self, Span};
use crate::telemetry::trace::TraceParent;
use meters::{Checked, Meters, Outcome, Trip};
use rooms::{LatestView, Rooms, Ticket};
use waiter::Wish;

pub use crate::config::Coordination as Settings;
pub use claimed::Claimed;

/// How many claims that this server wrote are remembered as a first guess for their Complete.
const REMEMBERED_CLAIMS: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();

/// The largest checkpoint of a remembered claim, in bytes: bounds the memory of the guesses.
const REMEMBERED_CHECKPOINT_MAX_BYTES: usize = 1_024;

/// What a call holds while it is at work, and what is let go when the work ends: not when the caller hangs up,
/// for the work goes on without it.
pub type Busy = Option<Box<dyn Any + Send>>;

/// How long a caller waits, and since when.
pub struct Patience {
    /// When the call arrived at the server.
    pub arrived: Moment,
    /// Until when to wait for somebody else's outcome; at or before `arrived`: do not wait.
    pub until: Moment,
    /// What the call holds while it works, and hands back while it only waits: dropped as soon as it waits.
    pub busy: Busy,
}

/// What a Begin came to.
#[derive(Debug)]
pub enum Begun {
    /// The caller has the claim.
    Claimed(Claimed),
    /// The key is completed, in progress or in doubt.
    Standing(View),
}

/// What a command of a holder or operator came to.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The record as it stands; `None` once deleted.
    pub view: Option<View>,
    /// Whether it stood so already, and nothing was written.
    pub repeated: bool,
}

/// A page of a namespace.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Keys and what stands there.
    pub records: Vec<(Key, View)>,
    /// The `after` of the next page; `None` on the last one.
    pub next: Option<Key>,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The state machine refused the command.
    Refused {
        /// Why.
        refusal: Refusal,
        /// What is there now.
        current: Option<Box<View>>,
    },
    /// The store failed.
    Store(StoreError),
    /// The server is shutting down.
    Draining,
    /// A fault of the server: the task that had the call has died.
    Fault,
}

impl Error {
    fn refused(refusal: Refusal, current: Option<View>) -> Self {
        Error::Refused { refusal, current: current.map(Box::new) }
    }
}

/// Serves Begin, Lookup, Watch and all that changes a record. Cheap to clone.
#[derive(Clone)]
pub struct Coordinator {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn RecordStore>,
    clock: Clock,
    settings: Settings,
    rooms: Rooms,
    /// Every write runs in one of these, detached from its caller; drain waits for them.
    tasks: TaskTracker,
    runtime: Handle,
    /// Claims this server wrote: first guesses of records, never the ground of an answer.
    claims: Mutex<LruCache<RecordKey, Loaded>>,
    meters: Meters,
}

/// The states of a watched key.
pub struct Views {
    views: watch::Receiver<LatestView>,
    _ticket: Ticket,
    /// Whether the last word was told.
    ended: bool,
}

impl Views {
    /// The state now, then the latest after each change; `None` after `Completed`, or after an error. An absent
    /// key is the error `Refused(NotFound)`.
    pub async fn next(&mut self) -> Option<Result<View, Error>> {
        if self.ended {
            return None;
        }
        let view = match self.views.changed().await {
            Ok(()) => self.views.borrow_and_update().clone(),
            // The room died without a last word.
            Err(_) => Some(Err(Error::Fault)),
        };
        self.ended = !matches!(&view, Some(Ok(view)) if !matches!(view, View::Completed { .. }));
        view
    }
}

impl Coordinator {
    /// A coordinator on a store. Call it within a tokio runtime, on which its tasks then run.
    pub fn new(store: Arc<dyn RecordStore>, clock: Clock, settings: Settings) -> Self {
        let inner = Inner {
            store,
            clock,
            settings,
            rooms: Rooms::default(),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
            claims: Mutex::new(LruCache::new(REMEMBERED_CLAIMS)),
            meters: Meters::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The clock that its callers' times are on.
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// Begins a key: the claim, or what stands there once `patience` ran out.
    ///
    /// # Errors
    /// `Refused` for a fingerprint mismatch or a spent request id, `Store`, `Draining`.
    pub async fn begin(&self, key: RecordKey, begin: Begin, patience: Patience) -> Result<Begun, Error> {
        rooms::ask(&self.inner, &key, Wish::begin(begin), patience).await
    }

    /// Reads a key; waits, with patience, for it to complete.
    ///
    /// # Errors
    /// `Refused(NotFound)` if it is absent, `Store`, `Draining`.
    pub async fn lookup(&self, key: RecordKey, patience: Patience) -> Result<View, Error> {
        match rooms::ask(&self.inner, &key, Wish::Lookup, patience).await? {
            Begun::Standing(view) => Ok(view),
            Begun::Claimed(_) => Err(Error::Fault),
        }
    }

    /// Watches a key.
    ///
    /// # Errors
    /// `Draining`. All else comes through [`Views`].
    pub fn watch(&self, key: &RecordKey) -> Result<Views, Error> {
        let (ticket, views) = rooms::subscribe(&self.inner, key)?;
        Ok(Views { views, _ticket: ticket, ended: false })
    }

    /// Applies a command of a holder or operator (anything but Begin), detached from the caller: it goes on to
    /// its end if this future is dropped, and so does `busy`.
    ///
    /// # Errors
    /// `Refused`, `Store`.
    pub async fn apply(&self, key: RecordKey, command: Command, busy: Busy) -> Result<Applied, Error> {
        let inner = Arc::clone(&self.inner);
        let work = async move {
            let _busy = busy;
            apply::apply(inner, key, command).await
        };
        let work = span::at(span::place(), work);
        match self.inner.tasks.spawn_on(work, &self.inner.runtime).await {
            Ok(applied) => applied,
            Err(_) => Err(Error::Fault),
        }
    }

    /// Lists records from the first key after `after`.
    ///
    /// # Errors
    /// `Store`.
    pub async fn list(
        &self,
        namespace: &Namespace,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Listing, Error> {
        let scan = self.inner.store.scan(namespace, after, limit);
        let page = self
            .inner
            .trip(Trip::Scan, span::place(), scan, StoreError::NotApplied)
            .await
            .map_err(Error::Store)?;
        let now = wall_time();
        let view = |(key, loaded): (Key, Loaded)| (key, View::of(&loaded.record, loaded.lock, now));
        Ok(Listing { records: page.records.into_iter().map(view).collect(), next: page.next })
    }

    /// Asks the store for a sign of life.
    ///
    /// # Errors
    /// As the store's load.
    pub async fn probe(&self) -> Result<(), StoreError> {
        // Namespaces of callers may have this name, too: it is only ever read.
        let (Some(namespace), Some(key)) = (Namespace::new("onced.health"), Key::new("probe")) else {
            return Ok(());
        };
        self.inner.load(&RecordKey { namespace, key }, None).await.map(drop)
    }

    /// Tells the metrics how much there is of what it keeps.
    pub fn count(&self) {
        let Inner { meters, rooms, .. } = &*self.inner;
        meters.claims.set(self.inner.claims().len() as f64);
        meters.rooms.set(rooms.open() as f64);
    }

    /// Answers all waiters with `Draining`, lets no new ones in, and waits for the writes under way. Commands of
    /// holders are still served: what was done must not be lost.
    pub async fn drain(&self) {
        self.inner.rooms.drain();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    /// Reads a record, for calls that stand at `places` of their traces; so for the others.
    async fn load(
        &self,
        key: &RecordKey,
        places: impl IntoIterator<Item = TraceParent>,
    ) -> Result<Option<Loaded>, StoreError> {
        let load = self.store.load(key);
        self.trip(Trip::Load, places, load, StoreError::NotApplied).await.map_err(|error| error.of(key))
    }

    /// What the store has in memory of a record, if that stands.
    async fn recall(&self, key: &RecordKey) -> Result<Option<Loaded>, StoreError> {
        match self.store.recall(key) {
            None => Ok(None),
            Some(Recalled::Now(loaded)) => Ok(Some(loaded)),
            Some(Recalled::Checked(check)) => {
                let check = async { check.await.map(Checked) };
                let checked = self.trip(Trip::Check, span::place(), check, StoreError::NotApplied).await;
                checked.map(|Checked(standing)| standing).map_err(|error| error.of(key))
            }
        }
    }

    async fn swap(
        &self,
        key: &RecordKey,
        expected: Expected,
        next: Option<&Record>,
        places: impl IntoIterator<Item = TraceParent>,
    ) -> Result<Swapped, StoreError> {
        let swap = self.store.swap(key, expected, next);
        self.trip(Trip::Swap, places, swap, StoreError::OutcomeUnknown).await.map_err(|error| error.of(key))
    }

    async fn watch(&self, key: &RecordKey) -> Option<Watch> {
        self.trip(Trip::Watch, None, self.store.watch(key), StoreError::NotApplied).await.ok()
    }

    /// Waits for a trip to the store, but not without end, measures it, and makes a span of it. `late` is the error
    /// of one that takes too long.
    async fn trip<T>(
        &self,
        kind: Trip,
        places: impl IntoIterator<Item = TraceParent>,
        trip: impl Future<Output = Result<T, StoreError>>,
        late: impl FnOnce(String) -> StoreError,
    ) -> Result<T, StoreError>
    where
        for<'a> Outcome: From<&'a T>,
    {
        let mut span = Span::within(kind.span(), places);
        let began = self.clock.now();
        let came = tokio::time::timeout(self.settings.store_timeout, span::at(span.place(), trip)).await;
        let outcome = Outcome::of(&came);
        self.meters.trip(kind, outcome, self.clock.now().since(began));
        outcome.tell(&mut span);
        came.unwrap_or_else(|_| Err(late("no answer in time".to_owned())))
    }

    /// What this server's own write left: for its waiters, and as a guess for the next command of the holder.
    fn learned(&self, key: &RecordKey, written: Option<(Record, Revision)>) -> Option<View> {
        let loaded = written.map(|(record, revision)| Loaded {
            record: Arc::new(record.written_at(revision.0)),
            revision,
            lock: Lock::Held,
        });
        match &loaded {
            Some(loaded) if loaded.record.lock_ttl().is_some() => self.remember(key, loaded),
            Some(_) | None => self.forget(key),
        }
        let view = loaded.as_ref().map(|loaded| View::of(&loaded.record, loaded.lock, wall_time()));
        self.rooms.learned(key, loaded);
        view
    }

    fn remember(&self, key: &RecordKey, claim: &Loaded) {
        let checkpoint = claim.record.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.data.len());
        if checkpoint <= REMEMBERED_CHECKPOINT_MAX_BYTES {
            self.claims().put(key.clone(), claim.clone());
        } else {
            self.forget(key);
        }
    }

    fn forget(&self, key: &RecordKey) {
        self.claims().pop(key);
    }

    fn guess(&self, key: &RecordKey) -> Option<Loaded> {
        self.claims().get(key).cloned()
    }

    fn claims(&self) -> std::sync::MutexGuard<'_, LruCache<RecordKey, Loaded>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
