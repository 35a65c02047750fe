//! The work of a key under its claim, from the claim to its end.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::runtime::Handle;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::claim::{Claim, Held, Keeper, Lost, Over};
use crate::completion::{Completion, Failure, Kind, OnFailure, OnceError, WorkError};
use crate::error::Error;
use crate::v1::{CompleteRequest, Outcome};

/// What the work came to.
pub(crate) enum Done<T> {
    Value(T),
    /// It failed for good.
    Final(Outcome),
}

/// The right to run the work, and the duty to say how it ended. Dropped before that, it gives the claim back.
// The order is that of dropping: nobody renews a claim that is being given back, and a client is not closed before.
pub(crate) struct Run {
    /// None for work that runs without a claim.
    keeper: Option<Keeper>,
    guard: ReleaseOnDrop,
    held: Arc<Held>,
    owner: String,
    over: Over,
    open: TaskTrackerToken,
}

impl Run {
    pub fn new(held: Arc<Held>, rule: OnFailure, owner: String, open: TaskTrackerToken) -> Self {
        let keeper = held.protected.then(|| Keeper::start(&held));
        let guard = ReleaseOnDrop { held: Some(Arc::clone(&held)), rule };
        let over = Over(Arc::clone(&held));
        Self { keeper, guard, held, owner, over, open }
    }

    /// Runs `work`, and says how it ended. `encode` makes an outcome of its value, and what the caller gets.
    pub async fn go<W, F, T, V>(
        mut self,
        work: W,
        encode: impl FnOnce(T) -> (Result<Outcome, WorkError>, V),
    ) -> Result<(Completion<()>, Done<V>), OnceError>
    where
        W: FnOnce(Claim) -> F,
        F: Future<Output = Result<T, Failure>>,
    {
        let claim = Claim::new(&self.held);
        let ended = unpanicked(async { work(claim.clone()).await }).await;
        let done = match ended {
            Ok(Ok(value)) => Done::Value(value),
            Ok(Err(Failure(Kind::Final(outcome)))) => Done::Final(outcome),
            Ok(Err(Failure(Kind::Released(rule, error)))) => {
                self.keeper = None;
                let rule = rule.unwrap_or(self.guard.rule);
                return Err(self.guard.fail(rule, error, claim.is_lost()).await);
            }
            Err(panic) => {
                self.keeper = None;
                let rule = self.guard.rule;
                self.guard.fail(rule, "the work panicked".into(), None).await;
                resume_unwind(panic)
            }
        };
        // The work ran to its end: whatever the rule for failures is, nobody may run it again unasked.
        self.guard.rule = OnFailure::InDoubt;
        // What makes the outcome is the caller's, too, and may panic.
        let encoded = catch_unwind(AssertUnwindSafe(|| match done {
            Done::Final(outcome) => (Ok(outcome.clone()), Done::Final(outcome)),
            Done::Value(value) => {
                let (outcome, value) = encode(value);
                (outcome, Done::Value(value))
            }
        }));
        let (outcome, done) = match encoded {
            Ok(encoded) => encoded,
            Err(panic) => {
                self.keeper = None;
                let error = "the work is done, and making its outcome panicked".into();
                self.guard.fail(OnFailure::InDoubt, error, None).await;
                resume_unwind(panic)
            }
        };
        if !self.held.protected {
            self.guard.held = None;
            return Ok((Completion::unprotected(self.owner), done));
        }
        let outcome = match outcome.and_then(|outcome| fitting(outcome, &claim)) {
            Ok(outcome) => outcome,
            Err(error) => return Err(self.guard.fail(OnFailure::InDoubt, error, claim.is_lost()).await),
        };
        self.guard.held = None;
        if claim.is_lost() == Some(Lost::TakenOver) {
            return Err(OnceError::ClaimLost { lost: Lost::TakenOver, error: None });
        }
        // From here on the outcome may be stored, so the claim is never given back.
        Ok((self.complete(outcome).await?, done))
    }

