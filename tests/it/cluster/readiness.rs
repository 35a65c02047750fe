//! Readiness of a server whose etcd changes its leader, and of one whose etcd is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use onced_client::{Begun, Client};
use tokio::task::block_in_place;

use crate::support::cluster::EtcdCluster;
use crate::support::http::{get, until};
use crate::support::onced::ServerProcess;

fn begin(key: &str) -> onced_client::v1::BeginRequest {
    onced_client::v1::BeginRequest {
        namespace: "test".to_owned(),
        key: key.to_owned(),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_change_leaves_it_and_the_loss_of_the_majority_takes_it() {
    let cluster = block_in_place(EtcdCluster::start);
    let config = cluster.config();
    let server = ServerProcess::start(&format!("etcd://{}/{}", config.endpoints.join(","), config.prefix));
    let admin = server.admin();
    until(admin, "/readyz", |page| page.status == 200).await;

    let over = Arc::new(AtomicBool::new(false));
    let probes = tokio::spawn({
        let over = Arc::clone(&over);
        async move {
            let mut statuses = Vec::new();
            while !over.load(Ordering::SeqCst) {
                statuses.push(get(admin, "/readyz").await.status);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            statuses
        }
    });
    let old = block_in_place(|| cluster.leader());
    cluster.kill(old);
    assert_ne!(block_in_place(|| cluster.leader()), old);
    let client = Client::connect(server.address().to_string()).unwrap();
    assert!(matches!(client.begin(begin("k")).await.unwrap(), Begun::Claim(_)));
    over.store(true, Ordering::SeqCst);
    let statuses = probes.await.unwrap();
    assert!(statuses.len() > 10 && statuses.iter().all(|status| *status == 200), "{statuses:?}");

    let second = block_in_place(|| cluster.leader());
    cluster.kill(second);
    let away = until(admin, "/readyz", |page| page.status == 503).await.json();
    assert_eq!(away["reason"], "store_away", "{away}");
    assert!(away["why"].as_str().unwrap().contains("has been away for 1"), "{away}");
    assert_eq!(get(admin, "/livez").await.status, 200);

    block_in_place(|| cluster.restart(second));
    until(admin, "/readyz", |page| page.status == 200).await;
}
