//! Answers: what the coordinator said, as messages.

use std::sync::Arc;
use std::time::Duration;

use onced_client::v1;

use crate::coordinator::Claimed;
use crate::record::{Outcome, OutcomeResult, Record, State, Timestamp, View};

/// The shortest pause before a caller asks again.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A claim, as it is told to its holder.
pub fn claim(claimed: &Claimed, max_outcome_bytes: usize) -> v1::Claim {
    let record = &claimed.record;
    let checkpoint = record.checkpoint.as_ref();
    v1::Claim {
        fencing_token: record.fencing_token.0,
        attempt: record.attempt,
        lock_ttl: record.lock_ttl().map(duration),
        waited: Some(duration(claimed.waited)),
        checkpoint: checkpoint
            .map(|saved| v1::Checkpoint { sequence: saved.sequence, data: saved.data.clone() }),
        resumed: claimed.resumed,
        max_outcome_bytes: u64::try_from(max_outcome_bytes).unwrap_or(u64::MAX),
    }
}

/// What stands in the way of a Begin; `waited` is how long the call has waited for it. `None` if nothing
/// does: then there should have been a claim.
pub fn begin(view: &View, waited: Duration) -> Option<v1::begin_response::Result> {
    use v1::begin_response::Result as Told;
    match view {
        View::Completed { .. } => completed(view).map(Told::Completed),
        View::InProgress { record, lock_expires_in } => {
            Some(Told::InProgress(in_progress(record, *lock_expires_in, waited)))
        }
        View::InDoubt { record, since, reason } => Some(Told::InDoubt(in_doubt(record, *since, reason))),
        View::Available { .. } => None,
    }
}

