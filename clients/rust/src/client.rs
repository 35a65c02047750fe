//! The client: every RPC as a method that retries safely.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost_types::Duration as WireDuration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::builder::ClientBuilder;
use crate::clock::Moment;
use crate::error::{Error, Refusal};
use crate::once::Once;
use crate::server::{Lane, Stub};
use crate::transport::{Answer, Failed, Patience, Transport};
use crate::v1::admin_service_client::AdminServiceClient;
use crate::v1::begin_response::Result as Begun;
use crate::v1::idempotency_service_client::IdempotencyServiceClient;
use crate::v1::lookup_response::Record;
use crate::v1::{
    BeginRequest, CompleteRequest, CompleteResponse, DeleteRequest, ListRequest, ListResponse, LookupRequest,
    RecordSummary, ReleaseRequest, RenewRequest, RenewResponse, ResolveRequest, WatchRequest,
};
use crate::watch::Watch;

/// How long a call is tried, beyond the wait it asks for, unless the builder says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one attempt may take, beyond the wait it asks for, before the next server is tried.
const ATTEMPT_TIME: Duration = Duration::from_secs(10);
/// The longest wait asked for in one call; longer ones are several calls.
pub(crate) const LONGEST_POLL: Duration = Duration::from_secs(20);
/// The pause after an answer that came sooner than the wait it was asked for.
const EARLY_ANSWER_PAUSE: Duration = Duration::from_millis(500);

/// A client of one or several servers that share a store. Cheap to clone; connects when it is first used.
///
/// Calls go to the server that answered last. When it fails, the next one is tried, with the same
/// arguments, until the call's time is up.
#[derive(Clone)]
pub struct Client(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub transport: Transport,
    pub timeout: Duration,
    pub owner: String,
    pub runs: Runs,
}

/// What is under way of [`Once::run`].
#[derive(Default)]
pub(crate) struct Runs {
    /// The runs, and what is yet to be said of them: a client is closed when they have ended.
    pub open: TaskTracker,
    /// Whether no more may begin.
    pub closing: CancellationToken,
    /// How many ran without a claim.
    pub unprotected: AtomicU64,
}

impl Client {
    /// A client of `servers`: `HOST:PORT`, `http://HOST:PORT` or, by TLS, `https://HOST:PORT`; several with commas
    /// between. Without any, those that the environment variable `ONCED_SERVER` names, else `127.0.0.1:7411`.
    ///
    /// # Errors
    /// If an address cannot be read. Whether a server is there shows at the first call.
    pub fn connect(servers: impl AsRef<str>) -> Result<Self, Error> {
        Self::builder(servers).build()
    }

    /// Settings for a client of `servers`, written as for [`Client::connect`].
    pub fn builder(servers: impl AsRef<str>) -> ClientBuilder {
        ClientBuilder::new(servers.as_ref())
    }

    /// Runs a function once for `key`: see [`Once`].
    pub fn once(&self, key: impl Into<String>) -> Once {
        Once::new(self.clone(), key.into(), self.0.owner.clone())
    }

    /// How many runs of this client have run their work without a claim, because no server could be asked: see
    /// [`Once::fail_open`].
    pub fn unprotected_runs(&self) -> u64 {
        self.0.runs.unprotected.load(Ordering::Relaxed)
    }

    /// Begins no more runs, and waits up to `patience` for those that have their claim: for their work, and until its
    /// outcome is stored or its claim is given back. Runs that still wait for a claim end with [`Error::Closed`].
    /// Tells whether all has ended; work that has not goes on. Calls that are no runs are not affected.
    ///
    /// Call this before the runtime ends: what is dropped with it is not stored.
    pub async fn close(&self, patience: Duration) -> bool {
        let runs = &self.0.runs;
        runs.closing.cancel();
        runs.open.close();
        let ended = tokio::time::timeout(patience, runs.open.wait()).await.is_ok();
        self.0.transport.close_sessions();
        ended
    }

