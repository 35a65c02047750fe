//! Connections of callers to servers, over the simulated network.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use onced_client::v1::admin_service_client::AdminServiceClient;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use onced_client::v1::session_request::Call;
use onced_client::v1::{self, SessionRequest, SessionResponse, resolve_request, session_response};
use onced_history::{Answer, Fate, Resolution, Time};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Request;
use tonic::body::Body;
use tonic_types::Status;
use tower::util::BoxCloneSyncService;
use turmoil::net::TcpStream;

use crate::recorded;

/// Where servers listen.
pub const PORT: u16 = 7411;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

type Service = BoxCloneSyncService<http::Request<Body>, http::Response<hyper::body::Incoming>, hyper::Error>;

/// What a caller asks.
#[derive(Clone, Debug)]
pub enum Ask {
    Call(Call),
    Resolve(v1::ResolveRequest),
    Delete(v1::DeleteRequest),
}

/// What became of a call that was not answered, at the time that it takes: it may have been done, or was surely not.
pub type Failed = fn(Time) -> Fate;

impl Ask {
    /// The same, as a history has it.
    pub fn recorded(&self) -> onced_history::Call {
        match self {
            Ask::Call(call) => recorded::call(call),
            Ask::Resolve(request) => onced_history::Call::Resolve {
                token: request.fencing_token,
                resolution: match &request.resolution {
                    Some(resolve_request::Resolution::Outcome(outcome)) => {
                        let retention = request.retention.map(|it| it.try_into().expect("a sane time"));
                        Resolution::Outcome(recorded::outcome(Some(outcome)), retention)
                    }
                    Some(resolve_request::Resolution::Retry(_)) | None => Resolution::Retry,
                },
            },
            Ask::Delete(request) => {
                onced_history::Call::Delete { token: request.fencing_token, force: request.force }
            }
        }
    }
}

/// How calls travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Unary,
    Session,
}

/// The way to a server. Connects when there is no connection, and again when it was lost.
pub struct Line {
    server: String,
    way: Way,
    link: Option<Link>,
}

struct Link {
    connection: SendRequest<Body>,
    service: Service,
    session: Option<Session>,
}

impl Line {
    pub fn new(server: String, way: Way) -> Self {
        Self { server, way, link: None }
    }

    /// Connects anew for the next call.
    pub fn hang_up(&mut self) {
        self.link = None;
    }

    /// Makes a call. Dropped, it is cancelled.
    pub async fn call(&mut self, ask: &Ask, timeout: Duration) -> Result<Answer, Failed> {
        let (way, origin) = (self.way, self.origin());
        let link = self.link().await?;
        let service = link.service.clone();
        let told: Told = match ask.clone() {
            Ask::Call(call) if way == Way::Session => {
                link.session(origin).await.ok_or(Fate::NotApplied as Failed)?.call(call, timeout).await
            }
            Ask::Call(call) => {
                let client = IdempotencyServiceClient::with_origin(service, origin);
                told(unary(client, call, timeout).await.map(Some))
            }
            Ask::Resolve(request) => {
                let mut client = AdminServiceClient::with_origin(service, origin);
                told(client.resolve(timed(request, timeout)).await.map(|_| None))
            }
            Ask::Delete(request) => {
                let mut client = AdminServiceClient::with_origin(service, origin);
                told(client.delete(timed(request, timeout)).await.map(|_| None))
            }
        };
        match told {
            Some(Ok(None)) => Ok(Answer::Ok),
            Some(Ok(Some(answer))) => recorded::told(&Ok(answer)),
            Some(Err(status)) => recorded::told(&Err(status)),
            None => {
                self.hang_up();
                Err(Fate::Unknown)
            }
        }
    }

    /// Watches a key for so long, or until the watch ends. Dropped, it is cancelled.
    pub async fn watch(
        &mut self,
        request: v1::WatchRequest,
        timeout: Duration,
        mut told: impl FnMut(Answer),
    ) {
        let origin = self.origin();
        let Ok(link) = self.link().await else { return };
        let mut client = IdempotencyServiceClient::with_origin(link.service.clone(), origin);
        let Ok(states) = client.watch(timed(request, timeout)).await else { return };
        let mut states = states.into_inner();
        while let Some(answer) = recorded::next_of(&mut states).await {
            told(answer);
        }
    }

    fn origin(&self) -> http::Uri {
        format!("http://{}:{PORT}", self.server).parse().expect("an address")
    }

