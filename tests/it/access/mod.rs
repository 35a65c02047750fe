//! Who may call: TLS on both sides, tokens, and rules.

mod callers;
mod changes;
mod commands;
mod files;
mod half_open;
mod log;
mod metrics;
mod roles;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;

use onced::access::{ClientAuth, Unusable};
use onced::server::{Config, Limits};
use onced_client::v1::LookupRequest;
use onced_client::{Client, ClientBuilder, Error, ErrorReason};

use crate::support::certificates::Certificates;
use crate::support::server::{HANGS, TestServer};
use crate::support::stores::Controlled;

/// A server that speaks TLS with a certificate of this CA.
fn speaking_tls(certificates: &Certificates) -> Config {
    let (cert, key) = certificates.identity("server");
    let mut config = Config::default();
    (config.tls.cert, config.tls.key) = (Some(cert), Some(key));
    config
}

/// Has a server take settings, and what their files hold: which it could not use.
fn reloaded(server: &TestServer, config: &Config) -> Vec<Unusable> {
    server.live().set_settings(config);
    server.live().renew_access().unwrap_or_default()
}

fn reload(server: &TestServer, config: &Config) {
    assert_eq!(reloaded(server, config), []);
}

async fn start(config: Config) -> TestServer {
    TestServer::start_with(Controlled::in_memory(), config).await
}

/// A client that would go on trying far longer than any test runs.
fn client(server: &TestServer, scheme: &str) -> ClientBuilder {
    Client::builder(format!("{scheme}{}", server.address())).timeout(HANGS * 100)
}

/// Makes a call that is answered, if it comes through.
async fn call(client: ClientBuilder) -> Result<(), Error> {
    let client = client.build().unwrap();
    let lookup = LookupRequest { namespace: "n".to_owned(), key: "k".to_owned(), wait: None };
    let looked_up = tokio::time::timeout(HANGS, client.lookup(lookup)).await.expect("it goes on trying");
    match looked_up {
        Err(error) if error.reason() == Some(ErrorReason::RecordNotFound) => Ok(()),
        Err(error) => Err(error),
        Ok(record) => panic!("there is a record: {record:?}"),
    }
}
