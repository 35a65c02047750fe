//! The whole API against a reference: sequences of calls to two servers on one store, every answer compared with
//! what the design says of it. A sequence that fails is made as short as can be, and told with its seed.
//!
//! `ONCED_TEST_ROUNDS` says how many sequences there are, `ONCED_TEST_SEED` where their seeds begin.

mod answers;
mod commands;
mod rules;
mod seen;
mod service;
mod table;

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use proptest_state_machine::ReferenceStateMachine;

use crate::support::rounds::rounds;
use commands::Step;
use seen::Seen;
use service::{Sequence, Service};
use table::Table;

/// How many steps a sequence has.
const STEPS: std::ops::RangeInclusive<usize> = 10..=40;
/// How often a sequence that fails is tried in a shorter form.
const SHRINKS: u32 = 2_000;
/// How many sequences run at once, each on servers of its own.
const WORKERS: usize = 2;

#[test]
fn every_answer_on_the_embedded_store_is_that_of_the_reference() {
    run("the_embedded_store", 1_700, Service::on_embedded);
}

#[test]
fn every_answer_on_etcd_is_that_of_the_reference() {
    run("etcd", 300, Service::on_etcd);
}

fn run(name: &str, usual: usize, start: impl AsyncFn() -> Service + Sync) {
    let seed = std::env::var("ONCED_TEST_SEED").map(|seed| seed.parse().expect("a number"));
    let first = seed.unwrap_or_else(|_| fastrand::u64(..1 << 48));
    let sequences = rounds(usual) as u64;
    let last = first + sequences;
    let next = AtomicU64::new(first);
    let work =
        || work(name, &start, || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < last));
    let mut seen = Seen::default();
    std::thread::scope(|scope| {
        let workers = [(); WORKERS].map(|()| scope.spawn(work));
        for worker in workers {
            match worker.join().expect("no panic") {
                Ok(by_one) => seen.add(by_one),
                Err(failure) => panic!("{failure}"),
            }
        }
    });
    println!("{sequences} sequences on {name} from seed {first}, {} commands", seen.commands());
    seen.assert_not_empty();
}

/// Takes one seed after the other, on a service of its own. The sequence that fails, if one does, is told in words.
fn work(
    name: &str,
    start: &impl AsyncFn() -> Service,
    next_seed: impl Fn() -> Option<u64>,
) -> Result<Seen, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let service = RefCell::new(runtime.block_on(start()));
    let (seen, tries) = (RefCell::new(Seen::default()), Cell::new(0));
    while let Some(seed) = next_seed() {
        let ran = runner(seed).run(&Table::sequential_strategy(STEPS), |(mut table, steps, reached)| {
            let mut service = service.borrow_mut();
            tries.set(tries.get() + 1);
            table.rearms = service.rearms();
            let mut sequence = Sequence::new(&mut service, format!("{name}-{}", tries.get()));
            for step in &steps {
                // What was not reached is left out first when the sequence is made shorter.
                if let Some(reached) = &reached {
                    reached.fetch_add(1, Ordering::Relaxed);
                }
                table = Table::apply(table, step);
                let taken = table.last.as_ref().expect("a step was taken");
                seen.borrow_mut().note(taken);
                runtime.block_on(sequence.take(step, taken))?;
            }
            Ok(())
        });
        match ran {
            Ok(()) => {}
            Err(TestError::Fail(reason, (_, steps, _))) => return Err(told(name, seed, &reason, &steps)),
            Err(TestError::Abort(reason)) => return Err(format!("seed {seed}: {reason}")),
        }
    }
    Ok(seen.into_inner())
}

fn runner(seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config =
        Config { cases: 1, failure_persistence: None, max_shrink_iters: SHRINKS, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

fn told(name: &str, seed: u64, reason: &dyn std::fmt::Display, steps: &[Step]) -> String {
    let mut told = format!("seed {seed}: {reason}\nafter\n");
    for step in steps {
        writeln!(told, "  {step:?}").expect("writes to a string");
    }
    let test = format!("cargo test --test it on_{name}_is_that_of_the_reference");
    told + &format!("to run it again: ONCED_TEST_SEED={seed} ONCED_TEST_ROUNDS=1 {test}")
}
