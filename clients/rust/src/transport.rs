//! The one place that sends calls: which server, which connection, how often. Where there are many, a session takes
//! the place of the unary ones here, and nobody else notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::access::{self, Access};
use crate::clock::{Clock, Moment};
use crate::error::{Error, Refusal, is_of_onced, is_time_out, silence};
use crate::retry::{self, Advice};
use crate::server::{Credentials, Lane, Server, Stub};
use crate::session::{Carried, Ended};
use crate::v1::idempotency_service_client::IdempotencyServiceClient;

/// How much longer than an attempt's deadline its answer may be on the way, a quarter of that at most.
pub(crate) const ANSWER_MARGIN: Duration = Duration::from_millis(250);

/// How long a call is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// In all.
    pub total: Duration,
    /// One attempt, before the next server is tried.
    pub attempt: Duration,
}

/// An answer, and when the attempt that got it was sent: a holder counts its lock from there.
pub(crate) struct Answer<A> {
    pub message: A,
    pub sent: Moment,
}

/// The attempts of one call.
pub(crate) struct Attempts {
    count: u32,
    deadline: Moment,
    patience: Duration,
    /// The most that a server of this round asked for.
    pushback: Duration,
    /// Whether all of them look like an outage: no server has said more than that it is unavailable, and nothing is
    /// set up wrong.
    outage: bool,
    /// Whether one of them may have been carried out.
    unsettled: bool,
}

impl Attempts {
    /// None yet, of a call that is tried for `patience` from `now`.
    pub fn new(now: Moment, patience: Duration) -> Self {
        let deadline = now + patience;
        Self { count: 0, deadline, patience, pushback: Duration::ZERO, outage: true, unsettled: false }
    }
}

/// How a call ended that was not answered.
#[derive(Debug)]
pub(crate) struct Failed {
    pub error: Error,
    /// Whether no server has said more than that it is unavailable, and nothing is set up wrong.
    pub outage: bool,
    /// Whether it may have been carried out.
    pub unsettled: bool,
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

pub(crate) struct Transport {
    servers: Vec<Server>,
    /// The server that calls go to: the last one that answered.
    current: AtomicUsize,
    /// Whether any server has ever answered.
    reached: AtomicBool,
    credentials: Credentials,
    clock: Clock,
}

/// How an attempt ended.
struct Attempt<A> {
    ended: Result<A, Status>,
    /// When the call was sent that ended so.
    sent: Moment,
    /// What it was signed with.
    token: Option<MetadataValue<Ascii>>,
}

impl Transport {
    pub fn new(servers: &[String], access: &Access, clock: Clock) -> Result<Self, Error> {
        let parsed = servers.iter().map(|server| Server::parse(server, access, &clock));
        let servers = parsed.collect::<Result<Vec<_>, _>>()?;
        if servers.is_empty() {
            let why = "name at least one, such as 127.0.0.1:7411".to_owned();
            return Err(Error::ServerInvalid { server: String::new(), why });
        }
        if access.is_for_tls() && !servers.iter().any(|server| server.tls) {
            let why = "certificates are for TLS, and no server is called by it: write https://HOST:PORT";
            return Err(Error::CredentialsInvalid(why.to_owned()));
        }
        let bearer = access.bearer(clock.now())?.map(Arc::new);
        let credentials = Credentials { bearer, clock: clock.clone() };
        // Each client starts elsewhere, so that a fleet of them spreads over the servers.
        let current = AtomicUsize::new(fastrand::usize(..servers.len()));
        Ok(Self { servers, current, reached: AtomicBool::new(false), credentials, clock })
    }

