//! Group commit: what has queued while the last batch was on its way is the next batch. Nobody lingers for
//! company, so a lone job leaves at once. Only a full batch leaves while another is on its way: two half ones
//! would cost more than one.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures_util::FutureExt;

/// What takes jobs from a queue, a batch at a time.
#[async_trait]
pub(super) trait Batches: Send + Sync + 'static {
    /// What is asked for. It holds what its answer goes to.
    type Job: Send + 'static;

    /// Whether anybody still waits for the answer to a job.
    fn is_wanted(job: &Self::Job) -> bool;

    /// Takes the next job that somebody waits for. However many before it have been left, they hold up nobody.
    fn next_wanted(waiting: &mut VecDeque<Self::Job>) -> Option<Self::Job> {
        std::iter::from_fn(|| waiting.pop_front()).find(Self::is_wanted)
    }

    /// Takes the next batch from a queue that is not empty; those not taken stay for a later one.
    fn take(&self, waiting: &mut VecDeque<Self::Job>) -> Vec<Self::Job>;

    /// Does a batch, and answers every job of it.
    async fn run(&self, batch: Vec<Self::Job>);
}

/// Jobs on their way. Cheap to clone.
pub(super) struct Queue<B: Batches>(Arc<Inner<B>>);

struct Inner<B: Batches> {
    batches: B,
    /// How many batches may be on their way at once.
    in_flight_max: usize,
    /// How many jobs make a full batch.
    full: usize,
    state: Mutex<State<B::Job>>,
}

struct State<J> {
    waiting: VecDeque<J>,
    /// With so many waiting, those that nobody wants any more are dropped.
    clear_at: usize,
    in_flight: usize,
}

impl<B: Batches> Queue<B> {
    /// An empty queue. A batch is full with `full` jobs, and `in_flight_max` may be on their way at once.
    pub(super) fn new(batches: B, in_flight_max: usize, full: usize) -> Self {
        let state = Mutex::new(State { waiting: VecDeque::new(), clear_at: 0, in_flight: 0 });
        Self(Arc::new(Inner { batches, in_flight_max, full, state }))
    }

    /// Adds a job. Once it is in a batch it is done, whether or not anybody still waits for its answer.
    pub(super) fn push(&self, job: B::Job) {
        let mut state = self.0.state();
        // While a store is slow, callers who come and go are not to fill the memory.
        if state.waiting.len() >= state.clear_at {
            state.waiting.retain(B::is_wanted);
            state.clear_at = 2 * (state.waiting.len() + self.0.full);
        }
        state.waiting.push_back(job);
        if state.in_flight < self.0.in_flight_max && state.is_due(self.0.full) {
            state.in_flight += 1;
            // A runtime that is ending drops the task here and now, which takes the lock.
            drop(state);
            // A task of its own, so that no caller who goes away takes a batch with him.
            tokio::spawn(Runner { queue: Arc::clone(&self.0), in_flight: true }.run());
        }
    }
}

impl<J> State<J> {
    /// Whether another batch is to leave.
    fn is_due(&self, full: usize) -> bool {
        self.waiting.len() >= full || (self.in_flight == 0 && !self.waiting.is_empty())
    }
}

impl<B: Batches> Inner<B> {
    fn state(&self) -> MutexGuard<'_, State<B::Job>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does batches until the queue is empty.
struct Runner<B: Batches> {
    queue: Arc<Inner<B>>,
    /// Whether it still counts as in flight.
    in_flight: bool,
}

impl<B: Batches> Runner<B> {
    async fn run(mut self) {
        while let Some(batch) = self.next() {
            // The jobs of a batch that panicked are dropped. Those that wait for it are not to wait for ever.
            let _ = AssertUnwindSafe(self.queue.batches.run(batch)).catch_unwind().await;
        }
    }

    fn next(&mut self) -> Option<Vec<B::Job>> {
        let mut state = self.queue.state();
        if std::mem::take(&mut self.in_flight) {
            state.in_flight -= 1;
        }
        // Under the same lock as this look at the queue: whoever comes next starts another one.
        if !state.is_due(self.queue.full) {
            return None;
        }
        state.in_flight += 1;
        self.in_flight = true;
        Some(self.queue.batches.take(&mut state.waiting))
    }
}

impl<B: Batches> Drop for Runner<B> {
    /// However it ends: the place is free for the next.
    fn drop(&mut self) {
        if self.in_flight {
            self.queue.state().in_flight -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    /// Answers each job, but dies of a batch that begins with `None`.
    struct Fragile;

    #[async_trait]
    impl Batches for Fragile {
        type Job = Option<oneshot::Sender<()>>;

        fn is_wanted(job: &Self::Job) -> bool {
            job.as_ref().is_none_or(|answer| !answer.is_closed())
        }

        fn take(&self, waiting: &mut VecDeque<Self::Job>) -> Vec<Self::Job> {
            Self::next_wanted(waiting).into_iter().collect()
        }

        async fn run(&self, batch: Vec<Self::Job>) {
            // So that others come meanwhile.
            tokio::task::yield_now().await;
            for job in batch {
                let answer = job.expect("a job that can be done");
                let _ = answer.send(());
            }
        }
    }

    #[tokio::test]
    async fn a_batch_that_dies_leaves_nobody_behind() {
        let queue = Queue::new(Fragile, 1, 100);
        let (answer, answered) = oneshot::channel();
        queue.push(None);
        queue.push(Some(answer));
        tokio::time::timeout(Duration::from_secs(10), answered).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn those_who_left_do_not_fill_a_queue_that_stands_still() {
        let queue = Queue::new(Fragile, 0, 100);
        let mut wanted = Vec::new();
        for number in 0..10_000 {
            let (answer, answered) = oneshot::channel();
            queue.push(Some(answer));
            if number % 100 == 0 {
                wanted.push(answered);
            }
        }
        let state = queue.0.state();
        assert!(state.waiting.len() <= 2 * (wanted.len() + 100), "{} wait", state.waiting.len());
        assert_eq!(state.waiting.iter().filter(|job| Fragile::is_wanted(job)).count(), wanted.len());
    }

    #[test]
    fn those_who_left_hold_up_nobody() {
        let (wanted, answered) = oneshot::channel();
        let mut waiting: VecDeque<_> = (0..1_000).map(|_| Some(oneshot::channel().0)).collect();
        waiting.push_back(Some(wanted));
        assert_eq!(Fragile.take(&mut waiting).len(), 1, "the one that is wanted is in the very next batch");
        assert!(waiting.is_empty());
        drop(answered);
    }

    #[test]
    fn who_comes_when_the_runtime_has_ended_does_not_hang() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let handle = runtime.handle().clone();
        drop(runtime);
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _inside = handle.enter();
            Queue::new(Fragile, 1, 100).push(None);
            let _ = done.send(());
        });
        assert_eq!(is_done.recv_timeout(Duration::from_secs(10)), Ok(()));
    }
}
