//! No hint is lost, in whatever order threads run. The hub, the lapses of the etcd store and the alarms of the
//! embedded store are compiled here once more, with mutexes at which another thread may go on instead. In which order
//! they do is chosen anew each time. Whoever then waits for ever fails the test, which tells how to replay that.
//!
//! `ONCED_TEST_ROUNDS` says how many schedules each test tries.

#![allow(clippy::duplicate_mod)] // That is how.

#[path = "../hub.rs"]
mod hub;

/// Of the etcd store.
mod etcd {
    #[path = "../../etcd/lapses.rs"]
    mod lapses;
    mod lapses_tests;
}

/// Of the embedded store.
mod embedded {
    #[path = "../../embedded/alarms.rs"]
    #[allow(dead_code)] // Nothing rings here.
    mod alarms;
    mod alarms_tests;
}

/// What stands in place of `store::sync`.
mod sync {
    pub(super) use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
}

mod hub_tests;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};

use crate::record::{Key, Namespace, RecordKey};

/// How many schedules a test tries.
const SCHEDULES: usize = 10_000;
/// At how few points an order has to be the wrong one to be found soon.
const DEPTH: usize = 3;

/// Tries a scene in many schedules: half of them entirely random, half of them such that few switches matter.
fn in_every_order(scene: fn()) {
    let rounds = std::env::var("ONCED_TEST_ROUNDS");
    let schedules = rounds.map_or(SCHEDULES, |rounds| rounds.parse().expect("a number"));
    try_orders(RandomScheduler::new(schedules / 2), scene);
    try_orders(PctScheduler::new(DEPTH, schedules - schedules / 2), scene);
}

fn try_orders(scheduler: impl Scheduler + 'static, scene: fn()) {
    shuttle::Runner::new(scheduler, shuttle::Config::default()).run(scene);
}

/// Expects that some schedule makes the scene fail: that is how one knows that the others would be found.
fn fails_in_some_order(scene: fn(), why: &str) {
    let failed =
        std::panic::catch_unwind(|| in_every_order(scene)).expect_err("no schedule was the wrong one");
    let told = failed.downcast::<String>().expect("a text");
    assert!(told.contains(why), "{told}");
}

fn key() -> RecordKey {
    RecordKey { namespace: Namespace::new("n").unwrap(), key: Key::new("k").unwrap() }
}
