//! What a call does, whichever way it comes: each row of the state machine's table that can be seen from
//! outside, and outcomes byte for byte.

use std::collections::BTreeMap;

use tonic::Code;

use super::*;

over_both! {
    an_absent_key_is_claimed
    the_same_request_id_and_owner_get_the_same_claim
    the_same_request_id_of_another_owner_waits_like_anyone
    a_held_key_is_in_progress
    a_released_key_is_claimed_again
    a_lapsed_key_is_taken_over_with_its_checkpoint
    a_lapsed_hold_is_in_doubt
    a_doubt_is_told_to_who_begins
    a_completed_key_is_replayed_byte_for_byte
    a_final_error_is_replayed_with_its_details_as_they_came
    the_largest_outcome_fits
    complete_leaves_the_outcome_out
    a_repeated_complete_is_ok_and_another_outcome_is_not
    a_late_complete_counts_unless_somebody_took_over
    a_doubt_and_a_released_claim_can_still_be_completed
    renew_arms_the_lock_of_begin_again
    an_older_checkpoint_never_comes_back
    release_is_repeatable_in_kind
    a_spent_request_id_is_refused
    what_nobody_began_is_not_found
    another_token_has_lost_the_claim
    a_mismatch_is_found_in_every_state
    lookup_tells_each_state
}

async fn an_absent_key_is_claimed(on: Fixture) {
    let claim = on.claim("a").await;
    assert!(claim.fencing_token > 0);
    assert_eq!((claim.attempt, claim.resumed, claim.checkpoint), (1, false, None));
    assert_eq!(claim.lock_ttl, seconds(30));
    assert!(claim.waited.is_some());
    assert_eq!(claim.max_outcome_bytes, 1 << 20);
}

async fn the_same_request_id_and_owner_get_the_same_claim(on: Fixture) {
    let request = v1::BeginRequest { owner: "host-1".to_owned(), ..begin("a") };
    let first = claim_of(on.caller.begin(request.clone()).await.unwrap());
    let second = claim_of(on.caller.begin(request).await.unwrap());
    assert_eq!((first.fencing_token, first.attempt), (second.fencing_token, second.attempt));
    assert_eq!((first.resumed, second.resumed), (false, true));
}

async fn the_same_request_id_of_another_owner_waits_like_anyone(on: Fixture) {
    let request = v1::BeginRequest { owner: "host-1".to_owned(), ..begin("a") };
    claim_of(on.caller.begin(request.clone()).await.unwrap());
    let other = v1::BeginRequest { owner: "host-2".to_owned(), ..request };
    assert_eq!(in_progress_of(on.caller.begin(other).await.unwrap()).owner, "host-1");
}

async fn a_held_key_is_in_progress(on: Fixture) {
    let request = v1::BeginRequest { owner: "host-1".to_owned(), lock_ttl: seconds(100), ..begin("a") };
    claim_of(on.caller.begin(request).await.unwrap());
    let told = in_progress_of(on.caller.begin(begin("a")).await.unwrap());
    assert_eq!((told.owner.as_str(), told.attempt), ("host-1", 1));
    assert!(told.began_at.is_some());
    let left = std_duration(told.lock_expires_in);
    assert!(left <= Duration::from_secs(100) && left > Duration::from_secs(10), "{left:?}");
    let pause = std_duration(told.retry_after);
    assert!(pause > Duration::ZERO && pause <= left, "{pause:?}");
}

async fn a_released_key_is_claimed_again(on: Fixture) {
    let first = on.claim("a").await;
    on.caller.release(release("a", first.fencing_token, v1::Disposition::Retry)).await.unwrap();
    let second = on.claim("a").await;
    assert_eq!((second.attempt, second.resumed), (2, false));
    assert!(second.fencing_token > first.fencing_token);
}

async fn a_lapsed_key_is_taken_over_with_its_checkpoint(on: Fixture) {
    let request = v1::BeginRequest { lock_ttl: seconds(2), ..begin("a") };
    let first = claim_of(on.caller.begin(request).await.unwrap());
    let saved = v1::Checkpoint { sequence: 3, data: Bytes::from_static(b"\x00half\xff") };
    let renewal = v1::RenewRequest { checkpoint: Some(saved.clone()), ..renew("a", first.fencing_token) };
    on.caller.renew(renewal).await.unwrap();

    let second = claim_of(on.caller.begin(patient("a")).await.unwrap());
    assert_eq!((second.attempt, second.checkpoint), (2, Some(saved)));
    assert!(second.fencing_token > first.fencing_token);
    assert!(std_duration(second.waited) >= Duration::from_secs(1), "it waited for the lapse");
}

