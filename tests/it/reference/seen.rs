//! What a run met: a test that never asked something of some state has not tested that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use onced_client::v1::{ErrorReason, RecordState};

use super::commands::Command;
use super::table::{Record, State, Table, Taken, Token, Told};

const ABSENT: &str = "absent";
const LAPSED: &str = "lapsed";
/// Every state of a record that commands tell apart.
const STATES: [&str; 11] = [
    ABSENT,
    "held",
    LAPSED,
    "held, HOLD",
    "lapsed, HOLD",
    "released, id spent",
    "released, id unspent",
    "in doubt by lapse",
    "in doubt by release",
    "completed",
    "completed by an operator",
];

/// The first one is all there is where there is no record.
const BEGINS: [&str; 4] =
    ["Begin of another", "Begin of its own", "Begin of another owner", "Begin with another fingerprint"];
const READS: [&str; 3] = ["Lookup", "List", "passing of time"];
const CALLS_WITH_TOKENS: [&str; 8] = [
    "Complete",
    "Renew",
    "Release RETRY",
    "Release IN_DOUBT",
    "Resolve RETRY",
    "Resolve with an outcome",
    "Delete",
    "Delete by force",
];

const CURRENT: &str = "its token";
const EARLIER: &str = "an earlier token";
const MADE_UP: &str = "a token that it never had";
const TOKENS: [&str; 3] = [CURRENT, EARLIER, MADE_UP];

/// Every kind of answer, and what else may come of a command.
const ANSWERS: [&str; 25] = [
    "claim",
    "claim resumed",
    "takeover of a lapsed claim",
    "takeover of a released claim",
    "claim with a checkpoint",
    "replay",
    "COMPLETED looked up",
    "IN_PROGRESS",
    "AVAILABLE",
    "IN_DOUBT",
    "completed",
    "completed again",
    "renewed",
    "released",
    "resolved",
    "deleted",
    "listed",
    "FINGERPRINT_MISMATCH",
    "OUTCOME_CONFLICT",
    "CLAIM_LOST, a stale holder's",
    "CLAIM_LOST, another",
    "CLAIM_LOST, request id spent",
    "CLAIM_HELD",
    "RECORD_NOT_FOUND",
    "restart",
];

/// How many commands meet every state and get every answer; meet every state with each command; and that with each
/// kind of token. With so many, the rarest is still expected more than ten times.
const MEET_STATES: u64 = 5_000;
const MEET_COMMANDS: u64 = 35_000;
const MEET_TOKENS: u64 = 1_000_000;

/// How often each command met each state, and how often each answer was given.
#[derive(Default)]
pub struct Seen {
    met: BTreeMap<Met, u64>,
    answers: BTreeMap<&'static str, u64>,
}

/// A command that met a record in some state; with which token, if it names one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Met {
    state: &'static str,
    command: &'static str,
    token: Option<&'static str>,
}

impl Seen {
    pub fn note(&mut self, taken: &Taken) {
        *self.met.entry(taken.met).or_default() += 1;
        for answer in answers(taken) {
            *self.answers.entry(answer).or_default() += 1;
        }
    }

    pub fn add(&mut self, other: Seen) {
        for (met, times) in other.met {
            *self.met.entry(met).or_default() += times;
        }
        for (answer, times) in other.answers {
            *self.answers.entry(answer).or_default() += times;
        }
    }

    pub fn commands(&self) -> u64 {
        self.met.values().sum()
    }

    /// Fails if a run of this length left out what it should have met. Tells what it met.
    pub fn assert_not_empty(&self) {
        let commands = self.commands();
        if commands >= MEET_STATES {
            self.assert_met(STATES, |met| met.state);
            for answer in ANSWERS {
                assert!(self.answers.contains_key(answer), "never told: {answer}: {:#?}", self.answers);
            }
        }
        if commands >= MEET_COMMANDS {
            let without_token = |met: Met| Met { token: None, ..met };
            self.assert_met(all().into_iter().map(without_token).collect::<BTreeSet<_>>(), without_token);
        }
        if commands >= MEET_TOKENS {
            self.assert_met(all(), |met| met);
        }
        for answer in ANSWERS {
            println!("{:8} {answer}", self.answers.get(answer).copied().unwrap_or(0));
        }
    }

    /// Each of `all` is what something that was met comes to.
    fn assert_met<T: Ord + Debug>(&self, all: impl IntoIterator<Item = T>, of: impl Fn(Met) -> T) {
        let mut times_met = BTreeMap::new();
        for (met, times) in &self.met {
            *times_met.entry(of(*met)).or_default() += times;
        }
        let times = |one: &T| times_met.get(one).copied().unwrap_or(0);
        let (least, rarest) = all.into_iter().map(|one| (times(&one), one)).min().expect("there are some");
        println!("the rarest, {least} times: {rarest:?}");
        assert!(least > 0, "never met: {rarest:?}");
    }
}

