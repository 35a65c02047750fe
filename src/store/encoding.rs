//! The only file that knows both a record and its stored form.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;

use self::stored::stored_outcome::Result as StoredResult;
use self::stored::stored_record::State as StoredState;
use self::stored::{
    StoredCheckpoint, StoredCompleted, StoredDetail, StoredError, StoredInDoubt, StoredInProgress,
    StoredOnLapse, StoredOutcome, StoredRecord, StoredReleased,
};
use super::{Revision, StoreError};
use crate::record::{
    Checkpoint, DoubtCause, FencingToken, Fingerprint, OnLapse, Outcome, OutcomeResult, Record, RequestId,
    State, Timestamp,
};

#[allow(clippy::all, clippy::pedantic)]
mod stored {
    include!(concat!(env!("OUT_DIR"), "/onced.store.v1.rs"));
}

/// The version of the stored form that this server writes, and the newest that it reads. Stores mark what
/// they keep with it, so that a store written by a newer server is refused as a whole.
pub(super) const STORE_FORMAT: u32 = 1;

/// What a store itself writes down with a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Placement {
    /// etcd: the lease whose sentinel is the record's lock. 0: no lock.
    pub lock_lease: i64,
    /// Embedded: the running time at which the record expires, in milliseconds. 0: never.
    pub keep_until_ms: u64,
}

/// A record as read, and what its store wrote down with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    pub record: Record,
    pub placement: Placement,
}

/// The version alone: the one field that no later form may move.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredFormat {
    #[prost(uint32, tag = "1")]
    format: u32,
}

/// What a sweep wants to know, without reading the rest.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredExpiry {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint64, tag = "21")]
    keep_until_ms: u64,
}

/// The stored form of a record.
pub(super) fn encode(record: &Record, placement: &Placement) -> Vec<u8> {
    StoredRecord {
        format: STORE_FORMAT,
        fencing_token: record.fencing_token.0,
        attempt: record.attempt,
        request_id: record.request_id.0.to_vec().into(),
        owner: record.owner.clone(),
        fingerprint: record.fingerprint.as_ref().map(|it| it.as_bytes().clone()).unwrap_or_default(),
        checkpoint: record
            .checkpoint
            .as_ref()
            .map(|it| StoredCheckpoint { sequence: it.sequence, data: it.data.clone() }),
        began_at_us: record.began_at.as_micros(),
        retention_ms: millis(record.retention),
        lock_lease: placement.lock_lease,
        keep_until_ms: placement.keep_until_ms,
        state: Some(encode_state(&record.state)),
    }
    .encode_to_vec()
}

fn encode_state(state: &State) -> StoredState {
    match state {
        State::InProgress { lock_ttl, on_lapse, armed_at } => StoredState::InProgress(StoredInProgress {
            lock_ttl_ms: millis(*lock_ttl),
            on_lapse: match on_lapse {
                OnLapse::TakeOver => StoredOnLapse::TakeOver.into(),
                OnLapse::Hold => StoredOnLapse::Hold.into(),
            },
            armed_at_us: armed_at.as_micros(),
        }),
        State::Released { since, reason, request_spent } => StoredState::Released(StoredReleased {
            since_us: since.as_micros(),
            reason: reason.clone(),
            request_spent: *request_spent,
        }),
        State::InDoubt { since, cause } => StoredState::InDoubt(StoredInDoubt {
            since_us: since.as_micros(),
            by_release: matches!(cause, DoubtCause::Release(_)),
            reason: match cause {
                DoubtCause::Lapse => String::new(),
                DoubtCause::Release(reason) => reason.clone(),
            },
        }),
        State::Completed { outcome, completed_at, resolved_from } => {
            StoredState::Completed(StoredCompleted {
                outcome: Some(encode_outcome(outcome)),
                completed_at_us: completed_at.as_micros(),
                resolved_from: resolved_from.map_or(0, |token| token.0),
            })
        }
    }
}

fn encode_outcome(outcome: &Outcome) -> StoredOutcome {
    let result = match &outcome.result {
        OutcomeResult::Response(response) => StoredResult::Response(response.clone()),
        OutcomeResult::Error { code, message, details } => StoredResult::Error(StoredError {
            code: *code,
            message: message.clone(),
            details: details
                .iter()
                .map(|(type_url, value)| StoredDetail { type_url: type_url.clone(), value: value.clone() })
                .collect(),
        }),
    };
    StoredOutcome {
        content_type: outcome.content_type.clone(),
        metadata: outcome.metadata.clone(),
        result: Some(result),
    }
}