    /// Claims a key, or tells what became of it. Waits as long as `request.wait` says, however short the
    /// server's own limit is: while somebody else holds the key, the call is repeated with its request id.
    ///
    /// # Errors
    /// What the server refused, or [`Error::Unavailable`]. Then call again with the same request id.
    pub async fn begin(&self, mut request: BeginRequest) -> Result<Begun, Error> {
        let clock = self.0.transport.clock();
        let until = clock.now() + duration(request.wait.as_ref());
        loop {
            let poll = until.since(clock.now()).min(LONGEST_POLL);
            request.wait = Some(wire(poll));
            let answer = self.begin_once(&request, self.patience(poll)).await?;
            match answer.message {
                Begun::InProgress(_) | Begun::InDoubt(_) => {
                    self.rest(answer.sent, poll).await;
                    if until <= clock.now() {
                        return Ok(answer.message);
                    }
                }
                begun => return Ok(begun),
            }
        }
    }

    /// One Begin, which waits as long as `request` says.
    pub(crate) async fn begin_once(
        &self,
        request: &BeginRequest,
        patience: Patience,
    ) -> Result<Answer<Begun>, Failed> {
        let send =
            |channel, request| async move { IdempotencyServiceClient::new(channel).begin(request).await };
        let answer = self.0.transport.call(Lane::Waiting, patience, request, send).await?;
        let unknown = Failed { error: Error::answer_unknown("Begin"), outage: false, unsettled: true };
        Ok(Answer { message: answer.message.result.ok_or(unknown)?, sent: answer.sent })
    }

    /// Stores the outcome of a claimed key.
    ///
    /// # Errors
    /// What the server refused, or [`Error::Unavailable`]: then the outcome may be stored or not. Call
    /// again, or let the claim lapse; never release it.
    pub async fn complete(&self, request: CompleteRequest) -> Result<CompleteResponse, Error> {
        self.complete_within(self.0.timeout, request).await
    }

    pub(crate) async fn complete_within(
        &self,
        total: Duration,
        request: CompleteRequest,
    ) -> Result<CompleteResponse, Error> {
        let patience = Patience { total, attempt: ATTEMPT_TIME };
        let send =
            |channel, request| async move { IdempotencyServiceClient::new(channel).complete(request).await };
        Ok(self.0.transport.call(Lane::Holding, patience, &request, send).await?.message)
    }

    /// Keeps a claim alive, and saves a checkpoint if the request has one.
    ///
    /// # Errors
    /// What the server refused ([`Error::is_claim_lost`]: stop the work), or [`Error::Unavailable`].
    pub async fn renew(&self, request: RenewRequest) -> Result<RenewResponse, Error> {
        Ok(self.renew_within(self.patience(Duration::ZERO), request).await?.message)
    }

    pub(crate) async fn renew_within(
        &self,
        patience: Patience,
        request: RenewRequest,
    ) -> Result<Answer<RenewResponse>, Error> {
        let send =
            |channel, request| async move { IdempotencyServiceClient::new(channel).renew(request).await };
        Ok(self.0.transport.call(Lane::Holding, patience, &request, send).await?)
    }

    /// Gives a claim back without an outcome. Never after a Complete was sent.
    ///
    /// # Errors
    /// What the server refused, or [`Error::Unavailable`]: then call again, or let the claim lapse.
    pub async fn release(&self, request: ReleaseRequest) -> Result<(), Error> {
        let send =
            |channel, request| async move { IdempotencyServiceClient::new(channel).release(request).await };
        self.0.transport.call(Lane::Holding, self.patience(Duration::ZERO), &request, send).await?;
        Ok(())
    }

    /// Reads what is known of a key. Waits for its outcome as long as `request.wait` says.
    ///
    /// # Errors
    /// What the server refused (`RecordNotFound` if there is no record), or [`Error::Unavailable`].
    pub async fn lookup(&self, mut request: LookupRequest) -> Result<Record, Error> {
        let transport = &self.0.transport;
        let clock = transport.clock();
        let until = clock.now() + duration(request.wait.as_ref());
        loop {
            let poll = until.since(clock.now()).min(LONGEST_POLL);
            request.wait = Some(wire(poll));
            let send = |channel, request| async move {
                IdempotencyServiceClient::new(channel).lookup(request).await
            };
            let answer = transport.call(Lane::Waiting, self.patience(poll), &request, send).await?;
            match answer.message.record.ok_or(Error::answer_unknown("Lookup"))? {
                record @ Record::Completed(_) => return Ok(record),
                record => {
                    self.rest(answer.sent, poll).await;
                    if until <= clock.now() {
                        return Ok(record);
                    }
                }
            }
        }
    }

