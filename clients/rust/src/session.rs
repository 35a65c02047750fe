//! Many calls on one stream, for who has so many that their cost shows: a fifth of that of as many unary ones.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::client::wire;
use crate::error::Refusal;
use crate::transport::{ANSWER_MARGIN, Stub};
use crate::v1::begin_response::Result as Begun;
use crate::v1::lookup_response::Record;
use crate::v1::session_request::Call;
use crate::v1::session_response::Answer;
use crate::v1::{
    BeginRequest, CancelCall, CompleteRequest, CompleteResponse, LookupRequest, ReleaseRequest, RenewRequest,
    RenewResponse, SessionRequest, SessionResponse,
};

/// How many calls wait to be sent where a connection takes none; more wait for their turn before that.
const QUEUE: usize = 256;

/// A stream that carries calls, answered as they finish. It is shared by reference: each call is a future of its own,
/// and one that is dropped is taken back, at the server too. (A claim that was on its way by then lives until it lapses.)
///
/// Each call is sent once. One that fails without a reason of the server's may have been carried out, and can be sent
/// again with the same arguments: in a session opened anew, if this one is no longer [open](Session::is_open). Sessions
/// end when their server does, when it wants its connections to move on, and when the caller's token expires.
///
/// ```no_run
/// # async fn example(request: onced_client::v1::BeginRequest) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// let client = onced_client::Client::connect("10.0.0.1:7411")?;
/// let session = onced_client::Session::open(client.connect_to(0).await?, Duration::from_secs(10)).await?;
/// let begun = session.begin(request).await?;
/// # Ok(())
/// # }
/// ```
///
/// Dropped, it ends. That releases nothing: claims live on until they lapse.
#[derive(Debug)]
pub struct Session {
    calls: mpsc::UnboundedSender<Queued>,
    /// Bounds what waits to be sent.
    turns: Arc<Semaphore>,
    open: Arc<Mutex<Open>>,
    next_id: AtomicU64,
    timeout: Duration,
    reader: JoinHandle<()>,
}

/// A message, and its turn until it is sent. A cancel needs none: there is one at most for each call that had one.
#[derive(Debug)]
struct Queued(SessionRequest, Option<OwnedSemaphorePermit>);

/// The calls that are not answered; or why there can be none.
#[derive(Debug)]
enum Open {
    Calls(HashMap<u64, oneshot::Sender<Answer>>),
    Ended(Refusal),
}

impl Session {
    /// Opens a session on a connection of [`Client::connect_to`](crate::Client::connect_to). Opening it, and each call,
    /// may take as long as `timeout`, waits that calls ask for included.
    ///
    /// # Errors
    /// What the server refused, or that it does not answer.
    pub async fn open(mut stub: Stub, timeout: Duration) -> Result<Self, Refusal> {
        let (calls, queued) = mpsc::unbounded_channel();
        let sent = UnboundedReceiverStream::new(queued).map(|Queued(message, _turn)| message);
        let answers = match tokio::time::timeout(timeout, stub.session(sent)).await {
            Ok(opened) => opened.map_err(|status| Refusal::of(&status))?.into_inner(),
            Err(_) => return Err(no_answer(timeout)),
        };
        let open = Arc::new(Mutex::new(Open::Calls(HashMap::new())));
        let reader = tokio::spawn(read(answers, Arc::clone(&open)));
        let turns = Arc::new(Semaphore::new(QUEUE));
        Ok(Self { calls, turns, open, next_id: AtomicU64::new(1), timeout, reader })
    }

    /// Whether it carries calls. Once it does not, it never will again.
    pub fn is_open(&self) -> bool {
        matches!(*lock(&self.open), Open::Calls(_))
    }

    /// Claims a key, or tells what became of it. A server may end the wait sooner than asked for.
    ///
    /// # Errors
    /// What the server refused, or that there is no answer. Then call again with the same request id.
    pub async fn begin(&self, request: BeginRequest) -> Result<Begun, Refusal> {
        match self.call(Call::Begin(request)).await? {
            Answer::Begin(answer) => answer.result.ok_or_else(|| unknown("Begin")),
            _ => Err(unknown("Begin")),
        }
    }

    /// Stores the outcome of a claimed key.
    ///
    /// # Errors
    /// What the server refused, or that there is no answer: then the outcome may be stored or not. Call again, or let
    /// the claim lapse; never release it.
    pub async fn complete(&self, request: CompleteRequest) -> Result<CompleteResponse, Refusal> {
        match self.call(Call::Complete(request)).await? {
            Answer::Complete(answer) => Ok(answer),
            _ => Err(unknown("Complete")),
        }
    }

