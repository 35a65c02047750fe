//! The one writer. What was asked for while a commit ran is the next commit; only then is it answered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use redb::{ReadableTable, Table};

use super::Shared;
use super::layout::{self, COUNTERS_ROW, Counters, Row, TABLE};
use super::queue::Job;
use super::reads::Found;
use super::space::Space;
use super::sweep::Sweep;
use crate::clock::Moment;
use crate::record::Record;
use crate::store::encoding::{self, Placement};
use crate::store::{Expected, Loaded, Revision, StoreError, Swapped};

/// The most that one commit writes before it closes, in bytes of stored records.
const COMMIT_BYTES_MAX: usize = 16 << 20;
/// How often expired records are looked for.
const UPKEEP_PERIOD: Duration = Duration::from_secs(1);
/// How often the running time is written down when nothing else is, in milliseconds.
const RUNNING_TIME_PERIOD_MS: u64 = 10_000;

/// An open table.
type Open<'a> = Table<'a, &'static [u8], &'static [u8]>;

pub(super) struct Writer {
    shared: Arc<Shared>,
    space: Space,
    sweep: Sweep,
    /// As last committed.
    counters: Counters,
    kept_up: Moment,
    waiting: VecDeque<Job>,
}

/// A swap in the commit under way.
struct Swap {
    job: Job,
    verdict: Result<Verdict, StoreError>,
}

