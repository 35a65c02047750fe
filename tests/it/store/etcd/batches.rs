//! Group commit: how much a transaction carries, and that no write or read harms its neighbours.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use onced::record::{Lock, OnLapse, Record, RecordKey};
use onced::store::etcd::EtcdConfig;
use onced::store::{Expected, Loaded, RecordStore, StoreError, Swapped};

use super::{create_all, keys, long_claim, open, raw, revoke};
use crate::store::fixture::{PATIENCE, as_written, claim, completed, create, in_progress, key, load, write};
use crate::support::call_proxy::{CallProxy, Fate, RANGE};
use crate::support::etcd::EtcdProcess;

type Results = Vec<Result<Swapped, StoreError>>;

/// A store on an etcd of its own, whose requests can be counted.
async fn own(flags: &[&str]) -> (EtcdProcess, EtcdConfig, Arc<dyn RecordStore>) {
    let etcd = EtcdProcess::start_with(flags);
    let config = etcd.config();
    let store = open(&config).await;
    (etcd, config, store)
}

/// How many requests of the kv service etcd was sent while `work` ran.
async fn requests<T>(etcd: &EtcdProcess, work: impl Future<Output = T>) -> (u64, T) {
    const KV: &str = r#"grpc_service="etcdserverpb.KV""#;
    let before = etcd.requests(KV).await;
    let result = work.await;
    (etcd.requests(KV).await - before, result)
}

/// Swaps many keys at once, each expected to be absent.
async fn create_at_once(store: &Arc<dyn RecordStore>, keys: &[RecordKey], record: &Record) -> Results {
    join_all(keys.iter().map(|key| store.swap(key, Expected::Absent, Some(record)))).await
}

/// Writes records of 1 MiB, few at once: a slow disk takes long for many, and a write that waits for long is refused.
async fn create_large(store: &Arc<dyn RecordStore>, keys: &[RecordKey], record: &Record) {
    for some in keys.chunks(5) {
        all_done(&create_at_once(store, some, record).await);
    }
}

async fn load_at_once(store: &Arc<dyn RecordStore>, keys: &[RecordKey]) -> Vec<Loaded> {
    join_all(keys.iter().map(|key| load(store, key))).await
}

fn all_done(results: &Results) {
    for result in results {
        assert!(matches!(result, Ok(Swapped::Done(_))), "{result:?}");
    }
}

#[tokio::test]
async fn writes_at_once_share_transactions_and_a_lone_one_is_one() {
    let (etcd, _, store) = own(&[]).await;
    // Leases are at hand.
    create(&store, &key("first"), &long_claim()).await;
    let (lone, _) = requests(&etcd, create(&store, &key("lone"), &long_claim())).await;
    assert_eq!(lone, 1);
    let keys = keys(256);
    let (created, results) = requests(&etcd, create_at_once(&store, &keys, &long_claim())).await;
    all_done(&results);
    // One alone, two of a hundred, the rest; that is how many callers come while the first is on its way.
    assert!(created <= 5, "{created} requests for 256 writes");
    let (loaded, all) = requests(&etcd, load_at_once(&store, &keys)).await;
    // The records, and the sentinel of their one lease.
    assert!(loaded <= 12, "{loaded} requests for 256 loads");
    assert!(all.iter().all(|loaded| loaded.lock == Lock::Held));
}

#[tokio::test]
async fn those_that_lose_do_no_harm_to_their_neighbours() {
    let (etcd, _, store) = own(&[]).await;
    let keys = keys(100);
    let (taken, free): (Vec<_>, Vec<_>) =
        keys.iter().cloned().enumerate().partition(|(place, _)| place % 3 == 0);
    let taken: HashSet<RecordKey> = taken.into_iter().map(|(_, key)| key).collect();
    let theirs = completed("theirs", "done");
    join_all(taken.iter().map(|key| create(&store, key, &theirs))).await;
    let (sent, results) = requests(&etcd, create_at_once(&store, &keys, &long_claim())).await;
    for (key, result) in keys.iter().zip(&results) {
        match result {
            Ok(Swapped::Done(_)) => assert!(!taken.contains(key)),
            Ok(Swapped::Conflict(Some(current))) => {
                assert!(taken.contains(key));
                assert_eq!(*current, as_written(&theirs, current.revision));
            }
            other => panic!("{other:?}"),
        }
    }
    // One alone; the rest flat, and nested when it had lost.
    assert!(sent <= 4, "{sent} requests");
    assert_eq!(free.len(), 66);
    for (_, key) in free {
        assert_eq!(load(&store, &key).await.record.owner, long_claim().owner);
    }
}

#[tokio::test]
async fn a_key_that_is_written_again_and_again_at_once_is_written_in_order() {
    let store = open(&EtcdProcess::shared().config()).await;
    let first = create(&store, &key("k"), &long_claim()).await;
    let again = |owner: usize| {
        let store = Arc::clone(&store);
        async move { store.swap(&key("k"), Expected::At(first), Some(&claim(&owner.to_string()))).await }
    };
    let results = join_all((0..20).map(again)).await;
    let done = results.iter().filter(|result| matches!(result, Ok(Swapped::Done(_)))).count();
    let lost = results.iter().filter(|result| matches!(result, Ok(Swapped::Conflict(Some(_))))).count();
    assert_eq!((done, lost), (1, 19), "{results:?}");
}

