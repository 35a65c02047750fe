//! What a collector is sent of calls.

use onced::telemetry::metrics::LIMIT_USED;
use onced_client::v1;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use onced_client::v1::session_request::Call;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tonic::Request;
use tonic::transport::Channel;

use crate::support::collector::{Collected, attributes};
use crate::support::etcd::EtcdProcess;
use crate::support::exposition::until;
use crate::support::onced::{ServerProcess, onced};

const CALLER: u64 = 0xb7ad_6b71_6920_3331;
const KEY: &str = "a-key-to-be-kept-quiet";

fn begin(key: &str) -> v1::BeginRequest {
    v1::BeginRequest {
        namespace: "test".to_owned(),
        key: key.to_owned(),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..v1::BeginRequest::default()
    }
}

/// A request by a caller in this trace, who keeps it or not.
fn traced<Q>(request: Q, trace: u128, kept: bool) -> Request<Q> {
    let mut request = Request::new(request);
    let parent = format!("00-{trace:032x}-{CALLER:016x}-{:02x}", u8::from(kept));
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    request
}

/// A server that sends its traces to a collector, and of calls in nobody's trace so many percent.
async fn start(
    store: &str,
    collected: &Collected,
    percent: &str,
) -> (ServerProcess, IdempotencyServiceClient<Channel>) {
    let mut command = onced();
    command.env("ONCED_OTLP_ENDPOINT", &collected.endpoint).env("ONCED_TRACE_PERCENT", percent);
    command.stderr(std::process::Stdio::null());
    let server = ServerProcess::start_as(command, store);
    let client = IdempotencyServiceClient::connect(format!("http://{}", server.address())).await.unwrap();
    (server, client)
}

/// All that was sent by a server that has ended.
async fn sent_by(mut server: ServerProcess, mut collected: Collected) -> Vec<Span> {
    server.terminate();
    assert!(server.ended().await.success());
    collected.all()
}

/// The only span of this name in this trace.
#[track_caller]
fn span<'a>(spans: &'a [Span], trace: u128, name: &str) -> &'a Span {
    let mut found = spans.iter().filter(|span| span.trace_id == trace.to_be_bytes() && span.name == name);
    let span = found.next().unwrap_or_else(|| panic!("no {name} in {trace:x}: {spans:#?}"));
    assert!(found.next().is_none(), "more than one {name} in {trace:x}: {spans:#?}");
    span
}

#[tokio::test]
async fn a_call_is_followed_from_its_caller_to_the_store() {
    let etcd = format!("etcd://{}/traces", EtcdProcess::shared().endpoint());
    for (store, last) in [("memory:", "embedded.commit"), (etcd.as_str(), "etcd.write")] {
        let collected = Collected::start().await;
        let (server, mut client) = start(store, &collected, "0").await;
        let begun = client.begin(traced(begin(KEY), 1, true)).await.unwrap().into_inner();
        let Some(v1::begin_response::Result::Claim(claim)) = begun.result else { panic!("{begun:?}") };
        let response = v1::outcome::Result::Response("done".into());
        let complete = v1::CompleteRequest {
            namespace: "test".to_owned(),
            key: KEY.to_owned(),
            fencing_token: claim.fencing_token,
            outcome: Some(v1::Outcome { result: Some(response), ..Default::default() }),
            retention: None,
        };
        let calls = v1::SessionRequest { id: 1, timeout: None, call: Some(Call::Complete(complete)) };
        let mut answers =
            client.session(traced(tokio_stream::iter([calls]), 2, true)).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap();
        client.begin(traced(v1::BeginRequest::default(), 3, true)).await.unwrap_err();
        let watch = v1::WatchRequest { namespace: "test".to_owned(), key: KEY.to_owned() };
        let mut watched = client.watch(traced(watch, 5, true)).await.unwrap().into_inner();
        while watched.message().await.unwrap().is_some() {}
        // Nobody keeps these.
        client.begin(traced(begin("unkept"), 4, false)).await.unwrap();
        client.begin(begin("untraced")).await.unwrap();
        drop((client, answers));
        let spans = sent_by(server, collected).await;

        for (trace, name) in [(1, "Begin"), (2, "Complete")] {
            let call = span(&spans, trace, &format!("onced.v1.IdempotencyService/{name}"));
            assert_eq!(call.parent_span_id, CALLER.to_be_bytes());
            assert_eq!(call.kind(), SpanKind::Server);
            let about = attributes(&call.attributes);
            assert_eq!((&*about["rpc.system.name"], &*about["rpc.response.status_code"]), ("grpc", "OK"));
            assert_eq!(about["rpc.method"], call.name);
            assert!(about.contains_key("onced.key_hash"), "{about:?}");
            let swap = span(&spans, trace, "store.swap");
            assert_eq!(swap.parent_span_id, call.span_id);
            assert_eq!(attributes(&swap.attributes)["onced.outcome"], "done");
            let write = span(&spans, trace, last);
            assert_eq!(write.parent_span_id, swap.span_id);
            assert_eq!(attributes(&write.attributes)["onced.batch_size"], "1");
        }
        let refused = span(&spans, 3, "onced.v1.IdempotencyService/Begin");
        let about = attributes(&refused.attributes);
        assert_eq!(about["rpc.response.status_code"], "INVALID_ARGUMENT");
        let watched = span(&spans, 5, "onced.v1.IdempotencyService/Watch");
        assert_eq!(watched.parent_span_id, CALLER.to_be_bytes());
        assert_eq!(attributes(&watched.attributes)["rpc.response.status_code"], "OK");
        assert_eq!(spans.len(), 8, "{spans:#?}");
        assert!(!format!("{spans:?}").contains(KEY), "{spans:#?}");
    }
}

