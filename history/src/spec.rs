//! What a record is and what each call does to it, written from the design's table of states and not from the
//! server's code: one call at a time, nothing lost, nothing late.
//!
//! Three things happen to a record without being asked for: its lock lapses, it expires, and a server gives a
//! claim back that nobody received. Of lapse and expiry the design promises only when they come at the
//! earliest, so here they are steps that may be taken from then on, or never.

use std::fmt;
use std::time::Duration;

use crate::operation::{Begin, Call, Checkpoint, Disposition, Name, OnLapse, Payload, Resolution, Time};
use crate::told::Told;

/// What is stored about one key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// The record; `None`: absent.
    pub record: Option<Record>,
    /// The highest token that anybody was told of, in this life of the key or an earlier one.
    pub token_floor: u64,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// The token of the last claim, or of an operator's outcome; `None`: above all others, and not known yet.
    pub token: Option<u64>,
    /// How many claims there were.
    pub attempt: u64,
    /// The request id of the last claim.
    pub request_id: Name,
    /// The owner of the last claim.
    pub owner: Name,
    /// What the key was used for.
    pub fingerprint: Option<Payload>,
    /// The last checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// How long it is kept after a change.
    pub retention: Duration,
    /// It does not expire before; `None`: never.
    pub kept_until: Option<Time>,
    /// Its state.
    pub phase: Phase,
}

/// The state of a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// A claim is current.
    InProgress {
        /// How long it lives without a Renew.
        lock_ttl: Duration,
        /// What becomes of it then.
        on_lapse: OnLapse,
        /// Its lock does not lapse before; `None`: it has lapsed.
        held_until: Option<Time>,
        /// Set if the answer that told of it may have been dropped on the way, and nothing was written since: then
        /// the server may give it back.
        unreceived: Option<Unreceived>,
    },
    /// The claim was given back.
    Released {
        /// Whether by its caller, whose request id is spent by that.
        spent: bool,
    },
    /// Nobody may run it.
    InDoubt {
        /// Whether its holder said so; else its lock lapsed.
        by_holder: bool,
    },
    /// There is an outcome.
    Completed {
        /// The outcome.
        outcome: Payload,
        /// The token of the doubt that an operator settled with it.
        resolved_from: Option<u64>,
    },
}

/// A claim that its caller may never have received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unreceived {
    /// The operation that made it.
    pub operation: usize,
    /// When it did, at the earliest.
    pub from: Time,
}

impl State {
    /// What a call does, and what it is told. `from`: what it writes counts from then, at the earliest.
    pub fn after(&self, call: &Call, from: Time) -> (Told, State) {
        let mut next = self.clone();
        let told = match call {
            Call::Begin(begin) => next.begin(begin, from),
            Call::Complete { token, outcome, retention } => next.complete(*token, outcome, *retention, from),
            Call::Renew { token, checkpoint } => next.renew(*token, checkpoint.as_ref(), from),
            Call::Release { token, disposition } => next.release(*token, *disposition, from),
            Call::Lookup { .. } | Call::Watch => match next.record {
                Some(_) => Told::Standing,
                None => Told::NotFound,
            },
            Call::Resolve { token, resolution } => next.resolve(*token, resolution, from),
            Call::Delete { token, force } => next.delete(*token, *force),
        };
        (told, next)
    }

    /// Whether a call may change anything; if not, it certainly does not.
    pub fn may_change(&self, call: &Call) -> bool {
        let of_token = |token: u64| {
            self.record.as_ref().is_some_and(|record| record.token.is_none_or(|its| its == token))
        };
        match call {
            Call::Begin(begin) => self.record.as_ref().is_none_or(|record| match record.phase {
                Phase::InProgress { held_until: Some(_), .. } => record.request_id == begin.request_id,
                Phase::InProgress { held_until: None, .. } | Phase::Released { .. } => true,
                Phase::InDoubt { .. } | Phase::Completed { .. } => false,
            }),
            Call::Complete { token, .. }
            | Call::Renew { token, .. }
            | Call::Release { token, .. }
            | Call::Resolve { token, .. }
            | Call::Delete { token, .. } => of_token(*token),
            Call::Lookup { .. } | Call::Watch => false,
        }
    }