/// A claim whose lock lease is of one of 45 lengths.
fn claim_of_another_length(place: usize) -> Record {
    let ttl = Duration::from_secs(60).mul_f64(1.09_f64.powi(i32::try_from(place % 45).unwrap()));
    Record { state: in_progress(ttl, OnLapse::TakeOver), ..claim("holder") }
}

/// etcd takes 128 compares in a transaction: a hundred of records leave 28 for the sentinels of leases.
#[tokio::test]
async fn locks_of_many_lengths_fit() {
    let store = open(&EtcdProcess::shared().config()).await;
    let keys = keys(300);
    let records: Vec<Record> = (0..keys.len()).map(claim_of_another_length).collect();
    // The leases first, so that the writes below are ready at the same time.
    join_all(records.iter().take(45).enumerate().map(|(place, record)| {
        let (store, key) = (Arc::clone(&store), key(&format!("lease{place}")));
        async move { create(&store, &key, record).await }
    }))
    .await;
    let writes = keys.iter().zip(&records).map(|(key, next)| store.swap(key, Expected::Absent, Some(next)));
    all_done(&join_all(writes).await);
}

/// etcd takes requests of 1.5 MiB.
#[tokio::test]
async fn large_writes_at_once_fit_and_so_do_those_just_small_enough_to_go_together() {
    let store = open(&EtcdProcess::shared().config()).await;
    for (name, count, bytes) in [("together", 40, 63 << 10), ("alone", 40, 65 << 10), ("largest", 5, 1 << 20)]
    {
        let keys: Vec<_> = (0..count).map(|i| key(&format!("{name}{i}"))).collect();
        all_done(&create_at_once(&store, &keys, &completed("holder", vec![1; bytes])).await);
    }
}

/// 60 MiB of them: each is decoded all the same, or what became of the writes that lost would be unknown.
#[tokio::test]
async fn losing_to_large_records_is_losing() {
    let (_etcd, _, store) = own(&[]).await;
    let keys = keys(60);
    let large = completed("theirs", vec![1; 1 << 20]);
    create_large(&store, &keys, &large).await;
    // The second time in smaller transactions.
    for _ in 0..2 {
        let mut left = keys.clone();
        while !left.is_empty() {
            let results = create_at_once(&store, &left, &long_claim()).await;
            let all = left.len();
            let mut results = results.into_iter();
            left.retain(|_| match results.next() {
                Some(Ok(Swapped::Conflict(Some(current)))) => {
                    assert_eq!(current, as_written(&large, current.revision));
                    false
                }
                // On a slow machine the last ones wait for too long, and are refused before they are sent.
                Some(Err(StoreError::NotApplied(_))) => true,
                other => panic!("{other:?}"),
            });
            assert!(left.len() < all, "none was sent");
        }
    }
}

#[tokio::test]
async fn large_records_are_loaded_each_by_itself_where_they_overflow_together() {
    let (etcd, _, store) = own(&[]).await;
    let (large, small) = (keys(20), key("small"));
    create_large(&store, &large, &completed("holder", vec![1; 1 << 20])).await;
    create(&store, &small, &completed("holder", "done")).await;
    let together: Vec<RecordKey> = large.iter().cloned().chain([small]).collect();
    let (sent, loaded) = requests(&etcd, load_at_once(&store, &together)).await;
    assert!(loaded.iter().all(|loaded| loaded.record.owner == "holder"));
    assert!(sent >= 20, "{sent} requests: nothing overflowed");
}

#[tokio::test]
async fn those_loaded_each_by_itself_do_not_wait_for_a_silent_etcd_in_turn() {
    let etcd = EtcdProcess::shared();
    let (proxy, beside) = (CallProxy::start(etcd.endpoint()).await, etcd.config());
    let large = keys(8);
    let record = completed("holder", vec![1; 1 << 20]);
    create_large(&open(&beside).await, &large, &record).await;
    let call_timeout = Duration::from_secs(2);
    let store = open(&EtcdConfig { endpoints: vec![proxy.endpoint()], call_timeout, ..beside }).await;
    proxy.spare_probes();
    proxy.plan(RANGE, 0, Fate::Swallow);
    let loads = join_all(large.iter().map(|key| store.load(key))).await;
    assert!(proxy.befallen().is_some(), "nothing overflowed");
    assert!(
        loads.iter().all(|load| matches!(load, Err(StoreError::NotApplied(_)))),
        "one was tried after it"
    );
}

#[tokio::test]
async fn a_retention_lease_that_is_gone_fails_none_of_those_that_hang_on_it() {
    let (_etcd, config, store) = own(&[]).await;
    create(&store, &key("first"), &long_claim()).await;
    revoke(&config, raw(&config, &key("first")).await.retention_lease).await;
    let keys = keys(100);
    all_done(&create_at_once(&store, &keys, &long_claim()).await);
    assert!(load_at_once(&store, &keys).await.iter().all(|loaded| loaded.lock == Lock::Held));
}

