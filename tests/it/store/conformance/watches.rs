//! A watch hints at whatever may matter.

use std::sync::Arc;
use std::time::Duration;

use onced::record::{Lock, OnLapse, Record, RecordKey};
use onced::store::{Expected, RecordStore, Watch};

use crate::store::fixture::{Fixture, PATIENCE, claim, completed, create, in_progress, key, write};

/// Waits for hints until the record is as wanted.
async fn until(
    store: &Arc<dyn RecordStore>,
    key: &RecordKey,
    watch: &mut Watch,
    wanted: impl Fn(Option<(&str, Lock)>) -> bool,
) {
    let waiting = async {
        loop {
            let loaded = store.load(key).await.unwrap();
            if wanted(loaded.as_ref().map(|loaded| (loaded.record.owner.as_str(), loaded.lock))) {
                break;
            }
            watch.changed().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("a hint");
}

/// Longer than it takes for hints to end.
const LOCK_TTL: Duration = Duration::from_secs(4);

fn long_claim() -> Record {
    Record { state: in_progress(LOCK_TTL, OnLapse::TakeOver), ..claim("holder") }
}

/// Waits until hints end that were given for what has already happened.
async fn until_quiet(watch: &mut Watch) {
    const QUIET: Duration = Duration::from_millis(100);
    while tokio::time::timeout(QUIET, watch.changed()).await.is_ok() {}
}

/// Waits for a hint after which the record is as wanted. Nothing is looked at without a hint.
async fn until_hinted(
    store: &Arc<dyn RecordStore>,
    key: &RecordKey,
    watch: &mut Watch,
    wanted: impl Fn(Option<Lock>) -> bool,
) {
    let waiting = async {
        loop {
            watch.changed().await;
            if wanted(store.load(key).await.unwrap().map(|loaded| loaded.lock)) {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("a hint");
}

pub async fn a_change_is_hinted(fixture: &impl Fixture) {
    let (watching, writing, key) = (fixture.store().await, fixture.store().await, key("k"));
    let mut watch = watching.watch(&key).await.unwrap();
    let revision = create(&writing, &key, &claim("first")).await;
    until(&watching, &key, &mut watch, |it| it.is_some_and(|(owner, _)| owner == "first")).await;
    let waiting = until(&watching, &key, &mut watch, |it| it.is_some_and(|(owner, _)| owner == "second"));
    let second = claim("second");
    tokio::join!(waiting, write(&writing, &key, Expected::At(revision), Some(&second)));
}

pub async fn a_delete_is_hinted(fixture: &impl Fixture) {
    let (watching, writing, key) = (fixture.store().await, fixture.store().await, key("k"));
    let revision = create(&writing, &key, &claim("first")).await;
    let mut watch = watching.watch(&key).await.unwrap();
    let waiting = until(&watching, &key, &mut watch, |it| it.is_none());
    tokio::join!(waiting, write(&writing, &key, Expected::At(revision), None));
}

pub async fn a_lapse_is_hinted(fixture: &impl Fixture) {
    let (store, before, after) = (fixture.store().await, key("watched before"), key("watched after"));
    // Whether the watch comes first, or the lock.
    let mut watch_before = store.watch(&before).await.unwrap();
    create(&store, &before, &long_claim()).await;
    create(&store, &after, &long_claim()).await;
    let mut watch_after = store.watch(&after).await.unwrap();
    for (key, watch) in [(&before, &mut watch_before), (&after, &mut watch_after)] {
        until_quiet(watch).await;
        // As a watcher does: register, then check. What is to lapse has to be known.
        assert_eq!(store.load(key).await.unwrap().map(|loaded| loaded.lock), Some(Lock::Held));
    }
    fixture.pass(LOCK_TTL).await;
    let lapsed = |it| it == Some(Lock::Lapsed);
    until_hinted(&store, &before, &mut watch_before, lapsed).await;
    until_hinted(&store, &after, &mut watch_after, lapsed).await;
}

pub async fn an_expiry_is_hinted(fixture: &impl Fixture) {
    let (store, key) = (fixture.store().await, key("k"));
    create(&store, &key, &completed("holder", "done")).await;
    let mut watch = store.watch(&key).await.unwrap();
    until_quiet(&mut watch).await;
    fixture.expire(&key).await;
    until_hinted(&store, &key, &mut watch, |it| it.is_none()).await;
}

pub async fn no_change_after_registering_is_missed(fixture: &impl Fixture) {
    let (watching, writing) = (fixture.store().await, fixture.store().await);
    for round in 0..50 {
        let key = key(&format!("k{round}"));
        let mut watch = watching.watch(&key).await.unwrap();
        let writer = {
            let (writing, key) = (Arc::clone(&writing), key.clone());
            tokio::spawn(async move { create(&writing, &key, &claim("holder")).await })
        };
        until(&watching, &key, &mut watch, |it| it.is_some()).await;
        writer.await.unwrap();
    }
}

pub async fn a_watch_that_ends_leaves_the_others(fixture: &impl Fixture) {
    let (store, key) = (fixture.store().await, key("k"));
    let mut stays = store.watch(&key).await.unwrap();
    let leaves = store.watch(&key).await.unwrap();
    drop(leaves);
    let mut comes = store.watch(&key).await.unwrap();
    create(&store, &key, &long_claim()).await;
    for watch in [&mut stays, &mut comes] {
        until(&store, &key, watch, |it| it.is_some()).await;
    }
    drop(stays);
    until_quiet(&mut comes).await;
    assert!(store.load(&key).await.unwrap().is_some());
    fixture.pass(LOCK_TTL).await;
    until_hinted(&store, &key, &mut comes, |it| it == Some(Lock::Lapsed)).await;
}
