//! Who may open what.

use std::time::Duration;

use onced::clock::Clock;
use onced::store::Expected;
use onced::store::Swapped;
use onced::store::etcd::{EtcdConfig, EtcdStore, OpenError};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::{client, hinted, long_claim, open};
use crate::store::fixture::{create, key};
use crate::support::etcd::EtcdProcess;

#[tokio::test]
async fn stores_on_one_prefix_share_records_and_others_see_none_of_them() {
    let config = EtcdProcess::shared().config();
    let (one, other) = (open(&config).await, open(&config).await);
    let stranger = open(&EtcdProcess::shared().config()).await;
    let below = open(&EtcdConfig { prefix: format!("{}/below", config.prefix), ..config.clone() }).await;
    let mut watch = other.watch(&key("k")).await.unwrap();
    let revision = create(&one, &key("k"), &long_claim()).await;
    hinted(&mut watch, &other, &key("k"), |seen| seen.revision == revision).await;
    let swapped = other.swap(&key("k"), Expected::Absent, Some(&long_claim())).await;
    assert!(matches!(swapped, Ok(Swapped::Conflict(Some(seen))) if seen.revision == revision));
    for outside in [stranger, below] {
        assert_eq!(outside.load(&key("k")).await, Ok(None));
        assert!(outside.scan(&key("k").namespace, None, 10).await.unwrap().records.is_empty());
    }
}

#[tokio::test]
async fn a_prefix_of_a_newer_onced_or_of_somebody_else_is_refused() {
    let config = EtcdProcess::shared().config();
    for (marker, says) in [("onced format 999", "newer onced"), ("something else", "another prefix")] {
        client(&config).await.put(format!("{}/meta", config.prefix), marker, None).await.unwrap();
        let refused = refused(config.clone()).await;
        assert!(matches!(refused, OpenError::Format { .. }));
        let text = refused.to_string();
        assert!(text.contains(&config.prefix) && text.contains(says), "{text}");
    }
}

/// The error of a store that does not open.
pub async fn refused(config: EtcdConfig) -> OpenError {
    EtcdStore::connect(config, Clock::system()).await.err().expect("an error")
}

#[tokio::test]
async fn an_address_where_nothing_answers_is_named() {
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = nowhere.local_addr().unwrap().to_string();
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    for (endpoint, why) in [(silent, ""), (closed, "Connection refused")] {
        let mut config = EtcdConfig::new(vec![endpoint.clone()], "p");
        config.call_timeout = Duration::from_millis(300);
        let error = refused(config).await;
        assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains(&endpoint) && error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn an_address_where_something_else_answers_is_told_of() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    let config = EtcdConfig { call_timeout: Duration::from_secs(1), ..EtcdConfig::new(vec![endpoint], "p") };
    let error = refused(config).await.to_string();
    assert!(error.contains("not etcd's client port"), "{error}");
}
