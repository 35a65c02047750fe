//! Writes that land late, when their caller has long been told that their outcome is unknown.

use std::sync::Arc;

use etcd_client::GetOptions;
use futures_util::future::join_all;
use onced::record::{Record, RecordKey};
use onced::store::etcd::EtcdConfig;
use onced::store::{Expected, RecordStore, StoreError, Swapped};

use super::{client, keys, long_claim, open, revoke};
use crate::store::fixture::{PATIENCE, claim, completed, create, key, load, write};
use crate::support::call_proxy::{CallProxy, Fate, TXN};
use crate::support::etcd::EtcdProcess;
use crate::support::faulty::Gate;

/// A store whose next transaction is held back, once it has leases at hand, and another beside it.
struct Held {
    proxy: CallProxy,
    gate: Gate,
    store: Arc<dyn RecordStore>,
    direct: Arc<dyn RecordStore>,
    beside: EtcdConfig,
}

impl Held {
    async fn new() -> Self {
        let etcd = EtcdProcess::shared();
        let (proxy, beside) = (CallProxy::start(etcd.endpoint()).await, etcd.config());
        let config = EtcdConfig { endpoints: vec![proxy.endpoint()], ..beside.clone() };
        let (store, direct) = (open(&config).await, open(&beside).await);
        create(&store, &key("before"), &long_claim()).await;
        Self { proxy, gate: Gate::new(), store, direct, beside }
    }

    /// Sends writes of one batch, and tells what is known of them while they are held back.
    async fn send(&self, writes: &[(RecordKey, Expected)], next: Option<&Record>) {
        self.proxy.plan(TXN, 0, Fate::LandLate(self.gate.clone()));
        let swaps = writes.iter().map(|(key, expected)| self.store.swap(key, *expected, next));
        let swaps = tokio::time::timeout(PATIENCE, join_all(swaps)).await.expect("answers");
        let unknown = swaps.iter().filter(|it| matches!(it, Err(StoreError::OutcomeUnknown(_)))).count();
        let others = swaps.iter().all(|it| matches!(it, Err(_) | Ok(Swapped::Done(_))));
        assert!(unknown > 0 && others, "{swaps:?}");
        self.gate.reached().await;
    }

    async fn let_land(&self) {
        self.gate.open();
        tokio::time::timeout(PATIENCE, self.proxy.landed()).await.expect("it lands");
    }
}

#[tokio::test]
async fn a_first_write_that_lands_late_overwrites_nothing() {
    let held = Held::new().await;
    let writes: Vec<_> = keys(10).into_iter().map(|key| (key, Expected::Absent)).collect();
    held.send(&writes, Some(&long_claim())).await;
    let mut taken = Vec::new();
    for (key, _) in &writes {
        let current = held.direct.load(key).await.unwrap();
        write(&held.direct, key, Expected::of(current.as_ref()), Some(&claim("heir"))).await;
        taken.push(load(&held.direct, key).await);
    }
    held.let_land().await;
    for ((key, _), taken) in writes.iter().zip(taken) {
        let now = load(&held.direct, key).await;
        assert_eq!((now.revision, &now.record.owner[..]), (taken.revision, "heir"));
    }
}

#[tokio::test]
async fn an_outcome_a_renewal_or_a_delete_that_lands_late_overwrites_nothing() {
    let held = Held::new().await;
    for next in [Some(completed("late", "late")), Some(long_claim()), None] {
        let key = key(&format!("k{next:?}"));
        let revision = create(&held.direct, &key, &long_claim()).await;
        held.send(&[(key.clone(), Expected::At(revision))], next.as_ref()).await;
        let taken = write(&held.direct, &key, Expected::At(revision), Some(&claim("heir"))).await;
        held.let_land().await;
        let now = load(&held.direct, &key).await;
        assert_eq!((now.revision, &now.record.owner[..]), (taken, "heir"));
    }
}

/// Nobody else wrote, and still it is too late: the lock that it would arm has ended already.
#[tokio::test]
async fn an_arming_write_that_lands_after_its_locks_lease_ended_does_not_apply() {
    let held = Held::new().await;
    let revision = create(&held.direct, &key("renewed"), &long_claim()).await;
    for (key, expected) in [(key("new"), Expected::Absent), (key("renewed"), Expected::At(revision))] {
        let before = held.direct.load(&key).await.unwrap().map(|it| it.revision);
        held.send(&[(key.clone(), expected)], Some(&long_claim())).await;
        let below = Some(GetOptions::new().with_prefix());
        let sentinels = client(&held.beside).await.get(format!("{}/l/", held.beside.prefix), below).await;
        for sentinel in sentinels.unwrap().kvs() {
            revoke(&held.beside, sentinel.lease()).await;
        }
        held.let_land().await;
        assert_eq!(held.direct.load(&key).await.unwrap().map(|it| it.revision), before);
        // Leases at hand again.
        create(&held.store, &super::key_in("again", &format!("{expected:?}")), &long_claim()).await;
    }
}
