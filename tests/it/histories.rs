//! Callers of every kind, holders, readers, watchers and operators, beside two servers that lose their store's answers.
//! What they see has to be what the specification allows. `ONCED_TEST_ROUNDS` says how often.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{join, join_all};
use onced::clock::{Clock, Moment};
use onced::record::limits::{LOCK_TTL_MIN, RETENTION_MIN};
use onced::store::RecordStore;
use onced::store::embedded::EmbeddedStore;
use onced_client::v1::admin_service_client::AdminServiceClient;
use onced_client::v1::session_request::Call;
use onced_client::v1::session_response::Answer;
use onced_client::v1::{self, begin_response, resolve_request};
use onced_history::{self as history, Bounds, Fate, History, Resolution, Time, Totals};
use tonic_types::Status;

use crate::support::caller::{Caller, Session, Unary, rpc_status, timed};
use crate::support::faulty::{COUNTED, Counts, Fault, FaultyStore, Gate};
use crate::support::recorded;
use crate::support::rounds::rounds;
use crate::support::server::{Connection, TestServer};

const NAMESPACE: &str = "orders";
const ROUNDS: usize = 4;
const CALLERS: usize = 8;
const WATCHERS: usize = 3;
/// How many keys are in use at a time, and after how many deeds of all callers the oldest of them is left.
const KEYS: usize = 4;
const DEEDS_PER_KEY: usize = 50;
/// How often each caller does something.
const DEEDS: usize = 150;
/// How often a caller tries a call before it becomes somebody else.
const TRIES: usize = 3;
/// How long calls have, in milliseconds.
const DEADLINES: std::ops::Range<u64> = 200..600;
/// How much longer than it has some want to wait.
const TOO_LONG: Duration = Duration::from_secs(60);
/// How long after its deadline a call has to be over: a machine may be busy, and what hangs takes longer.
const LATE_MAX: Duration = Duration::from_secs(5);
/// How often a reader asks again who is not answered at the end.
const READ_TRIES: usize = 100;
/// How much faster the clock of the store and of the history runs: locks lapse in hundredths of a second.
const SPEED: u32 = 50;

/// What all callers share.
struct World {
    history: History,
    clock: Clock,
    /// The token last told of each key, for operators.
    tokens: Mutex<HashMap<String, u64>>,
    /// How often something was done.
    deeds: AtomicUsize,
}

/// A caller of both servers.
struct Participant {
    name: String,
    world: Arc<World>,
    servers: [Box<dyn Caller>; 2],
    operator: AdminServiceClient<Connection>,
    owner: String,
    request_id: String,
    /// The key and the token that it holds.
    held: Option<(String, u64)>,
}

impl World {
    fn now(&self) -> Time {
        self.clock.now().since(Moment::default())
    }

    /// The keys in use until now.
    fn keys(&self) -> usize {
        self.deeds.load(Ordering::Relaxed) / DEEDS_PER_KEY + KEYS
    }

    fn any_key(&self) -> String {
        let keys = self.keys();
        format!("order-{}", fastrand::usize(keys - KEYS..keys))
    }

    /// Makes a call until it is answered; at times its caller does not wait, or the answer is lost.
    async fn settle<T>(
        &self,
        caller: &str,
        key: &str,
        call: history::Call,
        told: impl Fn(&Result<T, Status>) -> Result<history::Answer, fn(Time) -> Fate>,
        try_once: impl AsyncFn(usize, Duration) -> Result<T, Status>,
    ) -> Option<Result<T, Status>> {
        let id = self.history.call(caller, key, call);
        for tried in 0..TRIES {
            let deadline = Duration::from_millis(fastrand::u64(DEADLINES));
            self.history.sent(&id, self.now(), Some(deadline * SPEED));
            let patience = match fastrand::u8(0..20) {
                0 => Duration::from_millis(fastrand::u64(0..3)),
                _ => deadline + 2 * LATE_MAX,
            };
            let answer = tokio::time::timeout(patience, try_once(tried, deadline)).await;
            let is_lost = fastrand::u8(0..20) == 0;
            let now = self.now();
            match answer.map(|answer| (told(&answer), answer)) {
                Ok((Ok(told), answer)) if !is_lost => {
                    self.history.answered(&id, now, told);
                    return Some(answer);
                }
                Ok((Err(fate), _)) => self.history.failed(&id, fate(now)),
                Ok((Ok(_), _)) | Err(_) => self.history.failed(&id, Fate::Unknown(now)),
            }
        }
        None
    }
}

