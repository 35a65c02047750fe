//! Callers: they begin keys, work, complete them; some hang up, come late, give back, walk away, or come again
//! through another server. What they do and see goes into the history.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use onced_client::v1::session_request::Call;
use onced_client::v1::{self, resolve_request};
use onced_history::{Answer, Claim, Fate, History, Name, OperationId, Time};

use crate::net::{Ask, Failed, Line, Way};
use crate::scene::HEALED;
use crate::weather::Weather;

/// The lock TTLs that callers ask for, mostly the first. Each costs every server a lease several times a second.
const TTLS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(5)];
/// How long records are kept.
pub const RETENTION: Duration = Duration::from_secs(60);
/// How long after its retention a record is gone: it hangs on a lease that it shares.
pub const EXPIRES_WITHIN: Duration = Duration::from_secs(240);
/// How long before the end of its retention an outcome is asked for once more.
const SHORTLY: Duration = Duration::from_secs(2);
/// How much longer than its deadline a call is waited for.
pub const GRACE: Duration = Duration::from_secs(1);
/// How long after that nobody waits for an answer any more: what comes then is too late for sure.
const A_MOMENT: Duration = Duration::from_millis(200);
/// How often a call is tried, at most, while there are faults.
const TRIES: usize = 6;
const NAMESPACE: &str = "orders";

/// What all callers of a simulation share.
pub struct World {
    pub history: History,
    pub keys: Vec<Name>,
    /// Whether some callers ask for a longer lock than others.
    pub ttls_mixed: bool,
    /// Whether only the store is ill, so that answers are due even so.
    pub always_due: bool,
    /// Whether all faults are over.
    pub well: Cell<bool>,
    /// Counts what callers met.
    pub weather: Arc<Weather>,
}

