//! The swaps on their way to the writer.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::record::{Record, RecordKey};
use crate::store::{Expected, StoreError, Swapped};
use crate::telemetry::span;
use crate::telemetry::trace::TraceParent;

/// The most swaps under way; what comes on top waits its turn.
const IN_FLIGHT_MAX: usize = 4_096;

/// A swap that somebody asked for, and waits for unless he left.
pub(super) struct Job {
    pub key: RecordKey,
    pub expected: Expected,
    pub next: Option<Record>,
    /// Where it stands in the trace of the call that it is for.
    pub place: Option<TraceParent>,
    answer: oneshot::Sender<Result<Swapped, StoreError>>,
    _place: OwnedSemaphorePermit,
}

impl Job {
    pub(super) fn answer(self, result: Result<Swapped, StoreError>) {
        // Whoever asked may have left: the swap stands all the same.
        let _ = self.answer.send(result);
    }
}

pub(super) struct Queue {
    places: Arc<Semaphore>,
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Why no job is taken any more.
    closed: Option<String>,
}

/// What the writer found in the queue.
pub(super) struct Taken {
    pub jobs: VecDeque<Job>,
    pub closed: bool,
}

impl Queue {
    pub(super) fn new() -> Self {
        let places = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        Self { places, state: Mutex::default(), arrived: Condvar::new() }
    }

    /// Hands a swap to the writer and waits for what came of it. Dropped before it is handed over, it never
    /// happens; dropped later, it happens all the same.
    pub(super) async fn swap(
        &self,
        key: &RecordKey,
        expected: Expected,
        next: Option<&Record>,
    ) -> Result<Swapped, StoreError> {
        let place = Arc::clone(&self.places)
            .acquire_owned()
            .await
            .map_err(|_| StoreError::NotApplied("the store is closed".to_owned()))?;
        let (answer, answered) = oneshot::channel();
        let (key, next, in_trace) = (key.clone(), next.cloned(), span::place());
        self.push(Job { key, expected, next, place: in_trace, answer, _place: place })?;
        answered.await.unwrap_or_else(|_| {
            Err(StoreError::OutcomeUnknown("the writer of the store died: see its log".to_owned()))
        })
    }

    fn push(&self, job: Job) -> Result<(), StoreError> {
        let mut state = self.lock();
        if let Some(why) = &state.closed {
            return Err(StoreError::NotApplied(why.clone()));
        }
        state.jobs.push_back(job);
        // The writer waits only where there is none, and each notice is a system call even if nobody waits.
        if state.jobs.len() == 1 {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Takes all jobs, waiting for the first for as long as `patience`.
    pub(super) fn take(&self, patience: Duration) -> Taken {
        let quiet = |state: &mut State| state.jobs.is_empty() && state.closed.is_none();
        let (mut state, _) = self
            .arrived
            .wait_timeout_while(self.lock(), patience, quiet)
            .unwrap_or_else(PoisonError::into_inner);
        Taken { jobs: std::mem::take(&mut state.jobs), closed: state.closed.is_some() }
    }

    /// Takes no more jobs, for this reason; those in the queue stay there.
    pub(super) fn close(&self, why: &str) {
        self.lock().closed.get_or_insert_with(|| why.to_owned());
        self.arrived.notify_one();
    }

    /// Whether no job is taken any more.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// Why no job is taken any more.
    pub(super) fn why_closed(&self) -> String {
        self.lock().closed.clone().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