    /// Sends a call until it is answered, refused, or out of time.
    pub async fn call<Q: Carried, F>(
        &self,
        lane: Lane,
        patience: Patience,
        request: &Q,
        send: impl Fn(Channel, Request<Q>) -> F,
    ) -> Result<Answer<Q::Answer>, Failed>
    where
        F: Future<Output = Result<Response<Q::Answer>, Status>>,
    {
        let mut attempts = Attempts::new(self.clock.now(), patience.total);
        let mut answered = None;
        loop {
            let index = self.current.load(Ordering::Relaxed);
            let Attempt { ended, sent, token } =
                self.attempt(index, lane, patience, request, &send, &mut attempts).await;
            let status = match ended {
                Ok(message) => {
                    self.reached.store(true, Ordering::Relaxed);
                    return Ok(Answer { message, sent });
                }
                Err(status) if self.renewed(&status, token.as_ref()) => {
                    // It is no outage that a server refuses a token.
                    self.reached.store(true, Ordering::Relaxed);
                    attempts.outage = false;
                    continue;
                }
                Err(status) => status,
            };
            let unsettled = attempts.unsettled;
            attempts.unsettled |= may_have_written(&status);
            let paused = self.pause(index, &mut attempts, &status).await;
            paused.map_err(|error| Failed {
                error: error.after_unknown(unsettled).after_answer(answered.take()),
                outage: attempts.outage,
                unsettled: attempts.unsettled,
            })?;
            answered = Some(Refusal::of(&status)).filter(|refusal| refusal.reason.is_some()).or(answered);
        }
    }

    /// Sends a call once: in the session of the connection if there is one, else as a unary call. What befalls the
    /// session is no answer: then the same attempt goes on as a unary call.
    async fn attempt<Q: Carried, F>(
        &self,
        index: usize,
        lane: Lane,
        patience: Patience,
        request: &Q,
        send: impl Fn(Channel, Request<Q>) -> F,
        attempts: &mut Attempts,
    ) -> Attempt<Q::Answer>
    where
        F: Future<Output = Result<Response<Q::Answer>, Status>>,
    {
        let server = self.server(index);
        let channel = server.channel(lane);
        let sessions = server.sessions(lane);
        let _counted = sessions
            .count(|| IdempotencyServiceClient::with_interceptor(channel.clone(), self.credentials.clone()));
        let least = Duration::from_millis(1);
        let margin = ANSWER_MARGIN.min(patience.attempt / 4);
        let mut sent = self.clock.now();
        let time = patience.attempt.min(attempts.deadline.since(sent)).max(least);
        let until = sent + time;
        if let Some(place) = sessions.place(request) {
            let status = match place.call::<Q>(time, time + margin).await {
                Ended::Answered(ended) => return Attempt { ended, sent, token: None },
                Ended::Silent => {
                    return Attempt { ended: Err(silence(&server.name, time)), sent, token: None };
                }
                Ended::Again(status) => status,
            };
            // One that was not answered may have been carried out all the same.
            attempts.unsettled |= status.as_ref().is_none_or(may_have_written);
            attempts.outage &= status.is_none_or(|status| status.code() == Code::Unavailable);
            sent = self.clock.now();
        }
        let left = until.since(sent).max(least);
        let mut unary = Request::new(request.clone());
        unary.set_timeout(left);
        let token = self.sign(&mut unary);
        let ended = match tokio::time::timeout(left + margin, send(channel, unary)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) if !is_time_out(&status) => Err(status),
            Ok(Err(_)) | Err(_) => Err(silence(&server.name, time)),
        };
        Attempt { ended, sent, token }
    }