impl Participant {
    async fn new(name: String, world: &Arc<World>, one: &TestServer, other: &TestServer) -> Self {
        let servers: [Box<dyn Caller>; 2] =
            [Box::new(Unary(one.client().await)), Box::new(Session::open(other).await)];
        let operator = one.admin().await;
        let owner = format!("host-{}", fastrand::u8(0..3));
        Self { name, world: Arc::clone(world), servers, operator, owner, request_id: new_id(), held: None }
    }

    async fn take_part(&mut self) {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..8))).await;
        self.world.deeds.fetch_add(1, Ordering::Relaxed);
        let any_key = self.world.any_key();
        match (fastrand::u8(0..100), self.held.take()) {
            (0..10, held) => {
                self.held = held;
                let wait = match fastrand::u8(0..8) {
                    0..4 => None,
                    4..7 => Some(Duration::from_millis(fastrand::u64(1..50))),
                    _ => Some(TOO_LONG),
                };
                self.call(&any_key, lookup(&any_key, wait)).await;
            }
            (10..14, held) => {
                self.held = held;
                self.operate(&any_key).await;
            }
            (_, None) => self.begin(&any_key).await,
            (14..40, Some((key, token))) => {
                if self.call(&key, renew(&key, token)).await.is_some() {
                    self.held = Some((key, token));
                }
            }
            (40..50, held) => {
                // Its lock may lapse.
                self.held = held;
                tokio::time::sleep(Duration::from_millis(fastrand::u64(0..60))).await;
            }
            (50..70, Some((key, token))) => {
                self.call(&key, complete(&key, token)).await;
                self.request_id = new_id();
            }
            (70..95, Some((key, token))) => {
                self.call(&key, release(&key, token)).await;
                self.request_id = new_id();
            }
            // It begins again what it holds.
            (_, Some((key, _))) => self.begin(&key).await,
        }
    }

    async fn begin(&mut self, key: &str) {
        let fingerprint = ["", "", "this", "this", "that"][fastrand::usize(0..5)];
        let on_lapse = if fastrand::u8(0..5) == 0 { v1::OnLapse::Hold } else { v1::OnLapse::TakeOver };
        let request = v1::BeginRequest {
            namespace: NAMESPACE.to_owned(),
            key: key.to_owned(),
            request_id: self.request_id.clone(),
            owner: self.owner.clone(),
            fingerprint: fingerprint.into(),
            lock_ttl: Some(LOCK_TTL_MIN.try_into().unwrap()),
            wait: Some(Duration::from_millis(fastrand::u64(0..50)).try_into().unwrap()),
            retention: Some(RETENTION_MIN.try_into().unwrap()),
            on_lapse: on_lapse.into(),
        };
        match self.call(key, Call::Begin(request)).await {
            Some(Answer::Begin(v1::BeginResponse { result: Some(begin_response::Result::Claim(claim)) })) => {
                self.held = Some((key.to_owned(), claim.fencing_token));
                self.told(key, claim.fencing_token);
            }
            Some(Answer::Begin(v1::BeginResponse { result: Some(begin_response::Result::InDoubt(it)) })) => {
                self.told(key, it.fencing_token);
            }
            Some(Answer::Begin(v1::BeginResponse {
                result: Some(begin_response::Result::Completed(it)),
            })) => {
                self.told(key, it.fencing_token);
            }
            _ => self.request_id = new_id(),
        }
    }

    fn told(&self, key: &str, token: u64) {
        self.world.tokens.lock().unwrap().insert(key.to_owned(), token);
    }

    /// Settles a doubt, or removes a record; half of the time it is another record than the operator thinks.
    async fn operate(&self, key: &str) {
        let Some(token) = self.world.tokens.lock().unwrap().get(key).copied() else { return };
        let told = |answer: &Result<(), Status>| match answer {
            Ok(()) => Ok(history::Answer::Ok),
            Err(status) => recorded::refused(status),
        };
        let force = fastrand::bool();
        if fastrand::bool() {
            let request = v1::DeleteRequest {
                namespace: NAMESPACE.to_owned(),
                key: key.to_owned(),
                fencing_token: token,
                force,
            };
            let try_once = async |_: usize, deadline| {
                let answer = self.operator.clone().delete(timed(request.clone(), Some(deadline))).await;
                answer.map(drop).map_err(|status| rpc_status(&status))
            };
            let call = history::Call::Delete { token, force };
            self.world.settle(&self.name, key, call, told, try_once).await;
        } else {
            let outcome = format!("settled {token}");
            let (recorded, resolution) = if force {
                let result = Some(v1::outcome::Result::Response(outcome.clone().into()));
                let sent = v1::Outcome { result, ..v1::Outcome::default() };
                (Resolution::Outcome((&outcome).into(), None), resolve_request::Resolution::Outcome(sent))
            } else {
                (Resolution::Retry, resolve_request::Resolution::Retry(v1::ResolveRetry {}))
            };
            let request = v1::ResolveRequest {
                namespace: NAMESPACE.to_owned(),
                key: key.to_owned(),
                fencing_token: token,
                resolution: Some(resolution),
                retention: None,
            };
            let call = history::Call::Resolve { token, resolution: recorded };
            let try_once = async |_: usize, deadline| {
                let answer = self.operator.clone().resolve(timed(request.clone(), Some(deadline))).await;
                answer.map(drop).map_err(|status| rpc_status(&status))
            };
            self.world.settle(&self.name, key, call, told, try_once).await;
        }
    }

    async fn call(&self, key: &str, call: Call) -> Option<Answer> {
        self.ask(key, call).await?.ok()
    }

    /// The answer, which may be a refusal.
    async fn ask(&self, key: &str, call: Call) -> Option<Result<Answer, Status>> {
        let first = fastrand::usize(0..2);
        let try_once = async |tried: usize, deadline| {
            self.servers[(first + tried) % 2].call(call.clone(), Some(deadline)).await
        };
        self.world.settle(&self.name, key, recorded::call(&call), recorded::told, try_once).await
    }
}

