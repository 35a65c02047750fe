//! The admin port, as probes see it.

use std::process::Stdio;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::support::http::{ask, get, until};
use crate::support::onced::{KillOnDrop, ServerProcess, onced};
use crate::support::open_call::OpenCall;

#[tokio::test]
async fn liveness_and_readiness_are_pages_of_their_own() {
    let server = ServerProcess::start("memory:");
    let ready = until(server.admin(), "/readyz", |page| page.status == 200).await;
    assert_eq!(ready.json(), serde_json::json!({ "status": "ready" }));
    let live = get(server.admin(), "/livez").await;
    assert_eq!((live.status, live.json()), (200, serde_json::json!({ "status": "live" })));
    assert!(live.head.contains("content-type: application/json"), "{}", live.head);

    assert_eq!(ask(server.admin(), "HEAD", "/readyz").await.unwrap().body, "");
    let refused = ask(server.admin(), "POST", "/readyz").await.unwrap();
    assert!(refused.status == 405 && refused.head.contains("allow: get, head"), "{refused:?}");
    let unknown = get(server.admin(), "/").await;
    assert!(unknown.status == 404 && unknown.body.contains("/readyz"), "{unknown:?}");
}

#[tokio::test]
async fn a_server_that_opens_its_store_is_live_and_not_ready() {
    // It takes connections and says nothing, which takes the store its time to find out.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let store = format!("etcd://{}", silent.local_addr().unwrap());
    // Of another test's connections none has it: a port of its own address.
    let free = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let admin = free.local_addr().unwrap();
    drop(free);
    let mut command = onced();
    command.args([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--store",
        &store,
        "--admin-listen",
        &admin.to_string(),
    ]);
    let mut server = KillOnDrop(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());

    let opening = until(admin, "/readyz", |page| page.status == 503).await.json();
    assert_eq!((&opening["status"], &opening["reason"]), (&"not ready".into(), &"store_opening".into()));
    assert_eq!(get(admin, "/livez").await.status, 200);
    // And it does end when that fails.
    assert_eq!(server.0.wait().unwrap().code(), Some(1));
}

#[tokio::test]
async fn silent_and_slow_clients_keep_nobody_out_and_are_let_go() {
    let server = ServerProcess::start("memory:");
    let mut idle = Vec::new();
    for i in 0..300 {
        let mut stream = TcpStream::connect(server.admin()).await.unwrap();
        if i % 2 == 0 {
            stream.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        }
        idle.push(stream);
    }
    assert_eq!(get(server.admin(), "/livez").await.status, 200);
    // The newest, too, once their time is up.
    for mut stream in idle {
        let mut rest = Vec::new();
        match tokio::time::timeout(HANGS, stream.read_to_end(&mut rest)).await.expect("it is kept for ever") {
            Ok(_) => assert!(!rest.starts_with(b"HTTP/1.1 2"), "{rest:?}"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
}

#[tokio::test]
async fn a_drain_shows_until_it_is_done() {
    let mut server = ServerProcess::start("memory:");
    until(server.admin(), "/readyz", |page| page.status == 200).await;
    let call = OpenCall::start(server.address()).await;

    server.terminate();
    let draining = until(server.admin(), "/readyz", |page| page.status == 503).await.json();
    assert_eq!(draining["reason"], "draining", "{draining}");
    assert_eq!(get(server.admin(), "/livez").await.status, 200);
    assert!(TcpStream::connect(server.address()).await.is_err(), "calls are still taken");

    call.finish().await;
    assert!(server.ended().await.success());
    assert!(TcpStream::connect(server.admin()).await.is_err(), "it outlived the server");
}

#[tokio::test]
async fn it_can_be_switched_off_and_a_taken_address_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = onced()
        .args(["serve", "--store", "memory:", "--listen", "127.0.0.1:0", "--admin-listen", &address])
        .output()
        .unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        refused.status.code() == Some(1) && said.contains(&address) && said.contains("--admin-listen"),
        "{said}"
    );

    let mut command = onced();
    command.args(["serve", "--store", "memory:", "--listen", "127.0.0.1:0", "--admin-listen", "off"]);
    let mut server = KillOnDrop(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut said = std::io::BufRead::lines(std::io::BufReader::new(server.0.stdout.take().unwrap()));
    assert!(said.next().unwrap().unwrap().starts_with("listening on "));
    assert!(!said.next().unwrap().unwrap().starts_with("health and metrics on "));
}
