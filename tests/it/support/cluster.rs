//! A real etcd of three members, to be killed and frozen one by one, and parted from each other.

use std::array;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Client, GetOptions};
use onced::store::etcd::EtcdConfig;

use super::etcd::{EtcdProcess, Member, Ports, fresh_prefix, start_ready};
use super::peers::PeerNetwork;
use super::proxy::Proxy;

/// How many members there are: the fewest of which one may fail.
pub const MEMBERS: usize = 3;

/// How long a leader may take to be found, in steps of [`STEP`].
const LEADER_STEPS: u32 = 600;
const STEP: Duration = Duration::from_millis(50);
/// How often a leader may fail to have another one lead.
const LEADER_MOVES: u32 = 10;

/// Three etcd processes on loopback, each with its own data. They end when dropped, or with the tests. What
/// takes time here blocks its thread.
pub struct EtcdCluster {
    members: [EtcdProcess; MEMBERS],
    network: PeerNetwork,
    away: Mutex<[bool; MEMBERS]>,
}

impl EtcdCluster {
    /// Starts a cluster, and waits until all its members serve.
    pub fn start() -> Self {
        const NAMES: [&str; MEMBERS] = ["m0", "m1", "m2"];
        let mut network = None;
        let members = start_ready(|| {
            let ports: [Ports; MEMBERS] = array::from_fn(|_| Ports::free());
            let between = &*network.insert(PeerNetwork::start(ports.map(|ports| ports.peer)));
            let urls: [String; MEMBERS] = array::from_fn(|i| between.url(i));
            let cluster = NAMES.iter().zip(&urls).map(|(name, url)| format!("{name}={url}"));
            let cluster = &cluster.collect::<Vec<_>>().join(",");
            array::from_fn(|i| {
                EtcdProcess::spawn(
                    &Member { name: NAMES[i], index: i, ports: ports[i], peer_url: &urls[i], cluster },
                    &[],
                )
            })
        });
        let network = network.expect("members were started");
        network.introduce(members.each_ref().map(EtcdProcess::id));
        Self { members, network, away: Mutex::default() }
    }

