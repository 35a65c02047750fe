//! What a caller does and sees: one operation is a call with all its tries, and the answer it came to.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A point in time, counted from the start of the history on the one clock of all callers, real or simulated.
pub type Time = Duration;

/// A name: a request id or an owner.
pub type Name = Arc<str>;

/// A call with the same arguments, tried until it was answered or given up.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The key.
    pub key: Name,
    /// Who called, for people.
    pub caller: Name,
    /// What was asked.
    pub call: Call,
    /// The tries, one after the other.
    pub tries: Vec<Try>,
    /// What the last try was answered, if it was.
    pub answer: Option<Answer>,
    /// Of an update of a watch: the number of the one before, which it takes effect after.
    pub after: Option<usize>,
}

/// One try of a call.
#[derive(Clone, Copy, Debug)]
pub struct Try {
    /// When it was sent.
    pub sent: Time,
    /// How long after that its answer is due; `None` if nobody promised one.
    pub due: Option<Duration>,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing yet, or never.
    Open,
    /// It was answered.
    Answered(Time),
    /// It failed, and what it asked for may have happened, or may yet.
    Unknown(Time),
    /// It failed, and the server said that nothing was written.
    NotApplied(Time),
}

/// What is asked of a key, as far as it matters to what happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A caller asks for the claim.
    Begin(Begin),
    /// A holder stores the outcome.
    Complete {
        /// The holder's token.
        token: u64,
        /// The outcome.
        outcome: Payload,
        /// How long to keep it; `None`: as Begin asked.
        retention: Option<Duration>,
    },
    /// A holder arms its lock again.
    Renew {
        /// The holder's token.
        token: u64,
        /// A checkpoint to save.
        checkpoint: Option<Checkpoint>,
    },
    /// A holder gives its claim back.
    Release {
        /// The holder's token.
        token: u64,
        /// What it leaves behind.
        disposition: Disposition,
    },
    /// A reader asks what is there.
    Lookup {
        /// Whether it waits for an outcome. That makes no difference to what it may be told.
        waits: bool,
    },
    /// A watcher is told what is there, at some time since it began to watch. Each update is an operation.
    Watch,
    /// An operator settles a doubt.
    Resolve {
        /// The token of the doubt.
        token: u64,
        /// What becomes of it.
        resolution: Resolution,
    },
    /// An operator removes the record.
    Delete {
        /// The token of the record.
        token: u64,
        /// Whether to remove it while its lock is held.
        force: bool,
    },
}

/// A wish for the claim. How long it waits makes no difference to what it may be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The caller's id for this operation.
    pub request_id: Name,
    /// Who asks.
    pub owner: Name,
    /// A digest of the request.
    pub fingerprint: Option<Payload>,
    /// How long the claim lives without a Renew.
    pub lock_ttl: Duration,
    /// How long the record is kept, at least, after its last change.
    pub retention: Duration,
    /// What becomes of the claim if it lapses.
    pub on_lapse: OnLapse,
}

/// What becomes of a claim whose lock lapses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnLapse {
    /// The next Begin gets a new claim.
    TakeOver,
    /// The record is in doubt.
    Hold,
}

/// What a released claim leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It is safe to run again.
    Retry,
    /// Nobody may run it until it is resolved.
    InDoubt,
}

/// What becomes of a doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The next Begin runs it again.
    Retry,
    /// Every duplicate gets this outcome.
    Outcome(Payload, Option<Duration>),
}

/// Bytes saved on the way, with their place in the work.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Checkpoint {
    /// Higher is later.
    pub sequence: u64,
    /// The bytes.
    pub data: Payload,
}

