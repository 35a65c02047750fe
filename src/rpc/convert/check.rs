//! Checks of single fields. They are collected, so that a caller is told all that is wrong at once.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onced_client::v1::{self, ErrorReason};
use prost::Message;

use super::super::failure::{Failure, Violation};
use crate::config::Policy;
use crate::record::limits::{
    CHECKPOINT_MAX_BYTES, FINGERPRINT_MAX_BYTES, KEY_MAX_BYTES, LOCK_TTL_MIN, OWNER_MAX_BYTES,
    REASON_MAX_BYTES, RETENTION_MIN,
};
use crate::record::{
    Checkpoint, FencingToken, Fingerprint, Key, Namespace, Outcome, OutcomeResult, RecordKey, RequestId,
};

/// The characters of a name that an error quotes.
const QUOTE_MAX_CHARS: usize = 80;
/// The furthest that a protobuf Duration reaches, in seconds: some 10,000 years.
const DURATION_MAX_SECONDS: i64 = 315_576_000_000;

/// What is wrong with a request so far. A check that finds something notes it and returns `None`.
#[derive(Default)]
pub struct Checks(Vec<Violation>);

impl Checks {
    /// The checked value, if nothing was wrong.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Failure> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            Some(_) | None => Err(Failure::Invalid(self.0)),
        }
    }

    /// Notes a violation.
    pub fn refuse<T>(
        &mut self,
        reason: ErrorReason,
        field: &'static str,
        limit: impl Into<String>,
        sent: impl Into<String>,
    ) -> Option<T> {
        self.0.push(Violation { reason, field, limit: limit.into(), sent: sent.into() });
        None
    }

    pub fn record_key(&mut self, namespace: &str, key: &str) -> Option<RecordKey> {
        let namespace = self.namespace(namespace);
        let key = self.key(key);
        Some(RecordKey { namespace: namespace?, key: key? })
    }

    pub fn namespace(&mut self, namespace: &str) -> Option<Namespace> {
        Namespace::new(namespace).or_else(|| {
            let limit = "must match [a-z0-9][a-z0-9._-]{0,62}";
            self.refuse(ErrorReason::NamespaceInvalid, "namespace", limit, quoted(namespace))
        })
    }

    fn key(&mut self, key: &str) -> Option<Key> {
        Key::new(key).or_else(|| {
            let reason = if key.is_empty() { ErrorReason::KeyRequired } else { ErrorReason::KeyTooLong };
            self.refuse(reason, "key", format!("must have 1 to {KEY_MAX_BYTES} bytes"), sized(key.len()))
        })
    }

    pub fn token(&mut self, token: u64) -> Option<FencingToken> {
        if token == 0 {
            let limit = "must be the fencing token of the claim, 1 or more";
            return self.refuse(ErrorReason::TokenRequired, "fencing_token", limit, "0");
        }
        Some(FencingToken(token))
    }

    pub fn request_id(&mut self, id: &str) -> Option<RequestId> {
        let uuid = if id.len() == 36 { uuid::Uuid::try_parse(id).ok() } else { None };
        match uuid {
            Some(uuid) => Some(RequestId(uuid.into_bytes())),
            None => {
                let limit = "must be a UUID in its form of 36 characters";
                self.refuse(ErrorReason::RequestIdInvalid, "request_id", limit, quoted(id))
            }
        }
    }

    /// The outer option is the check, the inner one the field, which is optional.
    pub fn fingerprint(&mut self, digest: Bytes) -> Option<Option<Fingerprint>> {
        if digest.is_empty() {
            return Some(None);
        }
        let sent = sized(digest.len());
        Fingerprint::new(digest).map(Some).or_else(|| {
            let limit = format!("must have at most {FINGERPRINT_MAX_BYTES} bytes: send a digest");
            self.refuse(ErrorReason::FingerprintTooLong, "fingerprint", limit, sent)
        })
    }

    pub fn owner(&mut self, owner: String) -> Option<String> {
        if owner.len() > OWNER_MAX_BYTES {
            let limit = format!("must have at most {OWNER_MAX_BYTES} bytes");
            return self.refuse(ErrorReason::OwnerTooLong, "owner", limit, sized(owner.len()));
        }
        Some(owner)
    }

    pub fn reason(&mut self, reason: String) -> Option<String> {
        if reason.len() > REASON_MAX_BYTES {
            let limit = format!("must have at most {REASON_MAX_BYTES} bytes");
            return self.refuse(ErrorReason::ReasonTooLong, "reason", limit, sized(reason.len()));
        }
        Some(reason)
    }

    pub fn lock_ttl(&mut self, ttl: Option<prost_types::Duration>, policy: &Policy) -> Option<Duration> {
        let Policy { lock_ttl, max_lock_ttl, .. } = *policy;
        let Some(sent) = ttl else { return Some(lock_ttl) };
        in_range(&sent, LOCK_TTL_MIN, max_lock_ttl).or_else(|| {
            let (min, max, default) = (bound(LOCK_TTL_MIN), bound(max_lock_ttl), bound(lock_ttl));
            let limit = format!("must be {min} to {max} (unset: {default})");
            self.refuse(ErrorReason::TtlOutOfRange, "lock_ttl", limit, spelt(&sent))
        })
    }

    /// As for `fingerprint`: an unset retention is no error.
    pub fn retention(
        &mut self,
        retention: Option<prost_types::Duration>,
        policy: &Policy,
    ) -> Option<Option<Duration>> {
        let Some(sent) = retention else { return Some(None) };
        in_range(&sent, RETENTION_MIN, policy.max_retention).map(Some).or_else(|| {
            let limit = format!("must be {} to {}", bound(RETENTION_MIN), bound(policy.max_retention));
            self.refuse(ErrorReason::RetentionOutOfRange, "retention", limit, spelt(&sent))
        })
    }

    /// A time to wait, zero if unset.
    pub fn wait(&mut self, field: &'static str, wait: Option<prost_types::Duration>) -> Option<Duration> {
        let Some(sent) = wait else { return Some(Duration::ZERO) };
        positive(&sent).or_else(|| {
            self.refuse(ErrorReason::WaitInvalid, field, "must be a duration of 0 or more", spelt(&sent))
        })
    }

    /// A value of an enum, if this server knows it.
    pub fn known<E: TryFrom<i32>>(&mut self, field: &'static str, value: i32) -> Option<E> {
        E::try_from(value).ok().or_else(|| {
            let limit = "must be a value that this server knows";
            self.refuse(ErrorReason::EnumInvalid, field, limit, value.to_string())
        })
    }

    /// As for `fingerprint`: no checkpoint is no error.
    pub fn checkpoint(&mut self, checkpoint: Option<v1::Checkpoint>) -> Option<Option<Checkpoint>> {
        let Some(v1::Checkpoint { sequence, data }) = checkpoint else { return Some(None) };
        let before = self.0.len();
        if sequence == 0 {
            let (reason, field) = (ErrorReason::CheckpointSequenceRequired, "checkpoint.sequence");
            self.refuse::<()>(reason, field, "must be 1 or more, and higher than the one before", "0");
        }
        if data.len() > CHECKPOINT_MAX_BYTES {
            let limit = format!("must have at most {CHECKPOINT_MAX_BYTES} bytes");
            self.refuse::<()>(ErrorReason::CheckpointTooLarge, "checkpoint.data", limit, sized(data.len()));
        }
        (self.0.len() == before).then_some(Some(Checkpoint { sequence, data }))
    }

    /// The bound is on all of the outcome as encoded: metadata, content type and details count.
    pub fn outcome(&mut self, outcome: Option<v1::Outcome>, policy: &Policy) -> Option<Arc<Outcome>> {
        const REQUIRED: &str = "must hold a response or an error";
        let Some(outcome) = outcome else {
            return self.refuse(ErrorReason::OutcomeRequired, "outcome", REQUIRED, "no outcome");
        };
        let (bytes, max_bytes) = (outcome.encoded_len(), policy.max_outcome_bytes);
        let v1::Outcome { result, content_type, metadata } = outcome;
        if bytes > max_bytes {
            let limit = format!("must have at most {max_bytes} bytes, encoded and everything included");
            return self.refuse(ErrorReason::OutcomeTooLarge, "outcome", limit, sized(bytes));
        }
        let result = match result {
            None => return self.refuse(ErrorReason::OutcomeRequired, "outcome", REQUIRED, "neither"),
            Some(v1::outcome::Result::Response(response)) => OutcomeResult::Response(response),
            Some(v1::outcome::Result::Error(error)) => self.error(error)?,
        };
        Some(Arc::new(Outcome { result, content_type, metadata }))
    }

    fn error(&mut self, error: tonic_types::Status) -> Option<OutcomeResult> {
        if !(1..=16).contains(&error.code) {
            let limit = "must be the google.rpc.Code of an error, 1 to 16";
            let sent = error.code.to_string();
            return self.refuse(ErrorReason::OutcomeInvalid, "outcome.error.code", limit, sent);
        }
        let details = error.details.into_iter().map(|any| (any.type_url, Bytes::from(any.value))).collect();
        Some(OutcomeResult::Error { code: error.code, message: error.message, details })
    }
}

