//! What connections may do.

use onced::generated::health_v1::HealthCheckRequest;
use onced::generated::health_v1::health_client::HealthClient;
use onced_client::v1;
use onced_client::v1::begin_response::Result as Begun;
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
