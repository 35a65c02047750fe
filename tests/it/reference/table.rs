//! The reference: what the design says of every command, as a table in memory. It has nothing of the product's, so
//! that what is wrong there is not wrong here as well.

use std::time::Duration;

use onced_client::v1::{ErrorReason, RecordState};
use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;

use super::commands::{self, Caller, Checkpoint, Command, Opening, Step, TokenChoice, Until};
use super::rules::not_found;
use super::seen::Met;

pub const KEYS: usize = 3;

const HOUR: u64 = 3_600;
/// The lock TTLs and retentions of each key. No two are near each other: in etcd what is alike shares a lease, and
/// here a key is to lapse or expire without its neighbour. All are longer than a sequence takes.
pub const LOCK_TTLS: [[Duration; 2]; KEYS] = [seconds(300, 500), seconds(700, 1_000), seconds(1_500, 2_000)];
pub const RETENTIONS: [[Duration; 2]; KEYS] =
    [seconds(HOUR, 2 * HOUR), seconds(4 * HOUR, 8 * HOUR), seconds(16 * HOUR, 32 * HOUR)];
/// How much longer than announced a record is kept.
const MARGIN: Duration = Duration::from_secs(120);
const SECOND: Duration = Duration::from_secs(1);
/// Longer than what expires is kept.
const LONG: Duration = Duration::from_secs(48 * HOUR);

const fn seconds(one: u64, other: u64) -> [Duration; 2] {
    [Duration::from_secs(one), Duration::from_secs(other)]
}

/// The records, and what the last step came to.
#[derive(Clone, Debug, Default)]
pub struct Table {
    opening: Opening,
    pub(super) now: Duration,
    steps: usize,
    pub(super) records: [Option<Record>; KEYS],
    /// The key of each token that was given out, in that order.
    pub(super) tokens: Vec<usize>,
    pub last: Option<Taken>,
    /// Whether every lock has all of its time again after a restart.
    pub rearms: bool,
}

/// What a step came to.
#[derive(Clone, Debug)]
pub struct Taken {
    /// For the statistics.
    pub met: Met,
    /// The token that the call names, if it names one.
    pub token: Option<Token>,
    /// How much time passed, and what that did.
    pub passed: Duration,
    pub lapsed: Vec<usize>,
    pub expired: Vec<usize>,
    pub told: Told,
}

/// Tokens by number, in the order in which they were given out: the reference cannot know their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    Given(usize),
    /// One more than a token that was given out.
    After(usize),
    Huge,
}

#[derive(Clone, Debug)]
pub enum Told {
    Nothing,
    Claim { record: Record, resumed: bool },
    Standing(Shown),
    Completed { shown: Shown, repeated: bool },
    Renewed(Duration),
    Released,
    Resolved(Shown),
    Deleted,
    Listed(Vec<Shown>),
    Restarted,
    Refused { reason: ErrorReason, standing: Option<Shown>, spent: bool },
}

/// A record as a reader is told of it.
#[derive(Clone, Debug)]
pub struct Shown {
    pub key: usize,
    pub state: RecordState,
    pub since: When,
    pub reason: String,
    pub record: Record,
}

/// Some time after a moment during a step.
#[derive(Clone, Copy, Debug)]
pub struct When {
    pub step: usize,
    pub plus: Duration,
}

#[derive(Clone, Debug)]
pub struct Record {
    pub token: usize,
    pub attempt: u64,
    pub caller: Caller,
    pub fingerprint: Option<u8>,
    pub checkpoint: Option<Checkpoint>,
    pub began: When,
    pub retention: Duration,
    /// When it was last written.
    pub written_at: Duration,
    pub state: State,
}