/// Everything that can be asked of a record, in every state.
fn all() -> BTreeSet<Met> {
    let in_state = |state| {
        let there = state != ABSENT;
        let plain = BEGINS.into_iter().take(if there { BEGINS.len() } else { 1 }).chain(READS);
        let plain = plain.map(move |command| Met { state, command, token: None });
        let tokens = TOKENS.into_iter().filter(move |token| there || *token != CURRENT);
        let named = tokens.flat_map(move |token| {
            CALLS_WITH_TOKENS.map(|command| Met { state, command, token: Some(token) })
        });
        plain.chain(named)
    };
    STATES.into_iter().flat_map(in_state).collect()
}

/// What came of a command, each of [`ANSWERS`].
fn answers(taken: &Taken) -> Vec<&'static str> {
    let Taken { met, told, .. } = taken;
    let answer = match told {
        Told::Nothing => return Vec::new(),
        Told::Claim { resumed: true, .. } => "claim resumed",
        Told::Claim { .. } if met.state == ABSENT => "claim",
        Told::Claim { .. } if met.state == LAPSED => "takeover of a lapsed claim",
        Told::Claim { .. } => "takeover of a released claim",
        Told::Standing(shown) => match shown.state {
            RecordState::Completed if BEGINS.contains(&met.command) => "replay",
            RecordState::Completed => "COMPLETED looked up",
            RecordState::InProgress => "IN_PROGRESS",
            RecordState::InDoubt => "IN_DOUBT",
            RecordState::Available => "AVAILABLE",
            RecordState::Unspecified => panic!("a record without a state"),
        },
        Told::Completed { repeated: false, .. } => "completed",
        Told::Completed { repeated: true, .. } => "completed again",
        Told::Renewed(_) => "renewed",
        Told::Released => "released",
        Told::Resolved(_) => "resolved",
        Told::Deleted => "deleted",
        Told::Listed(_) => "listed",
        Told::Restarted => "restart",
        Told::Refused { spent: true, .. } => "CLAIM_LOST, request id spent",
        Told::Refused { reason: ErrorReason::ClaimLost, .. } if met.token == Some(EARLIER) => {
            "CLAIM_LOST, a stale holder's"
        }
        Told::Refused { reason: ErrorReason::ClaimLost, .. } => "CLAIM_LOST, another",
        Told::Refused { reason, .. } => reason.as_str_name().trim_start_matches("ERROR_REASON_"),
    };
    let checkpoint = matches!(told, Told::Claim { record: Record { checkpoint: Some(_), .. }, .. });
    [Some(answer), checkpoint.then_some("claim with a checkpoint")].into_iter().flatten().collect()
}

impl Table {
    /// The state of a key, one of [`STATES`].
    fn state_name(&self, key: usize) -> &'static str {
        let Some(record) = self.record(key) else { return ABSENT };
        match (&record.state, self.is_lapsed(record)) {
            (State::InProgress { hold: false, .. }, false) => "held",
            (State::InProgress { hold: false, .. }, true) => LAPSED,
            (State::InProgress { hold: true, .. }, false) => "held, HOLD",
            (State::InProgress { hold: true, .. }, true) => "lapsed, HOLD",
            (State::Released { spent: true, .. }, _) => "released, id spent",
            (State::Released { spent: false, .. }, _) => "released, id unspent",
            (State::InDoubt { by_lapse: true, .. }, _) => "in doubt by lapse",
            (State::InDoubt { by_lapse: false, .. }, _) => "in doubt by release",
            (State::Completed { resolved_from: None, .. }, _) => "completed",
            (State::Completed { resolved_from: Some(_), .. }, _) => "completed by an operator",
        }
    }

    /// What is about to happen to a key, one of [`all`].
    pub(super) fn met(&self, key: usize, command: &Command, token: Option<Token>) -> Met {
        let record = self.record(key);
        let command = match command {
            Command::Begin(begin) => match record {
                Some(record) if record.is_for_another_request(begin.fingerprint) => BEGINS[3],
                Some(record) if record.caller == begin.caller => BEGINS[1],
                Some(record) if record.caller.request == begin.caller.request => BEGINS[2],
                Some(_) | None => BEGINS[0],
            },
            Command::Lookup => READS[0],
            Command::List { .. } => READS[1],
            Command::Pass(_) => READS[2],
            Command::Restart => "restart",
            Command::Complete { .. } => CALLS_WITH_TOKENS[0],
            Command::Renew { .. } => CALLS_WITH_TOKENS[1],
            Command::Release { in_doubt, .. } => CALLS_WITH_TOKENS[2 + usize::from(*in_doubt)],
            Command::Resolve { outcome, .. } => CALLS_WITH_TOKENS[4 + usize::from(outcome.is_some())],
            Command::Delete { force, .. } => CALLS_WITH_TOKENS[6 + usize::from(*force)],
        };
        let token = token.map(|token| match token {
            Token::Given(token) if record.is_some_and(|record| record.token == token) => CURRENT,
            Token::Given(token) if self.key_of(token) == key => EARLIER,
            Token::Given(_) | Token::After(_) | Token::Huge => MADE_UP,
        });
        Met { state: self.state_name(key), command, token }
    }
}
