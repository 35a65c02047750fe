//! The session that a connection gets by itself once it has many calls. It carries attempts of calls, and whoever makes
//! them does not notice: where it does not answer, the same attempt goes on as a unary call.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::stream::{Stream, Turn};
use super::{from_rpc, unreadable};
use crate::clock::{Clock, Moment};
use crate::error::DOMAIN;
use crate::server::Stub;
use crate::v1::session_request::Call;
use crate::v1::session_response::Answer;
use crate::v1::{
    BeginRequest, BeginResponse, CompleteRequest, CompleteResponse, DeleteRequest, DeleteResponse,
    ListRequest, ListResponse, LookupRequest, LookupResponse, ReleaseRequest, ReleaseResponse, RenewRequest,
    RenewResponse, ResolveRequest, ResolveResponse,
};

/// How many calls are to be under way for a session to be opened.
const MANY: usize = 16;
/// The server's own limit of that, by its name.
const FULL: &str = "max_session_calls";
/// How many calls of a session may be open; and, where a connection takes none, wait to be sent.
const MAX_OPEN: usize = 512;
/// The largest request that it carries: one that takes long holds up all behind it.
const LARGEST: usize = 64 << 10;
/// How long it may take to open.
const OPENING: Duration = Duration::from_secs(10);
/// How long to do without one where none could be opened, or where they end at once.
const PAUSE: Duration = Duration::from_secs(60);
/// A session that lived for less ended at once; so many of them in a row are no accident.
const SHORT: Duration = Duration::from_secs(1);
const SHORT_ONES: u32 = 3;
/// How long it may carry nothing, and how often that is looked at.
const IDLE: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_secs(1);
/// How long a server may take to end its side after the client's.
const LINGER: Duration = Duration::from_secs(5);

/// A request, as a session carries it, if it can.
pub(crate) trait Carried: prost::Message + Clone {
    type Answer;

    fn into_call(self) -> Option<Call> {
        None
    }

    fn answer(_: Answer) -> Option<Self::Answer> {
        None
    }
}

macro_rules! carried {
    ($($call:ident: $request:ident, $answer:ident;)*) => {$(
        impl Carried for $request {
            type Answer = $answer;

            fn into_call(self) -> Option<Call> {
                Some(Call::$call(self))
            }

            fn answer(answer: Answer) -> Option<$answer> {
                match answer {
                    Answer::$call(answer) => Some(answer),
                    _ => None,
                }
            }
        }
    )*};
}

carried! {
    Begin: BeginRequest, BeginResponse;
    Complete: CompleteRequest, CompleteResponse;
    Renew: RenewRequest, RenewResponse;
    Release: ReleaseRequest, ReleaseResponse;
    Lookup: LookupRequest, LookupResponse;
}

impl Carried for ListRequest {
    type Answer = ListResponse;
}

impl Carried for ResolveRequest {
    type Answer = ResolveResponse;
}

impl Carried for DeleteRequest {
    type Answer = DeleteResponse;
}

/// The sessions of a connection, one at a time.
pub(crate) struct Sessions {
    under_way: AtomicUsize,
    state: Mutex<State>,
    clock: Clock,
}

#[derive(Default)]
struct State {
    /// The one that takes calls, and since when.
    current: Option<(Arc<Stream>, Moment)>,
    opening: bool,
    /// How many in a row have ended at once.
    short: u32,
    /// None is opened before.
    paused_until: Moment,
    /// None is opened any more.
    closed: bool,
}

/// A call of a connection, until this is dropped.
pub(crate) struct UnderWay<'a>(&'a Sessions);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Sessions {
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { under_way: AtomicUsize::new(0), state: Mutex::default(), clock })
    }

    /// Counts a call. If there are many, and no session, one is opened in the background.
    pub fn count(self: &Arc<Self>, stub: impl FnOnce() -> Stub) -> UnderWay<'_> {
        if self.under_way.fetch_add(1, Ordering::Relaxed) + 1 >= MANY {
            let mut state = self.lock();
            let none = state.current.is_none() && !state.opening && !state.closed;
            if none && state.paused_until <= self.clock.now() {
                state.opening = true;
                tokio::spawn(keep(Arc::downgrade(self), stub()));
            }
        }
        UnderWay(self)
    }

    /// A place in the session for a request, if there is one that takes it.
    pub fn place<Q: Carried>(&self, request: &Q) -> Option<Place<'_>> {
        let (stream, _) = self.lock().current.clone()?;
        if request.encoded_len() > LARGEST {
            return None;
        }
        let turn = stream.turn_now()?;
        let call = request.clone().into_call()?;
        Some(Place { sessions: self, stream, call, turn })
    }

    /// Opens no more sessions. One that stands ends with its last call.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.current = None;
    }

    fn opened(&self, stream: Stream) -> Weak<Stream> {
        let stream = Arc::new(stream);
        let mut state = self.lock();
        state.opening = false;
        if !state.closed {
            state.current = Some((Arc::clone(&stream), self.clock.now()));
        }
        Arc::downgrade(&stream)
    }

    fn not_opened(&self, why: &Status) {
        // A server that is away now may soon be back. What a connection meets has a source.
        let is_away = why.code() == Code::Unavailable || std::error::Error::source(why).is_some();
        let pause = if is_away { SHORT } else { PAUSE };
        let mut state = self.lock();
        state.opening = false;
        state.paused_until = self.clock.now() + pause;
    }

    /// A session takes no more calls, and ends with its last one.
    fn retire(&self, stream: &Arc<Stream>) {
        let mut state = self.lock();
        let now = self.clock.now();
        let Some((_, opened)) = state.current.take_if(|(current, _)| Arc::ptr_eq(current, stream)) else {
            return;
        };
        state.short = if now.since(opened) < SHORT { state.short + 1 } else { 0 };
        if state.short == SHORT_ONES {
            state.short = 0;
            state.paused_until = now + PAUSE;
        }
    }

    /// Nothing that holds it panics.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a call in a session came to.
