//! The ten rules of the design, each by a test that fails without it. Rules 5 and 10 are the etcd store's
//! where leases are concerned; here they are held against writes that land late.

use std::time::Duration;

use onced::coordinator::{Begun, Error, Settings};
use onced::record::{Begin, FencingToken, Lock, OnLapse, Refusal, State, View};
use onced::store::StoreError;

use super::{LOCK_TTL, RETENTION, World, refusal, replay, request, response, until};
use crate::support::faulty::{Fault, Gate};

const PATIENT: Duration = Duration::from_secs(600);

/// Rule 1: resuming writes. Server one made a claim whose answer is stuck; its caller retried through server
/// two and works. When server one finds that nobody took its answer, the claim must be safe.
#[tokio::test]
async fn a_resumed_claim_survives_the_hang_up_of_the_call_that_made_it() {
    let world = World::new();
    let won = world.one.won(request(1)).await;
    let resumed = world.two.claim(request(1)).await;
    assert!(resumed.resumed);
    assert_eq!(resumed.record.fencing_token, won.record.fencing_token);
    assert_ne!(world.stored().await.revision.0, won.record.fencing_token.0, "the resume moved the revision");
    drop(won);
    until("server one tried to give it back", || async { world.one.store.swaps() == 2 }).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(matches!(world.stored().await.record.state, State::InProgress { .. }));
    world.two.complete(resumed.record.fencing_token, b"done").await.expect("still the holder");
}

/// Rule 2: nothing is recognised. What became of server one's write is unknown; it finds a claim with its
/// caller's request id, which server two made. It resumes that by a write, and gives nothing back.
#[tokio::test]
async fn after_an_unknown_outcome_a_claim_is_resumed_by_a_write_and_never_taken_for_ones_own() {
    let world = World::new();
    let (lost, before_load) = (Gate::new(), Gate::new());
    world.one.store.plan_swaps([Fault::LandLate(lost.clone())]);
    world.one.store.plan_loads([Fault::HoldBefore(before_load.clone())]);
    let one = world.one.clone();
    let begun = tokio::spawn(async move { one.begin(request(1), Duration::ZERO).await });
    before_load.reached().await;
    let theirs = world.two.claim(request(1)).await;
    let made = world.stored().await.revision;
    before_load.open();
    let Ok(Begun::Claimed(claimed)) = begun.await.expect("no panic") else { panic!("not a claim") };
    assert!(claimed.resumed, "it was server two's claim");
    assert!(world.stored().await.revision > made, "resumed by a write");
    // Nobody receives it; server two's caller works on.
    drop(claimed);
    lost.open();
    world.one.store.landed().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(matches!(world.stored().await.record.state, State::InProgress { .. }));
    world.two.complete(theirs.record.fencing_token, b"done").await.expect("still the holder");
}

/// Rule 2, where it cannot be settled: a store that is gone after a write of unknown outcome did not make it
/// one that was not applied.
#[tokio::test]
async fn a_write_of_unknown_outcome_stays_unknown_when_the_store_is_gone_after_it() {
    let world = World::new();
    world.one.store.plan_swaps([Fault::LoseAnswer]);
    world.one.store.plan_loads([Fault::FailBefore]);
    let begun = world.one.begin(request(1), Duration::ZERO).await;
    assert!(matches!(begun, Err(Error::Store(StoreError::OutcomeUnknown(_)))), "{begun:?}");
    let token = world.stored().await.record.fencing_token;
    world.one.store.plan_swaps([Fault::LoseAnswer]);
    world.one.store.plan_loads([Fault::None, Fault::FailBefore]);
    let completed = world.one.complete(token, b"done").await;
    assert!(matches!(completed, Err(Error::Store(StoreError::OutcomeUnknown(_)))), "{completed:?}");
    assert!(matches!(world.stored().await.record.state, State::Completed { .. }), "and it was applied");
}

/// Rule 2 again: a write that landed although its answer was lost ends in the same claim.
#[tokio::test]
async fn a_begin_whose_answer_was_lost_gets_its_claim_by_a_resume() {
    let world = World::new();
    world.one.store.plan_swaps([Fault::LoseAnswer]);
    let claimed = world.one.claim(request(1)).await;
    assert!(claimed.resumed);
    assert_eq!(claimed.record.attempt, 1);
    world.one.store.plan_swaps([Fault::LoseAnswer]);
    let done = world.one.complete(claimed.record.fencing_token, b"done").await.expect("settled");
    assert!(done.repeated, "found as it was to be");
    assert_eq!(replay(world.two.begin(request(2), Duration::ZERO).await), b"done");
}

/// Rule 3: a claim certainly won that nobody received is given back, at once and with its request id unspent.
#[tokio::test]
async fn a_claim_that_nobody_received_is_given_back() {
    let world = World::new();
    let won = world.one.won(request(1)).await;
    drop(won);
    until("the claim is given back", || async {
        matches!(world.stored().await.record.state, State::Released { request_spent: false, .. })
    })
    .await;
    let next = world.two.claim(request(1)).await;
    assert_eq!((next.record.attempt, next.resumed), (2, false));
}

