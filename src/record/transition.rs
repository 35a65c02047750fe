//! The state machine: what a command does to a record. Pure: whether a lock has lapsed is an input, decided
//! by the store, and so is the time, which is only ever written down.

use std::sync::Arc;
use std::time::Duration;

use super::state::{
    Checkpoint, DoubtCause, FencingToken, Fingerprint, OnLapse, Outcome, Record, RequestId, State, Timestamp,
};

/// Whether the lock of a record in progress is held. A lapse is for ever, of that revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Held; also for records that have no lock.
    Held,
    /// Lapsed.
    Lapsed,
}

/// A record as a store read it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The record.
    pub record: &'a Record,
    /// Its lock.
    pub lock: Lock,
}

/// What somebody wants done to a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A caller asks for the claim.
    Begin(Begin),
    /// A holder stores the outcome.
    Complete {
        /// The holder's token.
        token: FencingToken,
        /// The outcome.
        outcome: Arc<Outcome>,
        /// How long to keep it; `None`: as Begin asked.
        retention: Option<Duration>,
    },
    /// A holder arms its lock again.
    Renew {
        /// The holder's token.
        token: FencingToken,
        /// A checkpoint to save in the same write.
        checkpoint: Option<Checkpoint>,
    },
    /// A holder gives its claim back.
    Release {
        /// The holder's token.
        token: FencingToken,
        /// What it leaves behind.
        disposition: Disposition,
        /// Why.
        reason: String,
    },
    /// An operator settles a record in doubt.
    Resolve {
        /// The token of the doubt.
        token: FencingToken,
        /// What becomes of it.
        resolution: Resolution,
    },
    /// An operator removes a record.
    Delete {
        /// The token of the record.
        token: FencingToken,
        /// Whether to remove it while its lock is held.
        force: bool,
    },
}

/// A caller's wish for the claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The caller's id for this attempt.
    pub request_id: RequestId,
    /// Who asks.
    pub owner: String,
    /// A digest of the request.
    pub fingerprint: Option<Fingerprint>,
    /// How long the claim lives without a Renew.
    pub lock_ttl: Duration,
    /// How long the record is kept after its last change.
    pub retention: Duration,
    /// What becomes of the claim if it lapses.
    pub on_lapse: OnLapse,
}

/// What a released claim leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Safe to run again.
    Retry,
    /// Nobody may run it until it is resolved.
    InDoubt,
    /// The server gives back a claim that nobody received: safe to run again, and the request id stays unspent.
    Unreceived,
}

/// What becomes of a record in doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The next Begin runs it again.
    Retry,
    /// Every duplicate gets this outcome.
    Outcome {
        /// The outcome.
        outcome: Arc<Outcome>,
        /// How long to keep it; `None`: as Begin asked.
        retention: Option<Duration>,
    },
}

/// What a command does to a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write this, expecting the record as it was seen.
    Write(Change),
    /// The record is as the command wants it. For Begin: replay the outcome.
    Unchanged,
    /// Begin only: somebody else has the key, or it is in doubt.
    Wait,
    /// The command is refused.
    Refuse(Refusal),
}

/// A write that a command asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new claim.
    Claim(Record),
    /// The same claim again, its lock armed again.
    Resume(Record),
    /// The lapse of a HOLD claim is written down. The command is then decided anew.
    Doubt(Record),
    /// What a holder or an operator asked for.
    Put(Record),
    /// The record is removed.
    Remove,
}

impl Change {
    /// The record to write; `None`: none.
    pub fn into_next(self) -> Option<Record> {
        match self {
            Change::Claim(next) | Change::Resume(next) | Change::Doubt(next) | Change::Put(next) => {
                Some(next)
            }
            Change::Remove => None,
        }
    }
}

/// Why a command is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The key was used for another request.
    FingerprintMismatch,
    /// The record is completed with another outcome.
    OutcomeConflict,
    /// The claim is no longer the caller's.
    ClaimLost,
    /// The request id was spent by a Release.
    RequestSpent,
    /// Delete without force, while the lock is held.
    ClaimHeld,
    /// There is no record.
    NotFound,
}