    /// The lapse of the lock that is held, and when it comes at the earliest.
    pub fn lapse(&self) -> Option<(Time, State)> {
        let mut next = self.clone();
        match &mut next.record.as_mut()?.phase {
            Phase::InProgress { held_until, .. } => Some((held_until.take()?, next)),
            Phase::Released { .. } | Phase::InDoubt { .. } | Phase::Completed { .. } => None,
        }
    }

    /// The lock that is held, if one is, may lapse at any time.
    pub fn lock_may_be_over(&mut self) {
        if let Some(Record { phase: Phase::InProgress { held_until: Some(until), .. }, .. }) =
            &mut self.record
        {
            *until = Time::ZERO;
        }
    }

    /// The end of the record's retention, and when it comes at the earliest.
    pub fn expiry(&self) -> Option<(Time, State)> {
        let kept_until = self.record.as_ref()?.kept_until?;
        Some((kept_until, State { record: None, ..self.clone() }))
    }

    /// A claim that nobody received is given back; with the operation that had made it.
    pub fn give_back(&self) -> Option<(usize, State)> {
        let mut next = self.clone();
        let record = next.record.as_mut()?;
        let Phase::InProgress { unreceived: Some(Unreceived { operation, from }), .. } = record.phase else {
            return None;
        };
        record.settle(Phase::Released { spent: false }, from);
        Some((operation, next))
    }

    /// Notes that nobody may have received the claim that an operation has just made.
    pub fn not_received(&mut self, operation: usize, from: Time) {
        if let Some(Record { phase: Phase::InProgress { unreceived, .. }, .. }) = &mut self.record {
            *unreceived = Some(Unreceived { operation, from });
        }
    }

    /// Whether this state and another look the same to all calls, but for what may befall them in time.
    pub fn looks_like(&self, other: &State) -> bool {
        let timeless = |state: &State| {
            let mut state = state.clone();
            if let Some(record) = &mut state.record {
                record.kept_until = None;
                if let Phase::InProgress { held_until, unreceived, .. } = &mut record.phase {
                    *held_until = held_until.map(|_| Time::ZERO);
                    *unreceived = None;
                }
            }
            state
        };
        timeless(self) == timeless(other)
    }

    /// Whether the record has this token; if its own is not known yet, and can be this one, it is from now on.
    pub(crate) fn is_of(&mut self, token: u64) -> bool {
        let Some(record) = &mut self.record else { return false };
        if record.token.is_none() && token > self.token_floor {
            record.token = Some(token);
            self.token_floor = token;
        }
        record.token == Some(token)
    }

    /// The record if it has this token.
    fn held_by(&mut self, token: u64) -> Option<&mut Record> {
        if self.is_of(token) { self.record.as_mut() } else { None }
    }

    fn begin(&mut self, begin: &Begin, from: Time) -> Told {
        let Some(record) = &mut self.record else { return self.claim(begin, from) };
        if let (Some(theirs), Some(ours)) = (&record.fingerprint, &begin.fingerprint)
            && theirs != ours
        {
            return Told::FingerprintMismatch;
        }
        let same_caller = record.request_id == begin.request_id && record.owner == begin.owner;
        match &record.phase {
            Phase::InProgress { .. } if same_caller => {
                record.note_fingerprint(begin);
                record.arm(from);
                Told::Claim { resumed: true }
            }
            Phase::InProgress { held_until: None, on_lapse: OnLapse::TakeOver, .. } => {
                self.claim(begin, from)
            }
            Phase::InProgress { held_until: None, on_lapse: OnLapse::Hold, .. } => {
                record.note_fingerprint(begin);
                record.settle(Phase::InDoubt { by_holder: false }, from);
                Told::Standing
            }
            Phase::Released { spent: true } if same_caller => Told::Spent,
            Phase::Released { .. } => self.claim(begin, from),
            Phase::InProgress { held_until: Some(_), .. }
            | Phase::InDoubt { .. }
            | Phase::Completed { .. } => Told::Standing,
        }
    }