/// What a call was told. Failures that say nothing of the record are no answers, see [`Fate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Begin: the key is the caller's.
    Claim(Claim),
    /// Begin, Lookup: the outcome.
    Completed {
        /// The token that completed.
        token: u64,
        /// The attempt that completed.
        attempt: u64,
        /// Who held that claim.
        owner: Name,
        /// The outcome.
        outcome: Payload,
    },
    /// Begin, Lookup: somebody holds it.
    InProgress {
        /// The attempt under way.
        attempt: u64,
        /// Who holds it.
        owner: Name,
    },
    /// Begin, Lookup: nobody may run it.
    InDoubt {
        /// The token that Resolve must name.
        token: u64,
        /// The attempt whose effects are unknown.
        attempt: u64,
        /// Who held it.
        owner: Name,
    },
    /// Lookup: released or lapsed.
    Available {
        /// How many claims there were.
        attempt: u64,
        /// Who held the last one.
        owner: Name,
    },
    /// Complete: the outcome is stored.
    Stored {
        /// Whether it was there already.
        repeated: bool,
    },
    /// Renew: the lock is armed again.
    Renewed {
        /// For so long.
        lock_ttl: Duration,
    },
    /// Release, Resolve, Delete: it is as asked.
    Ok,
    /// The key was used for another request.
    FingerprintMismatch,
    /// Complete, Resolve: there is another outcome.
    OutcomeConflict,
    /// The claim is no longer the caller's; Begin: its request id is spent.
    ClaimLost,
    /// Delete: a claim is held.
    ClaimHeld,
    /// There is no record.
    NotFound,
}

/// A claim, as it was told to its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The fencing token.
    pub token: u64,
    /// How many claims the key has had, this one included.
    pub attempt: u64,
    /// How long it lives without a Renew.
    pub lock_ttl: Duration,
    /// How long the server had the call before it armed the lock.
    pub waited: Duration,
    /// Whether the same request id had it before.
    pub resumed: bool,
    /// The last checkpoint.
    pub checkpoint: Option<Checkpoint>,
}

/// Bytes that come back as they were sent: an outcome, a checkpoint, a fingerprint.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Payload(Arc<[u8]>);

impl<T: AsRef<[u8]> + ?Sized> From<&T> for Payload {
    fn from(bytes: &T) -> Self {
        Self(bytes.as_ref().into())
    }
}

impl Operation {
    /// When it was first sent; what it asks for happens no earlier.
    pub fn first_sent(&self) -> Time {
        self.tries.first().map_or(Time::MAX, |first| first.sent)
    }

    /// When the try that was answered was sent, or the last one, and when it was answered. An answer rests on
    /// what was there in between.
    pub fn span(&self) -> (Time, Option<Time>) {
        let Some(last) = self.tries.last() else { return (Time::MAX, None) };
        (last.sent, self.answer.as_ref().and_then(|_| last.answered()))
    }

    /// The tries that may have taken effect, or may yet, without anybody having been told.
    pub fn unknown_tries(&self) -> impl Iterator<Item = &Try> {
        self.tries.iter().filter(|it| matches!(it.fate, Fate::Open | Fate::Unknown(_)))
    }

    /// The claim that it was answered with.
    pub fn claim(&self) -> Option<&Claim> {
        match &self.answer {
            Some(Answer::Claim(claim)) => Some(claim),
            _ => None,
        }
    }

    /// The Begin that it is.
    pub fn begin(&self) -> Option<&Begin> {
        match &self.call {
            Call::Begin(begin) => Some(begin),
            _ => None,
        }
    }
}

impl Try {
    /// When it was answered, if it was.
    pub fn answered(&self) -> Option<Time> {
        match self.fate {
            Fate::Answered(at) => Some(at),
            Fate::Open | Fate::Unknown(_) | Fate::NotApplied(_) => None,
        }
    }

    /// When its caller was done with it.
    pub fn ended(&self) -> Option<Time> {
        match self.fate {
            Fate::Open => None,
            Fate::Answered(at) | Fate::Unknown(at) | Fate::NotApplied(at) => Some(at),
        }
    }
}

impl Call {
    /// The token that a holder names.
    pub fn held_token(&self) -> Option<u64> {
        match self {
            Call::Complete { token, .. } | Call::Renew { token, .. } | Call::Release { token, .. } => {
                Some(*token)
            }
            Call::Begin(_)
            | Call::Lookup { .. }
            | Call::Watch
            | Call::Resolve { .. }
            | Call::Delete { .. } => None,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, sent by {} at {:?}", self.call, self.caller, self.first_sent())?;
        let (sent, answered) = self.span();
        if self.tries.len() > 1 {
            write!(f, ", {} times, the last at {sent:?}", self.tries.len())?;
        }
        match (&self.answer, answered) {
            (Some(answer), Some(at)) => write!(f, ", told at {at:?}: {answer}"),
            _ => f.write_str(", never answered"),
        }
    }
}

/// An operation with its number and all of its tries, each on a line of its own.
pub(crate) struct InFull<'a>(pub usize, pub &'a Operation);

