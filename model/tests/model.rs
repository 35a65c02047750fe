//! Every model at its small size, in all of its states; and every fault, found.

#![allow(clippy::expect_used)] // It is all test.

use std::collections::{BTreeMap, BTreeSet};

use onced_model::fault::Fault;
use onced_model::suite::{Size, Subject, subjects};

fn subject(name: &str) -> Subject {
    subjects(Size::Small).into_iter().find(|subject| subject.name == name).expect("a model of this name")
}

fn keeps_its_promises(name: &str) {
    let figures = subject(name).check(1, |_, _| ());
    println!("{name:<12} {figures}");
    assert_eq!(figures.broken, None, "{name}");
    assert!(figures.missing.is_empty(), "{name} never saw: {:?}", figures.missing);
}

macro_rules! models {
    ($($test:ident: $name:literal,)*) => {
        $(#[test]
        fn $test() {
            keeps_its_promises($name);
        })*

        #[test]
        fn every_model_has_its_test() {
            let tested = BTreeSet::from([$($name),*]);
            assert_eq!(tested, subjects(Size::Small).iter().map(|subject| subject.name).collect());
        }
    };
}

models! {
    callers_whose_locks_are_all_held_get_what_is_promised: "unlapsed",
    callers_get_what_is_promised: "claims",
    servers_that_guess_keep_what_is_promised: "guesses",
    callers_who_release_get_what_is_promised: "releases",
    callers_of_held_records_get_what_is_promised: "hold",
    checkpoints_never_go_back: "checkpoints",
    operators_act_on_what_they_saw: "operators",
    rooms_share_reads_that_are_fresh: "rooms",
    batches_decide_each_write_for_itself: "batches",
    restarts_shorten_no_lock_and_lose_no_outcome: "restarts",
}

#[test]
fn every_planted_fault_breaks_the_promise_that_it_is_planted_against() {
    for &fault in Fault::ALL {
        let (name, promise) = (fault.found_by(), fault.breaks());
        let figures = subject(name).with(fault).check(1, |_, _| ());
        println!("{:<26} {name:<12} {:>7} states", format!("{fault:?}"), figures.states);
        let (broken, path) =
            figures.broken.unwrap_or_else(|| panic!("in {name}, {fault:?} does not break: {promise}"));
        println!("    {broken}, after {} steps:\n      {}", path.len(), path.join("\n      "));
        assert_eq!(broken, promise);
    }
}

/// A promise that nothing can break says nothing. Models of one kind share theirs.
#[test]
fn every_promise_is_broken_by_a_planted_fault() {
    let mut broken = BTreeMap::<_, BTreeSet<_>>::new();
    for fault in Fault::ALL {
        broken.entry(subject(fault.found_by()).promises()).or_default().insert(fault.breaks());
    }
    for subject in subjects(Size::Small) {
        let promises = subject.promises();
        assert_eq!(broken.get(&promises), Some(&promises.into_iter().collect()), "{}", subject.name);
    }
}