pub(crate) enum Ended<A> {
    Answered(Result<A, Status>),
    /// It has no answer in time.
    Silent,
    /// It is to be made again: the stream ended first, or the session refused it.
    Again(Option<Status>),
}

/// A place in a session.
pub(crate) struct Place<'a> {
    sessions: &'a Sessions,
    stream: Arc<Stream>,
    call: Call,
    turn: Turn,
}

impl Place<'_> {
    /// Makes the call, which may take so long, as the server keeps the time, and not longer than `within`. Dropped before
    /// it is answered, it is taken back.
    pub async fn call<Q: Carried>(self, timeout: Duration, within: Duration) -> Ended<Q::Answer> {
        let Self { sessions, stream, call, turn } = self;
        let heard = stream.heard();
        // A place is one of `MAX_OPEN` until its call has been sent, and until it is answered.
        let answer = stream.answer(call, timeout, Some(Arc::clone(&turn)));
        let Ok(answer) = tokio::time::timeout(within, answer).await else {
            // Not even that the time is over: who is at the other end of the connection may have lost its own.
            if stream.heard() == heard {
                sessions.retire(&stream);
            }
            return Ended::Silent;
        };
        match answer {
            Ok(Some(Answer::Error(status))) => {
                let status = from_rpc(status);
                match of_session(&status) {
                    // As by the client's own clock, which is a little late.
                    None if status.code() == Code::DeadlineExceeded => Ended::Silent,
                    None => Ended::Answered(Err(status)),
                    Some(OfSession::Full) => Ended::Again(Some(status)),
                    Some(OfSession::Ends) => {
                        sessions.retire(&stream);
                        Ended::Again(Some(status))
                    }
                }
            }
            Ok(answer) => Ended::Answered(answer.and_then(Q::answer).ok_or_else(|| unreadable("Session"))),
            Err(_) => Ended::Again(None),
        }
    }
}

/// What an answer says of the session, and not of the call.
enum OfSession {
    /// It ends: its server goes away, or does not know any more who has opened it.
    Ends,
    /// It takes no more calls, for as long as so many are open.
    Full,
}

fn of_session(status: &Status) -> Option<OfSession> {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    match info.reason.as_str() {
        "DRAINING" => Some(OfSession::Ends),
        reason if reason.starts_with("CREDENTIALS") => Some(OfSession::Ends),
        "OVERLOADED" if info.metadata.get("limit").is_some_and(|limit| limit == FULL) => {
            Some(OfSession::Full)
        }
        _ => None,
    }
}

/// Opens a session, and reads its answers until it ends. It is ended when it was idle, and when nobody is left who
/// could call.
async fn keep(sessions: Weak<Sessions>, stub: Stub) {
    let opened = tokio::time::timeout(OPENING, Stream::open(stub, MAX_OPEN)).await;
    let opened = opened.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
    let Some(of) = sessions.upgrade() else { return };
    let clock = of.clock.clone();
    let (stream, reader) = match opened {
        Ok((stream, reader)) => (of.opened(stream), reader),
        Err(error) => {
            tracing::debug!(%error, "no session could be opened, so calls are unary");
            return of.not_opened(&error);
        }
    };
    drop(of);
    let mut reading = pin!(reader.run());
    let (mut used, mut calls) = (clock.now(), None);
    loop {
        let ended = tokio::select! {
            biased;
            () = &mut reading => true,
            () = tokio::time::sleep(TICK) => false,
        };
        let (of, stream) = (sessions.upgrade(), stream.upgrade());
        if let (Some(of), Some(stream)) = (&of, &stream) {
            let before = std::mem::replace(&mut calls, stream.calls_if_idle());
            if calls.is_none() || calls != before {
                used = clock.now();
            }
            if ended || clock.now().since(used) >= IDLE {
                of.retire(stream);
            }
        }
        if ended {
            return;
        }
        if stream.is_none() {
            break;
        }
    }
    // Nobody can call any more. The server ends it now, or never.
    let _ = tokio::time::timeout(LINGER, reading).await;
}
