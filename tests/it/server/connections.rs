//! What connections may do.

use onced::generated::health_v1::HealthCheckRequest;
use onced::generated::health_v1::health_client::HealthClient;
use onced_client::v1;
use onced_client::v1::begin_response::Result as Begun;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic_types::StatusExt as _;

use super::*;

/// Reads until the server closes the connection: what it said before.
async fn read_to_close(mut stream: TcpStream) -> String {
    let mut said = Vec::new();
    match tokio::time::timeout(HANGS, stream.read_to_end(&mut said)).await.expect("it was not closed") {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn connections_over_the_cap_are_closed_at_once_and_free_places_are_taken_again() {
    let limits = Limits { connections: 2, handshake: HANGS * 10, ..Limits::default() };
    let server = start(limits, HANGS).await;
    let first = TcpStream::connect(server.address()).await.unwrap();
    let second = TcpStream::connect(server.address()).await.unwrap();
    // Accepted in order, so both have their places when the third comes.
    assert_eq!(read_to_close(TcpStream::connect(server.address()).await.unwrap()).await, "");

    drop(first);
    let served = async {
        loop {
            // Until the server has noticed that the place is free.
            if let Ok(mut health) = HealthClient::connect(format!("http://{}", server.address())).await
                && health.check(HealthCheckRequest::default()).await.is_ok()
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(HANGS, served).await.expect("the free place was not taken");
    drop(second);
    server.stop().await;
}

#[tokio::test]
async fn a_silent_connection_is_let_go() {
    let limits = Limits { handshake: Duration::from_millis(50), ..Limits::default() };
    let server = start(limits, HANGS).await;
    assert_eq!(read_to_close(TcpStream::connect(server.address()).await.unwrap()).await, "");

    let mut half = TcpStream::connect(server.address()).await.unwrap();
    half.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    assert_eq!(read_to_close(half).await, "");
    server.stop().await;
}

#[tokio::test]
async fn the_handshake_deadline_does_not_touch_connections_that_speak() {
    let limits = Limits { handshake: Duration::from_millis(500), ..Limits::default() };
    let server = start(limits, HANGS).await;
    let mut health = server.health().await;
    let mut changes = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    changes.message().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    server.begin_stop();
    // The stream ends as it should, and not with the connection.
    assert_eq!(changes.message().await.unwrap(), None);
    server.stop().await;
}

#[tokio::test]
async fn who_speaks_http_1_is_told_what_this_is() {
    let server = start(Limits::default(), HANGS).await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let answer = read_to_close(stream).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("gRPC"), "{answer}");
    server.stop().await;
}

fn begin(request: u128, wait: i64) -> v1::BeginRequest {
    v1::BeginRequest {
        namespace: "test".to_owned(),
        key: "key".to_owned(),
        request_id: uuid::Uuid::from_u128(request).to_string(),
        wait: Some(prost_types::Duration { seconds: wait, nanos: 0 }),
        ..v1::BeginRequest::default()
    }
}

fn complete(fencing_token: u64) -> v1::CompleteRequest {
    let result = Some(v1::outcome::Result::Response("done".into()));
    v1::CompleteRequest {
        namespace: "test".to_owned(),
        key: "key".to_owned(),
        fencing_token,
        outcome: Some(v1::Outcome { result, ..v1::Outcome::default() }),
        retention: None,
    }
}

#[tokio::test]
async fn a_connection_that_is_old_enough_ends_and_what_is_open_on_it_is_answered() {
    let limits = Limits { max_connection_age: Some(Duration::from_millis(500)), ..Limits::default() };
    let server = start(limits, HANGS).await;
    let old = server.connect().await;
    let mut api = IdempotencyServiceClient::with_origin(old.clone(), server.origin());
    let Some(Begun::Claim(claim)) = api.begin(begin(1, 0)).await.unwrap().into_inner().result else {
        panic!("no claim")
    };
    let mut waiting = api.clone();
    let waiter = tokio::spawn(async move { waiting.begin(begin(2, 60)).await });
    let (namespace, key) = ("test".to_owned(), "key".to_owned());
    let mut watch = api.watch(v1::WatchRequest { namespace, key }).await.unwrap().into_inner();
    watch.message().await.unwrap().expect("a state");
    let mut session = api.session(futures_util::stream::pending()).await.unwrap().into_inner();
    let mut health = HealthClient::with_origin(old, server.origin());
    let service = "nobody".to_owned();
    let mut health = health.watch(HealthCheckRequest { service }).await.unwrap().into_inner();
    health.message().await.unwrap().expect("a status");

    // What would go on for ever ends.
    let reason = |ended: tonic::Status| ended.get_details_error_info().unwrap().reason;
    let ends = async {
        assert_eq!(reason(watch.message().await.unwrap_err()), "DRAINING");
        assert_eq!(reason(session.message().await.unwrap_err()), "DRAINING");
        assert_eq!(health.message().await.unwrap(), None);
        // The client was told to go elsewhere.
        while api.begin(begin(3, 0)).await.is_ok() {}
    };
    tokio::time::timeout(HANGS, ends).await.expect("it goes on");
    assert!(!waiter.is_finished());
    server.client().await.complete(complete(claim.fencing_token)).await.unwrap();
    let answered = tokio::time::timeout(HANGS, waiter).await.expect("nobody answers").unwrap().unwrap();
    assert!(matches!(answered.into_inner().result, Some(Begun::Completed(_))));
    server.stop().await;
}

/// The client of this repository notices nothing, but that a watch tells the same state again.
#[tokio::test]
async fn clients_go_on_on_other_connections_when_theirs_end() {
    let limits = Limits { max_connection_age: Some(Duration::from_millis(50)), ..Limits::default() };
    let server = start(limits, HANGS).await;
    let client = onced_client::Client::builder(server.address().to_string()).timeout(HANGS).build().unwrap();
    let Begun::Claim(claim) = client.begin(begin(1, 0)).await.unwrap() else { panic!("no claim") };
    let waiter = tokio::spawn({
        let client = client.clone();
        async move { client.begin(begin(2, 60)).await }
    });
    let mut watch = client.watch("test", "key");
    // No state changes, so each that is told is that of a stream that was opened anew.
    let reopened = tokio::spawn(async move {
        for _ in 0..10 {
            watch.next().await.unwrap().expect("a state");
        }
    });
    let calls = async {
        while !reopened.is_finished() {
            let (namespace, key) = ("test".to_owned(), "key".to_owned());
            client.lookup(v1::LookupRequest { namespace, key, wait: None }).await.unwrap();
        }
    };
    tokio::time::timeout(HANGS, calls).await.expect("the watch stays on its connection");
    reopened.await.unwrap();
    client.complete(complete(claim.fencing_token)).await.unwrap();
    let answered = tokio::time::timeout(HANGS, waiter).await.expect("nobody answers").unwrap().unwrap();
    assert!(matches!(answered, Begun::Completed(_)));
    server.stop().await;
}

/// What is refused for want of room is told so, and costs neither its connection nor another one.
#[tokio::test]
async fn calls_over_the_bytes_of_their_connection_are_refused_and_the_next_ones_served() {
    let limits = Limits { bytes_per_connection: 100_000, ..Limits::default() };
    let server = start(limits, HANGS).await;
    let mut api = server.client().await;
    let begin = |request: u128| v1::BeginRequest {
        namespace: "test".to_owned(),
        key: "key".to_owned(),
        request_id: uuid::Uuid::from_u128(request).to_string(),
        ..v1::BeginRequest::default()
    };
    let Some(Begun::Claim(claim)) = api.begin(begin(1)).await.unwrap().into_inner().result else {
        panic!("no claim")
    };
    let complete = |bytes: usize| v1::CompleteRequest {
        namespace: "test".to_owned(),
        key: "key".to_owned(),
        fencing_token: claim.fencing_token,
        outcome: Some(v1::Outcome {
            result: Some(v1::outcome::Result::Response(vec![0; bytes].into())),
            ..v1::Outcome::default()
        }),
        retention: None,
    };
    for _ in 0..3 {
        let refused = api.complete(complete(100_000)).await.unwrap_err();
        let info = refused.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), &*info.metadata["limit"]), ("OVERLOADED", "bytes_per_connection"));
        assert!(refused.metadata().contains_key("grpc-retry-pushback-ms"));
    }
    api.complete(complete(99_000)).await.expect("there is room for this one");
    // An answer has room of its own, since its request is done with by then.
    let lookup = v1::LookupRequest { namespace: "test".to_owned(), key: "key".to_owned(), wait: None };
    for _ in 0..3 {
        api.lookup(lookup.clone()).await.expect("what was held is free again");
    }
    server.stop().await;
}
