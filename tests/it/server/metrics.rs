//! What a server tells of itself in numbers.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use onced::telemetry::metrics::{
    BEGINS, CERTIFICATE_EXPIRY, CLAIMS_OPEN, EMBEDDED_FREE_BYTES, ETCD_DB_SIZE, LATE_COMPLETES, LIMIT_SHED,
    LIMIT_SIZE, LIMIT_USED, METRICS, QUOTA_REFUSED, READY, REFUSED_REQUESTS, RELOAD_REFUSED, RELOADS,
    REPLAYS, ROOMS, SESSIONS, WATCHES,
};
use onced_client::v1;
use onced_client::v1::begin_response::Result as Begun;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use onced_client::v1::session_request::Call;
use prost::Message as _;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::*;
use crate::support::certificates::Certificates;
use crate::support::etcd::EtcdProcess;
use crate::support::exposition::{Exposition, until};
use crate::support::onced::{ServerProcess, onced};

const NAMESPACE: &str = "a-namespace-to-be-kept-quiet";
/// The largest message by default, and here all that a connection may make the server keep.
const MESSAGE: usize = 2 << 20;
const KEY: &str = "a-key-to-be-kept-quiet";

const CALLS: &str = "rpc_server_call_duration_seconds_count";

/// A caller of a server process.
struct Api(IdempotencyServiceClient<Channel>);

impl Api {
    async fn of(address: SocketAddr) -> Self {
        Self(IdempotencyServiceClient::connect(format!("http://{address}")).await.unwrap())
    }

    fn begin(request: u128) -> v1::BeginRequest {
        v1::BeginRequest {
            namespace: NAMESPACE.to_owned(),
            key: KEY.to_owned(),
            request_id: uuid::Uuid::from_u128(request).to_string(),
            lock_ttl: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
            ..v1::BeginRequest::default()
        }
    }

    async fn begun(&self, request: v1::BeginRequest) -> Result<Begun, tonic::Status> {
        self.0.clone().begin(request).await.map(|answer| answer.into_inner().result.expect("a result"))
    }

    async fn claim(&self, request: u128) -> u64 {
        match self.begun(Self::begin(request)).await.unwrap() {
            Begun::Claim(claim) => claim.fencing_token,
            other => panic!("no claim, but {other:?}"),
        }
    }

    async fn release(&self, fencing_token: u64, disposition: v1::Disposition) {
        let (namespace, key) = (NAMESPACE.to_owned(), KEY.to_owned());
        let request = v1::ReleaseRequest {
            namespace,
            key,
            fencing_token,
            disposition: disposition.into(),
            reason: String::new(),
        };
        self.0.clone().release(request).await.unwrap();
    }

    async fn complete(&self, fencing_token: u64) {
        self.complete_key(KEY.to_owned(), fencing_token).await;
    }

    async fn complete_key(&self, key: String, fencing_token: u64) {
        let response = v1::outcome::Result::Response("done".into());
        let request = v1::CompleteRequest {
            namespace: NAMESPACE.to_owned(),
            key,
            fencing_token,
            outcome: Some(v1::Outcome { result: Some(response), ..Default::default() }),
            retention: None,
        };
        self.0.clone().complete(request).await.unwrap();
    }

    /// A method that no server has.
    async fn unknown_method(address: SocketAddr) {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let mut grpc = Grpc::new(channel);
        grpc.ready().await.unwrap();
        let path = "/onced.v1.IdempotencyService/Nothing".parse().unwrap();
        let request = tonic::Request::new(v1::LookupRequest::default());
        let codec = ProstCodec::<_, v1::LookupResponse>::default();
        assert_eq!(grpc.unary(request, path, codec).await.unwrap_err().code(), tonic::Code::Unimplemented);
    }
}