impl fmt::Display for InFull<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let InFull(number, Operation { caller, call, tries, answer, after, .. }) = self;
        write!(f, "  #{number} {caller}: {call}")?;
        if let Some(before) = after {
            write!(f, ", after #{before}")?;
        }
        for Try { sent, due, fate } in tries {
            write!(f, "\n    sent {sent:?}")?;
            if let Some(due) = due {
                write!(f, ", due in {due:?}")?;
            }
            match (fate, answer) {
                (Fate::Answered(at), Some(answer)) => write!(f, ", told {at:?}: {answer}")?,
                (Fate::Answered(at), None) => write!(f, ", told {at:?}")?,
                (Fate::Unknown(at), _) => write!(f, ", failed {at:?}, and it may have happened")?,
                (Fate::NotApplied(at), _) => write!(f, ", failed {at:?}, and did not happen")?,
                (Fate::Open, _) => f.write_str(", never answered")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Call::Begin(begin) => {
                write!(f, "Begin {} of {:?}", begin.request_id, begin.owner)?;
                match &begin.fingerprint {
                    Some(fingerprint) => write!(f, " for {fingerprint:?}"),
                    None => Ok(()),
                }
            }
            Call::Complete { token, outcome, .. } => write!(f, "Complete {token} with {outcome:?}"),
            Call::Renew { token, checkpoint: None } => write!(f, "Renew {token}"),
            Call::Renew { token, checkpoint: Some(it) } => write!(f, "Renew {token} with {it:?}"),
            Call::Release { token, disposition } => write!(f, "Release {token} as {disposition:?}"),
            Call::Lookup { waits: false } => f.write_str("Lookup"),
            Call::Lookup { waits: true } => f.write_str("Lookup that waits"),
            Call::Watch => f.write_str("Watch"),
            Call::Resolve { token, resolution } => write!(f, "Resolve {token} as {resolution:?}"),
            Call::Delete { token, force: false } => write!(f, "Delete {token}"),
            Call::Delete { token, force: true } => write!(f, "Delete {token} by force"),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Claim(claim) => {
                let again = if claim.resumed { " again" } else { "" };
                write!(f, "claim {}{again}, attempt {}", claim.token, claim.attempt)?;
                write!(f, ", armed {:?} later for {:?}", claim.waited, claim.lock_ttl)?;
                match &claim.checkpoint {
                    Some(checkpoint) => write!(f, ", at {checkpoint:?}"),
                    None => Ok(()),
                }
            }
            Answer::Completed { token, attempt, owner, outcome } => {
                write!(f, "completed by {token} of {owner:?}, attempt {attempt}, with {outcome:?}")
            }
            Answer::InProgress { attempt, owner } => write!(f, "in progress at {owner:?}, attempt {attempt}"),
            Answer::InDoubt { token, attempt, owner } => {
                write!(f, "in doubt under {token} of {owner:?}, attempt {attempt}")
            }
            Answer::Available { attempt, owner } => {
                write!(f, "available, last {owner:?}, attempt {attempt}")
            }
            Answer::Stored { repeated: false } => f.write_str("stored"),
            Answer::Stored { repeated: true } => f.write_str("stored already"),
            Answer::Renewed { lock_ttl } => write!(f, "armed again for {lock_ttl:?}"),
            Answer::Ok => f.write_str("OK"),
            Answer::FingerprintMismatch => f.write_str("FINGERPRINT_MISMATCH"),
            Answer::OutcomeConflict => f.write_str("OUTCOME_CONFLICT"),
            Answer::ClaimLost => f.write_str("CLAIM_LOST"),
            Answer::ClaimHeld => f.write_str("CLAIM_HELD"),
            Answer::NotFound => f.write_str("NOT_FOUND"),
        }
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "checkpoint {} {:?}", self.sequence, self.data)
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Enough to tell one from another.
        const SHOWN_BYTES: usize = 40;
        let shown = &self.0[..self.0.len().min(SHOWN_BYTES)];
        write!(f, "\"{}\"", shown.escape_ascii())?;
        if self.0.len() > SHOWN_BYTES { write!(f, "… ({} bytes)", self.0.len()) } else { Ok(()) }
    }
}