/// Reads the stored form of a record that was written at `revision`.
pub(super) fn decode(bytes: &[u8], revision: Revision) -> Result<Decoded, StoreError> {
    let stored = StoredRecord::decode(bytes).map_err(|error| {
        // A newer form may not even parse as ours, so its version is looked at first.
        let format = StoredFormat::decode(bytes).map_err(|_| "it is not a record of onced".to_owned());
        let why = format.and_then(|stored| check_format(stored.format)).err();
        corrupt(&why.unwrap_or_else(|| format!("it does not parse: {error}")))
    })?;
    check_format(stored.format).map_err(StoreError::corrupt)?;
    let placement = Placement { lock_lease: stored.lock_lease, keep_until_ms: stored.keep_until_ms };
    let record = decode_record(stored)?.written_at(revision.0);
    Ok(Decoded { record, placement })
}

/// Reads nothing but the running time until which a record is kept, in milliseconds. 0: for ever.
pub(super) fn decode_keep_until_ms(bytes: &[u8]) -> Result<u64, StoreError> {
    let stored = StoredExpiry::decode(bytes).map_err(|_| corrupt("it is not a record of onced"))?;
    check_format(stored.format).map_err(StoreError::corrupt)?;
    Ok(stored.keep_until_ms)
}

/// Whether this server reads a form of this version; if not, why.
pub(super) fn check_format(format: u32) -> Result<(), String> {
    match format {
        0 => Err("it names no format version, so it is not a record of onced or was damaged".to_owned()),
        1..=STORE_FORMAT => Ok(()),
        newer => Err(format!(
            "a newer onced wrote it, in format {newer}; this one reads up to format {STORE_FORMAT}: \
             run the newer version"
        )),
    }
}

fn decode_record(stored: StoredRecord) -> Result<Record, StoreError> {
    let request_id = <[u8; 16]>::try_from(stored.request_id.as_ref())
        .map_err(|_| corrupt("its request id is not of 16 bytes"))?;
    let fingerprint = match stored.fingerprint {
        digest if digest.is_empty() => None,
        digest => Some(Fingerprint::new(digest).ok_or_else(|| corrupt("its fingerprint is too long"))?),
    };
    Ok(Record {
        fencing_token: FencingToken(stored.fencing_token),
        attempt: stored.attempt,
        request_id: RequestId(request_id),
        owner: stored.owner,
        fingerprint,
        checkpoint: stored.checkpoint.map(|it| Checkpoint { sequence: it.sequence, data: it.data }),
        began_at: Timestamp::from_micros(stored.began_at_us),
        retention: Duration::from_millis(stored.retention_ms),
        state: decode_state(stored.state.ok_or_else(|| corrupt("it has no state, or one unknown here"))?)?,
    })
}

fn decode_state(state: StoredState) -> Result<State, StoreError> {
    Ok(match state {
        StoredState::InProgress(it) => State::InProgress {
            lock_ttl: Duration::from_millis(it.lock_ttl_ms),
            on_lapse: match StoredOnLapse::try_from(it.on_lapse) {
                Ok(StoredOnLapse::TakeOver) => OnLapse::TakeOver,
                Ok(StoredOnLapse::Hold) => OnLapse::Hold,
                Ok(StoredOnLapse::Unspecified) | Err(_) => {
                    return Err(corrupt("its policy on lapse is unknown here"));
                }
            },
            armed_at: Timestamp::from_micros(it.armed_at_us),
        },
        StoredState::Released(it) => State::Released {
            since: Timestamp::from_micros(it.since_us),
            reason: it.reason,
            request_spent: it.request_spent,
        },
        StoredState::InDoubt(it) => State::InDoubt {
            since: Timestamp::from_micros(it.since_us),
            cause: if it.by_release { DoubtCause::Release(it.reason) } else { DoubtCause::Lapse },
        },
        StoredState::Completed(it) => State::Completed {
            outcome: Arc::new(decode_outcome(it.outcome)?),
            completed_at: Timestamp::from_micros(it.completed_at_us),
            resolved_from: (it.resolved_from != 0).then_some(FencingToken(it.resolved_from)),
        },
    })
}

