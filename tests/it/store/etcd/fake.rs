//! The etcd that simulations run on, held against the real one: the same suite for stores on it, and the same
//! calls, answered the same.

use std::fmt::Debug;

use etcd_client::proto::{PbTxnOpResponse, PbTxnResponse};
use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, GetOptions, LeaseGrantOptions, PutOptions, Txn, TxnOp,
    TxnResponse, WatchOptions,
};
use tokio::net::TcpListener;

use super::*;
use crate::fake_etcd::{Data, Effect, EventFate, FakeEtcd, Fate, Faults, StreamFate};
use crate::support::etcd::fresh_prefix;

conformance!(on_a_fake());

async fn on_a_fake() -> Etcd {
    Etcd::at(EtcdConfig::new(vec![start().await], fresh_prefix())).await
}

/// Nothing goes wrong.
struct NoFaults;

impl Faults for NoFaults {
    fn call(&self, _: usize, _: Effect<'_>) -> Fate {
        Fate::Served
    }

    fn stream(&self, _: usize) -> StreamFate {
        StreamFate::Tells
    }

    fn event(&self, _: usize) -> EventFate {
        EventFate::Told
    }

    fn met(&self, _: &'static str) {}

    fn wrote(&self, _: &Data, _: i64) {}
}

/// Starts a fake etcd, and tells where it listens.
async fn start() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let member = FakeEtcd::new(Arc::new(NoFaults), Clock::system()).member(0);
    let due = member.clone();
    tokio::spawn(async move { due.run().await });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            tokio::spawn(member.connection(stream));
        }
    });
    endpoint
}

/// A lease id that only these calls use.
const LEASE: i64 = 77;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_is_answered_as_by_the_real_one() {
    let real = EtcdProcess::start();
    let mut told = Vec::new();
    for endpoint in [real.endpoint(), start().await] {
        let client = Client::connect([endpoint], None).await.unwrap();
        let mut script = Script { client, told: Vec::new() };
        script.reads().await;
        script.compares().await;
        script.compares_of_ranges().await;
        script.nested().await;
        script.refusals().await;
        script.leases().await;
        script.watches().await;
        script.compaction().await;
        told.push(script.told);
    }
    for (real, fake) in told[0].iter().zip(&told[1]) {
        assert_eq!(fake, real);
    }
    assert_eq!(told[0].len(), told[1].len());
}

/// Calls of a new etcd, and what was answered.
struct Script {
    client: Client,
    told: Vec<String>,
}

fn put(key: &str, value: &str) -> TxnOp {
    TxnOp::put(key, value, None)
}

fn get(key: &str) -> TxnOp {
    TxnOp::get(key, None)
}

fn put_on_lease(key: &str, lease: i64) -> TxnOp {
    TxnOp::put(key, "on a lease", Some(PutOptions::new().with_lease(lease)))
}