#[derive(Clone, Debug)]
pub enum State {
    InProgress { lock_ttl: Duration, hold: bool, armed: When, armed_at: Duration },
    Released { since: When, reason: &'static str, spent: bool },
    InDoubt { since: When, by_lapse: bool },
    Completed { at: When, outcome: usize, resolved_from: Option<usize> },
}

pub const RELEASE_REASON: &str = "the sequence says so";
const LAPSE_REASON: &str = "the lock lapsed";
pub const RESOLVED_REASON: &str = "resolved by an operator";

impl ReferenceStateMachine for Table {
    type State = Table;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Table> {
        Opening::any().prop_map(|opening| Table { opening, ..Table::default() }).boxed()
    }

    fn transitions(table: &Table) -> BoxedStrategy<Step> {
        commands::step(table, table.opening, table.steps)
    }

    fn apply(mut table: Table, step: &Step) -> Table {
        table.take(step);
        table
    }
}

impl Table {
    fn take(&mut self, step: &Step) {
        let key = step.key;
        let token = step.command.token().map(|choice| self.resolve_token(key, choice));
        let met = self.met(key, &step.command, token);
        let (mut passed, mut lapsed, mut expired) = (Duration::ZERO, Vec::new(), Vec::new());
        let told = match step.command {
            Command::Begin(begin) => self.begin(key, &begin),
            Command::Complete { outcome, retention, .. } => {
                self.complete(key, token, outcome, retention.map(|choice| RETENTIONS[key][choice]))
            }
            Command::Renew { checkpoint, .. } => self.renew(key, token, checkpoint),
            Command::Release { in_doubt, .. } => self.release(key, token, in_doubt),
            Command::Lookup => match self.shown(key) {
                Some(shown) => Told::Standing(shown),
                None => not_found(),
            },
            Command::List { state, .. } => {
                let all = (0..KEYS).filter_map(|key| self.shown(key));
                Told::Listed(all.filter(|shown| state == 0 || shown.state as usize == state).collect())
            }
            Command::Resolve { outcome, retention, .. } => {
                self.resolve(key, token, outcome, retention.map(|choice| RETENTIONS[key][choice]))
            }
            Command::Delete { force, .. } => self.delete(key, token, force),
            Command::Pass(until) => {
                (passed, lapsed, expired) = self.pass(key, until);
                Told::Nothing
            }
            Command::Restart => {
                self.restart();
                Told::Restarted
            }
        };
        self.steps += 1;
        self.last = Some(Taken { met, token, passed, lapsed, expired, told });
    }

    /// This very step, at whose end a record is written.
    pub(super) fn here(&self) -> When {
        When { step: self.steps, plus: Duration::ZERO }
    }

    pub(super) fn shown(&self, key: usize) -> Option<Shown> {
        let record = self.records[key].clone()?;
        let lapsed = self.is_lapsed(&record);
        let (state, since, reason) = match record.state {
            State::InProgress { hold, armed, lock_ttl, .. } if lapsed => {
                let since = When { plus: lock_ttl, ..armed };
                if hold {
                    (RecordState::InDoubt, since, LAPSE_REASON)
                } else {
                    (RecordState::Available, since, "")
                }
            }
            State::InProgress { .. } => (RecordState::InProgress, record.began, ""),
            State::Released { since, reason, .. } => (RecordState::Available, since, reason),
            State::InDoubt { since, by_lapse } => {
                (RecordState::InDoubt, since, if by_lapse { LAPSE_REASON } else { RELEASE_REASON })
            }
            State::Completed { at, .. } => (RecordState::Completed, at, ""),
        };
        Some(Shown { key, state, since, reason: reason.to_owned(), record })
    }

    pub(super) fn record(&self, key: usize) -> Option<&Record> {
        self.records[key].as_ref()
    }

    /// The key that had this token.
    pub(super) fn key_of(&self, token: usize) -> usize {
        self.tokens[token]
    }

    pub(super) fn is_lapsed(&self, record: &Record) -> bool {
        match record.state {
            State::InProgress { lock_ttl, armed_at, .. } => self.now - armed_at >= lock_ttl,
            State::Released { .. } | State::InDoubt { .. } | State::Completed { .. } => false,
        }
    }

