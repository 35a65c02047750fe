//! Callers that go on until they are told to stop: begin a key, work, complete it; some walk away, some come
//! late, some give back. What they see goes into a history.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use onced::clock::{Clock, Moment};
use onced::record::limits::LOCK_TTL_MIN;
use onced_client::v1::session_request::Call;
use onced_client::v1::session_response::Answer;
use onced_client::v1::{self, begin_response, lookup_response};
use tokio_util::sync::CancellationToken;
use tonic_types::Status;

use super::history::{Execution, History, Outcome, Span};
use crate::support::caller::{Caller, Unary};
use crate::support::server::{HANGS, client};

/// The deadline of every call.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// How long a call may take beyond its deadline: then it hangs.
const LATE_MAX: Duration = Duration::from_secs(1);
/// How many keys are worked on at a time: fewer than callers, so that most are duplicates.
const KEYS: usize = 20;
const CALLERS: usize = 24;
const NAMESPACE: &str = "orders";

/// What all callers share.
pub struct World {
    pub history: History,
    clock: Clock,
    keys: Mutex<Vec<String>>,
    named: AtomicUsize,
    stop: CancellationToken,
}

/// A caller of some servers.
pub struct Participant {
    servers: Vec<Unary>,
    deadline: Duration,
    world: Arc<World>,
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
        let world = Self {
            history: History::default(),
            clock: Clock::system(),
            keys: Mutex::default(),
            named: AtomicUsize::new(0),
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
    for _ in 0..CALLERS {
        let caller = Participant::new(&world, &servers, DEADLINE).await;
        calling.spawn(async move {
            while !caller.world.stop.is_cancelled() {
                caller.take_part(&caller.world.some_key()).await;
            }
        });
    }
    calling.join_all().await;
}

impl Participant {
    async fn new(world: &Arc<World>, addresses: &[SocketAddr], deadline: Duration) -> Self {
        let mut servers = Vec::new();
        for &address in addresses {
            servers.push(Unary(client(address).await));
        }
        Self { servers, deadline, world: Arc::clone(world) }
    }

    async fn take_part(&self, key: &str) {
        let Ok((claim, begun)) = self.begin(key, Duration::from_millis(500)).await else { return };
        let (token, ttl) = (claim.fencing_token, LOCK_TTL_MIN);
        let mut execution = execution(&claim, begun);
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..20))).await;
        match Deed::any() {
            Deed::Complete => self.complete(key, token).await,
            Deed::RenewAndComplete => {
                if let Some(renewed) = self.renew(key, token).await {
                    execution.free_from = execution.free_from.max(renewed.sent + ttl);
                }
                self.complete(key, token).await;
            }
            Deed::GiveBack => {
                execution.free_from = self.world.clock.now();
                self.release(key, token).await;
            }
            Deed::WalkAway => {}
            Deed::ComeLate => {
                // A lease is longer than its lock, and ends a little late: mostly that is over, too.
                tokio::time::sleep(ttl + Duration::from_millis(fastrand::u64(1_000..4_000))).await;
                self.complete(key, token).await;
            }
        }
        self.world.history.executed(key, execution);
    }

    /// Has a key completed by whoever, if it is not yet.
    async fn see_to_its_end(&self, key: &str) {
        let completed = async {
            loop {
                match self.begin(key, Duration::from_secs(2)).await {
                    Ok((claim, _)) => self.complete(key, claim.fencing_token).await,
                    Err(true) => return,
                    Err(false) => {}
                }
            }
        };
        tokio::time::timeout(HANGS, completed).await.expect("the key is usable again");
    }

    /// The outcome of a completed key.
    async fn look_up(&self, key: &str) -> (u64, Bytes) {
        let lookup = v1::LookupRequest { namespace: NAMESPACE.to_owned(), key: key.to_owned(), wait: None };
        let (looked, _) = self.settle(Call::Lookup(lookup)).await;
        let Ok(Answer::Lookup(v1::LookupResponse { record: Some(lookup_response::Record::Completed(it)) })) =
            looked
        else {
            panic!("{key}: {looked:?}")
        };
        (it.fencing_token, response(&it))
    }

    /// A claim; or whether the key is completed.
    async fn begin(&self, key: &str, wait: Duration) -> Result<(v1::Claim, Span), bool> {
        let request = v1::BeginRequest {
            namespace: NAMESPACE.to_owned(),
            key: key.to_owned(),
            request_id: uuid::Uuid::new_v4().to_string(),
            lock_ttl: Some(LOCK_TTL_MIN.try_into().unwrap()),
            wait: Some(wait.try_into().unwrap()),
            ..v1::BeginRequest::default()
        };
        let (answer, span) = self.settle(Call::Begin(request)).await;
        let Ok(Answer::Begin(v1::BeginResponse { result: Some(result) })) = answer else {
            panic!("{key}: {answer:?}")
        };
        match result {
            begin_response::Result::Claim(claim) => return Ok((claim, span)),
            begin_response::Result::Completed(completed) => {
                let (token, response) = (completed.fencing_token, response(&completed));
                self.world.history.told(key, Outcome { token, response, told: span });
                self.world.done(key);
                return Err(true);
            }
            begin_response::Result::InProgress(_) => self.world.history.standing(key, span),
            begin_response::Result::InDoubt(_) => panic!("{key}: nobody asked for doubt"),
        }
        Err(false)
    }

    async fn complete(&self, key: &str, token: u64) {
        let response = Bytes::from(format!("{key} by {token}: {}", fastrand::u64(..)));
        let result = Some(v1::outcome::Result::Response(response.clone()));
        let (answer, told) = self
            .settle(Call::Complete(v1::CompleteRequest {
                namespace: NAMESPACE.to_owned(),
                key: key.to_owned(),
                fencing_token: token,
                outcome: Some(v1::Outcome { result, ..v1::Outcome::default() }),
                retention: None,
            }))
            .await;
        if self.accepted(key, token, answer, told) {
            self.world.history.told(key, Outcome { token, response, told });
        }
    }

    async fn renew(&self, key: &str, fencing_token: u64) -> Option<Span> {
        let (namespace, owned) = (NAMESPACE.to_owned(), key.to_owned());
        let request = v1::RenewRequest { namespace, key: owned, fencing_token, checkpoint: None };
        let (answer, span) = self.settle(Call::Renew(request)).await;
        self.accepted(key, fencing_token, answer, span).then_some(span)
    }

    async fn release(&self, key: &str, fencing_token: u64) {
        let request = v1::ReleaseRequest {
            namespace: NAMESPACE.to_owned(),
            key: key.to_owned(),
            fencing_token,
            disposition: v1::Disposition::Retry.into(),
            reason: String::new(),
        };
        let (answer, span) = self.settle(Call::Release(request)).await;
        self.accepted(key, fencing_token, answer, span);
    }

    /// Whether a holder's command was accepted, else the claim is lost.
    fn accepted(&self, key: &str, token: u64, answer: Result<Answer, Status>, span: Span) -> bool {
        match answer {
            Ok(_) => self.world.history.accepted(key, token, span),
            Err(status) if status.code == tonic::Code::Aborted as i32 => {
                self.world.history.refused(key, token);
                return false;
            }
            Err(status) => panic!("{key}: {status:?}"),
        }
        true
    }

    /// Makes a call with the same arguments, at one server and another in turn, until it is answered.
    async fn settle(&self, call: Call) -> (Result<Answer, Status>, Span) {
        let clock = &self.world.clock;
        let begun = clock.now();
        for at in fastrand::usize(0..2).. {
            let sent = clock.now();
            let calling = self.servers[at % self.servers.len()].call(call.clone(), Some(self.deadline));
            let answer = tokio::time::timeout(self.deadline + LATE_MAX, calling)
                .await
                .expect("no call outlives its deadline");
            let span = Span { sent, answered: clock.now() };
            let again = matches!(&answer, Err(status) if is_to_be_repeated(status));
            self.world.history.tried(span.answered.since(sent), again);
            if !again {
                return (answer, span);
            }
            assert!(clock.now().since(begun) < HANGS, "the service never came back: {answer:?}");
            tokio::time::sleep(Duration::from_millis(fastrand::u64(50..150))).await;
        }
        unreachable!("the range has no end")
    }
}

