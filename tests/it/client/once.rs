//! Run this function once for this key.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use onced_client::v1::{DeleteRequest, ListRequest, RecordState, RecordSummary};
use onced_client::{
    Client, Code, Error, ErrorReason, Failure, Lost, OnFailure, Once, OnceError, Outcome, Record,
};

use super::{Server, TTL, claim, lookup};
use crate::support::proxy::Proxy;
use crate::support::server::HANGS;

fn once(client: &Client, key: &str) -> Once {
    client.once(key).lock_ttl(TTL).wait(Duration::from_secs(60))
}

/// The only record there is.
async fn only_record(client: &Client) -> RecordSummary {
    let request = ListRequest { namespace: "default".to_owned(), ..ListRequest::default() };
    client.list(request).await.unwrap().records.remove(0)
}

#[tokio::test]
async fn of_many_that_run_it_at_once_one_does_and_all_get_its_outcome() {
    let server = Server::start().await;
    let runs = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let (client, runs) = (server.client(), Arc::clone(&runs));
            tokio::spawn(async move {
                let work = |_| async {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    Ok(format!("run {}", runs.fetch_add(1, Ordering::SeqCst)))
                };
                once(&client, "k").run(work).await.unwrap()
            })
        })
        .collect();
    let mut here = 0;
    for task in tasks {
        let done = task.await.unwrap();
        assert_eq!(done.outcome, Outcome::response("run 0"));
        assert_eq!(done.attempt, 1);
        here += usize::from(done.ran_here);
    }
    assert_eq!((here, runs.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test]
async fn work_longer_than_its_lock_is_renewed() {
    let server = Server::start().await;
    let client = server.client();
    let work = |claim: onced_client::Claim| async move {
        tokio::time::sleep(TTL * 2).await;
        Ok(format!("{:?}", claim.is_lost()))
    };
    let done = once(&client, "k").run(work).await.unwrap();
    assert_eq!((done.attempt, done.outcome), (1, Outcome::response("None")));
}

#[tokio::test]
async fn failed_work_gives_the_key_back_by_the_rule() {
    let server = Server::start().await;
    let client = server.client();
    let broken = || std::io::Error::other("broken");
    let failed = |error: OnceError| match error {
        OnceError::Failed { rule, released, error } => {
            released.unwrap();
            assert_eq!(error.to_string(), "broken");
            rule
        }
        other => panic!("{other:?}"),
    };
    // By itself, then by its own word against the rule.
    let error =
        once(&client, "k").run(|_| async move { Err::<String, _>(broken().into()) }).await.unwrap_err();
    assert_eq!(failed(error), OnFailure::Retry);
    let record = only_record(&client).await;
    assert_eq!((record.state(), record.reason.as_str()), (RecordState::Available, "broken"));
    let held = once(&client, "k").run(|_| async move { Err::<String, _>(Failure::in_doubt(broken())) });
    assert_eq!(failed(held.await.unwrap_err()), OnFailure::InDoubt);
    let doubt = once(&client, "k").run(|_| async { Ok("never") }).await.unwrap_err();
    assert!(matches!(doubt, OnceError::InDoubt(doubt) if doubt.reason == "broken"));

    let rule = once(&client, "k2").on_failure(OnFailure::InDoubt);
    let error = rule.run(|_| async move { Err::<String, _>(broken().into()) }).await.unwrap_err();
    assert_eq!(failed(error), OnFailure::InDoubt);
    let free = once(&client, "k3").on_failure(OnFailure::InDoubt);
    let error = free.run(|_| async move { Err::<String, _>(Failure::retry(broken())) }).await.unwrap_err();
    assert_eq!(failed(error), OnFailure::Retry);
}

#[tokio::test]
async fn a_permanent_error_is_the_outcome_of_all() {
    let server = Server::start().await;
    let client = server.client();
    let work = |_| async { Err::<String, _>(Failure::permanent(Code::NotFound, "no such account")) };
    let here = once(&client, "k").run(work).await.unwrap();
    let there = once(&client, "k").run(|_| async { Ok("never") }).await.unwrap();
    assert!(here.ran_here && !there.ran_here);
    assert_eq!(here.outcome, Outcome::error(Code::NotFound, "no such account"));
    assert_eq!(here.outcome, there.outcome);
}

#[tokio::test]
async fn a_panic_gives_the_key_back_and_goes_on() {
    let server = Server::start().await;
    let client = server.client();
    let work = |_| async {
        tokio::task::yield_now().await;
        panic!("oh no");
        #[allow(unreachable_code)]
        Ok("never")
    };
    let panicked = AssertUnwindSafe(once(&client, "k").run(work)).catch_unwind().await;
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"oh no"));
    // Not spawned: it is back by the time the panic goes on.
    assert_eq!(only_record(&client).await.reason, "the work panicked");
}

