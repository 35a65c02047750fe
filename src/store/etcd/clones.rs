//! Endpoints that say they are the same member. Several names of one member are well. But members that were each
//! restored by itself are called the same, too, with the same marker of the store, and know nothing of each other: two
//! servers could both claim a key there. A lease tells which it is: one member knows it by whichever name.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use etcd_client::{Client, LeaseGrantOptions, ResponseHeader};
use futures_util::future::join_all;

use super::endpoints::{Endpoints, Line};

/// How long the lease lives, in seconds: far longer than it takes to ask for it.
const LEASE_TTL_S: i64 = 30;
/// What etcd tells as the rest of the life of a lease that it does not know.
const UNKNOWN: i64 = -1;
/// How long an answer may take. Without one nothing is known, and the next probes ask again.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How often they are asked for the lease before it is believed: they ask their leader, which may be new, and behind.
const TIMES: usize = 3;
/// How long they are left alone in between.
const PAUSE: Duration = Duration::from_millis(200);

/// A member as it calls itself: the id of its cluster and its own.
type Name = (u64, u64);

impl Endpoints {
    /// What is wrong if some of these endpoints are members of their own that call themselves the same. Where that is not
    /// certain, nothing. What else is wrong with them does not matter here, least of all that one is behind the other.
    pub(super) async fn clones(&self, lines: &[Line]) -> Option<String> {
        if lines.len() < 2 {
            return None;
        }
        let named = join_all(lines.iter().map(async |line| (line, self.name(line).await))).await;
        let mut members: BTreeMap<Name, Vec<&Line>> = BTreeMap::new();
        for (line, name) in named {
            if let Some(name) = name {
                members.entry(name).or_default().push(line);
            }
        }
        for (name, lines) in members {
            let Some((first, others @ [_, ..])) = lines.split_first() else { continue };
            let lease = self.grant(first, name).await?;
            for other in others {
                if self.differ(first, other, name, lease).await? {
                    return Some(text(self.address(first), self.address(other)));
                }
            }
        }
        None
    }

    /// Whether the one knows the lease and the other does not, each time that they are asked.
    async fn differ(&self, one: &Line, other: &Line, name: Name, lease: i64) -> Option<bool> {
        for _ in 0..TIMES {
            if self.knows(other, name, lease).await? || !self.knows(one, name, lease).await? {
                return Some(false);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Some(true)
    }

    async fn name(&self, line: &Line) -> Option<Name> {
        let marker = self.marker().to_owned();
        // Not its status: etcd 3.4 tells that to root alone, where there are logins.
        let read = async |client: Client| client.kv_client().get(marker, None).await;
        self.ask(line, read).await?.header().map(name_in)
    }

    /// A new lease that is granted there.
    async fn grant(&self, line: &Line, name: Name) -> Option<i64> {
        let options = LeaseGrantOptions::new().with_id(fastrand::i64(1..));
        let grant = async |client: Client| client.lease_client().grant(LEASE_TTL_S, Some(options)).await;
        let granted = self.ask(line, grant).await?;
        (granted.header().map(name_in)? == name).then(|| granted.id())
    }

    /// `None` if it does not answer, or is another member now.
    async fn knows(&self, line: &Line, name: Name, lease: i64) -> Option<bool> {
        let ask = async |client: Client| client.lease_client().time_to_live(lease, None).await;
        let told = self.ask(line, ask).await?;
        (told.header().map(name_in)? == name).then(|| told.ttl() != UNKNOWN)
    }

    async fn ask<T, F: Future<Output = Result<T, etcd_client::Error>>>(
        &self,
        line: &Line,
        make: impl FnOnce(Client) -> F,
    ) -> Option<T> {
        let asked = async { make(self.client(line).await.ok()?.clone()).await.ok() };
        tokio::time::timeout(TIMEOUT, asked).await.ok()?
    }
}

fn name_in(header: &ResponseHeader) -> Name {
    (header.cluster_id(), header.member_id())
}

fn text(one: &str, other: &str) -> String {
    format!(
        "etcd at {one} and etcd at {other} say that they are the same member, and do not know each other's leases: they were \
         restored each by itself, as clusters of their own, and a key could be claimed in both. Restore them as one \
         cluster (docs/etcd.md says how), then restart onced"
    )
}
