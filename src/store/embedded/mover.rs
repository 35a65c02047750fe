//! Moves what the log holds to the tree, and sweeps the tree, on a thread of its own.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::Shared;
use super::layout::{COUNTERS_ROW, Counters, TABLE};
use super::recent::RowMap;
use super::sweep::Sweep;

/// How often the running time is written down when nothing else is, in milliseconds.
const RUNNING_TIME_PERIOD_MS: u64 = 10_000;

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
            if let Err(error) = self.take(&load) {
                self.shared.fail_writing(&error);
                return;
            }
            drop(load);
            self.shared.data.recent.end_moving();
        }
    }

    fn take(&mut self, load: &Load) -> Result<(), redb::Error> {
        let (data, meters) = (&self.shared.data, &self.shared.meters);
        meters.count_files();
        let expired = self.sweep.next(data)?;
        let running_ms = data.times.running_ms();
        let period_ms = if load.last { 1 } else { RUNNING_TIME_PERIOD_MS };
        let on_time = running_ms < self.counters.running_ms.saturating_add(period_ms);
        if expired.is_empty() && load.rows.is_empty() && on_time {
            return Ok(());
        }
        let counters = Counters { running_ms, ..load.counters };
        let began = data.times.clock().now();
        // What was written lately replaces what expired.
        write(&data.database, counters, &expired, &load.rows)?;
        meters.moving.record(data.times.clock().now().since(began));
        meters.moved.increment(load.rows.len() as u64);
        meters.swept.increment(expired.len() as u64);
        self.counters = counters;
        expired.iter().for_each(|(_, revision)| data.times.disarm(*revision));
        Ok(())
    }
}

/// Writes rows and counters to the tree in one transaction.
pub(super) fn write(
    database: &redb::Database,
    counters: Counters,
    expired: &[(Vec<u8>, crate::store::Revision)],
    rows: &RowMap,
) -> Result<(), redb::Error> {
    let mut rows: Vec<_> = rows.iter().collect();
    // Neighbours share pages.
    rows.sort_unstable_by_key(|(row, _)| row.as_slice());
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(TABLE)?;
        table.insert(COUNTERS_ROW, counters.to_value().as_slice())?;
        for (row, _) in expired {
            table.remove(row.as_slice())?;
        }
        for (row, value) in rows {
            match value {
                Some(value) => drop(table.insert(row.as_slice(), value.as_ref())?),
                None => drop(table.remove(row.as_slice())?),
            }
        }
    }
    // Durable once this returns: redb's default durability is immediate.
    transaction.commit()?;
    Ok(())
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
