//! The ways of doing a pair: one Begin and one Complete of a key that nobody else uses.

mod by_hand;
pub mod http;
mod open;
mod postgres;
mod powertools;
mod redis;
mod restate;
mod service;
mod store;
mod v3lock;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use clap::ValueEnum;

use crate::options::Options;
use crate::{etcd, programs, server};

pub use open::Open;
pub use service::{Calls, begin_request};
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

    /// One of many callers of a key: does its work if the key is theirs, or waits for the outcome of who does it.
    /// Whether they did it, and the outcome.
    async fn share(&self, _caller: usize, _key: &str, _work: &Work) -> anyhow::Result<(bool, Bytes)> {
        anyhow::bail!("this way has no callers that wait for each other")
    }
}

/// Work that takes a while, and its outcome.
#[derive(Clone)]
pub struct Work {
    pub time: Duration,
    pub outcome: Bytes,
}

/// How long a caller waits before it looks again, where nobody tells it: as redis-py's lock does by default.
pub const POLL: Duration = Duration::from_millis(100);

/// What a Begin leaves for its Complete.
#[derive(Clone, Copy, Default)]
pub struct Claim {
    /// The fencing token, or the revision or random number that stands for one.
    pub token: u64,
    /// The lease of this claim alone; 0: none.
    pub lease: i64,
}

/// The ways, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// Straight to etcd, a lease per key: grant, txn; grant, txn, revoke
    EtcdLeases,
    /// The same, to an etcd of three members
    EtcdLeases3,
    /// etcd's lock service: lock, get; grant, txn, unlock
    EtcdV3lock,
    /// Straight to etcd, two plain puts and no check at all
    EtcdPuts,
    /// Straight to etcd, two transactions and no leases
    EtcdTxns,
    /// Redis, synced before each answer: SET NX PX; a script
    RedisAlways,
    /// Redis, synced every second: the same
    RedisEverysec,
    /// PostgreSQL: INSERT ON CONFLICT; UPDATE
    Postgres,
    /// AWS Powertools for Python on Redis, synced before each answer: one call
    Powertools,
    /// Restate: one call with an idempotency key
    Restate,
    /// The etcd store, in this process
    StoreEtcd,
    /// The embedded store, in this process
    StoreEmbedded,
    /// A server that has a hash map and nothing else, by unary calls
    UnaryBare,
    /// A server that has a hash map and nothing else, by calls on session streams
    StreamBare,
    /// A server on etcd, by unary calls
    UnaryEtcd,
    /// A server on etcd, by calls on session streams
    StreamEtcd,
    /// A server on an etcd of three members, by unary calls
    UnaryEtcd3,
    /// A server on an etcd of three members, by calls on session streams
    StreamEtcd3,
    /// A server with an embedded store, by unary calls
    UnaryEmbedded,
    /// A server with an embedded store, by calls on session streams
    StreamEmbedded,
}

impl Kind {
    /// Those that need no program but onced and the etcd that this one brings.
    pub fn own() -> Vec<Kind> {
        use Kind::*;
        vec![
            EtcdLeases,
            EtcdPuts,
            EtcdTxns,
            StoreEtcd,
            StoreEmbedded,
            UnaryBare,
            StreamBare,
            UnaryEtcd,
            StreamEtcd,
            UnaryEmbedded,
            StreamEmbedded,
        ]
    }

    /// onced as one uses it, and what one might use in its place.
    pub fn peers() -> Vec<Kind> {
        use Kind::*;
        let on_one_machine =
            [UnaryEmbedded, StreamEmbedded, RedisAlways, RedisEverysec, Postgres, Powertools, Restate];
        let on_etcd = [UnaryEtcd, StreamEtcd, EtcdLeases, EtcdV3lock, UnaryEtcd3, StreamEtcd3, EtcdLeases3];
        [on_one_machine, on_etcd].concat()
    }

    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The way of onced that is as durable, by the calls that its client library makes.
    pub fn like(self) -> Kind {
        match self.etcd_members() {
            0 => Kind::UnaryEmbedded,
            1 => Kind::UnaryEtcd,
            _ => Kind::UnaryEtcd3,
        }
    }

    /// What it is, in a line.
    pub fn about(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|value| Some(value.get_help()?.to_string())).unwrap_or_default()
    }

    /// How long it needs at least before it works as it will. In its first seconds, some calls to Restate take five.
    pub fn settles_in(self) -> Duration {
        Duration::from_secs(if self == Kind::Restate { 10 } else { 0 })
    }

    /// Those whose callers can wait for each other.
    pub fn shares(self) -> bool {
        use Kind::*;
        matches!(
            self,
            UnaryEmbedded
                | StreamEmbedded
                | UnaryEtcd
                | StreamEtcd
                | UnaryEtcd3
                | StreamEtcd3
                | RedisAlways
                | RedisEverysec
                | Postgres
                | Powertools
                | Restate
                | EtcdV3lock
        )
    }

    /// How many members the etcd has that it needs; 0: it needs none.
    pub fn etcd_members(self) -> usize {
        use Kind::*;
        match self {
            EtcdLeases | EtcdV3lock | EtcdPuts | EtcdTxns | StoreEtcd | UnaryEtcd | StreamEtcd => 1,
            EtcdLeases3 | UnaryEtcd3 | StreamEtcd3 => 3,
            RedisAlways | RedisEverysec | Postgres | Powertools | Restate => 0,
            StoreEmbedded | UnaryBare | StreamBare | UnaryEmbedded | StreamEmbedded => 0,
        }
    }

    /// The programs that it needs and their versions, or why it cannot be had here.
    pub fn version(self, options: &Options) -> anyhow::Result<String> {
        let etcd = || programs::version(etcd::program()?, &["--version"]);
        let onced = || programs::version(&server::program(options)?, &["--version"]);
        match self {
            Kind::RedisAlways | Kind::RedisEverysec => programs::redis::find_version(),
            Kind::Postgres => programs::postgres::find_version(),
            Kind::Powertools => {
                let library = programs::powertools::find_version()?;
                Ok(format!("{library}, {}", programs::redis::find_version()?))
            }
            Kind::Restate => programs::restate::find_version(),
            Kind::StoreEmbedded => Ok(String::new()),
            Kind::UnaryBare | Kind::StreamBare => server::built(server::BARE).map(|_| String::new()),
            Kind::UnaryEmbedded | Kind::StreamEmbedded => onced(),
            Kind::UnaryEtcd | Kind::StreamEtcd | Kind::UnaryEtcd3 | Kind::StreamEtcd3 => {
                Ok(format!("{}, {}", onced()?, etcd()?))
            }
            _ => etcd(),
        }
    }
}
