//! Locks that an operator of etcd ends, who knows nothing of onced, while their holders are at work.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::block_in_place;

use super::callers::{World, call_on, read_all};
use crate::support::cluster::EtcdCluster;
use crate::support::onced::ServerProcess;
use crate::support::server::HANGS;

/// How many leases are ended. Locks share them, so each ends several.
const LEASES: usize = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_ended_from_outside_are_taken_over_and_their_holders_refused() {
    let etcd = block_in_place(EtcdCluster::start);
    let store = format!("etcd://{}/onced", etcd.endpoints().join(","));
    let processes = block_in_place(|| [(); 2].map(|()| ServerProcess::start(&store)));
    let servers = processes.each_ref().map(ServerProcess::address);
    let world = World::new();
    let calling = tokio::spawn(call_on(Arc::clone(&world), servers));
    let mut ended = 0;
    let ending = async {
        while ended < LEASES {
            ended += etcd.revoke_leases("onced/l/").await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(HANGS, ending).await.expect("there are locks");
    let healed = world.now();
    world.stop();
    calling.await.expect("no caller panicked");
    read_all(&world, servers).await;
    let totals = world.check(healed, true);
    println!("{ended} leases of locks revoked: {totals:?}");
    assert!(totals.takeovers > 0 && totals.refused > 0 && totals.outcomes > totals.keys, "{totals:?}");
}
