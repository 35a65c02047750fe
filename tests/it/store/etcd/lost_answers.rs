//! Every call to etcd that an operation makes, one after the other, has its answer lost after etcd did what it
//! was asked. What the store then says has to be true, and nothing may hang.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{join, join_all};
use onced::clock::Clock;
use onced::record::{Lock, Record, RecordKey};
use onced::store::etcd::{EtcdConfig, EtcdStore, OpenError};
use onced::store::{Expected, Loaded, RecordStore, StoreError, Swapped};

use super::{keys, long_claim, open, raw, revoke};
use crate::store::fixture::{PATIENCE, completed, create, key, load};
use crate::support::call_proxy::{CallProxy, Fate, RANGE, TXN, WATCH};
use crate::support::etcd::EtcdProcess;

/// More calls than any operation makes.
const CALLS_MAX: usize = 64;
/// How many scenes are played at once.
const AT_ONCE: usize = 16;
/// Far longer than etcd takes to answer, also beside other tests: what times out is what was swallowed.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// A store behind a proxy, and another one beside it.
struct Stage {
    proxy: CallProxy,
    nth: usize,
    fate: Fate,
    store: Arc<dyn RecordStore>,
    direct: Arc<dyn RecordStore>,
    beside: EtcdConfig,
}

impl Stage {
    async fn new(nth: usize, fate: Fate) -> Self {
        let etcd = EtcdProcess::shared();
        let (proxy, beside) = (CallProxy::start(etcd.endpoint()).await, etcd.config());
        let call_timeout = CALL_TIMEOUT;
        let config = EtcdConfig { endpoints: vec![proxy.endpoint()], call_timeout, ..beside.clone() };
        let (store, direct) = (open(&config).await, open(&beside).await);
        proxy.spare_probes();
        Self { proxy, nth, fate, store, direct, beside }
    }

    /// From here on, the nth call meets its fate.
    fn arm(&self) {
        self.proxy.plan("", self.nth, self.fate.clone());
    }

    /// Swaps a record that nobody else writes, and holds the answer against what is there.
    async fn write(&self, key: &RecordKey, before: Option<Loaded>, next: Option<&Record>) -> Swap {
        let swapped = self.store.swap(key, Expected::of(before.as_ref()), next).await;
        let now = self.direct.load(key).await.unwrap();
        let is_next = |now: Option<&Loaded>| match (now, next) {
            (Some(now), Some(next)) => now.lock == Lock::Held && now.record.state == next.state,
            (now, next) => now.is_none() && next.is_none(),
        };
        match swapped {
            Ok(Swapped::Done(revision)) => {
                assert!(is_next(now.as_ref()), "done, and yet there is {now:?}");
                assert!(now.is_none_or(|now| now.revision == revision));
                Swap::Known
            }
            Err(StoreError::NotApplied(_)) => {
                assert_eq!(now, before);
                Swap::Known
            }
            Err(StoreError::OutcomeUnknown(_)) => {
                assert!(now == before || is_next(now.as_ref()), "there is {now:?}");
                Swap::Unknown
            }
            // It can have met nobody but itself, sent again.
            other => panic!("{other:?}"),
        }
    }
}

/// What a store said of a write, truly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Swap {
    Known,
    Unknown,
}

/// Plays a scene again and again, another call to etcd meeting its fate each time. Tells which did.
async fn at_every_call(scene: impl AsyncFn(&Stage)) -> BTreeSet<String> {
    let scene = &scene;
    let play = async |nth, fate| {
        let stage = Stage::new(nth, fate).await;
        tokio::time::timeout(PATIENCE, scene(&stage)).await.expect("the store answers");
        // What the store does by itself later is not counted.
        stage.proxy.forget_plan();
        let befallen = stage.proxy.befallen();
        if befallen.is_some() {
            recovers(&stage.store).await;
        }
        befallen
    };
    let mut befallen = BTreeSet::new();
    for fate in [Fate::LoseAnswer, Fate::Swallow] {
        // Some at once, since they mostly wait for what never comes.
        for first in (0..CALLS_MAX).step_by(AT_ONCE) {
            let calls = join_all((first..first + AT_ONCE).map(|nth| play(nth, fate.clone()))).await;
            let all = calls.iter().all(Option::is_some);
            befallen.extend(calls.into_iter().flatten());
            if !all {
                break;
            }
            assert!(first + AT_ONCE < CALLS_MAX, "there are more calls");
        }
    }
    befallen
}

async fn recovers(store: &Arc<dyn RecordStore>) {
    let again = key("after the fault");
    let tries = async {
        while !matches!(store.swap(&again, Expected::Absent, None).await, Ok(Swapped::Done(_))) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, tries).await.expect("the store serves again");
}

