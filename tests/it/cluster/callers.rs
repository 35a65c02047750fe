//! Callers that go on until they are told to stop: begin a key, work, complete it; some walk away, some come
//! late, some give back, and some lose an answer. What they see goes into a history.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join, join_all};
use onced::clock::{Clock, Moment};
use onced::record::limits::LOCK_TTL_MIN;
use onced_client::v1::session_request::Call;
use onced_client::v1::session_response::Answer;
use onced_client::v1::{self, begin_response, lookup_response};
use onced_history::{Bounds, Fate, History, Time, Totals};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_types::Status;

use crate::support::caller::{Caller, Unary};
use crate::support::recorded;
use crate::support::server::{HANGS, client, try_client};

/// The deadline of every call.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// How long a call may take beyond its deadline: then it hangs. A machine with much else to do stands still for
/// seconds.
const LATE_MAX: Duration = Duration::from_secs(10);
/// How long after that nobody waits for an answer any more.
const A_MOMENT: Duration = Duration::from_secs(1);
/// How many keys are worked on at a time: fewer than callers, so that most are duplicates.
const KEYS: usize = 20;
const CALLERS: usize = 24;
/// How many of them hold claims of a server that stands still.
const HOLDERS: usize = 8;
/// One answer of so many gets lost on its way to the caller, who calls again.
const ONE_LOST_OF: usize = 50;
const NAMESPACE: &str = "orders";

/// What all callers share.
pub struct World {
    history: History,
    clock: Clock,
    begun: Moment,
    keys: Mutex<Vec<String>>,
    named: AtomicUsize,
    /// How many tries failed since that was last asked for, and in all: not those whose answer a caller dropped.
    failed: AtomicUsize,
    failed_in_all: AtomicUsize,
    /// How many were told that the store is full.
    told_full: AtomicUsize,
    stop: CancellationToken,
}

/// A caller of some servers.
pub struct Participant {
    name: String,
    servers: Vec<Line>,
    deadline: Duration,
    world: Arc<World>,
}

/// A server, and a connection to it.
struct Line {
    address: SocketAddr,
    server: Mutex<Unary>,
}

impl Line {
    async fn call(&self, call: Call, deadline: Duration) -> Result<Answer, Status> {
        let server = Unary(self.server.lock().unwrap().0.clone());
        let answer = server.call(call, Some(deadline)).await;
        if answer.as_ref().is_err_and(is_broken)
            && let Ok(client) = try_client(self.address).await
        {
            *self.server.lock().unwrap() = Unary(client);
        }
        answer
    }
}

/// Whether this is no server's word, but of a connection that broke: one that is killed says nothing more.
fn is_broken(status: &Status) -> bool {
    let codes = [Code::Unavailable, Code::Unknown, Code::Cancelled];
    status.details.is_empty() && codes.contains(&status.code.into())
}

/// What a caller does with a claim.
enum Deed {
    Complete,
    RenewAndComplete,
    GiveBack,
    WalkAway,
    ComeLate,
}

impl Deed {
    fn any() -> Self {
        match fastrand::u8(0..100) {
            0..70 => Deed::Complete,
            70..82 => Deed::RenewAndComplete,
            82..94 => Deed::GiveBack,
            94..96 => Deed::WalkAway,
            _ => Deed::ComeLate,
        }
    }
}

impl World {
    pub fn new() -> Arc<Self> {
        let clock = Clock::system();
        let world = Self {
            history: History::default(),
            begun: clock.now(),
            clock,
            keys: Mutex::default(),
            named: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            failed_in_all: AtomicUsize::new(0),
            told_full: AtomicUsize::new(0),
            stop: CancellationToken::new(),
        };
        world.keys.lock().unwrap().extend((0..KEYS).map(|_| world.new_key()));
        Arc::new(world)
    }

    /// Tells the callers to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// How many tries failed since this was last asked for.
    pub fn take_failed(&self) -> usize {
        self.failed.swap(0, Ordering::Relaxed)
    }

    /// How many tries failed.
    pub fn failed_in_all(&self) -> usize {
        self.failed_in_all.load(Ordering::Relaxed)
    }

    /// How many tries were told that the store is full.
    pub fn told_full(&self) -> usize {
        self.told_full.load(Ordering::Relaxed)
    }

