//! Hints of changes: who registers, then looks, misses none.

use shuttle::future::block_on;
use shuttle::sync::Mutex;
use shuttle::thread;

use super::hub::{Hub, Watch};
use super::sync::Arc;
use super::{fails_in_some_order, in_every_order, key};

/// How often the record changes.
const CHANGES: u32 = 2;

/// A record, and who watches it.
#[derive(Clone, Default)]
struct Store {
    hub: Hub,
    version: Arc<Mutex<u32>>,
}

impl Store {
    fn watch(&self) -> Watch {
        self.hub.watch(&key(), None)
    }

    fn load(&self) -> u32 {
        *self.version.lock().unwrap()
    }

    fn change(&self) {
        *self.version.lock().unwrap() += 1;
        self.hub.changed(&key());
    }

    /// Waits for the last change on one watch.
    fn wait_to_the_end(&self) {
        let mut watch = self.watch();
        while self.load() < CHANGES {
            block_on(watch.changed());
        }
    }
}

/// Runs the threads of a scene to their end.
fn together<const N: usize>(store: &Store, threads: [fn(&Store); N]) {
    let threads = threads.map(|run| {
        let store = store.clone();
        thread::spawn(move || run(&store))
    });
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(!store.hub.is_watched(&key()), "something is kept of who left");
}

#[test]
fn whoever_registers_and_then_looks_hears_of_every_change() {
    in_every_order(|| {
        together(
            &Store::default(),
            [
                Store::wait_to_the_end,
                Store::wait_to_the_end,
                |store| (0..CHANGES).for_each(|_| store.change()),
                // Comes and goes: the last to leave takes the key out of the hub, and nobody else with it.
                |store| (0..2).for_each(|_| drop(store.watch())),
            ],
        );
    });
}

#[test]
fn whoever_registers_anew_for_each_look_hears_of_every_change() {
    in_every_order(|| {
        let each_time_anew = |store: &Store| loop {
            let mut watch = store.watch();
            if store.load() == CHANGES {
                return;
            }
            block_on(watch.changed());
        };
        let change = |store: &Store| {
            store.change();
            // What happened meanwhile is not known: all are told.
            *store.version.lock().unwrap() += 1;
            store.hub.all_changed();
        };
        together(&Store::default(), [each_time_anew, each_time_anew, change]);
    });
}

#[test]
fn whoever_looks_and_then_registers_is_lost_in_some_schedule() {
    fails_in_some_order(
        || {
            let look_first = |store: &Store| {
                while store.load() < CHANGES {
                    block_on(store.watch().changed());
                }
            };
            together(&Store::default(), [look_first, |store| (0..CHANGES).for_each(|_| store.change())]);
        },
        "deadlock",
    );
}
