//! Session: many calls on one stream, through the same layers as unary ones, answered as they finish.
//!
//! One task drives a session. It reads calls, polls all that are open, and hands each finished one to the
//! outgoing stream. Whether the client reads its answers or not, open calls go on, for a holder's Complete must
//! not wait for somebody's slow reading; what keeps a client from piling up answers is that each message it
//! sends takes a turn, free again when the answer has left, and that no message is read without one. A turn also
//! holds the bytes of the call, and then those of its answer, of the connection's budget: an answer for which there
//! is no room is refused in its place, and a session that sends more than there is room for is closed.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use futures_util::future::{AbortHandle, Abortable, BoxFuture};
use futures_util::stream::{FuturesUnordered, StreamExt};
use onced_client::v1::{self, ErrorReason, session_request, session_response};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tower::Service as _;

use super::budget::{Budget, Hold};
use super::call::{Answer, Call, Context, Places, Request};
use super::convert::request;
use super::failure::{Failure, Limit};
use super::layers::Stack;
use super::layers::edge::{Outbound, undecodable};
use super::layers::inbound::Inflow;
use super::layers::limit::shed;
use crate::access::{Caller, Unproven};
use crate::clock::{Clock, Moment};
use crate::telemetry::metrics::{Present, SESSIONS};

/// The turns beyond those of open calls: for messages that are answered at once, with an error.
const SPARE_TURNS: usize = 16;
/// What an open call or an answer takes up, beside its own bytes. There is room in it for any error.
const TURN_BYTES: usize = 1 << 10;

/// What a session needs.
pub struct Session {
    pub stack: Stack,
    pub clock: Clock,
    /// The circumstances of the whole session, and so of each of its calls.
    pub context: Context,
    /// Who opened it, and so makes its calls.
    pub caller: Option<Caller>,
    /// When that is no longer known: it then closes after its open calls.
    pub expires: Option<Moment>,
    pub closing: CancellationToken,
    /// How many calls may be open at once.
    pub max_calls: usize,
    /// That of the connection.
    pub budget: Budget,
    /// What arrives of it.
    pub inflow: Inflow,
}

/// The turn of a message, until it is answered and the answer has left.
pub struct Turn {
    pub _place: OwnedSemaphorePermit,
    pub hold: Hold,
}

/// The outgoing stream of a session. Dropped, it ends the session, and with it every open call; a claim that
/// has not left is given back by its own drop.
pub struct Answers {
    finished: mpsc::UnboundedReceiver<Outgoing>,
    outbound: Outbound,
    ended: bool,
}

/// What leaves a session.
#[allow(clippy::large_enum_variant)] // All but the last one are answers.
pub enum Outgoing {
    /// A call is answered; the turn is kept until the answer leaves.
    Answer(u64, Result<Answer, Failure>, Turn),
    /// Everything is answered, and the session closes: for this cause, if not at the client's wish.
    End(Option<Failure>),
}

/// An open call; `None` once it is cancelled.
type OpenCall = BoxFuture<'static, (u64, Option<Result<Answer, Failure>>, Turn)>;

impl Session {
    /// Starts a session on the stream of its calls.
    pub fn open(self, incoming: Streaming<v1::SessionRequest>, outbound: Outbound) -> Answers {
        // Unbounded, as the turns bound it.
        let (finished, answers) = mpsc::unbounded_channel();
        let turns =
            Arc::new(Semaphore::new(self.max_calls.saturating_add(SPARE_TURNS).min(Semaphore::MAX_PERMITS)));
        let present = Present::new(metrics::gauge!(SESSIONS));
        let (place, open) = (None, HashMap::new());
        let driver = Driver { session: self, incoming, finished, turns, place, open, _present: present };
        tokio::spawn(driver.run());
        Answers::new(answers, outbound)
    }
}

/// Waits for a moment; for ever if there is none.
pub async fn reached(clock: &Clock, moment: Option<Moment>) {
    match moment {
        Some(moment) => tokio::time::sleep(moment.since(clock.now())).await,
        None => std::future::pending().await,
    }
}

