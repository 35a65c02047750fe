//! Calls and answers of the API, as a history has them.

use std::collections::BTreeMap;
use std::time::Duration;

use onced::record::limits::{LOCK_TTL_DEFAULT, RETENTION_DEFAULT};
use onced_client::v1::session_request::Call;
use onced_client::v1::session_response::Answer;
use onced_client::v1::{self, begin_response, lookup_response, watch_response};
use onced_history as history;
use onced_history::{Fate, Payload, Time};
use prost::Message;
use tonic::Streaming;
use tonic_types::{Status, pb};

/// A call.
pub fn call(call: &Call) -> history::Call {
    match call {
        Call::Begin(request) => history::Call::Begin(history::Begin {
            request_id: request.request_id.as_str().into(),
            owner: request.owner.as_str().into(),
            fingerprint: (!request.fingerprint.is_empty()).then(|| (&request.fingerprint).into()),
            lock_ttl: time(request.lock_ttl).unwrap_or(LOCK_TTL_DEFAULT),
            retention: time(request.retention).unwrap_or(RETENTION_DEFAULT),
            on_lapse: match request.on_lapse() {
                v1::OnLapse::Unspecified | v1::OnLapse::TakeOver => history::OnLapse::TakeOver,
                v1::OnLapse::Hold => history::OnLapse::Hold,
            },
        }),
        Call::Complete(request) => history::Call::Complete {
            token: request.fencing_token,
            outcome: outcome(request.outcome.as_ref()),
            retention: time(request.retention),
        },
        Call::Renew(request) => history::Call::Renew {
            token: request.fencing_token,
            checkpoint: request.checkpoint.as_ref().map(checkpoint),
        },
        Call::Release(request) => history::Call::Release {
            token: request.fencing_token,
            disposition: match request.disposition() {
                v1::Disposition::Retry => history::Disposition::Retry,
                v1::Disposition::InDoubt => history::Disposition::InDoubt,
                v1::Disposition::Unspecified => panic!("a Release that is refused"),
            },
        },
        Call::Lookup(request) => history::Call::Lookup { waits: request.wait.is_some() },
        Call::Cancel(_) => panic!("it is of another call"),
    }
}

/// What a call was told; or what became of it, if that is not known.
pub fn told(answer: &Result<Answer, Status>) -> Result<history::Answer, fn(Time) -> Fate> {
    Ok(match answer {
        Ok(Answer::Begin(v1::BeginResponse { result: Some(result) })) => match result {
            begin_response::Result::Claim(it) => claim(it),
            begin_response::Result::Completed(it) => completed(it),
            begin_response::Result::InProgress(it) => in_progress(it),
            begin_response::Result::InDoubt(it) => in_doubt(it),
        },
        Ok(Answer::Lookup(v1::LookupResponse { record: Some(record) })) => match record {
            lookup_response::Record::Completed(it) => completed(it),
            lookup_response::Record::InProgress(it) => in_progress(it),
            lookup_response::Record::InDoubt(it) => in_doubt(it),
            lookup_response::Record::Available(it) => available(it),
        },
        Ok(Answer::Complete(it)) => history::Answer::Stored { repeated: it.repeated },
        Ok(Answer::Renew(it)) => {
            history::Answer::Renewed { lock_ttl: time(it.lock_expires_in).expect("a time") }
        }
        Ok(Answer::Release(_)) => history::Answer::Ok,
        Ok(other) => panic!("not an answer: {other:?}"),
        Err(status) => return refused(status),
    })
}

/// What a watch is told next; `None` if it is over, or broke, without another word on the key.
pub async fn next_of(states: &mut Streaming<v1::WatchResponse>) -> Option<history::Answer> {
    match states.message().await {
        Ok(None) => None,
        Ok(Some(v1::WatchResponse { record })) => Some(match record.expect("a record") {
            watch_response::Record::Completed(it) => completed(&it),
            watch_response::Record::InProgress(it) => in_progress(&it),
            watch_response::Record::InDoubt(it) => in_doubt(&it),
            watch_response::Record::Available(it) => available(&it),
        }),
        Err(broken) if broken.details().is_empty() => None,
        Err(status) => refused(&Status::decode(status.details()).expect("a google.rpc.Status")).ok(),
    }
}

