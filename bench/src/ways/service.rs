//! A server, called by unary calls or on session streams, with the stubs that the Rust client is made of.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use onced_client::v1::session_request::Call;
use onced_client::v1::session_response::Answer;
use onced_client::v1::{
    BeginRequest, BeginResponse, CompleteRequest, LookupRequest, Outcome, SessionRequest, begin_response,
    lookup_response, outcome,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::{Claim, Way, Work};
use crate::server::Server;

const NAMESPACE: &str = "bench";

type Client = IdempotencyServiceClient<Channel>;

/// How calls go to a server.
pub enum Calls {
    Unary(Vec<Client>),
    Sessions(Vec<Session>),
}

/// Many calls on one stream.
pub struct Session {
    calls: mpsc::UnboundedSender<SessionRequest>,
    open: Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>,
    next_id: AtomicU64,
}

impl Calls {
    /// Unary calls, over this many connections.
    pub async fn unary(server: &Server, connections: u8) -> anyhow::Result<Self> {
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(connect(server).await?);
        }
        Ok(Calls::Unary(clients))
    }

    /// Calls on this many sessions, each on a connection of its own.
    pub async fn sessions(server: &Server, connections: u8) -> anyhow::Result<Self> {
        let mut sessions = Vec::new();
        for _ in 0..connections {
            sessions.push(Session::open(connect(server).await?).await?);
        }
        Ok(Calls::Sessions(sessions))
    }

    async fn call(&self, caller: usize, call: Call) -> anyhow::Result<Answer> {
        match self {
            Calls::Unary(clients) => unary(clients[caller % clients.len()].clone(), call).await,
            Calls::Sessions(sessions) => sessions[caller % sessions.len()].call(call).await,
        }
    }

    /// A Begin, whatever comes of it.
    pub async fn begin(
        &self,
        caller: usize,
        request: BeginRequest,
    ) -> anyhow::Result<begin_response::Result> {
        match self.call(caller, Call::Begin(request)).await? {
            Answer::Begin(BeginResponse { result: Some(result) }) => Ok(result),
            _ => anyhow::bail!("a Begin was answered with nothing, or something else"),
        }
    }
}

async fn connect(server: &Server) -> anyhow::Result<Client> {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address()))?.tcp_nodelay(true);
    Ok(Client::new(endpoint.connect().await?))
}

async fn unary(mut client: Client, call: Call) -> anyhow::Result<Answer> {
    let answer = match call {
        Call::Begin(request) => client.begin(request).await.map(|answer| Answer::Begin(answer.into_inner())),
        Call::Complete(request) => {
            client.complete(request).await.map(|answer| Answer::Complete(answer.into_inner()))
        }
        Call::Lookup(request) => {
            client.lookup(request).await.map(|answer| Answer::Lookup(answer.into_inner()))
        }
        Call::Renew(_) | Call::Release(_) | Call::Cancel(_) => anyhow::bail!("a call of no use here"),
    };
    answer.map_err(|status| anyhow::anyhow!("the server says {:?}: {}", status.code(), status.message()))
}

impl Session {
    async fn open(mut client: Client) -> anyhow::Result<Self> {
        let (calls, sent) = mpsc::unbounded_channel();
        let answers = client.session(UnboundedReceiverStream::new(sent)).await?.into_inner();
        let open = Arc::default();
        tokio::spawn(Self::read(answers, Arc::clone(&open)));
        Ok(Self { calls, open, next_id: AtomicU64::new(1) })
    }

    /// Hands out answers until the session ends. Who still waits then is told so, by its sender's end.
    async fn read(
        mut answers: Streaming<onced_client::v1::SessionResponse>,
        open: Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>,
    ) {
        let open = || open.lock().unwrap_or_else(PoisonError::into_inner);
        while let Ok(Some(response)) = answers.message().await {
            let waiter = open().remove(&response.id);
            if let (Some(waiter), Some(answer)) = (waiter, response.answer) {
                let _ = waiter.send(answer);
            }
        }
        open().clear();
    }

    async fn call(&self, call: Call) -> anyhow::Result<Answer> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answered) = oneshot::channel();
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        let sent = self.calls.send(SessionRequest { id, timeout: None, call: Some(call) });
        sent.ok().context("the session has ended")?;
        match answered.await.context("the session ended before the answer")? {
            Answer::Error(status) => anyhow::bail!("the server says {}: {}", status.code, status.message),
            answer => Ok(answer),
        }
    }
}

/// A Begin with all that is optional left to the server.
pub fn begin_request(key: &str) -> BeginRequest {
    let request_id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
    BeginRequest {
        namespace: NAMESPACE.to_owned(),
        key: key.to_owned(),
        request_id: request_id.to_string(),
        owner: "bench".to_owned(),
        ..BeginRequest::default()
    }
}

#[async_trait]
impl Way for Calls {
    async fn begin(&self, caller: usize, key: &str) -> anyhow::Result<Claim> {
        match Calls::begin(self, caller, begin_request(key)).await? {
            begin_response::Result::Claim(claim) if !claim.resumed && claim.attempt == 1 => {
                Ok(Claim { token: claim.fencing_token, lease: 0 })
            }
            other => anyhow::bail!("a Begin of a new key brought no new claim, but {other:?}"),
        }
    }

    async fn complete(&self, caller: usize, key: &str, claim: Claim, outcome: Bytes) -> anyhow::Result<()> {
        let outcome = Outcome { result: Some(outcome::Result::Response(outcome)), ..Outcome::default() };
        let request = CompleteRequest {
            namespace: NAMESPACE.to_owned(),
            key: key.to_owned(),
            fencing_token: claim.token,
            outcome: Some(outcome),
            retention: None,
        };
        match self.call(caller, Call::Complete(request)).await? {
            Answer::Complete(answer) if !answer.repeated => Ok(()),
            other => anyhow::bail!("a Complete was answered with {other:?}"),
        }
    }

    async fn outcome(&self, key: &str) -> anyhow::Result<Bytes> {
        let request = LookupRequest { namespace: NAMESPACE.to_owned(), key: key.to_owned(), wait: None };
        let Answer::Lookup(found) = self.call(0, Call::Lookup(request)).await? else {
            anyhow::bail!("a Lookup was answered with something else");
        };
        match found.record {
            Some(lookup_response::Record::Completed(completed)) => response(completed.outcome),
            other => anyhow::bail!("a completed key is {other:?}"),
        }
    }

    async fn share(&self, caller: usize, key: &str, work: &Work) -> anyhow::Result<(bool, Bytes)> {
        let mut request = begin_request(key);
        request.wait = Some(onced_client::wire(WAIT));
        match Calls::begin(self, caller, request).await.context("Begin")? {
            begin_response::Result::Claim(claim) => {
                tokio::time::sleep(work.time).await;
                let claim = Claim { token: claim.fencing_token, lease: 0 };
                self.complete(caller, key, claim, work.outcome.clone()).await.context("Complete")?;
                Ok((true, work.outcome.clone()))
            }
            begin_response::Result::Completed(completed) => Ok((false, response(completed.outcome)?)),
            other => anyhow::bail!("a duplicate that waits got {other:?}"),
        }
    }
}

/// How long a caller waits for the outcome: the most that a server grants.
const WAIT: Duration = Duration::from_secs(60);

/// The response of an outcome.
fn response(outcome: Option<Outcome>) -> anyhow::Result<Bytes> {
    match outcome.and_then(|outcome| outcome.result) {
        Some(outcome::Result::Response(response)) => Ok(response),
        other => anyhow::bail!("an outcome is {other:?}"),
    }
}
