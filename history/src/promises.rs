//! What the service promises, each promise held against what callers saw of one key. Each check is plain and
//! looks at few operations at a time, so that what it finds can be told in one sentence; `linear` finds the rest.
//!
//! Times are bounds: something happened after its call was sent, and before its answer came.

use std::fmt;
use std::time::Duration;

use crate::Bounds;
use crate::operation::{Answer, Call, Operation, Payload, Resolution, Time};

/// What a history can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Promise {
    /// A record has one outcome.
    OneOutcome,
    /// An outcome that was told of is told until its retention is over.
    OutcomeStays,
    /// Tokens that are given out or accepted never fall, and attempts grow with them.
    TokensGrow,
    /// A stale holder completes nothing.
    NoStaleComplete,
    /// At most one claim lives, and so at most one per request id.
    OneLiveClaim,
    /// Calls are answered by their deadlines.
    AnsweredInTime,
    /// Every key is usable again when all is well again.
    UsableAgain,
    /// A watch ends with an outcome, or with there being no record.
    WatchEnds,
    /// The answers can be explained by operations that took effect one after the other.
    Linearizable,
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Of which key.
    pub key: String,
    /// Which one.
    pub promise: Promise,
    /// By which operations.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?} is broken: {}", self.key, self.promise, self.what)
    }
}

/// Holds a promise against the operations of a key; tells the first thing that breaks it.
type Check = fn(&[Operation], &Bounds) -> Option<String>;

/// Each promise that has a check of its own.
pub(crate) const CHECKS: [(Promise, Check); 8] = [
    (Promise::OneOutcome, one_outcome),
    (Promise::OutcomeStays, outcome_stays),
    (Promise::TokensGrow, tokens_grow),
    (Promise::NoStaleComplete, no_stale_complete),
    (Promise::OneLiveClaim, one_live_claim),
    (Promise::AnsweredInTime, answered_in_time),
    (Promise::UsableAgain, usable_again),
    (Promise::WatchEnds, watch_ends),
];

/// An outcome that somebody was told of: a replay, or its own, acknowledged.
pub(crate) fn outcome(operation: &Operation) -> Option<(u64, &Payload)> {
    match (&operation.call, operation.answer.as_ref()?) {
        (_, Answer::Completed { token, outcome, .. }) => Some((*token, outcome)),
        (Call::Complete { token, outcome, .. }, Answer::Stored { .. }) => Some((*token, outcome)),
        _ => None,
    }
}

/// Whether an operation told what stands at the key.
pub(crate) fn is_read(operation: &Operation) -> bool {
    matches!(operation.call, Call::Begin(_) | Call::Lookup { .. } | Call::Watch) && operation.answer.is_some()
}

/// Whether a holder was told that its claim is lost.
pub(crate) fn is_refused(operation: &Operation) -> bool {
    operation.call.held_token().is_some() && operation.answer == Some(Answer::ClaimLost)
}

fn one_outcome(operations: &[Operation], _: &Bounds) -> Option<String> {
    let mut told: Vec<_> = operations.iter().filter_map(|it| Some((outcome(it)?, it))).collect();
    told.sort_by_key(|((token, _), it)| (*token, it.span().1));
    told.windows(2).find_map(|pair| {
        let [((token, first), one), ((other_token, other), another)] = pair else { return None };
        let differ = (token, first) != (other_token, other);
        let renewed = token != other_token && is_over(operations, *token, another.span().1?);
        (differ && !renewed).then(|| format!("two outcomes:\n  {one}\n  {another}"))
    })
}

fn outcome_stays(operations: &[Operation], _: &Bounds) -> Option<String> {
    operations.iter().filter_map(|it| Some((outcome(it)?, it.span().1?, it))).find_map(
        |((token, outcome), told, teller)| {
            let until = kept_until(operations, token)?;
            let later = operations.iter().filter(|it| is_read(it) && it.span().0 > told);
            let mut bound = later.filter(|it| it.span().1.is_some_and(|answered| answered <= until));
            let wrong = bound.find(|it| !replays(it, token, outcome) && !may_be_deleted(operations, it))?;
            Some(format!("an outcome was told, and then:\n  {teller}\n  {wrong}"))
        },
    )
}

