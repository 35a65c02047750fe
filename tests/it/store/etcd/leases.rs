//! Shared leases.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{GetOptions, KeyValue, LeaseStatus};
use futures_util::future::join_all;
use onced::clock::{Clock, Moment};
use onced::record::limits::{LOCK_TTL_MIN, RETENTION_MIN};
use onced::record::{Lifetime, Lock, OnLapse, Record, RecordKey};
use onced::store::etcd::{EtcdConfig, EtcdStore};
use onced::store::{Expected, RecordStore, StoreError, Swapped};

use super::{client, create_all, keys, long_claim, long_held, open, raw, revoke};
use crate::store::fixture::{PATIENCE, as_written, claim, completed, create, in_progress, key, load, write};
use crate::support::etcd::EtcdProcess;
use crate::support::proxy::Proxy;

/// A clock that stands still until it is moved.
fn still_clock() -> (Clock, Arc<AtomicU64>) {
    let seconds = Arc::new(AtomicU64::new(1_000));
    let read = Arc::clone(&seconds);
    let now = move || Moment::from_start(Duration::from_secs(read.load(Ordering::SeqCst)));
    (Clock::from_fn(now), seconds)
}

#[tokio::test]
async fn many_claims_at_once_share_one_lease_and_their_retention_another() {
    let config = EtcdProcess::shared().config();
    let store = open(&config).await;
    let keys = keys(100);
    create_all(&store, &keys, &long_claim()).await;
    let raws = join_all(keys.iter().map(|key| raw(&config, key))).await;
    let locks: HashSet<i64> = raws.iter().map(|raw| raw.lock_lease).collect();
    let retentions: HashSet<i64> = raws.iter().map(|raw| raw.retention_lease).collect();
    assert_eq!((locks.len(), retentions.len()), (1, 1));
    assert!(locks.is_disjoint(&retentions), "a record hangs on a lock's lease");
    // A lease that carries no sentinel is no lock, and a sentinel that no record names is waste.
    let below = Some(GetOptions::new().with_prefix());
    let sentinels = client(&config).await.get(format!("{}/l/", config.prefix), below).await.unwrap();
    assert_eq!(sentinels.kvs().iter().map(KeyValue::lease).collect::<HashSet<_>>(), locks);
}

#[tokio::test]
async fn a_retention_lease_carries_five_hundred_records_at_most() {
    let config = EtcdProcess::shared().config();
    let store = open(&config).await;
    create_all(&store, &keys(1_100), &long_claim()).await;
    let below = Some(GetOptions::new().with_prefix());
    let records = client(&config).await.get(format!("{}/r/", config.prefix), below).await.unwrap();
    let mut uses: BTreeMap<i64, usize> = BTreeMap::new();
    for kv in records.kvs() {
        *uses.entry(kv.lease()).or_default() += 1;
    }
    assert_eq!(uses.values().sum::<usize>(), 1_100);
    assert!(uses.len() >= 3 && uses.values().all(|&uses| uses <= 500), "{uses:?}");
}

#[tokio::test]
async fn a_lease_is_used_for_its_window_and_no_longer() {
    let config = EtcdProcess::shared().config();
    let (clock, seconds) = still_clock();
    let store: Arc<dyn RecordStore> = Arc::new(EtcdStore::connect(config.clone(), clock).await.unwrap());
    // Leases for 32 s last 36 s, so one is given out for 4 s.
    let next = Record { state: in_progress(Duration::from_secs(32), OnLapse::TakeOver), ..claim("holder") };
    let mut leases = Vec::new();
    for (name, later) in [("first", 0), ("soon", 1), ("late", 4)] {
        seconds.fetch_add(later, Ordering::SeqCst);
        create(&store, &key(name), &next).await;
        leases.push(raw(&config, &key(name)).await.lock_lease);
    }
    assert_eq!(leases[0], leases[1]);
    assert_ne!(leases[0], leases[2]);
}