    /// Stores the outcome. The call is on a task of its own, so that dropping the run does not cut it short,
    /// and the claim is renewed until it is answered.
    async fn complete(self, outcome: Outcome) -> Result<Completion<()>, OnceError> {
        let Self { keeper, held, over, open, .. } = self;
        let client = held.client().clone();
        let request = CompleteRequest {
            namespace: held.namespace.clone(),
            key: held.key.clone(),
            fencing_token: held.claim.fencing_token,
            outcome: Some(outcome.clone()),
            retention: None,
        };
        // Work that is done is worth trying for as long as the lock would have lived.
        let patience = client.timeout().max(Claim::new(&held).lock_ttl());
        let completing = tokio::spawn(async move {
            let answer = client.complete_within(patience, request).await;
            drop((keeper, over, open));
            answer
        });
        let answer = match completing.await {
            Ok(answer) => answer,
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime is ending.
                Err(_) => Err(Error::Closed),
            },
        };
        let completed = answer.and_then(|answer| answer.completed.ok_or(Error::answer_unknown("Complete")));
        match completed {
            Ok(completed) => Ok(Completion::of(completed, (), true)),
            Err(error) if error.is_claim_lost() && !error.is_unavailable() => {
                Err(OnceError::ClaimLost { lost: Lost::TakenOver, error: None })
            }
            Err(cause) => Err(OnceError::NotStored { cause, outcome: Box::new(outcome) }),
        }
    }

    #[cfg(feature = "http")]
    pub fn claim(&self) -> Claim {
        Claim::new(&self.held)
    }
}

/// Refuses an outcome that is over the limit of the claim.
fn fitting(outcome: Outcome, claim: &Claim) -> Result<Outcome, WorkError> {
    let (bytes, max_bytes) = (outcome.encoded_bytes(), claim.max_outcome_bytes());
    if bytes > max_bytes && max_bytes > 0 {
        return Err(Error::OutcomeTooLarge { bytes, max_bytes }.into());
    }
    Ok(outcome)
}

/// Gives the claim back if the run is dropped before it has ended.
struct ReleaseOnDrop {
    held: Option<Arc<Held>>,
    rule: OnFailure,
}

impl ReleaseOnDrop {
    /// Gives the claim back by `rule`, because of `error`.
    async fn fail(&mut self, rule: OnFailure, error: WorkError, lost: Option<Lost>) -> OnceError {
        self.rule = rule;
        let Some(held) = self.held.clone() else {
            return OnceError::ClaimLost { lost: Lost::TakenOver, error: Some(error) };
        };
        if lost == Some(Lost::TakenOver) {
            self.held = None;
            return OnceError::ClaimLost { lost: Lost::TakenOver, error: Some(error) };
        }
        held.let_go();
        let released = match held.protected {
            true => held.release(rule.into(), &error.to_string()).await,
            false => Ok(()),
        };
        self.held = None;
        match (released, lost) {
            (Err(refused), _) if refused.is_claim_lost() => {
                OnceError::ClaimLost { lost: lost.unwrap_or(Lost::TakenOver), error: Some(error) }
            }
            (released, _) => OnceError::Failed { error, rule, released },
        }
    }
}

impl Drop for ReleaseOnDrop {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        held.let_go();
        let Ok(runtime) = Handle::try_current() else { return };
        if !held.protected {
            return;
        }
        let disposition = self.rule.into();
        let open = held.client().runs().open.token();
        runtime.spawn(async move {
            let _open = open;
            if let Err(error) = held.release(disposition, "the work was dropped").await {
                tracing::debug!(%error, "a dropped claim was not given back; it lapses by itself");
            }
        });
    }
}

/// Runs `work`; a panic is an error of its own.
async fn unpanicked<F: Future>(work: F) -> Result<F::Output, Box<dyn Any + Send>> {
    let mut work = pin!(work);
    std::future::poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
        Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
        Ok(Poll::Pending) => Poll::Pending,
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}
