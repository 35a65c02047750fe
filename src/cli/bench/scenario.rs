//! What callers do, and what they must be answered.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use onced_client::v1::{BeginRequest, CompleteRequest, OnLapse, Outcome};
use onced_client::{Begun, Refusal, lasting_owner, wire};
use tonic::Status;
use uuid::Uuid;

use super::calls::Calls;
use super::drive::Progress;
use super::sample::{Ended, Sample};
use super::tally::{Kind, Tally};
use super::zipf::Zipf;
use super::{BenchArgs, Scenario, Shares, Spread};
use crate::clock::{Clock, Moment};

/// How much longer a lock lives than any call for its key. So no claim lapses here while anybody could take it over:
/// a second claim of a key is a promise broken, whatever failed.
pub const LOCK_MARGIN: Duration = Duration::from_secs(5);
/// How many keys are completed at once before the load, and asked for at once after it.
const AT_ONCE: usize = 64;
/// How long keys are asked for after the load, so that a server that hangs does not hold up what is told of it.
const ASKED_AGAIN_FOR: Duration = Duration::from_secs(30);

/// What is to be done.
pub struct Plan {
    calls: Calls,
    keys: Keys,
    pub clock: Clock,
    scenario: Scenario,
    shares: Shares,
    work: Duration,
    crowd: Crowd,
    /// Which of the keys that were completed before is replayed.
    replayed: Zipf,
    /// The token that each of those was completed with.
    tokens: Vec<u64>,
    /// Keys that were completed, to be asked for after the load.
    completed: Sample,
    /// The same of those of which that is not known, since calls failed.
    unsure: Sample,
}

/// How many callers a key with duplicates has.
enum Crowd {
    Fixed(usize),
    /// One more than is drawn.
    Spread(Zipf),
}

/// Keys that no other load uses, and an outcome for each claim, unlike that of any other.
pub struct Keys {
    pub namespace: String,
    /// What all of them begin with.
    pub start: String,
    owner: String,
    timeout: Duration,
    retention: Duration,
    /// Of keys that are replayed for as long as the load goes on, or asked for after it.
    pub longest_retention: Duration,
    payload: usize,
}

/// What became of a Begin.
enum End {
    /// It got a claim, and completed it, unless that failed.
    Claimed {
        token: u64,
        completed: bool,
    },
    /// It was told this outcome.
    Told(Option<Outcome>),
    Failed,
}

impl Plan {
    /// A plan for these calls.
    pub fn new(args: &BenchArgs, calls: Calls) -> Self {
        let crowd = match args.spread {
            Spread::Fixed => Crowd::Fixed(args.duplicates),
            Spread::Zipf => Crowd::Spread(Zipf::new(args.duplicates, args.zipf)),
        };
        Self {
            calls,
            keys: Keys::new(args),
            clock: Clock::system(),
            scenario: args.scenario,
            shares: args.shares,
            work: args.work,
            crowd,
            replayed: Zipf::new(args.keys, args.zipf),
            tokens: Vec::new(),
            completed: Sample::new(),
            unsure: Sample::new(),
        }
    }

    /// The keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// How many keys were completed before the load.
    pub fn prepared(&self) -> u64 {
        self.tokens.len() as u64
    }

    /// How many keys are to be replayed.
    pub fn to_replay(&self, args: &BenchArgs) -> usize {
        match self.scenario {
            Scenario::Replays => args.keys,
            Scenario::Mix if self.shares.replays > 0 => args.keys,
            Scenario::Unique | Scenario::Duplicates | Scenario::Mix => 0,
        }
    }

    /// Completes keys to be replayed, until there are so many.
    ///
    /// # Errors
    /// Why a key was not completed.
    pub async fn prepare(&mut self, count: usize, progress: &Progress) -> Result<(), Refusal> {
        let mut tokens = std::mem::take(&mut self.tokens);
        let completing = (tokens.len()..count).map(|number| self.complete_new(number));
        let mut completed = futures_util::stream::iter(completing).buffered(AT_ONCE);
        while let Some(token) = completed.next().await {
            tokens.push(token?);
            if tokens.len().is_multiple_of(AT_ONCE) {
                progress.show(&format!("{} of {count} keys are completed, to be replayed", tokens.len()));
            }
        }
        drop(completed);
        self.tokens = tokens;
        Ok(())
    }

    /// Completes a key that nobody knows: with which token.
    async fn complete_new(&self, number: usize) -> Result<u64, Refusal> {
        let key = self.keys.replayed(number);
        let begin = self.keys.begin(&key, Duration::ZERO, self.keys.longest_retention);
        let Begun::Claim(claim) = self.calls.begin(number, begin).await? else {
            return Err(Refusal::of(&Status::internal("a key that was never used is not free")));
        };
        self.calls.complete(number, self.keys.complete(&key, claim.fencing_token)).await?;
        Ok(claim.fencing_token)
    }

