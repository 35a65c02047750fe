//! A record: all that is stored about one key.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::limits::{FINGERPRINT_MAX_BYTES, RETENTION_MARGIN};

/// A wall time in microseconds since the Unix epoch: for people, never for decisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The time `micros` microseconds after the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// The time `later` after this one.
    pub fn plus(self, later: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(later.as_micros()).unwrap_or(i64::MAX)))
    }

    /// The time from `earlier` to this one; zero if `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// A number strictly increasing over the claims of a key: the store revision of the write that made the claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(pub u64);

impl FencingToken {
    /// Stands for the revision of the very write that carries it. Only in records about to be written:
    /// a store never returns it.
    pub const THIS_WRITE: FencingToken = FencingToken(0);
}

/// The caller's id for one Begin attempt: the bytes of a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub [u8; 16]);

/// A digest of a request, 1 to 64 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Fingerprint(Bytes);

impl Fingerprint {
    /// Checks a fingerprint; `None` if it is empty or too long.
    pub fn new(digest: Bytes) -> Option<Self> {
        (1..=FINGERPRINT_MAX_BYTES).contains(&digest.len()).then_some(Self(digest))
    }

    /// The digest.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

/// Opaque bytes that a holder saved on the way, with their place in the work.
#[derive(Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// 1 or more; higher is later.
    pub sequence: u64,
    /// The bytes.
    pub data: Bytes,
}

/// What Complete stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The response or the error.
    pub result: OutcomeResult,
    /// How to read the response.
    pub content_type: String,
    /// A few small facts, sorted.
    pub metadata: BTreeMap<String, String>,
}

/// A response, or an error that every duplicate must also get.
#[derive(Clone, PartialEq, Eq)]
pub enum OutcomeResult {
    /// A response, returned byte for byte.
    Response(Bytes),
    /// A final error.
    Error {
        /// Its google.rpc.Code, 1 to 16.
        code: i32,
        /// Its text.
        message: String,
        /// Its details: type URL and bytes, as they came.
        details: Vec<(String, Bytes)>,
    },
}

/// What becomes of a claim whose lock lapses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLapse {
    /// The next Begin gets a new claim.
    TakeOver,
    /// The record becomes in doubt.
    Hold,
}

/// All that is stored about one key.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// The token of the last claim, or of an operator's outcome.
    pub fencing_token: FencingToken,
    /// How many claims the key has had.
    pub attempt: u64,
    /// The request id of the last claim.
    pub request_id: RequestId,
    /// The owner of the last claim.
    pub owner: String,
    /// The fingerprint: of the first write that had one.
    pub fingerprint: Option<Fingerprint>,
    /// The last checkpoint; dropped when the record completes.
    pub checkpoint: Option<Checkpoint>,
    /// When the last claim was made.
    pub began_at: Timestamp,
    /// How long the record is kept, at least, after its last change.
    pub retention: Duration,
    /// The state.
    pub state: State,
}

/// The state of a record. A missing record is Absent.
#[derive(Clone, PartialEq, Eq)]
pub enum State {
    /// A claim is current. Writing this state arms its lock for `lock_ttl`.
    InProgress {
        /// How long the claim lives without a Renew.
        lock_ttl: Duration,
        /// What becomes of it if its lock lapses.
        on_lapse: OnLapse,
        /// When the lock was last armed: a hint for display; the store alone decides.
        armed_at: Timestamp,
    },
    /// The claim was given back.
    Released {
        /// When.
        since: Timestamp,
        /// Why.
        reason: String,
        /// Whether the caller gave it back, and so spent its request id.
        request_spent: bool,
    },
    /// Nobody may run the key until it is resolved.
    InDoubt {
        /// When, as far as known.
        since: Timestamp,
        /// Why.
        cause: DoubtCause,
    },
    /// There is an outcome. It never changes.
    Completed {
        /// The outcome.
        outcome: Arc<Outcome>,
        /// When it was stored.
        completed_at: Timestamp,
        /// The token of the doubt that an operator settled with this outcome.
        resolved_from: Option<FencingToken>,
    },
}

/// How a record came to be in doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DoubtCause {
    /// The lock of a HOLD claim lapsed.
    Lapse,
    /// The holder said so, for this reason.
    Release(String),
}

/// How long a store keeps a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is resolved or deleted.
    Forever,
    /// At least this long after its last write.
    AtLeast(Duration),
}

impl Record {
    /// The lock TTL to arm when this record is written; `None` if it has no lock.
    pub fn lock_ttl(&self) -> Option<Duration> {
        match self.state {
            State::InProgress { lock_ttl, .. } => Some(lock_ttl),
            State::Released { .. } | State::InDoubt { .. } | State::Completed { .. } => None,
        }
    }

    /// How long the store keeps this record after writing it. A held record never expires before its lock,
    /// and what waits for an operator never expires.
    pub fn lifetime(&self) -> Lifetime {
        match self.state {
            State::InProgress { on_lapse: OnLapse::Hold, .. } | State::InDoubt { .. } => Lifetime::Forever,
            State::InProgress { lock_ttl, on_lapse: OnLapse::TakeOver, .. } => {
                Lifetime::AtLeast(lock_ttl + self.retention + RETENTION_MARGIN)
            }
            State::Released { .. } | State::Completed { .. } => {
                Lifetime::AtLeast(self.retention + RETENTION_MARGIN)
            }
        }
    }

    /// Whether writing this record makes a new claim. A store that runs full refuses these first, so that
    /// the claims it gave out can still complete.
    pub fn makes_claim(&self) -> bool {
        self.fencing_token == FencingToken::THIS_WRITE && matches!(self.state, State::InProgress { .. })
    }

    /// The record as it reads once written at `revision`: with its token spelt out.
    pub fn written_at(mut self, revision: u64) -> Self {
        if self.fencing_token == FencingToken::THIS_WRITE {
            self.fencing_token = FencingToken(revision);
        }
        self
    }
}

// Debug prints go to logs, and payloads must not: sizes only.
impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({} bytes)", self.0.len())
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({}, {} bytes)", self.sequence, self.data.len())
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.result {
            OutcomeResult::Response(bytes) => write!(f, "Response({} bytes)", bytes.len()),
            OutcomeResult::Error { code, .. } => write!(f, "Error(code {code})"),
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::InProgress { .. } => "in progress",
            State::Released { .. } => "released",
            State::InDoubt { .. } => "in doubt",
            State::Completed { .. } => "completed",
        };
        write!(f, "Record({state}, attempt {}, token {})", self.attempt, self.fencing_token.0)
    }
}
