//! How much a history shows. One in which nothing happened breaks no promise.

use std::ops::AddAssign;
use std::time::Duration;

use crate::operation::{Answer, Call, Fate, Operation};
use crate::promises::{is_read, is_refused, outcome};

/// How much was seen; of several histories, their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Keys.
    pub keys: usize,
    /// Calls, however often each was tried. A watch is none: its updates come when they come.
    pub operations: usize,
    /// Tries of calls.
    pub tries: usize,
    /// Tries that were answered; the others failed, and what they did was unknown to their callers.
    pub answered: usize,
    /// Claims.
    pub claims: usize,
    /// Claims on records that had been claimed before.
    pub takeovers: usize,
    /// Outcomes told, to their own callers or to others.
    pub outcomes: usize,
    /// Holders that were told that their claim is lost.
    pub refused: usize,
    /// Calls that took effect in a try whose answer was lost, and were told so when they were tried again.
    pub recovered: usize,
    /// Lookups that were told an outcome which was stored after they were sent: they waited for it.
    pub waited: usize,
    /// Updates of watches after their first.
    pub updates: usize,
    /// Keys with an outcome that nobody asked for after it was first told.
    pub unread: usize,
    /// Keys of which it is not decided whether their answers can be explained.
    pub undecided: usize,
    /// The longest that a try took.
    pub longest: Duration,
}

impl Totals {
    pub(crate) fn count(&mut self, operations: &[Operation]) {
        let number = |which: &dyn Fn(&Operation) -> bool| operations.iter().filter(|it| which(it)).count();
        let is_call = |it: &&Operation| it.call != Call::Watch;
        let tries = || operations.iter().filter(is_call).flat_map(|it| &it.tries);
        self.keys += 1;
        self.operations += operations.iter().filter(is_call).count();
        self.tries += tries().count();
        self.answered += tries().filter(|it| matches!(it.fate, Fate::Answered(_))).count();
        self.claims += number(&|it| it.claim().is_some_and(|claim| !claim.resumed));
        self.takeovers += number(&|it| it.claim().is_some_and(|claim| !claim.resumed && claim.attempt > 1));
        self.outcomes += number(&|it| outcome(it).is_some());
        self.refused += number(&is_refused);
        self.recovered += number(&is_recovered);
        self.waited += number(&|it| has_waited(it, operations));
        self.updates += number(&|it| it.after.is_some());
        let told = operations.iter().filter(|it| outcome(it).is_some()).filter_map(|it| it.span().1).min();
        let is_read_since = |told| operations.iter().any(|it| is_read(it) && it.span().0 > told);
        self.unread += usize::from(told.is_some_and(|told| !is_read_since(told)));
        let longest = tries().filter_map(|it| Some(it.ended()?.saturating_sub(it.sent))).max();
        self.longest = self.longest.max(longest.unwrap_or_default());
    }

    /// Whether enough happened for it to mean anything that no promise was broken.
    ///
    /// # Errors
    /// What is missing.
    pub fn shows_enough(&self) -> Result<(), String> {
        let missing = [
            (2 * self.answered < self.tries, "most tries failed"),
            (self.answered == 0, "nothing was answered"),
            (self.takeovers == 0, "nobody took over"),
            (self.refused == 0, "no stale holder was refused"),
            (self.recovered == 0, "no lost reply was recovered"),
            (self.unread > 0, "outcomes were told that nobody asked for again"),
            (self.undecided > 0, "not all of it is decided"),
        ];
        match missing.iter().find(|(is_missing, _)| *is_missing) {
            Some((_, what)) => Err(format!("{what}: {self:?}")),
            None => Ok(()),
        }
    }
}

/// Whether the answer says that an earlier try had done it.
fn is_recovered(operation: &Operation) -> bool {
    let again = match (&operation.call, &operation.answer) {
        (Call::Begin(_), Some(Answer::Claim(claim))) => claim.resumed,
        (Call::Complete { .. }, Some(Answer::Stored { repeated })) => *repeated,
        _ => false,
    };
    again && operation.unknown_tries().next().is_some()
}

/// Whether a Lookup waited for the outcome that it was told: it was sent before that was.
fn has_waited(operation: &Operation, operations: &[Operation]) -> bool {
    let Some(Answer::Completed { token: told, .. }) = operation.answer else { return false };
    let is_stored = |it: &&Operation| matches!(it.call, Call::Complete { token, .. } if token == told);
    let stored = operations.iter().filter(is_stored).map(Operation::first_sent).min();
    operation.call == Call::Lookup { waits: true } && stored > Some(operation.span().0)
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.keys += other.keys;
        self.operations += other.operations;
        self.tries += other.tries;
        self.answered += other.answered;
        self.claims += other.claims;
        self.takeovers += other.takeovers;
        self.outcomes += other.outcomes;
        self.refused += other.refused;
        self.recovered += other.recovered;
        self.waited += other.waited;
        self.updates += other.updates;
        self.unread += other.unread;
        self.undecided += other.undecided;
        self.longest = self.longest.max(other.longest);
    }
}