/// Watches one key and another, until all callers are done.
async fn watch_on(name: String, world: &World, server: &TestServer) {
    let client = server.client().await;
    while world.deeds.load(Ordering::Relaxed) < CALLERS * DEEDS {
        let key = world.any_key();
        let request = v1::WatchRequest { namespace: NAMESPACE.to_owned(), key: key.clone() };
        let watching = async {
            let mut watch = world.history.watch(&name, &key, world.now());
            let Ok(states) = client.clone().watch(request).await else { return };
            let mut states = states.into_inner();
            while let Some(told) = recorded::next_of(&mut states).await {
                world.history.told(&mut watch, world.now(), told);
                // One that is slow skips states.
                tokio::time::sleep(Duration::from_millis(fastrand::u64(0..4))).await;
            }
        };
        // Some have seen enough before it ends.
        let _ = tokio::time::timeout(Duration::from_millis(fastrand::u64(0..300)), watching).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn lookup(key: &str, wait: Option<Duration>) -> Call {
    let (namespace, key) = (NAMESPACE.to_owned(), key.to_owned());
    Call::Lookup(v1::LookupRequest { namespace, key, wait: wait.map(|wait| wait.try_into().unwrap()) })
}

fn renew(key: &str, fencing_token: u64) -> Call {
    let sequence = fastrand::u64(1..10);
    let data = format!("at {sequence} of {fencing_token}").into();
    let checkpoint = fastrand::bool().then_some(v1::Checkpoint { sequence, data });
    let (namespace, key) = (NAMESPACE.to_owned(), key.to_owned());
    Call::Renew(v1::RenewRequest { namespace, key, fencing_token, checkpoint })
}

fn complete(key: &str, fencing_token: u64) -> Call {
    let response = format!("{fencing_token} did {}", fastrand::u8(..));
    let result = Some(v1::outcome::Result::Response(response.into()));
    let outcome = Some(v1::Outcome { result, ..v1::Outcome::default() });
    let (namespace, key) = (NAMESPACE.to_owned(), key.to_owned());
    Call::Complete(v1::CompleteRequest { namespace, key, fencing_token, outcome, retention: None })
}

fn release(key: &str, fencing_token: u64) -> Call {
    let disposition = if fastrand::u8(0..6) == 0 { v1::Disposition::InDoubt } else { v1::Disposition::Retry };
    Call::Release(v1::ReleaseRequest {
        namespace: NAMESPACE.to_owned(),
        key: key.to_owned(),
        fencing_token,
        disposition: disposition.into(),
        reason: String::new(),
    })
}

/// A server on `store` that loses some of its answers; some of its writes land when it has given them up.
async fn losing(store: &Arc<dyn RecordStore>) -> (TestServer, Arc<FaultyStore>) {
    let faulty = FaultyStore::new(Arc::clone(store));
    faulty.let_recall();
    let fault = |_| match fastrand::u8(0..100) {
        0..6 => Fault::LoseAnswer,
        6..9 => Fault::FailBefore,
        9..12 => {
            let gate = Gate::new();
            let late = gate.clone();
            tokio::spawn(async move {
                late.reached().await;
                // Most that are not at once come too late: the server has decided anew, and written.
                if fastrand::bool() {
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..30))).await;
                }
                late.open();
            });
            Fault::LandLate(gate)
        }
        _ => Fault::None,
    };
    faulty.plan_swaps((0..20 * DEEDS).map(fault));
    faulty.plan_loads((0..20 * DEEDS).map(|_| match fastrand::u8(0..100) {
        0..4 => Fault::FailBefore,
        _ => Fault::None,
    }));
    (TestServer::start(Arc::<FaultyStore>::clone(&faulty)).await, faulty)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_callers_of_every_kind_see_is_what_the_specification_allows() {
    let (mut totals, mut faults) = (Totals::default(), Counts::new());
    for _ in 0..rounds(ROUNDS) {
        totals += round(&mut faults).await;
    }
    println!("{totals:?}, {faults:?}");
    assert!(COUNTED.iter().all(|name| faults.contains_key(name)), "{faults:?}");
    totals.shows_enough().unwrap_or_else(|missing| panic!("{missing}"));
    assert!(totals.waited > 0 && totals.updates > 0, "{totals:?}");
    let shortest = Duration::from_millis(DEADLINES.start) * SPEED;
    assert!(totals.longest >= shortest, "nobody waited for as long as a deadline: {totals:?}");
}

