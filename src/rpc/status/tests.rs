//! The table: each failure to its code, reason and retry hint.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tonic_types::StatusExt;

use super::*;
use crate::access::Action;
use crate::record::{Begin, Change, Command, Decision, Lock, OnLapse, RequestId, Timestamp, decide};
use crate::rpc::failure::{Limit, Quota};

fn standing() -> Option<Box<View>> {
    let begin = Begin {
        request_id: RequestId([1; 16]),
        owner: "the owner".to_owned(),
        fingerprint: None,
        lock_ttl: Duration::from_secs(30),
        retention: Duration::from_secs(60),
        on_lapse: OnLapse::TakeOver,
    };
    let Decision::Write(Change::Claim(record)) =
        decide(&Command::Begin(begin), None, Timestamp::from_micros(0))
    else {
        panic!("a Begin of an absent key is a claim");
    };
    let record = Arc::new(record.written_at(7));
    Some(Box::new(View::of(&record, Lock::Held, Timestamp::from_micros(0))))
}

fn refused(refusal: Refusal) -> Failure {
    Failure::Coordinator(Error::Refused { refusal, current: standing() })
}

fn store(error: fn(String) -> StoreError) -> Failure {
    Failure::Coordinator(Error::Store(error("etcd-3 said: secret".to_owned())))
}

fn invalid(reason: ErrorReason) -> Failure {
    Failure::invalid(reason, "key", "must have 1 to 512 bytes", "0 bytes")
}

fn quota() -> Quota {
    let namespace = "orders".to_owned();
    Quota { namespace, limit: "max_claims", size: 5, retry: Duration::from_millis(1_500) }
}

fn denied() -> Failure {
    let (caller, namespace) = ("token:ci".to_owned(), "orders".to_owned());
    Failure::Denied(Box::new(Denied { caller, namespace, action: Action::Begin }))
}

/// Failure, code, reason, whether a retry helps, whether gRPC's policies are told to.
fn table() -> Vec<(Failure, Code, &'static str, bool, bool)> {
    use Code as C;
    vec![
        (invalid(ErrorReason::KeyRequired), C::InvalidArgument, "KEY_REQUIRED", false, false),
        (refused(Refusal::FingerprintMismatch), C::FailedPrecondition, "FINGERPRINT_MISMATCH", false, false),
        (refused(Refusal::OutcomeConflict), C::FailedPrecondition, "OUTCOME_CONFLICT", false, false),
        (refused(Refusal::ClaimLost), C::Aborted, "CLAIM_LOST", false, false),
        (refused(Refusal::RequestSpent), C::Aborted, "CLAIM_LOST", false, false),
        (refused(Refusal::ClaimHeld), C::FailedPrecondition, "CLAIM_HELD", false, false),
        (refused(Refusal::NotFound), C::NotFound, "RECORD_NOT_FOUND", false, false),
        (store(StoreError::NotApplied), C::Unavailable, "STORE_UNAVAILABLE", true, false),
        (store(StoreError::OutcomeUnknown), C::Unavailable, "STORE_UNAVAILABLE", true, false),
        (store(StoreError::Full), C::ResourceExhausted, "STORE_FULL", true, false),
        (store(StoreError::corrupt), C::DataLoss, "RECORD_CORRUPT", false, false),
        (Failure::DRAINING, C::Unavailable, "DRAINING", true, true),
        (Failure::Coordinator(Error::Fault), C::Internal, "INTERNAL", false, false),
        (Failure::Overloaded(Limit::Active(1)), C::Unavailable, "OVERLOADED", true, true),
        (Failure::Overloaded(Limit::Holders(1)), C::Unavailable, "OVERLOADED", true, true),
        (Failure::Overloaded(Limit::Waiting(1)), C::Unavailable, "OVERLOADED", true, true),
        (Failure::Overloaded(Limit::Session(1)), C::Unavailable, "OVERLOADED", true, true),
        (Failure::Quota(quota()), C::ResourceExhausted, "QUOTA_EXCEEDED", true, false),
        (Failure::Unproven(Unproven::Missing), C::Unauthenticated, "CREDENTIALS_MISSING", false, false),
        (Failure::Unproven(Unproven::Invalid("x")), C::Unauthenticated, "CREDENTIALS_INVALID", false, false),
        (Failure::Unproven(Unproven::Expired), C::Unauthenticated, "CREDENTIALS_EXPIRED", false, false),
        (denied(), C::PermissionDenied, "ACCESS_DENIED", false, false),
        (Failure::DeadlineExceeded, C::DeadlineExceeded, "DEADLINE_EXCEEDED", false, false),
        (Failure::Cancelled, C::Cancelled, "CANCELLED", false, false),
        (Failure::UnknownMethod("/a/B".to_owned()), C::Unimplemented, "UNIMPLEMENTED", false, false),
        (Failure::UnknownEncoding("br".to_owned()), C::Unimplemented, "UNIMPLEMENTED", false, false),
        (Failure::Internal("x"), C::Internal, "INTERNAL", false, false),
    ]
}

