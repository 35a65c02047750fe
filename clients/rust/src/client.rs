//! The client: every RPC as a method that retries safely.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prost_types::Duration as WireDuration;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::access::{Access, TokenSource};
use crate::clock::Clock;
use crate::error::{Error, Refusal};
use crate::once::Once;
use crate::transport::{Answer, Lane, Patience, Stub, Transport};
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
pub struct Client(Arc<Inner>);

struct Inner {
    transport: Transport,
    timeout: Duration,
    owner: String,
}

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    servers: Vec<String>,
    timeout: Duration,
    owner: String,
    clock: Clock,
    access: Access,
}

impl Client {
    /// A client of `servers`: `HOST:PORT`, `http://HOST:PORT` or, by TLS, `https://HOST:PORT`; several with commas
    /// between.
    ///
    /// # Errors
    /// If an address cannot be read. Whether a server is there shows at the first call.
    pub fn connect(servers: impl AsRef<str>) -> Result<Self, Error> {
        Self::builder(servers).build()
    }

    /// Settings for a client of `servers`, written as for [`Client::connect`].
    pub fn builder(servers: impl AsRef<str>) -> ClientBuilder {
        let servers = servers.as_ref().split(',').map(str::trim).filter(|server| !server.is_empty());
        ClientBuilder {
            servers: servers.map(str::to_owned).collect(),
            timeout: DEFAULT_TIMEOUT,
            owner: crate::owner::default_owner(),
            clock: Clock::system(),
            access: Access::default(),
        }
    }

    /// Runs a function once for `key`: see [`Once`].
    pub fn once(&self, key: impl Into<String>) -> Once {
        Once::new(self.clone(), key.into(), self.0.owner.clone())
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
            match self.begin_poll(&request, poll).await?.message {
                Begun::InProgress(_) | Begun::InDoubt(_) if until > clock.now() => {}
                begun => return Ok(begun),
            }
        }
    }

    /// One Begin that waits up to `poll`, and as long as that even if the server answers sooner.
    pub(crate) async fn begin_poll(
        &self,
        request: &BeginRequest,
        poll: Duration,
    ) -> Result<Answer<Begun>, Error> {
        let transport = &self.0.transport;
        let answer = transport
            .call(Lane::Waiting, self.patience(poll), request, |channel, request| async move {
                IdempotencyServiceClient::new(channel).begin(request).await
            })
            .await?;
        let message = answer.message.result.ok_or(Error::answer_unknown("Begin"))?;
        if matches!(message, Begun::InProgress(_) | Begun::InDoubt(_)) {
            self.rest(answer.sent, poll).await;
        }
        Ok(Answer { message, sent: answer.sent })
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
        self.0.transport.call(Lane::Holding, patience, &request, send).await
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

    fn patience(&self, wait: Duration) -> Patience {
        Patience { total: wait.saturating_add(self.0.timeout), attempt: wait.saturating_add(ATTEMPT_TIME) }
    }

    /// A server may end a wait early, by its own limit. Asking again at once could make a busy loop.
    async fn rest(&self, sent: crate::clock::Moment, poll: Duration) {
        let left = poll.saturating_sub(self.0.transport.clock().now().since(sent));
        tokio::time::sleep(left.min(EARLY_ANSWER_PAUSE)).await;
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("owner", &self.0.owner).field("timeout", &self.0.timeout).finish()
    }
}

impl ClientBuilder {
    /// How long a call is tried, beyond the wait it asks for. 30 s unless told otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Who [`Client::once`] claims for: shown to duplicates and operators. User, host and process id unless
    /// told otherwise.
    #[must_use]
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = owner.into();
        self
    }

    /// The CA that signed the certificates of the servers, in PEM. Those that the system trusts unless told otherwise.
    #[must_use]
    pub fn ca_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.access.ca = Some(file.into());
        self
    }

    /// The certificate to show to servers, and its key, in PEM. They are read when the client is built.
    #[must_use]
    pub fn identity_files(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.access.identity = Some((cert.into(), key.into()));
        self
    }

    /// The file of the token that says who calls. It is read again when it is refused, and every few seconds.
    #[must_use]
    pub fn token_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.access.token = Some(TokenSource::File(file.into()));
        self
    }

    /// The token that says who calls.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.access.token = Some(TokenSource::Text(token.into()));
        self
    }

    /// Sends the token also where it goes over a network without TLS, for all to read.
    #[must_use]
    pub fn allow_token_in_plaintext(mut self) -> Self {
        self.access.token_in_plaintext = true;
        self
    }

    /// The clock that locks are counted on; for tests.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The client.
    ///
    /// # Errors
    /// If an address or a file cannot be read, if there is no address, or if a token would go over a network without
    /// TLS.
    pub fn build(self) -> Result<Client, Error> {
        let transport = Transport::new(&self.servers, &self.access, self.clock)?;
        Ok(Client(Arc::new(Inner { transport, timeout: self.timeout, owner: self.owner })))
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
