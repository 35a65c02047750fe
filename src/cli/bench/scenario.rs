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
use super::tally::{Kind, Tally};
use super::zipf::Zipf;
use super::{BenchArgs, Scenario, Shares, Spread};
use crate::clock::{Clock, Moment};

/// How much longer a lock lives than any call for its key. So no claim lapses here while anybody could take it over:
/// a second claim of a key is a promise broken, whatever failed.
const LOCK_MARGIN: Duration = Duration::from_secs(5);
/// How many keys are completed at once before the load.
const PREPARED_AT_ONCE: usize = 64;

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
    /// Of keys that are replayed for as long as the load goes on.
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

    /// Completes the keys that are to be replayed; and one in any case, so that what nobody may do here, or nobody can,
    /// is told before the load and not after it.
    ///
    /// # Errors
    /// Why a key was not completed.
    pub async fn prepare(&mut self, args: &BenchArgs, progress: &Progress) -> Result<(), Refusal> {
        let replays = match self.scenario {
            Scenario::Replays => true,
            Scenario::Mix => self.shares.replays > 0,
            Scenario::Unique | Scenario::Duplicates => false,
        };
        let count = if replays { args.keys } else { 1 };
        let mut tokens = Vec::with_capacity(count);
        let completing = (0..count).map(|number| self.complete_new(number));
        let mut completed = futures_util::stream::iter(completing).buffered(PREPARED_AT_ONCE);
        while let Some(token) = completed.next().await {
            tokens.push(token?);
            if tokens.len().is_multiple_of(PREPARED_AT_ONCE) {
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
        let what = match self.scenario {
            Scenario::Mix => self.shares.draw(),
            one => one,
        };
        let crowd = match (what, &self.crowd) {
            (Scenario::Replays | Scenario::Mix, _) => return self.replay(caller, since, tally).await,
            (Scenario::Unique, _) => 1,
            (Scenario::Duplicates, Crowd::Fixed(callers)) => *callers,
            (Scenario::Duplicates, Crowd::Spread(callers)) => callers.draw() + 1,
        };
        let key = self.keys.new_key(number);
        // Over all connections, and so over all servers.
        let callers = (0..crowd).map(|other| self.take_part(caller + other, &key, since, tally));
        self.settle(&key, &join_all(callers).await, tally)
    }

    /// Begins a key, and completes it if it is to be had.
    async fn take_part(&self, caller: usize, key: &str, since: Moment, tally: &Tally) -> End {
        let begin = self.keys.begin(key, self.keys.timeout, self.keys.retention);
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
                    Err(refusal) => tally.refused(since, refusal),
                }
                End::Claimed { token, completed: completed.is_ok() }
            }
            Ok(Begun::Completed(completed)) => {
                tally.took(Kind::Duplicate, since, self.clock.now());
                End::Told(completed.outcome)
            }
            Ok(Begun::InProgress(_) | Begun::InDoubt(_)) => {
                tally.failed(
                    since,
                    "STILL_HELD",
                    "its holder had not completed the key when the wait was over",
                );
                End::Failed
            }
            Err(refusal) => {
                tally.refused(since, &refusal);
                End::Failed
            }
        }
    }

    /// Checks what the callers of a key were answered: whether no call failed.
    fn settle(&self, key: &str, ends: &[End], tally: &Tally) -> bool {
        let claims = || {
            ends.iter().filter_map(|end| match end {
                End::Claimed { token, .. } => Some(*token),
                End::Told(_) | End::Failed => None,
            })
        };
        for end in ends {
            if let End::Told(outcome) = end {
                // Nobody else knows the key: who stored the outcome is among the callers.
                tally.told(claims().any(|token| self.keys.is_outcome(key, token, outcome.as_ref())));
            }
        }
        let failed =
            ends.iter().any(|end| matches!(end, End::Failed | End::Claimed { completed: false, .. }));
        tally.settled(claims().count() as u64, failed);
        !failed
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
                tally.refused(since, &refusal);
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
        Self {
            namespace: connect.namespace.clone(),
            start: format!("{}-{}-", args.prefix, Uuid::new_v4().simple()),
            owner: lasting_owner(),
            timeout: connect.timeout,
            retention,
            longest_retention: retention.saturating_add(args.warm_up).saturating_add(args.duration),
            payload: args.payload,
        }
    }

    fn new_key(&self, number: u64) -> String {
        format!("{}{number}", self.start)
    }

    fn replayed(&self, number: usize) -> String {
        format!("{}replayed-{number}", self.start)
    }

    fn begin(&self, key: &str, wait: Duration, retention: Duration) -> BeginRequest {
        let request_id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
        BeginRequest {
            namespace: self.namespace.clone(),
            key: key.to_owned(),
            request_id: request_id.to_string(),
            fingerprint: Bytes::new(),
            owner: self.owner.clone(),
            lock_ttl: Some(wire(self.timeout.saturating_mul(2).saturating_add(LOCK_MARGIN))),
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
