//! What goes wrong inside etcd, call by call, as the seed has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use etcd_client::proto::{PbTxnOpRequest, PbTxnRequest};
use fastrand::Rng;
use prost::Message;
use tonic::Status;

use crate::fake_etcd::{Data, Effect, Ending, EventFate, Fate, Faults, StreamFate};
use crate::scene::PREFIX;

pub const MEMBERS: usize = 3;

/// How often each fault was met, by its name.
pub type Counts = BTreeMap<&'static str, u64>;

/// All that may be met.
pub const NAMES: &[&str] = &[
    "calls answered late",
    "calls refused without a leader",
    "calls served late",
    "calls that failed before they were served",
    "calls to a member cut off",
    "deadlines passed while only the store was ill",
    "events lost",
    "events told twice",
    "last writes of a leader",
    "locks armed",
    "outcomes told late in their retention",
    "records expired",
    "streams that broke",
    "watches cancelled by compaction",
    "writes refused for a lease that is gone",
    "writes refused for want of room",
    "writes that landed late",
    "writes whose answer was lost",
];

/// How a member says that it did nothing.
const NO_LEADER: &str = "etcdserver: no leader";

pub struct Weather(Mutex<Inner>);

struct Inner {
    rng: Rng,
    rates: Option<Rates>,
    members: [State; MEMBERS],
    /// Whether a leader that is lost is still to do a transaction, of which nobody hears.
    last_write: bool,
    /// The writes that came, but for those that were surely not done.
    came: BTreeSet<Vec<u8>>,
    counts: Counts,
}

/// How likely a fault is.
struct Rates {
    failed: f64,
    answer_lost: f64,
    lands_late: f64,
    served_late: f64,
    answered_late: f64,
    event_lost: f64,
    event_twice: f64,
}

/// What a member is like just now.
#[derive(Clone, Copy, Default)]
struct State {
    /// It has no leader.
    cut_off: Option<CutOff>,
    streams_frozen: bool,
    /// Its streams end, as soon as they look.
    streams_break: bool,
}

/// What a member without a leader does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum CutOff {
    Silent,
    SaysSo,
}

impl Weather {
    /// Fair weather for now.
    pub fn new(rng: Rng) -> Self {
        Self(Mutex::new(Inner {
            rng,
            rates: None,
            members: [State::default(); MEMBERS],
            last_write: false,
            came: BTreeSet::new(),
            counts: Counts::new(),
        }))
    }

    /// From now on calls fail, each seed's in its own way: of each kind none, few, or many.
    pub fn turn_bad(&self) {
        let mut inner = self.inner();
        let mut rate = |most: f64| match inner.rng.u8(..3) {
            0 => 0.0,
            1 => most / 5.0,
            _ => most,
        };
        let rates = Rates {
            failed: rate(0.05),
            answer_lost: rate(0.10),
            lands_late: rate(0.05),
            served_late: rate(0.10),
            answered_late: rate(0.10),
            event_lost: rate(0.30),
            event_twice: rate(0.30),
        };
        inner.rates = Some(rates);
    }

    /// From now on nothing fails.
    pub fn clear(&self) {
        let mut inner = self.inner();
        inner.rates = None;
        inner.members = [State::default(); MEMBERS];
        inner.last_write = false;
    }

    pub fn cut_off(&self, member: usize, cut_off: Option<CutOff>) {
        self.inner().members[member].cut_off = cut_off;
    }

    /// From now on there is no leader, or there is one again.
    pub fn lose_leader(&self, how: Option<CutOff>) {
        (0..MEMBERS).for_each(|i| self.cut_off(i, how));
        self.inner().last_write = how.is_some();
    }

    pub fn freeze_streams(&self, member: usize, frozen: bool) {
        self.inner().members[member].streams_frozen = frozen;
    }

    pub fn break_streams(&self, member: usize, broken: bool) {
        self.inner().members[member].streams_break = broken;
    }

    pub fn count(&self, what: &'static str) {
        *self.inner().counts.entry(what).or_default() += 1;
    }

    pub fn counts(&self) -> Counts {
        self.inner().counts.clone()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nobody panicked")
    }
}

impl Inner {
    fn ending(&mut self) -> Ending {
        match self.rng.u8(..4) {
            0 => Ending::Error(Status::unavailable("etcdserver: request timed out")),
            1 => Ending::Error(Status::unavailable("etcdserver: leader changed")),
            2 => Ending::Error(Status::unknown("transport error")),
            _ => Ending::Silence,
        }
    }

    fn millis(&mut self, most: u64) -> Duration {
        // Mostly short ones.
        Duration::from_millis(1 << self.rng.u32(4..=most.ilog2()))
    }