    /// The states of a key from now on. The stream is opened again by itself when it breaks.
    pub fn watch(&self, namespace: impl Into<String>, key: impl Into<String>) -> Watch {
        Watch::new(self.clone(), WatchRequest { namespace: namespace.into(), key: key.into() })
    }

    /// One page of the records of a namespace.
    ///
    /// # Errors
    /// What the server refused, or [`Error::Unavailable`].
    pub async fn list(&self, request: ListRequest) -> Result<ListResponse, Error> {
        let send = |channel, request| async move { AdminServiceClient::new(channel).list(request).await };
        Ok(self.0.transport.call(Lane::Waiting, self.patience(Duration::ZERO), &request, send).await?.message)
    }

    /// Settles a record in doubt.
    ///
    /// # Errors
    /// What the server refused (`ClaimLost` if the record has moved on), or [`Error::Unavailable`].
    pub async fn resolve(&self, request: ResolveRequest) -> Result<RecordSummary, Error> {
        let send = |channel, request| async move { AdminServiceClient::new(channel).resolve(request).await };
        let answer =
            self.0.transport.call(Lane::Waiting, self.patience(Duration::ZERO), &request, send).await?;
        answer.message.record.ok_or(Error::answer_unknown("Resolve"))
    }

    /// Removes a record, outcome and all.
    ///
    /// # Errors
    /// What the server refused (`ClaimHeld` without force), or [`Error::Unavailable`].
    pub async fn delete(&self, request: DeleteRequest) -> Result<(), Error> {
        let send = |channel, request| async move { AdminServiceClient::new(channel).delete(request).await };
        self.0.transport.call(Lane::Waiting, self.patience(Duration::ZERO), &request, send).await?;
        Ok(())
    }

    /// Makes a call of a service that is not onced's own, such as the standard one of health, at each server: once, and
    /// without a token. Tells by server what it came to.
    pub async fn ask_each<A, F>(
        &self,
        timeout: Duration,
        ask: impl Fn(Channel) -> F,
    ) -> Vec<(&str, Result<A, Refusal>)>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.0.transport.ask_each(timeout, ask).await
    }

    /// Connects to one of the servers, the first one for 0, and round again beyond the last, by a connection of its own:
    /// for a [`Session`](crate::Session), and for who has rules of his own for what to try again, and where.
    ///
    /// # Errors
    /// Why it cannot be reached.
    pub async fn connect_to(&self, server: usize) -> Result<Stub, Refusal> {
        self.0.transport.connect(server).await
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.0.transport
    }

    /// How long a call is tried, beyond the wait it asks for.
    pub(crate) fn timeout(&self) -> Duration {
        self.0.timeout
    }

    pub(crate) fn runs(&self) -> &Runs {
        &self.0.runs
    }

    /// How long a call that asks for this wait is tried.
    pub(crate) fn patience(&self, wait: Duration) -> Patience {
        Patience { total: wait.saturating_add(self.0.timeout), attempt: wait.saturating_add(ATTEMPT_TIME) }
    }

    /// A server may end a wait early, by its own limit. Asking again at once could make a busy loop.
    pub(crate) async fn rest(&self, sent: Moment, poll: Duration) {
        let left = poll.saturating_sub(self.0.transport.clock().now().since(sent));
        tokio::time::sleep(left.min(EARLY_ANSWER_PAUSE)).await;
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("owner", &self.0.owner).field("timeout", &self.0.timeout).finish()
    }
}

/// `time` as the wire has it.
pub fn wire(time: Duration) -> WireDuration {
    WireDuration {
        seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(time.subsec_nanos()).unwrap_or(0),
    }
}

/// `time` from the wire; unset and negative are zero.
pub fn duration(time: Option<&WireDuration>) -> Duration {
    time.and_then(|time| Duration::try_from(*time).ok()).unwrap_or_default()
}