    /// Does what comes next, which should have begun `since`: whether no call failed.
    pub async fn run(&self, caller: usize, number: u64, since: Moment, tally: &Tally) -> bool {
        let Some(crowd) = self.draw() else { return self.replay(caller, since, tally).await };
        let began = self.clock.now();
        // Over all connections, and so over all servers.
        let callers = (0..crowd).map(|other| self.take_part(caller + other, number, since, tally));
        self.settle(number, began, &join_all(callers).await, tally)
    }

    /// So many should have begun `since`, and had not by the end.
    pub fn never_sent(&self, since: Moment, end: Moment, count: u64, tally: &Tally) {
        let Some(crowd) = self.draw() else { return tally.waited(Kind::Replay, since, end, count) };
        tally.waited(Kind::Begin, since, end, count);
        tally.waited(Kind::Pair, since, end, count);
        tally.waited(Kind::Duplicate, since, end, count.saturating_mul(crowd as u64 - 1));
    }

    /// What comes next: how many begin a new key; `None` if one is replayed.
    fn draw(&self) -> Option<usize> {
        let what = match self.scenario {
            Scenario::Mix => self.shares.draw(),
            one => one,
        };
        match (what, &self.crowd) {
            (Scenario::Replays | Scenario::Mix, _) => None,
            (Scenario::Unique, _) => Some(1),
            (Scenario::Duplicates, Crowd::Fixed(callers)) => Some(*callers),
            (Scenario::Duplicates, Crowd::Spread(callers)) => Some(callers.draw() + 1),
        }
    }

    /// Begins a key, and completes it if it is to be had.
    async fn take_part(&self, caller: usize, number: u64, since: Moment, tally: &Tally) -> End {
        let (key, keys) = (&self.keys.new_key(number), &self.keys);
        let retention = if self.completed.takes(number) { keys.longest_retention } else { keys.retention };
        let begin = keys.begin(key, keys.timeout, retention);
        match self.calls.begin(caller, begin).await {
            Ok(Begun::Claim(claim)) => {
                tally.took(Kind::Begin, since, self.clock.now());
                if !self.work.is_zero() {
                    tokio::time::sleep(self.work).await;
                }
                let (token, sent) = (claim.fencing_token, self.clock.now());
                let completed = self.calls.complete(caller, self.keys.complete(key, token)).await;
                match &completed {
                    Ok(()) => {
                        let now = self.clock.now();
                        tally.took(Kind::Complete, sent, now);
                        tally.took(Kind::Pair, since, now);
                    }
                    Err(refusal) => tally.refused(self.clock.now(), refusal),
                }
                End::Claimed { token, completed: completed.is_ok() }
            }
            Ok(Begun::Completed(completed)) => {
                tally.took(Kind::Duplicate, since, self.clock.now());
                End::Told(completed.outcome)
            }
            Ok(Begun::InProgress(_) | Begun::InDoubt(_)) => {
                tally.failed(
                    self.clock.now(),
                    "STILL_HELD",
                    "its holder had not completed the key when the wait was over",
                );
                End::Failed
            }
            Err(refusal) => {
                tally.refused(self.clock.now(), &refusal);
                End::Failed
            }
        }
    }

    /// Checks what the callers of a key were answered: whether no call failed.
    fn settle(&self, number: u64, began: Moment, ends: &[End], tally: &Tally) -> bool {
        let key = &self.keys.new_key(number);
        let claims: Vec<_> = ends
            .iter()
            .filter_map(|end| match end {
                End::Claimed { token, completed } => Some((*token, *completed)),
                End::Told(_) | End::Failed => None,
            })
            .collect();
        for end in ends {
            if let End::Told(outcome) = end {
                // Nobody else knows the key: who stored the outcome is among the callers.
                let stored = |(token, _): &(u64, bool)| self.keys.is_outcome(key, *token, outcome.as_ref());
                tally.told(claims.iter().any(stored));
            }
        }
        let failed =
            ends.iter().any(|end| matches!(end, End::Failed | End::Claimed { completed: false, .. }));
        tally.settled(claims.len() as u64, failed);
        match claims[..] {
            [(token, completed)] => {
                let sample = if completed { &self.completed } else { &self.unsure };
                sample.offer(Ended { number, began, token: Some(token), completed });
            }
            [] if failed => self.unsure.offer(Ended { number, began, token: None, completed: false }),
            // A promise is broken already.
            _ => {}
        }
        !failed
    }

    /// How many keys are to be asked for after the load.
    pub fn to_ask_again(&self) -> u64 {
        (self.completed.keys().len() + self.unsure.keys().len()) as u64
    }

    /// Asks for keys of the load once more, as a duplicate would: those that were completed must hold their outcome,
    /// and the others that one or none.
    pub async fn ask_again(&self, tally: &Tally) {
        let keys = [self.completed.keys(), self.unsure.keys()].concat();
        let asking = futures_util::stream::iter(keys)
            .for_each_concurrent(AT_ONCE, |ended| self.ask_again_for(ended, tally));
        // Whatever is not answered by then is told as that.
        let _ = tokio::time::timeout(ASKED_AGAIN_FOR, asking).await;
    }

