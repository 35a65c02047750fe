//! What holds after any sequence of commands, lapses and expiries.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn token_choice() -> impl Strategy<Value = TokenChoice> {
    prop_oneof![
        5 => Just(TokenChoice::Current),
        2 => (0_usize..8).prop_map(TokenChoice::Earlier),
        1 => (1_u64..60).prop_map(TokenChoice::MadeUp),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let response = || prop_oneof![Just("one"), Just("two")];
    let disposition =
        prop_oneof![Just(Disposition::Retry), Just(Disposition::InDoubt), Just(Disposition::Unreceived)];
    let fingerprint = prop_oneof![3 => Just(None), 1 => Just(Some("red")), 1 => Just(Some("blue"))];
    prop_oneof![
        8 => (1_u8..4, fingerprint, any::<bool>())
            .prop_map(|(caller, fingerprint, hold)| Step::Begin { caller, fingerprint, hold }),
        3 => (token_choice(), response()).prop_map(|(token, response)| Step::Complete { token, response }),
        3 => (token_choice(), proptest::option::of(1_u64..5))
            .prop_map(|(token, checkpoint)| Step::Renew { token, checkpoint }),
        3 => (token_choice(), disposition)
            .prop_map(|(token, disposition)| Step::Release { token, disposition }),
        2 => (token_choice(), proptest::option::of(response()))
            .prop_map(|(token, response)| Step::Resolve { token, response }),
        1 => (token_choice(), any::<bool>()).prop_map(|(token, force)| Step::Delete { token, force }),
        6 => Just(Step::Lapse),
        1 => Just(Step::Expire),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

    #[test]
    fn tokens_attempts_outcomes_and_fingerprints_hold_in_every_history(steps in vec(step(), 1..60)) {
        let mut world = World::default();
        for step in &steps {
            match world.command(step) {
                None => world.pass(step),
                Some(command) => { world.apply(&command); }
            }
            world.check_mismatch();
        }
    }

    #[test]
    fn repeating_any_command_changes_nothing(steps in vec(step(), 1..60)) {
        let mut world = World::default();
        for step in &steps {
            match world.command(step) {
                None => world.pass(step),
                Some(command) => world.apply_twice(&command),
            }
        }
    }

    #[test]
    fn a_stale_holder_is_refused_whatever_happened_since(steps in vec(step(), 1..60)) {
        let mut world = World::default();
        for step in &steps {
            match world.command(step) {
                None => world.pass(step),
                Some(command) => { world.apply(&command); }
            }
            world.check_stale();
        }
    }
}

#[test]
fn the_histories_are_not_empty() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    let (mut completed, mut taken_over, mut resumed, mut doubted, mut resolved) = (0, 0, 0, 0, 0);
    let mut runner = TestRunner::deterministic();
    for _ in 0..300 {
        let steps = vec(step(), 60).new_tree(&mut runner).expect("a history").current();
        let mut world = World::default();
        for step in &steps {
            let Some(command) = world.command(step) else {
                world.pass(step);
                continue;
            };
            match (world.apply(&command), &command) {
                (Decision::Write(Change::Claim(record)), _) if record.attempt > 1 => taken_over += 1,
                (Decision::Write(Change::Resume(_)), _) => resumed += 1,
                (Decision::Write(Change::Doubt(_)), _) => doubted += 1,
                (Decision::Write(Change::Put(_)), Command::Complete { .. }) => completed += 1,
                (Decision::Write(Change::Put(_)), Command::Resolve { .. }) => resolved += 1,
                _ => {}
            }
        }
    }
    for (what, count) in [
        ("completed", completed),
        ("taken over", taken_over),
        ("resumed", resumed),
        ("doubted", doubted),
        ("resolved", resolved),
    ] {
        assert!(count >= 50, "{what}: {count}");
    }
}