macro_rules! record_of {
    ($(#[$doc:meta])* $name:ident -> $module:ident) => {
        $(#[$doc])*
        pub fn $name(view: &View, waited: Duration) -> Option<v1::$module::Record> {
            use v1::$module::Record as Told;
            match view {
                View::Completed { .. } => completed(view).map(Told::Completed),
                View::InProgress { record, lock_expires_in } => {
                    Some(Told::InProgress(in_progress(record, *lock_expires_in, waited)))
                }
                View::InDoubt { record, since, reason } => {
                    Some(Told::InDoubt(in_doubt(record, *since, reason)))
                }
                View::Available { record, since, .. } => Some(Told::Available(available(record, *since))),
            }
        }
    };
}

record_of! {
    /// What a Lookup tells, after it has waited for so long. `None` if the view contradicts itself.
    lookup -> lookup_response
}
record_of! {
    /// One state of a Watch. `None` if the view contradicts itself.
    watch -> watch_response
}

/// A completed record with its outcome; `None` if it is not completed.
pub fn completed(view: &View) -> Option<v1::Completed> {
    let View::Completed { record, .. } = view else { return None };
    let State::Completed { outcome, .. } = &record.state else { return None };
    Some(v1::Completed { outcome: Some(self::outcome(outcome)), ..completed_without_outcome(view)? })
}

/// A completed record for one who has the outcome; `None` if it is not completed.
pub fn completed_without_outcome(view: &View) -> Option<v1::Completed> {
    let View::Completed { record, completed_at, expires_at } = view else { return None };
    Some(v1::Completed {
        outcome: None,
        owner: record.owner.clone(),
        attempt: record.attempt,
        fencing_token: record.fencing_token.0,
        completed_at: Some(timestamp(*completed_at)),
        expires_at: Some(timestamp(*expires_at)),
    })
}

/// A record in a List.
pub fn summary(key: &str, view: &View) -> v1::RecordSummary {
    let record = view.record();
    let told = v1::RecordSummary {
        key: key.to_owned(),
        state: state(view).into(),
        owner: record.owner.clone(),
        attempt: record.attempt,
        fencing_token: record.fencing_token.0,
        ..v1::RecordSummary::default()
    };
    match view {
        View::InProgress { record, lock_expires_in } => v1::RecordSummary {
            since: Some(timestamp(record.began_at)),
            lock_expires_in: Some(duration(*lock_expires_in)),
            ..told
        },
        View::Available { since, reason, .. } | View::InDoubt { since, reason, .. } => {
            v1::RecordSummary { since: Some(timestamp(*since)), reason: reason.clone(), ..told }
        }
        View::Completed { completed_at, expires_at, .. } => v1::RecordSummary {
            since: Some(timestamp(*completed_at)),
            expires_at: Some(timestamp(*expires_at)),
            ..told
        },
    }
}

/// The state that a view shows.
pub fn state(view: &View) -> v1::RecordState {
    match view {
        View::InProgress { .. } => v1::RecordState::InProgress,
        View::Available { .. } => v1::RecordState::Available,
        View::InDoubt { .. } => v1::RecordState::InDoubt,
        View::Completed { .. } => v1::RecordState::Completed,
    }
}

/// A duration as a message.
pub fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

fn in_progress(record: &Arc<Record>, lock_expires_in: Duration, waited: Duration) -> v1::InProgress {
    v1::InProgress {
        owner: record.owner.clone(),
        attempt: record.attempt,
        began_at: Some(timestamp(record.began_at)),
        lock_expires_in: Some(duration(lock_expires_in)),
        retry_after: Some(duration(retry_after(lock_expires_in, waited))),
    }
}

/// A fraction of what the lock has left, within bounds. What the call has waited already counts: one that
/// came for a long poll may ask again at once, as it will wait here.
fn retry_after(lock_expires_in: Duration, waited: Duration) -> Duration {
    (lock_expires_in / 8).clamp(PAUSE_MIN, PAUSE_MAX).saturating_sub(waited)
}

fn in_doubt(record: &Arc<Record>, since: Timestamp, reason: &str) -> v1::InDoubt {
    v1::InDoubt {
        owner: record.owner.clone(),
        attempt: record.attempt,
        fencing_token: record.fencing_token.0,
        since: Some(timestamp(since)),
        reason: reason.to_owned(),
    }
}

fn available(record: &Arc<Record>, since: Timestamp) -> v1::Available {
    v1::Available { owner: record.owner.clone(), attempt: record.attempt, since: Some(timestamp(since)) }
}

fn outcome(outcome: &Outcome) -> v1::Outcome {
    let result = match &outcome.result {
        OutcomeResult::Response(bytes) => v1::outcome::Result::Response(bytes.clone()),
        OutcomeResult::Error { code, message, details } => {
            let details = details
                .iter()
                .map(|(url, value)| prost_types::Any { type_url: url.clone(), value: value.to_vec() });
            v1::outcome::Result::Error(tonic_types::Status {
                code: *code,
                message: message.clone(),
                details: details.collect(),
            })
        }
    };
    v1::Outcome {
        result: Some(result),
        content_type: outcome.content_type.clone(),
        metadata: outcome.metadata.clone(),
    }
}

fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let micros = time.as_micros();
    prost_types::Timestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos: i32::try_from(micros.rem_euclid(1_000_000) * 1_000).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_before_the_epoch_has_positive_nanos() {
        let before = timestamp(Timestamp::from_micros(-1));
        assert_eq!((before.seconds, before.nanos), (-1, 999_999_000));
        let after = timestamp(Timestamp::from_micros(1_500_001));
        assert_eq!((after.seconds, after.nanos), (1, 500_001_000));
    }

    #[test]
    fn a_pause_is_bounded_and_a_long_poll_needs_none() {
        let (hour, second) = (Duration::from_secs(3_600), Duration::from_secs(1));
        assert_eq!(retry_after(hour, Duration::ZERO), PAUSE_MAX);
        assert_eq!(retry_after(Duration::ZERO, Duration::ZERO), PAUSE_MIN);
        assert_eq!(retry_after(16 * second, Duration::ZERO), 2 * second);
        assert_eq!(retry_after(16 * second, second / 2), 3 * second / 2);
        assert_eq!(retry_after(hour, PAUSE_MAX), Duration::ZERO);
    }
}
