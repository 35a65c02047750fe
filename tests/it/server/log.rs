//! What a server logs.

use onced_client::v1::LookupRequest;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;

use super::*;
use crate::support::log::Log;
use crate::support::onced::ServerProcess;

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