/// Decides what `command` does to a record, as DESIGN section 3 has it. `now` is written down, never compared.
pub fn decide(command: &Command, current: Option<Seen<'_>>, now: Timestamp) -> Decision {
    match (command, current) {
        (Command::Begin(begin), None) => Decision::Write(Change::Claim(claim(begin, None, now))),
        (Command::Begin(begin), Some(seen)) => decide_begin(begin, seen, now),
        (Command::Delete { .. }, None) => Decision::Unchanged,
        (_, None) => Decision::Refuse(Refusal::NotFound),
        (Command::Complete { token, outcome, retention }, Some(seen)) => {
            complete(*token, outcome, *retention, seen.record, now)
        }
        (Command::Renew { token, checkpoint }, Some(seen)) => {
            renew(*token, checkpoint.as_ref(), seen.record, now)
        }
        (Command::Release { token, disposition, reason }, Some(seen)) => {
            release(*token, *disposition, reason, seen.record, now)
        }
        (Command::Resolve { token, resolution }, Some(seen)) => resolve(*token, resolution, seen, now),
        (Command::Delete { token, force }, Some(seen)) => delete(*token, *force, seen),
    }
}

fn decide_begin(begin: &Begin, seen: Seen<'_>, now: Timestamp) -> Decision {
    let record = seen.record;
    if let (Some(theirs), Some(ours)) = (&record.fingerprint, &begin.fingerprint)
        && theirs != ours
    {
        return Decision::Refuse(Refusal::FingerprintMismatch);
    }
    let same_caller = record.request_id == begin.request_id && record.owner == begin.owner;
    match &record.state {
        State::InProgress { .. } if same_caller => {
            Decision::Write(Change::Resume(resume(begin, record, now)))
        }
        State::InProgress { on_lapse, .. } => match (seen.lock, on_lapse) {
            (Lock::Held, _) => Decision::Wait,
            (Lock::Lapsed, OnLapse::TakeOver) => {
                Decision::Write(Change::Claim(claim(begin, Some(record), now)))
            }
            (Lock::Lapsed, OnLapse::Hold) => {
                let state = State::InDoubt { since: now, cause: DoubtCause::Lapse };
                Decision::Write(Change::Doubt(with_fingerprint(begin, Record { state, ..record.clone() })))
            }
        },
        State::Released { request_spent: true, .. } if same_caller => Decision::Refuse(Refusal::RequestSpent),
        State::Released { .. } => Decision::Write(Change::Claim(claim(begin, Some(record), now))),
        State::InDoubt { .. } => Decision::Wait,
        State::Completed { .. } => Decision::Unchanged,
    }
}

/// A new claim, on what `before` left: the fingerprint and the checkpoint outlive their claims.
fn claim(begin: &Begin, before: Option<&Record>, now: Timestamp) -> Record {
    Record {
        fencing_token: FencingToken::THIS_WRITE,
        attempt: before.map_or(0, |record| record.attempt).saturating_add(1),
        request_id: begin.request_id,
        owner: begin.owner.clone(),
        fingerprint: before
            .and_then(|record| record.fingerprint.clone())
            .or_else(|| begin.fingerprint.clone()),
        checkpoint: before.and_then(|record| record.checkpoint.clone()),
        began_at: now,
        retention: begin.retention,
        state: State::InProgress { lock_ttl: begin.lock_ttl, on_lapse: begin.on_lapse, armed_at: now },
    }
}

fn resume(begin: &Begin, record: &Record, now: Timestamp) -> Record {
    with_fingerprint(begin, Record { state: armed(&record.state, now), ..record.clone() })
}

/// The first write that has a fingerprint stores it.
fn with_fingerprint(begin: &Begin, record: Record) -> Record {
    let fingerprint = record.fingerprint.or_else(|| begin.fingerprint.clone());
    Record { fingerprint, ..record }
}

/// A state in progress with its lock armed at `now`; any other as it is.
fn armed(state: &State, now: Timestamp) -> State {
    match state {
        State::InProgress { lock_ttl, on_lapse, .. } => {
            State::InProgress { lock_ttl: *lock_ttl, on_lapse: *on_lapse, armed_at: now }
        }
        State::Released { .. } | State::InDoubt { .. } | State::Completed { .. } => state.clone(),
    }
}

fn complete(
    token: FencingToken,
    outcome: &Arc<Outcome>,
    retention: Option<Duration>,
    record: &Record,
    now: Timestamp,
) -> Decision {
    if record.fencing_token != token {
        return Decision::Refuse(Refusal::ClaimLost);
    }
    match &record.state {
        State::InProgress { .. } | State::InDoubt { .. } | State::Released { .. } => {
            Decision::Write(Change::Put(completed(outcome, retention, None, record, now)))
        }
        State::Completed { outcome: stored, .. } if stored == outcome => Decision::Unchanged,
        State::Completed { .. } => Decision::Refuse(Refusal::OutcomeConflict),
    }
}

fn completed(
    outcome: &Arc<Outcome>,
    retention: Option<Duration>,
    resolved_from: Option<FencingToken>,
    record: &Record,
    now: Timestamp,
) -> Record {
    Record {
        checkpoint: None,
        retention: retention.unwrap_or(record.retention),
        state: State::Completed { outcome: Arc::clone(outcome), completed_at: now, resolved_from },
        ..record.clone()
    }
}

