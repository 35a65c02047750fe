//! Runs with values; what becomes of them when no server can be asked, when the caller gives up, and when the client is
//! closed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onced_client::v1::{Checkpoint, ListRequest, LookupRequest, RecordState};
use onced_client::{
    Claim, Client, Code, Error, ErrorReason, Failure, OnFailure, OnceError, Outcome, Record, codec,
};
use tokio::sync::{Notify, oneshot};

use super::{Server, TTL, claim, dead_address, lookup};
use crate::support::proxy::Proxy;
use crate::support::server::HANGS;

type Receipt = (u64, Vec<String>);

fn receipt(number: u64) -> Receipt {
    (number, vec!["zwölf".to_owned()])
}

/// What is known of the only key there is; nothing if there is none.
async fn state(client: &Client) -> Option<(RecordState, u64, String)> {
    let request = ListRequest { namespace: "default".to_owned(), ..ListRequest::default() };
    let records = client.list(request).await.unwrap().records;
    records.into_iter().next().map(|record| (record.state(), record.attempt, record.reason))
}

/// The example of clients/rust/README.md, word for word.
async fn example(servers: &str) -> Result<(), Box<dyn std::error::Error>> {
    async fn charge(_order: &str, _token: u64) -> Result<String, std::io::Error> {
        Ok("receipt 1".to_owned())
    }
    // The example begins here.
    let client = Client::connect(servers)?;
    let work = |claim: Claim| async move { Ok(charge("order-17", claim.fencing_token()).await?) };
    let charged = client.once("order-17").namespace("shop").run_as(codec::Json, work).await?;
    println!("{}, run here: {}", charged.outcome, charged.ran_here);
    // And ends.
    Ok(())
}

#[tokio::test]
async fn the_example_of_the_readme_is_this_one_and_works() {
    let readme = include_str!("../../../clients/rust/README.md");
    let shown = readme.split("```rust,no_run\n").nth(1).unwrap().split("```").next().unwrap();
    let shown: Vec<_> = shown.lines().filter(|line| !line.starts_with("# ")).collect();
    let (_, here) = include_str!("runs.rs").split_once("// The example begins here.\n").unwrap();
    let here: Vec<_> = here.split("    // And ends.").next().unwrap().lines().map(str::trim).collect();
    assert_eq!(shown, here);

    let server = Server::start().await;
    for _ in 0..2 {
        example(&server.address).await.unwrap();
    }
    let lookup = LookupRequest { namespace: "shop".to_owned(), key: "order-17".to_owned(), wait: None };
    let record = server.client().lookup(lookup).await.unwrap();
    assert!(matches!(record, Record::Completed(completed) if completed.attempt == 1));
}

#[tokio::test]
async fn a_value_comes_back_as_it_was() {
    let server = Server::start().await;
    let client = server.client();
    let here = client.once("k").run_as(codec::Json, |_| async { Ok(receipt(1)) }).await.unwrap();
    let there = client.once("k").run_as(codec::Json, |_| async { Ok(receipt(2)) }).await.unwrap();
    assert_eq!((here.ran_here, here.protected, &here.outcome), (true, true, &receipt(1)));
    assert_eq!((there.ran_here, there.protected, &there.outcome), (false, true, &receipt(1)));
    assert_eq!((there.attempt, there.fencing_token), (1, here.fencing_token));
    let raw = client.once("k").run(|_| async { Ok("never") }).await.unwrap();
    assert_eq!(raw.outcome.content_type, "application/json");

    let message = || Checkpoint { sequence: 1, data: Bytes::from_static(b"x") };
    for _ in 0..2 {
        let done = client.once("m").run_as(codec::Protobuf, |_| async { Ok(message()) }).await.unwrap();
        assert_eq!(done.outcome, message());
    }
}

#[tokio::test]
async fn a_final_error_is_raised_in_all_callers() {
    let server = Server::start().await;
    let client = server.client();
    let detail = prost_types::Any { type_url: "example.com/Why".to_owned(), value: vec![1, 2] };
    let error = tonic_types::Status { code: 5, message: "no such account".to_owned(), details: vec![detail] };
    for ran_here in [true, false] {
        let error = error.clone();
        let work = |_| async { Err::<Receipt, _>(Failure::permanent_with(error)) };
        let failed = client.once("k").run_as(codec::Json, work).await.unwrap_err();
        assert_eq!(failed.to_string(), "it failed for good: no such account (NotFound)");
        let OnceError::Final(completion) = failed else { panic!("{failed}") };
        assert_eq!(completion.ran_here, ran_here);
        let stored = completion.outcome.final_error().unwrap();
        assert_eq!((stored.code, &stored.details[0].value), (Code::NotFound as i32, &vec![1, 2]));
    }
}