/// etcd counts a lease from when it granted it, which is at some time before its answer came.
#[tokio::test]
async fn the_window_of_a_lease_counts_from_before_its_grant_was_sent() {
    let etcd = EtcdProcess::start();
    let proxy = Proxy::start(etcd.endpoint()).await;
    let config = EtcdConfig { endpoints: vec![proxy.endpoint()], ..etcd.config() };
    let beside = EtcdConfig { endpoints: vec![etcd.endpoint()], ..config.clone() };
    let (clock, seconds) = still_clock();
    let store: Arc<dyn RecordStore> = Arc::new(EtcdStore::connect(config, clock).await.unwrap());
    let next = Record { state: in_progress(Duration::from_secs(32), OnLapse::TakeOver), ..claim("holder") };
    // Both grants are made, and their answers on the way, while the lock's window of 4 s passes.
    proxy.slow(500);
    let writer = Arc::clone(&store);
    let write = tokio::spawn(async move { writer.swap(&key("k"), Expected::Absent, Some(&next)).await });
    let mut direct = client(&beside).await;
    let granted = async { while direct.leases().await.unwrap().leases().len() < 2 {} };
    tokio::time::timeout(PATIENCE, granted).await.expect("the grants arrive");
    let early: HashSet<i64> = direct.leases().await.unwrap().leases().iter().map(LeaseStatus::id).collect();
    seconds.fetch_add(5, Ordering::SeqCst);
    proxy.slow(0);
    // Too old to be sent by now, or written on another lease: never on one that ends too early.
    match write.await.unwrap() {
        Ok(Swapped::Done(_)) => {}
        Err(StoreError::NotApplied(_)) => {
            let again =
                Record { state: in_progress(Duration::from_secs(32), OnLapse::TakeOver), ..claim("holder") };
            create(&store, &key("k"), &again).await;
        }
        other => panic!("{other:?}"),
    }
    assert!(!early.contains(&raw(&beside, &key("k")).await.lock_lease));
}