/// What a read says is so, or it says that it did not read.
#[track_caller]
fn assert_read<T: PartialEq + std::fmt::Debug>(read: Result<T, StoreError>, truth: &T) {
    match read {
        Ok(read) => assert_eq!(&read, truth),
        Err(StoreError::NotApplied(_)) => {}
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn of_first_writes_the_store_says_what_is_so() {
    let said = Mutex::new(BTreeSet::new());
    let befallen = at_every_call(async |stage| {
        stage.arm();
        // One alone, then some at once.
        let next = long_claim();
        let alone = stage.write(&key("alone"), None, Some(&next)).await;
        let some = keys(8);
        let at_once = join_all(some.iter().map(|key| stage.write(key, None, Some(&next)))).await;
        said.lock().unwrap().extend(at_once.into_iter().chain([alone]));
    })
    .await;
    assert!(
        befallen.contains(TXN) && befallen.iter().any(|call| call.contains("LeaseGrant")),
        "{befallen:?}"
    );
    assert_eq!(*said.lock().unwrap(), BTreeSet::from([Swap::Known, Swap::Unknown]));
}

#[tokio::test]
async fn of_later_writes_and_deletes_the_store_says_what_is_so() {
    at_every_call(async |stage| {
        create(&stage.store, &key("k"), &long_claim()).await;
        create(&stage.store, &key("other"), &long_claim()).await;
        let (before, other) =
            (load(&stage.direct, &key("k")).await, load(&stage.direct, &key("other")).await);
        let outcome = completed("holder", "done");
        stage.arm();
        join(
            stage.write(&key("k"), Some(before), Some(&outcome)),
            stage.write(&key("other"), Some(other), None),
        )
        .await;
        let now = stage.direct.load(&key("k")).await.unwrap();
        stage.write(&key("k"), now, Some(&long_claim())).await;
    })
    .await;
}

/// Some lose their race, among them to a claim whose lock has lapsed, and their neighbours do not.
#[tokio::test]
async fn of_conflicts_and_their_neighbours_the_store_says_what_is_so() {
    at_every_call(async |stage| {
        let (held, lapsed) = (key("held"), key("lapsed"));
        create(&stage.direct, &lapsed, &long_claim()).await;
        revoke(&stage.beside, raw(&stage.beside, &lapsed).await.lock_lease).await;
        create(&stage.direct, &held, &long_claim()).await;
        let truths = [load(&stage.direct, &held).await, load(&stage.direct, &lapsed).await];
        let (neighbours, next) = (keys(4), long_claim());
        stage.arm();
        let losers = [&held, &lapsed].map(|key| stage.store.swap(key, Expected::Absent, Some(&next)));
        let winners = neighbours.iter().map(|key| stage.write(key, None, Some(&next)));
        let (lost, _) = join(join_all(losers), join_all(winners)).await;
        for ((key, lost), truth) in [held, lapsed].iter().zip(lost).zip(truths) {
            match lost {
                Ok(Swapped::Conflict(current)) => assert_eq!(current, Some(truth.clone())),
                Err(StoreError::NotApplied(_) | StoreError::OutcomeUnknown(_)) => {}
                other => panic!("{other:?}"),
            }
            assert_eq!(load(&stage.direct, key).await, truth);
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_read_is_so() {
    let befallen = at_every_call(async |stage| {
        let keys = [key("held"), key("lapsed"), key("done"), key("absent")];
        create(&stage.direct, &keys[1], &long_claim()).await;
        revoke(&stage.beside, raw(&stage.beside, &keys[1]).await.lock_lease).await;
        create(&stage.direct, &keys[0], &long_claim()).await;
        create(&stage.direct, &keys[2], &completed("holder", "done")).await;
        let truths = join_all(keys.iter().map(|key| stage.direct.load(key))).await;
        let page = stage.direct.scan(&keys[0].namespace, None, 10).await.unwrap().records;
        assert_eq!(page.len(), 3);
        stage.arm();
        for (key, truth) in keys.iter().zip(&truths) {
            assert_read(stage.store.load(key).await, truth.as_ref().unwrap());
        }
        let at_once = join_all(keys.iter().chain(&keys).map(|key| stage.store.load(key))).await;
        for (read, truth) in at_once.into_iter().zip(truths.iter().chain(&truths)) {
            assert_read(read, truth.as_ref().unwrap());
        }
        assert_read(stage.store.scan(&keys[0].namespace, None, 10).await.map(|page| page.records), &page);
    })
    .await;
    assert!(befallen.contains(RANGE), "{befallen:?}");
}

#[tokio::test]
async fn a_watch_is_refused_or_hints() {
    let befallen = at_every_call(async |stage| {
        stage.arm();
        let begun = stage.store.watch(&key("k")).await;
        create(&stage.direct, &key("k"), &long_claim()).await;
        match begun {
            Ok(mut watch) => watch.changed().await,
            Err(StoreError::NotApplied(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
    })
    .await;
    assert_eq!(befallen, BTreeSet::from([WATCH.to_owned()]));
}

#[tokio::test]
async fn a_store_opens_or_says_that_it_did_not() {
    let etcd = EtcdProcess::shared();
    let play = async |nth, fate| {
        let proxy = CallProxy::start(etcd.endpoint()).await;
        let call_timeout = CALL_TIMEOUT;
        let config = EtcdConfig { endpoints: vec![proxy.endpoint()], call_timeout, ..etcd.config() };
        proxy.plan("", nth, fate);
        let opening = EtcdStore::connect(config.clone(), Clock::system());
        let store: Arc<dyn RecordStore> =
            match tokio::time::timeout(PATIENCE, opening).await.expect("it ends") {
                Ok(store) => Arc::new(store),
                Err(OpenError::Unreachable { .. }) => open(&config).await,
                Err(other) => panic!("{other}"),
            };
        proxy.forget_plan();
        recovers(&store).await;
        proxy.befallen()
    };
    for fate in [Fate::LoseAnswer, Fate::Swallow] {
        let calls = join_all((0..AT_ONCE).map(|nth| play(nth, fate.clone()))).await;
        assert!(calls[0].is_some() && calls[AT_ONCE - 1].is_none(), "{calls:?}");
    }
}
