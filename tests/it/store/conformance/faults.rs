//! What happens to writes when callers leave, servers restart and storage fails.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::future::poll_fn;
use onced::record::limits::LOCK_TTL_MIN;
use onced::record::{Lock, RecordKey};
use onced::store::{Expected, Loaded, RecordStore, StoreError, Swapped};

use crate::store::fixture::{
    Fixture, PATIENCE, as_written, claim, completed, create, held, in_doubt, key, lapse, load, write,
};

/// Drops a swap after it was polled 0, 1, 2, … times, until one gets done.
pub async fn dropped_swap_happens_whole_or_not_at_all(fixture: &impl Fixture) {
    let store = fixture.store().await;
    for polls in 0..1_000 {
        let key = key(&format!("k{polls}"));
        let dropped = claim("dropped");
        let done = poll_times(&store, &key, polls).await;
        // Whatever is there, the next write either loses to the dropped one or forestalls it for good.
        let next = completed("next", "");
        let swapped = store.swap(&key, Expected::Absent, Some(&next)).await.unwrap();
        let there = match swapped {
            Swapped::Done(revision) => as_written(&next, revision),
            Swapped::Conflict(current) => {
                let current = current.unwrap();
                assert_eq!(current, as_written(&dropped, current.revision));
                current
            }
        };
        assert!(polls > 0 || there.record.owner == "next", "it was never polled");
        assert!(!done || there.record.owner == "dropped", "it was done");
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(load(&store, &key).await, there);
        if done {
            return;
        }
    }
    panic!("a swap takes more than a thousand polls");
}

/// Polls a swap so many times, then drops it. Tells whether it was done.
async fn poll_times(store: &Arc<dyn RecordStore>, key: &RecordKey, polls: usize) -> bool {
    let dropped = claim("dropped");
    let mut swap = pin!(store.swap(key, Expected::Absent, Some(&dropped)));
    for _ in 0..polls {
        match swap.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => {
                assert!(matches!(result, Ok(Swapped::Done(_))), "{result:?}");
                return true;
            }
            // As far as the store gets meanwhile, differently each time.
            Poll::Pending if polls.is_multiple_of(2) => tokio::time::sleep(Duration::from_millis(1)).await,
            Poll::Pending => yield_once().await,
        }
    }
    false
}

async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

pub async fn acknowledged_writes_survive_a_restart(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let records =
        [completed("a", "done"), in_doubt("b"), held("c"), claim("d"), completed("e", vec![1; 1 << 20])];
    let mut written = Vec::new();
    for record in &records {
        let revision = create(&store, &key(&record.owner), record).await;
        written.push(as_written(record, revision));
    }
    let deleted = create(&store, &key("deleted"), &claim("f")).await;
    let newest = write(&store, &key("deleted"), Expected::At(deleted), None).await;
    let store = fixture.restart(store).await;
    for written in &written {
        let loaded = load(&store, &key(&written.record.owner)).await;
        // A lock may have lapsed meanwhile: that is for other cases.
        assert_eq!(Loaded { lock: Lock::Held, ..loaded }, *written);
    }
    assert_eq!(store.load(&key("deleted")).await, Ok(None));
    let later = create(&store, &key("deleted"), &claim("g")).await;
    assert!(later > newest, "{later:?} after {newest:?}");
}

pub async fn locks_are_held_again_after_a_restart_and_lapse_again(fixture: &impl Fixture) {
    let (store, key) = (fixture.store().await, key("k"));
    let revision = create(&store, &key, &claim("holder")).await;
    let store = fixture.restart(store).await;
    let lapsed = lapse(fixture, &store, &key, LOCK_TTL_MIN).await;
    assert_eq!((lapsed.revision, lapsed.lock), (revision, Lock::Lapsed));
    let heir = write(&store, &key, Expected::At(revision), Some(&claim("heir"))).await;
    assert_eq!(load(&store, &key).await, as_written(&claim("heir"), heir));
}

pub async fn an_unknown_outcome_is_whole_or_nothing_after_the_restart(fixture: &impl Fixture) {
    let (store, before, during) = (fixture.store().await, key("before"), key("during"));
    let kept = as_written(&claim("kept"), create(&store, &before, &claim("kept")).await);
    fixture.cut().await;
    let lost = claim("lost");
    let unknown = tokio::time::timeout(PATIENCE, store.swap(&during, Expected::Absent, Some(&lost)));
    let unknown = unknown.await.expect("an answer");
    assert!(matches!(unknown, Err(StoreError::OutcomeUnknown(_))), "{unknown:?}");
    let after = store.swap(&before, Expected::At(kept.revision), None).await;
    assert!(matches!(after, Err(StoreError::OutcomeUnknown(_) | StoreError::NotApplied(_))), "{after:?}");

    let store = fixture.restart(store).await;
    let there = store.load(&during).await.unwrap();
    if let Some(there) = &there {
        assert_eq!(there.record, as_written(&lost, there.revision).record);
    }
    let next = completed("settled", "");
    let settled = write(&store, &during, Expected::of(there.as_ref()), Some(&next)).await;
    assert!(settled > kept.revision);
    assert_eq!(load(&store, &during).await, as_written(&next, settled));
    // The delete may have come to pass, unless it was surely not applied.
    let left = store.load(&before).await.unwrap();
    if matches!(after, Err(StoreError::NotApplied(_))) {
        assert_eq!(left.map(|it| it.revision), Some(kept.revision));
    }
}
