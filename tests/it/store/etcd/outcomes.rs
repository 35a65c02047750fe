//! Outcomes that are in the memory of a server, while others end them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use onced::record::{OutcomeResult, RecordKey, State};
use onced::store::etcd::EtcdConfig;
use onced::store::{Expected, Loaded, RecordStore, Swapped};
use onced_client::v1::LookupRequest;

use super::{client, create_all, keys, open, raw, revoke};
use crate::store::fixture::{as_written, claim, completed, create, key, load, recall, write};
use crate::support::etcd::EtcdProcess;
use crate::support::proxy::Proxy;
use crate::support::rounds::rounds;
use crate::support::server::TestServer;

/// How often an outcome is replaced by another one while it is asked for.
const REPLACED: usize = 300;
/// How many ask at once, at each of two servers.
const ASKERS: usize = 8;

/// Two servers on one store: one that wrote these outcomes, and one that has read them.
async fn writer_and_reader(keys: &[RecordKey]) -> (EtcdConfig, [Arc<dyn RecordStore>; 2]) {
    let config = EtcdProcess::shared().config();
    let (writer, reader) = (open(&config).await, open(&config).await);
    create_all(&writer, keys, &completed("holder", "done")).await;
    join_all(keys.iter().map(|key| load(&reader, key))).await;
    assert_eq!(recalled(&reader, keys).await.len(), keys.len());
    (config, [writer, reader])
}

async fn recalled(store: &Arc<dyn RecordStore>, keys: &[RecordKey]) -> Vec<Loaded> {
    join_all(keys.iter().map(|key| recall(store, key))).await.into_iter().flatten().collect()
}

#[tokio::test]
async fn what_was_read_is_recalled_as_it_was() {
    let config = EtcdProcess::shared().config();
    let (writer, reader) = (open(&config).await, open(&config).await);
    let (outcome, large) = (completed("holder", "done"), completed("holder", vec![9; 64 << 10]));
    let revision = create(&writer, &key("k"), &outcome).await;
    assert!(reader.recall(&key("k")).is_none());
    load(&reader, &key("k")).await;
    assert_eq!(recall(&reader, &key("k")).await, Some(as_written(&outcome, revision)));
    // A swap that lost has read it, too.
    let lost = writer.swap(&key("k"), Expected::Absent, Some(&claim("late"))).await;
    assert!(matches!(lost, Ok(Swapped::Conflict(Some(_)))), "{lost:?}");
    assert_eq!(recall(&writer, &key("k")).await, Some(as_written(&outcome, revision)));
    for (name, record) in [("in progress", claim("holder")), ("large", large)] {
        create(&writer, &key(name), &record).await;
        load(&reader, &key(name)).await;
        assert!(reader.recall(&key(name)).is_none(), "{name}");
    }
}