    /// Where its members listen, as host:port.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(EtcdProcess::endpoint).collect()
    }

    /// A store in it, on a prefix that nobody else has.
    pub fn config(&self) -> EtcdConfig {
        EtcdConfig::new(self.endpoints(), fresh_prefix())
    }

    /// A proxy in front of each member, and a config that goes through them: to part clients from members that
    /// are well.
    pub async fn behind_proxies(&self) -> ([Proxy; MEMBERS], EtcdConfig) {
        let [one, two, three] = &self.members;
        let proxies = [
            Proxy::start(one.endpoint()).await,
            Proxy::start(two.endpoint()).await,
            Proxy::start(three.endpoint()).await,
        ];
        let endpoints = proxies.iter().map(Proxy::endpoint).collect();
        (proxies, EtcdConfig { endpoints, ..self.config() })
    }

    /// Ends a member as by kill -9.
    pub fn kill(&self, member: usize) {
        self.away()[member] = true;
        self.members[member].kill();
    }

    /// Starts a member again, and waits until it serves. That takes a quorum.
    pub fn restart(&self, member: usize) {
        self.members[member].restart();
        self.away()[member] = false;
    }

    /// Stops a member in its tracks, connections open.
    pub fn freeze(&self, member: usize) {
        self.away()[member] = true;
        self.members[member].freeze();
    }

    /// Lets a frozen member go on.
    pub fn thaw(&self, member: usize) {
        self.members[member].thaw();
        self.away()[member] = false;
    }

    /// From now on, what one member sends to another is lost.
    pub fn cut(&self, from: usize, to: usize) {
        self.network.cut(from, to);
    }

    /// Parts a member from the others. Clients still reach it.
    pub fn isolate(&self, member: usize) {
        for other in (0..MEMBERS).filter(|&other| other != member) {
            self.cut(member, other);
            self.cut(other, member);
        }
    }

    /// All members reach each other again.
    pub fn heal(&self) {
        self.network.heal();
    }

    /// Has the leader let another one lead. On a slow machine one may take too long to, and be given up by etcd.
    pub async fn move_leader(&self) {
        for _ in 0..LEADER_MOVES {
            let (leader, follower) = tokio::task::block_in_place(|| self.leader_and_follower());
            let id = u64::from_str_radix(&self.members[follower].id(), 16).expect("an id");
            let client = Client::connect([self.members[leader].endpoint()], None).await.expect("a member");
            match client.maintenance_client().move_leader(id).await {
                Ok(_) => return,
                Err(error) => println!("the leader did not move: {error}"),
            }
        }
        panic!("no leader lets another one lead");
    }

    /// Has etcd forget its history, and its members give the room back that this makes: each stands still meanwhile.
    /// Revokes the leases of all keys that there are below a prefix: how many.
    pub async fn revoke_leases(&self, prefix: &str) -> usize {
        let client = Client::connect(self.endpoints(), None).await.expect("a member");
        let found =
            client.kv_client().get(prefix, Some(GetOptions::new().with_prefix())).await.expect("an answer");
        let leases: BTreeSet<i64> =
            found.kvs().iter().map(|kv| kv.lease()).filter(|lease| *lease != 0).collect();
        for &lease in &leases {
            // It may have ended by itself.
            let _ = client.lease_client().revoke(lease).await;
        }
        leases.len()
    }

    pub async fn compact_and_defragment(&self) {
        for member in &self.members {
            let client = Client::connect([member.endpoint()], None).await.expect("a member");
            let status = client.maintenance_client().status().await.expect("its status");
            let revision = status.header().expect("a header").revision();
            // Another member has already, if nothing was written since.
            let _ = client.kv_client().compact(revision, None).await;
            client.maintenance_client().defragment().await.expect("it defragments");
        }
    }

    /// Has every member say that there is no space, or no longer.
    pub async fn alarm_for_want_of_space(&self, on: bool) {
        let action = if on { AlarmAction::Activate } else { AlarmAction::Deactivate };
        for member in &self.members {
            let id = u64::from_str_radix(&member.id(), 16).expect("an id");
            let client = Client::connect([member.endpoint()], None).await.expect("a member");
            let mut options = AlarmOptions::new();
            options.with_member(id);
            let alarm = client.maintenance_client().alarm(action, AlarmType::Nospace, Some(options)).await;
            alarm.expect("it is noted");
        }
    }

    /// The member that leads, once exactly one of those that are there says that it does.
    pub fn leader(&self) -> usize {
        for _ in 0..LEADER_STEPS {
            let away = *self.away();
            let mut leading = (0..MEMBERS).filter(|&i| !away[i] && self.members[i].leads());
            if let (Some(leader), None) = (leading.next(), leading.next()) {
                return leader;
            }
            std::thread::sleep(STEP);
        }
        panic!("nobody leads");
    }

    /// Whether a member hears a leader, be it itself.
    pub fn has_leader(&self, member: usize) -> bool {
        self.members[member].has_leader()
    }

    /// A member that is there and does not lead.
    pub fn follower(&self) -> usize {
        self.leader_and_follower().1
    }

    /// The member that leads, and another that is there.
    pub fn leader_and_follower(&self) -> (usize, usize) {
        let (leader, away) = (self.leader(), *self.away());
        let follower = (0..MEMBERS).find(|&i| i != leader && !away[i]);
        (leader, follower.expect("a follower"))
    }

    /// Waits until all members that are there serve.
    pub fn wait_healthy(&self) {
        let away = *self.away();
        for (member, _) in self.members.iter().zip(away).filter(|(_, away)| !away) {
            if let Err(log) = member.wait_ready() {
                panic!("a member does not serve:\n{log}");
            }
        }
    }

    fn away(&self) -> std::sync::MutexGuard<'_, [bool; MEMBERS]> {
        self.away.lock().expect("nobody panics with it")
    }
}