#[tokio::test]
async fn an_outcome_of_another_type_is_unreadable_and_nothing_runs() {
    let server = Server::start().await;
    let client = server.client();
    client.once("k").run_as(codec::Text, |_| async { Ok("text".to_owned()) }).await.unwrap();
    let never = |_: Claim| async { panic!("it runs") };
    let error = client.once("k").run_as::<_, _, _, Receipt>(codec::Json, never).await.unwrap_err();
    let OnceError::Unreadable { error, completion } = error else { panic!("{error}") };
    assert_eq!(error.to_string(), "it is text/plain; charset=utf-8, and is to be application/json");
    assert_eq!(completion.outcome.response_bytes().unwrap(), "text");
}

/// Keys that are no strings cannot be written as JSON.
#[tokio::test]
async fn a_value_that_cannot_be_written_is_in_doubt_whatever_the_rule() {
    let server = Server::start().await;
    let client = server.client();
    let odd = std::collections::BTreeMap::from([(vec![1], 2)]);
    let error = client.once("k").run_as(codec::Json, |_| async { Ok(odd) }).await.unwrap_err();
    let OnceError::Failed { rule, released, .. } = error else { panic!("{error}") };
    released.unwrap();
    assert_eq!(rule, OnFailure::InDoubt);
    assert_eq!(state(&client).await.unwrap().0, RecordState::InDoubt);
}

#[tokio::test]
async fn work_runs_without_a_claim_only_if_told_so_and_counted() {
    let client = Client::builder(dead_address().await).timeout(Duration::from_millis(300)).build().unwrap();
    let error = client.once("k").run(|_| async { Ok("never") }).await.unwrap_err();
    assert!(matches!(error, OnceError::NotBegun(error) if error.is_unavailable()));
    assert_eq!(client.unprotected_runs(), 0);

    let open = || client.once("k").fail_open(Duration::from_millis(100));
    let work = |claim: Claim| async move {
        assert!(!claim.protected());
        assert_eq!((claim.fencing_token(), claim.attempt(), claim.is_lost()), (0, 0, None));
        claim.save_checkpoint("nowhere").await.unwrap();
        Ok(receipt(1))
    };
    let done = open().run_as(codec::Json, work).await.unwrap();
    assert_eq!((done.protected, done.ran_here, done.outcome), (false, true, receipt(1)));
    let failed = open().run(|_| async { Err::<String, _>(Failure::in_doubt("broken")) }).await.unwrap_err();
    assert!(matches!(failed, OnceError::Failed { rule: OnFailure::InDoubt, .. }), "{failed}");
    let last = open().run(|_| async { Err::<String, _>(Failure::permanent(Code::NotFound, "gone")) }).await;
    assert_eq!(last.unwrap().outcome, Outcome::error(Code::NotFound, "gone"));
    assert_eq!(client.unprotected_runs(), 3);
}

/// Takes connections, and is silent.
async fn hung_address() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut taken = Vec::new();
        while let Ok(stream) = listener.accept().await {
            taken.push(stream);
        }
    });
    address
}

#[tokio::test]
async fn servers_that_hang_are_no_outage_while_another_one_answers() {
    let server = Server::start().await;
    let servers = [hung_address().await, hung_address().await, server.address.clone()].join(",");
    // Each begins at another one.
    let runs = (0..12).map(|number| {
        let client = Client::connect(&servers).unwrap();
        tokio::spawn(async move {
            let run = client.once(number.to_string()).fail_open(Duration::from_secs(9));
            run.run(|claim| async move { Ok(claim.protected().to_string()) }).await.unwrap().protected
        })
    });
    for run in runs.collect::<Vec<_>>() {
        assert!(run.await.unwrap());
    }
}

/// One that holds a call as long as it was asked to must not be taken for one that is silent.
#[tokio::test]
async fn a_known_holder_is_no_outage() {
    let server = Server::start().await;
    let client = server.client();
    claim(&client, "k").await;
    let run = client.once("k").fail_open(Duration::from_millis(50)).wait(Duration::from_millis(1_500));
    let error = run.run(|_| async { Ok("never") }).await.unwrap_err();
    assert!(matches!(error, OnceError::InProgress(_)), "{error}");
    assert_eq!(client.unprotected_runs(), 0);
}

#[tokio::test]
async fn a_refusal_and_a_wrong_set_up_are_no_outage() {
    let server = Server::start().await;
    let client = server.client();
    let open = |client: &Client, key: &str| client.once(key).fail_open(Duration::from_millis(50));
    let refused = open(&client, &"x".repeat(600)).run(|_| async { Ok("never") }).await.unwrap_err();
    let OnceError::NotBegun(error) = refused else { panic!("{refused}") };
    assert_eq!(error.reason(), Some(ErrorReason::KeyTooLong));

    // Beside an address where nobody listens, one that is called by TLS and does not speak it.
    for servers in [
        format!("https://{}", server.address),
        format!("{},https://{}", dead_address().await, server.address),
    ] {
        let client = Client::builder(servers).timeout(Duration::from_secs(2)).build().unwrap();
        let error = open(&client, "k").run(|_| async { Ok("never") }).await.unwrap_err();
        assert!(matches!(&error, OnceError::NotBegun(_)), "{error}");
        assert!(error.to_string().contains("does not speak TLS"), "{error}");
        assert_eq!(client.unprotected_runs(), 0);
    }
    let client =
        Client::builder("no-such-host.invalid:1").timeout(Duration::from_millis(300)).build().unwrap();
    let error = open(&client, "k").run(|_| async { Ok("never") }).await.unwrap_err();
    assert!(matches!(&error, OnceError::NotBegun(_)), "{error}");
}