    /// A new claim; fingerprint and checkpoint outlive the one before.
    fn claim(&mut self, begin: &Begin, from: Time) -> Told {
        let before = self.record.take();
        let (attempt, fingerprint, checkpoint) =
            before.map_or((0, None, None), |it| (it.attempt, it.fingerprint, it.checkpoint));
        let mut record = Record {
            token: None,
            attempt: attempt + 1,
            request_id: begin.request_id.clone(),
            owner: begin.owner.clone(),
            fingerprint,
            checkpoint,
            retention: begin.retention,
            kept_until: None,
            phase: Phase::InProgress {
                lock_ttl: begin.lock_ttl,
                on_lapse: begin.on_lapse,
                held_until: None,
                unreceived: None,
            },
        };
        record.note_fingerprint(begin);
        record.arm(from);
        self.record = Some(record);
        Told::Claim { resumed: false }
    }

    fn complete(&mut self, token: u64, outcome: &Payload, retention: Option<Duration>, from: Time) -> Told {
        if self.record.is_none() {
            return Told::NotFound;
        }
        let Some(record) = self.held_by(token) else { return Told::ClaimLost };
        match &record.phase {
            Phase::Completed { outcome: stored, .. } if stored == outcome => Told::Stored { repeated: true },
            Phase::Completed { .. } => Told::OutcomeConflict,
            Phase::InProgress { .. } | Phase::Released { .. } | Phase::InDoubt { .. } => {
                record.store(outcome, retention, None, from);
                Told::Stored { repeated: false }
            }
        }
    }

    fn renew(&mut self, token: u64, checkpoint: Option<&Checkpoint>, from: Time) -> Told {
        if self.record.is_none() {
            return Told::NotFound;
        }
        match self.held_by(token) {
            Some(record) if matches!(record.phase, Phase::InProgress { .. }) => {
                record.arm(from);
                let stored = record.checkpoint.as_ref().map(|it| it.sequence);
                if let Some(newer) = checkpoint.filter(|it| stored.is_none_or(|stored| it.sequence > stored))
                {
                    record.checkpoint = Some(newer.clone());
                }
                Told::Renewed
            }
            _ => Told::ClaimLost,
        }
    }

    fn release(&mut self, token: u64, disposition: Disposition, from: Time) -> Told {
        if self.record.is_none() {
            return Told::NotFound;
        }
        let Some(record) = self.held_by(token) else { return Told::ClaimLost };
        match (&record.phase, disposition) {
            (Phase::InProgress { .. } | Phase::InDoubt { by_holder: false }, Disposition::Retry) => {
                record.settle(Phase::Released { spent: true }, from);
            }
            (Phase::InProgress { .. } | Phase::InDoubt { by_holder: false }, Disposition::InDoubt) => {
                record.settle(Phase::InDoubt { by_holder: true }, from);
            }
            // An operator was first, but the caller has spent its request id all the same.
            (Phase::Released { spent: false }, Disposition::Retry) => {
                record.settle(Phase::Released { spent: true }, from);
            }
            (Phase::Released { spent: true }, Disposition::Retry)
            | (Phase::InDoubt { by_holder: true }, Disposition::InDoubt) => {}
            (Phase::Released { .. }, Disposition::InDoubt)
            | (Phase::InDoubt { by_holder: true }, Disposition::Retry)
            | (Phase::Completed { .. }, _) => return Told::ClaimLost,
        }
        Told::Ok
    }

