//! Reads during which a record is written anew, and what it was before expires.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redb::backends::InMemoryBackend;

use super::layout::Counters;
use super::mover::{Pace, write};
use super::mover_tests::{kept_until, shared};
use super::*;
use crate::clock::Moment;
use crate::store::Revision;

const KEY: &str = "key";

/// What happens when a clock is looked at the next time.
type Next = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// A store whose record is in the tree, and expires 5 ms after its start. When a read looks at the clock to see whether it
/// has, it has just been written anew, and is kept for longer.
fn read_while_written_anew<T>(moved: bool, read: impl FnOnce(&Data) -> T) -> T {
    let next = Next::default();
    let now_ms = Arc::new(AtomicU64::new(0));
    let clock = {
        let (next, now_ms) = (Arc::clone(&next), Arc::clone(&now_ms));
        Clock::from_fn(move || {
            // Let go before it runs: what it does may look at the clock.
            let act = next.lock().unwrap().take();
            act.into_iter().for_each(|act| act());
            Moment::from_start(Duration::from_millis(now_ms.load(Ordering::SeqCst)))
        })
    };
    let database = open::on_backend(InMemoryBackend::new()).unwrap();
    let row = layout::record_row(&tests::key(KEY));
    let before = Counters { revision: Revision(9), ..Counters::NEW };
    write(&database, before, &[(row.clone(), kept_until(5))].into(), &Pace::Alone).unwrap();
    let shared = shared(database, clock, before);
    let later = Arc::clone(&shared);
    let act: Box<dyn FnOnce() + Send> = Box::new(move || {
        later.data.recent.add([(row, kept_until(1_000))].into());
        if moved {
            let rows = later.data.recent.start_moving(false).unwrap();
            write(&later.data.database, before, &rows, &Pace::Alone).unwrap();
            later.data.recent.end_moving();
        }
        now_ms.store(10, Ordering::SeqCst);
    });
    *next.lock().unwrap() = Some(act);
    let read = read(&shared.data);
    assert!(next.lock().unwrap().is_none(), "nothing came between");
    read
}

#[test]
fn a_record_that_is_written_anew_before_it_expires_is_always_there() {
    let key = tests::key(KEY);
    for moved in [false, true] {
        let loaded = read_while_written_anew(moved, |data| data.load(&key).unwrap());
        assert!(loaded.is_some(), "to a load; moved: {moved}");
        let page = read_while_written_anew(moved, |data| data.scan(&key.namespace, None, 10).unwrap());
        assert_eq!(page.records.len(), 1, "to a scan; moved: {moved}");
    }
}
