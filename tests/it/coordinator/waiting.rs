//! Waiting: who is told what, when, and at what cost to the store.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use onced::coordinator::{Begun, Error, Settings};
use onced::record::{Begin, OnLapse, Refusal, View};
use onced::store::StoreError;
use tokio::sync::Semaphore;

use super::{LOCK_TTL, World, key, replay, request, response, until};
use crate::support::faulty::{Fault, Gate};

const PATIENT: Duration = Duration::from_secs(600);

fn nth(id: u32) -> Begin {
    let mut begin = request(0);
    begin.request_id.0[..4].copy_from_slice(&id.to_be_bytes());
    begin
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_duplicates_at_once_make_one_claim_and_a_handful_of_trips() {
    let world = World::new();
    // The first trip is under way until all of them are there, however long a busy machine takes for that.
    let (first, arrived) = (Gate::new(), Arc::new(Semaphore::new(0)));
    world.one.store.plan_swaps([Fault::HoldAnswer(first.clone())]);
    let calls: Vec<_> = (0..1_000)
        .map(|id| {
            let (one, arrived) = (world.one.clone(), Arc::clone(&arrived));
            tokio::spawn(async move {
                let signal = async {
                    arrived.add_permits(1);
                    std::future::pending().await
                };
                let begun = tokio::select! {
                    // Polled once, it has entered the room.
                    biased;
                    begun = one.begin(nth(id), PATIENT) => begun,
                    never = signal => never,
                };
                match begun {
                    Ok(Begun::Claimed(mut claimed)) => {
                        claimed.delivered();
                        // The others wait while this one works.
                        tokio::time::sleep(Duration::from_millis(300)).await;
                        one.complete(claimed.record.fencing_token, b"once").await.expect("completed");
                        None
                    }
                    other => Some(replay(other)),
                }
            })
        })
        .collect();
    let _all = arrived.acquire_many(1_000).await.expect("it is never closed");
    first.open();
    let mut claims = 0;
    for call in calls {
        match call.await.expect("no panic") {
            None => claims += 1,
            Some(outcome) => assert_eq!(outcome, b"once"),
        }
    }
    assert_eq!(claims, 1);
    let trips = world.one.store.trips();
    println!("1,000 duplicates: {trips} trips to the store");
    assert!(trips <= 12, "{trips} trips");
}

const NEVER: Duration = Duration::from_secs(3_600);

/// Somebody waits at server two for so long, while the key is completed at server one.
async fn gets_the_outcome_from_elsewhere(poll: Duration, hints: bool, wait: Duration) {
    let world = World::with(Settings { poll, ..Settings::default() });
    if !hints {
        world.two.store.drop_hints();
    }
    let claimed = world.one.claim(request(1)).await;
    let two = world.two.clone();
    let waiting = tokio::spawn(async move { two.begin(request(2), wait).await });
    until("it waits", || async { world.two.store.trips() >= 2 }).await;
    world.one.complete(claimed.record.fencing_token, b"done").await.expect("completed");
    assert_eq!(replay(waiting.await.expect("no panic")), b"done");
}

#[tokio::test]
async fn a_waiter_at_another_server_gets_the_outcome_by_the_watch() {
    gets_the_outcome_from_elsewhere(NEVER, true, PATIENT).await;
}

#[tokio::test]
async fn with_every_hint_dropped_the_slow_poll_answers() {
    gets_the_outcome_from_elsewhere(Duration::from_millis(100), false, PATIENT).await;
}

#[tokio::test]
async fn with_every_hint_dropped_the_deadline_answers() {
    gets_the_outcome_from_elsewhere(NEVER, false, Duration::from_millis(400)).await;
}

#[tokio::test]
async fn running_out_of_patience_is_no_error() {
    let world = World::new();
    world.one.claim(request(1)).await;
    let begun = world.two.begin(request(2), Duration::from_millis(50)).await.expect("an answer");
    assert!(matches!(begun, Begun::Standing(View::InProgress { .. })), "{begun:?}");
    let looked = world.two.lookup(Duration::from_millis(50)).await.expect("an answer");
    assert!(matches!(looked, View::InProgress { .. }), "{looked:?}");
}

#[tokio::test]
async fn a_release_lets_one_waiter_per_server_forward_in_order_of_arrival() {
    let world = World::new();
    let claimed = world.one.claim(nth(0)).await;
    let mut waiting = Vec::new();
    for id in 1..=5 {
        let one = world.one.clone();
        waiting.push(tokio::spawn(async move { one.begin(nth(id), PATIENT).await }));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut token = claimed.record.fencing_token;
    for call in waiting {
        let swaps = world.one.store.swaps();
        world.one.release(token).await.expect("released");
        let Ok(Begun::Claimed(mut claimed)) = call.await.expect("no panic") else { panic!("not next") };
        claimed.delivered();
        token = claimed.record.fencing_token;
        assert_eq!(world.one.store.swaps() - swaps, 2, "a release and one claim: no herd");
    }
}

#[tokio::test]
async fn the_baton_passes_on_when_the_first_in_line_hangs_up() {
    let world = World::new();
    let claimed = world.one.claim(nth(0)).await;
    let gate = Gate::new();
    let (one, also_one) = (world.one.clone(), world.one.clone());
    let first = tokio::spawn(async move { one.begin(nth(1), PATIENT).await });
    tokio::time::sleep(Duration::from_millis(30)).await;
    let second = tokio::spawn(async move { also_one.begin(nth(2), PATIENT).await });
    tokio::time::sleep(Duration::from_millis(30)).await;
    // The release passes; the claim of the first in line hangs at the store.
    world.one.store.plan_swaps([Fault::None, Fault::HoldBefore(gate.clone())]);
    world.one.release(claimed.record.fencing_token).await.expect("released");
    gate.reached().await;
    first.abort();
    assert!(first.await.expect_err("aborted").is_cancelled());
    gate.open();
    let Ok(Begun::Claimed(mut claimed)) = second.await.expect("no panic") else { panic!("not a claim") };
    claimed.delivered();
    assert_eq!(claimed.record.attempt, 3, "the first in line's claim was given back");
}

#[tokio::test]
async fn a_lapse_wakes_a_waiter() {
    let world = World::new();
    world.one.claim(Begin { lock_ttl: Duration::from_secs(2), ..request(1) }).await;
    let two = world.two.clone();
    let waiting = tokio::spawn(async move { two.begin(request(2), PATIENT).await });
    until("it waits", || async { world.two.store.trips() >= 2 }).await;
    world.time.advance(Duration::from_secs(3));
    let Ok(Begun::Claimed(mut claimed)) = waiting.await.expect("no panic") else { panic!("not a claim") };
    claimed.delivered();
    assert_eq!(claimed.record.attempt, 2);
}

#[tokio::test]
async fn a_mismatch_is_told_at_once_even_to_a_patient_caller() {
    let world = World::new();
    let with = |id: u8, digest: &'static [u8]| Begin {
        fingerprint: onced::record::Fingerprint::new(digest.into()),
        ..request(id)
    };
    world.one.claim(with(1, b"a")).await;
    assert_eq!(super::refusal(world.two.begin(with(2, b"b"), PATIENT).await), Refusal::FingerprintMismatch);
}

#[tokio::test]
async fn a_lapsed_hold_claim_goes_in_doubt_and_a_late_complete_ends_the_wait() {
    let world = World::new();
    let hold = Begin { on_lapse: OnLapse::Hold, ..request(1) };
    let claimed = world.one.claim(hold).await;
    world.time.advance(LOCK_TTL * 2);
    let two = world.two.clone();
    let waiting = tokio::spawn(async move { two.begin(request(2), PATIENT).await });
    until("it is in doubt", || async {
        matches!(world.stored().await.record.state, onced::record::State::InDoubt { .. })
    })
    .await;
    world.one.complete(claimed.record.fencing_token, b"late").await.expect("heard");
    assert_eq!(replay(waiting.await.expect("no panic")), b"late");
}

#[tokio::test]
async fn a_store_that_fails_is_unavailable_and_a_seated_waiter_rides_it_out() {
    let settings = Settings { poll: Duration::from_millis(50), ..Settings::default() };
    let world = World::with(settings);
    let claimed = world.one.claim(request(1)).await;
    world.two.store.plan_loads(vec![Fault::FailBefore; 2]);
    let looked = world.two.lookup(PATIENT).await;
    assert!(matches!(looked, Err(Error::Store(StoreError::NotApplied(_)))), "{looked:?}");
    let failed = world.two.begin(request(2), Duration::ZERO).await.expect("conflict tells");
    assert!(matches!(failed, Begun::Standing(View::InProgress { .. })));
    let two = world.two.clone();
    let waiting = tokio::spawn(async move { two.begin(request(2), PATIENT).await });
    until("it waits", || async { world.two.store.trips() >= 5 }).await;
    world.two.store.plan_loads(vec![Fault::FailBefore; 3]);
    world.one.complete(claimed.record.fencing_token, b"done").await.expect("completed");
    assert_eq!(replay(waiting.await.expect("no panic")), b"done");
}

#[tokio::test]
async fn a_watch_shows_the_state_now_and_ends_with_the_outcome() {
    let world = World::new();
    let mut absent = world.two.coordinator.watch(&key()).expect("open");
    assert_eq!(super::refusal(absent.next().await.expect("an end")), Refusal::NotFound);
    assert!(absent.next().await.is_none());

    let claimed = world.one.claim(request(1)).await;
    let mut views = world.two.coordinator.watch(&key()).expect("open");
    assert!(matches!(views.next().await, Some(Ok(View::InProgress { .. }))));
    world.one.release(claimed.record.fencing_token).await.expect("released");
    assert!(matches!(views.next().await, Some(Ok(View::Available { .. }))));
    let claimed = world.one.claim(request(2)).await;
    assert!(matches!(views.next().await, Some(Ok(View::InProgress { .. }))));
    world.one.complete(claimed.record.fencing_token, b"done").await.expect("completed");
    let last = views.next().await.expect("the outcome").expect("no error");
    assert_eq!(response(&last), b"done");
    assert!(views.next().await.is_none());
}

/// A store that panics takes the room of the key with it: that must not look like an orderly end.
#[tokio::test]
async fn a_watch_whose_room_dies_ends_with_an_error_and_the_key_is_served_again() {
    let world = World::new();
    world.one.claim(request(1)).await;
    let mut views = world.two.coordinator.watch(&key()).expect("open");
    assert!(matches!(views.next().await, Some(Ok(View::InProgress { .. }))));
    world.two.store.plan_loads(vec![Fault::Panic; 2]);
    let asked = world.two.lookup(Duration::ZERO).await;
    assert_eq!(asked, Err(Error::Fault));
    assert_eq!(views.next().await, Some(Err(Error::Fault)));
    assert_eq!(views.next().await, None);
    world.two.store.forget_plans();
    assert!(matches!(world.two.lookup(Duration::ZERO).await, Ok(View::InProgress { .. })));
}

#[tokio::test]
async fn drain_answers_waiters_and_waits_for_writes_under_way() {
    let world = World::new();
    world.one.claim(request(1)).await;
    let one = world.one.clone();
    let waiting = tokio::spawn(async move { one.begin(request(2), PATIENT).await });
    until("it waits", || async { world.one.store.trips() >= 3 }).await;
    let gate = Gate::new();
    world.one.store.plan_swaps([Fault::HoldBefore(gate.clone())]);
    let (one, token) = (world.one.clone(), world.stored().await.record.fencing_token);
    let completing = tokio::spawn(async move { one.complete(token, b"done").await });
    gate.reached().await;
    let coordinator = world.one.coordinator.clone();
    let drained = tokio::spawn(async move { coordinator.drain().await });
    assert!(matches!(waiting.await.expect("no panic"), Err(Error::Draining)));
    assert!(matches!(world.one.begin(request(3), PATIENT).await, Err(Error::Draining)));
    assert!(!drained.is_finished(), "a write is under way");
    gate.open();
    drained.await.expect("drained");
    completing.await.expect("no panic").expect("completed");
}

#[tokio::test]
async fn an_answer_that_its_caller_has_not_taken_is_work() {
    let world = World::new();
    let at_work = Arc::new(());
    let mut patience = world.one.patience(Duration::ZERO);
    patience.busy = Some(Box::new(Arc::clone(&at_work)));
    let mut slow = std::pin::pin!(world.one.coordinator.begin(key(), nth(1), patience));
    assert!(slow.as_mut().now_or_never().is_none(), "it has entered the room, and waits");
    // Who came later is answered later.
    let second = world.one.begin(nth(2), Duration::ZERO).await;
    assert!(matches!(second, Ok(Begun::Standing(View::InProgress { .. }))), "{second:?}");
    assert_eq!(Arc::strong_count(&at_work), 2, "nobody may have the place of an answer that is kept");
    slow.await.expect("a claim");
    assert_eq!(Arc::strong_count(&at_work), 1);
}

/// Each read makes a copy of the outcome, which lives until it is taken.
#[tokio::test]
async fn an_outcome_is_not_read_anew_until_those_who_have_it_take_it() {
    let world = World::new();
    let claimed = world.one.claim(request(1)).await;
    world.one.complete(claimed.record.fencing_token, b"done").await.expect("completed");
    let before = world.one.store.trips();
    let mut lookups: Vec<_> = (0..50).map(|_| world.one.lookup(Duration::ZERO).boxed()).collect();
    for lookup in &mut lookups {
        assert!(lookup.now_or_never().is_none(), "it has entered the room, and waits");
        // Time enough for the room to read and to answer.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }
    for view in futures_util::future::join_all(lookups).await {
        assert!(matches!(view, Ok(View::Completed { .. })), "{view:?}");
    }
    let trips = world.one.store.trips() - before;
    // One for the first and one for all others; more on a machine that stood still meanwhile.
    assert!((2..25).contains(&trips), "{trips} trips for fifty lookups");
}