    /// How long a record is kept after its last write; `None`: for ever.
    fn lifetime(record: &Record) -> Option<Duration> {
        match record.state {
            State::InProgress { hold: true, .. } | State::InDoubt { .. } => None,
            State::InProgress { lock_ttl, .. } => Some(lock_ttl + record.retention + MARGIN),
            State::Released { .. } | State::Completed { .. } => Some(record.retention + MARGIN),
        }
    }

    /// Lets time pass. Tells how much, whose locks lapse by it, and which records expire.
    fn pass(&mut self, key: usize, until: Until) -> (Duration, Vec<usize>, Vec<usize>) {
        let left = |from: Duration, time: Duration| time.saturating_sub(self.now - from);
        let lapse = self.records[key].as_ref().and_then(|record| match record.state {
            State::InProgress { lock_ttl, armed_at, .. } => Some(left(armed_at, lock_ttl)),
            State::Released { .. } | State::InDoubt { .. } | State::Completed { .. } => None,
        });
        let expiry = self.records[key]
            .as_ref()
            .map(|record| Self::lifetime(record).map_or(LONG, |lifetime| left(record.written_at, lifetime)));
        let time = match until {
            Until::BeforeLapse => lapse.unwrap_or_default().saturating_sub(SECOND),
            Until::Lapse => lapse.unwrap_or_default() + SECOND,
            Until::BeforeExpiry => expiry.unwrap_or_default().saturating_sub(SECOND),
            Until::Expiry => expiry.unwrap_or_default() + SECOND,
        };
        let is_lapsed = |table: &Self, key: usize| {
            table.records[key].as_ref().is_some_and(|record| table.is_lapsed(record))
        };
        let held = (0..KEYS).filter(|key| !is_lapsed(self, *key)).collect::<Vec<_>>();
        self.now += time;
        let lapsed = held.into_iter().filter(|key| is_lapsed(self, *key)).collect();
        let is_over = |record: &Record| {
            Self::lifetime(record).is_some_and(|lifetime| self.now - record.written_at > lifetime)
        };
        let over = |key: &usize| self.records[*key].as_ref().is_some_and(is_over);
        let expired = (0..KEYS).filter(over).collect::<Vec<_>>();
        expired.iter().for_each(|key| self.records[*key] = None);
        (time, lapsed, expired)
    }

    fn restart(&mut self) {
        for record in self.records.iter_mut().flatten() {
            if let State::InProgress { armed_at, .. } = &mut record.state
                && self.rearms
            {
                *armed_at = self.now;
            }
        }
    }

    fn resolve_token(&self, key: usize, choice: TokenChoice) -> Token {
        let of = |key| (0..self.tokens.len()).rev().filter(move |token| self.tokens[*token] == key);
        let current = self.records[key].as_ref().map(|record| record.token);
        let latest = current.or_else(|| of(key).next());
        let token = match choice {
            TokenChoice::Current => latest.map(Token::Given),
            TokenChoice::Earlier(back) => {
                of(key).filter(|token| Some(*token) != current).nth(back).map(Token::Given)
            }
            TokenChoice::OfAnother => {
                (0..KEYS).filter(|other| *other != key).find_map(|other| of(other).next()).map(Token::Given)
            }
            TokenChoice::Next => latest.map(Token::After),
            TokenChoice::Huge => None,
        };
        token.unwrap_or(Token::Huge)
    }
}

impl Record {
    pub(super) fn is_for_another_request(&self, fingerprint: Option<u8>) -> bool {
        self.fingerprint.zip(fingerprint).is_some_and(|(theirs, ours)| theirs != ours)
    }
}

impl Command {
    fn token(&self) -> Option<TokenChoice> {
        match *self {
            Command::Complete { token, .. }
            | Command::Renew { token, .. }
            | Command::Release { token, .. }
            | Command::Resolve { token, .. }
            | Command::Delete { token, .. } => Some(token),
            Command::Begin(_)
            | Command::Lookup
            | Command::List { .. }
            | Command::Pass(_)
            | Command::Restart => None,
        }
    }
}
