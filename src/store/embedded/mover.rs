//! Moves what the log holds to the tree, and sweeps the tree, on a thread of its own.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use bytes::Bytes;

use super::Shared;
use super::layout::{COUNTERS_ROW, Counters, TABLE};
use super::recent::RowMap;
use super::sweep::{Quota, Sweep};
use crate::store::Revision;

/// How often the running time is written down when nothing else is, in milliseconds.
const RUNNING_TIME_PERIOD_MS: u64 = 10_000;
/// The most that one transaction writes, in rows and in bytes of stored records. Each row may be on a page of its own, and
/// the more is synced at once, the longer the next sync of the log waits.
pub(super) const STEP_ROWS: usize = 128;
const STEP_BYTES: usize = 1 << 20;
/// The rows of one where the move has to end soon: fewer transactions take less of the disk and the CPU altogether.
const HURRIED_STEP_ROWS: usize = 512;
/// After each transaction comes a pause so many times as long as that took, for the callers: else they would
/// wait once a second for whatever is moved then.
const PAUSE_RATIO: u32 = 3;
/// The longest pause: a disk that stalls is not made up for by more of it.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// What to move, and the counters as of it.
pub(super) struct Load {
    pub rows: Arc<RowMap>,
    pub counters: Counters,
    /// The last one: the running time is written down in any case.
    pub last: bool,
}

pub(super) struct Mover {
    shared: Arc<Shared>,
    sweep: Sweep,
    /// As last written to the tree.
    counters: Counters,
}

impl Mover {
    pub(super) fn new(shared: Arc<Shared>, counters: Counters) -> Self {
        Self { shared, sweep: Sweep::default(), counters }
    }

    /// Moves until there is nobody to send more, or a write fails.
    pub(super) fn run(mut self, loads: &Receiver<Load>) {
        let _end = End(Arc::clone(&self.shared));
        for load in loads {
            if let Err(error) = self.take(load) {
                self.shared.fail_writing(&error);
                return;
            }
        }
    }

    pub(super) fn take(&mut self, load: Load) -> Result<(), redb::Error> {
        let (data, meters) = (&self.shared.data, &self.shared.meters);
        meters.count_files();
        let running_ms = data.times.running_ms();
        let period_ms = if load.last { 1 } else { RUNNING_TIME_PERIOD_MS };
        let on_time = running_ms < self.counters.running_ms.saturating_add(period_ms);
        if !load.rows.is_empty() || !on_time {
            let counters = Counters { running_ms, ..load.counters };
            let began = data.times.clock().now();
            write(&data.database, counters, &load.rows, &Pace::BesideCallers(&self.shared))?;
            meters.moving.record(data.times.clock().now().since(began));
            meters.moved.increment(load.rows.len() as u64);
            self.counters = counters;
        }
        let (last, quota) = (load.last, Quota::beside(&load.rows));
        drop(load);
        // Before the sweep, which only makes room: nobody waits for that unless the log is full again.
        self.shared.data.recent.end_moving();
        if last { Ok(()) } else { self.sweep(quota) }
    }

    /// Looks at the next records, and removes those that expired by the time that is written down: if they had expired
    /// by a later one, a crash would turn it back, and they would be gone too soon.
    fn sweep(&mut self, mut quota: Quota) -> Result<(), redb::Error> {
        let data = &self.shared.data;
        let pace = Pace::BesideCallers(&self.shared);
        loop {
            let seen = pace.step(|| self.sweep.next(data, self.counters.running_ms))?;
            remove(&data.database, &seen.expired, &pace)?;
            self.shared.meters.swept.increment(seen.expired.len() as u64);
            seen.expired.iter().for_each(|(_, revision)| data.times.disarm(*revision));
            // Whoever closes the store does not wait for more room in it.
            if quota.is_used_up_by(&seen) || seen.is_round || self.shared.queue.is_closed() {
                return Ok(());
            }
        }
    }
}

/// How fast something is moved.
pub(super) enum Pace<'a> {
    /// With pauses, unless it is hurried.
    BesideCallers(&'a Shared),
    /// As fast as can be: nobody is served meanwhile.
    Alone,
}

impl Pace<'_> {
    fn step_rows(&self) -> usize {
        match self {
            Pace::BesideCallers(shared) if !shared.data.recent.is_hurried() => STEP_ROWS,
            Pace::BesideCallers(_) | Pace::Alone => HURRIED_STEP_ROWS,
        }
    }

    /// Runs a step, and pauses after it.
    fn step<T>(&self, step: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        let Pace::BesideCallers(shared) = self else { return step() };
        let clock = shared.data.times.clock();
        let began = clock.now();
        let done = step()?;
        shared.data.recent.pause((clock.now().since(began) * PAUSE_RATIO).min(PAUSE_MAX));
        Ok(done)
    }
}

/// Writes rows and counters to the tree, in steps. What is cut off between two of them is whole: the log still has every
/// row, and says the same of it as the tree or something newer, until the counters, which come with the last rows and say
/// from where on the log counts, are there.
pub(super) fn write(
    database: &redb::Database,
    counters: Counters,
    rows: &RowMap,
    pace: &Pace<'_>,
) -> Result<(), redb::Error> {
    let mut sorted: Vec<_> = rows.iter().collect();
    // Neighbours share pages.
    sorted.sort_unstable_by_key(|(row, _)| row.as_slice());
    let mut rest = sorted.as_slice();
    loop {
        let (step, later) = rest.split_at(step_length(rest, pace.step_rows()));
        if later.is_empty() {
            return put(database, step, Some(counters));
        }
        pace.step(|| put(database, step, None))?;
        rest = later;
    }
}

/// Removes rows from the tree, in steps. Whoever writes one anew meanwhile does so in the log, which is moved later.
fn remove(
    database: &redb::Database,
    rows: &[(Vec<u8>, Revision)],
    pace: &Pace<'_>,
) -> Result<(), redb::Error> {
    let mut rest = rows;
    while !rest.is_empty() {
        let (step, later) = rest.split_at(rest.len().min(pace.step_rows()));
        let removed: Vec<_> = step.iter().map(|(row, _)| (row, &None)).collect();
        pace.step(|| put(database, &removed, None))?;
        rest = later;
    }
    Ok(())
}

/// Writes rows in a transaction.
fn put(
    database: &redb::Database,
    rows: &[(&Vec<u8>, &Option<Bytes>)],
    counters: Option<Counters>,
) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(TABLE)?;
        for (row, value) in rows {
            match value {
                Some(value) => drop(table.insert(row.as_slice(), value.as_ref())?),
                None => drop(table.remove(row.as_slice())?),
            }
        }
        if let Some(counters) = counters {
            table.insert(COUNTERS_ROW, counters.to_value().as_slice())?;
        }
    }
    // Durable once this returns: redb's default durability is immediate.
    Ok(transaction.commit()?)
}

/// How many of the rows are written in one transaction.
fn step_length(rows: &[(&Vec<u8>, &Option<Bytes>)], most: usize) -> usize {
    let mut bytes = 0;
    let fits = |(_, value): &&(&Vec<u8>, &Option<Bytes>)| {
        let fits = bytes < STEP_BYTES;
        bytes += value.as_ref().map_or(0, |value| value.len());
        fits
    };
    rows.iter().take(most).take_while(fits).count()
}

/// The end of the mover, however it comes.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("the mover of the store panicked: this is a bug of onced; see its log");
        }
        self.0.data.recent.stick();
    }
}
