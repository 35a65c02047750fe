//! etcd dead, frozen, full, compacted, and connections that break.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use onced::record::{Lock, RecordKey};
use onced::store::etcd::EtcdConfig;
use onced::store::{Expected, Loaded, RecordStore, StoreError, Swapped};

use super::{client, create_all, hinted, keys, long_claim, open, raw, revoke};
use crate::store::fixture::{PATIENCE, completed, create, key, load, write};
use crate::support::etcd::EtcdProcess;
use crate::support::log::Log;
use crate::support::proxy::Proxy;
use crate::support::server::TestServer;

/// Waits for the store to serve again.
async fn recovered(store: &Arc<dyn RecordStore>, key: &RecordKey) -> Option<Loaded> {
    let tries = async {
        loop {
            if let Ok(loaded) = store.load(key).await {
                return loaded;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, tries).await.expect("the store serves again")
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_unknown_and_is_sent_once() {
    let etcd = EtcdProcess::shared();
    let proxy = Proxy::start(etcd.endpoint()).await;
    let config = EtcdConfig { endpoints: vec![proxy.endpoint()], ..etcd.config() };
    let direct = open(&EtcdConfig { endpoints: vec![etcd.endpoint()], ..config.clone() }).await;
    let store = Arc::new(open(&config).await);
    // Leases are at hand, so that the write below is all that is sent.
    create(&store, &key("before"), &long_claim()).await;
    proxy.mute();
    let writer = Arc::clone(&store);
    let write =
        tokio::spawn(async move { writer.swap(&key("k"), Expected::Absent, Some(&long_claim())).await });
    let landed = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(loaded) = direct.load(&key("k")).await.unwrap() {
                return loaded;
            }
        }
    });
    let landed = landed.await.expect("the write arrives");
    proxy.close();
    proxy.open();
    let swapped = write.await.unwrap();
    // Sent again, it would have met itself: a conflict.
    assert!(matches!(swapped, Err(StoreError::OutcomeUnknown(_))), "{swapped:?}");
    assert_eq!(recovered(&store, &key("k")).await, Some(landed));
}

#[tokio::test]
async fn without_etcd_nothing_is_applied_and_with_it_the_store_goes_on() {
    let etcd = EtcdProcess::start();
    let config = etcd.config();
    let store = open(&config).await;
    let next = long_claim();
    let revision = create(&store, &key("k"), &next).await;
    let mut watch = store.watch(&key("k")).await.unwrap();
    etcd.kill();
    // The first call may find the connection half dead.
    let _ = store.load(&key("k")).await;
    let loaded = store.load(&key("k")).await;
    assert!(matches!(loaded, Err(StoreError::NotApplied(_))), "{loaded:?}");
    let swapped = store.swap(&key("k"), Expected::At(revision), Some(&next)).await;
    assert!(matches!(swapped, Err(StoreError::NotApplied(_))), "{swapped:?}");
    etcd.restart();
    assert_eq!(recovered(&store, &key("k")).await.expect("it was durable").revision, revision);
    // The watch from before still hints, at records and at lapses.
    let renewed = write(&open(&config).await, &key("k"), Expected::At(revision), Some(&next)).await;
    hinted(&mut watch, &store, &key("k"), |seen| seen.revision == renewed).await;
    revoke(&config, raw(&config, &key("k")).await.lock_lease).await;
    hinted(&mut watch, &store, &key("k"), |seen| seen.lock == Lock::Lapsed).await;
}

#[tokio::test]
async fn a_frozen_etcd_leaves_a_write_unknown() {
    let etcd = EtcdProcess::start();
    let config = EtcdConfig { call_timeout: Duration::from_secs(2), ..etcd.config() };
    let store = open(&config).await;
    let next = long_claim();
    let revision = create(&store, &key("k"), &next).await;
    etcd.freeze();
    let loaded = store.load(&key("k")).await;
    assert!(matches!(loaded, Err(StoreError::NotApplied(_))), "{loaded:?}");
    let swapped = store.swap(&key("k"), Expected::At(revision), Some(&next)).await;
    assert!(matches!(swapped, Err(StoreError::OutcomeUnknown(_))), "{swapped:?}");
    let watched = store.watch(&key("other")).await;
    assert!(matches!(watched, Err(StoreError::NotApplied(_))));
    etcd.thaw();
    assert!(recovered(&store, &key("k")).await.is_some());
}

