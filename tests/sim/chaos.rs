//! What goes wrong around the calls, and when, as the seed has it: links, hosts, leaders, streams, space.

use std::time::Duration;

use fastrand::Rng;
use onced_history::Time;
use turmoil::Sim;

use crate::fake_etcd::{FakeEtcd, Space};
use crate::scene::{CALLER_HOSTS, LATENCY_MAX, SERVERS, callers, member, server};
use crate::weather::{CutOff, MEMBERS, Weather};

/// All troubles that there are.
pub const NAMES: &[&str] = &[
    "compactions",
    "etcd full",
    "leaders moved",
    "links cut",
    "links cut one way",
    "links held",
    "locks ended early",
    "members cut off",
    "members down",
    "servers down",
    "slow networks",
    "streams broken",
    "streams frozen",
];

/// What the faults act on.
pub struct Stage<'a, 'b> {
    pub sim: &'a mut Sim<'b>,
    pub etcd: &'a FakeEtcd,
    pub weather: &'a Weather,
}

/// The troubles of a simulation.
pub struct Chaos {
    rng: Rng,
    to_come: Vec<Trouble>,
    under_way: Vec<Trouble>,
}

struct Trouble {
    from: Time,
    to: Time,
    what: What,
}

#[derive(Clone, PartialEq, Eq)]
enum What {
    /// Nothing passes between two hosts.
    Cut(String, String),
    /// Nothing passes from the one to the other.
    CutOneWay(String, String),
    /// What passes between them waits.
    Held(String, String),
    ServerDown(usize),
    MemberDown(usize),
    MemberCutOff(usize, CutOff),
    StreamsFrozen(usize),
    StreamsBroken(usize),
    /// Nobody leads for a while, after a last write that nobody hears of; the new leader gives every lease its whole time again.
    NoLeader(CutOff),
    /// An old leader ends leases that a new one has renewed.
    LocksEndEarly,
    /// What streams have not told yet is compacted away.
    Compaction,
    Full,
    Slow,
}

impl Chaos {
    /// Troubles that are all over by `healed`.
    pub fn plan(mut rng: Rng, healed: Time) -> Self {
        let count = rng.usize(1..=4);
        let mut to_come: Vec<Trouble> = (0..count)
            .map(|_| {
                let from = healed.mul_f64(0.9 * rng.f64());
                let to = from + Duration::from_millis(1 << rng.u32(7..13));
                Trouble { from, to, what: What::any(&mut rng) }
            })
            .collect();
        to_come.sort_by_key(|trouble| trouble.from);
        Self { rng, to_come, under_way: Vec::new() }
    }

    /// Whether a lock may end before its time.
    pub fn ends_locks_early(&self) -> bool {
        self.to_come.iter().any(|trouble| trouble.what == What::LocksEndEarly)
    }

    /// Whether servers stay up, and callers and they can hear each other: no late answer has an excuse then.
    pub fn spares_servers(&self) -> bool {
        !self.to_come.iter().any(|trouble| trouble.what.hinders_callers())
    }

    /// Begins and ends what is due.
    pub fn act(&mut self, stage: &mut Stage<'_, '_>) {
        let now = stage.sim.elapsed();
        for over in self.under_way.extract_if(.., |trouble| trouble.to <= now).collect::<Vec<_>>() {
            over.what.end(stage);
        }
        for due in self.to_come.extract_if(.., |trouble| trouble.from <= now).collect::<Vec<_>>() {
            let alike =
                |other: &Trouble| due.what.place().is_some() && other.what.place() == due.what.place();
            if !self.under_way.iter().any(alike) {
                stage.weather.count(due.what.name());
                due.what.begin(stage, &mut self.rng);
                self.under_way.push(due);
            }
        }
    }

    /// Ends all of it.
    pub fn heal(&mut self, stage: &mut Stage<'_, '_>) {
        self.to_come.clear();
        for trouble in self.under_way.drain(..) {
            trouble.what.end(stage);
        }
        stage.weather.clear();
    }
}

impl What {
    fn any(rng: &mut Rng) -> Self {
        let cut_off = if rng.bool() { CutOff::Silent } else { CutOff::SaysSo };
        match rng.u8(..16) {
            0 | 1 => {
                let (one, other) = link(rng);
                What::Cut(one, other)
            }
            2 => {
                let (one, other) = link(rng);
                if rng.bool() { What::CutOneWay(one, other) } else { What::CutOneWay(other, one) }
            }
            3 | 4 => {
                let (one, other) = link(rng);
                What::Held(one, other)
            }
            5 | 6 => What::ServerDown(rng.usize(..SERVERS)),
            7 => What::MemberDown(rng.usize(..MEMBERS)),
            8 => What::MemberCutOff(rng.usize(..MEMBERS), cut_off),
            9 => What::StreamsFrozen(rng.usize(..MEMBERS)),
            10 => What::StreamsBroken(rng.usize(..MEMBERS)),
            11 | 15 => What::NoLeader(cut_off),
            12 => What::LocksEndEarly,
            13 => What::Compaction,
            _ if rng.bool() => What::Full,
            _ => What::Slow,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            What::Cut(..) => "links cut",
            What::CutOneWay(..) => "links cut one way",
            What::Held(..) => "links held",
            What::ServerDown(_) => "servers down",
            What::MemberDown(_) => "members down",
            What::MemberCutOff(..) => "members cut off",
            What::StreamsFrozen(_) => "streams frozen",
            What::StreamsBroken(_) => "streams broken",
            What::NoLeader(_) => "leaders moved",
            What::LocksEndEarly => "locks ended early",
            What::Compaction => "compactions",
            What::Full => "etcd full",
            What::Slow => "slow networks",
        }
    }