#[tokio::test]
async fn those_asked_for_at_once_share_calls() {
    let etcd = EtcdProcess::start();
    let (store, keys) = (open(&etcd.config()).await, keys(600));
    create_all(&store, &keys, &completed("holder", "done")).await;
    join_all(keys.iter().map(|key| load(&store, key))).await;
    let asked = async || etcd.requests(r#"grpc_method="Txn""#).await;
    let before = asked().await;
    let twice = [&keys[..], &keys[..]].concat();
    assert_eq!(recalled(&store, &twice).await.len(), 1_200);
    let asked = asked().await - before;
    assert!((6..=13).contains(&asked), "{asked} calls");
}

/// What is asked for alike in one trip, its revision and all of it, is not taken for one another.
#[tokio::test]
async fn loads_and_checks_of_the_same_keys_at_once_get_what_they_ask_for() {
    let keys = keys(50);
    let (_, [_, reader]) = writer_and_reader(&keys).await;
    for _ in 0..20 {
        let both = async |key: &RecordKey| tokio::join!(load(&reader, key), recall(&reader, key));
        for (loaded, recalled) in join_all(keys.iter().map(both)).await {
            assert_eq!(recalled, Some(loaded));
        }
    }
}

/// A hundred outcomes of 60 kB are told again for less than the bytes of one.
#[tokio::test]
async fn etcd_does_not_send_again_what_is_in_memory() {
    let etcd = EtcdProcess::start();
    let (store, keys) = (open(&etcd.config()).await, keys(100));
    create_all(&store, &keys, &completed("holder", vec![9; 60_000])).await;
    join_all(keys.iter().map(|key| load(&store, key))).await;
    let before = etcd.sent_bytes().await;
    assert_eq!(recalled(&store, &keys).await.len(), 100);
    let sent = etcd.sent_bytes().await - before;
    assert!(sent < 60_000, "{sent} bytes");
}

#[tokio::test]
async fn what_has_ended_is_not_recalled_and_its_neighbours_are() {
    let keys = keys(4);
    let (config, [writer, reader]) = writer_and_reader(&keys).await;
    let [deleted, by_hand, reborn, left] = [&keys[0], &keys[1], &keys[2], &keys[3]];
    for key in [deleted, reborn] {
        let revision = load(&writer, key).await.revision;
        write(&writer, key, Expected::At(revision), None).await;
    }
    create(&writer, reborn, &completed("another", "done otherwise")).await;
    let name = format!("{}/r/{}/{}", config.prefix, by_hand.namespace.as_str(), by_hand.key.as_str());
    assert_eq!(client(&config).await.delete(name, None).await.unwrap().deleted(), 1);
    assert_eq!(recalled(&reader, &keys).await, [load(&writer, left).await]);
    // It is not even tried again.
    assert!(reader.recall(deleted).is_none());
    assert_eq!(load(&reader, reborn).await, load(&writer, reborn).await);
    assert_eq!(recall(&reader, reborn).await, Some(load(&writer, reborn).await));

    // Retention is over.
    let lease = raw(&config, left).await.retention_lease;
    revoke(&config, lease).await;
    assert_eq!(recall(&reader, left).await, None);
}

#[tokio::test]
async fn while_etcd_is_silent_a_key_in_memory_is_unavailable_as_any_other() {
    let direct = EtcdProcess::shared().config();
    let proxy = Proxy::start(direct.endpoints[0].clone()).await;
    let call_timeout = Duration::from_millis(500);
    let config = EtcdConfig { endpoints: vec![proxy.endpoint()], call_timeout, ..direct };
    let store = open(&config).await;
    create(&store, &key("k"), &completed("holder", "done")).await;
    let server = TestServer::start(store).await;
    let mut client = server.client().await;
    let RecordKey { namespace, key } = key("k");
    let request = LookupRequest {
        namespace: namespace.as_str().to_owned(),
        key: key.as_str().to_owned(),
        ..LookupRequest::default()
    };
    client.lookup(request.clone()).await.unwrap();
    proxy.mute();
    for _ in 0..2 {
        let refused = client.lookup(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
    }
    proxy.close();
    proxy.open();
    client.lookup(request).await.unwrap();
}

/// One server replaces an outcome by the next, which takes a deletion, and tells so; many ask two others for it all the
/// time, and are never told one that had been replaced when they asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_recalled_is_no_older_than_the_question() {
    let config = EtcdProcess::shared().config();
    let (writer, key) = (open(&config).await, key("k"));
    let replaced = Arc::new(AtomicU64::new(0));
    let mut askers = Vec::new();
    let readers = [open(&config).await, open(&config).await];
    for reader in readers.iter().cycle().take(readers.len() * ASKERS) {
        let (reader, key, replaced) = (Arc::clone(reader), key.clone(), Arc::clone(&replaced));
        askers.push(tokio::spawn(async move {
            let mut told = 0_u64;
            loop {
                let least = replaced.load(Ordering::SeqCst);
                if least == u64::MAX {
                    return told;
                }
                match recall(&reader, &key).await {
                    Some(loaded) => {
                        told += 1;
                        assert!(number(&loaded) > least, "{least} had been replaced");
                    }
                    None => drop(reader.load(&key).await.unwrap()),
                }
            }
        }));
    }
    for number in 1..=rounds(REPLACED) as u64 {
        let outcome = completed("holder", number.to_be_bytes().to_vec());
        let revision = create(&writer, &key, &outcome).await;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..10))).await;
        write(&writer, &key, Expected::At(revision), None).await;
        replaced.store(number, Ordering::SeqCst);
    }
    replaced.store(u64::MAX, Ordering::SeqCst);
    for asker in askers {
        assert!(asker.await.unwrap() > 0, "nothing was ever recalled");
    }
}

fn number(loaded: &Loaded) -> u64 {
    let State::Completed { outcome, .. } = &loaded.record.state else { panic!("{loaded:?}") };
    let OutcomeResult::Response(response) = &outcome.result else { panic!("{loaded:?}") };
    u64::from_be_bytes(response.as_ref().try_into().unwrap())
}
