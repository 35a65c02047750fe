//! Watch: the states of a key as a stream.

use onced_client::v1::watch_response::Record;
use tonic::{Code, Streaming};

use super::*;
use crate::support::caller::rpc_status;

fn watch(key: &str) -> v1::WatchRequest {
    v1::WatchRequest { namespace: NAMESPACE.to_owned(), key: key.to_owned() }
}

async fn open(on: &Fixture, key: &str) -> Streaming<v1::WatchResponse> {
    on.client.clone().watch(watch(key)).await.unwrap().into_inner()
}

async fn next(states: &mut Streaming<v1::WatchResponse>) -> Record {
    states.message().await.unwrap().expect("a state, not the end").record.unwrap()
}

async fn assert_ends(states: &mut Streaming<v1::WatchResponse>, code: Code, reason: &str) {
    let end = rpc_status(&states.message().await.unwrap_err());
    assert_refused::<()>(Err(end), code, reason);
}

#[tokio::test]
async fn it_tells_each_state_and_ends_with_the_outcome() {
    let on = Fixture::new(Way::Unary).await;
    let first = on.claim("a").await;
    let mut states = open(&on, "a").await;
    assert!(matches!(next(&mut states).await, Record::InProgress(told) if told.attempt == 1));
    on.caller.release(release("a", first.fencing_token, v1::Disposition::Retry)).await.unwrap();
    assert!(matches!(next(&mut states).await, Record::Available(_)));
    let second = on.claim("a").await;
    assert!(matches!(next(&mut states).await, Record::InProgress(told) if told.attempt == 2));
    on.caller.release(release("a", second.fencing_token, v1::Disposition::InDoubt)).await.unwrap();
    assert!(
        matches!(next(&mut states).await, Record::InDoubt(told) if told.fencing_token == second.fencing_token)
    );
    on.caller.complete(complete("a", second.fencing_token, b"done")).await.unwrap();
    let Record::Completed(told) = next(&mut states).await else { panic!("not completed") };
    assert_eq!(told.outcome, Some(outcome(b"done")));
    assert!(states.message().await.unwrap().is_none(), "it ends well");
}

#[tokio::test]
async fn a_completed_key_is_told_once() {
    let on = Fixture::new(Way::Unary).await;
    on.complete("a", b"done").await;
    let mut states = open(&on, "a").await;
    assert!(matches!(next(&mut states).await, Record::Completed(_)));
    assert!(states.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_lapse_is_told_although_nobody_wrote_it() {
    let on = Fixture::new(Way::Unary).await;
    on.caller.begin(v1::BeginRequest { lock_ttl: seconds(2), ..begin("a") }).await.unwrap();
    let mut states = open(&on, "a").await;
    assert!(matches!(next(&mut states).await, Record::InProgress(_)));
    assert!(matches!(next(&mut states).await, Record::Available(_)));
}

#[tokio::test]
async fn an_absent_key_ends_it_with_not_found() {
    let on = Fixture::new(Way::Unary).await;
    assert_ends(&mut open(&on, "absent").await, Code::NotFound, "RECORD_NOT_FOUND").await;
}

#[tokio::test]
async fn a_deleted_key_ends_it_with_not_found() {
    let on = Fixture::new(Way::Unary).await;
    let claim = on.claim("a").await;
    let mut states = open(&on, "a").await;
    next(&mut states).await;
    let request = v1::DeleteRequest {
        namespace: NAMESPACE.to_owned(),
        key: "a".to_owned(),
        fencing_token: claim.fencing_token,
        force: true,
    };
    on.admin.clone().delete(request).await.unwrap();
    assert_ends(&mut states, Code::NotFound, "RECORD_NOT_FOUND").await;
}

#[tokio::test]
async fn a_drain_ends_it() {
    let on = Fixture::new(Way::Unary).await;
    on.claim("a").await;
    let mut states = open(&on, "a").await;
    next(&mut states).await;
    on.server.begin_stop();
    assert_ends(&mut states, Code::Unavailable, "DRAINING").await;
    on.server.stop().await;
}

#[tokio::test]
async fn its_deadline_ends_it() {
    let on = Fixture::new(Way::Unary).await;
    on.claim("a").await;
    let mut request = tonic::Request::new(watch("a"));
    request.set_timeout(Duration::from_millis(500));
    let mut states = on.client.clone().watch(request).await.unwrap().into_inner();
    next(&mut states).await;
    assert_ends(&mut states, Code::DeadlineExceeded, "DEADLINE_EXCEEDED").await;
}

#[tokio::test]
async fn it_takes_a_place_for_as_long_as_somebody_listens() {
    let settings = rpc::Settings { max_waiting_calls: 1, ..rpc::Settings::default() };
    let on = Fixture::with(Way::Unary, settings).await;
    on.claim("a").await;
    let mut states = open(&on, "a").await;
    next(&mut states).await;
    let refused = on.client.clone().watch(watch("a")).await.map(|_| ()).map_err(|status| rpc_status(&status));
    let info = assert_refused(refused, Code::Unavailable, "OVERLOADED");
    assert_eq!(info.metadata["limit"], "max_waiting_calls");
    drop(states);
    let free = async {
        while on.client.clone().watch(watch("a")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), free).await.expect("the place stays taken");
}