fn decode_outcome(outcome: Option<StoredOutcome>) -> Result<Outcome, StoreError> {
    let outcome = outcome.ok_or_else(|| corrupt("it is completed without an outcome"))?;
    let result = match outcome.result.ok_or_else(|| corrupt("its outcome has no result"))? {
        StoredResult::Response(response) => OutcomeResult::Response(response),
        StoredResult::Error(error) => OutcomeResult::Error {
            code: error.code,
            message: error.message,
            details: error.details.into_iter().map(|it| (it.type_url, it.value)).collect(),
        },
    };
    Ok(Outcome { result, content_type: outcome.content_type, metadata: outcome.metadata })
}

/// Whole milliseconds, rounded up: what is stored must not be shorter than what was asked for.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn corrupt(what: &str) -> StoreError {
    StoreError::corrupt(what)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    const REVISION: Revision = Revision(42);

    fn timestamps() -> impl Strategy<Value = Timestamp> {
        any::<i64>().prop_map(Timestamp::from_micros)
    }

    fn durations() -> impl Strategy<Value = Duration> {
        any::<u64>().prop_map(Duration::from_millis)
    }

    fn blobs() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..64).prop_map(Bytes::from)
    }

    fn outcomes() -> impl Strategy<Value = Outcome> {
        let of = |result| Outcome { result, content_type: String::new(), metadata: BTreeMap::new() };
        let details = proptest::collection::vec((any::<String>(), blobs()), 0..3);
        let bare = prop_oneof![
            blobs().prop_map(move |response| of(OutcomeResult::Response(response))),
            (any::<i32>(), any::<String>(), details).prop_map(move |(code, message, details)| of(
                OutcomeResult::Error { code, message, details }
            )),
        ];
        let metadata = proptest::collection::btree_map(any::<String>(), any::<String>(), 0..3);
        (bare, any::<String>(), metadata).prop_map(|(bare, content_type, metadata)| Outcome {
            content_type,
            metadata,
            ..bare
        })
    }

    /// Records of any state, everything else left empty. (A state alone has no Debug: it holds payloads.)
    fn states() -> impl Strategy<Value = Record> {
        let of = |state| Record {
            fencing_token: FencingToken(0),
            attempt: 0,
            request_id: RequestId([0; 16]),
            owner: String::new(),
            fingerprint: None,
            checkpoint: None,
            began_at: Timestamp::default(),
            retention: Duration::ZERO,
            state,
        };
        let on_lapse = prop_oneof![Just(OnLapse::TakeOver), Just(OnLapse::Hold)];
        let cause = prop_oneof![Just(DoubtCause::Lapse), any::<String>().prop_map(DoubtCause::Release)];
        let resolved_from = proptest::option::of((1..u64::MAX).prop_map(FencingToken));
        prop_oneof![
            (durations(), on_lapse, timestamps()).prop_map(move |(lock_ttl, on_lapse, armed_at)| of(
                State::InProgress { lock_ttl, on_lapse, armed_at }
            )),
            (timestamps(), any::<String>(), any::<bool>()).prop_map(move |(since, reason, request_spent)| {
                of(State::Released { since, reason, request_spent })
            }),
            (timestamps(), cause).prop_map(move |(since, cause)| of(State::InDoubt { since, cause })),
            (outcomes(), timestamps(), resolved_from).prop_map(
                move |(outcome, completed_at, resolved_from)| {
                    of(State::Completed { outcome: Arc::new(outcome), completed_at, resolved_from })
                }
            ),
        ]
    }

    fn records() -> impl Strategy<Value = Record> {
        let fingerprint =
            proptest::collection::vec(any::<u8>(), 0..=64).prop_map(|it| Fingerprint::new(it.into()));
        let checkpoint = proptest::option::of((any::<u64>(), blobs()))
            .prop_map(|it| it.map(|(sequence, data)| Checkpoint { sequence, data }));
        let claim = (any::<u64>(), any::<u64>(), any::<[u8; 16]>(), any::<String>());
        (states(), claim, fingerprint, checkpoint, timestamps(), durations()).prop_map(
            |(bare, (token, attempt, request_id, owner), fingerprint, checkpoint, began_at, retention)| {
                Record {
                    fencing_token: FencingToken(token),
                    attempt,
                    request_id: RequestId(request_id),
                    owner,
                    fingerprint,
                    checkpoint,
                    began_at,
                    retention,
                    ..bare
                }
            },
        )
    }

    proptest! {
        #[test]
        fn every_record_survives_the_round_trip(
            record in records(), lock_lease: i64, keep_until_ms: u64
        ) {
            let placement = Placement { lock_lease, keep_until_ms };
            let decoded = decode(&encode(&record, &placement), REVISION);
            prop_assert_eq!(decoded, Ok(Decoded { record: record.clone().written_at(REVISION.0), placement }));
            prop_assert_eq!(decode_keep_until_ms(&encode(&record, &placement)), Ok(keep_until_ms));
        }

        #[test]
        fn no_bytes_whatever_bring_it_down(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode(&bytes, REVISION);
        }

        #[test]
        fn a_record_cut_short_is_refused_or_still_of_the_same_claim(record in records(), cut: usize) {
            let whole = encode(&record, &Placement::default());
            let cut = cut % whole.len();
            match decode(&whole[..cut], REVISION) {
                Err(StoreError::Corrupt { .. }) => {}
                // What ends between two fields parses; the state comes last, so little can be missing.
                Ok(decoded) => prop_assert_eq!(decoded.record.request_id, record.request_id),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }

    fn some_stored() -> StoredRecord {
        let response = StoredResult::Response(Bytes::from_static(b"done"));
        let outcome = StoredOutcome { result: Some(response), ..StoredOutcome::default() };
        StoredRecord {
            format: STORE_FORMAT,
            request_id: Bytes::from_static(&[7; 16]),
            state: Some(StoredState::Completed(StoredCompleted {
                outcome: Some(outcome),
                ..StoredCompleted::default()
            })),
            ..StoredRecord::default()
        }
    }

    fn refusal(stored: &StoredRecord) -> String {
        match decode(&stored.encode_to_vec(), REVISION) {
            Err(StoreError::Corrupt { why, .. }) => why,
            other => panic!("{other:?} instead of Corrupt"),
        }
    }

    #[test]
    fn the_token_of_this_write_becomes_its_revision_and_any_other_stays() {
        let token = |fencing_token| {
            let bytes = StoredRecord { fencing_token, ..some_stored() }.encode_to_vec();
            decode(&bytes, REVISION).map(|decoded| decoded.record.fencing_token)
        };
        assert_eq!(token(0), Ok(FencingToken(42)));
        assert_eq!(token(7), Ok(FencingToken(7)));
    }

    #[test]
    fn a_newer_format_is_refused_by_its_number() {
        let why = refusal(&StoredRecord { format: STORE_FORMAT + 1, ..some_stored() });
        assert!(why.contains("a newer onced wrote it, in format 2"), "{why}");
    }

    #[test]
    fn a_newer_format_is_told_from_garbage_even_if_nothing_else_parses() {
        // Field 1 = 9; then field 5, in our form a string, as a varint.
        let why = match decode(&[0x08, 9, 0x28, 1], REVISION) {
            Err(StoreError::Corrupt { why, .. }) => why,
            other => panic!("{other:?} instead of Corrupt"),
        };
        assert!(why.contains("newer onced"), "{why}");
    }

    #[test]
    fn what_is_missing_or_unknown_is_refused_and_named() {
        let in_progress = |on_lapse| {
            Some(StoredState::InProgress(StoredInProgress { on_lapse, ..StoredInProgress::default() }))
        };
        let completed =
            |outcome| Some(StoredState::Completed(StoredCompleted { outcome, ..StoredCompleted::default() }));
        let cases = [
            (StoredRecord { format: 0, ..some_stored() }, "no format"),
            (StoredRecord { state: None, ..some_stored() }, "no state"),
            (StoredRecord { state: in_progress(0), ..some_stored() }, "policy on lapse"),
            (StoredRecord { state: in_progress(3), ..some_stored() }, "policy on lapse"),
            (StoredRecord { state: completed(None), ..some_stored() }, "without an outcome"),
            (StoredRecord { state: completed(Some(StoredOutcome::default())), ..some_stored() }, "no result"),
            (StoredRecord { request_id: Bytes::from_static(b"short"), ..some_stored() }, "request id"),
            (StoredRecord { fingerprint: vec![1; 65].into(), ..some_stored() }, "fingerprint"),
        ];
        for (stored, expected) in cases {
            let why = refusal(&stored);
            assert!(why.contains(expected), "{why:?} does not say {expected:?}");
        }
    }

    #[test]
    fn durations_round_up_so_that_nothing_is_kept_shorter_than_asked() {
        assert_eq!(millis(Duration::from_nanos(2_000_000_001)), 2_001);
        assert_eq!(millis(Duration::from_secs(2)), 2_000);
        assert_eq!(millis(Duration::MAX), u64::MAX);
    }
}
