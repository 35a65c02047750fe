//! The Rust client against a server, with a proxy between them where answers are to be lost.

mod calls;
mod grpc;
mod http;
mod once;
mod runs;
mod session;

use std::sync::Arc;
use std::time::Duration;

use onced::clock::Clock;
use onced::store::embedded::EmbeddedStore;
use onced_client::v1::{BeginRequest, LookupRequest};
use onced_client::{Begun, Client, Error, Record, wire};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::support::server::TestServer;

/// The shortest lock TTL there is.
const TTL: Duration = Duration::from_secs(2);

/// A server in this process with a store in memory.
struct Server {
    /// Where it listens, as host:port.
    address: String,
    server: TestServer,
}

impl Server {
    async fn start() -> Self {
        let store = Arc::new(EmbeddedStore::in_memory(Clock::system()).unwrap());
        let server = TestServer::start(store).await;
        Self { address: server.origin().authority().unwrap().to_string(), server }
    }

    fn client(&self) -> Client {
        Client::connect(&self.address).unwrap()
    }
}

/// An address where nobody listens.
async fn dead_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

fn begin(key: &str) -> BeginRequest {
    BeginRequest {
        namespace: "default".to_owned(),
        key: key.to_owned(),
        request_id: Uuid::new_v4().to_string(),
        owner: "somebody".to_owned(),
        lock_ttl: Some(wire(TTL)),
        ..BeginRequest::default()
    }
}

async fn lookup(client: &Client, key: &str) -> Result<Record, Error> {
    let request = LookupRequest { namespace: "default".to_owned(), key: key.to_owned(), wait: None };
    client.lookup(request).await
}

/// The claim of a key that is known to be free.
async fn claim(client: &Client, key: &str) -> onced_client::v1::Claim {
    match client.begin(begin(key)).await.unwrap() {
        Begun::Claim(claim) => claim,
        other => panic!("not free: {other:?}"),
    }
}
