//! Opening a store: reaching etcd, being let in, its version, and the format marker of the prefix.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, Txn, TxnOp, TxnOpResponse};

use super::EtcdConfig;
use super::call_error::CallError;
use super::client::EtcdClient;
use super::dial::Dial;
use super::keyspace::Keyspace;
use super::write::Home;
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
    #[error("no etcd answers at {endpoints} within {timeout:?}: {why}{hint}")]
    Unreachable {
        /// The endpoints.
        endpoints: String,
        /// How long it was tried.
        timeout: Duration,
        /// The last failure.
        why: String,
        /// What to try.
        hint: &'static str,
    },
    /// What TLS is to stand on cannot be used.
    #[error("cannot use TLS to etcd: {0}")]
    Tls(String),
    /// etcd answers, and refuses what a store has to do.
    #[error("the etcd at {endpoints} does not let onced use the prefix {prefix:?}: {why}")]
    Refused {
        /// The endpoints.
        endpoints: String,
        /// The prefix.
        prefix: String,
        /// What etcd says, and what to do.
        why: String,
    },
    /// A member runs a version that loses data.
    #[error(
        "the etcd at {endpoint} is version {version}, which can lose acknowledged writes (all of 3.5.0 to 3.5.2 \
         can): upgrade it to the last 3.5 release, or a later one"
    )]
    Version {
        /// The member.
        endpoint: String,
        /// Its version.
        version: String,
    },
    /// The endpoints are not those of one cluster.
    #[error("the etcd endpoints {endpoints} are not of one cluster: {why}; name the members of one")]
    Foreign {
        /// The endpoints.
        endpoints: String,
        /// What shows it.
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
        let hint = hint_unreachable(&why, config.tls.is_some());
        OpenError::Unreachable {
            endpoints: config.endpoints.join(", "),
            timeout: config.call_timeout,
            why,
            hint,
        }
    }

    fn refused(config: &EtcdConfig, why: String) -> Self {
        OpenError::Refused { endpoints: config.endpoints.join(", "), prefix: config.prefix.clone(), why }
    }
}

/// What to try when a connection fails like this.
fn hint_unreachable(why: &str, tls: bool) -> &'static str {
    let has = |text: &str| why.contains(text);
    if has("UnknownIssuer") || has("BadSignature") {
        "; its certificate is signed by nobody who is trusted here: name its CA with --etcd-ca"
    } else if has("not valid for name") {
        "; its certificate is for other names: use one of these in the URL"
    } else if has("certificate expired") || has("not valid yet") {
        "; renew its certificate, or set the clock right"
    } else if has("InvalidContentType") || has("handshake eof") {
        "; if it does not speak TLS there, write etcd:// in place of etcds://"
    } else if has("no leader") {
        // It says what to do by itself.
        ""
    } else if has("refused") || has("lookup") {
        "; check the address, and whether etcd runs"
    } else if ["no answer", "did not answer", "no connection"].into_iter().any(has) {
        "; check the address, the network, and whether etcd is well there"
    } else if tls {
        // By TLS 1.3 who connects learns of being turned away after the handshake, or never.
        "; it may take only certificates that its own CA signed: name one with --etcd-cert and --etcd-key"
    } else {
        "; if it speaks TLS, write etcds:// in place of etcd://, or this is not etcd's client port"
    }
}

/// The keyspace of a store.
pub(super) fn keyspace(config: &EtcdConfig) -> Result<Keyspace, OpenError> {
    Keyspace::new(&config.prefix).map_err(|why| OpenError::Prefix { prefix: config.prefix.clone(), why })
}

