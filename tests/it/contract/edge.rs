//! What tonic would answer by itself, reflection, and limits: no answer without a reason.

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http_body_util::StreamBody;
use hyper::body::Frame;
use tonic::Code;
use tonic::body::Body;

use super::raw::{framed, post, send};
use super::*;
use crate::support::caller::{raw_session, rpc_status};

const BEGIN: &str = "/onced.v1.IdempotencyService/Begin";

fn refused(status: &tonic::Status, code: Code, reason: &str) -> pb::ErrorInfo {
    assert_refused::<()>(Err(rpc_status(status)), code, reason)
}

#[tokio::test]
async fn an_unknown_method_and_an_unknown_service_are_told_so() {
    let on = Fixture::new(Way::Unary).await;
    for path in ["/onced.v1.IdempotencyService/Finish", "/onced.v2.IdempotencyService/Begin", "/"] {
        let status = post(&on, path, framed(b""), &[]).await;
        let info = refused(&status, Code::Unimplemented, "UNIMPLEMENTED");
        assert_eq!(info.metadata["method"], path);
    }
}

#[tokio::test]
async fn a_timeout_that_cannot_be_read_is_refused_before_anything_is_done() {
    let on = Fixture::new(Way::Unary).await;
    for value in ["5", "S", "5x", "123456789S", "-5S"] {
        let status = post(&on, BEGIN, framed(&begin("a").encode_to_vec()), &[("grpc-timeout", value)]).await;
        let info = refused(&status, Code::InvalidArgument, "REQUEST_MALFORMED");
        assert_eq!(info.metadata["field"], "grpc-timeout", "{value}");
    }
    assert_refused(on.caller.lookup(lookup("a")).await, Code::NotFound, "RECORD_NOT_FOUND");
}

