//! Callers that begin to shake hands and never end it.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::support::certificates::HALF_A_HELLO;

/// How many connections the server has places for.
const PLACES: usize = 32;

/// A connection that says nothing, or half of a hello.
async fn half_open(server: &TestServer, says: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    // Where there is no place for it, it may be closed already.
    let _ = stream.write_all(says).await;
    stream
}

async fn closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(HANGS, stream.read_to_end(&mut rest)).await.expect("it keeps its place");
}

#[tokio::test]
async fn handshakes_that_never_end_cost_a_place_each_for_a_bounded_time() {
    let certificates = Certificates::for_a_server();
    let limits = Limits { connections: PLACES, handshake: Duration::from_secs(1), ..Limits::default() };
    let server = start(Config { limits, ..speaking_tls(&certificates) }).await;
    let caller = client(&server, "https://").ca_file(certificates.ca()).build().unwrap();
    let lookup = || async {
        let lookup = LookupRequest { namespace: "n".to_owned(), key: "k".to_owned(), wait: None };
        let answer = tokio::time::timeout(HANGS, caller.lookup(lookup)).await.expect("it is held up");
        assert_eq!(answer.expect_err("no record").reason(), Some(ErrorReason::RecordNotFound));
    };
    lookup().await;

    // Many times more than there are places, in waves, beside a caller that came before them.
    for says in [&[][..], &HALF_A_HELLO[..1], &HALF_A_HELLO] {
        let mut held = Vec::new();
        for _ in 0..PLACES * 4 {
            held.push(half_open(&server, says).await);
            lookup().await;
        }
        // All places are taken: whoever comes now is closed at once, without having said anything.
        for stream in held {
            closed(stream).await;
            lookup().await;
        }
    }
    // The places are free again, also for those who come new.
    call(client(&server, "https://").ca_file(certificates.ca())).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_handshake_that_drips_does_not_last_longer_than_one_that_is_silent() {
    let certificates = Certificates::for_a_server();
    let limits = Limits { handshake: Duration::from_millis(200), ..Limits::default() };
    let server = start(Config { limits, ..speaking_tls(&certificates) }).await;
    let (mut reader, mut writer) = half_open(&server, &HALF_A_HELLO).await.into_split();
    let drip = tokio::spawn(async move {
        while writer.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(HANGS, reader.read_to_end(&mut rest)).await.expect("it keeps its place");
    tokio::time::timeout(HANGS, drip).await.expect("the server still takes bytes").unwrap();
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_handshakes() {
    let certificates = Certificates::for_a_server();
    let limits = Limits { handshake: HANGS * 5, ..Limits::default() };
    let server = start(Config { limits, drain_limit: HANGS * 5, ..speaking_tls(&certificates) }).await;
    let held = half_open(&server, &HALF_A_HELLO).await;
    call(client(&server, "https://").ca_file(certificates.ca())).await.unwrap();
    server.stop().await;
    closed(held).await;
}