    fn call(&mut self, member: usize, effect: Effect<'_>) -> (&'static str, Fate) {
        if matches!(effect, Effect::Transaction(_)) && std::mem::take(&mut self.last_write) {
            let ending = Ending::Error(Status::unavailable("etcdserver: leader changed"));
            return ("last writes of a leader", Fate::AnswerLost(ending));
        }
        match self.members[member].cut_off {
            Some(CutOff::Silent) => return ("calls to a member cut off", Fate::Failed(Ending::Silence)),
            Some(CutOff::SaysSo) => {
                let status = Status::unavailable(NO_LEADER);
                return ("calls refused without a leader", Fate::Failed(Ending::Error(status)));
            }
            None => {}
        }
        let Some(rates) = &self.rates else { return ("", Fate::Served) };
        let mut draw = self.rng.f64();
        let mut is = |rate: f64| {
            draw -= rate;
            draw < 0.0
        };
        let (failed, served_late, answered_late) =
            (is(rates.failed), is(rates.served_late), is(rates.answered_late));
        let (answer_lost, lands_late) = (is(rates.answer_lost), is(rates.lands_late));
        if failed {
            return ("calls that failed before they were served", Fate::Failed(self.ending()));
        }
        if served_late {
            return ("calls served late", Fate::ServedLate(self.millis(4_096)));
        }
        if answered_late {
            return ("calls answered late", Fate::AnsweredLate(self.millis(4_096)));
        }
        if effect == Effect::Read {
            return ("", Fate::Served);
        }
        if answer_lost {
            return ("writes whose answer was lost", Fate::AnswerLost(self.ending()));
        }
        if lands_late {
            let after = Duration::from_millis(200) + self.millis(8_192);
            return ("writes that landed late", Fate::LandsLate(after, self.ending()));
        }
        ("", Fate::Served)
    }
}

impl Inner {
    /// Whether a write that arms a lock may have been done before. None of these is built twice: each has its time
    /// in it. Others may come again, as they expect a revision that is there once: a claim is given back so.
    fn comes_again(&mut self, txn: &PbTxnRequest, fate: &Fate) -> bool {
        let surely_not_done = matches!(fate, Fate::Failed(Ending::Error(why)) if why.message() == NO_LEADER);
        let bytes = txn.encode_to_vec();
        let again = arms_a_lock(txn) && self.came.contains(&bytes);
        if !surely_not_done {
            self.came.insert(bytes);
        }
        again
    }
}

impl Faults for Weather {
    fn call(&self, member: usize, effect: Effect<'_>) -> Fate {
        let (what, fate) = self.inner().call(member, effect);
        if let Effect::Transaction(txn) = effect {
            let again = self.inner().comes_again(txn, &fate);
            assert!(!again, "a claim or a renewal was sent again that may have been done");
        }
        if !what.is_empty() {
            self.count(what);
        }
        fate
    }

    fn stream(&self, member: usize) -> StreamFate {
        let state = self.inner().members[member];
        if state.streams_break || matches!(state.cut_off, Some(CutOff::SaysSo)) {
            self.count("streams that broke");
            return StreamFate::Breaks(Status::unavailable(NO_LEADER));
        }
        match state.streams_frozen || state.cut_off.is_some() {
            true => StreamFate::Silent,
            false => StreamFate::Tells,
        }
    }

    fn met(&self, what: &'static str) {
        self.count(what);
    }

    /// A lock is never armed on a lease that has ended: so a write cannot land later than that.
    fn wrote(&self, data: &Data, before: i64) {
        for lease in data.puts_after(before).filter_map(|put| lock_lease(&put.key, &put.value)) {
            let sentinel = format!("{PREFIX}/l/{lease:016x}");
            assert!(data.get(sentinel.as_bytes()).is_some(), "a lock was armed on a lease that had ended");
            self.count("locks armed");
        }
    }

    fn event(&self, _: usize) -> EventFate {
        let mut inner = self.inner();
        let Some(rates) = &inner.rates else { return EventFate::Told };
        let (lost, twice) = (rates.event_lost, rates.event_twice);
        let draw = inner.rng.f64();
        drop(inner);
        if draw < lost {
            self.count("events lost");
            return EventFate::Lost;
        }
        if draw < lost + twice {
            self.count("events told twice");
            return EventFate::ToldTwice;
        }
        EventFate::Told
    }
}

/// The lease that a record names as its lock.
fn lock_lease(key: &[u8], value: &[u8]) -> Option<i64> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Placement {
        #[prost(int64, tag = "20")]
        lock_lease: i64,
    }
    // A put of no name at all is how a server tries out whether it may write.
    let name = key.strip_prefix(format!("{PREFIX}/r/").as_bytes()).filter(|name| !name.is_empty());
    let Placement { lock_lease } = name.map(|_| Placement::decode(value).expect("a record"))?;
    (lock_lease != 0).then_some(lock_lease)
}

fn arms_a_lock(txn: &PbTxnRequest) -> bool {
    txn.success.iter().any(|op| match &op.request {
        Some(PbTxnOpRequest::RequestPut(put)) => lock_lease(&put.key, &put.value).is_some(),
        Some(PbTxnOpRequest::RequestTxn(nested)) => arms_a_lock(nested),
        _ => false,
    })
}
