//! Waiting, deadlines, and a store that fails, whichever way a call comes.

use onced_client::v1::session_request::Call;
use onced_client::v1::session_response::Answer;
use tonic::Code;

use super::*;

over_both! {
    a_duplicate_waits_for_the_outcome
    a_lookup_waits_for_the_outcome
    a_waiter_gets_the_claim_that_is_released
    waiting_ends_in_time_for_the_deadline
    who_has_waited_may_ask_again_sooner
    a_deadline_ends_a_call_but_not_its_write
    a_store_that_is_away_is_unavailable
}

/// Long enough for a call to be waiting, most likely; nothing fails if it is not.
const A_WHILE: Duration = Duration::from_millis(50);

async fn a_duplicate_waits_for_the_outcome(on: Fixture) {
    let claim = on.claim("a").await;
    let caller = Arc::clone(&on.caller);
    let duplicate = tokio::spawn(async move { caller.begin(patient("a")).await });
    tokio::time::sleep(A_WHILE).await;
    assert!(!duplicate.is_finished());
    on.caller.complete(complete("a", claim.fencing_token, b"done")).await.unwrap();
    let told = completed_of(duplicate.await.unwrap().unwrap());
    assert_eq!(told.outcome, Some(outcome(b"done")));
}

async fn a_lookup_waits_for_the_outcome(on: Fixture) {
    let claim = on.claim("a").await;
    let caller = Arc::clone(&on.caller);
    let request = v1::LookupRequest { wait: seconds(60), ..lookup("a") };
    let reader = tokio::spawn(async move { caller.lookup(request).await });
    tokio::time::sleep(A_WHILE).await;
    assert!(!reader.is_finished());
    on.caller.complete(complete("a", claim.fencing_token, b"done")).await.unwrap();
    let record = reader.await.unwrap().unwrap().record.unwrap();
    assert!(matches!(record, v1::lookup_response::Record::Completed(_)));
}

async fn a_waiter_gets_the_claim_that_is_released(on: Fixture) {
    let claim = on.claim("a").await;
    let caller = Arc::clone(&on.caller);
    let waiter = tokio::spawn(async move { caller.begin(patient("a")).await });
    tokio::time::sleep(A_WHILE).await;
    assert!(!waiter.is_finished());
    on.caller.release(release("a", claim.fencing_token, v1::Disposition::Retry)).await.unwrap();
    let next = claim_of(waiter.await.unwrap().unwrap());
    assert_eq!((next.attempt, next.resumed), (2, false));
    assert!(next.fencing_token > claim.fencing_token);
}

async fn waiting_ends_in_time_for_the_deadline(on: Fixture) {
    on.claim("a").await;
    let answer = on.caller.call(Call::Begin(patient("a")), Some(Duration::from_secs(1))).await;
    let Ok(Answer::Begin(answer)) = answer else { panic!("{answer:?}") };
    in_progress_of(answer);
}

async fn who_has_waited_may_ask_again_sooner(on: Fixture) {
    on.claim("a").await;
    let pause = |response| std_duration(in_progress_of(response).retry_after);
    let impatient = pause(on.caller.begin(begin("a")).await.unwrap());
    let waited = v1::BeginRequest { wait: seconds(1), ..begin("a") };
    let patient = pause(on.caller.begin(waited).await.unwrap());
    assert!(patient < impatient, "{patient:?} {impatient:?}");
}

async fn a_deadline_ends_a_call_but_not_its_write(on: Fixture) {
    let claim = on.claim("a").await;
    on.store.hold_writes(true);
    let request = complete("a", claim.fencing_token, b"done");
    let late = on.caller.call(Call::Complete(request.clone()), Some(Duration::from_millis(100))).await;
    assert_refused(late, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    on.store.hold_writes(false);
    // Nobody calls again: the write goes on without its caller.
    let request = v1::LookupRequest { wait: seconds(60), ..lookup("a") };
    let record = on.caller.lookup(request).await.unwrap().record.unwrap();
    assert!(matches!(record, v1::lookup_response::Record::Completed(_)));
}

async fn a_store_that_is_away_is_unavailable(on: Fixture) {
    on.store.set_away(true);
    let status = on.caller.begin(begin("a")).await.unwrap_err();
    let retry = status.details.iter().find(|any| any.type_url == tonic_types::RetryInfo::TYPE_URL);
    let retry = pb::RetryInfo::decode(retry.expect("a RetryInfo").value.as_slice()).unwrap();
    assert!(std_duration(retry.retry_delay) > Duration::ZERO);
    assert!(!status.message.contains("told to be away"), "the store's words stay in the log");
    let info = assert_refused::<()>(Err(status), Code::Unavailable, "STORE_UNAVAILABLE");
    assert_eq!(info.metadata["write"], "not applied");
    on.store.set_away(false);
    on.claim("a").await;
}