struct Driver {
    session: Session,
    incoming: Streaming<v1::SessionRequest>,
    finished: mpsc::UnboundedSender<Outgoing>,
    turns: Arc<Semaphore>,
    /// The place of the next message to read.
    place: Option<OwnedSemaphorePermit>,
    /// The calls that are not answered, each with what cancels it.
    open: HashMap<u64, AbortHandle>,
    _present: Present,
}

impl Driver {
    async fn run(mut self) {
        let mut calls = FuturesUnordered::<OpenCall>::new();
        let client = self.finished.clone();
        let connection = self.session.closing.clone();
        let clock = self.session.clock.clone();
        let mut gone = std::pin::pin!(client.closed());
        let mut cancelled = std::pin::pin!(connection.cancelled());
        let mut deadline = std::pin::pin!(reached(&clock, self.session.context.deadline));
        let mut expired = std::pin::pin!(reached(&clock, self.session.expires));
        // Why no more calls are taken, once none are.
        let mut closing: Option<Option<Failure>> = None;
        let mut reading = true;
        while closing.is_none() || !calls.is_empty() {
            tokio::select! {
                biased;
                () = &mut gone => return,
                Some((id, result, turn)) = calls.next() => {
                    self.open.remove(&id);
                    self.answer(id, result.unwrap_or(Err(Failure::Cancelled)), turn);
                }
                () = &mut cancelled, if closing.is_none() => closing = Some(Some(Failure::DRAINING)),
                () = &mut deadline, if closing.is_none() => closing = Some(Some(Failure::DeadlineExceeded)),
                () = &mut expired, if closing.is_none() => {
                    closing = Some(Some(Failure::Unproven(Unproven::Expired)));
                }
                // While it closes, too: who sends more is told at once, not when the last open call has ended.
                read = self.read(), if reading => match (read, &closing) {
                    (Ok(Some((message, turn))), Some(Some(why))) => self.refuse(message, turn, why.clone()),
                    (Ok(Some((message, turn))), _) => self.take(message, turn, &calls),
                    (ended, _) => {
                        reading = false;
                        closing.get_or_insert(ended.err());
                    }
                },
            }
        }
        // The client may be gone: then there is nobody to tell.
        let _ = self.finished.send(Outgoing::End(closing.flatten()));
    }

    /// Reads the next message, when there is a turn for it. May be dropped and called again.
    async fn read(&mut self) -> Result<Option<(v1::SessionRequest, Turn)>, Failure> {
        if self.place.is_none() {
            // The semaphore is never closed.
            self.place = Arc::clone(&self.turns).acquire_owned().await.ok();
        }
        let message = self.incoming.message().await;
        let inflow = &self.session.inflow;
        let message = message.map_err(|status| inflow.refused().unwrap_or_else(|| undecodable(&status)))?;
        let (Some(message), Some(place)) = (message, self.place.take()) else { return Ok(None) };
        let mut hold = inflow.take();
        hold.resize(TURN_BYTES + message.encoded_len())?;
        Ok(Some((message, Turn { _place: place, hold })))
    }

    /// Opens a call, cancels one, or answers at once that neither can be.
    fn take(&mut self, message: v1::SessionRequest, turn: Turn, calls: &FuturesUnordered<OpenCall>) {
        use session_request::Call as Sent;
        let v1::SessionRequest { id, timeout, call } = message;
        let request: Request = match call {
            Some(Sent::Begin(request)) => request.into(),
            Some(Sent::Complete(request)) => request.into(),
            Some(Sent::Renew(request)) => request.into(),
            Some(Sent::Release(request)) => request.into(),
            Some(Sent::Lookup(request)) => request.into(),
            Some(Sent::Cancel(v1::CancelCall {})) => return self.cancel(id),
            None => {
                let limit = "must be a call that this server knows";
                let failure = Failure::invalid(ErrorReason::CallRequired, "call", limit, "none");
                return self.answer(id, Err(failure), turn);
            }
        };
        match self.context(id, timeout) {
            Ok(context) => {
                let (caller, budget) = (self.session.caller.clone(), self.session.budget.clone());
                let call = Call { request, context, caller, budget, places: Places::default() };
                calls.push(self.start(id, call, turn));
            }
            Err(failure) => self.answer(id, Err(failure), turn),
        }
    }

