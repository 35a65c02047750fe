//! The ways of doing a pair: one Begin and one Complete of a key that nobody else uses.

mod by_hand;
mod service;
mod store;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use clap::ValueEnum;

use crate::etcd::Etcd;
use crate::options::Options;
use crate::server::{Place, Server};

pub use service::{Calls, begin_request, response};
pub use store::{StoreWay, in_progress, record_key};

/// A way of doing a pair. Every answer is checked: what is not as it must be is an error.
#[async_trait]
pub trait Way: Send + Sync {
    /// Claims a key that nobody has used. Callers are numbered, and so spread over connections.
    async fn begin(&self, caller: usize, key: &str) -> anyhow::Result<Claim>;

    /// Stores the outcome of a claimed key.
    async fn complete(&self, caller: usize, key: &str, claim: Claim, outcome: Bytes) -> anyhow::Result<()>;

    /// The stored outcome of a key.
    async fn outcome(&self, key: &str) -> anyhow::Result<Bytes>;
}

/// What a Begin leaves for its Complete.
#[derive(Clone, Copy)]
pub struct Claim {
    /// The fencing token, or the revision that stands for one.
    pub token: u64,
    /// The lease of this claim alone; 0: none.
    pub lease: i64,
}

/// The ways, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Straight to etcd, a lease per key: grant, txn; grant, txn, revoke
    EtcdLeases,
    /// Straight to etcd, two plain puts and no check at all
    EtcdPuts,
    /// Straight to etcd, two transactions and no leases
    EtcdTxns,
    /// The etcd store, in this process
    StoreEtcd,
    /// The embedded store, in this process
    StoreEmbedded,
    /// A server on etcd, by unary calls
    UnaryEtcd,
    /// A server on etcd, by calls on session streams
    StreamEtcd,
    /// A server with an embedded store, by unary calls
    UnaryEmbedded,
    /// A server with an embedded store, by calls on session streams
    StreamEmbedded,
}

/// A way, ready for use, and the server that it needs.
pub struct Open {
    // Dropped in this order: the callers, then what they call.
    pub way: Arc<dyn Way>,
    pub server: Option<Server>,
}

impl Kind {
    /// All of them.
    pub fn all() -> Vec<Kind> {
        Kind::value_variants().to_vec()
    }

    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether it needs etcd.
    pub fn needs_etcd(self) -> bool {
        !matches!(self, Kind::StoreEmbedded | Kind::UnaryEmbedded | Kind::StreamEmbedded)
    }

    /// Makes it ready, with nothing stored. `etcd` is there if it needs one.
    pub async fn open(self, options: &Options, etcd: Option<&Etcd>) -> anyhow::Result<Open> {
        // A given etcd may have been used before.
        let prefix = format!("bench-{:016x}", fastrand::u64(..));
        let endpoint = etcd.map(Etcd::endpoint).unwrap_or_default();
        let place = || match self.needs_etcd() {
            true => Place::Etcd { endpoint, prefix: &prefix },
            false => Place::Embedded,
        };
        let by_hand = async |recipe| by_hand::ByHand::connect(options, endpoint, &prefix, recipe).await;
        let way: Arc<dyn Way> = match self {
            Kind::EtcdLeases => Arc::new(by_hand(by_hand::Recipe::LeasePerKey).await?),
            Kind::EtcdPuts => Arc::new(by_hand(by_hand::Recipe::Puts).await?),
            Kind::EtcdTxns => Arc::new(by_hand(by_hand::Recipe::Txns).await?),
            Kind::StoreEtcd => Arc::new(StoreWay::etcd(endpoint, &prefix).await?),
            Kind::StoreEmbedded => Arc::new(StoreWay::embedded()?),
            Kind::UnaryEtcd | Kind::UnaryEmbedded => {
                let server = Server::start(options, place()).await?;
                let calls = Calls::unary(&server, options.channels).await?;
                return Ok(Open { way: Arc::new(calls), server: Some(server) });
            }
            Kind::StreamEtcd | Kind::StreamEmbedded => {
                let server = Server::start(options, place()).await?;
                let calls = Calls::sessions(&server, options.channels).await?;
                return Ok(Open { way: Arc::new(calls), server: Some(server) });
            }
        };
        Ok(Open { way, server: None })
    }
}