/// How many lock leases were asked for: each has its sentinel put, and nothing else is.
async fn sentinels(etcd: &EtcdProcess) -> u64 {
    etcd.requests(r#"grpc_method="Put""#).await
}

#[tokio::test]
async fn a_server_that_nobody_calls_any_more_soon_asks_for_no_leases() {
    let etcd = EtcdProcess::start();
    let store = open(&etcd.config()).await;
    let before = sentinels(&etcd).await;
    create(&store, &key("k"), &claim("holder")).await;
    let quiet = async {
        let mut asked = 0;
        loop {
            // Four times as long as there is between two of them.
            tokio::time::sleep(LOCK_TTL_MIN).await;
            let now = sentinels(&etcd).await - before;
            if now == std::mem::replace(&mut asked, now) {
                return asked;
            }
        }
    };
    let asked = tokio::time::timeout(PATIENCE, quiet).await.expect("an end of it");
    println!("{asked} lock leases for one claim with the shortest lock");
    assert!((1..=8).contains(&asked), "{asked} lock leases for one claim");
}

/// The interval is longer than a lease: the first two learn that there is none at hand.
#[tokio::test]
async fn callers_who_come_at_regular_intervals_find_a_lease_at_hand() {
    const INTERVAL_S: u64 = 10;
    let etcd = EtcdProcess::start();
    let (clock, seconds) = still_clock();
    let store: Arc<dyn RecordStore> = Arc::new(EtcdStore::connect(etcd.config(), clock).await.unwrap());
    for name in ["first", "second"] {
        seconds.fetch_add(INTERVAL_S, Ordering::SeqCst);
        create(&store, &key(name), &claim("holder")).await;
    }
    for name in ["third", "fourth", "fifth"] {
        let before = sentinels(&etcd).await;
        seconds.fetch_add(INTERVAL_S, Ordering::SeqCst);
        let ahead = async { while sentinels(&etcd).await == before {} };
        tokio::time::timeout(PATIENCE, ahead).await.expect("a lease that nobody has asked for yet");
        create(&store, &key(name), &claim("holder")).await;
        assert_eq!(sentinels(&etcd).await, before + 1, "the {name} was granted another one");
    }
}

#[tokio::test]
async fn a_write_that_waited_for_long_is_not_sent() {
    let config = EtcdProcess::shared().config();
    let (slow, seconds) = still_clock();
    let hasty = Clock::from_fn(move || {
        seconds.fetch_add(4, Ordering::SeqCst);
        slow.now()
    });
    let store = EtcdStore::connect(config, hasty).await.unwrap();
    let swapped = store.swap(&key("k"), Expected::Absent, Some(&long_claim())).await;
    assert!(matches!(swapped, Err(StoreError::NotApplied(_))), "{swapped:?}");
    assert_eq!(store.load(&key("k")).await, Ok(None));
}

#[tokio::test]
async fn a_grant_whose_answer_is_lost_is_recognised_when_repeated() {
    let etcd = EtcdProcess::start();
    let proxy = Proxy::start(etcd.endpoint()).await;
    let config = EtcdConfig { endpoints: vec![proxy.endpoint()], ..etcd.config() };
    let beside = EtcdConfig { endpoints: vec![etcd.endpoint()], ..config.clone() };
    let store = open(&config).await;
    proxy.mute();
    let writer = Arc::clone(&store);
    let write =
        tokio::spawn(async move { writer.swap(&key("k"), Expected::Absent, Some(&long_claim())).await });
    let mut direct = client(&beside).await;
    let granted = async { while direct.leases().await.unwrap().leases().len() < 2 {} };
    tokio::time::timeout(PATIENCE, granted).await.expect("the grants arrive");
    proxy.close();
    proxy.open();
    let swapped = write.await.unwrap();
    assert!(matches!(swapped, Ok(Swapped::Done(_))), "{swapped:?}");
    let leases: HashSet<i64> = direct.leases().await.unwrap().leases().iter().map(LeaseStatus::id).collect();
    let raw = raw(&beside, &key("k")).await;
    assert_eq!(leases, HashSet::from([raw.lock_lease, raw.retention_lease]));
}

#[tokio::test]
async fn a_retention_lease_that_is_gone_is_replaced() {
    let config = EtcdProcess::shared().config();
    let store = open(&config).await;
    let next = long_claim();
    create(&store, &key("first"), &next).await;
    let gone = raw(&config, &key("first")).await.retention_lease;
    revoke(&config, gone).await;
    assert_eq!(store.load(&key("first")).await, Ok(None));
    create(&store, &key("second"), &next).await;
    assert_ne!(raw(&config, &key("second")).await.retention_lease, gone);
    assert_eq!(load(&store, &key("second")).await.lock, Lock::Held);
}

#[tokio::test]
async fn an_outcome_outlives_the_lease_of_its_lock() {
    let config = EtcdProcess::shared().config();
    let store = open(&config).await;
    let (key, next) = (key("k"), long_claim());
    let revision = create(&store, &key, &next).await;
    let lock = raw(&config, &key).await.lock_lease;
    let outcome = completed("holder", "done");
    let written = write(&store, &key, Expected::At(revision), Some(&outcome)).await;
    revoke(&config, lock).await;
    assert_eq!(load(&store, &key).await, as_written(&outcome, written));
    let raw = raw(&config, &key).await;
    assert_eq!(raw.lock_lease, 0);
    assert_ne!(raw.retention_lease, 0);
}

/// What etcd granted for what is now at a key, its lock and its retention, and how long these are to be at least.
async fn granted(config: &EtcdConfig, key: &RecordKey, record: &Record) -> Vec<(Duration, Duration)> {
    let (raw, etcd) = (raw(config, key).await, client(config).await);
    let Lifetime::AtLeast(lifetime) = record.lifetime() else { panic!("it is kept for ever: {record:?}") };
    let mut all = Vec::new();
    for (lease, least) in [(raw.lock_lease, record.lock_ttl()), (raw.retention_lease, Some(lifetime))] {
        if let Some(least) = least {
            let granted = etcd.lease_client().time_to_live(lease, None).await.unwrap().granted_ttl();
            all.push((Duration::from_secs(granted.try_into().expect("a lease")), least));
        }
    }
    all
}

#[tokio::test]
async fn etcd_is_asked_to_keep_a_record_for_its_lifetime_and_little_longer() {
    let config = EtcdProcess::shared().config();
    let store = open(&config).await;
    let claim = Record { retention: RETENTION_MIN, ..long_claim() };
    // It must not stay on the lease of its claim, which ends long before.
    let outcome = Record { retention: RETENTION_MIN * 100, ..completed("holder", "done") };
    let revision = create(&store, &key("k"), &claim).await;
    let mut leases = granted(&config, &key("k"), &claim).await;
    write(&store, &key("k"), Expected::At(revision), Some(&outcome)).await;
    leases.extend(granted(&config, &key("k"), &outcome).await);
    assert_eq!(leases.len(), 3, "of a lock, of its record, and of the outcome");
    for (granted, least) in leases {
        // An eighth to give it out, an eighth of that by the grid of lengths, a second by rounding.
        let most = (least + least / 8) * 9 / 8 + Duration::from_secs(1);
        assert!(
            (least..=most).contains(&granted),
            "{granted:?}, to be kept for {least:?} and at most {most:?}"
        );
    }
}

#[tokio::test]
async fn a_held_claim_hangs_on_no_lease_and_outlives_its_lock() {
    let config = EtcdProcess::shared().config();
    let store = open(&config).await;
    create(&store, &key("k"), &long_held()).await;
    let before = raw(&config, &key("k")).await;
    assert_eq!(before.retention_lease, 0);
    revoke(&config, before.lock_lease).await;
    assert_eq!(load(&store, &key("k")).await.lock, Lock::Lapsed);
}
