//! Connections that say nothing, and more of them than there are files.

use onced_client::{Client, ErrorReason};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::*;
use crate::support::certificates::{Certificates, HALF_A_HELLO};
use crate::support::onced::onced;
use crate::support::server::HANGS;

#[tokio::test]
async fn silent_sockets() {
    let scene = Scene::new().await;
    let mut sockets = Vec::new();
    for _ in 0..100 {
        sockets.push(TcpStream::connect(scene.address()).await.unwrap());
        let mut half = TcpStream::connect(scene.address()).await.unwrap();
        half.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
        sockets.push(half);
        let mut mute = TcpStream::connect(scene.address()).await.unwrap();
        mute.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        sockets.push(mute);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.end(LITTLE).await;
}

/// As many handshakes by TLS that never get on, and those who come beside them.
#[tokio::test]
async fn half_a_hello() {
    let certificates = Certificates::for_a_server();
    let (cert, key) = certificates.identity("server");
    let mut command = onced();
    command.env("ONCED_TLS_CERT", cert).env("ONCED_TLS_KEY", key);
    let server = ServerProcess::start_as(command, "memory:");
    let come_new = async || {
        let caller = Client::builder(format!("https://{}", server.address()));
        let caller = caller.ca_file(certificates.ca()).timeout(HANGS).build().unwrap();
        let absent = caller.lookup(lookup("absent")).await.expect_err("no record");
        assert_eq!(absent.reason(), Some(ErrorReason::RecordNotFound));
    };
    come_new().await;
    let before = server.peak_memory();
    let mut held = Vec::new();
    for _ in 0..100 {
        for says in [&[][..], &HALF_A_HELLO[..1], &HALF_A_HELLO] {
            let mut socket = TcpStream::connect(server.address()).await.unwrap();
            socket.write_all(says).await.unwrap();
            held.push(socket);
        }
        come_new().await;
    }
    // The system counts roughly.
    let grown = server.peak_memory().saturating_sub(before);
    assert!(grown <= LITTLE, "{} MiB more memory", grown / MIB);
}

/// A shell's usual limit is far below the server's own, for the sake of programs of another age.
#[tokio::test]
async fn a_low_limit_of_files_is_raised_as_far_as_the_system_lets() {
    let server = ServerProcess::start_with_files("memory:", 64);
    let mut clients = Vec::new();
    for number in 0..100 {
        let opening = async {
            let mut client = server::client(server.address()).await;
            client.begin(begin(&format!("file-{number}"))).await.expect("a claim");
            client
        };
        clients.push(tokio::time::timeout(HANGS, opening).await.expect("no files are left"));
    }
}
