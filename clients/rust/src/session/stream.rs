//! The stream of a session: calls go out with a number each, and answers come back by it, in any order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Status, Streaming};

use crate::client::wire;
use crate::error::Refusal;
use crate::server::Stub;
use crate::v1::session_request::Call;
use crate::v1::session_response::Answer;
use crate::v1::{CancelCall, SessionRequest, SessionResponse};

/// The side that calls. Dropped, it ends the stream, as far as the client is concerned.
#[derive(Debug)]
pub(super) struct Stream {
    calls: mpsc::UnboundedSender<Queued>,
    turns: Arc<Semaphore>,
    open: Arc<Mutex<Open>>,
    next_id: AtomicU64,
    heard: Arc<AtomicU64>,
}

/// The side that is answered.
pub(super) struct Reader {
    answers: Streaming<SessionResponse>,
    open: Arc<Mutex<Open>>,
    heard: Arc<AtomicU64>,
}

/// Bounds what waits to be sent: a message has its turn until it is.
pub(super) type Turn = Arc<OwnedSemaphorePermit>;

/// A message, and its turn. A cancel needs none: there is one at most for each call that had one.
#[derive(Debug)]
struct Queued(SessionRequest, Option<Turn>);

/// The calls that are not answered; or why there can be none.
#[derive(Debug)]
enum Open {
    Calls(HashMap<u64, oneshot::Sender<Option<Answer>>>),
    Ended(Refusal),
}

impl Stream {
    /// Opens a stream that has `turns` for what waits to be sent. It is answered for as long as its reader runs.
    pub async fn open(mut stub: Stub, turns: usize) -> Result<(Self, Reader), Status> {
        let (calls, queued) = mpsc::unbounded_channel();
        let sent = UnboundedReceiverStream::new(queued).map(|Queued(message, _turn)| message);
        let answers = stub.session(sent).await?.into_inner();
        let open = Arc::new(Mutex::new(Open::Calls(HashMap::new())));
        let heard = Arc::default();
        let reader = Reader { answers, open: Arc::clone(&open), heard: Arc::clone(&heard) };
        let turns = Arc::new(Semaphore::new(turns));
        Ok((Self { calls, turns, open, next_id: AtomicU64::new(1), heard }, reader))
    }

    /// Whether it carries calls. Once it does not, it never will again.
    pub fn is_open(&self) -> bool {
        matches!(*lock(&self.open), Open::Calls(_))
    }

    /// How much has come so far.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// How many calls it has had; none if some of them are open.
    pub fn calls_if_idle(&self) -> Option<u64> {
        match &*lock(&self.open) {
            Open::Calls(calls) if !calls.is_empty() => None,
            _ => Some(self.next_id.load(Ordering::Relaxed)),
        }
    }

    /// A turn, as soon as there is one.
    pub async fn turn(&self) -> Option<Turn> {
        // The semaphore is never closed.
        Arc::clone(&self.turns).acquire_owned().await.ok().map(Arc::new)
    }

    /// A turn, if there is one.
    pub fn turn_now(&self) -> Option<Turn> {
        Arc::clone(&self.turns).try_acquire_owned().ok().map(Arc::new)
    }

    /// Sends a call, and waits for its answer: none if that holds nothing known here. Dropped before that, it is taken
    /// back. Fails if the stream ends first.
    pub async fn answer(
        &self,
        call: Call,
        timeout: Duration,
        turn: Option<Turn>,
    ) -> Result<Option<Answer>, Refusal> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answered) = oneshot::channel();
        match &mut *lock(&self.open) {
            Open::Calls(calls) => drop(calls.insert(id, sender)),
            Open::Ended(why) => return Err(why.clone()),
        }
        let mut pending = Pending { stream: self, id, answered: false };
        let message = SessionRequest { id, timeout: Some(wire(timeout)), call: Some(call) };
        // Once it has ended there is nobody to take the message: the reader then says why.
        let _ = self.calls.send(Queued(message, turn));
        let answer = answered.await;
        pending.answered = true;
        answer.map_err(|_| match &*lock(&self.open) {
            Open::Ended(why) => why.clone(),
            Open::Calls(_) => Refusal::of(&Status::internal("an answer was dropped")),
        })
    }
}

/// A call that waits for its answer.
struct Pending<'a> {
    stream: &'a Stream,
    id: u64,
    answered: bool,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        if let Open::Calls(calls) = &mut *lock(&self.stream.open) {
            calls.remove(&self.id);
        }
        let cancel = SessionRequest { id: self.id, timeout: None, call: Some(Call::Cancel(CancelCall {})) };
        let _ = self.stream.calls.send(Queued(cancel, None));
    }
}

impl Reader {
    /// Hands out answers until the stream ends, and tells all who wait then why it did.
    pub async fn run(mut self) {
        let ended = loop {
            match self.answers.message().await {
                Ok(Some(SessionResponse { id, answer })) => {
                    self.heard.fetch_add(1, Ordering::Relaxed);
                    if let Open::Calls(calls) = &mut *lock(&self.open)
                        && let Some(caller) = calls.remove(&id)
                    {
                        // A caller that has left by now wants no answer.
                        let _ = caller.send(answer);
                    }
                }
                Ok(None) => break Status::unavailable("the server ended the session"),
                Err(status) => break status,
            }
        };
        self.end(&ended);
    }

    fn end(&self, ended: &Status) {
        let mut open = lock(&self.open);
        if matches!(*open, Open::Calls(_)) {
            *open = Open::Ended(Refusal::of(ended));
        }
    }
}

impl Drop for Reader {
    /// Without it nobody is answered any more.
    fn drop(&mut self) {
        self.end(&Status::unavailable("the session was dropped"));
    }
}

/// Nothing that holds it panics.
fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}