/// Whether a read was told this outcome, or that the key was used for another request.
fn replays(read: &Operation, token: u64, outcome: &Payload) -> bool {
    let mismatch = read.answer == Some(Answer::FingerprintMismatch)
        && read.begin().is_some_and(|begin| begin.fingerprint.is_some());
    mismatch || self::outcome(read) == Some((token, outcome))
}

/// The token that the record must have had, for an operation to be answered as it was.
pub(crate) fn token(operation: &Operation) -> Option<u64> {
    match operation.answer.as_ref()? {
        Answer::Claim(claim) => Some(claim.token),
        Answer::Completed { token, .. } | Answer::InDoubt { token, .. } => Some(*token),
        Answer::Stored { .. } | Answer::Renewed { .. } | Answer::Ok => operation.call.held_token(),
        Answer::InProgress { .. }
        | Answer::Available { .. }
        | Answer::FingerprintMismatch
        | Answer::OutcomeConflict
        | Answer::ClaimLost
        | Answer::ClaimHeld
        | Answer::NotFound => None,
    }
}

/// An operation with a token, and an earlier one with a higher one.
fn stale(operations: &[Operation], which: impl Fn(&Operation) -> bool) -> Option<String> {
    let mut known: Vec<_> = operations.iter().filter_map(|it| Some((it.span().1?, token(it)?, it))).collect();
    known.sort_by_key(|(answered, ..)| *answered);
    operations.iter().filter(|it| which(it)).find_map(|stale| {
        let (sent, own) = (stale.span().0, token(stale)?);
        let before = known.iter().take_while(|(answered, ..)| *answered < sent);
        let (.., newer) = before.filter(|(_, other, _)| *other > own).last()?;
        Some(format!("a token was accepted or told after a higher one:\n  {newer}\n  {stale}"))
    })
}

fn no_stale_complete(operations: &[Operation], _: &Bounds) -> Option<String> {
    stale(operations, |it| matches!(it.call, Call::Complete { .. }))
}

fn tokens_grow(operations: &[Operation], _: &Bounds) -> Option<String> {
    let fell = stale(operations, |it| !matches!(it.call, Call::Complete { .. }));
    fell.or_else(|| {
        let mut claims: Vec<_> = operations.iter().filter_map(|it| Some((it.claim()?, it))).collect();
        claims.sort_by_key(|(claim, it)| (claim.token, claim.resumed, it.span().1));
        claims.windows(2).find_map(|pair| {
            let [(claim, one), (next, other)] = pair else { return None };
            if claim.token == next.token {
                return (!next.resumed || caller(one) != caller(other))
                    .then(|| format!("a token was given out twice:\n  {one}\n  {other}"));
            }
            let reborn = is_over(operations, claim.token, other.span().1?);
            (claim.attempt >= next.attempt && !reborn)
                .then(|| format!("claims that are not one after the other:\n  {one}\n  {other}"))
        })
    })
}

/// Who begins: a request id and its owner.
fn caller(operation: &Operation) -> Option<(&str, &str)> {
    operation.begin().map(|begin| (&*begin.request_id, &*begin.owner))
}

fn one_live_claim(operations: &[Operation], bounds: &Bounds) -> Option<String> {
    if bounds.locks_end_early {
        return None;
    }
    let claims: Vec<_> = operations.iter().filter_map(|it| Some((it.claim()?, it.span().1?, it))).collect();
    claims.iter().find_map(|(claim, _, one)| {
        let held_until = held_until(operations, claim.token);
        let (.., other) =
            claims.iter().find(|(other, answered, _)| other.token > claim.token && *answered < held_until)?;
        let whose = if caller(one) == caller(other) { ", of one request id" } else { "" };
        Some(format!("two claims live{whose}, the first until {held_until:?}:\n  {one}\n  {other}"))
    })
}

/// Nobody else may have the claim before: when its lock ends, at the earliest, or when somebody sent what ends it.
fn held_until(operations: &[Operation], token: u64) -> Time {
    let mut locked = Time::ZERO;
    let mut ended = Time::MAX;
    for operation in operations {
        match (&operation.call, &operation.answer) {
            (_, Some(Answer::Claim(claim))) if claim.token == token => {
                locked = locked.max(operation.span().0 + claim.waited + claim.lock_ttl);
            }
            (Call::Renew { token: its, .. }, Some(Answer::Renewed { lock_ttl })) if *its == token => {
                locked = locked.max(operation.span().0 + *lock_ttl);
            }
            (
                Call::Complete { token: its, .. }
                | Call::Release { token: its, .. }
                | Call::Resolve { token: its, .. }
                | Call::Delete { token: its, .. },
                _,
            ) if *its == token => ended = ended.min(operation.first_sent()),
            _ => {}
        }
    }
    locked.min(ended)
}

