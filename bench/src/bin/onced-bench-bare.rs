//! A server of onced's calls with nothing behind them but a hash map, on the same HTTP/2, allocator and number of threads:
//! what gRPC takes of a pair there. It checks nothing, ends nothing and writes nothing down.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use onced::generated::onced_v1::idempotency_service_server::{IdempotencyService, IdempotencyServiceServer};
use onced_client::v1::session_request::Call;
use onced_client::v1::session_response::Answer;
use onced_client::v1::{
    BeginRequest, BeginResponse, Claim, CompleteRequest, CompleteResponse, Completed, LookupRequest,
    LookupResponse, Outcome, ReleaseRequest, ReleaseResponse, RenewRequest, RenewResponse, SessionRequest,
    SessionResponse, WatchRequest, WatchResponse, begin_response, lookup_response,
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a stream, and a connection, may send before it is read: as onced has it.
const WINDOWS_BYTES: (u32, u32) = (2 << 20, 8 << 20);

type Answers<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone, Default)]
struct Bare {
    outcomes: Arc<Mutex<HashMap<String, Option<Outcome>>>>,
}

fn main() -> anyhow::Result<()> {
    // As many threads as a server of onced has by itself.
    let threads = std::thread::available_parallelism()?.get().div_ceil(2);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(serve())
}

/// Serves on a free port of loopback, which it prints as a server of onced does; never ends.
async fn serve() -> anyhow::Result<()> {
    let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into())?.with_nodelay(Some(true));
    println!("listening on {}", incoming.local_addr()?);
    println!("with a hash map and nothing else");
    let service = IdempotencyServiceServer::new(Bare::default());
    let (stream, connection) = WINDOWS_BYTES;
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(stream)
        .initial_connection_window_size(connection)
        .add_service(service);
    server.serve_with_incoming(incoming).await.context("cannot serve")
}

impl Bare {
    fn begin(&self) -> BeginResponse {
        let claim = Claim { fencing_token: 1, attempt: 1, ..Claim::default() };
        BeginResponse { result: Some(begin_response::Result::Claim(claim)) }
    }

    fn complete(&self, request: CompleteRequest) -> CompleteResponse {
        self.outcomes().insert(request.key, request.outcome);
        CompleteResponse { completed: Some(Completed::default()), repeated: false }
    }

    fn lookup(&self, request: &LookupRequest) -> LookupResponse {
        let outcome = self.outcomes().get(&request.key).cloned().flatten();
        let completed = Completed { outcome, ..Completed::default() };
        LookupResponse { record: Some(lookup_response::Record::Completed(completed)) }
    }

    fn answer(&self, call: Option<Call>) -> Option<Answer> {
        Some(match call? {
            Call::Begin(_) => Answer::Begin(self.begin()),
            Call::Complete(request) => Answer::Complete(self.complete(request)),
            Call::Lookup(request) => Answer::Lookup(self.lookup(&request)),
            Call::Renew(_) | Call::Release(_) | Call::Cancel(_) => return None,
        })
    }

    fn outcomes(&self) -> MutexGuard<'_, HashMap<String, Option<Outcome>>> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_use() -> Status {
    Status::unimplemented("a call of no use here")
}

#[tonic::async_trait]
impl IdempotencyService for Bare {
    type WatchStream = Answers<WatchResponse>;
    type SessionStream = Answers<SessionResponse>;

    async fn begin(&self, _: Request<BeginRequest>) -> Result<Response<BeginResponse>, Status> {
        Ok(Response::new(Bare::begin(self)))
    }

    async fn complete(
        &self,
        request: Request<CompleteRequest>,
    ) -> Result<Response<CompleteResponse>, Status> {
        Ok(Response::new(Bare::complete(self, request.into_inner())))
    }

    async fn lookup(&self, request: Request<LookupRequest>) -> Result<Response<LookupResponse>, Status> {
        Ok(Response::new(Bare::lookup(self, request.get_ref())))
    }

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let service = self.clone();
        let answers = request.into_inner().map(move |request| {
            let SessionRequest { id, call, .. } = request?;
            Ok(SessionResponse { id, answer: service.answer(call) })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        Err(no_use())
    }

    async fn release(&self, _: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        Err(no_use())
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(no_use())
    }
}