/// The time of the simulation.
pub fn now() -> Time {
    turmoil::sim_elapsed().expect("on a simulated host")
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// As long as there are faults.
async fn pass_at_most(time: Duration) {
    pass(time.min(HEALED.saturating_sub(now()))).await;
}

pub struct Caller {
    name: String,
    rng: Rng,
    lines: Vec<Line>,
    world: Rc<World>,
    /// Whether this one has called since all faults were over.
    seen_well: bool,
}

impl Caller {
    pub fn new(name: String, mut rng: Rng, servers: &[String], world: Rc<World>) -> Self {
        let way = if rng.bool() { Way::Unary } else { Way::Session };
        let lines = servers.iter().map(|server| Line::new(server.clone(), way)).collect();
        Self { name, rng, lines, world, seen_well: false }
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.u64(range))
    }

    /// Takes part until the faults are over.
    pub async fn take_part(mut self) {
        while !self.world.well.get() {
            pass(self.millis(0..600)).await;
            let key = self.rng.choice(&self.world.keys).expect("keys").clone();
            match self.rng.u8(..100) {
                0..5 => drop(self.look_up(&key, None).await),
                5..12 => {
                    let wait = self.millis(500..4_000);
                    self.look_up(&key, Some(wait)).await;
                }
                12..15 => self.delete(&key).await,
                15..22 => self.watch(&key).await,
                _ => self.run(&key).await,
            }
        }
    }

    /// Begins a key, and does something with the claim, if it gets one.
    async fn run(&mut self, key: &str) {
        // Of every fourth key, a claim that lapses is in doubt.
        let on_lapse = if key.ends_with(['3', '7']) { v1::OnLapse::Hold } else { v1::OnLapse::TakeOver };
        let fingerprint = match self.rng.u8(..40) {
            0 => Bytes::from("another request"),
            1..20 => Bytes::from(key.to_owned()),
            _ => Bytes::new(),
        };
        match self.begin(key, on_lapse, fingerprint).await {
            Some(Answer::Claim(claim)) => self.hold(key, &claim).await,
            Some(Answer::InDoubt { token, .. }) => self.resolve(key, token).await,
            _ => {}
        }
    }

    async fn hold(&mut self, key: &str, claim: &Claim) {
        let token = claim.token;
        pass_at_most(self.millis(0..400)).await;
        match self.rng.u8(..100) {
            0..40 => self.complete(key, token).await,
            40..60 => {
                for sequence in 1..=self.rng.u64(1..4) {
                    self.renew(key, token, sequence).await;
                    pass_at_most(claim.lock_ttl.mul_f64(self.rng.f64() * 0.7)).await;
                }
                self.complete(key, token).await;
            }
            60..75 => self.release(key, token).await,
            75..85 => {}
            _ => {
                // A lease is longer than its lock, and ends a little late: mostly that is over, too.
                pass_at_most(claim.lock_ttl + self.millis(0..4_000)).await;
                match self.rng.u8(..4) {
                    0 => self.renew(key, token, 9).await,
                    1 => self.release(key, token).await,
                    _ => self.complete(key, token).await,
                }
            }
        }
    }

    /// Has a key completed by whoever, if it is not yet; not after `by`.
    pub async fn see_to_its_end(&mut self, key: &str, by: Time) {
        while now() < by {
            match self.begin(key, v1::OnLapse::TakeOver, Bytes::new()).await {
                Some(Answer::Completed { .. }) => return,
                Some(Answer::Claim(claim)) => self.complete(key, claim.token).await,
                Some(Answer::InDoubt { token, .. }) => self.resolve(key, token).await,
                _ => pass(Duration::from_millis(100)).await,
            }
        }
    }

    /// Asks each server in turn what stands at a key.
    pub async fn look_around(&mut self, key: &str) {
        // Later than whatever was told last.
        pass(Duration::from_millis(100)).await;
        for at in 0..self.lines.len() {
            let ask = lookup(key, None);
            let id = self.world.history.call(&self.name, key, ask.recorded());
            self.attempt(&id, at, &ask).await;
        }
    }

    /// Sees a record kept, lets it expire, looks for it, and has the key completed anew.
    pub async fn outlast(&mut self, key: &str) {
        let expired = now() + RETENTION + EXPIRES_WITHIN;
        self.see_it_kept(key).await;
        pass(expired.saturating_sub(now())).await;
        if self.look_up(key, None).await == Some(Answer::NotFound) {
            self.world.weather.count("records expired");
        }
        self.see_to_its_end(key, now() + EXPIRES_WITHIN).await;
    }

    /// Asks for an outcome again when the retention that callers saw it stored with has nearly passed.
    async fn see_it_kept(&mut self, key: &str) {
        let told = self.look_up(key, None).await;
        let Some(Answer::Completed { token, .. }) = told else { return };
        let Some(until) = self.world.history.kept_until(key, token) else { return };
        pass(until.saturating_sub(now() + SHORTLY)).await;
        self.look_around(key).await;
        if self.look_up(key, None).await == told && now() <= until {
            self.world.weather.count("outcomes told late in their retention");
        }
    }

    async fn begin(&mut self, key: &str, on_lapse: v1::OnLapse, fingerprint: Bytes) -> Option<Answer> {
        let request_id = uuid::Builder::from_random_bytes(self.rng.u128(..).to_be_bytes()).into_uuid();
        let longer = self.world.ttls_mixed && self.rng.u8(..4) == 0;
        let wait = self.millis(0..2_000);
        let request = v1::BeginRequest {
            namespace: NAMESPACE.to_owned(),
            key: key.to_owned(),
            request_id: request_id.to_string(),
            fingerprint,
            owner: self.name.clone(),
            lock_ttl: time(TTLS[usize::from(longer)]),
            wait: time(wait),
            retention: time(RETENTION),
            on_lapse: on_lapse.into(),
        };
        self.tell(key, Ask::Call(Call::Begin(request))).await
    }

    async fn look_up(&mut self, key: &str, wait: Option<Duration>) -> Option<Answer> {
        self.tell(key, lookup(key, wait)).await
    }

    /// Watches a key for a while, at one server.
    async fn watch(&mut self, key: &str) {
        let (at, deadline) = (self.rng.usize(..self.lines.len()), self.millis(200..4_000));
        let history = &self.world.history;
        let mut watch = history.watch(&self.name, key, now());
        let request = v1::WatchRequest { namespace: NAMESPACE.to_owned(), key: key.to_owned() };
        let line = &mut self.lines[at];
        let watching = line.watch(request, deadline, |told| history.told(&mut watch, now(), told));
        if tokio::time::timeout(deadline + GRACE, watching).await.is_err() {
            line.hang_up();
        }
    }

    async fn complete(&mut self, key: &str, fencing_token: u64) {
        let outcome = self.outcome(&format!("{fencing_token} of {}", self.name));
        let (namespace, key_owned) = (NAMESPACE.to_owned(), key.to_owned());
        let request = v1::CompleteRequest {
            namespace,
            key: key_owned,
            fencing_token,
            outcome: Some(outcome),
            retention: None,
        };
        self.tell(key, Ask::Call(Call::Complete(request))).await;
    }

    fn outcome(&mut self, by: &str) -> v1::Outcome {
        let response = Bytes::from(format!("{:04x} by {by}", self.rng.u16(..)));
        v1::Outcome { result: Some(v1::outcome::Result::Response(response)), ..v1::Outcome::default() }
    }

    async fn renew(&mut self, key: &str, fencing_token: u64, sequence: u64) {
        let data = Bytes::from(format!("{fencing_token}/{sequence}"));
        let checkpoint = self.rng.bool().then_some(v1::Checkpoint { sequence, data });
        let (namespace, key_owned) = (NAMESPACE.to_owned(), key.to_owned());
        let request = v1::RenewRequest { namespace, key: key_owned, fencing_token, checkpoint };
        self.tell(key, Ask::Call(Call::Renew(request))).await;
    }

    async fn release(&mut self, key: &str, fencing_token: u64) {
        let in_doubt = self.rng.u8(..4) == 0;
        let disposition = if in_doubt { v1::Disposition::InDoubt } else { v1::Disposition::Retry };
        let request = v1::ReleaseRequest {
            namespace: NAMESPACE.to_owned(),
            key: key.to_owned(),
            fencing_token,
            disposition: disposition.into(),
            reason: String::new(),
        };
        self.tell(key, Ask::Call(Call::Release(request))).await;
    }

    async fn resolve(&mut self, key: &str, fencing_token: u64) {
        let resolution = match self.rng.bool() {
            true => resolve_request::Resolution::Retry(v1::ResolveRetry {}),
            false => resolve_request::Resolution::Outcome(self.outcome("an operator")),
        };
        let request = v1::ResolveRequest {
            namespace: NAMESPACE.to_owned(),
            key: key.to_owned(),
            fencing_token,
            resolution: Some(resolution),
            retention: time(RETENTION),
        };
        self.tell(key, Ask::Resolve(request)).await;
    }

    async fn delete(&mut self, key: &str) {
        let looked = self.look_up(key, None).await;
        if let Some(Answer::Completed { token, .. } | Answer::InDoubt { token, .. }) = looked {
            let (namespace, key_owned) = (NAMESPACE.to_owned(), key.to_owned());
            let request = v1::DeleteRequest { namespace, key: key_owned, fencing_token: token, force: false };
            self.tell(key, Ask::Delete(request)).await;
        }
    }

    /// Makes a call with the same arguments at one server and another, until it is answered or given up.
    async fn tell(&mut self, key: &str, ask: Ask) -> Option<Answer> {
        let id = self.world.history.call(&self.name, key, ask.recorded());
        let tries = self.rng.usize(1..=TRIES);
        let mut at = self.rng.usize(..self.lines.len());
        for tried in 0.. {
            if let Some(answer) = self.attempt(&id, at, &ask).await {
                return Some(answer);
            }
            if tried >= tries && !self.world.well.get() {
                break;
            }
            pass(self.millis(100..600)).await;
            if self.rng.u8(..4) > 0 {
                at = (at + 1) % self.lines.len();
            }
        }
        None
    }

    async fn attempt(&mut self, id: &OperationId, at: usize, ask: &Ask) -> Option<Answer> {
        // Some hang up early, mostly just before the answer comes.
        let well = self.world.well.get();
        if well && !self.seen_well {
            // A connection that the faults broke may yet cost a call its time: it is not the server's doing.
            self.lines.iter_mut().for_each(Line::hang_up);
            self.seen_well = true;
        }
        let patience = (!well && self.rng.u8(..10) == 0).then(|| self.millis(10..400));
        let deadline = self.millis(1_000..4_000);
        let history = &self.world.history;
        let due = (well || self.world.always_due).then_some(deadline);
        let sent = now();
        history.sent(id, sent, due);
        let line = &mut self.lines[at];
        let patience_at_last = patience.unwrap_or(deadline + GRACE + A_MOMENT);
        let told = tokio::time::timeout(patience_at_last, line.call(ask, deadline)).await;
        if !well && due.is_some() && now() >= sent + deadline {
            self.world.weather.count("deadlines passed while only the store was ill");
        }
        let failed: Failed = match told {
            Ok(Ok(answer)) => {
                history.answered(id, now(), answer.clone());
                return Some(answer);
            }
            Ok(Err(failed)) => failed,
            Err(_) => {
                // With patience left it is the connection that is bad.
                if patience.is_none() || self.rng.bool() {
                    line.hang_up();
                }
                Fate::Unknown
            }
        };
        history.failed(id, failed(now()));
        None
    }
}

fn lookup(key: &str, wait: Option<Duration>) -> Ask {
    let (namespace, key) = (NAMESPACE.to_owned(), key.to_owned());
    Ask::Call(Call::Lookup(v1::LookupRequest { namespace, key, wait: wait.and_then(time) }))
}

fn time(time: Duration) -> Option<prost_types::Duration> {
    Some(time.try_into().expect("a short time"))
}