fn execution(claim: &v1::Claim, begun: Span) -> Execution {
    let time = |time: Option<prost_types::Duration>| Duration::try_from(time.unwrap()).unwrap();
    let (lock_ttl, waited) = (time(claim.lock_ttl), time(claim.waited));
    assert_eq!(lock_ttl, LOCK_TTL_MIN);
    // The server armed it no earlier than when it had waited.
    let free_from = begun.sent + waited + lock_ttl;
    Execution { token: claim.fencing_token, attempt: claim.attempt, begun, free_from }
}

fn is_to_be_repeated(status: &Status) -> bool {
    [tonic::Code::Unavailable, tonic::Code::DeadlineExceeded].iter().any(|&code| status.code == code as i32)
}

fn response(completed: &v1::Completed) -> Bytes {
    match completed.outcome.as_ref().and_then(|it| it.result.as_ref()) {
        Some(v1::outcome::Result::Response(response)) => response.clone(),
        other => panic!("{other:?}"),
    }
}

/// What stands at every key that was ever named, once each is completed: at both servers the same.
pub async fn ends(world: &Arc<World>, servers: [SocketAddr; 2]) -> BTreeMap<String, (u64, Bytes)> {
    let [one, other] = [&servers[..1], &servers[1..]].map(|server| Participant::new(world, server, DEADLINE));
    let (one, other) = (one.await, other.await);
    let keys = (0..world.named.load(Ordering::Relaxed)).map(|i| format!("order-{i}"));
    let ends = keys.map(async |key| {
        one.see_to_its_end(&key).await;
        let end = one.look_up(&key).await;
        assert_eq!(other.look_up(&key).await, end);
        (key, end)
    });
    join_all(ends).await.into_iter().collect()
}

/// One takes a key and stops, the other waits for it and takes over, and both complete it: the first one late.
pub async fn one_is_late(world: &Arc<World>, servers: [SocketAddr; 2]) {
    let [one, other] = [&servers[..1], &servers[1..]].map(|server| Participant::new(world, server, DEADLINE));
    let (one, other, key) = (one.await, other.await, world.new_key());
    let Ok((first, begun)) = one.begin(&key, Duration::ZERO).await else { panic!("a new key is nobody's") };
    world.history.executed(&key, execution(&first, begun));
    let taken_over = async {
        loop {
            if let Ok(second) = other.begin(&key, DEADLINE).await {
                return second;
            }
        }
    };
    let (second, begun) = tokio::time::timeout(HANGS, taken_over).await.expect("its lock lapses");
    world.history.executed(&key, execution(&second, begun));
    one.complete(&key, first.fencing_token).await;
    other.complete(&key, second.fencing_token).await;
}

/// How long it takes from `since` until a server writes again.
pub async fn back_after(world: &Arc<World>, server: SocketAddr, since: Moment) -> Duration {
    // Short deadlines, for a closer look.
    let caller = Participant::new(world, &[server], Duration::from_millis(500)).await;
    let begun = caller.begin(&world.new_key(), Duration::ZERO).await;
    assert!(begun.is_ok(), "a new key is nobody's");
    world.now().since(since)
}