    fn resolve(&mut self, token: u64, resolution: &Resolution, from: Time) -> Told {
        let Some(record) = &self.record else { return Told::NotFound };
        if let Phase::Completed { outcome: stored, resolved_from } = &record.phase
            && *resolved_from == Some(token)
        {
            return match resolution {
                Resolution::Outcome(outcome, _) if outcome == stored => Told::Ok,
                Resolution::Outcome(..) => Told::OutcomeConflict,
                Resolution::Retry => Told::ClaimLost,
            };
        }
        let Some(record) = self.held_by(token) else { return Told::ClaimLost };
        let spent = match record.phase {
            Phase::InDoubt { by_holder } => by_holder,
            Phase::InProgress { held_until: None, on_lapse: OnLapse::Hold, .. } => false,
            Phase::Released { .. } if *resolution == Resolution::Retry => return Told::Ok,
            Phase::InProgress { .. } | Phase::Released { .. } | Phase::Completed { .. } => {
                return Told::ClaimLost;
            }
        };
        match resolution {
            Resolution::Retry => record.settle(Phase::Released { spent }, from),
            Resolution::Outcome(outcome, retention) => {
                record.store(outcome, *retention, Some(token), from);
                record.token = None;
            }
        }
        Told::Ok
    }

    fn delete(&mut self, token: u64, force: bool) -> Told {
        if self.record.is_none() {
            return Told::Ok;
        }
        let Some(record) = self.held_by(token) else { return Told::ClaimLost };
        if !force && matches!(record.phase, Phase::InProgress { held_until: Some(_), .. }) {
            return Told::ClaimHeld;
        }
        self.record = None;
        Told::Ok
    }
}

impl Record {
    /// Arms the lock, which never shortens it. What is held for an operator does not expire.
    fn arm(&mut self, from: Time) {
        if let Phase::InProgress { lock_ttl, on_lapse, held_until, unreceived } = &mut self.phase {
            let until = held_until.unwrap_or_default().max(from + *lock_ttl);
            *held_until = Some(until);
            *unreceived = None;
            self.kept_until = (*on_lapse == OnLapse::TakeOver).then_some(until + self.retention);
        }
    }

    /// Changes into a state without a lock.
    fn settle(&mut self, phase: Phase, from: Time) {
        self.kept_until = (!matches!(phase, Phase::InDoubt { .. })).then_some(from + self.retention);
        self.phase = phase;
    }

    fn store(
        &mut self,
        outcome: &Payload,
        retention: Option<Duration>,
        resolved_from: Option<u64>,
        from: Time,
    ) {
        self.checkpoint = None;
        self.retention = retention.unwrap_or(self.retention);
        self.settle(Phase::Completed { outcome: outcome.clone(), resolved_from }, from);
    }

    /// The first write that has a fingerprint stores it.
    fn note_fingerprint(&mut self, begin: &Begin) {
        if self.fingerprint.is_none() {
            self.fingerprint.clone_from(&begin.fingerprint);
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(record) = &self.record else { return f.write_str("no record") };
        match &record.phase {
            Phase::InProgress { held_until: Some(until), .. } => {
                write!(f, "in progress, held until {until:?} at least")?;
            }
            Phase::InProgress { on_lapse: OnLapse::TakeOver, .. } => f.write_str("lapsed")?,
            Phase::InProgress { on_lapse: OnLapse::Hold, .. } => f.write_str("lapsed, and held back")?,
            Phase::Released { .. } => f.write_str("released")?,
            Phase::InDoubt { .. } => f.write_str("in doubt")?,
            Phase::Completed { outcome, .. } => write!(f, "completed with {outcome:?}")?,
        }
        write!(f, ", attempt {} of {:?}", record.attempt, record.owner)?;
        match record.token {
            Some(token) => write!(f, ", token {token}")?,
            None => write!(f, ", token above {}", self.token_floor)?,
        }
        if let Some(fingerprint) = &record.fingerprint {
            write!(f, ", for {fingerprint:?}")?;
        }
        record.checkpoint.as_ref().map_or(Ok(()), |checkpoint| write!(f, ", at {checkpoint:?}"))
    }
}
