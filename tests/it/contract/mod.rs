//! The contract of the API, over a real server and a real store. What both ways of calling have is tested over
//! both, by the same code.

mod admin;
mod edge;
mod invalid;
mod namespaces;
mod quotas;
mod raw;
mod session;
mod unary_and_session;
mod waiting;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onced::rpc;
use onced::server::Config;
use onced_client::v1::admin_service_client::AdminServiceClient;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use onced_client::v1::{self, begin_response};
use prost::Message;
use tonic_types::{Status, pb};

use crate::support::caller::{Caller, Session, Unary};
use crate::support::recorded::info;
use crate::support::server::{Connection, HANGS, TestServer};
use crate::support::stores::Controlled;

/// Which way calls go.
#[derive(Clone, Copy, Debug)]
enum Way {
    Unary,
    Session,
}

/// A server, and callers of it.
struct Fixture {
    server: TestServer,
    store: Arc<Controlled>,
    caller: Arc<dyn Caller>,
    /// For what is unary only.
    client: IdempotencyServiceClient<Connection>,
    admin: AdminServiceClient<Connection>,
}

impl Fixture {
    async fn new(way: Way) -> Self {
        Self::configured(way, usual()).await
    }

    async fn with(way: Way, settings: rpc::Settings) -> Self {
        Self::configured(way, Config { rpc: settings, ..Config::default() }).await
    }

    async fn configured(way: Way, config: Config) -> Self {
        let store = Controlled::in_memory();
        let server = TestServer::start_with(Arc::clone(&store) as _, config).await;
        Self::of(way, store, server).await
    }

    async fn of(way: Way, store: Arc<Controlled>, server: TestServer) -> Self {
        let caller: Arc<dyn Caller> = match way {
            Way::Unary => Arc::new(Unary(server.client().await)),
            Way::Session => Arc::new(Session::open(&server).await),
        };
        let (client, admin) = (server.client().await, server.admin().await);
        Self { server, store, caller, client, admin }
    }

    /// Begins a key anew, and expects its claim.
    async fn claim(&self, key: &str) -> v1::Claim {
        claim_of(self.caller.begin(begin(key)).await.unwrap())
    }

    /// Begins and completes a key.
    async fn complete(&self, key: &str, response: &'static [u8]) -> v1::Claim {
        let claim = self.claim(key).await;
        self.caller.complete(complete(key, claim.fencing_token, response)).await.unwrap();
        claim
    }

    /// Begins a key and puts it in doubt.
    async fn doubt(&self, key: &str) -> v1::Claim {
        let claim = self.claim(key).await;
        let release = release(key, claim.fencing_token, v1::Disposition::InDoubt);
        self.caller.release(release).await.unwrap();
        claim
    }
}

/// What a server is like that nobody configured.
fn usual() -> Config {
    Config::default()
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS, what).await.expect("it hangs")
}

const NAMESPACE: &str = "orders";

/// A Begin by a caller of its own, with nothing optional.
fn begin(key: &str) -> v1::BeginRequest {
    v1::BeginRequest {
        namespace: NAMESPACE.to_owned(),
        key: key.to_owned(),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..v1::BeginRequest::default()
    }
}

/// A Begin that waits for as long as the server lets it.
fn patient(key: &str) -> v1::BeginRequest {
    v1::BeginRequest { wait: seconds(60), ..begin(key) }
}

fn complete(key: &str, fencing_token: u64, response: &'static [u8]) -> v1::CompleteRequest {
    v1::CompleteRequest {
        namespace: NAMESPACE.to_owned(),
        key: key.to_owned(),
        fencing_token,
        outcome: Some(outcome(response)),
        retention: None,
    }
}

fn outcome(response: &'static [u8]) -> v1::Outcome {
    let result = Some(v1::outcome::Result::Response(Bytes::from_static(response)));
    v1::Outcome { result, ..v1::Outcome::default() }
}

fn renew(key: &str, fencing_token: u64) -> v1::RenewRequest {
    v1::RenewRequest { namespace: NAMESPACE.to_owned(), key: key.to_owned(), fencing_token, checkpoint: None }
}

fn release(key: &str, fencing_token: u64, disposition: v1::Disposition) -> v1::ReleaseRequest {
    v1::ReleaseRequest {
        namespace: NAMESPACE.to_owned(),
        key: key.to_owned(),
        fencing_token,
        disposition: disposition.into(),
        reason: "the test says so".to_owned(),
    }
}

fn lookup(key: &str) -> v1::LookupRequest {
    v1::LookupRequest { namespace: NAMESPACE.to_owned(), key: key.to_owned(), wait: None }
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn std_duration(duration: Option<prost_types::Duration>) -> Duration {
    duration.expect("a duration").try_into().expect("one that is not negative")
}

#[track_caller]
fn claim_of(response: v1::BeginResponse) -> v1::Claim {
    match response.result {
        Some(begin_response::Result::Claim(claim)) => claim,
        other => panic!("no claim, but {other:?}"),
    }
}

#[track_caller]
fn completed_of(response: v1::BeginResponse) -> v1::Completed {
    match response.result {
        Some(begin_response::Result::Completed(completed)) => completed,
        other => panic!("not completed, but {other:?}"),
    }
}

#[track_caller]
fn in_progress_of(response: v1::BeginResponse) -> v1::InProgress {
    match response.result {
        Some(begin_response::Result::InProgress(in_progress)) => in_progress,
        other => panic!("not in progress, but {other:?}"),
    }
}

#[track_caller]
fn in_doubt_of(response: v1::BeginResponse) -> v1::InDoubt {
    match response.result {
        Some(begin_response::Result::InDoubt(in_doubt)) => in_doubt,
        other => panic!("not in doubt, but {other:?}"),
    }
}

/// Expects an error of this code and reason.
#[track_caller]
fn assert_refused<T: std::fmt::Debug>(
    result: Result<T, Status>,
    code: tonic::Code,
    reason: &str,
) -> pb::ErrorInfo {
    let status = result.unwrap_err();
    let info = info(&status);
    assert_eq!((tonic::Code::from(status.code), info.reason.as_str()), (code, reason), "{}", status.message);
    info
}

/// Runs each test over both ways, on a server with the usual configuration or with another.
macro_rules! over_both {
    (configured($config:ident): $($test:ident)*) => {
        mod over_unary_calls {
            $(
                #[tokio::test]
                async fn $test() {
                    let way = crate::contract::Way::Unary;
                    let on = crate::contract::Fixture::configured(way, super::$config()).await;
                    crate::contract::in_time(super::$test(on)).await;
                }
            )*
        }
        mod over_a_session {
            $(
                #[tokio::test]
                async fn $test() {
                    let way = crate::contract::Way::Session;
                    let on = crate::contract::Fixture::configured(way, super::$config()).await;
                    crate::contract::in_time(super::$test(on)).await;
                }
            )*
        }
    };
    ($($test:ident)*) => {
        use crate::contract::usual;
        crate::contract::over_both! { configured(usual): $($test)* }
    };
}
use over_both;
