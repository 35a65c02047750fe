//! What a server logs.

use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use onced_client::v1::session_request::Call;
use onced_client::v1::{LookupRequest, SessionRequest};

use super::*;
use crate::support::log::Log;
use crate::support::onced::{ServerProcess, onced};

#[tokio::test]
async fn a_store_that_is_away_does_not_fill_the_log() {
    const CALLS: usize = 200;
    let log = Log::start();
    let store = Controlled::in_memory();
    store.set_away(true);
    let server = start_on(store, Limits::default(), HANGS).await;
    let mut client = server.client().await;
    for _ in 0..CALLS {
        let lookup = LookupRequest { namespace: "n".to_owned(), key: "k".to_owned(), wait: None };
        client.lookup(lookup).await.unwrap_err();
    }
    // One each few seconds: that there are as many takes a machine that stands still.
    let lines = log.lines_with(&["WARN", "the store failed"]).len();
    assert!((1..CALLS / 10).contains(&lines), "{lines} lines");
    server.stop().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_written_ends_nothing() {
    let server = ServerProcess::start_with_full_log("memory:");
    let mut client = IdempotencyServiceClient::connect(format!("http://{}", server.address())).await.unwrap();
    for _ in 0..10 {
        let lookup = LookupRequest { namespace: "n".to_owned(), key: "k".to_owned(), wait: None };
        let answer = client.lookup(lookup).await.unwrap_err();
        assert_eq!(answer.code(), tonic::Code::NotFound, "{answer}");
    }
}

#[tokio::test]
async fn lines_in_json_have_the_trace_of_the_caller_and_no_key() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = onced();
    command.env("ONCED_LOG_FORMAT", "json").env("ONCED_LOG", "info,onced=debug");
    command.stderr(log.reopen().unwrap());
    let mut server = ServerProcess::start_as(command, "memory:");
    let client = IdempotencyServiceClient::connect(format!("http://{}", server.address())).await.unwrap();
    let traced = |key: &str| {
        let lookup = LookupRequest { namespace: "n".to_owned(), key: key.to_owned(), wait: None };
        let mut request = tonic::Request::new(lookup.clone());
        let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
        request.metadata_mut().insert("traceparent", parent.parse().unwrap());
        (request, lookup)
    };
    let (request, lookup) = traced("key-to-be-kept-quiet");
    client.clone().lookup(request).await.unwrap_err();
    client.clone().lookup(lookup.clone()).await.unwrap_err();
    let calls =
        tokio_stream::iter([SessionRequest { id: 1, timeout: None, call: Some(Call::Lookup(lookup)) }]);
    let mut session = tonic::Request::new(calls);
    *session.metadata_mut() = traced("").0.metadata().clone();
    client.clone().session(session).await.unwrap().into_inner().message().await.unwrap().unwrap();
    server.terminate();
    assert!(server.ended().await.success());

    let log = std::fs::read_to_string(log.path()).unwrap();
    assert!(!log.contains("key-to-be-kept-quiet"), "{log}");
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let answered = lines.iter().filter(|line| line["message"] == "answered");
    let traces: Vec<_> = answered.map(|line| (&line["rpc"], line["trace_id"].as_str())).collect();
    let lookup = &"Lookup".into();
    assert_eq!(traces, [(lookup, Some(TRACE)), (lookup, None), (lookup, Some(TRACE))]);
    let drained = lines.iter().find(|line| line["message"] == "drained").expect("a line of the drain");
    assert_eq!((&drained["level"], &drained["target"]), (&"INFO".into(), &"onced::server::drain".into()));
}