fn renew(token: FencingToken, checkpoint: Option<&Checkpoint>, record: &Record, now: Timestamp) -> Decision {
    if record.fencing_token != token || !matches!(record.state, State::InProgress { .. }) {
        return Decision::Refuse(Refusal::ClaimLost);
    }
    // A stuck Renew must not bring an older checkpoint back.
    let newer = checkpoint
        .filter(|sent| record.checkpoint.as_ref().is_none_or(|stored| sent.sequence > stored.sequence));
    Decision::Write(Change::Put(Record {
        checkpoint: newer.or(record.checkpoint.as_ref()).cloned(),
        state: armed(&record.state, now),
        ..record.clone()
    }))
}

fn release(
    token: FencingToken,
    disposition: Disposition,
    reason: &str,
    record: &Record,
    now: Timestamp,
) -> Decision {
    if record.fencing_token != token {
        return Decision::Refuse(Refusal::ClaimLost);
    }
    let released = |request_spent| State::Released { since: now, reason: reason.to_owned(), request_spent };
    let state = match (&record.state, disposition) {
        (State::InProgress { .. } | State::InDoubt { cause: DoubtCause::Lapse, .. }, Disposition::Retry) => {
            released(true)
        }
        (State::InProgress { .. }, Disposition::Unreceived) => released(false),
        (
            State::InProgress { .. } | State::InDoubt { cause: DoubtCause::Lapse, .. },
            Disposition::InDoubt,
        ) => State::InDoubt { since: now, cause: DoubtCause::Release(reason.to_owned()) },
        // Released by an operator, or unasked: its holder's own Release still spends the request id.
        (State::Released { since, reason, request_spent: false }, Disposition::Retry) => {
            State::Released { since: *since, reason: reason.clone(), request_spent: true }
        }
        (State::Released { .. }, Disposition::Retry | Disposition::Unreceived)
        | (State::InDoubt { cause: DoubtCause::Release(_), .. }, Disposition::InDoubt) => {
            return Decision::Unchanged;
        }
        (State::Released { .. }, Disposition::InDoubt)
        | (State::InDoubt { .. }, Disposition::Retry | Disposition::Unreceived)
        | (State::Completed { .. }, _) => return Decision::Refuse(Refusal::ClaimLost),
    };
    Decision::Write(Change::Put(Record { state, ..record.clone() }))
}

fn resolve(token: FencingToken, resolution: &Resolution, seen: Seen<'_>, now: Timestamp) -> Decision {
    let record = seen.record;
    // A settled doubt leaves its token behind, so that a repeated call is recognised.
    if let State::Completed { outcome: stored, resolved_from: Some(from), .. } = &record.state
        && *from == token
    {
        return match resolution {
            Resolution::Outcome { outcome, .. } if stored == outcome => Decision::Unchanged,
            Resolution::Outcome { .. } => Decision::Refuse(Refusal::OutcomeConflict),
            Resolution::Retry => Decision::Refuse(Refusal::ClaimLost),
        };
    }
    if record.fencing_token != token {
        return Decision::Refuse(Refusal::ClaimLost);
    }
    // A lapsed HOLD claim is in doubt, whether or not somebody has written it down yet.
    let request_spent = match (&record.state, seen.lock) {
        (State::InDoubt { cause, .. }, _) => matches!(cause, DoubtCause::Release(_)),
        (State::InProgress { on_lapse: OnLapse::Hold, .. }, Lock::Lapsed) => false,
        (State::Released { .. }, _) if *resolution == Resolution::Retry => return Decision::Unchanged,
        (State::InProgress { .. } | State::Released { .. } | State::Completed { .. }, _) => {
            return Decision::Refuse(Refusal::ClaimLost);
        }
    };
    Decision::Write(Change::Put(match resolution {
        Resolution::Retry => {
            let state =
                State::Released { since: now, reason: "resolved by an operator".to_owned(), request_spent };
            Record { state, ..record.clone() }
        }
        Resolution::Outcome { outcome, retention } => Record {
            fencing_token: FencingToken::THIS_WRITE,
            ..completed(outcome, *retention, Some(token), record, now)
        },
    }))
}

fn delete(token: FencingToken, force: bool, seen: Seen<'_>) -> Decision {
    if seen.record.fencing_token != token {
        return Decision::Refuse(Refusal::ClaimLost);
    }
    match (&seen.record.state, seen.lock) {
        (State::InProgress { .. }, Lock::Held) if !force => Decision::Refuse(Refusal::ClaimHeld),
        _ => Decision::Write(Change::Remove),
    }
}
