//! Two servers on one cluster, callers of both who never stop, and members of the cluster that die, freeze, lose
//! each other and come back meanwhile; a server that is killed, and one that stands still until others have taken over
//! from its callers; answers that are lost, and an etcd that is full.
//! `ONCED_TEST_ROUNDS` says how often all of that happens.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join;
use tokio::task::block_in_place;

use super::callers::{World, back_after, call_on, one_is_late, overtaken, read_all};
use crate::support::call_proxy::{CallProxy, Fate, TXN};
use crate::support::cluster::{EtcdCluster, MEMBERS};
use crate::support::onced::ServerProcess;
use crate::support::rounds::rounds;
use crate::support::server::HANGS;

/// How long a fault lasts beyond what the service needs to come back.
const A_WHILE: Duration = Duration::from_millis(500);

/// How many answers of etcd are lost, one after the other.
const ANSWERS_LOST: usize = 10;

/// The scene: what blocks here gives its thread up first.
struct Scene {
    etcd: EtcdCluster,
    world: Arc<World>,
    processes: Mutex<[ServerProcess; 2]>,
    servers: [SocketAddr; 2],
    /// Between the members and the second server.
    proxies: Vec<CallProxy>,
}

impl Scene {
    async fn set() -> Self {
        let etcd = block_in_place(EtcdCluster::start);
        let mut proxies = Vec::new();
        for endpoint in etcd.endpoints() {
            proxies.push(CallProxy::start(endpoint).await);
        }
        let proxied: Vec<_> = proxies.iter().map(CallProxy::endpoint).collect();
        let stores = [etcd.endpoints(), proxied].map(|members| format!("etcd://{}/onced", members.join(",")));
        let processes = block_in_place(|| stores.map(|store| ServerProcess::start(&store)));
        let servers = processes.each_ref().map(ServerProcess::address);
        Self { etcd, world: World::new(), processes: Mutex::new(processes), servers, proxies }
    }

    /// Waits until both servers write again, and tells how long that took from when there was a quorum.
    async fn back(&self, what: &str, since: onced::clock::Moment) {
        let [one, other] = self.servers.map(|server| back_after(&self.world, server, since));
        let (one, other) = join(one, other).await;
        let failed = self.world.take_failed();
        println!("{what}: the servers write again after {one:.1?} and {other:.1?}, {failed} calls failed");
    }

    async fn a_server_dies(&self) {
        let which = fastrand::usize(0..2);
        block_in_place(|| {
            let mut processes = self.processes.lock().expect("nobody panics with it");
            processes[which].kill_and_restart();
        });
        self.back("a server killed and restarted", self.world.now()).await;
    }

    /// A server stands still for longer than the locks live that its callers hold, and then goes on with what it has.
    async fn a_server_stands_still(&self) {
        let (still, other) = if fastrand::bool() { (0, 1) } else { (1, 0) };
        let process = || self.processes.lock().expect("nobody panics with it");
        let (freeze, thaw) = (|| process()[still].freeze(), || process()[still].thaw());
        let servers = [self.servers[still], self.servers[other]];
        let refused = overtaken(&self.world, servers, || block_in_place(freeze), thaw).await;
        self.back(&format!("a server stood still, {refused} of its callers overtaken"), self.world.now())
            .await;
    }

    /// Transactions are done, and nobody hears of it.
    async fn answers_are_lost(&self) {
        let since = self.world.now();
        for _ in 0..ANSWERS_LOST {
            self.proxies.iter().for_each(CallProxy::forget_befallen);
            self.proxies.iter().for_each(|proxy| proxy.plan(TXN, 0, Fate::LoseAnswer));
            let lost = async {
                while !self.proxies.iter().any(|proxy| proxy.befallen().is_some()) {
                    tokio::time::sleep(A_WHILE / 10).await;
                }
            };
            tokio::time::timeout(HANGS, lost).await.expect("its server sends transactions");
        }
        self.proxies.iter().for_each(CallProxy::forget_plan);
        self.back("answers of etcd lost", since).await;
    }

    async fn etcd_is_full(&self) {
        self.etcd.alarm_for_want_of_space(true).await;
        let before = self.world.told_full();
        let felt = async {
            while self.world.told_full() == before {
                tokio::time::sleep(A_WHILE / 10).await;
            }
        };
        tokio::time::timeout(HANGS, felt).await.expect("callers are told");
        self.etcd.alarm_for_want_of_space(false).await;
        self.back("etcd full, and no longer", self.world.now()).await;
    }