    /// Where it happens, if there may be one at a time.
    fn place(&self) -> Option<String> {
        Some(match self {
            What::Cut(one, other) | What::CutOneWay(one, other) | What::Held(one, other) => {
                format!("link {} {}", one.min(other), one.max(other))
            }
            What::ServerDown(i) => server(*i),
            What::MemberDown(i) => member(*i),
            // One of them at all.
            What::MemberCutOff(..)
            | What::StreamsFrozen(_)
            | What::StreamsBroken(_)
            | What::NoLeader(_)
            | What::Compaction => "leader and streams".to_owned(),
            What::Full => "space".to_owned(),
            What::Slow => "latency".to_owned(),
            What::LocksEndEarly => return None,
        })
    }

    /// Whether it is between callers and servers, or at a server; not at the store, or on the way there.
    fn hinders_callers(&self) -> bool {
        let is_caller = |host: &String| (0..CALLER_HOSTS).any(|i| *host == callers(i));
        match self {
            What::Cut(one, other) | What::CutOneWay(one, other) | What::Held(one, other) => {
                is_caller(one) || is_caller(other)
            }
            What::ServerDown(_) | What::Slow => true,
            What::MemberDown(_)
            | What::MemberCutOff(..)
            | What::StreamsFrozen(_)
            | What::StreamsBroken(_)
            | What::NoLeader(_)
            | What::LocksEndEarly
            | What::Compaction
            | What::Full => false,
        }
    }

    fn begin(&self, Stage { sim, etcd, weather }: &mut Stage<'_, '_>, rng: &mut Rng) {
        match self {
            What::Cut(one, other) => sim.partition(one.as_str(), other.as_str()),
            What::CutOneWay(from, to) => sim.partition_oneway(from.as_str(), to.as_str()),
            What::Held(one, other) => sim.hold(one.as_str(), other.as_str()),
            What::ServerDown(i) => sim.crash(server(*i)),
            What::MemberDown(i) => sim.crash(member(*i)),
            What::MemberCutOff(i, how) => weather.cut_off(*i, Some(*how)),
            What::StreamsFrozen(i) => weather.freeze_streams(*i, true),
            What::StreamsBroken(i) => weather.break_streams(*i, true),
            What::NoLeader(how) => weather.lose_leader(Some(*how)),
            What::LocksEndEarly => etcd.with(|data, _| {
                for lease in data.leases_of("/l/") {
                    if rng.bool() {
                        data.revoke(lease).expect("it exists");
                    }
                }
            }),
            What::Compaction => (0..MEMBERS).for_each(|i| weather.freeze_streams(i, true)),
            What::Full => etcd.with(|data, _| data.set_space(Space::NearlyFull)),
            What::Slow => sim.set_max_message_latency(LATENCY_MAX * 20),
        }
    }

    fn end(&self, Stage { sim, etcd, weather }: &mut Stage<'_, '_>) {
        match self {
            What::Cut(one, other) => sim.repair(one.as_str(), other.as_str()),
            What::CutOneWay(from, to) => sim.repair_oneway(from.as_str(), to.as_str()),
            What::Held(one, other) => sim.release(one.as_str(), other.as_str()),
            What::ServerDown(i) => sim.bounce(server(*i)),
            What::MemberDown(i) => sim.bounce(member(*i)),
            What::MemberCutOff(i, _) => weather.cut_off(*i, None),
            What::StreamsFrozen(i) => weather.freeze_streams(*i, false),
            What::StreamsBroken(i) => weather.break_streams(*i, false),
            What::NoLeader(_) => {
                weather.lose_leader(None);
                etcd.with(|data, now| data.renew_leases(now));
            }
            What::LocksEndEarly => {}
            What::Compaction => {
                etcd.with(|data, _| data.compact(data.revision()));
                (0..MEMBERS).for_each(|i| weather.freeze_streams(i, false));
            }
            What::Full => etcd.with(|data, _| data.set_space(Space::Enough)),
            What::Slow => sim.set_max_message_latency(LATENCY_MAX),
        }
    }
}

/// Two hosts that talk to each other.
fn link(rng: &mut Rng) -> (String, String) {
    let one = server(rng.usize(..SERVERS));
    let other = if rng.bool() { member(rng.usize(..MEMBERS)) } else { callers(rng.usize(..CALLER_HOSTS)) };
    (one, other)
}
