//! Simulations of the whole service: servers as they are, the etcd client as it is, and an etcd in memory, on a network
//! and a time of their own. A seed decides what callers do and what goes wrong, and what they saw is held against the
//! specification. A seed plays the same each time; a failed one is told with the command that plays it again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod caller;
mod chaos;
#[path = "../shared/fake_etcd/mod.rs"]
mod fake_etcd;
mod net;
mod panics;
#[path = "../shared/recorded.rs"]
mod recorded;
#[path = "../shared/rounds.rs"]
mod rounds;
mod scene;
mod weather;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use onced_history::Totals;
use scene::Story;
use weather::Counts;

/// How many seeds are played.
const SEEDS: usize = 400;
/// After how many that failed it is enough.
const FAILED_MAX: usize = 3;

/// What came of all seeds.
#[derive(Default)]
struct Sum {
    played: usize,
    totals: Totals,
    faults: Counts,
    failed: Vec<u64>,
}

impl Sum {
    fn count(&mut self, seed: u64, story: Result<Story, String>) {
        self.played += 1;
        let verdict = story.and_then(|story| {
            story.faults.iter().for_each(|(name, count)| *self.faults.entry(name).or_default() += count);
            story.verdict
        });
        match verdict {
            Ok(totals) => self.totals += totals,
            Err(wrong) => {
                // At once: a run that is cut off has told it.
                println!("seed {seed}, after {} others: {wrong}\n{}\n", self.played - 1, replay(seed));
                self.failed.push(seed);
            }
        }
    }
}

/// Where to begin: `ONCED_SIM_SEED`, else 0.
fn first_seed() -> u64 {
    std::env::var("ONCED_SIM_SEED").map_or(0, |seed| seed.parse().expect("a number"))
}

fn replay(seed: u64) -> String {
    format!("play it again: ONCED_SIM_SEED={seed} cargo test --test sim one_seed -- --nocapture")
}

#[test]
fn no_seed_breaks_a_promise() {
    let first = first_seed();
    let seeds = first + u64::try_from(rounds::rounds(SEEDS)).unwrap();
    let next = AtomicU64::new(first);
    let sum = Mutex::new(Sum::default());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                while sum.lock().unwrap().failed.len() < FAILED_MAX {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let story = play(seed);
                    sum.lock().unwrap().count(seed, story);
                }
            });
        }
    });
    let Sum { played, totals, faults, failed } = sum.into_inner().unwrap();
    println!("{played} seeds from {first} on: {totals:?}");
    faults.iter().for_each(|(name, count)| println!("{count:>9} {name}"));
    assert!(failed.is_empty(), "seeds that failed, each told above: {failed:?}");
    totals.shows_enough().unwrap();
    assert!(totals.waited > 0 && totals.updates > 0, "{totals:?}");
    let unmet: Vec<_> =
        chaos::NAMES.iter().chain(weather::NAMES).filter(|name| !faults.contains_key(*name)).collect();
    assert!(unmet.is_empty(), "faults that were never met: {unmet:?}");
}

/// Plays the seed of `ONCED_SIM_SEED`, and shows what callers saw.
#[test]
fn one_seed_plays_the_same_each_time() {
    let seed = first_seed();
    let [story, again] =
        [play(seed), play(seed)].map(|story| story.unwrap_or_else(|wrong| panic!("{wrong}")));
    for operation in story.history.operations().values().flatten() {
        println!("{operation}");
    }
    println!("{:?}", story.faults);
    assert_eq!(story.digest, again.digest, "it did not play the same twice");
    let totals = story.verdict.unwrap_or_else(|wrong| panic!("{wrong}\n{}", replay(seed)));
    println!("{totals:?}");
}

fn play(seed: u64) -> Result<Story, String> {
    panics::none_in(|| scene::play(seed))
}
