//! Opening a store: reaching etcd, and the format marker of the prefix.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, Txn, TxnOp, TxnOpResponse};

use super::EtcdConfig;
use super::client::{CallError, EtcdClient};
use super::dial::Dial;
use super::keyspace::Keyspace;
use crate::store::encoding::{STORE_FORMAT, check_format};

/// What the format marker says before the version.
const MARKER: &str = "onced format ";
/// How long to wait before etcd is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a store in etcd could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no endpoint, or one that is no address.
    #[error("cannot use the etcd endpoint {endpoint:?}: {why}; write it as host:port")]
    Endpoint {
        /// The endpoint as given.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// The prefix cannot be used.
    #[error("cannot use the etcd prefix {prefix:?}: {why}")]
    Prefix {
        /// The prefix as given.
        prefix: String,
        /// What is wrong with it.
        why: String,
    },
    /// etcd does not answer, or not as it should.
    #[error("no etcd answers at {endpoints} within {timeout:?}: {why}")]
    Unreachable {
        /// The endpoints.
        endpoints: String,
        /// How long it was tried.
        timeout: Duration,
        /// The last failure.
        why: String,
    },
    /// What lies below the prefix was not written by this version of onced, or not by onced at all.
    #[error("the etcd prefix {prefix:?} cannot be used by this onced: {why}")]
    Format {
        /// The prefix.
        prefix: String,
        /// What its marker says.
        why: String,
    },
}

impl OpenError {
    pub(super) fn unreachable(config: &EtcdConfig, why: String) -> Self {
        OpenError::Unreachable { endpoints: config.endpoints.join(", "), timeout: config.call_timeout, why }
    }
}

/// The keyspace of a store.
pub(super) fn keyspace(config: &EtcdConfig) -> Result<Keyspace, OpenError> {
    Keyspace::new(&config.prefix).map_err(|why| OpenError::Prefix { prefix: config.prefix.clone(), why })
}

/// A client that has reached etcd, and found its prefix to be ours or made it so.
pub(super) async fn client(config: &EtcdConfig, keyspace: &Keyspace) -> Result<EtcdClient, OpenError> {
    if config.endpoints.is_empty() {
        return Err(OpenError::Endpoint { endpoint: String::new(), why: "none is given".to_owned() });
    }
    for endpoint in &config.endpoints {
        check_endpoint(endpoint)?;
    }
    let dial = Dial { tls: config.tls.clone(), login: config.login.clone() };
    let client = EtcdClient::new(&config.endpoints, dial, config.call_timeout, keyspace.meta());
    // A client connects only when it is used, and one of several endpoints may be down: so read until it works.
    let mut why = String::new();
    let marker = tokio::time::timeout(config.call_timeout, async {
        loop {
            match marker(&client, keyspace).await {
                Ok(marker) => return marker,
                Err(error) => why = error.into_text(),
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
    match marker.await {
        Ok(marker) => check_marker(&marker)
            .map(|()| client)
            .map_err(|why| OpenError::Format { prefix: keyspace.prefix().to_owned(), why }),
        Err(_) if why.is_empty() => Err(OpenError::unreachable(config, "no answer".to_owned())),
        Err(_) => Err(OpenError::unreachable(config, why)),
    }
}

fn check_endpoint(endpoint: &str) -> Result<(), OpenError> {
    let error = |why: &str| OpenError::Endpoint { endpoint: endpoint.to_owned(), why: why.to_owned() };
    let authority: http::uri::Authority = endpoint.parse().map_err(|_| error("it is not an address"))?;
    if authority.as_str().contains('@') {
        return Err(error("it names a user"));
    }
    if authority.host().is_empty() {
        return Err(error("it names no host"));
    }
    if authority.port_u16().is_none() {
        return Err(error("it names no port"));
    }
    Ok(())
}

/// The format marker of the prefix, written if there is none. It is read first: a full etcd refuses all writes.
async fn marker(client: &EtcdClient, keyspace: &Keyspace) -> Result<Vec<u8>, CallError> {
    let name = keyspace.meta();
    if let Some(marker) = client.get(name.as_str(), None).await?.kvs().first() {
        return Ok(marker.value().to_vec());
    }
    let ours = format!("{MARKER}{STORE_FORMAT}");
    let txn = Txn::new()
        .when([Compare::create_revision(name.as_str(), CompareOp::Equal, 0)])
        .and_then([TxnOp::put(name.as_str(), ours.as_str(), None)])
        .or_else([TxnOp::get(name.as_str(), None)]);
    let answer = client.txn(txn).await?;
    let theirs = answer.op_responses().into_iter().find_map(|response| match response {
        TxnOpResponse::Get(mut read) => read.take_kvs().pop(),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    });
    Ok(theirs.map_or(ours.into_bytes(), |marker| marker.value().to_vec()))
}

fn check_marker(marker: &[u8]) -> Result<(), String> {
    let format = std::str::from_utf8(marker).ok().and_then(|text| text.strip_prefix(MARKER));
    match format.and_then(|format| format.parse().ok()) {
        Some(format) => check_format(format),
        None => Err("its marker was not written by onced; choose another prefix".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_and_port_make_an_endpoint() {
        for endpoint in ["localhost:2379", "10.0.0.1:2379", "[::1]:2379", "etcd-0.etcd:1"] {
            assert_eq!(check_endpoint(endpoint), Ok(()));
        }
        for endpoint in
            ["", "localhost", "localhost:", "http://localhost:2379", "a:1/b", "a b:1", "u@h:1", ":1"]
        {
            assert!(check_endpoint(endpoint).is_err(), "{endpoint:?}");
        }
    }

    #[test]
    fn a_marker_of_this_format_is_taken_and_every_other_refused() {
        assert_eq!(check_marker(format!("onced format {STORE_FORMAT}").as_bytes()), Ok(()));
        let newer = check_marker(format!("onced format {}", STORE_FORMAT + 1).as_bytes());
        assert!(newer.unwrap_err().contains("newer"));
        for marker in [&b""[..], b"onced format ", b"onced format x", b"onced format 0", b"\xff"] {
            assert!(check_marker(marker).is_err());
        }
    }
}
