//! One member of three that is ill: calls go on at the others.

use std::sync::Arc;
use std::time::Duration;

use onced::clock::Clock;
use onced::store::etcd::{EtcdConfig, EtcdStore};
use onced::store::{Expected, RecordStore, StoreError, Swapped};

use crate::store::fixture::{PATIENCE, completed, create, key, load};
use crate::support::cluster::{EtcdCluster, MEMBERS};

pub(super) async fn open(config: &EtcdConfig) -> Arc<dyn RecordStore> {
    Arc::new(EtcdStore::connect(config.clone(), Clock::system()).await.unwrap())
}

/// How many of so many calls fail, one after the other. What is written stays.
async fn failures(store: &Arc<dyn RecordStore>, what: &str, calls: usize) -> usize {
    let mut failures = 0;
    for call in 0..calls {
        let key = key(&format!("{what} {call}"));
        let wrote = store.swap(&key, Expected::Absent, Some(&completed("holder", what.to_owned()))).await;
        let read = store.load(&key).await;
        match (&wrote, &read) {
            (Ok(Swapped::Done(revision)), Ok(Some(read))) => assert_eq!(read.revision, *revision),
            (Ok(Swapped::Done(_)), Ok(None)) => panic!("what was written is gone"),
            (Ok(Swapped::Conflict(_)), _) => panic!("nobody else writes"),
            _ => {}
        }
        failures += usize::from(wrote.is_err()) + usize::from(read.is_err());
    }
    failures
}

/// The calls that find it out: a write, and a read.
const FIND_OUT: usize = 2;
const CALLS: usize = 20;

#[tokio::test]
async fn an_ill_member_costs_no_more_than_the_calls_that_find_it_out() {
    let etcd = EtcdCluster::start();
    let (proxies, behind) = etcd.behind_proxies().await;
    let call_timeout = Duration::from_secs(1);
    let store = open(&EtcdConfig { call_timeout, ..behind }).await;
    let find_out = async |what: String| {
        let failures = failures(&store, &what, CALLS).await;
        assert!(failures <= FIND_OUT, "member {what}: {failures} calls failed");
    };
    // Each in turn, so that whichever is in use is ill once.
    for member in 0..MEMBERS {
        etcd.kill(member);
        etcd.leader();
        find_out(format!("{member} dead")).await;
        etcd.restart(member);
    }
    for (member, proxy) in proxies.iter().enumerate() {
        proxy.mute();
        find_out(format!("{member} out of reach")).await;
        proxy.close();
        proxy.open();
    }
    for member in 0..MEMBERS {
        etcd.freeze(member);
        etcd.leader();
        find_out(format!("{member} frozen")).await;
        etcd.thaw(member);
        etcd.wait_healthy();
    }
}

#[tokio::test]
async fn without_a_quorum_nothing_hangs_and_with_one_the_store_goes_on() {
    let etcd = EtcdCluster::start();
    let call_timeout = Duration::from_secs(1);
    let store = open(&EtcdConfig { call_timeout, ..etcd.config() }).await;
    let key = key("k");
    let revision = create(&store, &key, &completed("holder", "done")).await;
    let (leader, follower) = etcd.leader_and_follower();
    etcd.kill(leader);
    etcd.kill(follower);
    for _ in 0..2 * MEMBERS {
        let loaded = tokio::time::timeout(PATIENCE, store.load(&key)).await.expect("an answer");
        assert!(matches!(loaded, Err(StoreError::NotApplied(_))), "{loaded:?}");
        let next = completed("holder", "again");
        let swapped = store.swap(&key, Expected::At(revision), Some(&next));
        let swapped = tokio::time::timeout(PATIENCE, swapped).await.expect("an answer");
        let failed = matches!(swapped, Err(StoreError::NotApplied(_) | StoreError::OutcomeUnknown(_)));
        assert!(failed, "{swapped:?}");
    }
    // Whoever reads the log learns of each member, and what it means.
    let endpoints = etcd.endpoints();
    let told = async {
        loop {
            match store.load(&key).await {
                Err(StoreError::NotApplied(why)) if why.contains("lost its quorum") => return why,
                _ => {}
            }
        }
    };
    let why = tokio::time::timeout(PATIENCE, told).await.expect("what is wrong");
    assert!(endpoints.iter().all(|endpoint| why.contains(endpoint)), "{why}");
    etcd.restart(follower);
    let back = async { while store.load(&key).await.is_err() {} };
    tokio::time::timeout(PATIENCE, back).await.expect("the store serves again");
    // A write whose outcome was unknown may have come to pass.
    assert!(load(&store, &key).await.revision >= revision);
}
