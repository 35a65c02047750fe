//! The ends of locks.

use onced::clock::Clock;
use onced::record::limits::LOCK_TTL_MIN;
use onced::record::{Lock, Record};
use onced::store::etcd::EtcdConfig;
use onced::store::{Expected, Swapped};

use super::{hinted, long_claim, open, raw, revoke};
use crate::store::fixture::{claim, create, key, load, write};
use crate::support::etcd::EtcdProcess;
use crate::support::proxy::Proxy;

#[tokio::test]
async fn a_lapse_comes_after_the_ttl_and_is_hinted_to_every_store() {
    let config = EtcdProcess::shared().config();
    let (one, other) = (open(&config).await, open(&config).await);
    let (key, clock) = (key("k"), Clock::system());
    let began = clock.now();
    let revision = create(&one, &key, &claim("holder")).await;
    let mut watches = (one.watch(&key).await.unwrap(), other.watch(&key).await.unwrap());
    assert_eq!(load(&one, &key).await.lock, Lock::Held);
    assert_eq!(load(&other, &key).await.lock, Lock::Held);
    hinted(&mut watches.0, &one, &key, |seen| seen.lock == Lock::Lapsed).await;
    assert!(clock.now().since(began) >= LOCK_TTL_MIN, "the lock was cut short");
    hinted(&mut watches.1, &other, &key, |seen| seen.lock == Lock::Lapsed).await;
    assert_eq!(load(&other, &key).await.revision, revision);
    let next = Record { attempt: 2, ..long_claim() };
    write(&other, &key, Expected::At(revision), Some(&next)).await;
    assert_eq!(load(&one, &key).await.lock, Lock::Held);
}

#[tokio::test]
async fn a_store_that_never_saw_a_lapse_reads_it() {
    let config = EtcdProcess::shared().config();
    let key = key("k");
    let store = open(&config).await;
    let revision = create(&store, &key, &long_claim()).await;
    revoke(&config, raw(&config, &key).await.lock_lease).await;
    // Its watch begins after the lapse.
    let late = open(&config).await;
    assert_eq!(load(&late, &key).await.lock, Lock::Lapsed);
    // The loser of a swap learns it too, and so does a scan.
    let late = open(&config).await;
    let swapped = late.swap(&key, Expected::Absent, None).await.unwrap();
    let Swapped::Conflict(Some(current)) = swapped else { panic!("{swapped:?}") };
    assert_eq!((current.revision, current.lock), (revision, Lock::Lapsed));
    let late = open(&config).await;
    let page = late.scan(&key.namespace, None, 10).await.unwrap();
    assert_eq!(page.records[0].1.lock, Lock::Lapsed);
}

#[tokio::test]
async fn a_lease_revoked_from_outside_is_a_lapse_and_the_next_claim_gets_another() {
    let config = EtcdProcess::shared().config();
    let store = open(&config).await;
    let next = long_claim();
    create(&store, &key("first"), &next).await;
    let mut watch = store.watch(&key("first")).await.unwrap();
    assert_eq!(load(&store, &key("first")).await.lock, Lock::Held);
    let gone = raw(&config, &key("first")).await.lock_lease;
    revoke(&config, gone).await;
    hinted(&mut watch, &store, &key("first"), |seen| seen.lock == Lock::Lapsed).await;
    create(&store, &key("second"), &next).await;
    assert_ne!(raw(&config, &key("second")).await.lock_lease, gone);
    assert_eq!(load(&store, &key("second")).await.lock, Lock::Held);
}

/// A claim that is renewed in time is never read as lapsed, though the leases it leaves behind end at once, and
/// before a slow reader asks for them.
#[tokio::test]
async fn a_lease_that_ends_once_its_claim_has_left_it_is_no_lapse() {
    let etcd = EtcdProcess::shared();
    let config = etcd.config();
    let (stores, next) = ([open(&config).await, open(&config).await], long_claim());
    let mut revision = create(&stores[0], &key("k"), &next).await;
    let proxy = Proxy::start(etcd.endpoint()).await;
    let far = open(&EtcdConfig { endpoints: vec![proxy.endpoint()], ..config.clone() }).await;
    proxy.slow(30);
    let renewals = async {
        for store in stores.iter().cycle().skip(1).take(60) {
            let left = raw(&config, &key("k")).await.lock_lease;
            revision = write(store, &key("k"), Expected::At(revision), Some(&next)).await;
            revoke(&config, left).await;
        }
    };
    let loads = async {
        loop {
            assert_eq!(load(&far, &key("k")).await.lock, Lock::Held);
        }
    };
    let conflicts = async {
        loop {
            let swapped = far.swap(&key("k"), Expected::Absent, None).await.unwrap();
            assert!(matches!(swapped, Swapped::Conflict(Some(now)) if now.lock == Lock::Held));
        }
    };
    let scans = async {
        loop {
            let page = far.scan(&key("k").namespace, None, 10).await.unwrap();
            assert_eq!(page.records[0].1.lock, Lock::Held);
        }
    };
    tokio::select! {
        () = renewals => {}
        () = loads => {}
        () = conflicts => {}
        () = scans => {}
    }
}
