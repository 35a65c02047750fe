//! Commands of holders and operators: load, decide, swap, until it is settled.

use std::sync::Arc;

use super::{Applied, Error, Inner};
use crate::clock::wall_time;
use crate::record::{Command, Decision, DoubtCause, RecordKey, Refusal, State, Timestamp, View, decide};
use crate::store::{Expected, Loaded, StoreError, Swapped};
use crate::telemetry::span;

/// How often a command is decided anew before the caller is told to try again.
const TRIES: u32 = 8;

/// Applies `command`. Runs detached from its caller, so that no half step is left.
pub(super) async fn apply(inner: Arc<Inner>, key: RecordKey, command: Command) -> Result<Applied, Error> {
    let mut unsettled = false;
    settle(&inner, &key, &command, &mut unsettled).await.map_err(|error| match error {
        Error::Store(error) if unsettled => Error::Store(error.after_unknown()),
        error => error,
    })
}

/// Notes in `unsettled` that a write left whose outcome is unknown.
async fn settle(
    inner: &Inner,
    key: &RecordKey,
    command: &Command,
    unsettled: &mut bool,
) -> Result<Applied, Error> {
    // A holder's claim was most likely written by this server: guess, and save the load.
    let mut guess = inner.guess(key);
    let mut known = None;
    let mut last = StoreError::NotApplied("too many writers at once".to_owned());
    for _ in 0..TRIES {
        let guessed = guess.is_some();
        let current: Option<Loaded> = match (guess.take(), known.take()) {
            (Some(guess), _) => Some(guess),
            (None, Some(current)) => current,
            (None, None) => inner.load(key, span::place()).await.map_err(Error::Store)?,
        };
        match decide(command, current.as_ref().map(Loaded::seen), wall_time()) {
            Decision::Write(change) => {
                let next = change.into_next();
                let expected = Expected::of(current.as_ref());
                match inner.swap(key, expected, next.as_ref(), span::place()).await {
                    Ok(Swapped::Done(revision)) => {
                        if matches!(command, Command::Complete { .. })
                            && current.is_some_and(|current| is_late(&current, wall_time()))
                        {
                            inner.meters.late_completes.increment(1);
                        }
                        let view = inner.learned(key, next.map(|next| (next, revision)));
                        return Ok(Applied { view, repeated: false });
                    }
                    Ok(Swapped::Conflict(current)) => known = Some(current),
                    // What became of it shows in the record, which is loaded and decided anew.
                    Err(error @ (StoreError::NotApplied(_) | StoreError::OutcomeUnknown(_))) => {
                        *unsettled |= matches!(error, StoreError::OutcomeUnknown(_));
                        last = error;
                    }
                    Err(error @ (StoreError::Full(_) | StoreError::Corrupt { .. })) => {
                        return Err(Error::Store(error));
                    }
                }
            }
            // Nothing is concluded from a guess but what to try first.
            _ if guessed => inner.forget(key),
            Decision::Unchanged => return Ok(Applied { view: view(current.as_ref()), repeated: true }),
            Decision::Refuse(refusal) => return Err(refused(refusal, current.as_ref())),
            // Only a Begin is told to wait, and none comes here.
            Decision::Wait => return Err(refused(Refusal::ClaimLost, current.as_ref())),
        }
    }
    Err(Error::Store(last))
}

fn view(current: Option<&Loaded>) -> Option<View> {
    current.map(|loaded| View::of(&loaded.record, loaded.lock, wall_time()))
}

/// Whether the lock of a claim has lapsed, as far as a clock can tell: for the metrics alone.
fn is_late(claim: &Loaded, now: Timestamp) -> bool {
    match &claim.record.state {
        State::InProgress { lock_ttl, armed_at, .. } => now.since(*armed_at) > *lock_ttl,
        State::InDoubt { cause, .. } => *cause == DoubtCause::Lapse,
        State::Released { .. } | State::Completed { .. } => false,
    }
}

fn refused(refusal: Refusal, current: Option<&Loaded>) -> Error {
    Error::refused(refusal, view(current))
}
