//! Callers that mean harm, or are broken as if they did. A real server, in a process of its own, keeps its memory
//! bounded, and a well-behaved caller beside them notices nothing.

mod connections;
mod floods;
mod readers;
mod streams;
mod writers;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use onced_client::v1;
use prost::Message as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::onced::ServerProcess;
use crate::support::server;

/// How long a pair of the well-behaved caller may take. Far more than it needs, on a busy machine too; far less
/// than a server that is stuck.
const DEADLINE: Duration = server::HANGS;

const MIB: u64 = 1 << 20;

/// More memory than any flood may take that leaves nothing to keep: a few times what it takes, for the server in
/// these tests is not optimised, and what is free again is not all given back.
const LITTLE: u64 = 64 * MIB;
/// As `LITTLE`, and what one connection may make the server keep: twice, since large pieces are rounded up, and once
/// more for what has been read and is on its way to be refused.
const KEPT: u64 = LITTLE + 3 * 64 * MIB;

/// A server under attack, with a well-behaved caller at work.
struct Scene {
    server: ServerProcess,
    stop: CancellationToken,
    beside: JoinHandle<u64>,
    before: u64,
}

impl Scene {
    async fn new() -> Self {
        let server = ServerProcess::start("memory:");
        let stop = CancellationToken::new();
        let beside = tokio::spawn(work(server.address(), stop.clone()));
        // What any server has once it has served a call.
        store(server.address(), "warm", 1).await;
        let before = server.peak_memory();
        Self { server, stop, beside, before }
    }

    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Waits until the server keeps so much more than it had before: what is asked of it has come to something.
    async fn has_grown_by(&self, least: u64) {
        let grown = async {
            while self.server.peak_memory() - self.before < least {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(server::HANGS, grown).await.expect("it keeps next to nothing");
    }

    /// Ends the scene: the well-behaved caller got something done all the while, nothing of it was refused, and the
    /// server never had more than so much memory beyond what it had before.
    async fn end(self, most: u64) {
        // Once more, after all that happened.
        store(self.server.address(), "afterwards", 1).await;
        self.stop.cancel();
        let pairs = self.beside.await.expect("every call of the well-behaved caller succeeds in time");
        assert!(pairs > 0, "it got nothing done");
        let grown = self.server.peak_memory() - self.before;
        println!("{pairs} pairs beside, {} MiB more", grown / MIB);
        assert!(grown <= most, "{} MiB more memory, of {}", grown / MIB, most / MIB);
    }
}

/// Does one pair of Begin and Complete after the other until told to stop: how many it got done.
async fn work(address: SocketAddr, stop: CancellationToken) -> u64 {
    let mut pairs = 0;
    while !stop.is_cancelled() {
        store(address, &format!("beside-{pairs}"), 256).await;
        pairs += 1;
    }
    pairs
}

/// Claims a key and completes it with so many bytes, on a connection of its own.
async fn store(address: SocketAddr, key: &str, bytes: usize) {
    let stored = async {
        let mut client = server::client(address).await;
        let token = match client.begin(begin(key)).await.expect("a Begin").into_inner().result {
            Some(v1::begin_response::Result::Claim(claim)) => claim.fencing_token,
            other => panic!("no claim, but {other:?}"),
        };
        client.complete(complete(key, token, bytes)).await.expect("a Complete");
    };
    tokio::time::timeout(DEADLINE, stored).await.expect("it hangs");
}

fn begin(key: &str) -> v1::BeginRequest {
    v1::BeginRequest {
        namespace: "hostile".to_owned(),
        key: key.to_owned(),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..v1::BeginRequest::default()
    }
}

fn complete(key: &str, fencing_token: u64, bytes: usize) -> v1::CompleteRequest {
    let response = v1::outcome::Result::Response(Bytes::from(vec![b'x'; bytes]));
    v1::CompleteRequest {
        namespace: "hostile".to_owned(),
        key: key.to_owned(),
        fencing_token,
        outcome: Some(v1::Outcome { result: Some(response), ..v1::Outcome::default() }),
        retention: None,
    }
}

fn lookup(key: &str) -> v1::LookupRequest {
    v1::LookupRequest { namespace: "hostile".to_owned(), key: key.to_owned(), wait: None }
}

fn watch(key: &str) -> v1::WatchRequest {
    v1::WatchRequest { namespace: "hostile".to_owned(), key: key.to_owned() }
}

const BEGIN: &str = "/onced.v1.IdempotencyService/Begin";
const LOOKUP: &str = "/onced.v1.IdempotencyService/Lookup";
const WATCH: &str = "/onced.v1.IdempotencyService/Watch";
const SESSION: &str = "/onced.v1.IdempotencyService/Session";
const COMPLETE: &str = "/onced.v1.IdempotencyService/Complete";