    /// Makes a call at each server, once.
    pub async fn ask_each<A, F>(
        &self,
        timeout: Duration,
        ask: impl Fn(Channel) -> F,
    ) -> Vec<(&str, Result<A, Refusal>)>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut answers = Vec::new();
        for (index, server) in self.servers.iter().enumerate() {
            let answer = tokio::time::timeout(timeout, ask(self.channel(index, Lane::Waiting))).await;
            let silent = |_| Err(Status::deadline_exceeded(format!("no answer within {timeout:?}")));
            let answer = answer.unwrap_or_else(silent);
            let answer = answer.map(Response::into_inner).map_err(|status| server.refusal(&status).0);
            answers.push((server.name.as_str(), answer));
        }
        answers
    }

    /// Connects to the server at `index`, by a connection of its own.
    pub async fn connect(&self, index: usize) -> Result<Stub, Refusal> {
        self.server(index).connect(self.credentials.clone()).await
    }

    /// Opens no more sessions, and lets those that stand end with their last calls.
    pub fn close_sessions(&self) {
        for server in &self.servers {
            server.close_sessions();
        }
    }

    /// Adds who calls: what was added.
    pub fn sign<Q>(&self, request: &mut Request<Q>) -> Option<MetadataValue<Ascii>> {
        let token = self.credentials.bearer.as_ref()?.header(self.clock.now());
        request.metadata_mut().insert("authorization", token.clone());
        Some(token)
    }

    /// Whether a call failed by its token, and there is another one by now. A file is changed a few times at most, so
    /// nobody goes round here for long.
    pub fn renewed(&self, status: &Status, sent: Option<&MetadataValue<Ascii>>) -> bool {
        let (Some(bearer), Some(sent)) = (&self.credentials.bearer, sent) else { return false };
        status.code() == Code::Unauthenticated && bearer.renew(sent, self.clock.now())
    }

    /// Moves on from the server at `index`, whose answer was `status`, and waits for the next attempt.
    /// Fails if that would not help or there is no time for it.
    pub async fn pause(&self, index: usize, attempts: &mut Attempts, status: &Status) -> Result<(), Error> {
        attempts.count += 1;
        let (mut refusal, set_up) = self.server(index).refusal(status);
        let reached = self.reached.load(Ordering::Relaxed);
        if is_of_onced(status) {
            self.reached.store(true, Ordering::Relaxed);
            attempts.outage &= refusal.code == Code::Unavailable;
        } else if set_up {
            refusal.message = format!("{}: {}", self.name(index), refusal.message);
            attempts.outage = false;
            // A client that was answered before sits it out: certificates are renewed, servers replaced.
            if attempts.count as usize >= self.servers.len() && !reached {
                return Err(Error::Refused(Box::new(refusal)));
            }
        } else if (!reached && access::is_unknown_host(&refusal.message)) || is_of_another(status) {
            // More likely a wrong address than an outage.
            attempts.outage = false;
        }
        let Advice::Again { pushback } = retry::advice(status) else {
            return Err(Error::Refused(Box::new(refusal)));
        };
        let next = (index + 1) % self.servers.len();
        // If another call has moved on already, its choice stands.
        let _ = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
        let wait = self.wait(attempts, pushback);
        let left = attempts.deadline.since(self.clock.now());
        if wait >= left {
            let servers = self.servers.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
            let tried = attempts.patience.saturating_sub(left);
            return Err(Error::Unavailable { servers, tried, last: Box::new(refusal) });
        }
        tracing::debug!(server = self.name(index), attempts.count, ?wait, error = %refusal, "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// How long to wait for the next attempt. After a round of all servers that is what the slowest of them asked for:
    /// nobody knows who will be asked next.
    fn wait(&self, attempts: &mut Attempts, pushback: Duration) -> Duration {
        attempts.pushback = attempts.pushback.max(pushback);
        if !attempts.count.is_multiple_of(self.count()) {
            // One that was not tried in this round is tried at once: its neighbour's pushback does not bind it.
            return Duration::ZERO;
        }
        retry::wait(attempts.count / self.count(), std::mem::take(&mut attempts.pushback))
    }

    /// How many servers there are.
    pub fn count(&self) -> u32 {
        u32::try_from(self.servers.len()).unwrap_or(u32::MAX)
    }

    /// The server that the next call goes to.
    pub fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// The connection of `lane` to the server at `index`.
    pub fn channel(&self, index: usize, lane: Lane) -> Channel {
        self.server(index).channel(lane)
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    fn name(&self, index: usize) -> &str {
        &self.server(index).name
    }

    fn server(&self, index: usize) -> &Server {
        &self.servers[index % self.servers.len()]
    }
}

/// Whether an attempt that ended so may have been carried out.
fn may_have_written(status: &Status) -> bool {
    if is_of_onced(status) {
        return Refusal::of(status).is_write_unknown();
    }
    let mut causes = std::iter::successors(std::error::Error::source(status), |it| it.source());
    !causes.any(|cause| cause.is::<tonic::ConnectError>())
}

/// Whether somebody has answered who is no onced, and has more to say than that it is unavailable. What the connection
/// itself meets has a source, and so has [`silence`].
fn is_of_another(status: &Status) -> bool {
    std::error::Error::source(status).is_none() && status.code() != Code::Unavailable
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::TokenSource;
    use crate::v1::{DeleteRequest, DeleteResponse};

    #[tokio::test]
    async fn a_round_is_followed_by_the_longest_pushback_of_it() {
        let servers = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"].map(str::to_owned);
        let transport = Transport::new(&servers, &Access::default(), Clock::system()).unwrap();
        let mut attempts = Attempts::new(Moment::default(), Duration::from_secs(60));
        let mut wait = |count, pushback_s| {
            attempts.count = count;
            transport.wait(&mut attempts, Duration::from_secs(pushback_s))
        };
        let round = [wait(1, 20), wait(2, 0), wait(3, 1)];
        assert_eq!(round[..2], [Duration::ZERO; 2]);
        assert!(round[2] >= Duration::from_secs(20), "{round:?}");
        // The next round asks for nothing.
        let round = [wait(4, 0), wait(5, 0), wait(6, 0)];
        assert!(round[2] <= Duration::from_secs(2), "{round:?}");
    }

    /// Whether the call looks like an outage after an attempt that ended so.
    async fn is_outage(status: &Status) -> bool {
        let transport =
            Transport::new(&["10.0.0.1:1".to_owned()], &Access::default(), Clock::system()).unwrap();
        let mut attempts = Attempts::new(transport.clock().now(), Duration::from_millis(1));
        transport.pause(0, &mut attempts, status).await.unwrap_err();
        attempts.outage
    }

    #[tokio::test]
    async fn silence_is_an_outage_and_an_answer_is_none_but_that_it_is_unavailable() {
        assert!(is_outage(&silence("10.0.0.1:1", Duration::from_secs(2))).await);
        assert!(is_outage(&Status::unavailable("no healthy upstream")).await);
        assert!(!is_outage(&Status::deadline_exceeded("the gateway waited for long")).await);
        assert!(!is_outage(&Status::unimplemented("what is onced?")).await);
    }

    #[tokio::test]
    async fn who_refuses_a_token_is_there_also_where_the_next_one_is_not_answered() {
        let file = std::env::temp_dir().join(format!("onced-token-{}", uuid::Uuid::new_v4()));
        std::fs::write(&file, "old").unwrap();
        let access = Access { token: Some(TokenSource::File(file.clone())), ..Access::default() };
        let transport = Transport::new(&["127.0.0.1:1".to_owned()], &access, Clock::system()).unwrap();
        std::fs::write(&file, "new").unwrap();
        let send = |_, request: Request<DeleteRequest>| async move {
            Err::<Response<DeleteResponse>, _>(
                match request.metadata().get("authorization").unwrap() == "Bearer old" {
                    true => Status::unauthenticated("it has expired"),
                    false => Status::unavailable("no healthy upstream"),
                },
            )
        };
        let patience = Patience { total: Duration::from_millis(50), attempt: Duration::from_millis(50) };
        let failed =
            transport.call(Lane::Waiting, patience, &DeleteRequest::default(), send).await.err().unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(failed.error.is_unavailable(), "{failed:?}");
        assert!(!failed.outage, "{failed:?}");
    }
}
