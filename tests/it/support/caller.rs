//! One call, by either of the two ways: unary, or on a session.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use onced_client::v1::session_request::Call;
use onced_client::v1::session_response::Answer;
use onced_client::v1::{self, SessionRequest, SessionResponse};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Streaming};
use tonic_types::Status;

use super::server::{Connection, TestServer};

/// Makes calls. An error is the `google.rpc.Status` that either way carries.
#[tonic::async_trait]
pub trait Caller: Send + Sync {
    /// Makes a call, with or without a timeout that the server keeps.
    async fn call(&self, call: Call, timeout: Option<Duration>) -> Result<Answer, Status>;
}

macro_rules! typed {
    ($($name:ident: $variant:ident($request:ident) -> $response:ident;)*) => {
        impl dyn Caller + '_ {
            $(
                /// The call of this name, without a timeout.
                pub async fn $name(&self, request: v1::$request) -> Result<v1::$response, Status> {
                    match self.call(Call::$variant(request), None).await? {
                        Answer::$variant(response) => Ok(response),
                        other => panic!("an answer of another kind: {other:?}"),
                    }
                }
            )*
        }
    };
}

typed! {
    begin: Begin(BeginRequest) -> BeginResponse;
    complete: Complete(CompleteRequest) -> CompleteResponse;
    renew: Renew(RenewRequest) -> RenewResponse;
    release: Release(ReleaseRequest) -> ReleaseResponse;
    lookup: Lookup(LookupRequest) -> LookupResponse;
}

/// Calls the unary methods.
pub struct Unary(pub IdempotencyServiceClient<Connection>);

/// The status that a call carried in its details; without any if it is no server's, but of a broken connection.
pub fn rpc_status(status: &tonic::Status) -> Status {
    if status.details().is_empty() {
        let (code, message) = (status.code().into(), status.message().to_owned());
        return Status { code, message, details: Vec::new() };
    }
    let carried = Status::decode(status.details()).expect("details that are a google.rpc.Status");
    assert_eq!((carried.code, carried.message.as_str()), (status.code() as i32, status.message()));
    carried
}

#[tonic::async_trait]
impl Caller for Unary {
    async fn call(&self, call: Call, timeout: Option<Duration>) -> Result<Answer, Status> {
        let mut client = self.0.clone();
        let result = match call {
            Call::Begin(request) => {
                client.begin(timed(request, timeout)).await.map(|answer| Answer::Begin(answer.into_inner()))
            }
            Call::Complete(request) => client
                .complete(timed(request, timeout))
                .await
                .map(|answer| Answer::Complete(answer.into_inner())),
            Call::Renew(request) => {
                client.renew(timed(request, timeout)).await.map(|answer| Answer::Renew(answer.into_inner()))
            }
            Call::Release(request) => client
                .release(timed(request, timeout))
                .await
                .map(|answer| Answer::Release(answer.into_inner())),
            Call::Lookup(request) => {
                client.lookup(timed(request, timeout)).await.map(|answer| Answer::Lookup(answer.into_inner()))
            }
            Call::Cancel(_) => panic!("a unary call is cancelled by dropping it"),
        };
        result.map_err(|status| rpc_status(&status))
    }
}

/// A request with a timeout, or without.
pub fn timed<T>(message: T, timeout: Option<Duration>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    request
}

/// Calls on one session.
pub struct Session {
    calls: mpsc::UnboundedSender<SessionRequest>,
    open: Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>,
    next_id: AtomicU64,
}

impl Session {
    /// Opens a session on a connection of its own.
    pub async fn open(server: &TestServer) -> Self {
        let (calls, mut answers) = raw_session(server).await;
        let open = Arc::new(Mutex::new(HashMap::<u64, oneshot::Sender<Answer>>::new()));
        let waiting = Arc::clone(&open);
        tokio::spawn(async move {
            while let Ok(Some(SessionResponse { id, answer })) = answers.message().await {
                let waiter = waiting.lock().unwrap().remove(&id).expect("an answer to an open call");
                // Who asked may be gone.
                let _ = waiter.send(answer.expect("an answer that holds something"));
            }
            waiting.lock().unwrap().clear();
        });
        Self { calls, open, next_id: AtomicU64::new(1) }
    }
}

/// A session as it is: what is sent, and what comes back.
pub async fn raw_session(
    server: &TestServer,
) -> (mpsc::UnboundedSender<SessionRequest>, Streaming<SessionResponse>) {
    let (calls, sent) = mpsc::unbounded_channel();
    let answers = server.client().await.session(UnboundedReceiverStream::new(sent)).await.unwrap();
    (calls, answers.into_inner())
}

#[tonic::async_trait]
impl Caller for Session {
    async fn call(&self, call: Call, timeout: Option<Duration>) -> Result<Answer, Status> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let timeout = timeout.map(|timeout| timeout.try_into().unwrap());
        let (answer, answered) = oneshot::channel();
        self.open.lock().unwrap().insert(id, answer);
        self.calls.send(SessionRequest { id, timeout, call: Some(call) }).expect("an open session");
        match answered.await.expect("an answer before the session ends") {
            Answer::Error(status) => Err(status),
            answer => Ok(answer),
        }
    }
}