/// A client that has reached etcd, and found its prefix to be ours or made it so.
pub(super) async fn client(
    config: &EtcdConfig,
    keyspace: &Keyspace,
) -> Result<(EtcdClient, Home), OpenError> {
    if config.endpoints.is_empty() {
        return Err(OpenError::Endpoint { endpoint: String::new(), why: "none is given".to_owned() });
    }
    for endpoint in &config.endpoints {
        check_endpoint(endpoint)?;
    }
    let dial = Dial { network: config.network.clone(), tls: config.tls.clone(), login: config.login.clone() };
    dial.check().await.map_err(OpenError::Tls)?;
    if dial.login.is_some() && dial.tls.is_none() {
        tracing::warn!("the password for etcd goes over the network for all to read: use TLS (etcds://)");
    }
    let client = EtcdClient::new(&config.endpoints, dial, config.call_timeout, keyspace);
    let format = |why| OpenError::Format { prefix: keyspace.prefix().to_owned(), why };
    let marker = reach(config, &client, keyspace).await?.ok_or_else(|| {
        format(format!(
            "there are records below it without its marker, {}: they are somebody else's, or that was removed. Choose \
             another prefix; or, if they are onced's, keep them by etcdctl put {0} '{MARKER}{STORE_FORMAT}', or \
             give them up by etcdctl del --prefix {}",
            keyspace.meta(),
            keyspace.all_records(),
        ))
    })?;
    check_marker(&marker).map_err(format)?;
    let home = Home::new(keyspace, marker.clone());
    client.settle(marker);
    if config.endpoints.len() > 1 {
        // Whether they are of one cluster: else no status is told.
        client.probe().await;
    }
    check_members(config, &client).await?;
    match may_write(&client, keyspace).await {
        // A full etcd still serves what is there.
        Ok(()) | Err(CallError::NoSpace(_)) => Ok((client, home)),
        Err(error) if error.is_refusal() => Err(OpenError::refused(config, error.into_text())),
        Err(error) => Err(OpenError::unreachable(config, error.into_text())),
    }
}