/// A duration within a range, cut to whole milliseconds: the stores keep no finer ones, and what a caller is
/// told must be what is stored.
fn in_range(sent: &prost_types::Duration, min: Duration, max: Duration) -> Option<Duration> {
    let duration = positive(sent).filter(|duration| (min..=max).contains(duration))?;
    u64::try_from(duration.as_millis()).ok().map(Duration::from_millis)
}

/// A well-formed duration of 0 or more.
fn positive(sent: &prost_types::Duration) -> Option<Duration> {
    let seconds = u64::try_from(sent.seconds).ok().filter(|_| sent.seconds <= DURATION_MAX_SECONDS)?;
    let nanos = u32::try_from(sent.nanos).ok().filter(|&nanos| nanos < 1_000_000_000)?;
    Some(Duration::new(seconds, nanos))
}

/// A bound as a person would say it.
fn bound(time: Duration) -> String {
    const UNITS: [(&str, u128); 4] = [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)];
    let ms = time.as_millis();
    match UNITS.into_iter().find(|(_, unit)| ms >= *unit && ms.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{} {name}", ms / unit),
        None => format!("{ms} ms"),
    }
}

fn spelt(sent: &prost_types::Duration) -> String {
    match (positive(sent), sent.nanos) {
        (Some(duration), _) => format!("{duration:?}"),
        (None, 0) => format!("{} s", sent.seconds),
        (None, nanos) => format!("{} s and {nanos} ns", sent.seconds),
    }
}

