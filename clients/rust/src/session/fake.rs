//! A server whose unary calls are answered at once, and whose sessions are answered by the test.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::v1::begin_response::Result as Begun;
use crate::v1::idempotency_service_server::{IdempotencyService, IdempotencyServiceServer};
use crate::v1::session_request::Call;
use crate::v1::session_response::Answer;
use crate::v1::{self, BeginRequest, BeginResponse, Claim, SessionRequest, SessionResponse};

/// Far longer than anything takes here.
pub const HANGS: Duration = Duration::from_secs(20);
/// The token of claims that were given to a unary call.
pub const UNARY: u64 = 1;

pub struct Fake {
    pub address: SocketAddr,
    /// How many Begins wait in unary calls: those of keys that begin so.
    pub waiting: Arc<AtomicUsize>,
    /// The sessions that were opened.
    sessions: mpsc::UnboundedReceiver<Opened>,
    refuses: Refuses,
    /// Its own, so that it can be killed.
    runtime: Option<Runtime>,
}

/// A session, as its server has it. It ends when this is dropped.
pub struct Opened {
    calls: Streaming<SessionRequest>,
    answers: mpsc::UnboundedSender<Result<SessionResponse, Status>>,
}

/// Who is to be told that a session was refused, and how it is.
type Refuses = Arc<Mutex<Option<(oneshot::Sender<()>, Status)>>>;

#[derive(Clone)]
struct Api {
    waiting: Arc<AtomicUsize>,
    refuses: Refuses,
    sessions: mpsc::UnboundedSender<Opened>,
}

struct Waits(Arc<AtomicUsize>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fake {
    pub fn start() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (opened, sessions) = mpsc::unbounded_channel();
        let (waiting, refuses) = (Arc::default(), Refuses::default());
        let api = Api { waiting: Arc::clone(&waiting), refuses: Arc::clone(&refuses), sessions: opened };
        runtime.spawn(async move {
            let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener).unwrap());
            let service = IdempotencyServiceServer::new(api);
            Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        Self { address, waiting, sessions, refuses, runtime: Some(runtime) }
    }

    /// Refuses the next session that is to be opened, and tells when that is.
    pub fn refuse_one(&self, by: Status) -> oneshot::Receiver<()> {
        let (tells, refused) = oneshot::channel();
        *self.refuses.lock().unwrap() = Some((tells, by));
        refused
    }

    /// The next session that is opened.
    pub async fn session(&mut self) -> Opened {
        tokio::time::timeout(HANGS, self.sessions.recv()).await.expect("a session").unwrap()
    }

    /// Whether none is opened for a while.
    pub async fn opens_none(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(100), self.sessions.recv()).await.is_err()
    }

    /// Breaks all of its connections.
    pub fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Opened {
    /// The next message; none once the client has ended the stream.
    pub async fn next(&mut self) -> Option<SessionRequest> {
        tokio::time::timeout(HANGS, self.calls.message()).await.expect("a message").unwrap()
    }

    /// The id of the next message, which is a Begin.
    pub async fn next_begin(&mut self) -> u64 {
        let message = self.next().await.unwrap();
        assert!(matches!(message.call, Some(Call::Begin(_))), "{message:?}");
        message.id
    }

    /// Whether the client says nothing for a while.
    pub async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(100), self.calls.message()).await.is_err()
    }

    pub fn answer(&self, id: u64, answer: Option<Answer>) {
        self.answers.send(Ok(SessionResponse { id, answer })).unwrap();
    }

    pub fn fail(&self, status: Status) {
        self.answers.send(Err(status)).unwrap();
    }
}

/// A claim, as it is answered.
pub fn claim(fencing_token: u64) -> BeginResponse {
    BeginResponse { result: Some(Begun::Claim(Claim { fencing_token, ..Claim::default() })) }
}

fn unanswered<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("nobody calls this"))
}

#[tonic::async_trait]
impl IdempotencyService for Api {
    type WatchStream = UnboundedReceiverStream<Result<v1::WatchResponse, Status>>;
    type SessionStream = UnboundedReceiverStream<Result<SessionResponse, Status>>;

    async fn begin(&self, request: Request<BeginRequest>) -> Result<Response<BeginResponse>, Status> {
        if request.get_ref().key.starts_with("waits") {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let _waits = Waits(Arc::clone(&self.waiting));
            std::future::pending::<()>().await;
        }
        Ok(Response::new(claim(UNARY)))
    }

    async fn complete(
        &self,
        _: Request<v1::CompleteRequest>,
    ) -> Result<Response<v1::CompleteResponse>, Status> {
        unanswered()
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
        if let Some((refused, by)) = self.refuses.lock().unwrap().take() {
            let _ = refused.send(());
            return Err(by);
        }
        let (answers, stream) = mpsc::unbounded_channel();
        let opened = Opened { calls: request.into_inner(), answers };
        let _ = self.sessions.send(opened);
        Ok(Response::new(UnboundedReceiverStream::new(stream)))
    }
}