/// As [`marker`], until that works or the time is up: a cluster may be without a leader just now.
async fn reach(
    config: &EtcdConfig,
    client: &EtcdClient,
    keyspace: &Keyspace,
) -> Result<Option<Vec<u8>>, OpenError> {
    let mut why = "no answer".to_owned();
    let tries = async {
        loop {
            match marker(client, keyspace).await {
                Ok(marker) => return Ok(marker),
                Err(error) if error.is_refusal() => return Err(error),
                Err(error) => why = error.into_text(),
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    match tokio::time::timeout(config.call_timeout, tries).await {
        Ok(Ok(marker)) => Ok(marker),
        Ok(Err(error)) => Err(OpenError::refused(config, error.into_text())),
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

/// The marker of the prefix, written if there is none; `None` if there is none and yet there are records. It is
/// read first: a full etcd refuses all writes.
async fn marker(client: &EtcdClient, keyspace: &Keyspace) -> Result<Option<Vec<u8>>, CallError> {
    let name = keyspace.meta();
    if let Some(marker) = client.get(name.as_str(), None).await?.kvs().first() {
        return Ok(Some(marker.value().to_vec()));
    }
    // Its own id tells a store from one that took its place, even where the clusters are called the same.
    let ours = format!("{MARKER}{STORE_FORMAT} store {:032x}", fastrand::u128(..));
    let absent = |name: &str| Compare::create_revision(name, CompareOp::Equal, 0);
    let txn = Txn::new()
        .when([absent(&name), absent(&keyspace.all_records()).with_prefix()])
        .and_then([TxnOp::put(name.as_str(), ours.as_str(), None)])
        .or_else([TxnOp::get(name.as_str(), None)]);
    let answer = client.txn(txn).await?;
    if answer.succeeded() {
        return Ok(Some(ours.into_bytes()));
    }
    let theirs = answer.op_responses().into_iter().find_map(|response| match response {
        TxnOpResponse::Get(mut read) => read.take_kvs().pop(),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    });
    Ok(theirs.map(|marker| marker.value().to_vec()))
}

/// Whether a store may write what it has to, shown by a transaction that never does: etcd checks both branches.
async fn may_write(client: &EtcdClient, keyspace: &Keyspace) -> Result<(), CallError> {
    let never = Compare::create_revision(keyspace.meta(), CompareOp::Less, 0);
    let names = [keyspace.all_records(), keyspace.sentinels()];
    let puts: Vec<TxnOp> = names.into_iter().map(|name| TxnOp::put(name, "", None)).collect();
    client.txn(Txn::new().when([never]).and_then(puts)).await.map(|_| ())
}

/// Looks at each member that can be reached: that it has this store, and its version.
async fn check_members(config: &EtcdConfig, client: &EtcdClient) -> Result<(), OpenError> {
    for (endpoint, status) in client.statuses().await {
        let version = match status {
            Ok(status) => status.version().to_owned(),
            Err(CallError::Foreign(why)) => {
                return Err(OpenError::Foreign { endpoints: config.endpoints.join(", "), why });
            }
            Err(error) => {
                tracing::warn!(
                    endpoint,
                    error = error.into_text(),
                    "cannot tell the version of an etcd endpoint"
                );
                continue;
            }
        };
        match verdict(&version) {
            Verdict::Good => {}
            Verdict::Old(floor) => {
                tracing::warn!(
                    endpoint,
                    version,
                    "this etcd has known faults: upgrade it to {floor} or later"
                );
            }
            Verdict::Unsafe => return Err(OpenError::Version { endpoint, version }),
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// It has faults that this version no longer has.
    Old(&'static str),
    /// It can lose what it acknowledged.
    Unsafe,
}

/// What is known of a version of etcd. Source: the data inconsistency notice of etcd 3.5, and its changelogs.
fn verdict(version: &str) -> Verdict {
    let number = |part: &str| {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..end].parse::<u32>().ok()
    };
    let parts: Vec<u32> = version.splitn(3, '.').map_while(number).collect();
    match parts[..] {
        [3, 5, 0..=2] => Verdict::Unsafe,
        [3, 5, ..30] => Verdict::Old("3.5.30"),
        [3, 6, ..11] => Verdict::Old("3.6.11"),
        [3, 4, ..45] => Verdict::Old("3.4.45"),
        [..3, ..] | [3, ..4, ..] => Verdict::Old("3.4.45"),
        // A version that is not understood is a new one.
        _ => Verdict::Good,
    }
}

fn check_marker(marker: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(marker).ok().and_then(|text| text.strip_prefix(MARKER));
    match text.and_then(|text| text.split(' ').next()).and_then(|format| format.parse().ok()) {
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
    fn versions_that_lose_data_are_refused_and_old_ones_warned_of() {
        for version in ["3.5.0", "3.5.1", "3.5.2", "3.5.0-rc.1"] {
            assert_eq!(verdict(version), Verdict::Unsafe, "{version}");
        }
        for (version, floor) in [
            ("3.5.3", "3.5.30"),
            ("3.5.29", "3.5.30"),
            ("3.6.0", "3.6.11"),
            ("3.6.10", "3.6.11"),
            ("3.4.44", "3.4.45"),
            ("3.3.27", "3.4.45"),
            ("2.3.8", "3.4.45"),
        ] {
            assert_eq!(verdict(version), Verdict::Old(floor), "{version}");
        }
        for version in ["3.4.45", "3.5.30", "3.6.11", "3.7.0", "3.7.0-alpha.0", "4.0.0", "", "new"] {
            assert_eq!(verdict(version), Verdict::Good, "{version}");
        }
    }

    #[test]
    fn a_marker_of_this_format_is_taken_and_every_other_refused() {
        for rest in ["", " store 0123"] {
            assert_eq!(check_marker(format!("onced format {STORE_FORMAT}{rest}").as_bytes()), Ok(()));
        }
        let newer = check_marker(format!("onced format {}", STORE_FORMAT + 1).as_bytes());
        assert!(newer.unwrap_err().contains("newer"));
        for marker in [&b""[..], b"onced format ", b"onced format x", b"onced format 0", b"\xff"] {
            assert!(check_marker(marker).is_err());
        }
    }
}
