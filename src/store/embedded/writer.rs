//! The one writer. What was asked for while a commit ran is the next commit; only then is it answered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use bytes::Bytes;

use super::Shared;
use super::layout::{self, Counters, Row};
use super::log::Log;
use super::mover::Load;
use super::queue::Job;
use super::reads::{Found, Tree};
use super::recent::RowMap;
use super::space::Space;
use crate::clock::Moment;
use crate::record::Record;
use crate::store::encoding::{self, Placement};
use crate::store::{Expected, Loaded, Revision, StoreError, Swapped};
use crate::telemetry::span::Span;

/// The most that one commit writes before it closes, in bytes of stored records.
const COMMIT_BYTES_MAX: usize = 16 << 20;
/// How often what the log holds is moved to the tree, and expired records are looked for.
const MOVE_PERIOD: Duration = Duration::from_secs(1);
/// It is moved before that, and without pauses, if it is more than this, in bytes: so much comes in only where throughput
/// is all that counts.
const MOVE_BYTES: u64 = 16 << 20;
/// Beyond this, writes wait until it is moved. It bounds memory, and the time that opening after a crash takes.
const LOG_BYTES_MAX: u64 = 2 * MOVE_BYTES;

pub(super) struct Writer {
    shared: Arc<Shared>,
    space: Space,
    log: Log,
    mover: Sender<Load>,
    /// As last committed.
    counters: Counters,
    moved: Moment,
    waiting: VecDeque<Job>,
}

/// The commit under way.
struct Commit {
    tree: Tree,
    counters: Counters,
    rows: RowMap,
    bytes: usize,
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
    pub(super) fn new(
        shared: Arc<Shared>,
        space: Space,
        log: Log,
        mover: Sender<Load>,
        counters: Counters,
    ) -> Self {
        let moved = shared.data.times.clock().now();
        Self { shared, space, log, mover, counters, moved, waiting: VecDeque::new() }
    }

    /// Writes until the store is closed, or a write fails.
    pub(super) fn run(mut self) {
        let _end = End(Arc::clone(&self.shared));
        if let Err(error) = self.write_all() {
            self.shared.fail_writing(&error);
        }
        let reason = StoreError::NotApplied(self.shared.queue.why_closed());
        self.waiting.drain(..).for_each(|job| job.answer(Err(reason.clone())));
    }

    fn write_all(&mut self) -> Result<(), redb::Error> {
        loop {
            let patience = if self.waiting.is_empty() { MOVE_PERIOD } else { Duration::ZERO };
            let taken = self.shared.queue.take(patience);
            self.waiting.extend(taken.jobs);
            if !self.waiting.is_empty() {
                self.write_batch()?;
            }
            let now = self.shared.data.times.clock().now();
            let much = self.log.bytes() >= MOVE_BYTES;
            if much || now.since(self.moved) >= MOVE_PERIOD {
                if self.log.bytes() >= LOG_BYTES_MAX {
                    self.shared.data.recent.wait_moved();
                }
                self.start_moving(now, much, false);
            }
            if taken.closed && self.waiting.is_empty() {
                self.shared.data.recent.wait_moved();
                self.start_moving(now, true, true);
                return Ok(());
            }
        }
    }

