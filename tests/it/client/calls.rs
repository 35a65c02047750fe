//! Every call through the client: answered, refused, repeated, and failed over.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use onced_client::clock::{Clock, Moment};
use onced_client::v1::{
    CompleteRequest, DeleteRequest, Disposition, ListRequest, LookupRequest, ReleaseRequest, RenewRequest,
    ResolveRequest, ResolveRetry, resolve_request,
};
use onced_client::{Begun, Client, Code, ErrorReason, Outcome, Record, wire};

use super::{Server, TTL, begin, claim, dead_address, lookup};
use crate::support::proxy::Proxy;
use crate::support::server::TestServer;
use crate::support::stores::Controlled;

fn complete(key: &str, token: u64, response: &'static str) -> CompleteRequest {
    CompleteRequest {
        namespace: "default".to_owned(),
        key: key.to_owned(),
        fencing_token: token,
        outcome: Some(response.into()),
        retention: None,
    }
}

fn release(key: &str, token: u64, disposition: Disposition) -> ReleaseRequest {
    ReleaseRequest {
        namespace: "default".to_owned(),
        key: key.to_owned(),
        fencing_token: token,
        disposition: disposition.into(),
        reason: "a test".to_owned(),
    }
}

#[tokio::test]
async fn each_call_is_answered_with_its_type() {
    let server = Server::start().await;
    let client = server.client();
    let token = claim(&client, "k").await.fencing_token;
    assert!(matches!(client.begin(begin("k")).await, Ok(Begun::InProgress(_))));
    let renew = RenewRequest {
        namespace: "default".to_owned(),
        key: "k".to_owned(),
        fencing_token: token,
        checkpoint: None,
    };
    let renewed = client.renew(renew).await.unwrap();
    assert_eq!(onced_client::duration(renewed.lock_expires_in.as_ref()), TTL);
    assert!(matches!(lookup(&client, "k").await, Ok(Record::InProgress(_))));

    client.release(release("k", token, Disposition::InDoubt)).await.unwrap();
    assert!(matches!(client.begin(begin("k")).await, Ok(Begun::InDoubt(_))));
    let list = ListRequest { namespace: "default".to_owned(), ..ListRequest::default() };
    let listed = client.list(list).await.unwrap().records;
    assert_eq!(listed.iter().map(|record| record.key.as_str()).collect::<Vec<_>>(), ["k"]);
    let resolve = ResolveRequest {
        namespace: "default".to_owned(),
        key: "k".to_owned(),
        fencing_token: token,
        resolution: Some(resolve_request::Resolution::Retry(ResolveRetry {})),
        retention: None,
    };
    assert_eq!(client.resolve(resolve).await.unwrap().key, "k");
    assert!(matches!(lookup(&client, "k").await, Ok(Record::Available(_))));

    let token = claim(&client, "k").await.fencing_token;
    assert!(!client.complete(complete("k", token, "done")).await.unwrap().repeated);
    assert!(client.complete(complete("k", token, "done")).await.unwrap().repeated);
    let Ok(Begun::Completed(completed)) = client.begin(begin("k")).await else { panic!("no replay") };
    assert_eq!(completed.outcome, Some(Outcome::response("done")));

    let delete = DeleteRequest {
        namespace: "default".to_owned(),
        key: "k".to_owned(),
        fencing_token: token,
        force: false,
    };
    client.delete(delete).await.unwrap();
    let gone = lookup(&client, "k").await.unwrap_err();
    assert_eq!(gone.reason(), Some(ErrorReason::RecordNotFound));
}

#[tokio::test]
async fn a_refusal_has_its_code_reason_and_text() {
    let server = Server::start().await;
    let client = server.client();
    let token = claim(&client, "k").await.fencing_token;
    client.complete(complete("k", token, "done")).await.unwrap();
    let conflict = client.complete(complete("k", token, "other")).await.unwrap_err();
    assert_eq!(conflict.reason(), Some(ErrorReason::OutcomeConflict));
    assert_eq!(conflict.code(), Some(Code::FailedPrecondition));
    assert!(conflict.to_string().ends_with("(OUTCOME_CONFLICT)"), "{conflict}");
    let empty = client.begin(begin("")).await.unwrap_err();
    assert_eq!(empty.reason(), Some(ErrorReason::KeyRequired));
}

#[tokio::test]
async fn a_dead_server_is_passed_over() {
    let server = Server::start().await;
    // Clients start at any of their servers: in some of these rounds at the dead one.
    for round in 0..8 {
        let servers = format!("{},{}", dead_address().await, server.address);
        let client = Client::connect(servers).unwrap();
        claim(&client, &format!("k{round}")).await;
    }
}

