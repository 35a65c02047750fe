//! Members that clients reach, and that do not reach each other: they answer, and cannot serve.

use std::time::Duration;

use onced::store::etcd::EtcdConfig;
use onced_client::v1::session_request::Call;
use onced_client::v1::session_response::Answer;
use onced_client::v1::{self, begin_response};

use super::members::open;
use crate::store::fixture::{PATIENCE, completed, create, key};
use crate::support::caller::{Caller, Unary};
use crate::support::cluster::{EtcdCluster, MEMBERS};
use crate::support::numbers::Numbers;
use crate::support::server::TestServer;

/// How many operations are done in each state of the network.
const OPERATIONS: usize = 20;

/// A server, at first with all its calls going to one member.
struct Service<'a> {
    numbers: &'a Numbers,
    member: String,
    caller: Unary,
    _server: TestServer,
}

impl<'a> Service<'a> {
    async fn start(etcd: &EtcdCluster, member: usize, numbers: &'a Numbers) -> Self {
        let mut config = EtcdConfig { call_timeout: Duration::from_secs(1), ..etcd.config() };
        config.endpoints.swap(0, member);
        let member = config.endpoints[0].clone();
        let server = TestServer::start(open(&config).await).await;
        let service = Self { numbers, member, caller: Unary(server.client().await), _server: server };
        assert_eq!(service.work("before", OPERATIONS).await, 0);
        assert_eq!((service.moves(), service.is_up()), (0, true));
        service
    }

    /// Begins and completes some keys, repeating what failed; tells how many tries did.
    async fn work(&self, what: &str, operations: usize) -> usize {
        let mut failures = 0;
        for operation in 0..operations {
            let (namespace, key) = ("orders".to_owned(), format!("{what} {operation}"));
            let request_id = uuid::Uuid::new_v4().to_string();
            let begin = v1::BeginRequest {
                namespace: namespace.clone(),
                key: key.clone(),
                request_id,
                ..v1::BeginRequest::default()
            };
            let begun = self.settle(Call::Begin(begin), &mut failures).await;
            let Answer::Begin(v1::BeginResponse { result: Some(begin_response::Result::Claim(claim)) }) =
                begun
            else {
                panic!("{begun:?}")
            };
            let result = Some(v1::outcome::Result::Response("done".into()));
            let complete = v1::CompleteRequest {
                namespace,
                key,
                fencing_token: claim.fencing_token,
                outcome: Some(v1::Outcome { result, ..v1::Outcome::default() }),
                retention: None,
            };
            let completed = self.settle(Call::Complete(complete), &mut failures).await;
            assert!(matches!(completed, Answer::Complete(_)));
        }
        failures
    }

