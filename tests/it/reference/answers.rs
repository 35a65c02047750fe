//! Whether a server's answers are those of the reference, to the last field. Times are its own: they must fall into
//! the step that they are of.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use onced::record::Timestamp;
use onced::record::limits::OUTCOME_MAX_BYTES;
use onced_client::v1::session_response::Answer;
use onced_client::v1::{self, RecordState, begin_response, lookup_response, outcome};
use proptest::prelude::*;
use prost::Message;
use tonic_types::{Status, pb};

use super::table::{Record, Shown, State, Told, When};

pub type Checked<T> = Result<T, TestCaseError>;

/// Between which times something happened.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub from: Timestamp,
    pub to: Timestamp,
}

/// What the reference does not know: when each step was taken, and the tokens' values.
#[derive(Debug, Default)]
pub struct Facts {
    pub windows: Vec<Window>,
    pub tokens: Vec<u64>,
}

/// The names of the keys, in their order.
pub const KEY_NAMES: [&str; super::table::KEYS] = ["a", "b", "c"];

pub fn owner(number: u8) -> String {
    format!("host-{number}")
}

pub fn outcome(number: usize) -> v1::Outcome {
    let result = match number {
        0 => outcome::Result::Response(Bytes::from_static(b"done\0\xff")),
        1 => outcome::Result::Response(Bytes::new()),
        _ => outcome::Result::Error(Status {
            code: 9,
            message: "never again".to_owned(),
            details: vec![prost_types::Any { type_url: "type.test/any".to_owned(), value: vec![8, 1, 0xff] }],
        }),
    };
    let metadata = BTreeMap::from([("b".to_owned(), "2".to_owned()), ("a".to_owned(), number.to_string())]);
    v1::Outcome { result: Some(result), content_type: format!("type/{number}"), metadata }
}

pub fn checkpoint(checkpoint: super::commands::Checkpoint) -> v1::Checkpoint {
    v1::Checkpoint { sequence: checkpoint.sequence, data: vec![checkpoint.data; 3].into() }
}

pub fn duration(duration: Duration) -> prost_types::Duration {
    duration.try_into().expect("a sane duration")
}

/// What an answer that is no error holds.
#[derive(Debug)]
pub enum Response {
    Call(Answer),
    /// All pages.
    List(Vec<v1::RecordSummary>),
    Resolve(v1::ResolveResponse),
    Delete(v1::DeleteResponse),
    /// Nobody was asked: time passed, or the servers were started anew.
    Nothing,
}

impl Facts {
    /// Checks an answer that came within `took`.
    pub fn check(&mut self, told: &Told, response: Response, took: Duration) -> Checked<()> {
        match response {
            Response::Call(Answer::Begin(answer)) => self.check_begin(told, answer, took),
            Response::Call(Answer::Complete(answer)) => self.check_complete(told, answer),
            Response::Call(Answer::Renew(answer)) => self.check_renew(told, answer),
            Response::Call(Answer::Lookup(answer)) => self.check_lookup(told, answer),
            Response::Resolve(answer) => self.check_resolve(told, answer),
            Response::List(all) => self.check_list(told, &all),
            response => match (told, &response) {
                (Told::Released, Response::Call(Answer::Release(_)))
                | (Told::Deleted, Response::Delete(_))
                | (Told::Nothing | Told::Restarted, Response::Nothing) => Ok(()),
                _ => mismatch(told, &response),
            },
        }
    }

    fn check_begin(&mut self, told: &Told, answer: v1::BeginResponse, took: Duration) -> Checked<()> {
        use begin_response::Result as Begun;
        let answered = answer.result.ok_or_else(|| TestCaseError::fail("an empty answer"))?;
        let expected = match (told, &answered) {
            (Told::Claim { record, resumed }, Begun::Claim(claim)) => {
                self.learn_token(record.token, claim.fencing_token)?;
                Begun::Claim(self.claim(record, *resumed, claim, took)?)
            }
            (Told::Standing(shown), Begun::Completed(completed)) => {
                Begun::Completed(self.completed(shown, completed, true)?)
            }
            (Told::Standing(shown), Begun::InProgress(progress)) => {
                Begun::InProgress(self.in_progress(shown, progress)?)
            }
            (Told::Standing(shown), Begun::InDoubt(doubt)) => Begun::InDoubt(self.in_doubt(shown, doubt)?),
            _ => return mismatch(told, &answered),
        };
        prop_assert_eq!(answered, expected);
        Ok(())
    }

    fn check_lookup(&self, told: &Told, answer: v1::LookupResponse) -> Checked<()> {
        use lookup_response::Record as There;
        let answered = answer.record.ok_or_else(|| TestCaseError::fail("an empty answer"))?;
        let Told::Standing(shown) = told else { return mismatch(told, &answered) };
        let expected = match &answered {
            There::Completed(completed) => There::Completed(self.completed(shown, completed, true)?),
            There::InProgress(progress) => There::InProgress(self.in_progress(shown, progress)?),
            There::InDoubt(doubt) => There::InDoubt(self.in_doubt(shown, doubt)?),
            There::Available(available) => {
                expect_state(shown, RecordState::Available)?;
                There::Available(v1::Available {
                    owner: owner(shown.record.caller.owner),
                    attempt: shown.record.attempt,
                    since: self.within(shown.since, available.since)?,
                })
            }
        };
        prop_assert_eq!(answered, expected);
        Ok(())
    }

