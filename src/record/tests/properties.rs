//! What holds after any sequence of commands, lapses and expiries.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What happens next. Tokens are chosen among those that were ever given out, or are made up.
#[derive(Clone, Debug)]
enum Step {
    Begin { caller: u8, fingerprint: Option<&'static str>, hold: bool },
    Complete { token: TokenChoice, response: &'static str },
    Renew { token: TokenChoice, checkpoint: Option<u64> },
    Release { token: TokenChoice, disposition: Disposition },
    Resolve { token: TokenChoice, response: Option<&'static str> },
    Delete { token: TokenChoice, force: bool },
    Lapse,
    Expire,
}

#[derive(Clone, Copy, Debug)]
enum TokenChoice {
    Current,
    Earlier(usize),
    MadeUp(u64),
}

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

/// A key in a store, and what happened to it.
#[derive(Default)]
struct World {
    current: Option<(Record, bool)>,
    revision: u64,
    /// Every token that a write gave out, over all lives of the key.
    tokens: Vec<FencingToken>,
    /// The tokens under which a Complete or a Resolve stored an outcome, in this life of the key.
    completed_under: BTreeSet<FencingToken>,
}

impl World {
    fn seen(&self) -> Option<Seen<'_>> {
        let lock = |lapsed: bool| if lapsed { Lock::Lapsed } else { Lock::Held };
        self.current.as_ref().map(|(record, lapsed)| Seen { record, lock: lock(*lapsed) })
    }

    fn record(&self) -> Option<&Record> {
        self.current.as_ref().map(|(record, _)| record)
    }

    fn now(&self) -> Timestamp {
        NOW.plus(Duration::from_secs(self.revision))
    }

    fn token(&self, choice: TokenChoice) -> u64 {
        match choice {
            TokenChoice::Current => self.record().map_or(1, |record| record.fencing_token.0),
            TokenChoice::Earlier(back) => self.tokens.iter().rev().nth(back).map_or(1, |token| token.0),
            TokenChoice::MadeUp(token) => token,
        }
    }

    /// The command of a step; `None` if it is the passing of time.
    fn command(&self, step: &Step) -> Option<Command> {
        Some(match *step {
            Step::Begin { caller, fingerprint: digest, hold } => Command::Begin(Begin {
                fingerprint: digest.and_then(fingerprint),
                on_lapse: if hold { OnLapse::Hold } else { OnLapse::TakeOver },
                ..begin_of(caller)
            }),
            Step::Complete { token, response } => complete(self.token(token), response),
            Step::Renew { token, checkpoint: sequence } => {
                renew(self.token(token), sequence.map(|sequence| checkpoint(sequence, "saved")))
            }
            Step::Release { token, disposition } => release(self.token(token), disposition),
            Step::Resolve { token, response: None } => resolve(self.token(token), Resolution::Retry),
            Step::Resolve { token, response: Some(response) } => resolve_with(self.token(token), response),
            Step::Delete { token, force } => delete(self.token(token), force),
            Step::Lapse | Step::Expire => return None,
        })
    }

    /// Decides, and writes what was decided: the swap that won.
    fn apply(&mut self, command: &Command) -> Decision {
        let decision = decide(command, self.seen(), self.now());
        if let Decision::Write(change) = &decision {
            self.revision += 1;
            let before = self.current.take().map(|(record, _)| record);
            let next = change.clone().into_next().map(|record| record.written_at(self.revision));
            self.check_write(command, change, before.as_ref(), next.as_ref());
            self.current = next.map(|record| (record, false));
        }
        decision
    }

    /// What must hold of every single write.
    fn check_write(
        &mut self,
        command: &Command,
        change: &Change,
        before: Option<&Record>,
        next: Option<&Record>,
    ) {
        let Some(next) = next else {
            self.completed_under.clear();
            return;
        };
        let highest = self.tokens.iter().max().copied();
        assert_ne!(next.fencing_token, FencingToken::THIS_WRITE);
        assert!(Some(next.fencing_token) >= highest, "a token went back");
        let is_new = Some(next.fencing_token) > highest;
        let resolves = matches!((command, &next.state), (Command::Resolve { .. }, State::Completed { .. }));
        assert_eq!(is_new, matches!(change, Change::Claim(_)) || resolves, "who gets a new token");
        if is_new {
            self.tokens.push(next.fencing_token);
        }

        let attempts_before = before.map_or(0, |record| record.attempt);
        let claims = u64::from(matches!(change, Change::Claim(_)));
        assert_eq!(next.attempt, attempts_before + claims, "an attempt is a claim");

        if let Some(before) = before {
            assert!(!matches!(before.state, State::Completed { .. }), "a completed record was written");
            if before.fingerprint.is_some() {
                assert!(next.fingerprint == before.fingerprint, "a fingerprint changed");
            }
            let sequence = |record: &Record| record.checkpoint.as_ref().map(|saved| saved.sequence);
            if !matches!(next.state, State::Completed { .. }) {
                assert!(sequence(next) >= sequence(before), "a checkpoint went back");
            }
        }
        if let (Command::Complete { token, .. }, State::Completed { .. }) = (command, &next.state) {
            assert_eq!(next.fencing_token, *token, "completed under a token that the holder did not name");
        }
        if matches!(next.state, State::Completed { .. }) {
            self.completed_under.insert(next.fencing_token);
        }
        assert!(self.completed_under.len() <= 1, "completed under two tokens");
        check_lifetime(next);
    }

    /// Time passes: a lock lapses, or a record is not kept any longer.
    fn pass(&mut self, step: &Step) {
        let expires = match (&self.current, step) {
            (Some((record, lapsed)), Step::Expire) => {
                // A store keeps a record for its lifetime, which outlives its lock.
                record.lifetime() != Lifetime::Forever && (*lapsed || record.lock_ttl().is_none())
            }
            _ => false,
        };
        if expires {
            self.current = None;
            self.completed_under.clear();
        } else if let (Some((record, lapsed)), Step::Lapse) = (&mut self.current, step) {
            *lapsed = record.lock_ttl().is_some();
        }
    }
}

/// Rule 6: held records don't expire.
fn check_lifetime(record: &Record) {
    let lifetime = record.lifetime();
    match &record.state {
        State::InProgress { on_lapse: OnLapse::Hold, .. } | State::InDoubt { .. } => {
            assert_eq!(lifetime, Lifetime::Forever);
        }
        State::InProgress { lock_ttl, .. } => {
            let Lifetime::AtLeast(kept) = lifetime else { panic!("kept for ever") };
            assert!(kept >= *lock_ttl + record.retention + limits::RETENTION_MARGIN);
        }
        State::Released { .. } | State::Completed { .. } => {
            let Lifetime::AtLeast(kept) = lifetime else { panic!("kept for ever") };
            assert!(kept >= record.retention + limits::RETENTION_MARGIN);
        }
    }
}

/// A record but for when its lock was armed: what a repeated command must leave as it is.
fn but_for_the_lock(record: Option<&Record>) -> Option<Record> {
    let mut record = record?.clone();
    if let State::InProgress { armed_at, .. } = &mut record.state {
        *armed_at = Timestamp::default();
    }
    Some(record)
}

fn is_accepted(decision: &Decision) -> bool {
    matches!(decision, Decision::Write(_) | Decision::Unchanged)
}

/// A Begin with another fingerprint than the record's is refused, whoever sends it.
fn check_mismatch(world: &World) {
    let Some(theirs) = world.record().and_then(|record| record.fingerprint.clone()) else { return };
    for caller in 1..4 {
        let other = fingerprint("never stored");
        assert!(other.as_ref() != Some(&theirs));
        let begin = Command::Begin(Begin { fingerprint: other, ..begin_of(caller) });
        assert_eq!(decide(&begin, world.seen(), world.now()), Decision::Refuse(Refusal::FingerprintMismatch));
    }
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
            check_mismatch(&world);
        }
    }