#[tokio::test]
async fn calls_that_share_a_transaction_are_linked() {
    let etcd = EtcdProcess::start();
    let collected = Collected::start().await;
    let (server, client) = start(&format!("etcd://{}/traces", etcd.endpoint()), &collected, "0").await;
    // So that there are leases at hand.
    client.clone().begin(begin("first")).await.unwrap();
    etcd.freeze();
    // One is on its way, the others queue behind it.
    let mut calls = Vec::new();
    for trace in 1..=4 {
        let (mut client, key) = (client.clone(), format!("key-{trace}"));
        calls.push(tokio::spawn(async move { client.begin(traced(begin(&key), trace, true)).await }));
        let at_work = trace as f64;
        until(server.admin(), |now| now.value(LIMIT_USED, &["limit=\"max_active_calls\""]) >= at_work).await;
    }
    etcd.thaw();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    drop(client);
    let spans = sent_by(server, collected).await;
    let linked: Vec<_> =
        spans.iter().filter(|span| span.name == "etcd.write" && !span.links.is_empty()).collect();
    assert!(!linked.is_empty(), "{spans:#?}");
    for shared in linked {
        assert_eq!(attributes(&shared.attributes)["onced.batch_size"], (shared.links.len() + 1).to_string());
        for link in &shared.links {
            let swap =
                spans.iter().find(|span| span.span_id == link.span_id).expect("the span that is linked");
            assert_eq!((swap.name.as_str(), &swap.trace_id), ("store.swap", &link.trace_id));
        }
    }
}

#[tokio::test]
async fn calls_in_nobodys_trace_begin_one_where_that_is_wanted_and_a_collector_that_is_away_harms_nobody() {
    let collected = Collected::start().await;
    let (server, mut client) = start("memory:", &collected, "100").await;
    client.begin(begin(KEY)).await.unwrap();
    drop(client);
    let spans = sent_by(server, collected).await;
    let call = spans.iter().find(|span| span.kind() == SpanKind::Server).expect("the call");
    assert!(call.parent_span_id.is_empty(), "{call:?}");
    assert!(spans.iter().all(|span| span.trace_id == call.trace_id), "{spans:#?}");

    let mut gone = Collected::start().await;
    gone.endpoint = "http://127.0.0.1:1".to_owned();
    let (server, mut client) = start("memory:", &gone, "100").await;
    client.begin(begin(KEY)).await.unwrap();
    drop(client);
    sent_by(server, gone).await;
}
