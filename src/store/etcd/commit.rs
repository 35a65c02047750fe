//! Group commit of writes: many callers, few transactions, and no write that harms its neighbours.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use etcd_client::KeyValue;
use metrics::{Counter, Histogram, counter, histogram};
use tokio::sync::{Semaphore, oneshot};

use super::WRITE_WAIT_MAX;
use super::call_error::CallError;
use super::client::{EtcdClient, TXN_MAX_OPS};
use super::keyspace::Keyspace;
use super::queue::{Batches, Queue};
use super::write::{Home, Write, Written, alone, flat, nested, outcome_alone, outcomes_nested, revision_of};
use crate::clock::{Clock, Moment};
use crate::telemetry::metrics::{ETCD_WRITE_BATCH, ETCD_WRITE_TRANSACTIONS};
use crate::telemetry::span::{self, Span};
use crate::telemetry::trace::TraceParent;

/// The most writes in one transaction. A nested one compares two keys, so etcd allows 126; fewer leave room for
/// the compares of lock leases in a flat one.
const WRITES_MAX: usize = 100;
/// The most bytes in one transaction: etcd takes 1.5 MiB with all that surrounds them.
const BYTES_MAX: usize = 1 << 20;
/// A write of more bytes goes alone, beside the others: they would wait for it.
const LARGE_BYTES: usize = 64 << 10;
/// How many bytes of those are on their way at once.
const LARGE_BYTES_IN_FLIGHT_MAX: u32 = 4 << 20;
/// An answer that brings more than this is large: the next transaction has fewer writes that could lose.
const ANSWER_LARGE_BYTES: usize = 4 << 20;
/// How many transactions are on their way at once: the second one leaves only when it is full.
const IN_FLIGHT_MAX: usize = 2;

/// What came of a write, or why that is not known, or why nothing was written.
type Outcome = Result<Written, CallError>;

/// The writes of a store, on their way.
pub(super) struct Commits {
    queue: Queue<Transactions>,
    transactions: Transactions,
    /// A place for each byte of a large write.
    large: Semaphore,
}

/// Carries writes to etcd. Cheap to clone.
#[derive(Clone)]
struct Transactions {
    client: EtcdClient,
    keyspace: Keyspace,
    home: Home,
    clock: Clock,
    pace: Arc<Pace>,
    meters: Meters,
}

/// What is counted of transactions.
#[derive(Clone)]
struct Meters {
    alone: Counter,
    flat: Counter,
    nested: Counter,
    writes: Histogram,
}

impl Default for Meters {
    fn default() -> Self {
        let form = |form: &'static str| counter!(ETCD_WRITE_TRANSACTIONS, "form" => form);
        let writes = histogram!(ETCD_WRITE_BATCH);
        Self { alone: form("alone"), flat: form("flat"), nested: form("nested"), writes }
    }
}

impl Meters {
    /// Counts a transaction of this form, and the writes in it.
    fn count(&self, form: &Counter, writes: usize) {
        form.increment(1);
        self.writes.record(u32::try_from(writes).unwrap_or(u32::MAX));
    }
}

/// How the next transaction is to be made, by what came of the last.
struct Pace {
    /// Whether a write lost: then flat is a trip for nothing.
    losing: AtomicBool,
    /// How many writes it has at most.
    writes_max: AtomicUsize,
}

/// A write that somebody waits for.
struct Job {
    write: Write,
    /// When its caller asked for it.
    called: Moment,
    /// Where it stands in the trace of the call that it is for.
    place: Option<TraceParent>,
    answer: oneshot::Sender<Outcome>,
}

impl Job {
    fn answer(self, outcome: Outcome) {
        // Whoever asked may have left: what is written is written.
        let _ = self.answer.send(outcome);
    }
}