    async fn settle(&self, call: Call, failures: &mut usize) -> Answer {
        let settled = async {
            loop {
                match self.caller.call(call.clone(), None).await {
                    Ok(answer) => return answer,
                    Err(status) if status.code == tonic::Code::Unavailable as i32 => *failures += 1,
                    Err(status) => panic!("{status:?}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.expect("an answer")
    }

    /// How often calls moved to another member.
    fn moves(&self) -> u64 {
        self.numbers.counter("onced_etcd_endpoint_failovers_total")
    }

    /// Whether the member counts as up.
    fn is_up(&self) -> bool {
        is_up(self.numbers, &self.member)
    }
}

fn is_up(numbers: &Numbers, endpoint: &str) -> bool {
    numbers.gauge("onced_etcd_endpoint_up", "endpoint", endpoint) > 0.0
}

/// A fault of the network around a member.
struct Fault<'a> {
    what: &'a str,
    member: usize,
    begin: &'a dyn Fn(),
    /// Whether the member hears a leader all the time.
    hears_leader: bool,
}

impl Fault<'_> {
    /// Works beside the fault, and after it. Until it is found out it costs a call its time, once.
    async fn work_beside(self, etcd: &EtcdCluster) {
        let Self { what, member, .. } = self;
        let numbers = Numbers::default();
        let _here = metrics::set_default_local_recorder(&numbers);
        let service = Service::start(etcd, member, &numbers).await;
        let others_elect = etcd.leader() == member;
        (self.begin)();
        // Nobody else serves either before they have elected a leader.
        let finding_out = service.work("first", 1).await;
        let failures = service.work("beside", OPERATIONS).await + if others_elect { 0 } else { finding_out };
        assert!(failures <= 1, "{what}: {failures} calls failed");
        assert!(service.moves() > 0 && !service.is_up(), "{what}: calls did not move");
        if self.hears_leader {
            assert!(etcd.has_leader(member), "{what}: it lost its leader");
        } else {
            eventually(&format!("{what}: it loses its leader"), || !etcd.has_leader(member)).await;
        }
        etcd.heal();
        eventually(&format!("{what}, healed: it is up"), || service.is_up()).await;
        assert_eq!(service.work("after", OPERATIONS).await, 0, "{what}, healed");
    }
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let comes = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, comes).await.expect(what);
}

#[tokio::test]
async fn a_member_parted_from_the_others_costs_a_call_its_time_once() {
    let etcd = EtcdCluster::start();
    for (what, member) in [("a follower parted", etcd.follower()), ("the leader parted", etcd.leader())] {
        let begin = || etcd.isolate(member);
        Fault { what, member, begin: &begin, hears_leader: false }.work_beside(&etcd).await;
    }
}

#[tokio::test]
async fn messages_lost_one_way_cost_a_call_its_time_once() {
    let etcd = EtcdCluster::start();
    let (leader, member) = etcd.leader_and_follower();
    let begin = || etcd.cut(member, leader);
    // It is well as far as it knows, and so it says.
    Fault { what: "a follower unheard", member, begin: &begin, hears_leader: true }.work_beside(&etcd).await;
    let (leader, member) = etcd.leader_and_follower();
    let begin = || etcd.cut(leader, member);
    Fault { what: "a follower deaf", member, begin: &begin, hears_leader: false }.work_beside(&etcd).await;
    let member = etcd.leader();
    let begin = || (0..MEMBERS).filter(|&it| it != member).for_each(|it| etcd.cut(it, member));
    Fault { what: "the leader deaf", member, begin: &begin, hears_leader: false }.work_beside(&etcd).await;
}

#[tokio::test]
async fn a_cluster_that_comes_back_slow_is_waited_for() {
    let etcd = EtcdCluster::start();
    let (proxies, behind) = etcd.behind_proxies().await;
    let numbers = Numbers::default();
    let _here = metrics::set_default_local_recorder(&numbers);
    let store = open(&EtcdConfig { call_timeout: PATIENCE, ..behind.clone() }).await;
    create(&store, &key("before"), &completed("holder", "done")).await;
    let up = || behind.endpoints.iter().filter(|at| is_up(&numbers, at)).count();
    assert_eq!(up(), MEMBERS);
    (0..MEMBERS).for_each(|member| etcd.isolate(member));
    let all_down = async {
        while up() > 0 {
            // Each member says that it has no leader.
            let _ = store.load(&key("k")).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_down).await.expect("all are down");
    // Longer than a probe waits, and than it takes until the next one has waited.
    proxies.iter().for_each(|proxy| proxy.slow(2_500));
    etcd.heal();
    etcd.leader();
    for call in 0..3 {
        create(&store, &key(&format!("k{call}")), &completed("holder", "done")).await;
    }
    assert!(up() > 0, "what answers is not down");
}

#[tokio::test]
async fn a_member_that_answers_what_it_can_by_itself_is_not_taken_for_well() {
    let etcd = EtcdCluster::start();
    let (leader, follower) = etcd.leader_and_follower();
    let (proxies, behind) = etcd.behind_proxies().await;
    let numbers = Numbers::default();
    let _here = metrics::set_default_local_recorder(&numbers);
    let store = open(&behind).await;
    let is_up = || is_up(&numbers, &behind.endpoints[follower]);
    etcd.cut(follower, leader);
    eventually("it is found out", || !is_up()).await;
    // Nobody else is there to be asked.
    (0..MEMBERS).filter(|&member| member != follower).for_each(|member| proxies[member].close());
    // It would begin a watch. But whether it has this store, it cannot tell by itself.
    assert!(store.watch(&key("k")).await.is_err());
    assert!(!is_up());
}