    async fn link(&mut self) -> Result<&mut Link, Failed> {
        if self.link.as_ref().is_some_and(|link| link.connection.is_closed()) {
            self.link = None;
        }
        match &mut self.link {
            Some(link) => Ok(link),
            none => {
                let connecting = tokio::time::timeout(CONNECT_TIMEOUT, connect(&self.server));
                Ok(none.insert(connecting.await.ok().flatten().ok_or(Fate::NotApplied as Failed)?))
            }
        }
    }
}

async fn connect(server: &str) -> Option<Link> {
    let stream = TcpStream::connect((server, PORT)).await.ok()?;
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new());
    let (connection, driver) = http.handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(driver);
    let sender = connection.clone();
    let service = Service::new(tower::service_fn(move |request| {
        let mut sender = sender.clone();
        async move { sender.send_request(request).await }
    }));
    Some(Link { connection, service, session: None })
}

impl Link {
    async fn session(&mut self, origin: http::Uri) -> Option<&mut Session> {
        self.session.take_if(|session| session.calls.is_closed());
        match &mut self.session {
            Some(session) => Some(session),
            none => Some(none.insert(Session::open(self.service.clone(), origin).await?)),
        }
    }
}

fn timed<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

async fn unary(
    mut client: IdempotencyServiceClient<Service>,
    call: Call,
    timeout: Duration,
) -> Result<session_response::Answer, tonic::Status> {
    use session_response::Answer;
    Ok(match call {
        Call::Begin(it) => Answer::Begin(client.begin(timed(it, timeout)).await?.into_inner()),
        Call::Complete(it) => Answer::Complete(client.complete(timed(it, timeout)).await?.into_inner()),
        Call::Renew(it) => Answer::Renew(client.renew(timed(it, timeout)).await?.into_inner()),
        Call::Release(it) => Answer::Release(client.release(timed(it, timeout)).await?.into_inner()),
        Call::Lookup(it) => Answer::Lookup(client.lookup(timed(it, timeout)).await?.into_inner()),
        Call::Cancel(_) => panic!("a unary call is cancelled by dropping it"),
    })
}

/// What a server said: an operator's call has no answer worth telling. `None`: the connection broke.
type Told = Option<Result<Option<session_response::Answer>, Status>>;

/// Every status of the server's own has details; the others are the connection's.
fn told(result: Result<Option<session_response::Answer>, tonic::Status>) -> Told {
    match result {
        Ok(answer) => Some(Ok(answer)),
        Err(status) => {
            let carried = Status::decode(status.details()).expect("details that are a google.rpc.Status");
            (!carried.details.is_empty()).then_some(Err(carried))
        }
    }
}

type Open = Arc<Mutex<BTreeMap<u64, oneshot::Sender<session_response::Answer>>>>;

/// Calls on one stream.
struct Session {
    calls: mpsc::UnboundedSender<SessionRequest>,
    open: Open,
    last_id: u64,
}

impl Session {
    async fn open(service: Service, origin: http::Uri) -> Option<Self> {
        let (calls, sent) = mpsc::unbounded_channel();
        let mut client = IdempotencyServiceClient::with_origin(service, origin);
        let opening = client.session(UnboundedReceiverStream::new(sent));
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, opening).await;
        let mut answers = opened.ok()?.ok()?.into_inner();
        let open: Open = Arc::new(Mutex::new(BTreeMap::new()));
        let waiting = Arc::clone(&open);
        tokio::spawn(async move {
            while let Ok(Some(SessionResponse { id, answer })) = answers.message().await {
                let waiter = waiting.lock().unwrap().remove(&id);
                if let Some(waiter) = waiter {
                    // Who asked may be gone.
                    let _ = waiter.send(answer.expect("an answer that holds something"));
                }
            }
            waiting.lock().unwrap().clear();
        });
        Some(Self { calls, open, last_id: 0 })
    }

    async fn call(&mut self, call: Call, timeout: Duration) -> Told {
        self.last_id += 1;
        let id = self.last_id;
        let (answer, answered) = oneshot::channel();
        self.open.lock().unwrap().insert(id, answer);
        let timeout = Some(timeout.try_into().expect("a short time"));
        let mut cancel = Cancel { calls: self.calls.clone(), id, answered: false };
        self.calls.send(SessionRequest { id, timeout, call: Some(call) }).ok()?;
        let answer = answered.await;
        cancel.answered = true;
        Some(match answer.ok()? {
            session_response::Answer::Error(status) => Err(status),
            answer => Ok(Some(answer)),
        })
    }
}

/// Cancels a call of a session that nobody waits for any more.
struct Cancel {
    calls: mpsc::UnboundedSender<SessionRequest>,
    id: u64,
    answered: bool,
}

impl Drop for Cancel {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let call = Some(Call::Cancel(v1::CancelCall {}));
        let _ = self.calls.send(SessionRequest { id: self.id, timeout: None, call });
    }
}