    fn count_failed(&self, status: &Status) {
        // Of a connection that broke there is no more to know.
        if !status.details.is_empty() && recorded::info(status).reason == "STORE_FULL" {
            self.told_full.fetch_add(1, Ordering::Relaxed);
        }
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.failed_in_all.fetch_add(1, Ordering::Relaxed);
    }

    /// The time in the history.
    fn time(&self) -> Time {
        self.now().since(self.begun)
    }

    /// Holds all promises against what callers saw. Nothing fails any more since `healed`; until then locks may have
    /// been ended from outside.
    pub fn check(&self, healed: Moment, locks_end_early: bool) -> Totals {
        let healed = Some(healed.since(self.begun));
        let bounds = Bounds {
            late_max: LATE_MAX,
            healed,
            usable_after: 2 * HANGS,
            locks_end_early,
            ..Bounds::until(self.time())
        };
        self.history.check(&bounds).unwrap_or_else(|wrong| panic!("{wrong}"))
    }

    fn new_key(&self) -> String {
        format!("order-{}", self.named.fetch_add(1, Ordering::Relaxed))
    }

    fn some_key(&self) -> String {
        fastrand::choice(&*self.keys.lock().unwrap()).expect("keys").clone()
    }

    /// Work goes on with another key, once enough have been told of this one's outcome.
    fn done(&self, key: &str) {
        if fastrand::u8(0..4) == 0
            && let Some(place) = self.keys.lock().unwrap().iter_mut().find(|it| *it == key)
        {
            *place = self.new_key();
        }
    }
}

/// Has callers call until they are told to stop; returns when they have stopped.
pub async fn call_on(world: Arc<World>, servers: [SocketAddr; 2]) {
    let mut calling = tokio::task::JoinSet::new();
    for n in 0..CALLERS {
        let caller = Participant::new(&format!("caller {n}"), &world, &servers, DEADLINE).await;
        calling.spawn(async move {
            while !caller.world.stop.is_cancelled() {
                caller.take_part(&caller.world.some_key()).await;
            }
        });
    }
    calling.join_all().await;
}

impl Participant {
    async fn new(name: &str, world: &Arc<World>, addresses: &[SocketAddr], deadline: Duration) -> Self {
        let mut servers = Vec::new();
        for &address in addresses {
            servers.push(Line { address, server: Mutex::new(Unary(client(address).await)) });
        }
        Self { name: name.to_owned(), servers, deadline, world: Arc::clone(world) }
    }

