//! Run this function once for this key.

use std::time::Duration;

use bytes::Bytes;
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

use crate::begin::{Beginning, OnWait};
use crate::claim::{Claim, Held};
use crate::client::{Client, wire};
use crate::codec::Codec;
use crate::completion::{Completion, Failure, OnFailure, OnceError};
use crate::error::Error;
use crate::v1::begin_response::Result as Begun;
use crate::v1::{BeginRequest, InProgress, OnLapse, Outcome};
use crate::work::{Done, Run};

/// How long a duplicate waits for the outcome unless told otherwise.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(60);

/// How a run starts.
pub(crate) enum Start {
    /// The work is to run.
    Run(Box<Run>),
    /// It has run before.
    Replay(Completion),
}

/// One run of a function for a key. See the crate's front page for an example.
#[must_use = "nothing happens before `run`"]
pub struct Once {
    client: Client,
    request: BeginRequest,
    /// None: without end.
    wait: Option<Duration>,
    rule: OnFailure,
    on_wait: Option<OnWait>,
    /// After how long without an answer the work runs without a claim.
    fail_open: Option<Duration>,
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
        let rule = OnFailure::default();
        Self { client, request, wait: Some(DEFAULT_WAIT), rule, on_wait: None, fail_open: None }
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

    /// Runs the work without a claim when no server has answered for as long as `after`, of which each gets its share:
    /// for work that is better done twice than not at all. Never once a server has said anything of the key or refused
    /// to, and never for a client that is set up wrong (its addresses, TLS, credentials). The work is told, by
    /// [`Claim::protected`], and so is the caller, by [`Completion::protected`]; [`Client::unprotected_runs`] counts.
    /// Without this, such a run is an error.
    pub fn fail_open(mut self, after: Duration) -> Self {
        self.fail_open = Some(after);
        self
    }

    /// Runs `work` if the key is the caller's, and stores what it returns; else returns what another call
    /// stored. Dropping the future while the work runs drops the work, and gives the claim back by the rule, as well as
    /// can be. Parts of the work that are on tasks of their own go on: stop them when [`Claim::lost`] says so, or give
    /// the whole run a task of its own.
    ///
    /// # Errors
    /// [`OnceError`] tells whether the work ran, and what became of the key. A final error is none: it is the outcome.
    ///
    /// # Panics
    /// If `work` does; the claim is given back by the rule first. Also if making an outcome of what it returned does: then
    /// the key is in doubt, since the work is done.
    pub async fn run<W, F, T>(self, work: W) -> Result<Completion, OnceError>
    where
        W: FnOnce(Claim) -> F,
        F: Future<Output = Result<T, Failure>>,
        T: Into<Outcome>,
    {
        let run = match self.start().await? {
            Start::Run(run) => run,
            Start::Replay(completion) => return Ok(completion),
        };
        let encode = |value: T| {
            let outcome: Outcome = value.into();
            (Ok(outcome.clone()), outcome)
        };
        let (facts, done) = run.go(work, encode).await?;
        Ok(facts.map(|()| match done {
            Done::Value(outcome) | Done::Final(outcome) => outcome,
        }))
    }

    /// The same with values: what `work` returns is stored as `codec` writes it, and what another call stored is read
    /// by it.
    ///
    /// ```no_run
    /// # async fn charge(_token: u64) -> Result<String, std::io::Error> { Ok(String::new()) }
    /// # async fn example(client: onced_client::Client) -> Result<(), onced_client::OnceError> {
    /// use onced_client::codec;
    ///
    /// let work = |claim: onced_client::Claim| async move { Ok(charge(claim.fencing_token()).await?) };
    /// let receipt: String = client.once("order-17").run_as(codec::Text, work).await?.outcome;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Once::run`]; and [`OnceError::Final`] if the work failed for good, here or there, and
    /// [`OnceError::Unreadable`] if what is stored is of another type.
    ///
    /// # Panics
    /// If `work` does; the claim is given back by the rule first. Also if making an outcome of what it returned does: then
    /// the key is in doubt, since the work is done.
    pub async fn run_as<C, W, F, T>(self, codec: C, work: W) -> Result<Completion<T>, OnceError>
    where
        C: Codec<T>,
        W: FnOnce(Claim) -> F,
        F: Future<Output = Result<T, Failure>>,
    {
        let run = match self.start().await? {
            Start::Run(run) => run,
            Start::Replay(completion) if completion.outcome.final_error().is_some() => {
                return Err(OnceError::Final(Box::new(completion)));
            }
            Start::Replay(completion) => {
                return match codec.decode(&completion.outcome) {
                    Ok(value) => Ok(completion.map(|_| value)),
                    Err(error) => Err(OnceError::Unreadable { error, completion: Box::new(completion) }),
                };
            }
        };
        match run.go(work, |value| (codec.encode(&value), value)).await? {
            (facts, Done::Value(value)) => Ok(facts.map(|()| value)),
            (facts, Done::Final(outcome)) => Err(OnceError::Final(Box::new(facts.map(|()| outcome)))),
        }
    }

    #[cfg(all(test, feature = "http", feature = "json"))]
    pub(crate) fn fingerprint_of(&self) -> &Bytes {
        &self.request.fingerprint
    }

    /// Begins, and waits until it is clear whether the work is to run here.
    pub(crate) async fn start(self) -> Result<Start, OnceError> {
        let runs = self.client.runs();
        let (open, closing) = (runs.open.token(), runs.closing.clone());
        tokio::select! {
            biased;
            () = closing.cancelled() => Err(Error::Closed.into()),
            start = self.begin(open) => start,
        }
    }

    async fn begin(self, open: TaskTrackerToken) -> Result<Start, OnceError> {
        let Self { client, request, wait, rule, on_wait, fail_open } = self;
        let mut beginning = Beginning::new(client.clone(), request);
        let begun = beginning.ask(wait, fail_open, on_wait).await?;
        let request = beginning.into_request();
        let Some(begun) = begun else {
            let held = Held::unprotected(client, request.namespace, request.key);
            let run = Run::new(held, rule, request.owner, open);
            return Ok(Start::Run(Box::new(run)));
        };
        match begun.message {
            Begun::Claim(claim) => {
                let held = Held::new(client, request.namespace, request.key, claim, begun.sent);
                Ok(Start::Run(Box::new(Run::new(held, rule, request.owner, open))))
            }
            Begun::Completed(mut completed) => {
                let outcome = completed.outcome.take().ok_or(Error::answer_unknown("Begin"))?;
                Ok(Start::Replay(Completion::of(completed, outcome, false)))
            }
            Begun::InProgress(in_progress) => Err(OnceError::InProgress(Box::new(in_progress))),
            Begun::InDoubt(in_doubt) => Err(OnceError::InDoubt(Box::new(in_doubt))),
        }
    }
}

impl std::fmt::Debug for Once {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Once").field("wait", &self.wait).field("rule", &self.rule).finish_non_exhaustive()
    }
}