async fn round(faults: &mut Counts) -> Totals {
    let real = Clock::system();
    let start = real.now();
    let clock = Clock::from_fn(move || Moment::from_start(real.now().since(start) * SPEED));
    let store: Arc<dyn RecordStore> = Arc::new(EmbeddedStore::in_memory(clock.clone()).unwrap());
    let ((one, its_store), (other, others_store)) = (losing(&store).await, losing(&store).await);
    let world = Arc::new(World {
        history: History::default(),
        clock,
        tokens: Mutex::default(),
        deeds: AtomicUsize::new(0),
    });
    let calling = (0..CALLERS).map(async |n| {
        let mut caller = Participant::new(format!("caller {n}"), &world, &one, &other).await;
        for _ in 0..DEEDS {
            caller.take_part().await;
        }
    });
    let servers = [&one, &other];
    let watching = (0..WATCHERS).map(|n| watch_on(format!("watcher {n}"), &world, servers[n % 2]));
    join(join_all(calling), join_all(watching)).await;
    let reader = Participant::new("the reader".to_owned(), &world, &one, &other).await;
    // Twice, for an outcome that nobody was told before is to be asked for again.
    for key in (0..world.keys()).chain(0..world.keys()) {
        let key = format!("order-{key}");
        let mut tries = 0..READ_TRIES;
        while reader.ask(&key, lookup(&key, None)).await.is_none() {
            assert!(tries.next().is_some(), "the store answers no more");
        }
    }
    for (name, count) in its_store.met().into_iter().chain(others_store.met()) {
        *faults.entry(name).or_default() += count;
    }
    let bounds = Bounds { late_max: LATE_MAX * SPEED, ..Bounds::until(world.now()) };
    world.history.check(&bounds).unwrap_or_else(|wrong| panic!("{wrong}"))
}