/// An answer without what differs from cluster to cluster.
fn shown(what: &str, answer: Result<impl Debug, etcd_client::Error>) -> String {
    match answer {
        Ok(answer) => format!("{what}: {answer:?}"),
        Err(etcd_client::Error::GRpcStatus(status)) => {
            format!("{what}: {:?}: {}", status.code(), status.message())
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

fn without_headers(txn: &mut PbTxnResponse) {
    txn.header = None;
    for response in txn.responses.iter_mut().filter_map(|it| it.response.as_mut()) {
        match response {
            PbTxnOpResponse::ResponseRange(read) => read.header = None,
            PbTxnOpResponse::ResponsePut(put) => put.header = None,
            PbTxnOpResponse::ResponseDeleteRange(deleted) => deleted.header = None,
            PbTxnOpResponse::ResponseTxn(nested) => without_headers(nested),
        }
    }
}

fn of_txn(TxnResponse(mut answer): TxnResponse) -> (i64, PbTxnResponse) {
    let revision = answer.header.as_ref().unwrap().revision;
    without_headers(&mut answer);
    (revision, answer)
}

impl Script {
    async fn put(&mut self, key: &str, value: &str) {
        let answer = self.client.put(key, value, None).await;
        self.told.push(shown("put", answer.map(|it| it.header().unwrap().revision())));
    }

    async fn get(&mut self, key: &str, options: GetOptions) {
        let answer = self.client.get(key, Some(options)).await;
        let shown =
            shown("get", answer.map(|it| (it.0.header.unwrap().revision, it.0.kvs, it.0.more, it.0.count)));
        self.told.push(shown);
    }

    async fn txn(&mut self, what: &str, txn: Txn) {
        let answer = self.client.txn(txn).await;
        self.told.push(shown(what, answer.map(of_txn)));
    }

    async fn grant(&mut self, id: i64, ttl: i64) {
        let answer = self.client.lease_grant(ttl, Some(LeaseGrantOptions::new().with_id(id))).await;
        self.told.push(shown("grant", answer.map(|it| (it.0.header.unwrap().revision, it.0.id, it.0.ttl))));
    }

    async fn revoke(&mut self, id: i64) {
        let answer = self.client.lease_revoke(id).await;
        self.told.push(shown("revoke", answer.map(|it| it.0.header.unwrap().revision)));
    }

    async fn reads(&mut self) {
        self.get("a", GetOptions::new()).await;
        for (key, value) in [("a", "1"), ("b", "2"), ("a", "3"), ("b/c", "4"), ("c", "5")] {
            self.put(key, value).await;
        }
        self.get("a", GetOptions::new()).await;
        let all = GetOptions::new().with_range("c");
        for options in [
            all.clone(),
            all.clone().with_keys_only(),
            all.clone().with_count_only(),
            all.clone().with_limit(2),
            all.clone().with_revision(3),
            GetOptions::new().with_prefix(),
            GetOptions::new().with_from_key(),
            GetOptions::new().with_revision(99),
        ] {
            self.get("a", options).await;
        }
    }

    async fn compares(&mut self) {
        for key in ["a", "absent"] {
            for op in [CompareOp::Equal, CompareOp::NotEqual, CompareOp::Greater, CompareOp::Less] {
                for compare in [
                    Compare::mod_revision(key, op, 4),
                    Compare::mod_revision(key, op, 0),
                    Compare::create_revision(key, op, 2),
                    Compare::create_revision(key, op, 0),
                    Compare::version(key, op, 2),
                    Compare::value(key, op, "3"),
                    Compare::value(key, op, ""),
                    Compare::lease(key, op, 0),
                ] {
                    self.txn("compare", Txn::new().when([compare]).and_then([get("b")])).await;
                }
            }
        }
    }

    async fn compares_of_ranges(&mut self) {
        for (from, to) in [("a", "c"), ("a", "b"), ("x", "y"), ("b", "\0")] {
            for op in [CompareOp::Equal, CompareOp::NotEqual, CompareOp::Greater, CompareOp::Less] {
                for compare in [
                    Compare::create_revision(from, op, 0),
                    Compare::mod_revision(from, op, 5),
                    Compare::version(from, op, 1),
                    Compare::value(from, op, "3"),
                ] {
                    let compare = compare.with_range(to);
                    self.txn("compare a range", Txn::new().when([compare]).and_then([get("b")])).await;
                }
            }
        }
    }

    async fn nested(&mut self) {
        let is_new = |key: &str| Compare::create_revision(key, CompareOp::Equal, 0);
        let create =
            |key: &str| Txn::new().when([is_new(key)]).and_then([put(key, "new")]).or_else([get(key)]);
        let ops = [TxnOp::txn(create("n1")), TxnOp::txn(create("a")), TxnOp::txn(create("n2")), get("n1")];
        self.txn("each for itself", Txn::new().and_then(ops)).await;
        // The compare was decided before the put.
        let ops = [put("n3", "outer"), TxnOp::txn(Txn::new().when([is_new("n3")]).and_then([get("n3")]))];
        self.txn("compares come first", Txn::new().and_then(ops)).await;
        let delete = |key: &str| TxnOp::delete(key, None);
        self.txn("delete", Txn::new().and_then([delete("n1"), delete("absent"), get("n1")])).await;
        self.txn("delete nothing", Txn::new().and_then([delete("n1")])).await;
        self.put("n1", "reborn").await;
        self.get("n1", GetOptions::new()).await;
        self.txn("nothing", Txn::new()).await;
        self.txn("a read at a revision", {
            let old = GetOptions::new().with_keys_only().with_revision(2);
            Txn::new().and_then([TxnOp::get("a", Some(old.clone())), TxnOp::get("b", Some(old))])
        })
        .await;
    }

    async fn refusals(&mut self) {
        self.txn("twice", Txn::new().and_then([put("d", "1"), put("d", "2")])).await;
        let nested = || TxnOp::txn(Txn::new().and_then([put("d", "1")]));
        self.txn("twice, nested", Txn::new().and_then([nested(), nested()])).await;
        self.txn("in either branch", Txn::new().and_then([put("d", "1")]).or_else([put("d", "2")])).await;
        let compares = |count: usize| vec![Compare::version("d", CompareOp::Greater, 0); count];
        self.txn("128 compares", Txn::new().when(compares(128)).and_then([get("d")])).await;
        self.txn("129 compares", Txn::new().when(compares(129)).and_then([get("d")])).await;
        let gets = |count: usize| (0..count).map(|i| get(&format!("g{i}"))).collect::<Vec<_>>();
        self.txn("129 reads", Txn::new().and_then(gets(129))).await;
        for inner in [28, 29] {
            let nested = TxnOp::txn(Txn::new().when(compares(inner)).and_then([get("d")]));
            self.txn("a nested one", Txn::new().when(compares(100)).and_then([nested])).await;
        }
        let large = "x".repeat(3 << 19);
        self.put("large", &large).await;
        self.txn("large", Txn::new().and_then([put("large", &large)])).await;
        let future = GetOptions::new().with_revision(9_999);
        let with_put = Txn::new().and_then([put("d", "5"), TxnOp::get("a", Some(future))]);
        self.txn("a read of the future", with_put).await;
        self.get("d", GetOptions::new()).await;
    }

    async fn leases(&mut self) {
        self.grant(LEASE, 1_000).await;
        self.grant(LEASE, 1_000).await;
        self.grant(LEASE + 1, 1).await;
        self.txn("on no lease", Txn::new().and_then([put("l0", ""), put_on_lease("l1", 5)])).await;
        let nested = |key: &str, lease| TxnOp::txn(Txn::new().and_then([put_on_lease(key, lease)]));
        self.txn("on no lease, nested", Txn::new().and_then([nested("l1", LEASE), nested("l2", 5)])).await;
        self.txn("not chosen", Txn::new().and_then([put("l3", "")]).or_else([put_on_lease("l4", 5)])).await;
        self.txn("on a lease", Txn::new().and_then([nested("l1", LEASE), nested("l2", LEASE)])).await;
        self.txn("elsewhere", Txn::new().and_then([put_on_lease("l2", LEASE + 1)])).await;
        self.txn("its lease", Txn::new().when([Compare::lease("l1", CompareOp::Equal, LEASE)])).await;
        let lone = self.client.put("l5", "", Some(PutOptions::new().with_lease(5))).await;
        self.told.push(shown("a lone put on no lease", lone.map(drop)));
        self.get("l", GetOptions::new().with_prefix()).await;
        self.revoke(LEASE).await;
        self.revoke(LEASE).await;
        self.get("l", GetOptions::new().with_prefix()).await;
        let gone = async {
            while !self.client.get("l2", None).await.unwrap().kvs().is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("the lease ends");
        self.revoke(LEASE + 1).await;
        self.get("l", GetOptions::new().with_prefix()).await;
    }

    /// What a watch from a revision on tells, as far as `count` events.
    async fn watch(&mut self, key: &str, options: WatchOptions, count: usize) {
        let options = options.with_watch_id(9).with_progress_notify().with_fragment();
        let mut stream = self.client.watch(key, Some(options)).await.unwrap();
        let mut seen = 0;
        let told = &mut self.told;
        let telling = async {
            loop {
                let response = stream.message().await.unwrap().expect("a response");
                let flags = (
                    response.watch_id(),
                    response.created(),
                    response.canceled(),
                    response.compact_revision(),
                );
                if response.events().is_empty() {
                    told.push(format!("watch: {flags:?}"));
                }
                if response.canceled() {
                    return;
                }
                for event in response.events() {
                    told.push(format!("event: {:?} {:?}", event.event_type(), event.kv().map(|kv| &kv.0)));
                }
                seen += response.events().len();
                if response.created() && count == 0 {
                    return;
                }
                if seen >= count && count > 0 {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, telling).await.expect("events");
    }

    async fn watches(&mut self) {
        self.watch("a", WatchOptions::new().with_start_revision(2), 2).await;
        self.watch("l", WatchOptions::new().with_prefix().with_start_revision(2), 6).await;
        self.watch("n", WatchOptions::new().with_prefix().with_start_revision(2), 5).await;
        self.watch("a", WatchOptions::new(), 0).await;
    }

    async fn compaction(&mut self) {
        for revision in [999, 8, 8, 4] {
            let answer = self.client.compact(revision, Some(CompactionOptions::new())).await;
            self.told.push(shown("compact", answer.map(|it| it.0.header.unwrap().revision)));
        }
        for revision in [7, 8, 9] {
            self.get("a", GetOptions::new().with_prefix().with_revision(revision)).await;
        }
        self.get("a", GetOptions::new().with_prefix()).await;
        self.watch("a", WatchOptions::new().with_start_revision(3), 9).await;
        self.watch("n", WatchOptions::new().with_prefix().with_start_revision(9), 2).await;
    }
}
