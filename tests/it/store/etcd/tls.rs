//! An etcd that speaks TLS and wants certificates.

use std::path::PathBuf;
use std::time::Duration;

use onced::store::etcd::{EtcdConfig, EtcdTls, OpenError};

use super::opening::refused;
use super::{hinted, long_claim, open};
use crate::store::fixture::{create, key};
use crate::support::certificates::Certificates;
use crate::support::etcd::{EtcdProcess, fresh_prefix};

/// An etcd for `localhost` that takes those whom the same CA signed.
fn start(certificates: &Certificates) -> EtcdProcess {
    certificates.sign("server", &["localhost"]);
    certificates.sign("client", &["onced"]);
    let path = |name: &str| certificates.path(name).to_str().unwrap().to_owned();
    EtcdProcess::start_with(&[
        "--cert-file",
        &path("server.crt"),
        "--key-file",
        &path("server.key"),
        "--trusted-ca-file",
        &path("ca.crt"),
        "--client-cert-auth",
    ])
}

#[tokio::test]
async fn a_store_works_by_tls_with_a_client_certificate() {
    let certificates = Certificates::new();
    let etcd = start(&certificates);
    let tls = EtcdTls { ca: Some(certificates.ca()), identity: Some(certificates.identity("client")) };
    let config =
        EtcdConfig { tls: Some(tls), ..EtcdConfig::new(vec![etcd.endpoint_by_name()], fresh_prefix()) };
    let store = open(&config).await;
    let mut watch = store.watch(&key("k")).await.unwrap();
    let revision = create(&store, &key("k"), &long_claim()).await;
    hinted(&mut watch, &store, &key("k"), |seen| seen.revision == revision).await;
}

#[tokio::test]
async fn what_is_wrong_with_tls_is_told_with_what_to_do() {
    let (certificates, other) = (Certificates::new(), Certificates::new());
    let etcd = start(&certificates);
    other.sign("client", &["onced"]);
    let plain = EtcdProcess::shared().endpoint();
    let (ca, identity) = (Some(certificates.ca()), Some(certificates.identity("client")));
    let tls = |ca: &Option<PathBuf>, identity| Some(EtcdTls { ca: ca.clone(), identity });
    let by_name = etcd.endpoint_by_name();
    for (endpoint, tls, do_this) in [
        (&by_name, None, "write etcds://"),
        (&plain, tls(&ca, identity.clone()), "write etcd://"),
        (&by_name, tls(&Some(other.ca()), identity.clone()), "--etcd-ca"),
        (&by_name, tls(&ca, None), "--etcd-cert"),
        (&by_name, tls(&ca, Some(other.identity("client"))), "--etcd-cert"),
        (&etcd.endpoint(), tls(&ca, identity.clone()), "for other names"),
    ] {
        let mut config = EtcdConfig { tls, ..EtcdConfig::new(vec![endpoint.clone()], fresh_prefix()) };
        config.call_timeout = Duration::from_millis(500);
        let error = refused(config).await;
        assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(endpoint) && text.contains(do_this), "{do_this}: {text}");
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let certificates = Certificates::new();
    certificates.sign("client", &["onced"]);
    let empty = certificates.path("empty");
    std::fs::write(&empty, "").unwrap();
    let (ca, (certificate, key)) = (Some(certificates.ca()), certificates.identity("client"));
    let missing = certificates.path("missing");
    let tls = |ca, identity| EtcdTls { ca, identity };
    for (tls, named) in [
        (tls(Some(missing.clone()), None), &missing),
        (tls(Some(empty.clone()), None), &empty),
        (tls(ca.clone(), Some((key.clone(), key.clone()))), &key),
        (tls(ca.clone(), Some((certificate.clone(), certificate.clone()))), &certificate),
    ] {
        let config = EtcdConfig { tls: Some(tls), ..EtcdConfig::new(vec!["localhost:1".to_owned()], "p") };
        let error = refused(config).await;
        assert!(matches!(&error, OpenError::Tls(why) if why.contains(named.to_str().unwrap())), "{error}");
    }
}
