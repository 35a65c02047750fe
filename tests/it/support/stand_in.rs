//! A server of the API that breaks a promise on demand: what watches over promises has to notice.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onced::generated::onced_v1::idempotency_service_server::{IdempotencyService, IdempotencyServiceServer};
use onced_client::v1::session_request::Call;
use onced_client::v1::session_response::Answer;
use onced_client::v1::{
    self, BeginResponse, Claim, CompleteResponse, Completed, InProgress, SessionRequest, SessionResponse,
};
use onced_client::{Begun, Outcome};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// How many messages a session takes if it is to end early.
pub const SHORT_SESSION: usize = 50;

/// What is wrong with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Nothing,
    /// A key is claimed twice at the same time.
    ClaimsTwice,
    /// One byte of a replay is another one.
    TellsOtherBytes,
    /// Whoever begins a completed key gets it once more.
    ForgetsOutcomes,
    /// New keys are completed, nobody knows by whom.
    InventsOutcomes,
    /// Every Begin of the load is refused.
    Refuses,
    /// Every second one is.
    RefusesHalf,
    /// Of the load, every second Complete fails.
    FailsToComplete(Unheard),
    /// The first Begin of the load takes so long.
    StallsOnce(Duration),
    /// Every Begin of the load takes so long.
    IsSlow(Duration),
    /// No Begin is ever answered.
    Hangs,
    /// Sessions end after [`SHORT_SESSION`] messages, all of them answered.
    EndsSessions,
}

/// What a Complete that failed has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unheard {
    /// It has stored the outcome.
    Stored,
    /// Nothing: the key is still held.
    Nothing,
    /// It has stored another outcome.
    OtherBytes,
    /// It has given the claim back, which nobody asked for.
    Released,
}

/// A server on loopback, on the runtime of the test that started it.
pub struct StandIn {
    address: SocketAddr,
    api: Api,
}

#[derive(Clone)]
struct Api(Arc<State>);

struct State {
    fault: Fault,
    /// Of the load.
    begins: AtomicUsize,
    tokens: AtomicUsize,
    sessions: AtomicUsize,
    keys: Mutex<HashMap<String, Key>>,
    changed: Notify,
}

struct Key {
    claims: usize,
    outcome: Option<(u64, Outcome)>,
}

impl StandIn {
    pub async fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let api = Api(Arc::new(State {
            fault,
            begins: AtomicUsize::new(0),
            tokens: AtomicUsize::new(1),
            sessions: AtomicUsize::new(0),
            keys: Mutex::default(),
            changed: Notify::new(),
        }));
        let service = IdempotencyServiceServer::new(api.clone());
        let serving = Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(serving);
        Self { address, api }
    }

    /// Where it listens, as host:port.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// How many sessions were opened.
    pub fn sessions(&self) -> usize {
        self.api.0.sessions.load(Ordering::SeqCst)
    }
}