    #[test]
    fn repeating_any_command_changes_nothing(steps in vec(step(), 1..60)) {
        let mut world = World::default();
        for step in &steps {
            let Some(command) = world.command(step) else {
                world.pass(step);
                continue;
            };
            let first = world.apply(&command);
            let once = but_for_the_lock(world.record());
            let again = world.apply(&command);
            prop_assert!(but_for_the_lock(world.record()) == once, "{command:?}: {first:?}, then {again:?}");
            // A Begin that wrote a lapse down is told of the doubt; all else that was accepted is so again.
            if is_accepted(&first) && !matches!(first, Decision::Write(Change::Doubt(_))) {
                prop_assert!(is_accepted(&again), "{command:?}: {first:?}, then {again:?}");
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
            let current = world.record().map(|record| record.fencing_token);
            for stale in world.tokens.iter().filter(|token| Some(**token) != current) {
                let stale_calls = [
                    complete(stale.0, "stale"),
                    renew(stale.0, None),
                    release(stale.0, Disposition::Retry),
                    release(stale.0, Disposition::InDoubt),
                ];
                for command in stale_calls {
                    let decision = decide(&command, world.seen(), world.now());
                    prop_assert!(matches!(decision, Decision::Refuse(_)), "{command:?}: {decision:?}");
                }
            }
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