/// Every metric is brought about on one of two stores, by TLS, or by a proxy, and held against the table of the code: what is shown is in
/// the table, and what is in the table is shown.
#[tokio::test]
async fn what_is_shown_is_what_the_table_says() {
    let (process, directory) = (EtcdProcess::start(), tempfile::tempdir().unwrap());
    let etcd = format!("etcd://{}/metrics", process.endpoint());
    let embedded = format!("file:{}", directory.path().display());
    let (certificates, mut by_tls) = (Certificates::for_a_server(), onced());
    by_tls.env("ONCED_TLS_CERT", certificates.path("server.crt"));
    by_tls.env("ONCED_TLS_KEY", certificates.path("server.key"));
    let by_tls = ServerProcess::start_as(by_tls, "memory:");
    let of_files = [CERTIFICATE_EXPIRY, RELOADS, RELOAD_REFUSED];
    let seen = |now: &Exposition| of_files.iter().all(|name| now.metrics.contains_key(*name));
    let mut shown = vec![until(by_tls.admin(), seen).await, crate::proxy::shown().await];
    for (store, looked_at) in [(&etcd, ETCD_DB_SIZE), (&embedded, EMBEDDED_FREE_BYTES)] {
        let server = ServerProcess::start(store);
        let api = Api::of(server.address()).await;
        let token = api.claim(1).await;
        api.complete(token).await;
        api.begun(v1::BeginRequest { request_id: String::new(), ..Api::begin(2) }).await.unwrap_err();
        let watch = v1::WatchRequest { namespace: NAMESPACE.to_owned(), key: KEY.to_owned() };
        let mut watched = api.0.clone().watch(watch).await.unwrap().into_inner();
        while watched.message().await.unwrap().is_some() {}
        api.0.clone().watch(v1::WatchRequest::default()).await.unwrap_err();
        api.0.clone().session(futures_util::stream::empty()).await.unwrap();
        Api::unknown_method(server.address()).await;
        // What is looked at every now and then has been.
        let seen =
            |now: &Exposition| [looked_at, LIMIT_USED].iter().all(|name| now.metrics.contains_key(*name));
        shown.push(until(server.admin(), seen).await);
    }
    let names: BTreeSet<&str> = shown.iter().flat_map(|one| one.metrics.keys()).map(String::as_str).collect();
    assert_eq!(
        names,
        METRICS.iter().map(|metric| metric.name).collect(),
        "shown, left, and in the table, right"
    );
    for metric in METRICS {
        let mut labels = BTreeSet::new();
        for shown in shown.iter().filter_map(|one| one.metrics.get(metric.name)) {
            assert_eq!(
                (shown.kind.as_str(), shown.help.as_str()),
                (metric.kind.name(), metric.help),
                "{}",
                metric.name
            );
            labels.extend(&shown.labels);
        }
        let expected: BTreeSet<String> = metric.labels.iter().map(|label| (*label).to_owned()).collect();
        assert_eq!(labels, expected.iter().collect(), "{}", metric.name);
    }
}

