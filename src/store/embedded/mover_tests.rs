//! A move to the tree that is cut off between two of its steps.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase as _, StorageBackend};

use super::layout::{COUNTERS_ROW, Counters, TABLE};
use super::mover::{HURRIED_STEP_ROWS, Pace, remove, write};
use super::open;
use super::recent::RowMap;
use crate::store::Revision;

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

fn row(number: usize) -> Vec<u8> {
    format!("row {number:06}").into_bytes()
}

fn get(database: &Database, row: &[u8]) -> Option<Vec<u8>> {
    let table = database.begin_read().unwrap().open_table(TABLE).unwrap();
    table.get(row).unwrap().map(|value| value.value().to_vec())
}

#[test]
fn what_was_moved_of_a_move_that_is_cut_off_is_right_and_its_counters_come_last() {
    let rows: RowMap =
        (0..3 * HURRIED_STEP_ROWS).map(|n| (row(n), Some(Bytes::from_static(b"new")))).collect();
    let old = |n: usize| (row(n), Some(Bytes::from_static(b"old")));
    // One that is written anew, and one that expired.
    let (anew, gone) = (0, 3 * HURRIED_STEP_ROWS);
    let before = Counters { revision: Revision(7), ..Counters::NEW };
    let after = Counters { revision: Revision(9), ..Counters::NEW };
    let expired = [(row(gone), Revision(1))];
    let mut seen_in_part = false;
    for syncs in 1.. {
        let left = Arc::new(AtomicU64::new(u64::MAX));
        let file = Syncs(Arc::default(), Arc::clone(&left));
        let database = open::on_backend(file.clone()).unwrap();
        write(&database, before, &[old(anew), old(gone)].into(), &Pace::Alone).unwrap();
        left.store(syncs, Ordering::SeqCst);
        let moved = write(&database, after, &rows, &Pace::Alone)
            .and_then(|()| remove(&database, &expired, &Pace::Alone));
        drop(database);
        left.store(u64::MAX, Ordering::SeqCst);
        let database = open::on_backend(file).unwrap();
        let counters = get(&database, COUNTERS_ROW);
        let news = (0..rows.len()).filter(|n| get(&database, &row(*n)).as_deref() == Some(b"new")).count();
        if moved.is_ok() {
            assert_eq!((news, get(&database, &row(gone))), (rows.len(), None));
            assert_eq!(counters, Some(after.to_value().to_vec()));
            break;
        }
        if counters == Some(before.to_value().to_vec()) {
            assert_eq!(
                get(&database, &row(gone)).as_deref(),
                Some(&b"old"[..]),
                "it goes after the counters"
            );
            seen_in_part |= 0 < news && news < rows.len();
        } else {
            assert_eq!(news, rows.len(), "counters that tell of rows which are not there");
        }
    }
    assert!(seen_in_part, "all of it came in one transaction");
}
