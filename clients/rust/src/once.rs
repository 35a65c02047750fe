//! Run this function once for this key.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use prost_types::Timestamp;
use tokio::runtime::Handle;
use tonic::Code;
use uuid::Uuid;

use crate::claim::{Claim, Held, Keeper, Lost};
use crate::client::{Client, wire};
use crate::error::Error;
use crate::transport::Answer;
use crate::v1::begin_response::Result as Begun;
use crate::v1::{
    BeginRequest, CompleteRequest, Completed, Disposition, InDoubt, InProgress, OnLapse, Outcome,
};

/// How long a duplicate waits for the outcome unless told otherwise.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(60);
/// The first wait is short, so that a record in doubt is told of soon and a long wait can be shown; each
/// further one doubles, up to the last.
const FIRST_POLL: Duration = Duration::from_secs(1);
const LAST_POLL: Duration = Duration::from_secs(16);

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

/// How the work failed. Any error turns into one, left to the rule of [`Once::on_failure`].
#[derive(Debug)]
pub struct Failure(Kind);

#[derive(Debug)]
enum Kind {
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
}

impl<E: Into<WorkError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Kind::Released(None, error.into()))
    }
}

/// The key has its outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// True if the work ran in this call; false if this is the outcome of another one.
    pub ran_here: bool,
    /// The outcome, which may be a final error.
    pub outcome: Outcome,
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

impl Completion {
    fn of(completed: Completed, ran_here: bool) -> Result<Self, OnceError> {
        Ok(Self {
            ran_here,
            outcome: completed.outcome.ok_or(Error::answer_unknown("Begin"))?,
            owner: completed.owner,
            attempt: completed.attempt,
            fencing_token: completed.fencing_token,
            completed_at: completed.completed_at,
            expires_at: completed.expires_at,
        })
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
        error: WorkError,
        /// What was asked to become of the key.
        rule: OnFailure,
        /// Whether that was confirmed; if not, the claim lapses by itself after its lock TTL.
        released: Result<(), Error>,
    },
    /// The claim was lost while the work ran, so its outcome does not count. Somebody else may have run it.
    #[error("{lost} while the work ran")]
    ClaimLost {
        /// How it was lost.
        lost: Lost,
        /// The error of the work, if it failed.
        error: Option<WorkError>,
    },
    /// The work ran, but whether its outcome is stored is unknown, or it was refused. The claim is not given
    /// back, since the outcome may be there: it lapses by itself if it is not.
    #[error("the work is done, but its outcome is not known to be stored: {0}")]
    NotStored(Error),
}

type OnWait = Box<dyn FnMut(&InProgress) + Send>;

/// One run of a function for a key. See the crate's front page for an example.
#[must_use = "nothing happens before `run`"]
pub struct Once {
    client: Client,
    request: BeginRequest,
    /// None: without end.
    wait: Option<Duration>,
    rule: OnFailure,
    on_wait: Option<OnWait>,
}

impl Once {
    pub(crate) fn new(client: Client, key: String, owner: String) -> Self {
        let request = BeginRequest {
            namespace: "default".to_owned(),
            key,
            // Each run is an attempt of its own, and an id is spent once its claim was given back.
            request_id: Uuid::new_v4().to_string(),
            owner,
            ..BeginRequest::default()
        };
        Self { client, request, wait: Some(DEFAULT_WAIT), rule: OnFailure::default(), on_wait: None }
    }

