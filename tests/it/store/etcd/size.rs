//! An etcd that runs full, or that nobody compacts.

use std::time::Duration;

use onced::store::etcd::{EtcdConfig, SizeWatch};
use onced::store::{Expected, StoreError, Swapped};

use super::{client, long_claim, open};
use crate::store::fixture::{PATIENCE, completed, create, key, load, write};
use crate::support::etcd::EtcdProcess;
use crate::support::log::Log;

/// The quota of the etcds here, which those below 3.6 have to be told of.
const QUOTA: (&str, u64) = ("20000000", 20_000_000);

/// Looks often.
fn watched(etcd: &EtcdProcess, uncompacted_max: u64) -> EtcdConfig {
    let size = SizeWatch { quota_bytes: QUOTA.1, interval: Duration::from_millis(50), uncompacted_max };
    EtcdConfig { size, ..etcd.config() }
}

#[tokio::test]
async fn new_claims_are_refused_before_etcd_is_full_and_taken_again_when_it_has_room() {
    let etcd = EtcdProcess::start_with(&["--quota-backend-bytes", QUOTA.0]);
    let config = watched(&etcd, u64::MAX);
    let store = open(&config).await;
    let claimed = create(&store, &key("claimed"), &long_claim()).await;
    let mut outside = client(&config).await;
    let fill = async {
        for i in 0.. {
            outside.put(format!("theirs/{i}"), vec![7; 250_000], None).await.unwrap();
            let claimed = store.swap(&key(&format!("k{i}")), Expected::Absent, Some(&long_claim())).await;
            match claimed {
                Ok(Swapped::Done(_)) => {}
                // etcd's own word would be another.
                Err(StoreError::Full(why)) if why.contains("MiB of its quota") => return,
                other => panic!("{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, fill).await.expect("it is full");
    // Who holds a claim can still complete it.
    write(&store, &key("claimed"), Expected::At(claimed), Some(&completed("holder", vec![7; 100_000]))).await;
    let all = etcd_client::DeleteOptions::new().with_prefix();
    let deleted = outside.delete("theirs/", Some(all)).await.unwrap();
    let physical = etcd_client::CompactionOptions::new().with_physical();
    outside.compact(deleted.header().unwrap().revision(), Some(physical)).await.unwrap();
    outside.defragment().await.unwrap();
    let claim = async {
        while store.swap(&key("again"), Expected::Absent, Some(&long_claim())).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, claim).await.expect("there is room again");
}

#[tokio::test]
async fn growth_that_shows_that_nobody_compacts_is_warned_of() {
    let log = Log::start();
    let etcd =
        EtcdProcess::start_with(&["--quota-backend-bytes", QUOTA.0, "--auto-compaction-retention", "0"]);
    let store = open(&watched(&etcd, 10)).await;
    let mut revision = create(&store, &key("k"), &long_claim()).await;
    let grow = async {
        while log.lines_with(&["nobody compacts this etcd"]).is_empty() {
            let large = completed("holder", vec![7; 500_000]);
            revision = write(&store, &key("k"), Expected::At(revision), Some(&large)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, grow).await.expect("a warning");
    assert_eq!(load(&store, &key("k")).await.revision, revision);
}
