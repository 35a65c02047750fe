//! Histories as the specification makes them: callers that come at the same time, whose calls get lost, land late
//! or twice. They have to pass; with one answer changed, most must not.

use std::time::Instant;

use fastrand::Rng;
use onced_history::{Answer, Bounds, Checkpoint, History, Operation, Totals};

use crate::story::{history_of, seconds};
use crate::world::{Faults, World};

/// How many histories are made of each kind. `ONCED_TEST_ROUNDS` says how many times that.
const HISTORIES: u64 = 40;
/// The share of changed answers that must be found, in percent; the others can have been.
const FOUND_MIN: usize = 80;

fn histories() -> u64 {
    let rounds = std::env::var("ONCED_TEST_ROUNDS").map_or(1, |rounds| rounds.parse().expect("a number"));
    rounds * HISTORIES
}

fn check(history: &History) -> Result<Totals, Box<onced_history::Wrong>> {
    history.check(&Bounds { points_max: 30_000, ..Bounds::until(seconds(100_000)) })
}

fn made(seed: u64, faults: Faults) -> Vec<Operation> {
    World::new(seed, faults).run()
}

#[test]
#[allow(clippy::disallowed_methods)] // The time is printed, and nothing rests on it.
fn what_the_specification_makes_passes() {
    for faults in [Faults::NONE, Faults::SOME, Faults::MANY] {
        let (mut sum, mut longest) = (Totals::default(), std::time::Duration::ZERO);
        for seed in 0..histories() {
            let operations = made(seed, faults);
            let begun = Instant::now();
            sum += check(&history_of(&operations)).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
            longest = longest.max(begun.elapsed());
        }
        println!("{faults:?}: {sum:?}; the longest check took {longest:.1?}");
        assert!(sum.takeovers > 0 && sum.refused > 0 && sum.claims > 300, "{sum:?}");
        assert!(faults == Faults::NONE || sum.recovered > 30, "{sum:?}");
    }
}

#[test]
fn most_changes_of_one_answer_are_found() {
    for faults in [Faults::NONE, Faults::SOME, Faults::MANY] {
        let (mut found, mut undecided, mut missed) = (0, 0, Vec::new());
        for seed in 0..histories() {
            let mut operations = made(seed, faults);
            let mut rng = Rng::with_seed(seed);
            let changed = change_one(&mut operations, &mut rng);
            match check(&history_of(&operations)) {
                Err(wrong) if !wrong.violations.is_empty() => found += 1,
                Err(_) => undecided += 1,
                Ok(_) => missed.push(changed),
            }
        }
        let share = 100 * found / usize::try_from(histories()).unwrap();
        println!("{faults:?}: {share} % found, {undecided} undecided, not found:\n{}", missed.join("\n"));
        assert!(share >= FOUND_MIN, "{share} %");
    }
}

/// Changes the answer of one operation; tells how.
fn change_one(operations: &mut [Operation], rng: &mut Rng) -> String {
    let answered: Vec<usize> = (0..operations.len()).filter(|&i| operations[i].answer.is_some()).collect();
    let operation = &mut operations[answered[rng.usize(..answered.len())]];
    let was = operation.to_string();
    let answer = operation.answer.take().unwrap();
    let mut changed = answer.clone();
    while changed == answer {
        changed = change(answer.clone(), rng);
    }
    let what = format!("  {was}; changed to: {changed}");
    operation.answer = Some(changed);
    what
}

fn change(answer: Answer, rng: &mut Rng) -> Answer {
    match answer {
        Answer::Claim(mut claim) => {
            match rng.u8(..7) {
                0 => claim.token += 1,
                1 => claim.token -= 1,
                2 => claim.attempt += 1,
                3 => claim.resumed = !claim.resumed,
                4 => claim.lock_ttl *= 2,
                5 => claim.waited += claim.lock_ttl,
                _ => claim.checkpoint = Some(Checkpoint { sequence: 999, data: "other".into() }),
            }
            Answer::Claim(claim)
        }
        Answer::Completed { mut token, mut attempt, mut owner, mut outcome } => {
            match rng.u8(..5) {
                0 => token += 1,
                1 => attempt += 1,
                2 => owner = "other".into(),
                3 => return Answer::NotFound,
                _ => outcome = "other".into(),
            }
            Answer::Completed { token, attempt, owner, outcome }
        }
        Answer::InProgress { attempt, owner } => match rng.u8(..4) {
            0 => Answer::InProgress { attempt: attempt + 1, owner },
            1 => Answer::InProgress { attempt, owner: "other".into() },
            2 => Answer::NotFound,
            _ => Answer::FingerprintMismatch,
        },
        Answer::InDoubt { token, attempt, owner } => match rng.u8(..3) {
            0 => Answer::InDoubt { token: token + 1, attempt, owner },
            1 => Answer::InDoubt { token, attempt: attempt + 1, owner },
            _ => Answer::InProgress { attempt, owner },
        },
        Answer::Available { attempt, owner } => match rng.u8(..3) {
            0 => Answer::Available { attempt: attempt + 1, owner },
            1 => Answer::Available { attempt, owner: "other".into() },
            _ => Answer::NotFound,
        },
        Answer::Stored { repeated } => match rng.u8(..3) {
            0 => Answer::Stored { repeated: !repeated },
            1 => Answer::ClaimLost,
            _ => Answer::OutcomeConflict,
        },
        Answer::Renewed { lock_ttl } if rng.bool() => Answer::Renewed { lock_ttl: lock_ttl * 2 },
        Answer::Renewed { .. } | Answer::Ok | Answer::OutcomeConflict | Answer::ClaimHeld => {
            Answer::ClaimLost
        }
        Answer::NotFound => Answer::InProgress { attempt: 1, owner: "other".into() },
        Answer::FingerprintMismatch | Answer::ClaimLost => Answer::Ok,
    }
}
