//! What callers saw, and what must be true of it. All times are on the callers' one clock, and a time is used
//! only as a bound: something happened after its call was sent, and before its answer came.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use onced::clock::Moment;

/// All that was seen, by key.
#[derive(Default)]
pub struct History {
    keys: Mutex<HashMap<String, Seen>>,
    tries: Mutex<Tries>,
}

/// Single tries of calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tries {
    pub answered: u32,
    pub repeated: u32,
    /// The longest that one took.
    pub longest: Duration,
}

/// What was seen of one key.
#[derive(Default)]
struct Seen {
    executions: Vec<Execution>,
    outcomes: Vec<Outcome>,
    refused: Vec<u64>,
    standing: Vec<Span>,
    accepted: Vec<(u64, Span)>,
}

/// From sending a call (its last try) to its answer.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub sent: Moment,
    pub answered: Moment,
}

/// A claim that a caller had.
#[derive(Clone, Debug)]
pub struct Execution {
    pub token: u64,
    pub attempt: u64,
    pub begun: Span,
    /// Nobody else may have the claim before: when its lock ends, at the earliest, or when its caller sent a
    /// Release.
    pub free_from: Moment,
}

/// An outcome that a caller was told of: its own, acknowledged, or another's.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub token: u64,
    pub response: Bytes,
    pub told: Span,
}

/// How much was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub keys: usize,
    pub executions: usize,
    pub outcomes: usize,
    pub takeovers: usize,
    pub refused: usize,
}

impl History {
    pub fn tried(&self, took: Duration, again: bool) {
        let mut tries = self.tries.lock().unwrap();
        tries.answered += u32::from(!again);
        tries.repeated += u32::from(again);
        tries.longest = tries.longest.max(took);
    }

    pub fn tries(&self) -> Tries {
        *self.tries.lock().unwrap()
    }

    pub fn executed(&self, key: &str, execution: Execution) {
        self.of(key, |seen| seen.executions.push(execution));
    }

    pub fn told(&self, key: &str, outcome: Outcome) {
        self.of(key, |seen| seen.outcomes.push(outcome));
    }

    /// A holder's command was accepted.
    pub fn accepted(&self, key: &str, token: u64, span: Span) {
        self.of(key, |seen| seen.accepted.push((token, span)));
    }

    /// A holder was told that its claim is lost.
    pub fn refused(&self, key: &str, token: u64) {
        self.of(key, |seen| seen.refused.push(token));
    }

    /// A caller was told that the key is in progress.
    pub fn standing(&self, key: &str, span: Span) {
        self.of(key, |seen| seen.standing.push(span));
    }

    fn of(&self, key: &str, note: impl FnOnce(&mut Seen)) {
        note(self.keys.lock().unwrap().entry(key.to_owned()).or_default());
    }

    /// Checks all of it, each key's `end` being what stands there when all is over: token and response.
    pub fn check(&self, end: &BTreeMap<String, (u64, Bytes)>) -> Result<Totals, String> {
        let mut totals = Totals::default();
        for (key, seen) in &mut *self.keys.lock().unwrap() {
            let end = end.get(key).ok_or_else(|| format!("{key} never came to an end"))?;
            seen.check(end).map_err(|what| format!("{key}: {what}"))?;
            totals.keys += 1;
            totals.executions += seen.executions.len();
            totals.outcomes += seen.outcomes.len();
            totals.takeovers += seen.executions.iter().filter(|it| it.attempt > 1).count();
            totals.refused += seen.refused.len();
        }
        Ok(totals)
    }
}

