//! Several endpoints, of which some are dead, frozen or cut off.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use onced::record::RecordKey;
use onced::store::etcd::EtcdConfig;
use onced::store::{Expected, RecordStore, StoreError, Swapped};

use super::{hinted, keys, long_claim, open};
use crate::store::fixture::{PATIENCE, create, key, load, write};
use crate::support::etcd::{EtcdProcess, fresh_prefix};
use crate::support::proxy::Proxy;

/// Two ways to one etcd, and a store that may take either; the first one is taken first.
struct TwoWays {
    ways: [Proxy; 2],
    store: Arc<dyn RecordStore>,
    /// Past both.
    direct: Arc<dyn RecordStore>,
}

impl TwoWays {
    async fn open() -> Self {
        let etcd = EtcdProcess::shared();
        let ways = [Proxy::start(etcd.endpoint()).await, Proxy::start(etcd.endpoint()).await];
        let direct = etcd.config();
        let endpoints = ways.iter().map(Proxy::endpoint).collect();
        // Nobody is to wait for so long: an endpoint is given up before.
        let call_timeout = PATIENCE * 2;
        let store = open(&EtcdConfig { endpoints, call_timeout, ..direct.clone() }).await;
        // From now on leases are at hand: a swap is one call.
        create(&store, &key("before"), &long_claim()).await;
        Self { ways, store, direct: open(&direct).await }
    }
}

/// Swaps all these keys at once.
async fn swap_all(
    store: &Arc<dyn RecordStore>,
    keys: &[RecordKey],
    expected: Expected,
) -> Vec<Result<Swapped, StoreError>> {
    let next = long_claim();
    join_all(keys.iter().map(|key| store.swap(key, expected, Some(&next)))).await
}

fn done(swapped: &Result<Swapped, StoreError>) -> bool {
    matches!(swapped, Ok(Swapped::Done(_)))
}

/// An address that refuses connections.
fn refusing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test]
async fn with_a_dead_endpoint_no_call_fails() {
    let etcd = EtcdProcess::shared();
    for place in [0, 1] {
        let mut endpoints = vec![etcd.endpoint()];
        endpoints.insert(place, refusing());
        let store = open(&EtcdConfig::new(endpoints, fresh_prefix())).await;
        let keys = keys(50);
        let swapped = swap_all(&store, &keys, Expected::Absent).await;
        assert!(swapped.iter().all(done), "{swapped:?}");
        let loaded = join_all(keys.iter().map(|key| store.load(key))).await;
        assert!(loaded.iter().all(|loaded| matches!(loaded, Ok(Some(_)))), "{loaded:?}");
        let mut watch = store.watch(&keys[0]).await.unwrap();
        let revision = load(&store, &keys[0]).await.revision;
        let next = write(&store, &keys[0], Expected::At(revision), Some(&long_claim())).await;
        hinted(&mut watch, &store, &keys[0], |seen| seen.revision == next).await;
    }
}

#[tokio::test]
async fn a_store_opens_beside_a_frozen_endpoint() {
    let frozen = EtcdProcess::start();
    frozen.freeze();
    let endpoints = vec![frozen.endpoint(), EtcdProcess::shared().endpoint()];
    let store = open(&EtcdConfig::new(endpoints, fresh_prefix())).await;
    let swapped = swap_all(&store, &keys(50), Expected::Absent).await;
    assert!(swapped.iter().all(done), "{swapped:?}");
    assert!(store.watch(&key("k")).await.is_ok());
}

#[tokio::test]
async fn a_silent_endpoint_costs_reads_nothing_and_writes_one_unknown_outcome() {
    let two = TwoWays::open().await;
    let keys = keys(40);
    two.ways[0].mute();
    let (in_flight, later) = keys.split_at(20);
    let calls = async {
        tokio::join!(
            swap_all(&two.store, in_flight, Expected::Absent),
            join_all(in_flight.iter().map(|_| two.store.load(&keys[39])))
        )
    };
    let (swapped, loaded) = tokio::time::timeout(PATIENCE, calls).await.expect("nothing hangs");
    assert!(loaded.iter().all(|loaded| loaded == &Ok(None)), "{loaded:?}");
    // Sent again, they would have met themselves: a conflict.
    let unknown = |swapped: &_| matches!(swapped, Err(StoreError::OutcomeUnknown(_)));
    assert!(swapped.iter().all(unknown), "{swapped:?}");
    let landed = join_all(in_flight.iter().map(|key| two.direct.load(key))).await;
    assert!(landed.iter().all(|landed| matches!(landed, Ok(Some(_)))), "{landed:?}");
    // What is called now knows of it.
    let swapped = swap_all(&two.store, later, Expected::Absent).await;
    assert!(swapped.iter().all(done), "{swapped:?}");
}

#[tokio::test]
async fn reads_move_on_from_an_endpoint_that_breaks_and_writes_after_them() {
    let two = TwoWays::open().await;
    two.ways[0].close();
    assert_eq!(two.store.load(&key("k")).await, Ok(None));
    create(&two.store, &key("k"), &long_claim()).await;
}

#[tokio::test]
async fn an_idle_store_notices_a_silent_endpoint_and_one_that_is_well_again() {
    let two = TwoWays::open().await;
    let key = key("k");
    let mut revision = create(&two.store, &key, &long_claim()).await;
    let mut watch = two.store.watch(&key).await.unwrap();
    // HTTP/2's own keepalive would take longer to find out.
    const PROMPT: Duration = Duration::from_secs(12);
    for way in [0, 1, 0] {
        two.ways[1 - way].open();
        two.ways[way].mute();
        revision = write(&two.direct, &key, Expected::At(revision), Some(&long_claim())).await;
        let hint = hinted(&mut watch, &two.store, &key, |seen| seen.revision == revision);
        tokio::time::timeout(PROMPT, hint).await.expect("a hint by way of the other endpoint");
        revision = write(&two.store, &key, Expected::At(revision), Some(&long_claim())).await;
        hinted(&mut watch, &two.store, &key, |seen| seen.revision == revision).await;
    }
}