#[tokio::test]
async fn calls_are_counted_by_what_they_came_to_and_no_key_is_told() {
    let server = ServerProcess::start("memory:");
    let api = Api::of(server.address()).await;
    let of = |request| Api::begin(request);

    let first = api.claim(1).await;
    assert!(matches!(api.begun(of(1)).await.unwrap(), Begun::Claim(claim) if claim.resumed));
    assert!(matches!(api.begun(of(2)).await.unwrap(), Begun::InProgress(_)));
    api.release(first, v1::Disposition::Retry).await;
    let second = api.claim(3).await;
    api.release(second, v1::Disposition::InDoubt).await;
    assert!(matches!(api.begun(of(4)).await.unwrap(), Begun::InDoubt(_)));
    api.complete(second).await;
    assert!(matches!(api.begun(of(5)).await.unwrap(), Begun::Completed(_)));
    let other = |key: &str, fingerprint: &'static [u8]| v1::BeginRequest {
        key: format!("{KEY}-{key}"),
        fingerprint: fingerprint.into(),
        ..of(6)
    };
    api.begun(other("print", b"one")).await.unwrap();
    api.begun(other("print", b"two")).await.unwrap_err();
    api.begun(v1::BeginRequest { key: String::new(), ..of(7) }).await.unwrap_err();
    // A call of a session is one like any other.
    let in_session =
        v1::SessionRequest { id: 1, timeout: None, call: Some(Call::Begin(other("session", b""))) };
    let (session, calls) = tokio::sync::mpsc::channel(1);
    session.send(in_session).await.unwrap();
    let calls = tokio_stream::wrappers::ReceiverStream::new(calls);
    let mut answers = api.0.clone().session(calls).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    // So is one that its caller gave up: it is waiting when he does.
    let wait = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let waiting = tokio::spawn({
        let (api, begin) = (api.0.clone(), v1::BeginRequest { wait, ..other("session", b"") });
        async move {
            api.clone().begin(v1::BeginRequest { request_id: uuid::Uuid::from_u128(8).into(), ..begin }).await
        }
    });
    let place = ["limit=\"max_waiting_calls\""];
    until(server.admin(), |now| now.value(LIMIT_USED, &place) == 1.0 && now.value(SESSIONS, &[]) == 1.0)
        .await;
    waiting.abort();
    drop(session);

    let method = "rpc_method=\"onced.v1.IdempotencyService/Begin\"";
    let cancelled = [method, "rpc_response_status_code=\"CANCELLED\"", "error_type=\"CANCELLED\""];
    let now = until(server.admin(), |now| {
        now.value(CALLS, &cancelled) == 1.0
            && now.value(SESSIONS, &[]) == 0.0
            && now.value(LIMIT_USED, &place) == 0.0
    })
    .await;
    let begins = |result| now.value(BEGINS, &[&format!("result=\"{result}\"")]);
    let counted =
        ["claimed", "taken_over", "resumed", "replayed", "in_progress", "in_doubt", "mismatch", "failed"]
            .map(begins);
    assert_eq!(counted, [3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0]);
    assert_eq!(now.value(CALLS, &[method]), counted.iter().sum::<f64>());
    assert_eq!(now.value(CALLS, &[method, "rpc_response_status_code=\"OK\""]), 8.0);
    let mismatch =
        ["rpc_response_status_code=\"FAILED_PRECONDITION\"", "error_type=\"FINGERPRINT_MISMATCH\""];
    assert_eq!(now.value(CALLS, &mismatch), 1.0);
    assert_eq!(now.value(CALLS, &["rpc_method=\"onced.v1.IdempotencyService/Release\""]), 2.0);
    assert_eq!((now.value(READY, &[]), now.value(LATE_COMPLETES, &[])), (1.0, 0.0));
    let replays = ["store", "memory"].map(|source| now.value(REPLAYS, &[&format!("source=\"{source}\"")]));
    // The embedded store has it in memory.
    assert_eq!(replays, [0.0, 1.0]);
    let shown = format!("{now:?}");
    assert!(!shown.contains(KEY) && !shown.contains(NAMESPACE), "{shown}");
}

/// Who waits has the outcome from the Complete that passes, unless the store's hint is faster and he reads it: so one
/// key after the other, until it was not. Each replay counts once, and each claim is seen to end.
#[tokio::test]
async fn an_outcome_that_passes_is_a_replay_out_of_memory() {
    let server = ServerProcess::start("memory:");
    let api = Api::of(server.address()).await;
    let open = |now: &Exposition| (now.value(CLAIMS_OPEN, &[]), now.value(ROOMS, &[]));
    let of_store_and_memory = |now: &Exposition| {
        ["store", "memory"].map(|source| now.value(REPLAYS, &[&format!("source=\"{source}\"")]))
    };
    let passed = async {
        for number in 1_u32.. {
            let begin = |request| v1::BeginRequest { key: format!("{KEY}-{number}"), ..Api::begin(request) };
            let Begun::Claim(claim) = api.begun(begin(1)).await.unwrap() else { panic!("no claim") };
            let wait = Some(prost_types::Duration { seconds: 60, nanos: 0 });
            let waiting = tokio::spawn({
                let (mut api, begin) = (api.0.clone(), v1::BeginRequest { wait, ..begin(2) });
                async move { api.begin(begin).await }
            });
            let waits = ["limit=\"max_waiting_calls\""];
            until(server.admin(), |now| open(now) == (1.0, 1.0) && now.value(LIMIT_USED, &waits) == 1.0)
                .await;
            api.complete_key(begin(1).key, claim.fencing_token).await;
            assert!(matches!(waiting.await.unwrap().unwrap().into_inner().result, Some(Begun::Completed(_))));
            let now = until(server.admin(), |now| open(now) == (0.0, 0.0)).await;
            let [of_store, of_memory] = of_store_and_memory(&now);
            assert_eq!(of_store + of_memory, f64::from(number));
            if of_memory > 0.0 {
                return;
            }
        }
    };
    tokio::time::timeout(HANGS, passed).await.expect("no outcome passes");
}

