//! A key in a store, for tests and fuzzing to play with: what may happen to it, and what must hold of all that does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;

pub const NOW: Timestamp = Timestamp::from_micros(1_000_000_000);
pub const TTL: Duration = Duration::from_secs(10);
pub const RETENTION: Duration = Duration::from_secs(3_600);

pub fn begin_of(caller: u8) -> Begin {
    Begin {
        request_id: RequestId([caller; 16]),
        owner: format!("host-{caller}"),
        fingerprint: None,
        lock_ttl: TTL,
        retention: RETENTION,
        on_lapse: OnLapse::TakeOver,
    }
}

pub fn fingerprint(digest: &'static str) -> Option<Fingerprint> {
    Fingerprint::new(Bytes::from_static(digest.as_bytes()))
}

pub fn outcome(response: &'static str) -> Arc<Outcome> {
    Arc::new(Outcome {
        result: OutcomeResult::Response(Bytes::from_static(response.as_bytes())),
        content_type: "text/plain".to_owned(),
        metadata: [("by".to_owned(), "test".to_owned())].into(),
    })
}

pub fn checkpoint(sequence: u64, data: &'static str) -> Checkpoint {
    Checkpoint { sequence, data: Bytes::from_static(data.as_bytes()) }
}

pub fn complete(token: u64, response: &'static str) -> Command {
    Command::Complete { token: FencingToken(token), outcome: outcome(response), retention: None }
}

pub fn renew(token: u64, checkpoint: Option<Checkpoint>) -> Command {
    Command::Renew { token: FencingToken(token), checkpoint }
}

pub fn release(token: u64, disposition: Disposition) -> Command {
    Command::Release { token: FencingToken(token), disposition, reason: "asked to".to_owned() }
}

pub fn resolve(token: u64, resolution: Resolution) -> Command {
    Command::Resolve { token: FencingToken(token), resolution }
}

pub fn resolve_with(token: u64, response: &'static str) -> Command {
    resolve(token, Resolution::Outcome { outcome: outcome(response), retention: None })
}

pub fn delete(token: u64, force: bool) -> Command {
    Command::Delete { token: FencingToken(token), force }
}

/// What happens next. Tokens are chosen among those that were ever given out, or are made up.
#[derive(Clone, Debug)]
pub enum Step {
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
pub enum TokenChoice {
    Current,
    Earlier(usize),
    MadeUp(u64),
}

/// A key in a store, and what happened to it.
#[derive(Default)]
pub struct World {
    current: Option<(Record, bool)>,
    revision: u64,
    /// Every token that a write gave out, over all lives of the key.
    tokens: Vec<FencingToken>,
    /// The tokens under which a Complete or a Resolve stored an outcome, in this life of the key.
    completed_under: BTreeSet<FencingToken>,
}

impl World {
    pub fn seen(&self) -> Option<Seen<'_>> {
        let lock = |lapsed: bool| if lapsed { Lock::Lapsed } else { Lock::Held };
        self.current.as_ref().map(|(record, lapsed)| Seen { record, lock: lock(*lapsed) })
    }

    pub fn record(&self) -> Option<&Record> {
        self.current.as_ref().map(|(record, _)| record)
    }

    pub fn now(&self) -> Timestamp {
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
    pub fn command(&self, step: &Step) -> Option<Command> {
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
    pub fn apply(&mut self, command: &Command) -> Decision {
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

    /// Applies a command, and again as a caller does that lost the answer: that changes nothing.
    pub fn apply_twice(&mut self, command: &Command) {
        let first = self.apply(command);
        let once = but_for_the_lock(self.record());
        let again = self.apply(command);
        assert!(but_for_the_lock(self.record()) == once, "{command:?}: {first:?}, then {again:?}");
        // A Begin that wrote a lapse down is told of the doubt; all else that was accepted is so again.
        if is_accepted(&first) && !matches!(first, Decision::Write(Change::Doubt(_))) {
            assert!(is_accepted(&again), "{command:?}: {first:?}, then {again:?}");
        }
    }

    /// A Begin with another fingerprint than the record's is refused, whoever sends it.
    pub fn check_mismatch(&self) {
        let Some(theirs) = self.record().and_then(|record| record.fingerprint.clone()) else { return };
        for caller in 1..4 {
            let other = fingerprint("never stored");
            assert!(other.as_ref() != Some(&theirs));
            let begin = Command::Begin(Begin { fingerprint: other, ..begin_of(caller) });
            let decision = decide(&begin, self.seen(), self.now());
            assert_eq!(decision, Decision::Refuse(Refusal::FingerprintMismatch));
        }
    }

    /// A stale holder is refused, whatever happened since.
    pub fn check_stale(&self) {
        let current = self.record().map(|record| record.fencing_token);
        for stale in self.tokens.iter().filter(|token| Some(**token) != current) {
            let stale_calls = [
                complete(stale.0, "stale"),
                renew(stale.0, None),
                release(stale.0, Disposition::Retry),
                release(stale.0, Disposition::InDoubt),
            ];
            for command in stale_calls {
                let decision = decide(&command, self.seen(), self.now());
                assert!(matches!(decision, Decision::Refuse(_)), "{command:?}: {decision:?}");
            }
        }
    }

    /// Time passes: a lock lapses, or a record is not kept any longer.
    pub fn pass(&mut self, step: &Step) {
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

/// Plays a history of which every step is held against what must hold.
pub fn play(steps: &[Step]) {
    let mut world = World::default();
    for step in steps {
        match world.command(step) {
            None => world.pass(step),
            Some(command) => world.apply_twice(&command),
        }
        world.check_mismatch();
        world.check_stale();
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
