//! A store stays in the etcd that it was opened in: another one, or the same one with its data lost, is refused.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{DeleteOptions, GetOptions};
use futures_util::future::join_all;
use onced::store::etcd::{EtcdConfig, OpenError};
use onced::store::{Expected, RecordStore, StoreError, Swapped};

use super::opening::refused;
use super::{client, keys, long_claim, open};
use crate::store::fixture::{PATIENCE, create, key};
use crate::support::etcd::{EtcdProcess, fresh_prefix};
use crate::support::proxy::Proxy;

/// Tries to claim the key, again and again, until the error says this.
async fn refuses_to_claim(store: &Arc<dyn RecordStore>, says: &str) {
    let mut last = String::new();
    let refused = async {
        loop {
            match store.swap(&key("k"), Expected::Absent, Some(&long_claim())).await {
                Ok(swapped) => panic!("it went to another store: {swapped:?}"),
                Err(StoreError::NotApplied(why) | StoreError::OutcomeUnknown(why)) if why.contains(says) => {
                    return;
                }
                // Nothing answers, or not yet.
                Err(StoreError::NotApplied(why) | StoreError::OutcomeUnknown(why)) => last = why,
                Err(error) => panic!("another error: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let refused = tokio::time::timeout(PATIENCE, refused).await;
    assert!(refused.is_ok(), "it goes on to say: {last}");
}

async fn removes_all(config: &EtcdConfig) {
    let below = DeleteOptions::new().with_prefix();
    client(config).await.delete(format!("{}/", config.prefix), Some(below)).await.unwrap();
}

#[tokio::test]
async fn endpoints_of_two_clusters_are_refused() {
    let (one, other) = (EtcdProcess::shared(), EtcdProcess::start());
    let endpoints = vec![one.endpoint(), other.endpoint()];
    let error = refused(EtcdConfig::new(endpoints, fresh_prefix())).await;
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    let text = error.to_string();
    for says in [&one.endpoint(), &other.endpoint(), "another cluster"] {
        assert!(text.contains(says), "{text}");
    }
}

#[tokio::test]
async fn no_call_fails_over_to_another_cluster() {
    let (etcd, other) = (EtcdProcess::start(), EtcdProcess::start());
    let elsewhere = Proxy::start(other.endpoint()).await;
    // It is not there when the store is opened.
    elsewhere.close();
    let endpoints = vec![etcd.endpoint(), elsewhere.endpoint()];
    let store = open(&EtcdConfig::new(endpoints, fresh_prefix())).await;
    create(&store, &key("k"), &long_claim()).await;
    etcd.kill();
    elsewhere.open();
    refuses_to_claim(&store, "another cluster").await;
    etcd.restart();
    let back = async {
        while store.load(&key("k")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.expect("the store is found again");
    assert!(store.load(&key("k")).await.unwrap().is_some());
}

/// The marker of a store, as a backup brings it to another etcd.
async fn copy_marker(from: &EtcdConfig, to: &EtcdProcess) {
    let name = format!("{}/meta", from.prefix);
    let marker = client(from).await.get(name.as_str(), None).await.unwrap().kvs()[0].value().to_vec();
    client(&EtcdConfig::new(vec![to.endpoint()], from.prefix.clone()))
        .await
        .put(name.as_str(), marker, None)
        .await
        .unwrap();
}

#[tokio::test]
async fn members_that_were_each_restored_by_itself_are_refused() {
    let [one, other] = EtcdProcess::start_clones();
    let elsewhere = Proxy::start(other.endpoint()).await;
    elsewhere.close();
    let prefix = fresh_prefix();
    let store = open(&EtcdConfig::new(vec![one.endpoint(), elsewhere.endpoint()], prefix.clone())).await;
    create(&store, &key("held"), &long_claim()).await;
    copy_marker(&EtcdConfig::new(vec![one.endpoint()], prefix.clone()), &other).await;
    // Its revision is ahead, as that of a restored one may be.
    let mut ahead = client(&EtcdConfig::new(vec![other.endpoint()], prefix.clone())).await;
    for _ in 0..100 {
        ahead.put("elsewhere", "", None).await.unwrap();
    }
    elsewhere.open();
    let says = "say that they are the same member";
    // Until then, whichever answers is taken for the store, and the one that is behind for one that lost its data.
    let noticed = async {
        while !store.load(&key("held")).await.is_err_and(|error| error.to_string().contains(says)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, noticed).await.expect("nobody can tell which of them is the store");
    refuses_to_claim(&store, says).await;

    for endpoints in [[one.endpoint(), other.endpoint()], [other.endpoint(), one.endpoint()]] {
        let error = refused(EtcdConfig::new(endpoints.to_vec(), prefix.clone())).await;
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
        for says in [endpoints[0].as_str(), &endpoints[1], "each by itself", "docs/etcd.md"] {
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}

#[tokio::test]
async fn one_member_may_have_several_names() {
    let etcd = EtcdProcess::start();
    let names = vec![etcd.endpoint(), etcd.endpoint_by_name()];
    let store = open(&EtcdConfig::new(names, fresh_prefix())).await;
    create(&store, &key("k"), &long_claim()).await;
    let asked = async {
        while etcd.requests("grpc_method=\"LeaseTimeToLive\"").await < 3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("it is asked who they are");
    create(&store, &key("other"), &long_claim()).await;
}

#[tokio::test]
async fn an_etcd_that_lost_its_data_is_noticed() {
    let etcd = EtcdProcess::start();
    let config = etcd.config();
    let store = open(&config).await;
    create(&store, &key("k"), &long_claim()).await;
    etcd.kill();
    etcd.wipe();
    // The same name and ports: its cluster is called the same.
    etcd.restart();
    refuses_to_claim(&store, "does not have the store that was opened").await;
    // Others may begin anew there; who knew the old one still does not mistake it for that.
    let anew = open(&config).await;
    let claimed = anew.swap(&key("k"), Expected::Absent, Some(&long_claim())).await;
    assert!(matches!(claimed, Ok(Swapped::Done(_))));
    for _ in 0..300 {
        create(&anew, &key("other"), &long_claim()).await;
        let gone = anew.load(&key("other")).await.unwrap().unwrap().revision;
        anew.swap(&key("other"), Expected::At(gone), None).await.unwrap();
    }
    refuses_to_claim(&store, "restart onced").await;
}

#[tokio::test]
async fn a_prefix_that_is_removed_is_noticed_and_so_is_its_return() {
    let config = EtcdProcess::shared().config();
    let store = open(&config).await;
    let name = format!("{}/meta", config.prefix);
    let marker = client(&config).await.get(name.as_str(), None).await.unwrap().kvs()[0].value().to_vec();
    removes_all(&config).await;
    // At once, whether it goes alone or with others.
    let claims =
        keys(50).into_iter().map(async |key| store.swap(&key, Expected::Absent, Some(&long_claim())).await);
    let mut claims = join_all(claims).await;
    claims.push(store.swap(&key("k"), Expected::Absent, Some(&long_claim())).await);
    for claimed in claims {
        assert!(matches!(claimed, Err(StoreError::NotApplied(_))), "{claimed:?}");
    }
    // Nothing is in the way of whoever begins anew.
    let all = GetOptions::new().with_prefix().with_count_only();
    let below = client(&config).await.get(format!("{}/r/", config.prefix), Some(all)).await.unwrap();
    assert_eq!(below.count(), 0);
    let noticed = async {
        while store.load(&key("k")).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, noticed).await.expect("that it is gone is noticed");
    refuses_to_claim(&store, "is gone").await;
    client(&config).await.put(name.as_str(), marker, None).await.unwrap();
    let back = async {
        while store.load(&key("k")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.expect("the store is found again");
    create(&store, &key("k"), &long_claim()).await;
}

#[tokio::test]
async fn records_without_a_marker_are_not_taken_over() {
    let config = EtcdProcess::shared().config();
    client(&config).await.put(format!("{}/r/ns/k", config.prefix), "", None).await.unwrap();
    let error = refused(config.clone()).await;
    assert!(matches!(error, OpenError::Format { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("{}/meta", config.prefix)) && !text.contains("ns/k"), "{text}");
    removes_all(&config).await;
    open(&config).await;
}
