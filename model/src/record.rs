//! Records as the models keep them, and the product's own [`decide`](onced::record::decide) on them.
//!
//! A model compares and stores states by the million, so it keeps of a record what decisions rest on, in a few
//! bytes. Times are left out: `decide` never compares one. So are fingerprints, which the tables of
//! `src/record/tests` cover in every state.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onced::record as real;
use onced::record::{Lifetime, Lock, Timestamp};

pub use onced::record::Refusal;

use crate::fault::Fault;

/// A revision of the store. 0: none.
pub type Revision = u8;
/// A fencing token, which is a revision. 0: that of the very write that carries it.
pub type Token = u8;
/// A response, or what else Complete stored. 0: none.
pub type Outcome = u8;

/// What an operator says the outcome was.
pub const OPERATORS_OUTCOME: Outcome = 99;

/// The id of one attempt: the `nth` of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId {
    pub caller: u8,
    pub nth: u8,
}

impl RequestId {
    /// What the work of this attempt yields: unlike that of every other, so that a mix-up shows.
    pub fn outcome(self) -> Outcome {
        1 + 16 * self.caller + self.nth
    }
}

/// What is stored about the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Record {
    pub token: Token,
    pub request: RequestId,
    /// The sequence of the last checkpoint. 0: none.
    pub checkpoint: u8,
    pub state: State,
}

/// The state of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    InProgress { hold: bool },
    Released { spent: bool },
    InDoubt { lapsed: bool },
    Completed { outcome: Outcome, resolved_from: Token },
}

/// What somebody wants done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Command {
    Begin {
        request: RequestId,
        hold: bool,
    },
    Complete {
        token: Token,
        outcome: Outcome,
    },
    Renew {
        token: Token,
        checkpoint: u8,
    },
    Release {
        token: Token,
        how: How,
    },
    /// With no outcome: it may run again.
    Resolve {
        token: Token,
        outcome: Outcome,
    },
    Delete {
        token: Token,
    },
}

/// What a released claim leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum How {
    Retry,
    InDoubt,
    Unreceived,
}

/// What a command does to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Write(Change, Option<Record>),
    Unchanged,
    Wait,
    Refuse(Refusal),
}

/// What a write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Change {
    Claim,
    Resume,
    Doubt,
    Put,
    Remove,
}

/// The longest lock, and the shortest retention: a lifetime that forgot the lock would end within it.
const LOCK_TTL: Duration = real::limits::LOCK_TTL_MAX;
const RETENTION: Duration = real::limits::RETENTION_MIN;
const NOW: Timestamp = Timestamp::from_micros(0);

/// What the product decides, but for what `fault` changes of it.
pub fn decide(command: Command, current: Option<(Record, Lock)>, fault: Option<Fault>) -> Decision {
    // Who does not compare the token does to whatever is there what was asked to be done to something else.
    let ignores_token = matches!(
        (fault, command),
        (Some(Fault::CompleteWithoutToken), Command::Complete { .. })
            | (Some(Fault::DeleteWithoutToken), Command::Delete { .. })
            | (Some(Fault::ResolveWithoutToken), Command::Resolve { .. })
    );
    let mut asked = command;
    if let (true, Some(token), Some((there, _))) = (ignores_token, asked.token_mut(), current) {
        *token = there.token;
    }
    let completed = current.filter(|(there, _)| there.outcome().is_some());
    let current = match (fault, command, completed) {
        (Some(Fault::AnyOutcomeIsOwn), Command::Complete { .. }, Some(_)) => return Decision::Unchanged,
        (Some(Fault::OutcomeTakenOver), Command::Begin { .. }, Some((there, lock))) => {
            Some((Record { state: State::Released { spent: false }, ..there }, lock))
        }
        _ => current,
    };
    let record = current.map(|(record, lock)| (record.to_real(), lock));
    let seen = record.as_ref().map(|(record, lock)| real::Seen { record, lock: *lock });
    let mut decision = match real::decide(&asked.to_real(), seen, NOW) {
        real::Decision::Write(change) => {
            let name = match &change {
                real::Change::Claim(_) => Change::Claim,
                real::Change::Resume(_) => Change::Resume,
                real::Change::Doubt(_) => Change::Doubt,
                real::Change::Put(_) => Change::Put,
                real::Change::Remove => Change::Remove,
            };
            Decision::Write(name, change.into_next().as_ref().map(Record::of_real))
        }
        real::Decision::Unchanged => Decision::Unchanged,
        real::Decision::Wait => Decision::Wait,
        real::Decision::Refuse(refusal) => Decision::Refuse(refusal),
    };
    if let (Some(Fault::CheckpointWithoutSequence), Command::Renew { checkpoint, .. }) = (fault, command)
        && let Decision::Write(_, Some(next)) = &mut decision
    {
        next.checkpoint = checkpoint;
    }
    decision
}

impl Record {
    /// Whether writing it arms a lock.
    pub fn arms(&self) -> bool {
        matches!(self.state, State::InProgress { .. })
    }

    pub fn outcome(&self) -> Option<Outcome> {
        match self.state {
            State::Completed { outcome, .. } => Some(outcome),
            State::InProgress { .. } | State::Released { .. } | State::InDoubt { .. } => None,
        }
    }

    /// Whether the store may find that it has expired: by the product's own lifetime, which for a held record
    /// must be longer than its lock.
    pub fn may_expire(&self, lock: Lock) -> bool {
        let record = self.to_real();
        match record.lifetime() {
            Lifetime::Forever => false,
            Lifetime::AtLeast(kept) => {
                lock == Lock::Lapsed || record.lock_ttl().is_none_or(|ttl| kept <= ttl)
            }
        }
    }