/// A value that is no outcome.
struct Odd;

impl From<Odd> for Outcome {
    fn from(_: Odd) -> Self {
        panic!("it is odd")
    }
}

#[tokio::test]
async fn a_panic_after_the_work_leaves_the_key_in_doubt_whatever_the_rule() {
    let server = Server::start().await;
    let client = server.client();
    let run = once(&client, "k").on_failure(OnFailure::Retry).run(|_| async { Ok(Odd) });
    let panicked = AssertUnwindSafe(run).catch_unwind().await;
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"it is odd"));
    let record = only_record(&client).await;
    assert_eq!(record.state(), RecordState::InDoubt);
    assert_eq!(record.reason, "the work is done, and making its outcome panicked");
}

#[tokio::test]
async fn dropped_work_gives_the_key_back() {
    let server = Server::start().await;
    let client = server.client();
    let (started, running) = tokio::sync::oneshot::channel();
    let work = |_| async {
        started.send(()).unwrap();
        std::future::pending::<Result<String, Failure>>().await
    };
    let run = once(&client, "k").on_failure(OnFailure::InDoubt).run(work);
    tokio::select! {
        _ = run => panic!("it cannot end"),
        _ = running => {}
    }
    while only_record(&client).await.state() == RecordState::InProgress {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let record = only_record(&client).await;
    assert_eq!((record.state(), record.reason.as_str()), (RecordState::InDoubt, "the work was dropped"));
}

#[tokio::test]
async fn a_lost_claim_cancels_the_work_and_its_outcome_does_not_count() {
    let server = Server::start().await;
    let client = server.client();
    let operator = server.client();
    let work = |claim: onced_client::Claim| async move {
        let delete = DeleteRequest {
            namespace: "default".to_owned(),
            key: "k".to_owned(),
            fencing_token: claim.fencing_token(),
            force: true,
        };
        operator.delete(delete).await.unwrap();
        assert_eq!(claim.lost().await, Some(Lost::TakenOver));
        assert_eq!(claim.lock_left(), Duration::ZERO);
        Ok("too late")
    };
    let error = once(&client, "k").run(work).await.unwrap_err();
    assert!(matches!(error, OnceError::ClaimLost { lost: Lost::TakenOver, error: None }), "{error:?}");
    assert_eq!(lookup(&client, "k").await.unwrap_err().reason(), Some(ErrorReason::RecordNotFound));
}

#[tokio::test]
async fn a_claim_that_is_given_back_cancels_what_still_runs_of_the_work() {
    let server = Server::start().await;
    let client = server.client();
    for dropped in [true, false] {
        let (started, running) = tokio::sync::oneshot::channel();
        let work = move |claim: onced_client::Claim| async move {
            // A part of the work on a task of its own, which ends neither with the work nor by a drop.
            let part = tokio::spawn(async move { claim.lost().await });
            started.send(part).unwrap();
            if dropped {
                std::future::pending::<()>().await;
            }
            Err::<String, _>(Failure::retry("the other part failed"))
        };
        let run = tokio::spawn(once(&client, "k").run(work));
        let part = running.await.unwrap();
        if dropped {
            run.abort();
        }
        assert_eq!(part.await.unwrap(), Some(Lost::GivenBack), "dropped: {dropped}");
        assert_eq!(run.await.is_err(), dropped);
    }
}

#[tokio::test]
async fn what_still_runs_of_the_work_is_told_that_its_run_has_ended_well() {
    let server = Server::start().await;
    let nobody = Client::connect(super::dead_address().await).unwrap();
    let runs = [once(&server.client(), "k"), once(&nobody, "k").fail_open(Duration::from_millis(50))];
    for run in runs {
        let (started, running) = tokio::sync::oneshot::channel();
        let work = move |claim: onced_client::Claim| async move {
            let part = async move { (claim.lost().await, claim.is_lost(), claim.lock_left()) };
            started.send(tokio::spawn(part)).unwrap();
            Ok("done")
        };
        run.run(work).await.unwrap();
        let told = tokio::time::timeout(HANGS, running.await.unwrap()).await.expect("it waits for ever");
        assert_eq!(told.unwrap(), (None, None, Duration::ZERO));
    }
}

#[tokio::test]
async fn a_lock_that_cannot_be_renewed_cancels_the_work_and_a_late_outcome_still_counts() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.address.clone()).await;
    let client = Client::connect(proxy.endpoint()).unwrap();
    let work = |claim: onced_client::Claim| async move {
        proxy.close();
        assert_eq!(claim.lost().await, Some(Lost::LockEnded));
        proxy.open();
        Ok("late")
    };
    let done = once(&client, "k").run(work).await.unwrap();
    assert!(done.ran_here);
    assert_eq!(done.outcome, Outcome::response("late"));
}

