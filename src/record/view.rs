//! What a reader is told of a record. Reading writes nothing, so a lapse shows here before anyone wrote it down.

use std::sync::Arc;
use std::time::Duration;

use super::state::{DoubtCause, OnLapse, Record, State, Timestamp};
use super::transition::Lock;

/// The reason of a doubt that a lapse brought about.
const LAPSED: &str = "the lock lapsed";

/// A record as a reader is told of it. Each holds the record, for owner, attempt and token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// Somebody holds the key.
    InProgress {
        /// The record.
        record: Arc<Record>,
        /// When the lock will lapse unless renewed: a hint.
        lock_expires_in: Duration,
    },
    /// Nobody holds the key, and the next Begin gets it.
    Available {
        /// The record.
        record: Arc<Record>,
        /// Since when.
        since: Timestamp,
        /// Why it was released; empty if it lapsed.
        reason: String,
    },
    /// Nobody may run the key until it is resolved.
    InDoubt {
        /// The record.
        record: Arc<Record>,
        /// Since when.
        since: Timestamp,
        /// Why.
        reason: String,
    },
    /// There is an outcome: the record's state is Completed.
    Completed {
        /// The record.
        record: Arc<Record>,
        /// When the outcome was stored.
        completed_at: Timestamp,
        /// Until when it is kept, at least.
        expires_at: Timestamp,
    },
}

impl View {
    /// The view of `record`, whose lock the store saw as `lock`. `now` only serves the hint.
    pub fn of(record: &Arc<Record>, lock: Lock, now: Timestamp) -> View {
        let shared = Arc::clone(record);
        match (&record.state, lock) {
            (State::InProgress { lock_ttl, armed_at, .. }, Lock::Held) => View::InProgress {
                record: shared,
                lock_expires_in: lock_ttl.saturating_sub(now.since(*armed_at)),
            },
            (State::InProgress { lock_ttl, armed_at, on_lapse: OnLapse::TakeOver }, Lock::Lapsed) => {
                View::Available { record: shared, since: armed_at.plus(*lock_ttl), reason: String::new() }
            }
            (State::InProgress { lock_ttl, armed_at, on_lapse: OnLapse::Hold }, Lock::Lapsed) => {
                View::InDoubt { record: shared, since: armed_at.plus(*lock_ttl), reason: LAPSED.to_owned() }
            }
            (State::Released { since, reason, .. }, _) => {
                View::Available { record: shared, since: *since, reason: reason.clone() }
            }
            (State::InDoubt { since, cause }, _) => {
                let reason = match cause {
                    DoubtCause::Lapse => LAPSED.to_owned(),
                    DoubtCause::Release(reason) => reason.clone(),
                };
                View::InDoubt { record: shared, since: *since, reason }
            }
            (State::Completed { completed_at, .. }, _) => View::Completed {
                record: shared,
                completed_at: *completed_at,
                expires_at: completed_at.plus(record.retention),
            },
        }
    }

    /// The record that the view shows.
    pub fn record(&self) -> &Arc<Record> {
        match self {
            View::InProgress { record, .. }
            | View::Available { record, .. }
            | View::InDoubt { record, .. }
            | View::Completed { record, .. } => record,
        }
    }
}