#[tokio::test]
async fn what_a_quota_or_the_budget_of_a_connection_refuses_is_counted() {
    let settings = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&settings, format!("[namespaces.{NAMESPACE}]\nmax_claims = 1\nmax_waiters = 0\n"))
        .unwrap();
    let mut command = onced();
    command.env("ONCED_CONFIG", settings.path()).env("ONCED_LIMITS_BYTES_PER_CONNECTION", "2MiB");
    let server = ServerProcess::start_as(command, "memory:");
    let api = Api::of(server.address()).await;
    api.claim(1).await;
    let refused =
        api.begun(v1::BeginRequest { key: "another".to_owned(), ..Api::begin(2) }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    let wait = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    assert!(matches!(
        api.begun(v1::BeginRequest { wait, ..Api::begin(3) }).await.unwrap(),
        Begun::InProgress(_)
    ));
    // The largest message that is taken, which has no room together with what frames it.
    let with = |bytes: usize| v1::BeginRequest { fingerprint: vec![0; bytes].into(), ..Api::begin(4) };
    let over = with(MESSAGE).encoded_len() - MESSAGE;
    let refused = api.begun(with(MESSAGE - over)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");

    let now = Exposition::of(server.admin()).await;
    let quotas = ["begins_per_second", "max_waiters", "max_claims"];
    let counted = quotas.map(|quota| now.value(QUOTA_REFUSED, &[&format!("limit=\"{quota}\"")]));
    assert_eq!(counted, [0.0, 1.0, 1.0]);
    assert_eq!(now.value(LIMIT_SHED, &["limit=\"bytes_per_connection\""]), 1.0);
}

#[tokio::test]
async fn an_outcome_after_the_lapse_counts_as_late() {
    let server = ServerProcess::start("memory:");
    let api = Api::of(server.address()).await;
    let lock_ttl = Some(prost_types::Duration { seconds: 2, nanos: 0 });
    let begun = api.begun(v1::BeginRequest { lock_ttl, ..Api::begin(1) }).await.unwrap();
    let Begun::Claim(v1::Claim { fencing_token: token, .. }) = begun else {
        panic!("no claim, but {begun:?}")
    };
    // A little over its lock TTL.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    api.complete(token).await;
    assert_eq!(Exposition::of(server.admin()).await.value(LATE_COMPLETES, &[]), 1.0);
}

#[tokio::test]
async fn what_is_refused_for_want_of_room_is_counted_by_the_limit() {
    let mut command = onced();
    command.env("ONCED_LIMITS_MAX_WAITING_CALLS", "1").stderr(std::process::Stdio::null());
    let server = ServerProcess::start_as(command, "memory:");
    let api = Api::of(server.address()).await;
    api.claim(1).await;
    let watch = || v1::WatchRequest { namespace: NAMESPACE.to_owned(), key: KEY.to_owned() };
    let mut watched = api.0.clone().watch(watch()).await.unwrap().into_inner();
    watched.message().await.unwrap().unwrap();
    let refused = api.0.clone().watch(watch()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);

    Api::unknown_method(server.address()).await;
    let limit = ["limit=\"max_waiting_calls\""];
    // The connection of the unknown method is gone, that of the others is not.
    let connected = |now: &Exposition| now.value(LIMIT_USED, &["limit=\"connections\""]) == 1.0;
    let now = until(server.admin(), |now| now.value(LIMIT_USED, &limit) == 1.0 && connected(now)).await;
    assert_eq!((now.value(LIMIT_SIZE, &limit), now.value(LIMIT_SHED, &limit)), (1.0, 1.0));
    assert_eq!(now.value(LIMIT_SHED, &["limit=\"max_active_calls\""]), 0.0);
    assert_eq!(now.value(WATCHES, &[]), 1.0);
    assert_eq!(now.value(REFUSED_REQUESTS, &["error_type=\"UNIMPLEMENTED\""]), 1.0);
}
