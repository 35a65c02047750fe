//! Hints of lapses: a lease that ends is heard of by whoever watches a record that names it.

use shuttle::future::block_on;
use shuttle::sync::Mutex;
use shuttle::thread;

use super::super::hub::{Hub, Watch};
use super::super::sync::Arc;
use super::super::{fails_in_some_order, in_every_order, key};
use super::lapses::Lapses;
use crate::store::Revision;

/// The lease of the record at first, and after it was renewed. The record's revision is the same number.
const FIRST: i64 = 1;
const RENEWED: i64 = 2;

/// What etcd has: the lease that the record names, and the sentinels that are there.
struct Etcd {
    named: i64,
    sentinels: Vec<i64>,
}

#[derive(Clone)]
struct Store {
    hub: Hub,
    lapses: Lapses,
    etcd: Arc<Mutex<Etcd>>,
}

impl Store {
    fn new() -> Self {
        let hub = Hub::default();
        let etcd = Etcd { named: FIRST, sentinels: vec![FIRST, RENEWED] };
        Self { lapses: Lapses::new(hub.clone()), hub, etcd: Arc::new(Mutex::new(etcd)) }
    }

    fn watch(&self) -> Watch {
        let lapses = self.lapses.clone();
        self.hub.watch(&key(), Some(Box::new(move || lapses.forget(&key()))))
    }

    /// Reads the record, and then whether its lock has lapsed, as the store does.
    fn load(&self) -> bool {
        loop {
            let lease = self.etcd.lock().unwrap().named;
            self.note(lease);
            let over = self.lapses.is_gone(lease) || !self.is_there(lease);
            // Found on it after its end, or else it was renewed meanwhile.
            if !over || self.etcd.lock().unwrap().named == lease {
                return over;
            }
        }
    }

    fn note(&self, lease: i64) {
        self.lapses.note(&key(), Revision(lease.unsigned_abs()), Some(lease));
    }

    fn is_there(&self, lease: i64) -> bool {
        let there = self.etcd.lock().unwrap().sentinels.contains(&lease);
        if !there {
            self.lapses.gone(lease);
        }
        there
    }

    /// A lease ends, and the watch of sentinels tells so.
    fn end(&self, lease: i64) {
        self.etcd.lock().unwrap().sentinels.retain(|there| *there != lease);
        self.lapses.gone(lease);
    }

    fn renew(&self) {
        self.etcd.lock().unwrap().named = RENEWED;
        self.hub.changed(&key());
    }

    fn wait_for_the_lapse(&self) {
        let mut watch = self.watch();
        while !self.load() {
            block_on(watch.changed());
        }
    }
}

fn together<const N: usize>(threads: [fn(&Store); N]) {
    let store = Store::new();
    let threads = threads.map(|run| {
        let store = store.clone();
        thread::spawn(move || run(&store))
    });
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(store.lapses.noted(), 0, "something is kept of a record that nobody watches");
}

/// It holds now, and is left alone.
fn look_and_leave(store: &Store) {
    let watch = store.watch();
    store.load();
    drop(watch);
}

#[test]
fn whoever_notes_and_then_looks_hears_of_the_lapse() {
    in_every_order(|| {
        together([Store::wait_for_the_lapse, Store::wait_for_the_lapse, look_and_leave, |store| {
            store.end(FIRST)
        }]);
    });
}

#[test]
fn a_renewal_between_moves_the_lapse_and_hides_it_from_nobody() {
    in_every_order(|| {
        together([Store::wait_for_the_lapse, look_and_leave, |store| {
            store.renew();
            store.end(FIRST);
            store.end(RENEWED);
        }]);
    });
}

#[test]
fn whoever_looks_and_then_notes_is_lost_in_some_schedule() {
    let look_first = || {
        together([
            |store| {
                let mut watch = store.watch();
                while store.is_there(FIRST) {
                    store.note(FIRST);
                    block_on(watch.changed());
                }
            },
            |store| store.end(FIRST),
        ]);
    };
    fails_in_some_order(look_first, "deadlock");
}