#[tokio::test]
async fn no_answer_in_time_is_unavailable_and_says_who_was_asked() {
    let address = dead_address().await;
    let client = Client::builder(&address).timeout(Duration::from_millis(200)).build().unwrap();
    let error = client.begin(begin("k")).await.unwrap_err();
    assert!(error.is_unavailable());
    assert_eq!((error.code(), error.reason()), (Some(Code::Unavailable), None));
    let text = error.to_string();
    assert!(text.contains(&address) && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn a_server_whose_store_is_away_has_answered_and_the_time_told_is_the_time_tried() {
    let store = Controlled::in_memory();
    store.set_away(true);
    let server = TestServer::start(store).await;
    // The deadline is set and the call sent at 0; then half a second is left, less than the server asks for.
    let reads = AtomicUsize::new(0);
    let clock = Clock::from_fn(move || {
        let now_ms = if reads.fetch_add(1, Ordering::SeqCst) < 2 { 0 } else { 59_500 };
        Moment::from_start(Duration::from_millis(now_ms))
    });
    let minute = Duration::from_secs(60);
    let client = Client::builder(server.address().to_string()).timeout(minute).clock(clock).build().unwrap();
    let list = ListRequest { namespace: "default".to_owned(), ..ListRequest::default() };
    let error = client.list(list).await.unwrap_err();
    assert_eq!((error.is_unavailable(), error.reason()), (true, Some(ErrorReason::StoreUnavailable)));
    let text = error.to_string();
    assert!(text.contains("answered, but could not do it in 59.5s"), "{text}");
}

#[tokio::test]
async fn a_begin_whose_answer_was_lost_gets_the_same_claim_again() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.address.clone()).await;
    let client = Client::connect(proxy.endpoint()).unwrap();
    proxy.mute();
    let lost = tokio::spawn({
        let client = client.clone();
        async move { client.begin(begin("k")).await }
    });
    // The claim was made, and its caller does not know.
    let direct = server.client();
    while lookup(&direct, "k").await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    proxy.close();
    proxy.open();
    let Ok(Begun::Claim(claim)) = lost.await.unwrap() else { panic!("no claim") };
    // The server may have noticed that nobody took the first one, and given it back.
    assert!(claim.resumed || claim.attempt == 2, "{claim:?}");
}

#[tokio::test]
async fn a_complete_whose_answer_was_lost_is_repeated() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.address.clone()).await;
    let (client, direct) = (Client::connect(proxy.endpoint()).unwrap(), server.client());
    let token = claim(&client, "k").await.fencing_token;
    proxy.mute();
    let lost = tokio::spawn({
        let client = client.clone();
        async move { client.complete(complete("k", token, "done")).await }
    });
    while !matches!(lookup(&direct, "k").await, Ok(Record::Completed(_))) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    proxy.close();
    proxy.open();
    assert!(lost.await.unwrap().unwrap().repeated);
}

#[tokio::test]
async fn waits_end_with_the_outcome_or_their_time() {
    let server = Server::start().await;
    let client = server.client();
    let token = claim(&client, "k").await.fencing_token;
    let mut short = begin("k");
    short.wait = Some(wire(Duration::from_millis(50)));
    assert!(matches!(client.begin(short).await, Ok(Begun::InProgress(_))));

    let waiting = tokio::spawn({
        let client = client.clone();
        let mut request = begin("k");
        request.wait = Some(wire(Duration::from_secs(60)));
        async move { client.begin(request).await }
    });
    let looking = tokio::spawn({
        let client = client.clone();
        let (namespace, key) = ("default".to_owned(), "k".to_owned());
        let request = LookupRequest { namespace, key, wait: Some(wire(Duration::from_secs(60))) };
        async move { client.lookup(request).await }
    });
    client.complete(complete("k", token, "done")).await.unwrap();
    assert!(matches!(waiting.await.unwrap(), Ok(Begun::Completed(_))));
    assert!(matches!(looking.await.unwrap(), Ok(Record::Completed(_))));
}

#[tokio::test]
async fn a_watch_survives_its_connection_and_ends_with_the_outcome() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.address.clone()).await;
    let (client, direct) = (Client::connect(proxy.endpoint()).unwrap(), server.client());
    let token = claim(&direct, "k").await.fencing_token;
    let mut watch = client.watch("default", "k");
    assert!(matches!(watch.next().await, Ok(Some(Record::InProgress(_)))));
    proxy.close();
    proxy.open();
    assert!(matches!(watch.next().await, Ok(Some(Record::InProgress(_)))));
    direct.complete(complete("k", token, "done")).await.unwrap();
    let state = loop {
        match watch.next().await.unwrap() {
            // A renewed hint of the lock may come in between.
            Some(Record::InProgress(_)) => {}
            state => break state,
        }
    };
    assert!(matches!(state, Some(Record::Completed(_))), "{state:?}");
    assert!(matches!(watch.next().await, Ok(None)));

    let missing = client.watch("default", "missing").next().await.unwrap_err();
    assert_eq!(missing.reason(), Some(ErrorReason::RecordNotFound));
}