    /// Keeps a claim alive, and saves a checkpoint if the request has one.
    ///
    /// # Errors
    /// What the server refused, or that there is no answer.
    pub async fn renew(&self, request: RenewRequest) -> Result<RenewResponse, Refusal> {
        match self.call(Call::Renew(request)).await? {
            Answer::Renew(answer) => Ok(answer),
            _ => Err(unknown("Renew")),
        }
    }

    /// Gives a claim back without an outcome. Never after a Complete was sent.
    ///
    /// # Errors
    /// What the server refused, or that there is no answer: then call again, or let the claim lapse.
    pub async fn release(&self, request: ReleaseRequest) -> Result<(), Refusal> {
        match self.call(Call::Release(request)).await? {
            Answer::Release(_) => Ok(()),
            _ => Err(unknown("Release")),
        }
    }

    /// Reads what is known of a key. A server may end the wait sooner than asked for.
    ///
    /// # Errors
    /// What the server refused (`RecordNotFound` if there is no record), or that there is no answer.
    pub async fn lookup(&self, request: LookupRequest) -> Result<Record, Refusal> {
        match self.call(Call::Lookup(request)).await? {
            Answer::Lookup(answer) => answer.record.ok_or_else(|| unknown("Lookup")),
            _ => Err(unknown("Lookup")),
        }
    }

    async fn call(&self, call: Call) -> Result<Answer, Refusal> {
        // The server keeps the time. One that hangs does not.
        let within = self.timeout.saturating_add(ANSWER_MARGIN);
        tokio::time::timeout(within, self.answer(call)).await.unwrap_or_else(|_| Err(no_answer(self.timeout)))
    }

    /// Sends a call, and waits for its answer. Dropped before that, it is taken back.
    async fn answer(&self, call: Call) -> Result<Answer, Refusal> {
        // The semaphore is never closed.
        let turn = Arc::clone(&self.turns).acquire_owned().await.ok();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answered) = oneshot::channel();
        match &mut *lock(&self.open) {
            Open::Calls(calls) => drop(calls.insert(id, sender)),
            Open::Ended(why) => return Err(why.clone()),
        }
        let mut pending = Pending { session: self, id, answered: false };
        let message = SessionRequest { id, timeout: Some(wire(self.timeout)), call: Some(call) };
        // Once it has ended there is nobody to take the message: the reader then says why.
        let _ = self.calls.send(Queued(message, turn));
        let answer = answered.await;
        pending.answered = true;
        match answer {
            Ok(Answer::Error(status)) => Err(Refusal::of(&from_rpc(status))),
            Ok(answer) => Ok(answer),
            Err(_) => Err(match &*lock(&self.open) {
                Open::Ended(why) => why.clone(),
                Open::Calls(_) => Refusal::of(&Status::internal("an answer was dropped")),
            }),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A call that waits for its answer.
struct Pending<'a> {
    session: &'a Session,
    id: u64,
    answered: bool,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        if let Open::Calls(calls) = &mut *lock(&self.session.open) {
            calls.remove(&self.id);
        }
        let cancel = SessionRequest { id: self.id, timeout: None, call: Some(Call::Cancel(CancelCall {})) };
        let _ = self.session.calls.send(Queued(cancel, None));
    }
}

/// Hands out answers until the session ends, and tells all who wait then why it did.
async fn read(mut answers: Streaming<SessionResponse>, open: Arc<Mutex<Open>>) {
    let ended = loop {
        match answers.message().await {
            Ok(Some(SessionResponse { id, answer: Some(answer) })) => {
                if let Open::Calls(calls) = &mut *lock(&open)
                    && let Some(caller) = calls.remove(&id)
                {
                    // A caller that has left by now wants no answer.
                    let _ = caller.send(answer);
                }
            }
            // Of a kind that is newer than this client: the call runs into its timeout.
            Ok(Some(SessionResponse { answer: None, .. })) => {}
            Ok(None) => break Status::unavailable("the server ended the session"),
            Err(status) => break status,
        }
    };
    *lock(&open) = Open::Ended(Refusal::of(&ended));
}

/// The status that a unary call would have ended with.
fn from_rpc(status: tonic_types::pb::Status) -> Status {
    let details = status.encode_to_vec();
    Status::with_details(Code::from(status.code), status.message, details.into())
}

fn no_answer(within: Duration) -> Refusal {
    Refusal::of(&Status::deadline_exceeded(format!("no answer within {within:?}")))
}

fn unknown(call: &'static str) -> Refusal {
    Refusal::of(&Status::internal(crate::Error::answer_unknown(call).to_string()))
}

/// Nothing that holds it panics.
fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}