    fn check_complete(&self, told: &Told, answer: v1::CompleteResponse) -> Checked<()> {
        let (Told::Completed { shown, repeated }, Some(completed)) = (told, &answer.completed) else {
            return mismatch(told, &answer);
        };
        let expected = v1::CompleteResponse {
            completed: Some(self.completed(shown, completed, false)?),
            repeated: *repeated,
        };
        prop_assert_eq!(answer, expected);
        Ok(())
    }

    fn check_renew(&self, told: &Told, answer: v1::RenewResponse) -> Checked<()> {
        let Told::Renewed(lock_ttl) = told else { return mismatch(told, &answer) };
        prop_assert_eq!(answer, v1::RenewResponse { lock_expires_in: Some(duration(*lock_ttl)) });
        Ok(())
    }

    fn check_resolve(&mut self, told: &Told, answer: v1::ResolveResponse) -> Checked<()> {
        let (Told::Resolved(shown), Some(summary)) = (told, &answer.record) else {
            return mismatch(told, &answer);
        };
        self.learn_token(shown.record.token, summary.fencing_token)?;
        let expected = self.summary(shown, summary)?;
        prop_assert_eq!(answer.record, Some(expected));
        Ok(())
    }

    fn check_list(&self, told: &Told, answers: &[v1::RecordSummary]) -> Checked<()> {
        let Told::Listed(all) = told else { return mismatch(told, &answers) };
        prop_assert_eq!(answers.len(), all.len(), "{:?} instead of {:?}", answers, all);
        for (shown, summary) in all.iter().zip(answers) {
            prop_assert_eq!(summary, &self.summary(shown, summary)?);
        }
        Ok(())
    }

    pub fn check_error(&self, told: &Told, error: &Status) -> Checked<()> {
        let Told::Refused { reason, standing, spent } = told else { return mismatch(told, error) };
        let mut metadata = BTreeMap::new();
        if let Some(shown) = standing {
            let state = shown.state.as_str_name().trim_start_matches("RECORD_STATE_").to_lowercase();
            metadata.insert("state".to_owned(), state);
            metadata.insert("attempt".to_owned(), shown.record.attempt.to_string());
            metadata.insert("fencing_token".to_owned(), self.tokens[shown.record.token].to_string());
        }
        if *spent {
            metadata.insert("request_id".to_owned(), "spent".to_owned());
        }
        let [detail] = &error.details[..] else { return mismatch(told, error) };
        let info = pb::ErrorInfo::decode(&detail.value[..])
            .map_err(|error| TestCaseError::fail(format!("no ErrorInfo in {detail:?}: {error}")))?;
        prop_assert_eq!(&detail.type_url, tonic_types::ErrorInfo::TYPE_URL);
        let reason_name = reason.as_str_name().trim_start_matches("ERROR_REASON_");
        prop_assert_eq!((info.domain.as_str(), info.reason.as_str()), ("onced.dev", reason_name));
        prop_assert_eq!(info.metadata.into_iter().collect::<BTreeMap<_, _>>(), metadata);
        prop_assert_eq!(tonic::Code::from(error.code), code(*reason));
        prop_assert!(!error.message.is_empty());
        Ok(())
    }

    /// A new token is larger than all before it, whichever keys had those.
    fn learn_token(&mut self, token: usize, value: u64) -> Checked<()> {
        if token == self.tokens.len() {
            let highest = self.tokens.last().copied().unwrap_or(0);
            prop_assert!(value > highest, "the token {} after {}", value, highest);
            self.tokens.push(value);
        }
        Ok(())
    }

    fn claim(&self, record: &Record, resumed: bool, claim: &v1::Claim, took: Duration) -> Checked<v1::Claim> {
        let State::InProgress { lock_ttl, .. } = record.state else { return mismatch(record, claim) };
        let waited = claim.waited.and_then(|waited| Duration::try_from(waited).ok());
        prop_assert!(waited.is_some_and(|waited| waited <= took), "waited {:?} of {:?}", waited, took);
        Ok(v1::Claim {
            fencing_token: self.tokens[record.token],
            attempt: record.attempt,
            lock_ttl: Some(duration(lock_ttl)),
            waited: claim.waited,
            checkpoint: record.checkpoint.map(checkpoint),
            resumed,
            max_outcome_bytes: OUTCOME_MAX_BYTES as u64,
        })
    }