/// Until when an outcome under this token is kept, at least; `None` if nobody is seen to have stored it.
pub(crate) fn kept_until(operations: &[Operation], token: u64) -> Option<Time> {
    let stored = operations.iter().filter_map(|it| match &it.call {
        Call::Complete { token: its, retention, .. } if *its == token => Some((*its, retention, it)),
        // It goes under a token that nobody was told.
        Call::Resolve { token: its, resolution: Resolution::Outcome(_, retention) } => {
            Some((*its, retention, it))
        }
        _ => None,
    });
    let kept = stored.map(|(its, retention, it)| {
        it.first_sent() + retention.or_else(|| claim_retention(operations, its)).unwrap_or_default()
    });
    kept.min()
}

/// The retention that the Begin of a claim asked for.
fn claim_retention(operations: &[Operation], token: u64) -> Option<Duration> {
    let begins = operations.iter().filter(|it| it.claim().is_some_and(|claim| claim.token == token));
    begins.filter_map(|it| Some(it.begin()?.retention)).min()
}

/// Whether the record with this token may be gone by then: it was deleted, or its retention was over.
fn is_over(operations: &[Operation], token: u64, by: Time) -> bool {
    let begun =
        operations.iter().filter(|it| self::token(it) == Some(token)).map(Operation::first_sent).min();
    let retention = claim_retention(operations, token);
    let expiry = begun.zip(retention).map(|(begun, retention)| begun + retention);
    let stored = kept_until(operations, token);
    stored.into_iter().chain(expiry).min().is_none_or(|expiry| expiry <= by)
        || operations.iter().any(|it| matches!(it.call, Call::Delete { .. }) && it.first_sent() <= by)
}

/// Whether the record may be deleted before a read.
fn may_be_deleted(operations: &[Operation], read: &Operation) -> bool {
    let answered = read.span().1;
    operations.iter().any(|it| matches!(it.call, Call::Delete { .. }) && Some(it.first_sent()) <= answered)
}

fn answered_in_time(operations: &[Operation], bounds: &Bounds) -> Option<String> {
    operations.iter().find_map(|it| {
        let late = it.tries.iter().find(|tried| {
            let ended = tried.ended().unwrap_or(bounds.ended);
            tried.due.is_some_and(|due| ended > tried.sent + due + bounds.late_max)
        })?;
        let (due, sent) = (late.due?, late.sent);
        Some(format!("a try sent at {sent:?} and due in {due:?} ended {:?}:\n  {it}", late.fate))
    })
}

fn usable_again(operations: &[Operation], bounds: &Bounds) -> Option<String> {
    let healed = bounds.healed?;
    let longest_ttl = operations.iter().filter_map(|it| Some(it.begin()?.lock_ttl)).max().unwrap_or_default();
    let by = healed + longest_ttl + bounds.usable_after;
    // An update of a watch may be of before.
    let usable = operations.iter().filter(|it| it.call != Call::Watch).filter(|it| {
        let answer = it.answer.as_ref();
        matches!(answer, Some(Answer::Claim(_) | Answer::Completed { .. } | Answer::InDoubt { .. }))
    });
    let since = usable.filter_map(|it| it.span().1).filter(|answered| *answered >= healed).min();
    match since {
        Some(since) if since <= by => None,
        Some(since) => Some(format!("all was well at {healed:?}, and it was not usable before {since:?}")),
        None => Some(format!("all was well at {healed:?}, and nobody has used it since")),
    }
}

fn watch_ends(operations: &[Operation], _: &Bounds) -> Option<String> {
    operations.iter().find_map(|it| {
        let before = &operations[it.after?];
        let is_last = matches!(before.answer, Some(Answer::Completed { .. } | Answer::NotFound));
        is_last.then(|| format!("a watch went on after its last word:\n  {before}\n  {it}"))
    })
}
