//! Making a way ready: starting what it needs, and connecting to that.

use std::fs::DirEntry;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use super::{Calls, Kind, StoreWay, Way, by_hand, postgres, powertools, redis, restate, v3lock};
use crate::child::Child;
use crate::cost::Process;
use crate::etcd::Etcd;
use crate::options::Options;
use crate::programs::postgres::Postgres;
use crate::programs::powertools::Powertools;
use crate::programs::redis::{Fsync, Redis};
use crate::programs::restate::Restate;
use crate::server::{Place, Server};

/// A way, ready for use, and what it needs.
pub struct Open {
    // Dropped in this order: the callers, then what they call.
    pub way: Arc<dyn Way>,
    server: Option<Server>,
    programs: Vec<(&'static str, Child)>,
    etcd: Option<Arc<Etcd>>,
}

impl Open {
    /// All processes that have a part in it, this one first.
    pub fn processes(&self) -> Vec<Process> {
        let load = Process { name: "load", pid: std::process::id() };
        let server = self.server.iter().map(|server| Process { name: server.name(), pid: server.pid() });
        let programs = self.programs.iter().map(|(name, child)| Process { name, pid: child.pid() });
        let etcd = self.etcd.iter().flat_map(|etcd| etcd.pids()).map(|pid| Process { name: "etcd", pid });
        [load].into_iter().chain(server).chain(programs).chain(etcd).collect()
    }

    /// Bytes that all of them but this one have on disk.
    pub fn stored(&self) -> u64 {
        let server = self.server.iter().map(Server::dir);
        let programs = self.programs.iter().map(|(_, child)| child.dir());
        let etcd = self.etcd.iter().flat_map(|etcd| etcd.dirs());
        server.chain(programs).chain(etcd).map(bytes_in).sum()
    }
}

/// What a directory takes of the disk.
fn bytes_in(dir: &Path) -> u64 {
    // What is gone meanwhile takes nothing.
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes_of = |entry: DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.map(bytes_of).sum()
}

impl Kind {
    /// Makes it ready, with nothing stored and nothing else running but for what it needs.
    pub async fn open_alone(self, options: &Options) -> anyhow::Result<Open> {
        let etcd = match self.etcd_members() {
            0 => None,
            1 => Some(Etcd::open(options).await?),
            members => Some(Etcd::start(members).await?),
        };
        self.open(options, etcd.map(Arc::new)).await
    }

    /// Makes it ready, with nothing stored. `etcd` is there if it needs one.
    pub async fn open(self, options: &Options, etcd: Option<Arc<Etcd>>) -> anyhow::Result<Open> {
        // A given etcd may have been used before.
        let prefix = format!("bench-{:016x}", fastrand::u64(..));
        let endpoints = etcd.as_ref().map(|etcd| etcd.endpoints()).unwrap_or_default();
        let place = match self.etcd_members() {
            0 if matches!(self, Kind::UnaryBare | Kind::StreamBare) => Place::Nowhere,
            0 => Place::Embedded,
            _ => Place::Etcd { endpoints, prefix: &prefix },
        };
        let by_hand = async |recipe| by_hand::ByHand::connect(options, endpoints, &prefix, recipe).await;
        let (mut server, mut programs) = (None, Vec::new());
        let way: Arc<dyn Way> = match self {
            Kind::EtcdLeases | Kind::EtcdLeases3 => Arc::new(by_hand(by_hand::Recipe::LeasePerKey).await?),
            Kind::EtcdPuts => Arc::new(by_hand(by_hand::Recipe::Puts).await?),
            Kind::EtcdTxns => Arc::new(by_hand(by_hand::Recipe::Txns).await?),
            Kind::EtcdV3lock => Arc::new(v3lock::V3Lock::connect(options, endpoints, &prefix).await?),
            Kind::StoreEtcd => Arc::new(StoreWay::etcd(endpoints, &prefix).await?),
            Kind::StoreEmbedded => Arc::new(StoreWay::embedded()?),
            Kind::UnaryEtcd | Kind::UnaryEtcd3 | Kind::UnaryEmbedded | Kind::UnaryBare => {
                let server = server.insert(Server::start(options, place).await?);
                Arc::new(Calls::unary(server, options.channels).await?)
            }
            Kind::StreamEtcd | Kind::StreamEtcd3 | Kind::StreamEmbedded | Kind::StreamBare => {
                let server = server.insert(Server::start(options, place).await?);
                Arc::new(Calls::sessions(server, options.channels).await?)
            }
            _ => self.open_peer(options, &mut programs).await?,
        };
        Ok(Open { way, server, programs, etcd })
    }

    async fn open_peer(
        self,
        options: &Options,
        programs: &mut Vec<(&'static str, Child)>,
    ) -> anyhow::Result<Arc<dyn Way>> {
        Ok(match self {
            Kind::Postgres => {
                let postgres = Postgres::start().await?;
                let way = postgres::PostgresWay::connect(options, &postgres).await?;
                programs.push(("postgres", postgres.child));
                Arc::new(way)
            }
            Kind::Restate => {
                let restate = Restate::start().await?;
                let way = restate::RestateCalls::connect(options, &restate).await?;
                programs.extend([("restate", restate.server), ("service", restate.service)]);
                Arc::new(way)
            }
            Kind::Powertools => {
                let redis = Redis::start(Fsync::Always).await?;
                let mut libraries = Vec::new();
                for _ in 0..std::thread::available_parallelism()?.get() {
                    libraries.push(Powertools::start(redis.port).await?);
                }
                let way = powertools::PowertoolsCalls::new(&libraries);
                programs.extend(libraries.into_iter().map(|library| ("python", library.child)));
                programs.push(("redis", redis.child));
                Arc::new(way)
            }
            _ => {
                let everysec = self == Kind::RedisEverysec;
                let fsync = if everysec { Fsync::EverySecond } else { Fsync::Always };
                let redis = Redis::start(fsync).await?;
                let way = redis::RedisWay::connect(options, &redis).await?;
                programs.push(("redis", redis.child));
                Arc::new(way)
            }
        })
    }
}
