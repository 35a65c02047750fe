//! Leases that somebody else revokes.

use std::time::Duration;

use futures_util::future::join_all;
use onced::record::{Lock, OnLapse, Record, RecordKey};
use onced::store::Expected;

use super::{hinted, keys, long_claim, open, raw, revoke};
use crate::store::fixture::{claim, create, in_progress, key, load, write};
use crate::support::etcd::EtcdProcess;

/// What hung on it is gone with it, which is the doing of who revoked it. What is written next is not, and nor
/// are its neighbours in the same batch, which hang on another lease.
#[tokio::test]
async fn a_retention_lease_that_is_gone_fails_no_write_and_takes_no_neighbour() {
    let config = EtcdProcess::shared().config();
    let store = open(&config).await;
    let short = long_claim();
    let long = Record { retention: Duration::from_secs(86_400), ..long_claim() };
    let before = [key("short"), key("long")];
    let kept = create(&store, &before[1], &long).await;
    create(&store, &before[0], &short).await;
    let gone = raw(&config, &before[0]).await.retention_lease;
    assert_ne!(raw(&config, &before[1]).await.retention_lease, gone);
    revoke(&config, gone).await;
    assert_eq!(store.load(&before[0]).await, Ok(None));
    let all: Vec<RecordKey> = keys(40);
    let writes = all.iter().enumerate().map(|(i, key)| {
        let next = if i % 2 == 0 { &short } else { &long };
        create(&store, key, next)
    });
    join_all(writes).await;
    for key in &all {
        assert_ne!(raw(&config, key).await.retention_lease, gone);
        assert_eq!(load(&store, key).await.lock, Lock::Held);
    }
    assert_eq!(load(&store, &before[1]).await.revision, kept);
}

#[tokio::test]
async fn a_lock_lease_that_is_gone_is_a_lapse_of_its_claims_alone() {
    let config = EtcdProcess::shared().config();
    let (one, other) = (open(&config).await, open(&config).await);
    let hour =
        Record { state: in_progress(Duration::from_secs(3_600), OnLapse::TakeOver), ..claim("holder") };
    let revision = create(&one, &key("lapses"), &long_claim()).await;
    create(&one, &key("holds"), &hour).await;
    let mut watch = other.watch(&key("lapses")).await.unwrap();
    assert_eq!(load(&other, &key("lapses")).await.lock, Lock::Held);
    revoke(&config, raw(&config, &key("lapses")).await.lock_lease).await;
    hinted(&mut watch, &other, &key("lapses"), |seen| seen.lock == Lock::Lapsed).await;
    assert_eq!(load(&one, &key("holds")).await.lock, Lock::Held);
    // A takeover and a renewal, by the store that had the lease at hand and by the other.
    let heir = Record { attempt: 2, ..long_claim() };
    let taken = write(&other, &key("lapses"), Expected::At(revision), Some(&heir)).await;
    write(&one, &key("lapses"), Expected::At(taken), Some(&heir)).await;
    assert_eq!(load(&other, &key("lapses")).await.lock, Lock::Held);
}