    async fn take_part(&self, key: &str) {
        let Ok(claim) = self.begin(key, Duration::from_millis(500)).await else { return };
        let token = claim.fencing_token;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..20))).await;
        match Deed::any() {
            Deed::Complete => self.complete(key, token).await,
            Deed::RenewAndComplete => {
                self.renew(key, token).await;
                self.complete(key, token).await;
            }
            Deed::GiveBack => self.release(key, token).await,
            Deed::WalkAway => {}
            Deed::ComeLate => {
                // A lease is longer than its lock, and ends a little late: mostly that is over, too.
                tokio::time::sleep(LOCK_TTL_MIN + Duration::from_millis(fastrand::u64(1_000..4_000))).await;
                self.complete(key, token).await;
            }
        }
    }

    /// Has a key completed by whoever, if it is not yet.
    async fn see_to_its_end(&self, key: &str) {
        let completed = async {
            loop {
                match self.begin(key, Duration::from_secs(2)).await {
                    Ok(claim) => self.complete(key, claim.fencing_token).await,
                    Err(true) => return,
                    Err(false) => {}
                }
            }
        };
        tokio::time::timeout(HANGS, completed).await.expect("the key is usable again");
    }

    /// Takes a key over as soon as its lock lapses; `None` if it is completed.
    async fn take_over(&self, key: &str) -> Option<v1::Claim> {
        let taking = async {
            loop {
                match self.begin(key, DEADLINE).await {
                    Ok(claim) => return Some(claim),
                    Err(true) => return None,
                    Err(false) => {}
                }
            }
        };
        tokio::time::timeout(HANGS, taking).await.expect("its lock lapses")
    }

    /// Reads a completed key.
    async fn look_up(&self, key: &str) {
        let lookup = v1::LookupRequest { namespace: NAMESPACE.to_owned(), key: key.to_owned(), wait: None };
        let looked = self.settle(key, Call::Lookup(lookup)).await;
        let Ok(Answer::Lookup(v1::LookupResponse { record: Some(lookup_response::Record::Completed(_)) })) =
            looked
        else {
            panic!("{key}: {looked:?}")
        };
    }

    /// A claim; or whether the key is completed.
    async fn begin(&self, key: &str, wait: Duration) -> Result<v1::Claim, bool> {
        let request = v1::BeginRequest {
            namespace: NAMESPACE.to_owned(),
            key: key.to_owned(),
            request_id: uuid::Uuid::new_v4().to_string(),
            owner: format!("host-{}", fastrand::u8(0..4)),
            lock_ttl: Some(LOCK_TTL_MIN.try_into().unwrap()),
            wait: Some(wait.try_into().unwrap()),
            ..v1::BeginRequest::default()
        };
        let answer = self.settle(key, Call::Begin(request)).await;
        let Ok(Answer::Begin(v1::BeginResponse { result: Some(result) })) = answer else {
            panic!("{key}: {answer:?}")
        };
        match result {
            begin_response::Result::Claim(claim) => return Ok(claim),
            begin_response::Result::Completed(_) => {
                self.world.done(key);
                return Err(true);
            }
            begin_response::Result::InProgress(_) => {}
            begin_response::Result::InDoubt(_) => panic!("{key}: nobody asked for doubt"),
        }
        Err(false)
    }

    async fn complete(&self, key: &str, fencing_token: u64) {
        self.try_complete(key, fencing_token).await.ok();
    }

    async fn try_complete(&self, key: &str, fencing_token: u64) -> Result<Answer, Status> {
        let response = Bytes::from(format!("{key} by {fencing_token}: {}", fastrand::u64(..)));
        let result = Some(v1::outcome::Result::Response(response));
        let request = v1::CompleteRequest {
            namespace: NAMESPACE.to_owned(),
            key: key.to_owned(),
            fencing_token,
            outcome: Some(v1::Outcome { result, ..v1::Outcome::default() }),
            retention: None,
        };
        self.settle(key, Call::Complete(request)).await
    }

    async fn renew(&self, key: &str, fencing_token: u64) {
        let (namespace, owned) = (NAMESPACE.to_owned(), key.to_owned());
        let request = v1::RenewRequest { namespace, key: owned, fencing_token, checkpoint: None };
        self.settle(key, Call::Renew(request)).await.ok();
    }

    async fn release(&self, key: &str, fencing_token: u64) {
        let request = v1::ReleaseRequest {
            namespace: NAMESPACE.to_owned(),
            key: key.to_owned(),
            fencing_token,
            disposition: v1::Disposition::Retry.into(),
            reason: String::new(),
        };
        self.settle(key, Call::Release(request)).await.ok();
    }

    /// Makes a call with the same arguments, at one server and another in turn, until it is answered. Whether
    /// the answer can have been is for the history to say.
    async fn settle(&self, key: &str, call: Call) -> Result<Answer, Status> {
        let World { history, clock, .. } = &*self.world;
        let id = history.call(&self.name, key, recorded::call(&call));
        let begun = clock.now();
        for at in fastrand::usize(0..2).. {
            history.sent(&id, self.world.time(), Some(self.deadline));
            let calling = self.servers[at % self.servers.len()].call(call.clone(), self.deadline);
            // One that hangs is left open in the history, which then says so.
            if let Ok(answer) = tokio::time::timeout(self.deadline + LATE_MAX + A_MOMENT, calling).await {
                let is_lost = fastrand::usize(0..ONE_LOST_OF) == 0;
                match told(&answer) {
                    Ok(told) if !is_lost => {
                        history.answered(&id, self.world.time(), told);
                        return answer;
                    }
                    Ok(_) => history.failed(&id, Fate::Unknown(self.world.time())),
                    Err(fate) => {
                        if let Err(status) = &answer {
                            self.world.count_failed(status);
                        }
                        history.failed(&id, fate(self.world.time()));
                    }
                }
            }
            assert!(clock.now().since(begun) < HANGS, "the service never came back: {call:?}");
            tokio::time::sleep(Duration::from_millis(fastrand::u64(100..300))).await;
        }
        unreachable!("the range has no end")
    }
}