    fn to_real(self) -> real::Record {
        real::Record {
            fencing_token: real::FencingToken(self.token.into()),
            // Counted for people: no decision rests on it.
            attempt: 1,
            request_id: request_id(self.request),
            owner: owner(self.request),
            fingerprint: None,
            checkpoint: checkpoint(self.checkpoint),
            began_at: NOW,
            retention: RETENTION,
            state: self.state.to_real(),
        }
    }

    fn of_real(record: &real::Record) -> Self {
        let [caller, nth, ..] = record.request_id.0;
        Self {
            token: small(record.fencing_token.0),
            request: RequestId { caller, nth },
            checkpoint: record.checkpoint.as_ref().map_or(0, |checkpoint| small(checkpoint.sequence)),
            state: State::of_real(&record.state),
        }
    }
}

impl State {
    fn to_real(self) -> real::State {
        match self {
            State::InProgress { hold } => {
                real::State::InProgress { lock_ttl: LOCK_TTL, on_lapse: on_lapse(hold), armed_at: NOW }
            }
            State::Released { spent } => {
                real::State::Released { since: NOW, reason: String::new(), request_spent: spent }
            }
            State::InDoubt { lapsed } => {
                let said = || real::DoubtCause::Release(String::new());
                let cause = if lapsed { real::DoubtCause::Lapse } else { said() };
                real::State::InDoubt { since: NOW, cause }
            }
            State::Completed { outcome, resolved_from } => {
                let resolved_from = (resolved_from != 0).then(|| real::FencingToken(resolved_from.into()));
                real::State::Completed { outcome: response(outcome), completed_at: NOW, resolved_from }
            }
        }
    }

    fn of_real(state: &real::State) -> Self {
        match state {
            real::State::InProgress { on_lapse, .. } => {
                State::InProgress { hold: *on_lapse == real::OnLapse::Hold }
            }
            real::State::Released { request_spent, .. } => State::Released { spent: *request_spent },
            real::State::InDoubt { cause, .. } => {
                State::InDoubt { lapsed: *cause == real::DoubtCause::Lapse }
            }
            real::State::Completed { outcome, resolved_from, .. } => State::Completed {
                outcome: response_byte(outcome),
                resolved_from: resolved_from.map_or(0, |token| small(token.0)),
            },
        }
    }
}

impl Command {
    /// The token it names. 0: none, it is a Begin.
    pub fn token(mut self) -> Token {
        self.token_mut().map_or(0, |token| *token)
    }

    pub fn token_mut(&mut self) -> Option<&mut Token> {
        match self {
            Command::Begin { .. } => None,
            Command::Complete { token, .. }
            | Command::Renew { token, .. }
            | Command::Release { token, .. }
            | Command::Resolve { token, .. }
            | Command::Delete { token } => Some(token),
        }
    }

    fn to_real(self) -> real::Command {
        let token = |token: Token| real::FencingToken(token.into());
        match self {
            Command::Begin { request, hold } => real::Command::Begin(real::Begin {
                request_id: request_id(request),
                owner: owner(request),
                fingerprint: None,
                lock_ttl: LOCK_TTL,
                retention: RETENTION,
                on_lapse: on_lapse(hold),
            }),
            Command::Complete { token: held, outcome } => {
                real::Command::Complete { token: token(held), outcome: response(outcome), retention: None }
            }
            Command::Renew { token: held, checkpoint: sequence } => {
                real::Command::Renew { token: token(held), checkpoint: checkpoint(sequence) }
            }
            Command::Release { token: held, how } => {
                let disposition = match how {
                    How::Retry => real::Disposition::Retry,
                    How::InDoubt => real::Disposition::InDoubt,
                    How::Unreceived => real::Disposition::Unreceived,
                };
                real::Command::Release { token: token(held), disposition, reason: String::new() }
            }
            Command::Resolve { token: doubt, outcome } => {
                let resolution = match outcome {
                    0 => real::Resolution::Retry,
                    outcome => real::Resolution::Outcome { outcome: response(outcome), retention: None },
                };
                real::Command::Resolve { token: token(doubt), resolution }
            }
            Command::Delete { token: seen } => real::Command::Delete { token: token(seen), force: false },
        }
    }
}

fn request_id(request: RequestId) -> real::RequestId {
    let mut bytes = [0; 16];
    [bytes[0], bytes[1]] = [request.caller, request.nth];
    real::RequestId(bytes)
}

fn owner(request: RequestId) -> String {
    char::from(b'A' + request.caller).into()
}

fn on_lapse(hold: bool) -> real::OnLapse {
    if hold { real::OnLapse::Hold } else { real::OnLapse::TakeOver }
}

fn checkpoint(sequence: u8) -> Option<real::Checkpoint> {
    (sequence != 0).then(|| real::Checkpoint { sequence: sequence.into(), data: Bytes::new() })
}

fn response(outcome: Outcome) -> Arc<real::Outcome> {
    Arc::new(real::Outcome {
        result: real::OutcomeResult::Response(Bytes::copy_from_slice(&[outcome])),
        content_type: String::new(),
        metadata: Default::default(),
    })
}

fn response_byte(outcome: &real::Outcome) -> Outcome {
    match &outcome.result {
        real::OutcomeResult::Response(bytes) => bytes.first().copied().unwrap_or(0),
        real::OutcomeResult::Error { .. } => 0,
    }
}

/// A number that a model gave out, and so is small.
fn small(number: u64) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}