#[test]
fn each_failure_has_its_code_reason_and_retry_hint() {
    for (failure, code, reason, retries, pushes_back) in table() {
        let status = failure.to_status();
        assert_eq!(status.code(), code, "{failure:?}");
        let details = status.get_error_details_vec();
        let infos: Vec<_> = details
            .iter()
            .filter_map(|detail| match detail {
                tonic_types::ErrorDetail::ErrorInfo(info) => Some(info),
                _ => None,
            })
            .collect();
        assert_eq!(infos.len(), 1, "{failure:?}: exactly one ErrorInfo");
        assert_eq!((infos[0].reason.as_str(), infos[0].domain.as_str()), (reason, "onced.dev"));
        let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
        assert_eq!(delay.is_some_and(|delay| !delay.is_zero()), retries, "{failure:?}");
        let pushback = status.metadata().get(PUSHBACK).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(pushback.is_some(), pushes_back, "{failure:?}");
        assert!(pushback.is_none_or(|ms| ms.parse::<u64>().unwrap() > 0), "{failure:?}");
        assert_eq!(status.get_details_bad_request().is_some(), code == Code::InvalidArgument);
        assert!(!status.message().is_empty());
    }
}

#[test]
fn a_quota_is_told_with_its_namespace_its_size_and_when_to_come_back() {
    let status = Failure::Quota(quota()).to_status();
    let metadata = status.get_details_error_info().unwrap().metadata;
    let expected = [("namespace", "orders"), ("limit", "max_claims"), ("size", "5")];
    assert_eq!(metadata, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_millis(1_500)));
}

#[test]
fn a_session_is_told_the_same_as_a_unary_call() {
    for (failure, ..) in table() {
        let (inner, outer) = (failure.to_rpc_status(), failure.to_status());
        assert_eq!((inner.code, inner.message.as_str()), (outer.code() as i32, outer.message()));
        let decoded = pb::Status::decode(outer.details()).unwrap();
        let kinds = |status: &pb::Status| -> Vec<String> {
            status.details.iter().map(|any| any.type_url.clone()).collect()
        };
        assert_eq!(kinds(&inner), kinds(&decoded));
    }
}

#[test]
fn what_a_store_says_stays_inside() {
    for (failure, ..) in table() {
        let status = failure.to_rpc_status().encode_to_vec();
        assert!(!String::from_utf8_lossy(&status).contains("secret"), "{failure:?}");
    }
}

#[test]
fn a_lost_claim_tells_what_is_there_but_not_whose_it_is() {
    let status = refused(Refusal::ClaimLost).to_status();
    let metadata = status.get_details_error_info().unwrap().metadata;
    let told = [("state", "in_progress"), ("attempt", "1"), ("fencing_token", "7")];
    let told: HashMap<_, _> =
        told.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect();
    assert_eq!(metadata, told);
    let spent = refused(Refusal::RequestSpent).to_status().get_details_error_info().unwrap().metadata;
    assert_eq!(spent.get("request_id").map(String::as_str), Some("spent"));
}

#[test]
fn a_mismatch_tells_nothing_of_the_key() {
    let info = refused(Refusal::FingerprintMismatch).to_status().get_details_error_info().unwrap();
    assert!(info.metadata.is_empty());
}

#[test]
fn the_first_violation_gives_the_reason_and_all_are_told() {
    let Failure::Invalid(mut violations) = invalid(ErrorReason::KeyRequired) else { panic!() };
    let Failure::Invalid(second) = Failure::invalid(ErrorReason::TokenRequired, "fencing_token", "x", "0")
    else {
        panic!()
    };
    violations.extend(second);
    let status = Failure::Invalid(violations).to_status();
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.reason, "KEY_REQUIRED");
    assert_eq!(info.metadata.get("sent").map(String::as_str), Some("0 bytes"));
    let fields: Vec<_> = status.get_details_bad_request().unwrap().field_violations;
    assert_eq!(fields.iter().map(|v| v.field.as_str()).collect::<Vec<_>>(), ["key", "fencing_token"]);
}

#[test]
fn each_reason_is_spelt_as_error_info_wants_it() {
    let reasons = (1..).map_while(|number| ErrorReason::try_from(number).ok());
    let names: BTreeSet<_> = reasons.map(name).collect();
    assert_eq!(names.len(), 42);
    for name in names {
        assert!(name.len() <= 63 && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{name}");
    }
}

#[test]
fn each_reason_has_a_page_and_each_page_a_reason() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors");
    let reasons: BTreeSet<_> = (1..)
        .map_while(|number| ErrorReason::try_from(number).ok())
        .map(|reason| format!("{}.md", name(reason)))
        .collect();
    let pages: BTreeSet<_> = std::fs::read_dir(&docs)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|page| page != "README.md")
        .collect();
    assert_eq!(reasons, pages);
    let index = std::fs::read_to_string(docs.join("README.md")).unwrap();
    for page in pages {
        assert!(index.contains(&format!("({page})")), "{page} is not in the index");
        let reason = page.trim_end_matches(".md");
        let text = std::fs::read_to_string(docs.join(&page)).unwrap();
        let reason = (1..)
            .map_while(|number| ErrorReason::try_from(number).ok())
            .find(|known| name(*known) == reason)
            .unwrap();
        let code = format!("{:?}", code(reason));
        let screaming: String = code
            .char_indices()
            .flat_map(|(at, c)| {
                let gap = (at > 0 && c.is_uppercase()).then_some('_');
                gap.into_iter().chain([c.to_ascii_uppercase()])
            })
            .collect();
        assert!(text.contains(&format!("`{screaming}`")), "{page} does not name its code {screaming}");
    }
}