impl Seen {
    fn check(&mut self, end: &(u64, Bytes)) -> Result<(), String> {
        if let Some(other) = self.outcomes.iter().find(|it| (it.token, &it.response) != (end.0, &end.1)) {
            return Err(format!("{other:?} was told, and in the end there is {end:?}"));
        }
        if let Some(token) = self.refused.iter().find(|&&token| token >= end.0) {
            return Err(format!("{token} was refused, though nobody took over: {end:?}"));
        }
        self.check_executions()?;
        let first_told = self.outcomes.iter().map(|it| it.told.answered).min();
        let began = self.executions.iter().map(|it| it.begun).chain(self.standing.iter().copied());
        for (told, span) in first_told.into_iter().cycle().zip(began) {
            if span.sent > told {
                return Err(format!("at {told:?} its outcome was known, and yet it was open to {span:?}"));
            }
        }
        self.accepted.sort_by_key(|(_, span)| span.sent);
        for (i, (token, span)) in self.accepted.iter().enumerate() {
            let stale =
                self.accepted[i..].iter().find(|(later, it)| it.sent > span.answered && later < token);
            if let Some(stale) = stale {
                return Err(format!("{token} was accepted, and after that {stale:?}"));
            }
        }
        Ok(())
    }

    fn check_executions(&mut self) -> Result<(), String> {
        self.executions.sort_by_key(|it| it.token);
        for pair in self.executions.windows(2) {
            let [before, after] = pair else { continue };
            if after.token == before.token || after.attempt <= before.attempt {
                return Err(format!("two claims that are not one after the other: {before:?}, {after:?}"));
            }
            if after.begun.answered < before.free_from {
                return Err(format!("executed twice without a lapse between: {before:?}, {after:?}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds to a history what cannot be.
    type Wrong = fn(&History);

    fn span(sent: u64, answered: u64) -> Span {
        let at = |seconds| Moment::from_start(Duration::from_secs(seconds));
        Span { sent: at(sent), answered: at(answered) }
    }

    fn execution(token: u64, attempt: u64, begun: Span, free_from: u64) -> Execution {
        let free_from = Moment::from_start(Duration::from_secs(free_from));
        Execution { token, attempt, begun, free_from }
    }

    fn outcome(token: u64, response: &'static str, told: Span) -> Outcome {
        Outcome { token, response: response.into(), told }
    }

    /// One is told to wait, one walks away, one takes over once that one's lock has lapsed, and a third is told
    /// of its outcome. `then` sees what else happens.
    fn check(then: impl FnOnce(&History)) -> Result<Totals, String> {
        let history = History::default();
        history.standing("k", span(1, 2));
        history.executed("k", execution(5, 1, span(0, 1), 10));
        history.executed("k", execution(7, 2, span(9, 11), 21));
        history.refused("k", 5);
        history.accepted("k", 7, span(12, 14));
        history.told("k", outcome(7, "done", span(12, 14)));
        history.told("k", outcome(7, "done", span(13, 15)));
        then(&history);
        history.check(&BTreeMap::from([("k".to_owned(), (7, Bytes::from("done")))]))
    }

    #[test]
    fn a_history_that_is_right_is_found_right() {
        let totals = check(|_| {}).unwrap();
        assert_eq!(totals, Totals { keys: 1, executions: 2, outcomes: 2, takeovers: 1, refused: 1 });
    }

    #[test]
    fn each_wrong_is_found() {
        let wrongs: [(&str, Wrong); 9] = [
            ("there is", |it| it.told("k", outcome(7, "else", span(12, 14)))),
            ("there is", |it| it.told("k", outcome(5, "done", span(12, 14)))),
            ("never came to an end", |it| it.refused("other", 1)),
            ("nobody took over", |it| it.refused("k", 7)),
            ("was open", |it| it.standing("k", span(16, 17))),
            ("was open", |it| it.executed("k", execution(9, 3, span(22, 23), 32))),
            ("without a lapse", |it| it.executed("k", execution(9, 3, span(11, 20), 32))),
            ("one after the other", |it| it.executed("k", execution(7, 2, span(12, 13), 32))),
            ("after that", |it| it.accepted("k", 5, span(16, 17))),
        ];
        for (what, wrong) in wrongs {
            let found = check(wrong).expect_err(what);
            assert!(found.contains(what), "{found}");
        }
    }
}