    async fn ask_again_for(&self, ended: Ended, tally: &Tally) {
        let key = self.keys.new_key(ended.number);
        let begin = self.keys.begin(&key, Duration::ZERO, self.keys.retention);
        // On any of the connections.
        let begun = match self.calls.begin(fastrand::usize(..), begin).await {
            Ok(begun) => begun,
            Err(refusal) => return tally.refused(self.clock.now(), &refusal),
        };
        tally.asked_again();
        match begun {
            Begun::Completed(completed) => {
                let stored = |token| self.keys.is_outcome(&key, token, completed.outcome.as_ref());
                tally.told(ended.token.is_some_and(stored));
            }
            Begun::Claim(_) if ended.completed || self.is_held(&ended) => tally.executed_again(),
            // The outcome is lost.
            Begun::InProgress(_) | Begun::InDoubt(_) if ended.completed => tally.told(false),
            Begun::Claim(_) | Begun::InProgress(_) | Begun::InDoubt(_) => {}
        }
    }

    /// Whether the claim that a caller got must still keep others out: its lock lives, and so does its outcome, should
    /// it have been stored after all.
    fn is_held(&self, ended: &Ended) -> bool {
        let least = self.keys.lock_ttl().min(self.keys.retention);
        ended.token.is_some() && self.clock.now().since(ended.began) < least
    }

    /// Begins a key that was completed before the load.
    async fn replay(&self, caller: usize, since: Moment, tally: &Tally) -> bool {
        let number = self.replayed.draw();
        let (Some(&token), key) = (self.tokens.get(number), self.keys.replayed(number)) else { return false };
        let begin = self.keys.begin(&key, Duration::ZERO, self.keys.longest_retention);
        match self.calls.begin(caller, begin).await {
            Ok(Begun::Completed(completed)) => {
                tally.took(Kind::Replay, since, self.clock.now());
                tally.told(self.keys.is_outcome(&key, token, completed.outcome.as_ref()));
            }
            Ok(Begun::Claim(_)) => tally.executed_again(),
            // The outcome is lost.
            Ok(Begun::InProgress(_) | Begun::InDoubt(_)) => tally.told(false),
            Err(refusal) => {
                tally.refused(self.clock.now(), &refusal);
                return false;
            }
        }
        true
    }
}

impl Shares {
    fn draw(&self) -> Scenario {
        let (unique, duplicates) = (u64::from(self.unique), u64::from(self.duplicates));
        match fastrand::u64(..unique + duplicates + u64::from(self.replays)) {
            drawn if drawn < unique => Scenario::Unique,
            drawn if drawn < unique + duplicates => Scenario::Duplicates,
            _ => Scenario::Replays,
        }
    }
}

impl Keys {
    fn new(args: &BenchArgs) -> Self {
        let connect = &args.client.connect;
        // A record is to be there as long as somebody may still ask for it, and little longer.
        let retention = args.retention.saturating_add(connect.timeout);
        // The last pair of a load takes another call, and its work; then keys are asked for.
        let longest = [args.warm_up, args.duration, args.work, connect.timeout, ASKED_AGAIN_FOR];
        Self {
            namespace: connect.namespace.clone(),
            start: format!("{}-{}-", args.prefix, Uuid::new_v4().simple()),
            owner: lasting_owner(),
            timeout: connect.timeout,
            retention,
            longest_retention: longest.into_iter().fold(retention, Duration::saturating_add),
            payload: args.payload,
        }
    }

    fn new_key(&self, number: u64) -> String {
        format!("{}{number}", self.start)
    }

    fn replayed(&self, number: usize) -> String {
        format!("{}replayed-{number}", self.start)
    }

    fn lock_ttl(&self) -> Duration {
        self.timeout.saturating_mul(2).saturating_add(LOCK_MARGIN)
    }

    fn begin(&self, key: &str, wait: Duration, retention: Duration) -> BeginRequest {
        let request_id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
        BeginRequest {
            namespace: self.namespace.clone(),
            key: key.to_owned(),
            request_id: request_id.to_string(),
            fingerprint: Bytes::new(),
            owner: self.owner.clone(),
            lock_ttl: Some(wire(self.lock_ttl())),
            wait: Some(wire(wait)),
            retention: Some(wire(retention)),
            // Whatever the namespace does by default, what a load leaves behind goes away by itself.
            on_lapse: OnLapse::TakeOver.into(),
        }
    }

    fn complete(&self, key: &str, fencing_token: u64) -> CompleteRequest {
        CompleteRequest {
            namespace: self.namespace.clone(),
            key: key.to_owned(),
            fencing_token,
            outcome: Some(Outcome::response(self.outcome(key, fencing_token))),
            retention: None,
        }
    }

    /// Token and key again and again, as long as an outcome is to be.
    fn outcome(&self, key: &str, token: u64) -> Bytes {
        let one = format!("{token} {key} ");
        let mut outcome = one.repeat(self.payload.div_ceil(one.len())).into_bytes();
        outcome.truncate(self.payload);
        outcome.into()
    }

    fn is_outcome(&self, key: &str, token: u64, told: Option<&Outcome>) -> bool {
        told.and_then(Outcome::response_bytes).is_some_and(|response| *response == self.outcome(key, token))
    }
}