/// Rule 3: a caller that hangs up during the swap leaves no half step, and no claim behind.
#[tokio::test]
async fn a_caller_that_hangs_up_during_its_swap_leaves_no_claim_behind() {
    let world = World::new();
    let gate = Gate::new();
    world.one.store.plan_swaps([Fault::HoldAnswer(gate.clone())]);
    let one = world.one.clone();
    let call = tokio::spawn(async move { one.begin(request(1), PATIENT).await });
    gate.reached().await;
    call.abort();
    assert!(call.await.expect_err("aborted").is_cancelled());
    gate.open();
    until("the claim is given back", || async {
        matches!(world.stored().await.record.state, State::Released { .. })
    })
    .await;
}

/// Rule 3: a resumed claim may be in its caller's hands, so it is never given back unasked.
#[tokio::test]
async fn a_resumed_claim_is_never_given_back() {
    let world = World::new();
    let claimed = world.one.claim(request(1)).await;
    let again = world.one.won(request(1)).await;
    assert!(again.resumed);
    let swaps = world.one.store.swaps();
    drop(again);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.one.store.swaps(), swaps, "nothing was written");
    world.one.complete(claimed.record.fencing_token, b"done").await.expect("still the holder");
}

/// Rule 3: once the answer may have left, the guard is disarmed.
#[tokio::test]
async fn a_delivered_claim_is_not_given_back() {
    let world = World::new();
    drop(world.one.claim(request(1)).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(matches!(world.stored().await.record.state, State::InProgress { .. }));
}

/// Rule 4: calls in one room share replays, never claims: each claim was armed by its own call's write.
#[tokio::test]
async fn two_calls_with_one_request_id_each_arm_the_claim_by_a_write_of_their_own() {
    let world = World::new();
    let calls = (0..8).map(|_| {
        let one = world.one.clone();
        tokio::spawn(async move { one.claim(request(1)).await })
    });
    let mut won = 0;
    let mut tokens = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        let claimed = call.await.expect("no panic");
        won += u32::from(!claimed.resumed);
        tokens.push(claimed.record.fencing_token);
    }
    assert_eq!(won, 1, "one made the claim, seven resumed it");
    assert!(tokens.iter().all(|token| *token == tokens[0]), "one claim");
    assert!(world.one.store.swaps() >= 8, "a write each");
}

/// Rule 5: a write that lands late neither shortens a lock nor brings anything back.
#[tokio::test]
async fn a_renew_that_lands_late_changes_nothing() {
    let world = World::new();
    let claimed = world.one.claim(request(1)).await;
    let token = claimed.record.fencing_token;
    let gate = Gate::new();
    world.one.store.plan_swaps([Fault::LandLate(gate.clone())]);
    // Settled by a load and a second write.
    world.one.renew(token).await.expect("renewed");
    world.time.advance(LOCK_TTL / 2);
    world.two.renew(token).await.expect("renewed");
    let armed = world.stored().await.revision;
    gate.open();
    world.one.store.landed().await;
    assert_eq!(world.stored().await.revision, armed, "the late write lost");
    world.time.advance(LOCK_TTL / 2 + Duration::from_secs(1));
    assert_eq!(world.stored().await.lock, Lock::Held, "the lock lives from the last renewal");
}

/// Rule 6: a held record never expires before its lock, and what waits for an operator never expires.
#[tokio::test]
async fn held_records_do_not_expire() {
    let world = World::new();
    let hour = Duration::from_secs(3_600);
    let long = Begin { lock_ttl: hour, ..request(1) };
    let claimed = world.one.claim(long).await;
    world.time.advance(hour + RETENTION);
    assert_eq!(world.stored().await.lock, Lock::Lapsed);
    world.one.complete(claimed.record.fencing_token, b"late").await.expect("nobody took over");

    let world = World::new();
    let hold = Begin { on_lapse: OnLapse::Hold, ..request(1) };
    world.one.claim(hold).await;
    world.time.advance(hour * 24 * 365);
    let view = world.two.lookup(Duration::ZERO).await.expect("still there");
    assert!(matches!(view, View::InDoubt { .. }), "{view:?}");
    let begun = world.two.begin(request(2), Duration::ZERO).await.expect("an answer");
    assert!(matches!(begun, Begun::Standing(View::InDoubt { .. })), "{begun:?}");
    world.time.advance(hour * 24 * 365);
    assert!(matches!(world.stored().await.record.state, State::InDoubt { .. }));
}