#[tokio::test]
async fn a_lock_lease_that_is_gone_costs_its_own_writes_another_try_and_others_nothing() {
    let (_etcd, config, store) = own(&[]).await;
    create(&store, &key("first"), &long_claim()).await;
    revoke(&config, raw(&config, &key("first")).await.lock_lease).await;
    let keys = keys(100);
    all_done(&create_at_once(&store, &keys, &long_claim()).await);
    assert!(load_at_once(&store, &keys).await.iter().all(|loaded| loaded.lock == Lock::Held));
}

/// An operator may have lowered the limit.
#[tokio::test]
async fn writes_that_etcd_refuses_together_are_sent_one_by_one() {
    let (_etcd, _, store) = own(&["--max-request-bytes", "100000"]).await;
    let keys = keys(50);
    all_done(&create_at_once(&store, &keys, &completed("holder", vec![1; 20_000])).await);
    // And the one that is too large by itself is refused, whatever is beside it.
    let (too_large, beside) = (completed("holder", vec![1; 60_000]), long_claim());
    let double = completed("holder", vec![1; 200_000]);
    let writes = keys.iter().enumerate().map(|(place, _)| {
        let next = match place {
            7 => &double,
            8 => &too_large,
            _ => &beside,
        };
        let (store, key) = (Arc::clone(&store), key(&format!("mixed{place}")));
        async move { store.swap(&key, Expected::Absent, Some(next)).await }
    });
    for (place, result) in join_all(writes).await.into_iter().enumerate() {
        match place {
            7 => assert!(matches!(result, Err(StoreError::NotApplied(_))), "{result:?}"),
            _ => assert!(matches!(result, Ok(Swapped::Done(_))), "{place}: {result:?}"),
        }
    }
}

/// An operator may have lowered that limit, too.
#[tokio::test]
async fn more_operations_than_etcd_takes_together_are_sent_one_by_one() {
    let (_etcd, _, store) = own(&["--max-txn-ops", "20"]).await;
    let keys = keys(100);
    all_done(&create_at_once(&store, &keys, &long_claim()).await);
    assert_eq!(load_at_once(&store, &keys).await.len(), 100);
}

/// A page asks for the sentinels of all its claims. Those of many lengths have one each.
#[tokio::test]
async fn a_page_with_more_leases_than_etcd_takes_operations_is_read_all_the_same() {
    let (_etcd, config, store) = own(&["--max-txn-ops", "20"]).await;
    let keys = keys(45);
    let records: Vec<Record> = (0..keys.len()).map(claim_of_another_length).collect();
    join_all(keys.iter().zip(&records).map(|(key, record)| create(&store, key, record))).await;
    let leases: HashSet<i64> =
        join_all(keys.iter().map(|key| raw(&config, key))).await.iter().map(|raw| raw.lock_lease).collect();
    assert!(leases.len() > 20, "{} leases", leases.len());
    revoke(&config, raw(&config, &keys[30]).await.lock_lease).await;
    // One that has not seen the sentinel go.
    let page = open(&config).await.scan(&keys[0].namespace, None, 100).await.unwrap();
    let lapsed = |loaded: &Loaded| loaded.lock == Lock::Lapsed;
    assert_eq!(page.records.len(), keys.len());
    for (key, loaded) in &page.records {
        assert_eq!(lapsed(loaded), *key == keys[30].key, "{key:?}");
    }
}

#[tokio::test]
async fn a_write_whose_caller_left_before_it_was_sent_never_happens() {
    let (etcd, _, store) = own(&[]).await;
    let last = create(&store, &key("first"), &long_claim()).await;
    etcd.freeze();
    let stuck = {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.swap(&key("first"), Expected::At(last), Some(&claim("next"))).await })
    };
    // It is on its way, so that the next ones wait for it.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (left, stays) = (claim("left"), long_claim());
    let (gone, kept) = (key("gone"), key("kept"));
    let leaving =
        tokio::time::timeout(Duration::from_millis(100), store.swap(&gone, Expected::Absent, Some(&left)));
    let staying = store.swap(&kept, Expected::Absent, Some(&stays));
    let thawing = async {
        assert!(leaving.await.is_err(), "it was answered by a frozen etcd");
        etcd.thaw();
    };
    let (kept_result, ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(staying, thawing) }).await.expect("an answer");
    assert!(matches!(kept_result, Ok(Swapped::Done(_))), "{kept_result:?}");
    let _ = stuck.await.unwrap();
    // What came after it is there, so that it would be, too.
    assert_eq!(store.load(&gone).await, Ok(None));
    write(&store, &gone, Expected::Absent, Some(&stays)).await;
}

#[tokio::test]
async fn many_records_more_than_a_transaction_takes_are_all_written() {
    let store = open(&EtcdProcess::shared().config()).await;
    let keys = keys(1_500);
    all_done(&create_at_once(&store, &keys, &long_claim()).await);
    create_all(&store, &[key("after")], &long_claim()).await;
}