    /// Has what the log holds moved to the tree, unless that is being done.
    fn start_moving(&mut self, now: Moment, hurried: bool, last: bool) {
        if let Some(rows) = self.shared.data.recent.start_moving(hurried) {
            self.moved = now;
            self.log.change_half();
            // If the mover is gone, the store has failed.
            let _ = self.mover.send(Load { rows, counters: self.counters, last });
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
                self.shared.fail_writing(&error);
                for Swap { job, .. } in batch {
                    job.answer(Err(StoreError::OutcomeUnknown(format!("the commit failed: {error}"))));
                }
                Err(error)
            }
        }
    }

    /// Commits the swaps that wait, up to a limit, and leaves them in `batch` even if it fails.
    fn commit_batch(&mut self, batch: &mut Vec<Swap>) -> Result<(), redb::Error> {
        let tree = self.shared.data.tree()?;
        let mut commit = Commit { tree, counters: self.counters, rows: RowMap::new(), bytes: 0 };
        self.log.begin();
        while commit.bytes < COMMIT_BYTES_MAX
            && let Some(job) = self.waiting.pop_front()
        {
            // In the batch before anything is done for it: should that fail, its outcome is unknown.
            batch.push(Swap { job, verdict: Ok(Verdict::Conflict(None)) });
            if let Some(Swap { job, verdict }) = batch.last_mut() {
                *verdict = self.apply(&mut commit, job)?;
            }
        }
        if commit.counters.revision == self.counters.revision {
            return Ok(());
        }
        commit.counters.running_ms = self.shared.data.times.running_ms();
        let (clock, meters) = (self.shared.data.times.clock(), &self.shared.meters);
        let mut span = Span::within("embedded.commit", batch.iter().filter_map(|swap| swap.job.place));
        span.count("onced.batch_size", batch.len());
        let began = clock.now();
        self.log.commit(self.counters, commit.counters).map_err(redb::Error::Io)?;
        meters.commit.record(clock.now().since(began));
        meters.writes.record((commit.counters.revision.0 - self.counters.revision.0) as f64);
        self.counters = commit.counters;
        self.shared.data.recent.add(commit.rows);
        Ok(())
    }

    fn apply(&mut self, commit: &mut Commit, job: &Job) -> Result<Result<Verdict, StoreError>, redb::Error> {
        let row = layout::record_row(&job.key);
        let there = match self.look_up(commit, &row, job.expected)? {
            Ok(there) => there,
            Err(error) => return Ok(Err(error)),
        };
        let replaced = match there {
            There::Expected(revision) => Some(revision),
            There::Unexpected(current) => return Ok(Ok(Verdict::Conflict(Some(current)))),
            There::Nothing(expired) if job.expected == Expected::Absent => expired,
            There::Nothing(_) => return Ok(Ok(Verdict::Conflict(None))),
        };
        if let Some(full) = job.next.as_ref().and_then(|next| self.no_room_for(next)) {
            return Ok(Err(full));
        }
        commit.counters.revision.0 += 1;
        let revision = commit.counters.revision;
        let mut keep_until_ms = 0;
        let value = job.next.as_ref().map(|next| {
            let times = &self.shared.data.times;
            if next.lock_ttl().is_some() {
                times.arming(revision);
            }
            keep_until_ms = times.keep_until_ms(next);
            let stored = encoding::encode(next, &Placement { keep_until_ms, ..Placement::default() });
            Bytes::from(Row { revision, stored: &stored }.to_value())
        });
        commit.bytes += value.as_ref().map_or(0, Bytes::len);
        self.log.put(&row, value.as_deref());
        commit.rows.insert(row, value);
        Ok(Ok(Verdict::Written { revision, replaced, keep_until_ms }))
    }

    /// Holds what a row has against what is expected.
    fn look_up(
        &self,
        commit: &mut Commit,
        row: &[u8],
        expected: Expected,
    ) -> Result<Result<There, StoreError>, redb::Error> {
        let data = &self.shared.data;
        if let Some(recent) = commit.rows.get(row).cloned().or_else(|| data.recent.get(row)) {
            let there = recent.map(|value| self.compare(&value, expected));
            return Ok(there.unwrap_or(Ok(There::Nothing(None))));
        }
        if data.recent.moves() != commit.tree.moves {
            commit.tree = data.tree()?;
        }
        Ok(match commit.tree.table.get(row)? {
            None => Ok(There::Nothing(None)),
            Some(value) => {
                let there = self.compare(value.value(), expected);
                // Whoever asked for a new one is a duplicate, and will not be the last.
                if matches!(there, Ok(There::Unexpected(_))) {
                    data.recent.remember(row, value.value(), commit.tree.moves);
                }
                there
            }
        })
    }

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
        // Nobody is left to be spared, and whoever closes the store waits for the mover.
        self.0.data.recent.hurry();
        let reason = StoreError::NotApplied(self.0.queue.why_closed());
        for job in self.0.queue.take(Duration::ZERO).jobs {
            job.answer(Err(reason.clone()));
        }
    }
}