    /// Opens no call any more; but those that are open can be cancelled.
    fn refuse(&self, message: v1::SessionRequest, turn: Turn, why: Failure) {
        match message.call {
            Some(session_request::Call::Cancel(v1::CancelCall {})) => self.cancel(message.id),
            Some(_) | None => self.answer(message.id, Err(why), turn),
        }
    }

    /// A call that is not open has been answered: the cancel came too late, and has no answer.
    fn cancel(&self, id: u64) {
        if let Some(call) = self.open.get(&id) {
            call.abort();
        }
    }

    /// Whether another call may be opened, and its circumstances.
    fn context(&self, id: u64, timeout: Option<prost_types::Duration>) -> Result<Context, Failure> {
        if self.open.contains_key(&id) {
            let limit = "must differ from the ids of all open calls";
            return Err(Failure::invalid(ErrorReason::CallIdInUse, "id", limit, id.to_string()));
        }
        if self.open.len() >= self.session.max_calls {
            return Err(shed(Limit::Session(self.session.max_calls)));
        }
        let timeout = request::timeout(timeout)?;
        let arrived = self.session.clock.now();
        let deadline = timeout.map(|timeout| arrived + timeout);
        let earliest = [deadline, self.session.context.deadline].into_iter().flatten().min();
        Ok(Context { arrived, deadline: earliest, ..self.session.context })
    }

    fn start(&mut self, id: u64, call: Call, turn: Turn) -> OpenCall {
        let (cancel, cancelled) = AbortHandle::new_pair();
        self.open.insert(id, cancel);
        let answering = Abortable::new(self.session.stack.call(call), cancelled);
        Box::pin(async move { (id, answering.await.ok(), turn) })
    }

    fn answer(&self, id: u64, result: Result<Answer, Failure>, mut turn: Turn) {
        let bytes = result.as_ref().map_or(0, |answer| answer.response.encoded_len());
        let result = turn.hold.resize(TURN_BYTES + bytes).and(result);
        // The client may be gone: the answer is dropped, and a claim in it given back.
        let _ = self.finished.send(Outgoing::Answer(id, result, turn));
    }
}

impl Answers {
    /// A stream of what is finished.
    pub fn new(finished: mpsc::UnboundedReceiver<Outgoing>, outbound: Outbound) -> Self {
        Self { finished, outbound, ended: false }
    }
}

impl futures_util::Stream for Answers {
    type Item = Result<v1::SessionResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let Poll::Ready(outgoing) = self.finished.poll_recv(context) else { return Poll::Pending };
        let failure = match outgoing {
            Some(Outgoing::Answer(id, result, turn)) => {
                self.outbound.add(turn.hold);
                return Poll::Ready(Some(Ok(message(id, result))));
            }
            Some(Outgoing::End(None)) => None,
            Some(Outgoing::End(Some(failure))) => Some(failure),
            None => Some(Failure::Internal("the session broke off")),
        };
        self.ended = true;
        Poll::Ready(failure.map(|failure| Err(failure.to_status())))
    }
}

/// The message that leaves now. A claim in it counts as delivered from here on: the encoder takes the message
/// and may send it at once. What has not been asked for by then is dropped with the stream, and its claim given
/// back.
fn message(id: u64, result: Result<Answer, Failure>) -> v1::SessionResponse {
    let answer = match result {
        Ok(answer) => {
            let (answer, claim) = answer.into_session();
            if let Some(mut claim) = claim {
                claim.delivered();
            }
            answer
        }
        Err(failure) => session_response::Answer::Error(failure.to_rpc_status()),
    };
    v1::SessionResponse { id, answer: Some(answer) }
}