/// What a call was told that failed.
pub fn refused(status: &Status) -> Result<history::Answer, fn(Time) -> Fate> {
    let info = info(status);
    Ok(match info.reason.as_str() {
        "FINGERPRINT_MISMATCH" => history::Answer::FingerprintMismatch,
        "OUTCOME_CONFLICT" => history::Answer::OutcomeConflict,
        "CLAIM_LOST" => history::Answer::ClaimLost,
        "CLAIM_HELD" => history::Answer::ClaimHeld,
        "RECORD_NOT_FOUND" => history::Answer::NotFound,
        "STORE_UNAVAILABLE" | "STORE_FULL" if info.metadata["write"] == "not applied" => {
            return Err(Fate::NotApplied);
        }
        "STORE_UNAVAILABLE" | "OVERLOADED" | "DRAINING" | "DEADLINE_EXCEEDED" | "CANCELLED" => {
            return Err(Fate::Unknown);
        }
        _ => panic!("a fault: {status:?}"),
    })
}

/// The ErrorInfo of an error, which has exactly one, of our domain.
#[track_caller]
pub fn info(status: &Status) -> pb::ErrorInfo {
    let url = tonic_types::ErrorInfo::TYPE_URL;
    let mut infos = status.details.iter().filter(|any| any.type_url == url);
    let info = infos.next().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert!(infos.next().is_none(), "more than one ErrorInfo: {status:?}");
    let info = pb::ErrorInfo::decode(info.value.as_slice()).unwrap();
    assert_eq!(info.domain, "onced.dev");
    info
}

fn claim(claim: &v1::Claim) -> history::Answer {
    history::Answer::Claim(history::Claim {
        token: claim.fencing_token,
        attempt: claim.attempt,
        lock_ttl: time(claim.lock_ttl).expect("a lock TTL"),
        waited: time(claim.waited).expect("a wait"),
        resumed: claim.resumed,
        checkpoint: claim.checkpoint.as_ref().map(checkpoint),
    })
}

fn completed(completed: &v1::Completed) -> history::Answer {
    history::Answer::Completed {
        token: completed.fencing_token,
        attempt: completed.attempt,
        owner: completed.owner.as_str().into(),
        outcome: outcome(completed.outcome.as_ref()),
    }
}

fn in_progress(in_progress: &v1::InProgress) -> history::Answer {
    history::Answer::InProgress { attempt: in_progress.attempt, owner: in_progress.owner.as_str().into() }
}

fn in_doubt(in_doubt: &v1::InDoubt) -> history::Answer {
    history::Answer::InDoubt {
        token: in_doubt.fencing_token,
        attempt: in_doubt.attempt,
        owner: in_doubt.owner.as_str().into(),
    }
}

fn available(available: &v1::Available) -> history::Answer {
    history::Answer::Available { attempt: available.attempt, owner: available.owner.as_str().into() }
}

fn checkpoint(checkpoint: &v1::Checkpoint) -> history::Checkpoint {
    history::Checkpoint { sequence: checkpoint.sequence, data: (&checkpoint.data).into() }
}

/// A response alone as it is, for people; anything else with all its parts, its map sorted.
pub fn outcome(outcome: Option<&v1::Outcome>) -> Payload {
    let v1::Outcome { result, content_type, metadata } = outcome.expect("an outcome");
    match result {
        Some(v1::outcome::Result::Response(it)) if content_type.is_empty() && metadata.is_empty() => {
            it.into()
        }
        _ => {
            let metadata: BTreeMap<_, _> = metadata.iter().collect();
            (&format!("{result:?} {content_type:?} {metadata:?}")).into()
        }
    }
}

fn time(time: Option<prost_types::Duration>) -> Option<Duration> {
    time.map(|time| time.try_into().expect("a sane time"))
}