/// Waits until a key that was begun through a mute proxy is claimed by nobody any more.
async fn until_free(direct: &Client) -> (RecordState, u64, String) {
    let found = async {
        loop {
            match state(direct).await {
                Some(state) if state.0 == RecordState::Available => return state,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(HANGS, found).await.expect("the claim is given back")
}

async fn until_claimed(direct: &Client) {
    let found = async {
        while state(direct).await.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(HANGS, found).await.expect("the key is claimed");
}

#[tokio::test]
async fn a_claim_that_nobody_heard_of_is_given_back() {
    let server = Server::start().await;
    let direct = server.client();
    let proxy = Proxy::start(server.address.clone()).await;
    let client = Client::connect(proxy.endpoint()).unwrap();
    proxy.mute();
    let run = client.once("k").lock_ttl(Duration::from_secs(3_600)).run(|_| async { Ok("never") });
    let run = tokio::spawn(run);
    until_claimed(&direct).await;
    run.abort();
    assert!(run.await.unwrap_err().is_cancelled());
    proxy.close();
    proxy.open();
    // Its own request id finds the claim again: it is the first one, and there is no second.
    let (_, attempt, reason) = until_free(&direct).await;
    assert_eq!((attempt, reason.as_str()), (1, "the caller gave up before it heard of its claim"));
}

#[tokio::test]
async fn a_claim_is_given_back_that_came_after_the_patience_was_over() {
    let server = Server::start().await;
    let direct = server.client();
    let proxy = Proxy::start(server.address.clone()).await;
    let client = Client::builder(proxy.endpoint()).timeout(Duration::from_millis(500)).build().unwrap();
    proxy.mute();
    let wait = Duration::ZERO;
    let run = client.once("k").lock_ttl(Duration::from_secs(3_600)).wait(wait).run(|_| async { Ok("never") });
    let run = tokio::spawn(run);
    until_claimed(&direct).await;
    let error = run.await.unwrap().unwrap_err();
    assert!(matches!(&error, OnceError::NotBegun(error) if error.is_unavailable()), "{error}");
    proxy.close();
    proxy.open();
    assert_eq!(until_free(&direct).await.1, 1);
}

#[tokio::test]
async fn closing_waits_for_work_and_its_outcome_and_begins_nothing() {
    let server = Server::start().await;
    let client = server.client();
    claim(&client, "held").await;
    let (started, running) = oneshot::channel();
    let go_on = Arc::new(Notify::new());
    let told = Arc::clone(&go_on);
    let work = |_| async move {
        started.send(()).unwrap();
        told.notified().await;
        Ok("done")
    };
    let run = tokio::spawn(client.once("k").lock_ttl(TTL).run(work));
    running.await.unwrap();
    let waiting = tokio::spawn(client.once("held").run(|_| async { Ok("never") }));

    assert!(!client.close(Duration::from_millis(50)).await, "the work is still running");
    let ended = waiting.await.unwrap().unwrap_err();
    assert!(matches!(ended, OnceError::NotBegun(Error::Closed)), "{ended}");
    let refused = client.once("other").run(|_| async { Ok("never") }).await.unwrap_err();
    assert!(matches!(refused, OnceError::NotBegun(Error::Closed)), "{refused}");

    go_on.notify_one();
    assert!(client.close(Duration::from_secs(60)).await);
    // Whatever became of the run's own future, its outcome is there.
    assert!(matches!(lookup(&client, "k").await.unwrap(), Record::Completed(_)));
    assert!(run.await.unwrap().unwrap().ran_here);
}

#[tokio::test]
async fn closing_waits_for_an_outcome_whose_caller_has_gone() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.address.clone()).await;
    let client = Client::connect(proxy.endpoint()).unwrap();
    let (done, ran) = oneshot::channel();
    let run = client.once("k").run(|_| async {
        proxy.slow(300);
        done.send(()).unwrap();
        Ok("done")
    });
    let mut run = Box::pin(run);
    tokio::select! {
        biased;
        _ = &mut run => panic!("its answer is slow"),
        _ = async { ran.await.unwrap(); tokio::time::sleep(Duration::from_millis(50)).await } => {}
    }
    drop(run);
    assert!(client.close(Duration::from_secs(60)).await);
    assert!(matches!(lookup(&server.client(), "k").await.unwrap(), Record::Completed(_)));
}