impl Api {
    async fn answer_begin(&self, request: v1::BeginRequest) -> Result<BeginResponse, Status> {
        let before_the_load = is_before_the_load(&request.key);
        let number = if before_the_load { None } else { Some(self.0.begins.fetch_add(1, Ordering::SeqCst)) };
        match (self.0.fault, number) {
            (Fault::Hangs, _) => std::future::pending().await,
            (Fault::Refuses, Some(_)) => return Err(Status::resource_exhausted("no room")),
            (Fault::RefusesHalf, Some(number)) if number % 2 == 1 => {
                return Err(Status::resource_exhausted("no room"));
            }
            (Fault::IsSlow(time), Some(_)) | (Fault::StallsOnce(time), Some(0)) => {
                tokio::time::sleep(time).await;
            }
            _ => {}
        }
        let waits = request.wait.is_some_and(|wait| wait != prost_types::Duration::default());
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            if let Some(begun) = self.decide(&request.key, before_the_load) {
                return Ok(BeginResponse { result: Some(begun) });
            }
            if !waits {
                return Ok(BeginResponse { result: Some(Begun::InProgress(InProgress::default())) });
            }
            changed.await;
        }
    }

    /// `None`: somebody else holds the key.
    fn decide(&self, name: &str, before_the_load: bool) -> Option<Begun> {
        let (mut keys, fault) = (self.0.keys.lock().expect("not poisoned"), self.0.fault);
        let token = self.0.tokens.fetch_add(1, Ordering::SeqCst) as u64;
        let key = keys.entry(name.to_owned()).or_insert(Key { claims: 0, outcome: None });
        let claims = match (fault, &key.outcome) {
            (Fault::InventsOutcomes, None) if !before_the_load => {
                return Some(Begun::Completed(Completed {
                    outcome: Some("?".into()),
                    ..Completed::default()
                }));
            }
            (Fault::ClaimsTwice, None) => key.claims < 2,
            (Fault::ForgetsOutcomes, Some(_)) => true,
            (_, outcome) => outcome.is_none() && key.claims == 0,
        };
        if claims {
            key.claims += 1;
            return Some(Begun::Claim(Claim { fencing_token: token, ..Claim::default() }));
        }
        let (fencing_token, outcome) = key.outcome.clone()?;
        let outcome = if fault == Fault::TellsOtherBytes { altered(&outcome) } else { outcome };
        Some(Begun::Completed(Completed { outcome: Some(outcome), fencing_token, ..Completed::default() }))
    }

    fn answer_complete(&self, request: v1::CompleteRequest) -> Result<CompleteResponse, Status> {
        let unheard = match self.0.fault {
            Fault::FailsToComplete(unheard)
                if request.fencing_token.is_multiple_of(2) && !is_before_the_load(&request.key) =>
            {
                Some(unheard)
            }
            _ => None,
        };
        let mut keys = self.0.keys.lock().expect("not poisoned");
        if let (Some(key), Some(outcome)) = (keys.get_mut(&request.key), request.outcome) {
            match unheard {
                None | Some(Unheard::Stored) => key.outcome = Some((request.fencing_token, outcome)),
                Some(Unheard::OtherBytes) => key.outcome = Some((request.fencing_token, altered(&outcome))),
                Some(Unheard::Released) => key.claims = 0,
                Some(Unheard::Nothing) => {}
            }
        }
        self.0.changed.notify_waiters();
        match unheard {
            None => Ok(CompleteResponse::default()),
            Some(_) => Err(Status::unavailable("no answer")),
        }
    }

    async fn answer(&self, call: Call) -> Answer {
        match call {
            Call::Begin(request) => self.answer_begin(request).await.map_or_else(refused, Answer::Begin),
            Call::Complete(request) => self.answer_complete(request).map_or_else(refused, Answer::Complete),
            other => panic!("nobody sends this: {other:?}"),
        }
    }
}

/// Whether the load completes this key before it begins, to replay it.
fn is_before_the_load(key: &str) -> bool {
    key.contains("-replayed-")
}

#[allow(clippy::needless_pass_by_value)] // As `map_or_else` hands it on.
fn refused(status: Status) -> Answer {
    let message = status.message().to_owned();
    Answer::Error(tonic_types::pb::Status { code: status.code() as i32, message, details: Vec::new() })
}

fn altered(outcome: &Outcome) -> Outcome {
    let mut bytes = outcome.response_bytes().expect("a response").to_vec();
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    Outcome::response(bytes)
}

fn unanswered<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("nobody calls this"))
}

#[tonic::async_trait]
impl IdempotencyService for Api {
    type WatchStream = UnboundedReceiverStream<Result<v1::WatchResponse, Status>>;
    type SessionStream = UnboundedReceiverStream<Result<SessionResponse, Status>>;

    async fn begin(&self, request: Request<v1::BeginRequest>) -> Result<Response<BeginResponse>, Status> {
        self.answer_begin(request.into_inner()).await.map(Response::new)
    }

    async fn complete(
        &self,
        request: Request<v1::CompleteRequest>,
    ) -> Result<Response<CompleteResponse>, Status> {
        self.answer_complete(request.into_inner()).map(Response::new)
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        unanswered()
    }

    async fn release(&self, _: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        unanswered()
    }

    async fn lookup(&self, _: Request<v1::LookupRequest>) -> Result<Response<v1::LookupResponse>, Status> {
        unanswered()
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        unanswered()
    }

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        self.0.sessions.fetch_add(1, Ordering::SeqCst);
        let (answers, stream) = mpsc::unbounded_channel();
        let (api, mut calls) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            let mut left = if api.0.fault == Fault::EndsSessions { SHORT_SESSION } else { usize::MAX };
            while left > 0
                && let Ok(Some(SessionRequest { id, call: Some(call), .. })) = calls.message().await
            {
                left -= 1;
                if matches!(call, Call::Cancel(_)) {
                    continue;
                }
                let (api, answers) = (api.clone(), answers.clone());
                tokio::spawn(async move {
                    let answer = Some(api.answer(call).await);
                    // The caller may be gone.
                    let _ = answers.send(Ok(SessionResponse { id, answer }));
                });
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(stream)))
    }
}