#[tokio::test]
async fn a_deadline_that_has_passed_does_nothing() {
    let on = Fixture::new(Way::Unary).await;
    let status = post(&on, BEGIN, framed(&begin("a").encode_to_vec()), &[("grpc-timeout", "0n")]).await;
    refused(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    assert_refused(on.caller.lookup(lookup("a")).await, Code::NotFound, "RECORD_NOT_FOUND");
}

#[tokio::test]
async fn a_request_that_never_ends_is_answered_at_its_deadline_and_does_nothing() {
    let on = Fixture::new(Way::Unary).await;
    let whole = framed(&begin("a").encode_to_vec());
    for sent in [whole.clone(), whole[..9].to_vec(), Vec::new()] {
        let frames = stream::iter([Ok::<_, tonic::Status>(Frame::data(Bytes::from(sent)))]);
        let body = Body::new(StreamBody::new(frames.chain(stream::pending())));
        let status = in_time(send(&on, BEGIN, body, &[("grpc-timeout", "50m")])).await;
        refused(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    }
    assert_refused(on.caller.lookup(lookup("a")).await, Code::NotFound, "RECORD_NOT_FOUND");
}

/// Without a deadline of its own, too: it would be kept as long as its connection lives, and hold up a drain.
#[tokio::test]
async fn a_request_that_never_ends_is_refused_in_time_and_holds_up_no_drain() {
    let settings = rpc::Settings { max_arrival: Duration::from_millis(50), ..rpc::Settings::default() };
    let on = Fixture::with(Way::Unary, settings).await;
    let whole = framed(&begin("a").encode_to_vec());
    let unended = |sent: &[u8]| {
        let frames = stream::iter([Ok::<_, tonic::Status>(Frame::data(Bytes::copy_from_slice(sent)))]);
        Body::new(StreamBody::new(frames.chain(stream::pending())))
    };
    for sent in [&whole[..], &whole[..9], &[]] {
        let status = in_time(send(&on, BEGIN, unended(sent), &[])).await;
        refused(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
        assert!(status.message().contains("50ms"), "{}", status.message());
    }
    assert_refused(on.caller.lookup(lookup("a")).await, Code::NotFound, "RECORD_NOT_FOUND");
    // A session may be silent for as long as it likes.
    let (calls, mut answers) = raw_session(&on.server).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let call = Some(onced_client::v1::session_request::Call::Begin(begin("b")));
    calls.send(onced_client::v1::SessionRequest { id: 1, timeout: None, call }).unwrap();
    assert!(in_time(answers.message()).await.unwrap().is_some());
    drop(calls);
    // The drain's own limit is far longer than a test may take.
    in_time(futures_util::future::join(send(&on, BEGIN, unended(&[]), &[]), async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        on.server.begin_stop();
    }))
    .await;
    on.server.stop().await;
}

#[tokio::test]
async fn a_full_server_pushes_back_and_still_serves_holders() {
    let settings = rpc::Settings { max_active_calls: 1, ..rpc::Settings::default() };
    let on = Fixture::with(Way::Unary, settings).await;
    let claim = on.claim("held").await;
    on.store.hold_writes(true);
    let before = on.store.trips();
    let mut client = on.client.clone();
    let stuck = tokio::spawn(async move { client.begin(begin("stuck")).await });
    on.store.reached(before + 1).await;
    let status = on.client.clone().begin(begin("shed")).await.unwrap_err();
    let info = refused(&status, Code::Unavailable, "OVERLOADED");
    assert_eq!((info.metadata["limit"].as_str(), info.metadata["size"].as_str()), ("max_active_calls", "1"));
    let pushback = status.metadata().get("grpc-retry-pushback-ms").expect("a pushback");
    assert!(pushback.to_str().unwrap().parse::<u64>().unwrap() > 0);

    let mut client = on.client.clone();
    let completing =
        tokio::spawn(async move { client.complete(complete("held", claim.fencing_token, b"x")).await });
    on.store.reached(before + 2).await;
    on.store.hold_writes(false);
    completing.await.unwrap().expect("the holder is served");
    stuck.await.unwrap().expect("and so is who came first");
}

/// A caller that resets what it sends must not have more at work than one that waits for its answers.
#[tokio::test]
async fn a_call_whose_caller_left_keeps_its_place_until_its_work_ends() {
    let settings = rpc::Settings { max_active_calls: 1, max_holder_calls: 1, ..rpc::Settings::default() };
    let on = Fixture::with(Way::Unary, settings).await;
    let claim = on.claim("held").await;
    on.store.hold_writes(true);
    let before = on.store.trips();
    let (mut one, mut other) = (on.client.clone(), on.client.clone());
    let began = tokio::spawn(async move { one.begin(begin("left")).await });
    let completing = complete("held", claim.fencing_token, b"done");
    let completed = tokio::spawn(async move { other.complete(completing).await });
    on.store.reached(before + 2).await;
    began.abort();
    completed.abort();
    // Time for the server to notice that both have left.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let renew = || on.caller.renew(renew("other", 1));
    assert_refused(on.caller.begin(begin("other")).await, Code::Unavailable, "OVERLOADED");
    assert_refused(renew().await, Code::Unavailable, "OVERLOADED");

    on.store.hold_writes(false);
    let served = async {
        // Until the writes have ended.
        while on.caller.begin(begin("other")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        while info(&renew().await.unwrap_err()).reason == "OVERLOADED" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(served).await;
}

#[tokio::test]
async fn waiters_hand_back_their_places() {
    let settings = rpc::Settings { max_active_calls: 1, ..rpc::Settings::default() };
    let on = Fixture::with(Way::Session, settings).await;
    let claim = on.claim("held").await;
    let mut waiters = Vec::new();
    let crowd = async {
        while waiters.len() < 5 {
            let caller = Arc::clone(&on.caller);
            let waiter = tokio::spawn(async move { caller.begin(patient("held")).await });
            // The next one comes when this one only waits: until then it would be shed.
            tokio::time::sleep(Duration::from_millis(50)).await;
            if !waiter.is_finished() {
                waiters.push(waiter);
            }
        }
    };
    in_time(crowd).await;
    on.caller.lookup(lookup("held")).await.expect("a place for others");
    on.caller.complete(complete("held", claim.fencing_token, b"done")).await.unwrap();
    for waiter in waiters {
        completed_of(waiter.await.unwrap().unwrap());
    }
}

#[tokio::test]
async fn without_a_place_to_wait_a_call_is_answered_at_once() {
    let settings = rpc::Settings { max_waiting_calls: 0, ..rpc::Settings::default() };
    let on = Fixture::with(Way::Unary, settings).await;
    let first = claim_of(on.caller.begin(patient("a")).await.unwrap());
    assert_eq!(first.attempt, 1);
    let told = in_progress_of(on.caller.begin(patient("a")).await.unwrap());
    assert!(std_duration(told.retry_after) > Duration::ZERO);
}

#[tokio::test]
async fn a_lower_outcome_limit_is_told_and_kept() {
    let mut config = Config::default();
    config.namespaces.defaults.max_outcome_bytes = 10;
    let on = Fixture::configured(Way::Session, config).await;
    let claim = on.claim("a").await;
    assert_eq!(claim.max_outcome_bytes, 10);
    let over = on.caller.complete(complete("a", claim.fencing_token, b"123456789")).await;
    assert_refused(over, Code::InvalidArgument, "OUTCOME_TOO_LARGE");
    on.caller.complete(complete("a", claim.fencing_token, b"12345678")).await.unwrap();
}

macro_rules! reflection {
    ($test:ident, $version:ident) => {
        #[tokio::test]
        async fn $test() {
            use tonic_reflection::pb::$version::ServerReflectionRequest;
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
            let on = Fixture::new(Way::Unary).await;
            let mut client =
                ServerReflectionClient::with_origin(on.server.connect().await, on.server.origin());
            let mut ask = async |message_request| {
                let request =
                    ServerReflectionRequest { host: String::new(), message_request: Some(message_request) };
                let mut answers =
                    client.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
                answers.message().await.unwrap().unwrap().message_response.unwrap()
            };
            let MessageResponse::ListServicesResponse(list) =
                ask(MessageRequest::ListServices(String::new())).await
            else {
                panic!("no list")
            };
            let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
            for name in ["onced.v1.IdempotencyService", "onced.v1.AdminService", "grpc.health.v1.Health"] {
                assert!(names.iter().any(|known| known == name), "{name} is not among {names:?}");
            }
            for symbol in ["onced.v1.IdempotencyService", "onced.v1.ErrorReason", "google.rpc.ErrorInfo"] {
                let MessageResponse::FileDescriptorResponse(files) =
                    ask(MessageRequest::FileContainingSymbol(symbol.to_owned())).await
                else {
                    panic!("no file of {symbol}")
                };
                assert!(!files.file_descriptor_proto.is_empty());
            }
        }
    };
}

reflection!(reflection_v1_answers, v1);
reflection!(reflection_v1alpha_answers, v1alpha);