async fn a_lapsed_hold_is_in_doubt(on: Fixture) {
    let hold = v1::OnLapse::Hold.into();
    let request = v1::BeginRequest { lock_ttl: seconds(2), on_lapse: hold, ..begin("a") };
    let first = claim_of(on.caller.begin(request).await.unwrap());
    let told = loop {
        match on.caller.begin(begin("a")).await.unwrap().result.unwrap() {
            begin_response::Result::InProgress(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            begin_response::Result::InDoubt(told) => break told,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((told.attempt, told.fencing_token), (1, first.fencing_token));
    assert!(told.since.is_some() && !told.reason.is_empty());
}

async fn a_doubt_is_told_to_who_begins(on: Fixture) {
    let claim = on.doubt("a").await;
    let told = in_doubt_of(on.caller.begin(begin("a")).await.unwrap());
    assert_eq!((told.fencing_token, told.reason.as_str()), (claim.fencing_token, "the test says so"));
}

async fn a_completed_key_is_replayed_byte_for_byte(on: Fixture) {
    let every_byte: Vec<u8> = (0..=255).collect();
    let metadata = [("z", "1"), ("a", ""), ("", "\u{1f980}")];
    let stored = v1::Outcome {
        result: Some(v1::outcome::Result::Response(every_byte.into())),
        content_type: "application/x-bytes; q=\"\u{fc}\"".to_owned(),
        metadata: metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    };
    let request = v1::BeginRequest { owner: "host-1".to_owned(), ..begin("a") };
    let claim = claim_of(on.caller.begin(request).await.unwrap());
    let request =
        v1::CompleteRequest { outcome: Some(stored.clone()), ..complete("a", claim.fencing_token, b"") };
    on.caller.complete(request).await.unwrap();

    let told = completed_of(on.caller.begin(begin("a")).await.unwrap());
    assert_eq!(told.outcome, Some(stored));
    assert_eq!((told.owner.as_str(), told.attempt), ("host-1", 1));
    assert_eq!(told.fencing_token, claim.fencing_token);
    let (at, until) = (told.completed_at.unwrap(), told.expires_at.unwrap());
    assert_eq!(until.seconds - at.seconds, 24 * 3_600, "the default retention");
}

async fn a_final_error_is_replayed_with_its_details_as_they_came(on: Fixture) {
    // Not protobuf, nothing, the same type twice: nobody has to understand details to keep them.
    let details =
        [("example.com/unknown", vec![0xff, 0, 0x80]), ("", vec![]), ("example.com/unknown", vec![7])];
    let any = |(url, value): (&str, Vec<u8>)| prost_types::Any { type_url: url.to_owned(), value };
    let error = Status { code: 16, message: "no \u{20ac}".to_owned(), details: details.map(any).into() };
    let result = Some(v1::outcome::Result::Error(error));
    let stored = v1::Outcome { result, ..v1::Outcome::default() };
    let claim = on.claim("a").await;
    let request =
        v1::CompleteRequest { outcome: Some(stored.clone()), ..complete("a", claim.fencing_token, b"") };
    on.caller.complete(request).await.unwrap();
    assert_eq!(completed_of(on.caller.begin(begin("a")).await.unwrap()).outcome, Some(stored));
}

async fn the_largest_outcome_fits(on: Fixture) {
    let metadata: BTreeMap<_, _> = [("key".to_owned(), "value".to_owned())].into();
    let sized = |bytes: usize| v1::Outcome {
        result: Some(v1::outcome::Result::Response(vec![7; bytes].into())),
        content_type: "text/plain".to_owned(),
        metadata: metadata.clone(),
    };
    let claim = on.claim("a").await;
    let max = usize::try_from(claim.max_outcome_bytes).unwrap();
    let around = sized(max - 1_000).encoded_len() - (max - 1_000);
    let largest = sized(max - around);
    assert_eq!(largest.encoded_len(), max);
    let complete =
        |outcome| v1::CompleteRequest { outcome: Some(outcome), ..complete("a", claim.fencing_token, b"") };
    let over = on.caller.complete(complete(sized(max - around + 1))).await;
    assert_refused(over, Code::InvalidArgument, "OUTCOME_TOO_LARGE");
    on.caller.complete(complete(largest.clone())).await.unwrap();
    assert_eq!(completed_of(on.caller.begin(begin("a")).await.unwrap()).outcome, Some(largest));
}

async fn complete_leaves_the_outcome_out(on: Fixture) {
    let claim = on.claim("a").await;
    let answer = on.caller.complete(complete("a", claim.fencing_token, b"")).await.unwrap();
    assert!(!answer.repeated);
    let told = answer.completed.unwrap();
    assert_eq!((told.outcome, told.fencing_token), (None, claim.fencing_token));
    assert!(told.completed_at.is_some() && told.expires_at.is_some());
}

async fn a_repeated_complete_is_ok_and_another_outcome_is_not(on: Fixture) {
    let claim = on.complete("a", b"one").await;
    let again = on.caller.complete(complete("a", claim.fencing_token, b"one")).await.unwrap();
    assert!(again.repeated);
    let other = on.caller.complete(complete("a", claim.fencing_token, b"two")).await;
    let info = assert_refused(other, Code::FailedPrecondition, "OUTCOME_CONFLICT");
    assert_eq!(info.metadata["state"], "completed");
    let told = completed_of(on.caller.begin(begin("a")).await.unwrap());
    assert_eq!(told.outcome, Some(outcome(b"one")));
}

async fn a_late_complete_counts_unless_somebody_took_over(on: Fixture) {
    let short = |key| v1::BeginRequest { lock_ttl: seconds(2), ..begin(key) };
    let late = claim_of(on.caller.begin(short("late")).await.unwrap());
    let stale = claim_of(on.caller.begin(short("taken")).await.unwrap());
    let taken = claim_of(on.caller.begin(patient("taken")).await.unwrap());

    on.caller.complete(complete("late", late.fencing_token, b"late")).await.unwrap();
    let refused = on.caller.complete(complete("taken", stale.fencing_token, b"stale")).await;
    let info = assert_refused(refused, Code::Aborted, "CLAIM_LOST");
    assert_eq!(info.metadata["state"], "in_progress");
    assert_eq!(info.metadata["attempt"], "2");
    assert_eq!(info.metadata["fencing_token"], taken.fencing_token.to_string());
    on.caller.complete(complete("taken", taken.fencing_token, b"new")).await.unwrap();
}

async fn a_doubt_and_a_released_claim_can_still_be_completed(on: Fixture) {
    let doubted = on.doubt("doubted").await;
    on.caller.complete(complete("doubted", doubted.fencing_token, b"done")).await.unwrap();
    let released = on.claim("released").await;
    on.caller.release(release("released", released.fencing_token, v1::Disposition::Retry)).await.unwrap();
    on.caller.complete(complete("released", released.fencing_token, b"done")).await.unwrap();
}

async fn renew_arms_the_lock_of_begin_again(on: Fixture) {
    let request = v1::BeginRequest { lock_ttl: seconds(7), ..begin("a") };
    let claim = claim_of(on.caller.begin(request).await.unwrap());
    let answer = on.caller.renew(renew("a", claim.fencing_token)).await.unwrap();
    assert_eq!(answer.lock_expires_in, seconds(7));
}

async fn an_older_checkpoint_never_comes_back(on: Fixture) {
    let claim = on.claim("a").await;
    for (sequence, data) in [(5, b"five" as &[u8]), (4, b"four"), (5, b"other")] {
        let checkpoint = Some(v1::Checkpoint { sequence, data: Bytes::from_static(data) });
        let renewal = v1::RenewRequest { checkpoint, ..renew("a", claim.fencing_token) };
        on.caller.renew(renewal).await.unwrap();
    }
    on.caller.release(release("a", claim.fencing_token, v1::Disposition::Retry)).await.unwrap();
    let handed = on.claim("a").await.checkpoint.unwrap();
    assert_eq!((handed.sequence, &handed.data[..]), (5, b"five" as &[u8]));
}

async fn release_is_repeatable_in_kind(on: Fixture) {
    use v1::Disposition::{InDoubt, Retry};
    for (key, first, other) in [("retry", Retry, InDoubt), ("doubt", InDoubt, Retry)] {
        let token = on.claim(key).await.fencing_token;
        on.caller.release(release(key, token, first)).await.unwrap();
        on.caller.release(release(key, token, first)).await.unwrap();
        let refused = on.caller.release(release(key, token, other)).await;
        assert_refused(refused, Code::Aborted, "CLAIM_LOST");
    }
}

async fn a_spent_request_id_is_refused(on: Fixture) {
    let request = begin("a");
    let claim = claim_of(on.caller.begin(request.clone()).await.unwrap());
    on.caller.release(release("a", claim.fencing_token, v1::Disposition::Retry)).await.unwrap();
    let info = assert_refused(on.caller.begin(request).await, Code::Aborted, "CLAIM_LOST");
    assert_eq!(info.metadata["request_id"], "spent");
    assert_eq!(info.metadata["state"], "available");
}

async fn what_nobody_began_is_not_found(on: Fixture) {
    let (caller, reason) = (&on.caller, "RECORD_NOT_FOUND");
    assert_refused(caller.complete(complete("a", 1, b"")).await, Code::NotFound, reason);
    assert_refused(caller.renew(renew("a", 1)).await, Code::NotFound, reason);
    let released = caller.release(release("a", 1, v1::Disposition::Retry)).await;
    assert_refused(released, Code::NotFound, reason);
    assert_refused(caller.lookup(lookup("a")).await, Code::NotFound, reason);
}

async fn another_token_has_lost_the_claim(on: Fixture) {
    let token = on.claim("a").await.fencing_token + 1;
    let (caller, reason) = (&on.caller, "CLAIM_LOST");
    assert_refused(caller.complete(complete("a", token, b"")).await, Code::Aborted, reason);
    assert_refused(caller.renew(renew("a", token)).await, Code::Aborted, reason);
    let released = caller.release(release("a", token, v1::Disposition::Retry)).await;
    assert_refused(released, Code::Aborted, reason);
}

async fn a_mismatch_is_found_in_every_state(on: Fixture) {
    let printed = |key: &str, print: &'static [u8]| v1::BeginRequest {
        fingerprint: Bytes::from_static(print),
        ..begin(key)
    };
    let keys = ["held", "released", "doubted", "completed"];
    let mut tokens = Vec::new();
    for key in keys {
        tokens.push(claim_of(on.caller.begin(printed(key, b"one")).await.unwrap()).fencing_token);
    }
    on.caller.release(release("released", tokens[1], v1::Disposition::Retry)).await.unwrap();
    on.caller.release(release("doubted", tokens[2], v1::Disposition::InDoubt)).await.unwrap();
    on.caller.complete(complete("completed", tokens[3], b"")).await.unwrap();
    for key in keys {
        let refused = on.caller.begin(printed(key, b"two")).await;
        let info = assert_refused(refused, Code::FailedPrecondition, "FINGERPRINT_MISMATCH");
        assert!(info.metadata.is_empty(), "{key}: nothing else is told: {:?}", info.metadata);
    }
    // Without a fingerprint there is nothing to compare.
    in_progress_of(on.caller.begin(begin("held")).await.unwrap());
}

async fn lookup_tells_each_state(on: Fixture) {
    use v1::lookup_response::Record;
    let look = async |key| on.caller.lookup(lookup(key)).await.unwrap().record.unwrap();
    let claim = on.claim("a").await;
    assert!(matches!(look("a").await, Record::InProgress(told) if told.attempt == 1));
    on.caller.release(release("a", claim.fencing_token, v1::Disposition::Retry)).await.unwrap();
    assert!(matches!(look("a").await, Record::Available(told) if told.attempt == 1 && told.since.is_some()));
    let doubted = on.doubt("b").await;
    assert!(matches!(look("b").await, Record::InDoubt(told) if told.fencing_token == doubted.fencing_token));
    on.complete("c", b"done").await;
    assert!(matches!(look("c").await, Record::Completed(told) if told.outcome == Some(outcome(b"done"))));
}