/// Rule 7: a request id is spent once its caller has sent a Release.
#[tokio::test]
async fn a_request_id_is_spent_by_its_callers_release() {
    let world = World::new();
    let claimed = world.one.claim(request(1)).await;
    world.one.release(claimed.record.fencing_token).await.expect("released");
    assert_eq!(refusal(world.two.begin(request(1), Duration::ZERO).await), Refusal::RequestSpent);
    let next = world.two.claim(request(2)).await;
    assert_eq!(next.record.attempt, 2);
}

/// Rule 8: a Begin that joins a load which was sent before an acknowledged Complete is not told in_progress.
#[tokio::test]
async fn a_call_that_arrives_during_a_load_shares_the_next_one() {
    let world = World::new();
    let claimed = world.two.claim(request(1)).await;
    let stale = Gate::new();
    world.one.store.plan_loads([Fault::HoldAnswer(stale.clone())]);
    let one = world.one.clone();
    let early = tokio::spawn(async move { one.lookup(Duration::ZERO).await });
    stale.reached().await;
    world.two.complete(claimed.record.fencing_token, b"done").await.expect("completed");
    let (one, also_one) = (world.one.clone(), world.one.clone());
    let begin = tokio::spawn(async move { one.begin(request(2), Duration::ZERO).await });
    let lookup = tokio::spawn(async move { also_one.lookup(Duration::ZERO).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    stale.open();
    assert_eq!(replay(begin.await.expect("no panic")), b"done");
    assert_eq!(response(&lookup.await.expect("no panic").expect("completed")), b"done");
    // The early one was told what was so while it waited.
    early.await.expect("no panic").expect("an answer");
}

/// Rule 9: the claim says how long the server had the call, so that its holder knows when its lock ends.
#[tokio::test]
async fn a_claim_says_how_long_it_waited_to_be_armed() {
    let world = World::new();
    let first = world.one.claim(request(1)).await;
    let one = world.one.clone();
    let waiting = tokio::spawn(async move { one.begin(request(2), PATIENT).await });
    until("it waits", || async { world.one.store.trips() >= 3 }).await;
    world.time.advance(LOCK_TTL / 2);
    world.one.release(first.record.fencing_token).await.expect("released");
    let Ok(Begun::Claimed(mut claimed)) = waiting.await.expect("no panic") else { panic!("not a claim") };
    claimed.delivered();
    assert_eq!(claimed.waited, LOCK_TTL / 2);
}

/// Rule 9: it counts to the sending of the write that armed it. Counted to its answer, a slow answer would make
/// the holder's lock last longer than the store's.
#[tokio::test]
async fn the_time_that_the_arming_write_took_is_not_waiting() {
    let world = World::new();
    let slow = Gate::new();
    world.one.store.plan_swaps([Fault::HoldAnswer(slow.clone())]);
    let one = world.one.clone();
    let begun = tokio::spawn(async move { one.claim(request(1)).await });
    slow.reached().await;
    world.time.advance(LOCK_TTL / 2);
    slow.open();
    assert_eq!(begun.await.expect("no panic").waited, Duration::ZERO);
}

/// Rule 10: a write that is stuck for too long counts as unknown and is decided anew, with fresh times; what is
/// announced is what landed.
#[tokio::test]
async fn a_stuck_write_is_decided_anew_and_what_landed_is_announced() {
    let settings = Settings { store_timeout: Duration::from_millis(200), ..Settings::default() };
    let world = World::with(settings);
    let claimed = world.one.claim(request(1)).await;
    let token = claimed.record.fencing_token;
    let stuck = Gate::new();
    world.one.store.plan_swaps([Fault::HoldBefore(stuck.clone())]);
    let one = world.one.clone();
    let completing = tokio::spawn(async move { one.complete(token, b"done").await });
    stuck.reached().await;
    let elsewhere = world.two.complete(token, b"done").await.expect("completed");
    let applied = completing.await.expect("no panic").expect("settled");
    assert!(applied.repeated);
    assert_eq!(applied.view, elsewhere.view, "the times of the write that landed");
}

/// A stale holder never overwrites, and a late one is heard as long as nobody took over.
#[tokio::test]
async fn a_stale_holder_is_refused_and_a_late_one_heard() {
    let world = World::new();
    let first = world.one.claim(request(1)).await;
    world.time.advance(LOCK_TTL * 2);
    let second = world.two.claim(request(2)).await;
    assert!(second.record.fencing_token > first.record.fencing_token);
    assert_eq!(refusal(world.one.complete(first.record.fencing_token, b"stale").await), Refusal::ClaimLost);
    world.time.advance(LOCK_TTL * 2);
    world.two.complete(second.record.fencing_token, b"late").await.expect("nobody took over");
    assert_eq!(replay(world.one.begin(request(3), Duration::ZERO).await), b"late");
    let conflict = world.one.complete(second.record.fencing_token, b"other").await;
    assert_eq!(refusal(conflict), Refusal::OutcomeConflict);
    assert_eq!(refusal(world.one.renew(FencingToken(1 << 40)).await), Refusal::ClaimLost);
}