    /// The namespace of the key. `default` unless told otherwise.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.request.namespace = namespace.into();
        self
    }

    /// A digest of the request, at most 64 bytes, so that the key used for another one is an error.
    pub fn fingerprint(mut self, fingerprint: impl Into<Bytes>) -> Self {
        self.request.fingerprint = fingerprint.into();
        self
    }

    /// How long the claim lives without a renewal, 2 s to 1 h: how soon others take over from a crash.
    pub fn lock_ttl(mut self, ttl: Duration) -> Self {
        self.request.lock_ttl = Some(wire(ttl));
        self
    }

    /// How long the outcome is kept, at least, 1 min to 31 d.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.request.retention = Some(wire(retention));
        self
    }

    /// What becomes of the key if this process dies while the work runs.
    pub fn on_lapse(mut self, on_lapse: OnLapse) -> Self {
        self.request.on_lapse = on_lapse.into();
        self
    }

    /// What becomes of the key when the work fails without saying, panics, or is dropped. Work that succeeded
    /// with an outcome too large to store is in doubt whatever the rule: it must not run again unasked.
    pub fn on_failure(mut self, rule: OnFailure) -> Self {
        self.rule = rule;
        self
    }

    /// Who asks; the client's owner unless told otherwise.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.request.owner = owner.into();
        self
    }

    /// How long to wait while somebody else is at it. [`DEFAULT_WAIT`] unless told otherwise.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Wait until the key has an outcome or is free, however long that takes.
    pub fn wait_without_end(mut self) -> Self {
        self.wait = None;
        self
    }

    /// Calls `told` now and then while somebody else is at it.
    pub fn on_wait(mut self, told: impl FnMut(&InProgress) + Send + 'static) -> Self {
        self.on_wait = Some(Box::new(told));
        self
    }

    /// Runs `work` if the key is the caller's, and stores what it returns; else returns what another call
    /// stored. Dropping the future while the work runs gives the claim back by the rule, as well as can be.
    ///
    /// # Errors
    /// [`OnceError`] tells whether the work ran, and what became of the key.
    ///
    /// # Panics
    /// If `work` does; the claim is given back by the rule first.
    pub async fn run<W, F, T>(mut self, work: W) -> Result<Completion, OnceError>
    where
        W: FnOnce(Claim) -> F,
        F: Future<Output = Result<T, Failure>>,
        T: Into<Outcome>,
    {
        let answer = self.begin().await?;
        let claim = match answer.message {
            Begun::Completed(completed) => return Completion::of(completed, false),
            Begun::InProgress(in_progress) => return Err(OnceError::InProgress(Box::new(in_progress))),
            Begun::InDoubt(in_doubt) => return Err(OnceError::InDoubt(Box::new(in_doubt))),
            Begun::Claim(claim) => claim,
        };
        let request = self.request;
        let held = Held::new(self.client.clone(), request.namespace, request.key, claim, answer.sent);
        let mut guard = ReleaseOnDrop { held: Some(Arc::clone(&held)), rule: self.rule };
        let keeper = Keeper::start(&held);
        let claim = Claim::new(&held);
        let ended = unpanicked(async { work(claim.clone()).await }).await;
        let outcome = match ended {
            Ok(Ok(value)) => value.into(),
            Ok(Err(Failure(Kind::Final(outcome)))) => outcome,
            Ok(Err(Failure(Kind::Released(rule, error)))) => {
                drop(keeper);
                return Err(guard.fail(rule.unwrap_or(self.rule), error, claim.is_lost()).await);
            }
            Err(panic) => {
                drop(keeper);
                guard.fail(self.rule, "the work panicked".into(), None).await;
                resume_unwind(panic)
            }
        };
        let (bytes, max_bytes) = (outcome.encoded_bytes(), held.claim.max_outcome_bytes);
        if bytes > max_bytes && max_bytes > 0 {
            let error = Error::OutcomeTooLarge { bytes, max_bytes };
            // The work ran to its end, so whatever the rule for failures is, nobody may run it again unasked.
            return Err(guard.fail(OnFailure::InDoubt, error.into(), claim.is_lost()).await);
        }
        if claim.is_lost() == Some(Lost::TakenOver) {
            guard.held = None;
            return Err(OnceError::ClaimLost { lost: Lost::TakenOver, error: None });
        }
        // From here on the outcome may be stored, so the claim is never given back.
        guard.held = None;
        complete(self.client, held, keeper, outcome).await
    }

    /// Begins and waits, with one request id, until the key is ours, has an outcome, or the wait is over.
    async fn begin(&mut self) -> Result<Answer<Begun>, Error> {
        let clock = self.client.transport().clock().clone();
        let until = self.wait.map(|wait| clock.now() + wait);
        let mut longest = FIRST_POLL;
        loop {
            let poll = until.map_or(longest, |until| until.since(clock.now()).min(longest));
            self.request.wait = Some(wire(poll));
            let answer = self.client.begin_poll(&self.request, poll).await?;
            match &answer.message {
                Begun::InProgress(in_progress) if until.is_none_or(|until| until > clock.now()) => {
                    if let Some(told) = &mut self.on_wait {
                        told(in_progress);
                    }
                }
                _ => return Ok(answer),
            }
            longest = (longest * 2).min(LAST_POLL);
        }
    }
}

impl std::fmt::Debug for Once {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Once").field("wait", &self.wait).field("rule", &self.rule).finish_non_exhaustive()
    }
}

/// Stores the outcome. The call is on a task of its own, so that dropping the run does not cut it short,
/// and the claim is renewed until it is answered.
async fn complete(
    client: Client,
    held: Arc<Held>,
    keeper: Keeper,
    outcome: Outcome,
) -> Result<Completion, OnceError> {
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
        drop(keeper);
        answer
    });
    let answer = match completing.await {
        Ok(answer) => answer,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => return Err(OnceError::NotStored(Error::answer_unknown("Complete"))),
        },
    };
    match answer {
        Ok(answer) => {
            let completed =
                answer.completed.ok_or(Error::answer_unknown("Complete")).map_err(OnceError::NotStored)?;
            Completion::of(Completed { outcome: Some(outcome), ..completed }, true)
        }
        Err(error) if error.is_claim_lost() && !error.is_unavailable() => {
            Err(OnceError::ClaimLost { lost: Lost::TakenOver, error: None })
        }
        Err(error) => Err(OnceError::NotStored(error)),
    }
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
        let released = held.release(rule.into(), &error.to_string()).await;
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
        let disposition = self.rule.into();
        runtime.spawn(async move {
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