impl Commits {
    /// No writes yet.
    pub(super) fn new(client: EtcdClient, keyspace: Keyspace, home: Home, clock: Clock) -> Self {
        let pace = Pace { losing: AtomicBool::new(false), writes_max: AtomicUsize::new(WRITES_MAX) };
        let (pace, meters) = (Arc::new(pace), Meters::default());
        let transactions = Transactions { client, keyspace, home, clock, pace, meters };
        Self {
            queue: Queue::new(transactions.clone(), IN_FLIGHT_MAX, WRITES_MAX),
            transactions,
            large: Semaphore::new(LARGE_BYTES_IN_FLIGHT_MAX as usize),
        }
    }

    /// Writes, with whatever else there is to write. `called` is when the caller asked for it.
    ///
    /// # Errors
    /// As of a transaction. `Refused` also if it could not be sent in [`WRITE_WAIT_MAX`].
    pub(super) async fn write(&self, write: Write, called: Moment) -> Outcome {
        if write.size() > LARGE_BYTES {
            return Box::pin(self.write_large(write, called)).await;
        }
        let (answer, answered) = oneshot::channel();
        self.queue.push(Job { write, called, place: span::place(), answer });
        answered.await.unwrap_or_else(|_| Err(CallError::Unknown("the writer of the store died".to_owned())))
    }

    async fn write_large(&self, write: Write, called: Moment) -> Outcome {
        let bytes = u32::try_from(write.size()).unwrap_or(u32::MAX).min(LARGE_BYTES_IN_FLIGHT_MAX);
        // It is never closed.
        let _places = self.large.acquire_many(bytes).await;
        self.transactions.check_age(called)?;
        self.transactions.alone(&write).await
    }
}

#[async_trait]
impl Batches for Transactions {
    type Job = Job;

    fn is_wanted(job: &Job) -> bool {
        !job.answer.is_closed()
    }

    fn take(&self, waiting: &mut VecDeque<Job>) -> Vec<Job> {
        let mut batch = Vec::new();
        let mut again = Vec::new();
        let mut load = Load::new(self.pace.writes_max.load(Ordering::Relaxed));
        // What nobody waits for any more never happens.
        while let Some(job) = Self::next_wanted(waiting) {
            match (self.check_age(job.called), load.add(&job.write)) {
                (Err(error), _) => job.answer(Err(error)),
                (Ok(()), Fit::Fits) => batch.push(job),
                (Ok(()), Fit::SameKey) => again.push(job),
                (Ok(()), Fit::Full) => {
                    waiting.push_front(job);
                    break;
                }
            }
        }
        for job in again.into_iter().rev() {
            waiting.push_front(job);
        }
        batch
    }

    async fn run(&self, mut batch: Vec<Job>) {
        let mut span = Span::within("etcd.write", batch.iter().filter_map(|job| job.place));
        span.count("onced.batch_size", batch.len());
        if batch.len() > 1 {
            return self.together(batch).await;
        }
        if let Some(job) = batch.pop() {
            let outcome = self.alone(&job.write).await;
            job.answer(outcome);
        }
    }
}

impl Transactions {
    /// What waited for long is rebuilt by its caller, with fresh leases and times.
    fn check_age(&self, called: Moment) -> Result<(), CallError> {
        let waited = self.clock.now().since(called);
        if waited > WRITE_WAIT_MAX {
            return Err(CallError::Refused(format!("it had waited {waited:?} before it could be sent")));
        }
        Ok(())
    }

    async fn alone(&self, write: &Write) -> Outcome {
        self.meters.count(&self.meters.alone, 1);
        let answer = self.client.txn_write(alone(write, &self.keyspace, &self.home)).await?;
        Ok(outcome_alone(write, &answer, &self.home))
    }

    async fn together(&self, batch: Vec<Job>) {
        if !self.pace.losing.load(Ordering::Relaxed) {
            self.meters.count(&self.meters.flat, batch.len());
            let writes = batch.iter().map(|job| &job.write);
            let locks: HashSet<i64> = writes.clone().filter_map(Write::lock_lease).collect();
            match self.client.txn_write(flat(writes, locks.into_iter(), &self.keyspace, &self.home)).await {
                Ok(answer) if answer.succeeded() => {
                    self.pace.faster();
                    let at = revision_of(&answer);
                    return batch.into_iter().for_each(|job| job.answer(Ok(Written::Done(at))));
                }
                // One of them lost. Nothing was written.
                Ok(_) => {}
                Err(error) => return self.failed(batch, error).await,
            }
        }
        self.each(batch).await;
    }