fn sized(bytes: usize) -> String {
    format!("{bytes} bytes")
}

/// A name as an error quotes it: escaped, and cut if it is long.
fn quoted(name: &str) -> String {
    let mut quoted = String::from("\"");
    quoted.extend(name.chars().take(QUOTE_MAX_CHARS).flat_map(char::escape_debug));
    quoted.push('"');
    if name.chars().nth(QUOTE_MAX_CHARS).is_some() {
        // Writing to a string cannot fail.
        let _ = write!(quoted, " and more, {} bytes in all", name.len());
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::limits::{LOCK_TTL_MAX, RETENTION_MAX};

    fn sent(seconds: i64, nanos: i32) -> prost_types::Duration {
        prost_types::Duration { seconds, nanos }
    }

    #[test]
    fn durations_are_read_or_refused_but_never_wrapped() {
        assert_eq!(positive(&sent(0, 0)), Some(Duration::ZERO));
        assert_eq!(positive(&sent(2, 500_000_000)), Some(Duration::from_millis(2_500)));
        let malformed =
            [(-1, 0), (0, -1), (1, -1), (-1, 1), (1, 1_000_000_000), (0, i32::MIN), (i64::MIN, 0)];
        for (seconds, nanos) in malformed {
            assert_eq!(positive(&sent(seconds, nanos)), None, "{seconds} {nanos}");
        }
        assert_eq!(positive(&sent(DURATION_MAX_SECONDS + 1, 0)), None);
        assert_eq!(positive(&sent(i64::MAX, i32::MAX)), None);
    }

    #[test]
    fn a_stored_duration_has_whole_milliseconds_and_stays_in_its_range() {
        let range = |seconds, nanos| in_range(&sent(seconds, nanos), LOCK_TTL_MIN, LOCK_TTL_MAX);
        assert_eq!(range(2, 0), Some(LOCK_TTL_MIN));
        assert_eq!(range(2, 1_999_999), Some(Duration::from_millis(2_001)));
        assert_eq!(range(1, 999_999_999), None);
        assert_eq!(range(3_600, 0), Some(LOCK_TTL_MAX));
        assert_eq!(range(3_600, 1), None);
    }

    #[test]
    fn bounds_are_told_in_the_unit_that_people_would_take() {
        let told = [RETENTION_MIN, RETENTION_MAX, LOCK_TTL_MIN, LOCK_TTL_MAX, Duration::from_millis(2_500)];
        assert_eq!(told.map(bound), ["1 min", "31 d", "2 s", "1 h", "2500 ms"]);
    }

    #[test]
    fn a_quoted_name_is_short_and_escaped() {
        assert_eq!(quoted("Up"), "\"Up\"");
        assert_eq!(quoted("a\nb"), "\"a\\nb\"");
        let long = quoted(&"x".repeat(5_000));
        assert!(long.len() < 150 && long.ends_with("5000 bytes in all"), "{long}");
    }
}