#[tokio::test]
async fn the_log_says_which_endpoint_is_silent() {
    let etcd = EtcdProcess::start();
    let store = open(&etcd.config()).await;
    let log = Log::start();
    let _server = TestServer::start(store).await;
    etcd.freeze();
    let silent = format!("etcd at {} did not answer", etcd.endpoint());
    let told = async |texts: &[&str]| {
        let told = async {
            while log.lines_with(texts).is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let told = tokio::time::timeout(PATIENCE, told).await;
        assert!(told.is_ok(), "{texts:?}: {:#?}", log.lines_with(&[]));
    };
    told(&["no etcd endpoint serves", &silent]).await;
    told(&["the store did not answer a probe", &silent]).await;
    etcd.thaw();
    told(&["etcd serves again"]).await;
}

#[tokio::test]
async fn a_watch_that_missed_what_was_compacted_hints_and_goes_on() {
    let etcd = EtcdProcess::start();
    let proxy = Proxy::start(etcd.endpoint()).await;
    let config = EtcdConfig { endpoints: vec![proxy.endpoint()], ..etcd.config() };
    let beside = EtcdConfig { endpoints: vec![etcd.endpoint()], ..config.clone() };
    let (store, direct) = (open(&config).await, open(&beside).await);
    let next = long_claim();
    let first = create(&store, &key("k"), &next).await;
    let mut watch = store.watch(&key("k")).await.unwrap();
    assert_eq!(load(&store, &key("k")).await.lock, Lock::Held);
    proxy.close();
    let mut last = write(&direct, &key("k"), Expected::At(first), Some(&next)).await;
    revoke(&beside, raw(&beside, &key("k")).await.lock_lease).await;
    create(&direct, &key("unrelated"), &next).await;
    let present = client(&beside).await.get("any", None).await.unwrap().header().unwrap().revision();
    client(&beside).await.compact(present, None).await.unwrap();
    proxy.open();
    recovered(&store, &key("k")).await;
    hinted(&mut watch, &store, &key("k"), |seen| seen.revision == last && seen.lock == Lock::Lapsed).await;
    // It is live again: for the record, and for its lock.
    for _ in 0..2 {
        last = write(&direct, &key("k"), Expected::At(last), Some(&next)).await;
        hinted(&mut watch, &store, &key("k"), |seen| seen.revision == last).await;
    }
    revoke(&beside, raw(&beside, &key("k")).await.lock_lease).await;
    hinted(&mut watch, &store, &key("k"), |seen| seen.lock == Lock::Lapsed).await;
}

#[tokio::test]
async fn many_watches_come_back_after_a_lost_connection() {
    let etcd = EtcdProcess::shared();
    let proxy = Proxy::start(etcd.endpoint()).await;
    let config = EtcdConfig { endpoints: vec![proxy.endpoint()], ..etcd.config() };
    let direct = open(&EtcdConfig { endpoints: vec![etcd.endpoint()], ..config.clone() }).await;
    let store = open(&config).await;
    let keys = keys(500);
    let mut watches = join_all(keys.iter().map(|key| store.watch(key))).await;
    proxy.close();
    proxy.open();
    create_all(&direct, &keys, &long_claim()).await;
    recovered(&store, &keys[0]).await;
    for (watch, key) in watches.iter_mut().zip(&keys) {
        hinted(watch.as_mut().unwrap(), &store, key, |_| true).await;
    }
}

#[tokio::test]
async fn a_full_etcd_refuses_writes_and_what_it_refused_is_not_there() {
    let etcd = EtcdProcess::start_with(&["--quota-backend-bytes", "8000000"]);
    let store = open(&etcd.config()).await;
    let large = completed("holder", vec![7; 1 << 20]);
    for i in 0..30 {
        let key = key(&format!("k{i}"));
        match store.swap(&key, Expected::Absent, Some(&large)).await {
            // The write that hits the quota is applied, and answered as refused: unknown.
            Ok(Swapped::Done(_)) | Err(StoreError::OutcomeUnknown(_)) => {
                assert!(store.load(&key).await.unwrap().is_some());
            }
            Err(StoreError::Full(_)) => {
                assert_eq!(store.load(&key).await, Ok(None));
                return;
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("30 MiB went into 8 MB");
}