    /// Sends writes in one transaction that decides each for itself.
    async fn each(&self, batch: Vec<Job>) {
        let mut fresh = Vec::with_capacity(batch.len());
        for job in batch {
            match self.check_age(job.called) {
                Ok(()) => fresh.push(job),
                Err(error) => job.answer(Err(error)),
            }
        }
        if fresh.is_empty() {
            return;
        }
        self.meters.count(&self.meters.nested, fresh.len());
        let writes = || fresh.iter().map(|job| &job.write);
        match self.client.txn_write(nested(writes(), &self.keyspace, &self.home)).await {
            Ok(answer) => {
                let outcomes = outcomes_nested(writes(), &answer);
                self.pace.learn(&outcomes);
                let missing = || Err(CallError::Unknown("etcd's answer lacks that of a write".to_owned()));
                let mut outcomes = outcomes.into_iter();
                for job in fresh {
                    job.answer(outcomes.next().map_or_else(missing, Ok));
                }
            }
            Err(error) => self.failed(fresh, error).await,
        }
    }

    async fn failed(&self, batch: Vec<Job>, error: CallError) {
        if !matches!(error, CallError::Unfit(_)) {
            return batch.into_iter().for_each(|job| job.answer(Err(error.clone())));
        }
        // Perhaps for one of them, perhaps for their number.
        self.pace.slower();
        for job in batch {
            let outcome = match self.check_age(job.called) {
                Ok(()) => self.alone(&job.write).await,
                Err(error) => Err(error),
            };
            job.answer(outcome);
        }
    }
}

impl Pace {
    fn learn(&self, outcomes: &[Written]) {
        let lost = outcomes.iter().any(|written| !matches!(written, Written::Done(_)));
        self.losing.store(lost, Ordering::Relaxed);
        let value = |written: &Written| match written {
            Written::Lost(Some(current)) => KeyValue::value(current).len(),
            Written::Lost(None) | Written::Done(_) | Written::LockGone | Written::Foreign => 0,
        };
        if outcomes.iter().map(value).sum::<usize>() > ANSWER_LARGE_BYTES {
            self.slower();
        } else {
            self.faster();
        }
    }

    fn slower(&self) {
        let max = self.writes_max.load(Ordering::Relaxed);
        self.writes_max.store((max / 2).max(1), Ordering::Relaxed);
    }

    fn faster(&self) {
        let max = self.writes_max.load(Ordering::Relaxed);
        self.writes_max.store((max * 2).min(WRITES_MAX), Ordering::Relaxed);
    }
}

/// What a transaction has to carry.
struct Load {
    writes_max: usize,
    bytes: usize,
    names: HashSet<Arc<str>>,
    locks: HashSet<i64>,
}

enum Fit {
    Fits,
    /// It has a write of this key, and a transaction may put no key twice.
    SameKey,
    Full,
}

impl Load {
    fn new(writes_max: usize) -> Self {
        Self { writes_max, bytes: 0, names: HashSet::new(), locks: HashSet::new() }
    }

    fn add(&mut self, write: &Write) -> Fit {
        if self.names.contains(&write.name) {
            return Fit::SameKey;
        }
        let bytes = self.bytes + write.size();
        let lock = write.lock_lease().filter(|lease| !self.locks.contains(lease));
        // One for the store itself.
        let compares = 1 + self.names.len() + 1 + self.locks.len() + usize::from(lock.is_some());
        if self.names.len() >= self.writes_max || bytes > BYTES_MAX || compares > TXN_MAX_OPS {
            return Fit::Full;
        }
        self.bytes = bytes;
        self.locks.extend(lock);
        self.names.insert(Arc::clone(&write.name));
        Fit::Fits
    }
}