    async fn the_leader_dies(&self) {
        let leader = block_in_place(|| self.etcd.leader());
        let since = self.world.now();
        block_in_place(|| self.etcd.kill(leader));
        self.back("the leader killed", since).await;
        block_in_place(|| self.etcd.restart(leader));
    }

    async fn a_member_freezes(&self) {
        let (what, member) = if fastrand::bool() {
            ("the leader", block_in_place(|| self.etcd.leader()))
        } else {
            ("a follower", block_in_place(|| self.etcd.follower()))
        };
        let since = self.world.now();
        block_in_place(|| self.etcd.freeze(member));
        self.back(&format!("{what} frozen"), since).await;
        tokio::time::sleep(A_WHILE).await;
        let since = self.world.now();
        block_in_place(|| self.etcd.thaw(member));
        self.back(&format!("{what} thawed"), since).await;
    }

    async fn the_leader_moves(&self) {
        let since = self.world.now();
        self.etcd.move_leader().await;
        self.back("the leader moved", since).await;
    }

    async fn the_leader_is_parted(&self) {
        let leader = block_in_place(|| self.etcd.leader());
        let since = self.world.now();
        self.etcd.isolate(leader);
        self.back("the leader parted", since).await;
        self.heals("the leader parted").await;
    }

    /// What some members send to others is lost, and not what these send to them.
    async fn messages_are_lost_one_way(&self) {
        let leader = block_in_place(|| self.etcd.leader());
        let followers = || (0..MEMBERS).filter(|&member| member != leader);
        let since = self.world.now();
        let what = if fastrand::bool() {
            followers().for_each(|follower| self.etcd.cut(follower, leader));
            "the leader deaf"
        } else {
            followers().for_each(|follower| self.etcd.cut(leader, follower));
            "the leader unheard"
        };
        self.back(what, since).await;
        self.heals(what).await;
    }

    /// What was lost on the way until now arrives: requests of followers to the leader, too.
    async fn heals(&self, what: &str) {
        tokio::time::sleep(A_WHILE).await;
        let since = self.world.now();
        self.etcd.heal();
        self.back(&format!("{what}, healed"), since).await;
    }

    async fn history_is_compacted(&self) {
        let since = self.world.now();
        self.etcd.compact_and_defragment().await;
        self.back("compacted and defragmented", since).await;
    }

    async fn there_is_no_quorum(&self) {
        let (leader, follower) = block_in_place(|| self.etcd.leader_and_follower());
        block_in_place(|| {
            self.etcd.kill(leader);
            self.etcd.kill(follower);
        });
        tokio::time::sleep(2 * A_WHILE).await;
        block_in_place(|| self.etcd.restart(follower));
        // It serves, so two are a quorum and have a leader.
        self.back("a quorum again", self.world.now()).await;
        block_in_place(|| self.etcd.restart(leader));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_outcome_is_lost_and_nothing_done_twice_while_members_die_freeze_and_lose_each_other() {
    let scene = Scene::set().await;
    let servers = scene.servers;
    let calling = tokio::spawn(call_on(Arc::clone(&scene.world), servers));
    for _ in 0..rounds(1) {
        tokio::time::sleep(A_WHILE).await;
        scene.the_leader_dies().await;
        scene.a_member_freezes().await;
        scene.the_leader_is_parted().await;
        scene.messages_are_lost_one_way().await;
        scene.the_leader_moves().await;
        scene.history_is_compacted().await;
        scene.a_server_dies().await;
        scene.a_server_stands_still().await;
        scene.answers_are_lost().await;
        scene.etcd_is_full().await;
        scene.there_is_no_quorum().await;
        block_in_place(|| scene.etcd.wait_healthy());
    }
    let healed = scene.world.now();
    // A new leader gives every lease its full time again: only now do locks lapse for sure.
    one_is_late(&scene.world, servers).await;
    scene.world.stop();
    calling.await.expect("no caller panicked");
    read_all(&scene.world, servers).await;
    let totals = scene.world.check(healed, false);
    println!("{totals:?}, {MEMBERS} members");
    totals.shows_enough().unwrap_or_else(|missing| panic!("{missing}"));
    assert!(totals.claims > 100 && totals.outcomes > totals.keys, "{totals:?}");
    assert!(scene.world.failed_in_all() > 0, "the faults were not felt: {totals:?}");
}