/// What a call was told, if anything.
fn told(answer: &Result<Answer, Status>) -> Result<onced_history::Answer, fn(Time) -> Fate> {
    match answer {
        Err(status) if is_broken(status) => Err(Fate::Unknown),
        answer => recorded::told(answer),
    }
}

/// A caller of each server alone.
async fn each_of(world: &Arc<World>, servers: [SocketAddr; 2]) -> [Participant; 2] {
    let [one, other] = ["one", "the other"];
    let one = Participant::new(one, world, &servers[..1], DEADLINE).await;
    [one, Participant::new(other, world, &servers[1..], DEADLINE).await]
}

/// Has every key completed that was ever named, and reads it at both servers.
pub async fn read_all(world: &Arc<World>, servers: [SocketAddr; 2]) {
    let [one, other] = each_of(world, servers).await;
    let keys = (0..world.named.load(Ordering::Relaxed)).map(|i| format!("order-{i}"));
    let reads = keys.map(async |key| {
        one.see_to_its_end(&key).await;
        join(one.look_up(&key), other.look_up(&key)).await;
    });
    join_all(reads).await;
}

/// One takes a key and stops, the other waits for it and takes over, and both complete it: the first one late.
pub async fn one_is_late(world: &Arc<World>, servers: [SocketAddr; 2]) {
    let ([one, other], key) = (each_of(world, servers).await, world.new_key());
    let Ok(first) = one.begin(&key, Duration::ZERO).await else { panic!("a new key is nobody's") };
    let second = other.take_over(&key).await.expect("nobody completed it");
    one.complete(&key, first.fencing_token).await;
    other.complete(&key, second.fencing_token).await;
}

/// Has holders complete their keys at a server that stands still from `freeze` to `thaw`: half of them call just before,
/// and it may have what they ask for in hand, and half while it does. Meanwhile another caller takes over, at the other
/// server. Says how many holders were told that their claim is lost; the others had stored their outcome in time.
pub async fn overtaken(
    world: &Arc<World>,
    [still, other]: [SocketAddr; 2],
    freeze: impl FnOnce(),
    thaw: impl FnOnce(),
) -> usize {
    // They wait for the answer to what it was sent before it went on.
    let holder = Arc::new(Participant::new("a holder", world, &[still], HANGS / 2).await);
    let successor = Participant::new("its successor", world, &[other], DEADLINE).await;
    let mut claims = Vec::new();
    for _ in 0..HOLDERS {
        let key = world.new_key();
        let Ok(claim) = holder.begin(&key, Duration::ZERO).await else { panic!("a new key is nobody's") };
        claims.push((key, claim.fencing_token));
    }
    let complete = |(key, token): &(String, u64)| {
        let (holder, key, token) = (Arc::clone(&holder), key.clone(), *token);
        tokio::spawn(async move { holder.try_complete(&key, token).await })
    };
    let (before, meanwhile) = claims.split_at(HOLDERS / 2);
    let mut completing: Vec<_> = before.iter().map(complete).collect();
    tokio::time::sleep(Duration::from_micros(fastrand::u64(0..60_000))).await;
    freeze();
    completing.extend(meanwhile.iter().map(complete));
    let taken_over = join_all(claims.iter().map(|(key, _)| successor.take_over(key))).await;
    assert!(taken_over[before.len()..].iter().all(Option::is_some), "what nobody asked for is done");
    thaw();
    let mut refused = 0;
    for (completing, successor) in completing.into_iter().zip(&taken_over) {
        let answer = completing.await.expect("no holder panicked");
        let lost = |status: &Status| recorded::info(status).reason == "CLAIM_LOST";
        assert_eq!(answer.as_ref().is_err_and(lost), successor.is_some(), "{answer:?}");
        refused += usize::from(successor.is_some());
    }
    for ((key, _), claim) in claims.iter().zip(taken_over) {
        if let Some(claim) = claim {
            successor.complete(key, claim.fencing_token).await;
        }
    }
    refused
}

/// How long it takes from `since` until a server writes again.
pub async fn back_after(world: &Arc<World>, server: SocketAddr, since: Moment) -> Duration {
    // Short deadlines, for a closer look.
    let caller = Participant::new("the watch", world, &[server], Duration::from_millis(500)).await;
    let begun = caller.begin(&world.new_key(), Duration::ZERO).await;
    assert!(begun.is_ok(), "a new key is nobody's");
    world.now().since(since)
}