enum Verdict {
    Conflict(Option<Loaded>),
    Written {
        revision: Revision,
        /// The write that it was written over.
        replaced: Option<Revision>,
        keep_until_ms: u64,
    },
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, space: Space, counters: Counters) -> Self {
        let kept_up = shared.data.times.clock().now();
        Self { shared, space, sweep: Sweep::default(), counters, kept_up, waiting: VecDeque::new() }
    }

    /// Writes until the store is closed, or a write fails.
    pub(super) fn run(mut self) {
        let _end = End(Arc::clone(&self.shared));
        if let Err(error) = self.write_all() {
            self.fail(&error);
        }
        let reason = StoreError::NotApplied(self.shared.queue.why_closed());
        self.waiting.drain(..).for_each(|job| job.answer(Err(reason.clone())));
    }

    fn write_all(&mut self) -> Result<(), redb::Error> {
        loop {
            let patience = if self.waiting.is_empty() { UPKEEP_PERIOD } else { Duration::ZERO };
            let taken = self.shared.queue.take(patience);
            self.waiting.extend(taken.jobs);
            if !self.waiting.is_empty() {
                self.write_batch()?;
            }
            let now = self.shared.data.times.clock().now();
            if now.since(self.kept_up) >= UPKEEP_PERIOD {
                self.kept_up = now;
                self.upkeep(RUNNING_TIME_PERIOD_MS)?;
            }
            if taken.closed && self.waiting.is_empty() {
                return self.upkeep(1);
            }
        }
    }

    fn write_batch(&mut self) -> Result<(), redb::Error> {
        let mut batch = Vec::new();
        match self.commit_batch(&mut batch) {
            Ok(()) => {
                self.settle(batch);
                Ok(())
            }
            Err(error) => {
                // First nothing is read any more: whoever hears of an unknown outcome will look.
                self.fail(&error);
                for Swap { job, .. } in batch {
                    job.answer(Err(StoreError::OutcomeUnknown(format!("the commit failed: {error}"))));
                }
                Err(error)
            }
        }
    }

    fn fail(&self, error: &redb::Error) {
        self.shared.fail(&format!(
            "writing to the data file failed: {error}. Whether the last writes are in it is known only once \
             it is opened anew, so this process must end; see to the disk, then start it again"
        ));
    }

    /// Commits the swaps that wait, up to a limit, and leaves them in `batch` even if it fails.
    fn commit_batch(&mut self, batch: &mut Vec<Swap>) -> Result<(), redb::Error> {
        let transaction = self.shared.data.database.begin_write()?;
        let mut counters = self.counters;
        {
            let mut table = transaction.open_table(TABLE)?;
            let mut bytes = 0;
            while bytes < COMMIT_BYTES_MAX
                && let Some(job) = self.waiting.pop_front()
            {
                // In the batch before anything is done for it: should that fail, its outcome is unknown.
                batch.push(Swap { job, verdict: Ok(Verdict::Conflict(None)) });
                if let Some(Swap { job, verdict }) = batch.last_mut() {
                    *verdict = self.apply(&mut table, &mut counters, &mut bytes, job)?;
                }
            }
            counters.running_ms = self.shared.data.times.running_ms();
            if counters.revision != self.counters.revision {
                table.insert(COUNTERS_ROW, counters.to_value().as_slice())?;
            }
        }
        if counters.revision == self.counters.revision {
            return Ok(transaction.abort()?);
        }
        // Durable once this returns: redb's default durability is immediate.
        transaction.commit()?;
        self.counters = counters;
        Ok(())
    }

    fn apply(
        &mut self,
        table: &mut Open<'_>,
        counters: &mut Counters,
        bytes: &mut usize,
        job: &Job,
    ) -> Result<Result<Verdict, StoreError>, redb::Error> {
        let row = layout::record_row(&job.key);
        let there = match table.get(row.as_slice())? {
            None => Ok(There::Nothing(None)),
            Some(value) => self.compare(value.value(), job.expected),
        };
        let replaced = match there {
            Ok(There::Expected(revision)) => Some(revision),
            Ok(There::Unexpected(current)) => return Ok(Ok(Verdict::Conflict(Some(current)))),
            Ok(There::Nothing(expired)) if job.expected == Expected::Absent => expired,
            Ok(There::Nothing(_)) => return Ok(Ok(Verdict::Conflict(None))),
            Err(error) => return Ok(Err(error)),
        };
        if let Some(full) = job.next.as_ref().and_then(|next| self.no_room_for(next)) {
            return Ok(Err(full));
        }
        counters.revision.0 += 1;
        let revision = counters.revision;
        let mut keep_until_ms = 0;
        match &job.next {
            None => {
                table.remove(row.as_slice())?;
            }
            Some(next) => {
                if next.lock_ttl().is_some() {
                    self.shared.data.times.arming(revision);
                }
                keep_until_ms = self.shared.data.times.keep_until_ms(next);
                let stored = encoding::encode(next, &Placement { keep_until_ms, ..Placement::default() });
                *bytes += stored.len();
                table.insert(row.as_slice(), Row { revision, stored: &stored }.to_value().as_slice())?;
            }
        }
        Ok(Ok(Verdict::Written { revision, replaced, keep_until_ms }))
    }

    /// Holds what a row has against what is expected.
    fn compare(&self, value: &[u8], expected: Expected) -> Result<There, StoreError> {
        let row = Row::parse(value)?;
        if self.shared.data.times.is_expired(encoding::decode_keep_until_ms(row.stored)?) {
            return Ok(There::Nothing(Some(row.revision)));
        }
        if expected == Expected::At(row.revision) {
            return Ok(There::Expected(row.revision));
        }
        match self.shared.data.read(value)? {
            Found::Record(current) => Ok(There::Unexpected(current)),
            Found::Expired => Ok(There::Nothing(Some(row.revision))),
            Found::Replaced => {
                Err(StoreError::NotApplied("a record has no lock though nothing replaced it".to_owned()))
            }
        }
    }

    fn no_room_for(&mut self, next: &Record) -> Option<StoreError> {
        if !next.makes_claim() {
            return None;
        }
        let free = self.space.scarce(self.shared.data.times.clock().now())?;
        Some(StoreError::Full(format!(
            "{} MiB are free on its disk, and below {} MiB no new claim is made, so that the claims under \
             way can complete: free some space",
            free >> 20,
            super::space::RESERVE_BYTES >> 20
        )))
    }

    /// Makes known what was committed.
    fn settle(&self, batch: Vec<Swap>) {
        let times = &self.shared.data.times;
        for Swap { job, verdict } in &batch {
            if let Ok(Verdict::Written { revision, replaced, keep_until_ms }) = verdict {
                replaced.iter().for_each(|replaced| times.disarm(*replaced));
                times.arm(*revision);
                if self.shared.hub.is_watched(&job.key) {
                    let next = job.next.as_ref();
                    let moments = next.map(|next| times.moments(next, *revision, *keep_until_ms));
                    self.shared.alarms.set(&job.key, *revision, moments.unwrap_or_default());
                    self.shared.hub.changed(&job.key);
                }
            }
        }
        for Swap { job, verdict } in batch {
            job.answer(verdict.map(|verdict| match verdict {
                Verdict::Written { revision, .. } => Swapped::Done(revision),
                Verdict::Conflict(current) => Swapped::Conflict(current),
            }));
        }
    }

    /// Removes some expired records, and writes the running time down if it is that far on.
    fn upkeep(&mut self, period_ms: u64) -> Result<(), redb::Error> {
        let data = &self.shared.data;
        let expired = self.sweep.next(data)?;
        let running_ms = data.times.running_ms();
        if expired.is_empty() && running_ms < self.counters.running_ms.saturating_add(period_ms) {
            return Ok(());
        }
        let counters = Counters { running_ms, ..self.counters };
        let transaction = data.database.begin_write()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            table.insert(COUNTERS_ROW, counters.to_value().as_slice())?;
            for (row, _) in &expired {
                table.remove(row.as_slice())?;
            }
        }
        transaction.commit()?;
        self.counters = counters;
        expired.iter().for_each(|(_, revision)| data.times.disarm(*revision));
        Ok(())
    }
}

/// What a swap found in place of a record.
enum There {
    Expected(Revision),
    Unexpected(Loaded),
    /// Nothing; or nothing any more, but the row of what expired.
    Nothing(Option<Revision>),
}

/// The end of the writer, however it comes.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("the writer of the store panicked: this is a bug of onced; see its log");
        }
        let reason = StoreError::NotApplied(self.0.queue.why_closed());
        for job in self.0.queue.take(Duration::ZERO).jobs {
            job.answer(Err(reason.clone()));
        }
    }
}