#[tokio::test]
async fn an_outcome_that_may_be_stored_is_never_released() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.address.clone()).await;
    let client = Client::builder(proxy.endpoint()).timeout(Duration::from_millis(200)).build().unwrap();
    let work = |_| async {
        proxy.close();
        Ok("done")
    };
    let error = once(&client, "k").run(work).await.unwrap_err();
    assert!(matches!(&error, OnceError::NotStored { cause, .. } if cause.is_unavailable()), "{error:?}");
    proxy.open();
    let direct = server.client();
    while !matches!(lookup(&direct, "k").await, Ok(Record::Available(_))) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // It lapsed: a release would have left a reason.
    assert_eq!(only_record(&direct).await.reason, "");
}

#[tokio::test]
async fn too_large_an_outcome_is_an_error_before_it_is_sent_and_the_work_is_not_run_again() {
    let server = Server::start().await;
    let client = server.client();
    let work = |claim: onced_client::Claim| async move {
        Ok(Bytes::from(vec![0; usize::try_from(claim.max_outcome_bytes()).unwrap()]))
    };
    let OnceError::Failed { error, .. } = once(&client, "k").run(work).await.unwrap_err() else {
        panic!("it was stored")
    };
    let Some(Error::OutcomeTooLarge { bytes, max_bytes }) = error.downcast_ref() else { panic!("{error}") };
    assert!(bytes > max_bytes);
    assert!(matches!(lookup(&client, "k").await, Ok(Record::InDoubt(_))));
}

#[tokio::test]
async fn a_checkpoint_reaches_the_next_claim() {
    let server = Server::start().await;
    let client = server.client();
    let first = |claim: onced_client::Claim| async move {
        assert_eq!(claim.checkpoint(), None);
        claim.save_checkpoint("one").await.unwrap();
        claim.save_checkpoint("two").await.unwrap();
        Err::<String, _>(Failure::retry("half way"))
    };
    once(&client, "k").run(first).await.unwrap_err();
    let second = |claim: onced_client::Claim| async move {
        let found = claim.checkpoint().cloned().unwrap();
        claim.save_checkpoint("three").await.unwrap();
        Err::<String, _>(Failure::retry(String::from_utf8_lossy(&found).into_owned()))
    };
    let error = once(&client, "k").run(second).await.unwrap_err();
    assert_eq!(error.to_string(), "the work failed: two");
    let third = |claim: onced_client::Claim| async move { Ok(claim.checkpoint().cloned().unwrap()) };
    let done = once(&client, "k").run(third).await.unwrap();
    assert_eq!((done.attempt, done.outcome), (3, Outcome::response("three")));
}

#[tokio::test]
async fn patience_that_is_over_tells_who_is_at_it() {
    let server = Server::start().await;
    let client = server.client();
    claim(&client, "k").await;
    let error = client.once("k").wait(Duration::from_millis(100)).run(|_| async { Ok("never") }).await;
    assert!(matches!(error, Err(OnceError::InProgress(holder)) if holder.owner == "somebody"));
}

#[tokio::test]
async fn another_request_under_the_same_key_is_refused() {
    let server = Server::start().await;
    let client = server.client();
    once(&client, "k").fingerprint("one").run(|_| async { Ok("done") }).await.unwrap();
    let error = once(&client, "k").fingerprint("two").run(|_| async { Ok("done") }).await.unwrap_err();
    let OnceError::NotBegun(error) = error else { panic!("{error}") };
    assert_eq!(error.reason(), Some(ErrorReason::FingerprintMismatch));
}

#[tokio::test]
async fn a_waiter_takes_over_from_a_holder_that_died() {
    let server = Server::start().await;
    let client = server.client();
    let dead = claim(&client, "k").await;
    let done = once(&client, "k").run(|claim| async move { Ok(claim.attempt().to_string()) }).await.unwrap();
    assert_eq!(done.outcome, Outcome::response("2"));
    assert!(done.fencing_token > dead.fencing_token);
}
