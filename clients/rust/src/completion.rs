//! How a run ends: with the outcome of its key, or why there is none.

use prost_types::Timestamp;
use tonic::Code;

use crate::claim::Lost;
use crate::error::Error;
use crate::v1::{Completed, Disposition, InDoubt, InProgress, Outcome};

/// What becomes of the key when the work fails without saying, panics, or is dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The key is free again: the work had no effect, or is safe to repeat.
    #[default]
    Retry,
    /// The key is in doubt: nobody runs it until an operator has resolved it.
    InDoubt,
}

impl From<OnFailure> for Disposition {
    fn from(rule: OnFailure) -> Self {
        match rule {
            OnFailure::Retry => Disposition::Retry,
            OnFailure::InDoubt => Disposition::InDoubt,
        }
    }
}

/// Any error of the work.
pub type WorkError = Box<dyn std::error::Error + Send + Sync>;

/// How the work failed. Any error turns into one, left to the rule of [`Once::on_failure`](crate::Once::on_failure).
#[derive(Debug)]
pub struct Failure(pub(crate) Kind);

#[derive(Debug)]
pub(crate) enum Kind {
    Released(Option<OnFailure>, WorkError),
    Final(Outcome),
}

impl Failure {
    /// Nothing happened, or it is safe to do again: the key is free for the next caller.
    pub fn retry(error: impl Into<WorkError>) -> Self {
        Self(Kind::Released(Some(OnFailure::Retry), error.into()))
    }

    /// What happened is unknown: nobody runs the key until an operator has resolved it.
    pub fn in_doubt(error: impl Into<WorkError>) -> Self {
        Self(Kind::Released(Some(OnFailure::InDoubt), error.into()))
    }

    /// It failed for good: the error is the outcome, and every duplicate gets it.
    pub fn permanent(code: Code, message: impl Into<String>) -> Self {
        Self(Kind::Final(Outcome::error(code, message)))
    }

    /// The same with details.
    pub fn permanent_with(error: tonic_types::Status) -> Self {
        Self(Kind::Final(Outcome::error_with(error)))
    }
}

impl<E: Into<WorkError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Kind::Released(None, error.into()))
    }
}

/// The key has its outcome: the [`Outcome`] itself from [`Once::run`](crate::Once::run), a value from
/// [`Once::run_as`](crate::Once::run_as).
#[derive(Clone, Debug, PartialEq)]
pub struct Completion<T = Outcome> {
    /// True if the work ran in this call; false if this is the outcome of another one.
    pub ran_here: bool,
    /// False if the work ran without a claim, because no server could be asked: then nothing is stored, and somebody
    /// else may have run it too. Only if [`Once::fail_open`](crate::Once::fail_open) said so.
    pub protected: bool,
    /// The outcome. One that is an [`Outcome`] may be a final error.
    pub outcome: T,
    /// Who completed it.
    pub owner: String,
    /// The attempt that completed.
    pub attempt: u64,
    /// The fencing token that completed.
    pub fencing_token: u64,
    /// When it was stored, by the storing server's clock.
    pub completed_at: Option<Timestamp>,
    /// Until when, at least, it can be read.
    pub expires_at: Option<Timestamp>,
}

impl<T> Completion<T> {
    /// The same with another outcome, made from this one.
    pub fn map<U>(self, outcome: impl FnOnce(T) -> U) -> Completion<U> {
        Completion {
            ran_here: self.ran_here,
            protected: self.protected,
            outcome: outcome(self.outcome),
            owner: self.owner,
            attempt: self.attempt,
            fencing_token: self.fencing_token,
            completed_at: self.completed_at,
            expires_at: self.expires_at,
        }
    }

    /// What a server says of a completed key, whose outcome is `outcome`.
    pub(crate) fn of(completed: Completed, outcome: T, ran_here: bool) -> Self {
        Self {
            ran_here,
            protected: true,
            outcome,
            owner: completed.owner,
            attempt: completed.attempt,
            fencing_token: completed.fencing_token,
            completed_at: completed.completed_at,
            expires_at: completed.expires_at,
        }
    }
}

impl Completion<()> {
    /// Of work that ran without a claim.
    pub(crate) fn unprotected(owner: String) -> Self {
        let nothing = Completed { owner, ..Completed::default() };
        Self { protected: false, ..Self::of(nothing, (), true) }
    }
}

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnceError {
    /// The key could not be claimed. The work did not run in this call.
    #[error(transparent)]
    NotBegun(#[from] Error),
    /// Somebody else was still at it when the wait was over.
    #[error("{} is still at it", .0.owner)]
    InProgress(Box<InProgress>),
    /// What an earlier claim did is unknown, and nobody may run the key until an operator has resolved it.
    #[error("what {} did is unknown ({}); an operator must resolve token {}", .0.owner, .0.reason, .0.fencing_token)]
    InDoubt(Box<InDoubt>),
    /// The work failed, and the claim was given back by the caller's rule.
    #[error("the work failed: {error}")]
    Failed {
        /// The work's error.
        #[source]
        error: WorkError,
        /// What was asked to become of the key.
        rule: OnFailure,
        /// Whether that was confirmed; if not, the claim lapses by itself after its lock TTL. Work that ran without a
        /// claim had none to give back.
        released: Result<(), Error>,
    },
    /// The claim was lost while the work ran, so its outcome does not count. Somebody else may have run it.
    #[error("{lost} while the work ran")]
    ClaimLost {
        /// How it was lost.
        lost: Lost,
        /// The error of the work, if it failed.
        #[source]
        error: Option<WorkError>,
    },
    /// The work ran, but whether its outcome is stored is unknown, or it was refused. The claim is not given
    /// back, since the outcome may be there: it lapses by itself if it is not.
    #[error("the work is done, but its outcome is not known to be stored: {cause}")]
    NotStored {
        /// What became of the last attempt to store it.
        #[source]
        cause: Error,
        /// What was to be stored.
        outcome: Box<Outcome>,
    },
    /// The work failed for good, here or in the call that ran it: every duplicate gets this. From
    /// [`Once::run_as`](crate::Once::run_as); [`Once::run`](crate::Once::run) returns it as the outcome that it is.
    #[error("it failed for good: {}", final_error(.0))]
    Final(Box<Completion>),
    /// The key has an outcome that is no value of the expected type. Nothing ran.
    #[error("the outcome of {} cannot be read: {error}", .completion.owner)]
    Unreadable {
        /// What is wrong with it.
        #[source]
        error: WorkError,
        /// The outcome as it is stored.
        completion: Box<Completion>,
    },
}

fn final_error(completion: &Completion) -> String {
    let error = completion.outcome.final_error();
    error.map_or(String::new(), |error| format!("{} ({:?})", error.message, Code::from(error.code)))
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn what_was_the_matter_is_found_below_an_error() {
        let error = || WorkError::from(std::io::Error::other("broken"));
        let failed = OnceError::Failed { error: error(), rule: OnFailure::Retry, released: Ok(()) };
        let lost = OnceError::ClaimLost { lost: Lost::TakenOver, error: Some(error()) };
        for ended in [failed, lost] {
            assert!(ended.source().is_some_and(|source| source.is::<std::io::Error>()), "{ended:?}");
        }
        let not_stored = OnceError::NotStored { cause: Error::Closed, outcome: Box::default() };
        assert!(not_stored.source().is_some_and(|source| source.is::<Error>()));
    }
}
