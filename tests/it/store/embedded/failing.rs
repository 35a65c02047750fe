//! A disk that fails ends the store, and what was answered still holds.

use std::sync::Arc;

use onced::store::embedded::EmbeddedStore;
use onced::store::{Expected, RecordStore, StoreError, Swapped};
use tokio::task::JoinSet;

use super::ManualClock;
use super::disk::Disk;
use crate::store::fixture::{PATIENCE, as_written, claim, create, key, load};

fn open(disk: &Disk) -> Arc<EmbeddedStore> {
    Arc::new(disk.open(ManualClock::default().clock()).unwrap())
}

/// Fails the disk after each number of writes in turn, until the swap needs no more than that.
#[tokio::test]
async fn wherever_the_disk_fails_the_swap_is_whole_or_nothing() {
    let lost = claim("lost");
    let mut failures = 0;
    for few in 0.. {
        let disk = Disk::in_memory();
        let store = open(&disk);
        let handle = Arc::clone(&store) as Arc<dyn RecordStore>;
        let kept = as_written(&claim("kept"), create(&handle, &key("kept"), &claim("kept")).await);
        disk.fail_after(few);
        let swapped = store.swap(&key("lost"), Expected::Absent, Some(&lost)).await;
        if swapped.is_err() {
            // What may or may not be there is not shown as either.
            let shown = store.load(&key("lost")).await;
            assert!(matches!(shown, Err(StoreError::NotApplied(_))), "{shown:?}");
        }
        drop((store, handle));
        disk.heal();

        let store = open(&disk) as Arc<dyn RecordStore>;
        assert_eq!(load(&store, &key("kept")).await, kept);
        let there = store.load(&key("lost")).await.unwrap();
        match swapped {
            Ok(Swapped::Done(revision)) => {
                assert_eq!(there, Some(as_written(&lost, revision)));
                break;
            }
            Err(StoreError::OutcomeUnknown(_)) => {
                failures += 1;
                assert!(there.is_none_or(|it| it == as_written(&lost, it.revision)));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(failures > 0, "the disk never failed");
}

#[tokio::test]
async fn a_failed_store_says_so_and_does_nothing_any_more() {
    let disk = Disk::in_memory();
    let store = open(&disk);
    let handle = Arc::clone(&store) as Arc<dyn RecordStore>;
    let revision = create(&handle, &key("k"), &claim("holder")).await;
    disk.fail_after(0);
    let mut writes = JoinSet::new();
    for index in 0..20 {
        let store = Arc::clone(&store);
        writes.spawn(async move {
            store.swap(&key(&format!("k{index}")), Expected::Absent, Some(&claim("late"))).await
        });
    }
    for result in writes.join_all().await {
        assert!(
            matches!(result, Err(StoreError::OutcomeUnknown(_) | StoreError::NotApplied(_))),
            "{result:?}"
        );
    }
    let reason = tokio::time::timeout(PATIENCE, store.failed()).await.expect("the failure");
    assert!(reason.contains("the disk of this test has failed"), "{reason}");
    // Even if the disk recovers: what it holds is not known.
    disk.heal();
    let late = store.swap(&key("k"), Expected::At(revision), None).await;
    assert_eq!(late, Err(StoreError::NotApplied(reason.clone())));
    assert_eq!(store.load(&key("k")).await, Err(StoreError::NotApplied(reason.clone())));
    assert_eq!(store.watch(&key("k")).await.err(), Some(StoreError::NotApplied(reason)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_that_come_together_share_their_commits() {
    const SWAPS: u64 = 500;
    let disk = Disk::in_memory();
    let store = open(&disk);
    let syncs_of_one = {
        let before = disk.syncs();
        create(&(Arc::clone(&store) as _), &key("alone"), &claim("alone")).await;
        disk.syncs() - before
    };
    assert!(syncs_of_one > 0, "a commit without a sync");
    let before = disk.syncs();
    let swaps = (0..SWAPS).map(|index| {
        let store = Arc::clone(&store);
        async move { store.swap(&key(&format!("k{index}")), Expected::Absent, Some(&claim("holder"))).await }
    });
    for swapped in futures_util::future::join_all(swaps).await {
        assert!(matches!(swapped, Ok(Swapped::Done(_))), "{swapped:?}");
    }
    let syncs = disk.syncs() - before;
    assert!(syncs < SWAPS * syncs_of_one / 2, "{syncs} syncs for {SWAPS} swaps at once");
}

#[tokio::test]
async fn a_lost_race_writes_nothing() {
    let disk = Disk::in_memory();
    let store = open(&disk);
    create(&(Arc::clone(&store) as _), &key("k"), &claim("holder")).await;
    let before = disk.syncs();
    let lost = store.swap(&key("k"), Expected::Absent, Some(&claim("late"))).await;
    assert!(matches!(lost, Ok(Swapped::Conflict(Some(_)))), "{lost:?}");
    assert_eq!(disk.syncs(), before);
}
