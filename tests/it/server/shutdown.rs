//! The way down: bounded, and nobody is cut short within the bound.

use futures_util::stream;
use onced::generated::health_v1::{HealthCheckRequest, HealthCheckResponse};
use onced::record::{Key, Namespace, RecordKey, State};
use onced::store::RecordStore as _;
use onced_client::v1;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_types::StatusExt as _;

use super::*;
use crate::support::server::Connection;

/// No shutdown of these tests may need its limit: one that does takes so long that the test fails.
const NEVER: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn a_silent_connection_and_an_open_health_watch_do_not_block_it() {
    let limits = Limits { handshake: NEVER, ..Limits::default() };
    let server = start(limits, NEVER).await;
    let silent = TcpStream::connect(server.address()).await.unwrap();
    let mut health = server.health().await;
    let mut changes = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    changes.message().await.unwrap().unwrap();

    server.stop().await;
    drop((silent, changes));
}

#[tokio::test]
async fn new_connections_are_refused_once_it_has_begun() {
    // An address that no other test uses: the port alone could be another's as soon as it is free.
    let config = Config { listen: "127.0.0.2:0".parse().unwrap(), drain_limit: NEVER, ..Config::default() };
    let server = TestServer::start_with(Controlled::in_memory(), config).await;
    let address = server.address();
    server.stop().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_call_that_never_ends_is_cut_at_the_limit() {
    let server = start(Limits::default(), Duration::from_millis(200)).await;
    let channel =
        Channel::from_shared(format!("http://{}", server.address())).unwrap().connect().await.unwrap();
    let endless = tokio::spawn(async move {
        let mut grpc = Grpc::new(channel);
        grpc.ready().await.unwrap();
        let request = tonic::Request::new(stream::pending::<HealthCheckRequest>());
        let path = "/grpc.health.v1.Health/Check".parse().unwrap();
        grpc.client_streaming::<_, _, HealthCheckResponse, _>(request, path, ProstCodec::default()).await
    });
    // It is under way once the server has answered another call on the same kind of connection.
    server.health().await.check(HealthCheckRequest::default()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!endless.is_finished());

    server.stop().await;
    let ended = tokio::time::timeout(HANGS, endless).await.expect("the connection was not dropped").unwrap();
    assert!(ended.is_err());
}

type Api = IdempotencyServiceClient<Connection>;

fn begin(request: u128) -> v1::BeginRequest {
    v1::BeginRequest {
        namespace: "test".to_owned(),
        key: "key".to_owned(),
        request_id: uuid::Uuid::from_u128(request).to_string(),
        ..Default::default()
    }
}

async fn claim(api: &mut Api) -> u64 {
    match api.begin(begin(1)).await.unwrap().into_inner().result {
        Some(v1::begin_response::Result::Claim(claim)) => claim.fencing_token,
        other => panic!("not a claim: {other:?}"),
    }
}

fn completed(fencing_token: u64) -> v1::CompleteRequest {
    let response = v1::outcome::Result::Response("done".into());
    v1::CompleteRequest {
        namespace: "test".to_owned(),
        key: "key".to_owned(),
        fencing_token,
        outcome: Some(v1::Outcome { result: Some(response), ..Default::default() }),
        ..Default::default()
    }
}

#[tokio::test]
async fn waiters_are_told_to_go_elsewhere_and_open_streams_end() {
    let server = start(Limits::default(), NEVER).await;
    let mut api = server.client().await;
    claim(&mut api).await;

    let mut waiting = api.clone();
    let waiter = tokio::spawn(async move {
        let wait = Some(prost_types::Duration { seconds: 60, nanos: 0 });
        waiting.begin(v1::BeginRequest { wait, ..begin(2) }).await
    });
    let watch = v1::WatchRequest { namespace: "test".to_owned(), key: "key".to_owned() };
    let mut watched = api.watch(watch).await.unwrap().into_inner();
    watched.message().await.unwrap().unwrap();
    let mut session = api.session(stream::pending()).await.unwrap().into_inner();
    let mut reflection = ServerReflectionClient::with_origin(server.connect().await, server.origin());
    let mut reflected = reflection.server_reflection_info(stream::pending()).await.unwrap().into_inner();
    // Long enough for the Begin, which was sent before, to have come to its wait.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiter.is_finished());

    server.stop().await;
    let told = [
        waiter.await.unwrap().unwrap_err(),
        watched.message().await.unwrap_err(),
        session.message().await.unwrap_err(),
    ];
    for status in told {
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert_eq!(status.get_details_error_info().unwrap().reason, "DRAINING");
    }
    assert_eq!(reflected.message().await.unwrap(), None);
}

/// A claim, and a Complete of it that is held up in the store.
async fn completing(store: &Controlled, server: &TestServer) -> JoinHandle<Result<(), tonic::Status>> {
    let mut api = server.client().await;
    let token = claim(&mut api).await;
    store.hold_writes(true);
    let before = store.trips();
    let completing = tokio::spawn(async move { api.complete(completed(token)).await.map(drop) });
    store.reached(before + 1).await;
    completing
}

async fn is_completed(store: &Controlled) -> bool {
    let key = RecordKey { namespace: Namespace::new("test").unwrap(), key: Key::new("key").unwrap() };
    let stored = store.load(&key).await.unwrap().unwrap();
    matches!(stored.record.state, State::Completed { .. })
}

#[tokio::test]
async fn a_complete_in_flight_is_stored_and_answered() {
    let store = Controlled::in_memory();
    let server = start_on(store.clone(), Limits::default(), NEVER).await;
    let completing = completing(&store, &server).await;
    server.begin_stop();
    // The drain is well under way, and waits.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!server.has_ended());

    store.hold_writes(false);
    assert!(completing.await.unwrap().is_ok());
    server.stop().await;
    assert!(is_completed(&store).await);
}

#[tokio::test]
async fn a_write_whose_caller_hung_up_is_finished() {
    let store = Controlled::in_memory();
    let server = start_on(store.clone(), Limits::default(), NEVER).await;
    let completing = completing(&store, &server).await;
    completing.abort();
    server.begin_stop();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!server.has_ended());

    store.hold_writes(false);
    server.stop().await;
    assert!(is_completed(&store).await);
}
