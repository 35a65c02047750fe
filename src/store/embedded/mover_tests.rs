//! Moves to the tree that are cut off between two of their steps, and what the sweep after them removes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase as _, ReadableTableMetadata as _, StorageBackend};

use super::layout::{COUNTERS_ROW, Counters, Row, TABLE};
use super::mover::{Load, Mover, Pace, STEP_ROWS, write};
use super::recent::RowMap;
use super::*;
use crate::clock::Moment;
use crate::store::Revision;
use crate::store::encoding::{self, Placement};

/// A file that can be synced so many times more, and fails from then on.
#[derive(Clone, Debug)]
struct Syncs(Arc<InMemoryBackend>, Arc<AtomicU64>);

impl Syncs {
    fn left(&self) -> io::Result<()> {
        match self.1.load(Ordering::SeqCst) {
            0 => Err(io::Error::other("the power is off")),
            _ => Ok(()),
        }
    }
}

impl StorageBackend for Syncs {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.left().and_then(|()| self.0.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.left().and_then(|()| self.0.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.left()?;
        self.1.fetch_sub(1, Ordering::SeqCst);
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.left().and_then(|()| StorageBackend::write(&*self.0, offset, data))
    }
}

/// A clock that stands still.
fn still() -> Clock {
    Clock::from_fn(|| Moment::from_start(Duration::ZERO))
}

/// What the threads of a store share that was opened with these counters.
pub(super) fn shared(database: Database, clock: Clock, before: Counters) -> Arc<Shared> {
    Arc::new(Shared {
        data: Data { database, recent: Recent::default(), times: Times::new(clock, before) },
        queue: Queue::new(),
        hub: Hub::default(),
        alarms: Alarms::default(),
        failure: watch::Sender::new(None),
        meters: Meters::new(None),
    })
}

fn load(rows: RowMap, counters: Counters) -> Load {
    Load { rows: Arc::new(rows), counters, last: false }
}

/// The name of a record's row.
fn row(number: usize) -> Vec<u8> {
    [&[1], format!("tests\0{number:06}").as_bytes()].concat()
}

/// What stands in the row of a record that is kept until then.
pub(super) fn kept_until(running_ms: u64) -> Option<Bytes> {
    let placement = Placement { keep_until_ms: running_ms, ..Placement::default() };
    let stored = encoding::encode(&tests::claim(), &placement);
    Some(Row { revision: Revision(1), stored: &stored }.to_value().into())
}

fn get(database: &Database, row: &[u8]) -> Option<Vec<u8>> {
    let table = database.begin_read().unwrap().open_table(TABLE).unwrap();
    table.get(row).unwrap().map(|value| value.value().to_vec())
}

#[test]
fn what_was_moved_of_a_move_that_is_cut_off_is_right_and_its_counters_come_last() {
    let (old, new) = (kept_until(1), kept_until(1_000));
    let rows: RowMap = (0..3 * STEP_ROWS).map(|n| (row(n), new.clone())).collect();
    // One that expired and is written anew, and one that only expired.
    let (anew, gone) = (0, 3 * STEP_ROWS);
    let before = Counters { revision: Revision(7), ..Counters::NEW };
    let after = Counters { revision: Revision(9), running_ms: 5 };
    let mut seen_in_part = false;
    for syncs in 1.. {
        let left = Arc::new(AtomicU64::new(u64::MAX));
        let file = Syncs(Arc::default(), Arc::clone(&left));
        let database = open::on_backend(file.clone()).unwrap();
        let expired = [anew, gone].map(|n| (row(n), old.clone())).into();
        write(&database, before, &expired, &Pace::Alone).unwrap();
        let mut mover = Mover::new(shared(database, still(), after), before);
        left.store(syncs, Ordering::SeqCst);
        let moved = mover.take(load(rows.clone(), Counters { running_ms: 0, ..after }));
        drop(mover);
        left.store(u64::MAX, Ordering::SeqCst);
        let database = open::on_backend(file).unwrap();
        let counters = get(&database, COUNTERS_ROW);
        let is_new = |n: usize| match get(&database, &row(n)) {
            Some(found) if Some(&found[..]) == new.as_deref() => true,
            found => {
                assert_eq!(
                    found.as_deref(),
                    old.as_deref().filter(|_| n == anew),
                    "neither new nor as before"
                );
                false
            }
        };
        let news = (0..rows.len()).filter(|n| is_new(*n)).count();
        if moved.is_ok() {
            assert_eq!((news, get(&database, &row(gone))), (rows.len(), None));
            assert_eq!(counters, Some(after.to_value().to_vec()));
            break;
        }
        if counters == Some(before.to_value().to_vec()) {
            assert_eq!(get(&database, &row(gone)).as_deref(), old.as_deref(), "it goes after the counters");
            seen_in_part |= 0 < news && news < rows.len();
        } else {
            assert_eq!(news, rows.len(), "counters that tell of rows which are not there");
        }
    }
    assert!(seen_in_part, "all of it came in one transaction");
}

#[test]
fn nothing_is_swept_before_the_time_by_which_it_expired_is_written_down() {
    let database = open::on_backend(InMemoryBackend::new()).unwrap();
    write(&database, Counters::NEW, &[(row(0), kept_until(5))].into(), &Pace::Alone).unwrap();
    let shared = shared(database, still(), Counters { running_ms: 5, ..Counters::NEW });
    let mut mover = Mover::new(Arc::clone(&shared), Counters::NEW);
    let is_there = || get(&shared.data.database, &row(0)).is_some();
    // Too little time has passed to write it down for its own sake.
    mover.take(load(RowMap::new(), Counters::NEW)).unwrap();
    assert!(is_there(), "a crash would turn the time back, and it would be gone too soon");
    mover.take(load([(row(1), kept_until(0))].into(), Counters::NEW)).unwrap();
    let written_down = Counters { running_ms: 5, ..Counters::NEW };
    assert_eq!(get(&shared.data.database, COUNTERS_ROW), Some(written_down.to_value().to_vec()));
    assert!(!is_there());
}

#[test]
fn what_expired_does_not_pile_up_however_fast_records_come() {
    // More than the sweep looks at in any case: by rows, and by bytes, of which the names have more than the values.
    for (rounds, written, name) in [(8, 12_000, 16), (7, 41_000, 480)] {
        let database = open::on_backend(InMemoryBackend::new()).unwrap();
        let shared = shared(database, still(), Counters { running_ms: 1, ..Counters::NEW });
        let mut mover = Mover::new(Arc::clone(&shared), Counters::NEW);
        for round in 1..=rounds {
            // All that is written has expired at once.
            let row = |n| [&[1], format!("tests\0{n:0name$} {round}").as_bytes()].concat();
            let value = kept_until(1);
            mover.take(load((0..written).map(|n| (row(n), value.clone())).collect(), Counters::NEW)).unwrap();
            let rows = shared.data.table().unwrap().len().unwrap();
            assert!(rows <= written, "{rows} rows after {round} times {written}");
        }
    }
}