    fn completed(&self, shown: &Shown, told: &v1::Completed, with_outcome: bool) -> Checked<v1::Completed> {
        let State::Completed { outcome: stored, .. } = shown.record.state else {
            return mismatch(shown, told);
        };
        let completed_at = self.within(shown.since, told.completed_at)?;
        Ok(v1::Completed {
            outcome: with_outcome.then(|| outcome(stored)),
            owner: owner(shown.record.caller.owner),
            attempt: shown.record.attempt,
            fencing_token: self.tokens[shown.record.token],
            completed_at,
            expires_at: completed_at.map(|at| later(at, shown.record.retention)),
        })
    }

    fn in_progress(&self, shown: &Shown, told: &v1::InProgress) -> Checked<v1::InProgress> {
        expect_state(shown, RecordState::InProgress)?;
        let expires_in = self.lock_expires_in(&shown.record, told.lock_expires_in)?;
        // An eighth of what the lock has left, within bounds; nobody has waited here.
        let pause = (expires_in / 8).clamp(Duration::from_millis(200), Duration::from_secs(5));
        Ok(v1::InProgress {
            owner: owner(shown.record.caller.owner),
            attempt: shown.record.attempt,
            began_at: self.within(shown.since, told.began_at)?,
            lock_expires_in: told.lock_expires_in,
            retry_after: Some(duration(pause)),
        })
    }

    fn in_doubt(&self, shown: &Shown, told: &v1::InDoubt) -> Checked<v1::InDoubt> {
        expect_state(shown, RecordState::InDoubt)?;
        Ok(v1::InDoubt {
            owner: owner(shown.record.caller.owner),
            attempt: shown.record.attempt,
            fencing_token: self.tokens[shown.record.token],
            since: self.within(shown.since, told.since)?,
            reason: shown.reason.clone(),
        })
    }

    fn summary(&self, shown: &Shown, told: &v1::RecordSummary) -> Checked<v1::RecordSummary> {
        let since = self.within(shown.since, told.since)?;
        let (mut lock_expires_in, mut expires_at) = (None, None);
        match shown.state {
            RecordState::InProgress => {
                self.lock_expires_in(&shown.record, told.lock_expires_in)?;
                lock_expires_in = told.lock_expires_in;
            }
            RecordState::Completed => expires_at = since.map(|at| later(at, shown.record.retention)),
            _ => {}
        }
        Ok(v1::RecordSummary {
            key: KEY_NAMES[shown.key].to_owned(),
            state: shown.state.into(),
            owner: owner(shown.record.caller.owner),
            attempt: shown.record.attempt,
            fencing_token: self.tokens[shown.record.token],
            since,
            lock_expires_in,
            reason: shown.reason.clone(),
            expires_at,
        })
    }

    /// Checks what the last step, the one under way, told of a lock.
    fn lock_expires_in(&self, record: &Record, told: Option<prost_types::Duration>) -> Checked<Duration> {
        let State::InProgress { lock_ttl, armed, .. } = record.state else { return mismatch(record, &told) };
        let told = told.and_then(|told| Duration::try_from(told).ok()).unwrap_or_default();
        let (armed, now) = (self.windows[armed.step], self.windows[self.windows.len() - 1]);
        let most = lock_ttl.saturating_sub(now.from.since(armed.to));
        let least = lock_ttl.saturating_sub(now.to.since(armed.from));
        prop_assert!((least..=most).contains(&told), "{:?} left, not {:?} to {:?}", told, least, most);
        Ok(told)
    }

    /// A time that was told, if it may be so.
    fn within(
        &self,
        when: When,
        told: Option<prost_types::Timestamp>,
    ) -> Checked<Option<prost_types::Timestamp>> {
        let Window { from, to } = self.windows[when.step];
        let at =
            told.map(|told| Timestamp::from_micros(told.seconds * 1_000_000 + i64::from(told.nanos) / 1_000));
        let possible = from.plus(when.plus)..=to.plus(when.plus);
        prop_assert!(at.is_some_and(|at| possible.contains(&at)), "{:?} is not in {:?}", at, possible);
        Ok(told)
    }
}

fn later(at: prost_types::Timestamp, by: Duration) -> prost_types::Timestamp {
    // Retentions are whole seconds.
    prost_types::Timestamp { seconds: at.seconds + i64::try_from(by.as_secs()).expect("sane"), ..at }
}

fn expect_state(shown: &Shown, state: RecordState) -> Checked<()> {
    prop_assert_eq!(shown.state, state, "{:?}", shown);
    Ok(())
}

fn code(reason: v1::ErrorReason) -> tonic::Code {
    use v1::ErrorReason as R;
    match reason {
        R::FingerprintMismatch | R::OutcomeConflict | R::ClaimHeld => tonic::Code::FailedPrecondition,
        R::ClaimLost => tonic::Code::Aborted,
        R::RecordNotFound => tonic::Code::NotFound,
        other => panic!("the reference gives no {other:?}"),
    }
}

fn mismatch<T>(expected: &impl std::fmt::Debug, got: &impl std::fmt::Debug) -> Checked<T> {
    Err(TestCaseError::fail(format!("{got:?} instead of {expected:?}")))
}
