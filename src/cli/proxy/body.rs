//! The bodies of requests and answers on their way through.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower::BoxError;

/// What is sent to the upstream, and to callers.
pub type Sent = UnsyncBoxBody<Bytes, BoxError>;

/// A body as it is sent.
pub fn boxed<B>(body: B) -> Sent
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// Whether a caller has not sent its body in time.
#[derive(Clone, Debug, Default)]
pub struct Late(Arc<AtomicBool>);

impl Late {
    /// Whether it is so.
    pub fn is_late(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The body of a request, which is to arrive in time.
pub struct Paced {
    body: Incoming,
    limit: Duration,
    /// Whether the limit is for all of it, or for each piece.
    whole: bool,
    timer: Option<Pin<Box<Sleep>>>,
    late: Late,
}

impl Paced {
    /// A body all of which, or else each piece, is to arrive within `limit`.
    pub fn new(body: Incoming, limit: Duration, whole: bool, late: Late) -> Self {
        Self { body, limit, whole, timer: None, late }
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            if !this.whole {
                this.timer = None;
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let limit = this.limit;
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(timer.as_mut().poll(context));
        this.late.0.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Err("the request did not arrive in time".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of the upstream's answer: what was read of it, then the rest as it comes.
#[derive(Debug, Default)]
pub struct Answer {
    head: Bytes,
    rest: Option<Rest>,
}

/// What comes of an answer, until it is given up.
#[derive(Debug)]
struct Rest {
    body: Incoming,
    given_up: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Rest {
    fn new(body: Incoming, give_up: CancellationToken) -> Self {
        Self { body, given_up: Box::pin(give_up.cancelled_owned()) }
    }
}

impl Answer {
    /// An answer that is handed on as it comes, until `give_up` cuts it off.
    pub fn streamed(body: Incoming, give_up: CancellationToken) -> Self {
        Self { head: Bytes::new(), rest: Some(Rest::new(body, give_up)) }
    }

    /// Reads an answer to its end, or until it is longer than `limit_bytes`. Trailers are not kept: an outcome has no
    /// place for them.
    ///
    /// # Errors
    /// If the connection breaks before its end.
    pub async fn read(
        mut body: Incoming,
        limit_bytes: usize,
        give_up: &CancellationToken,
    ) -> Result<Self, hyper::Error> {
        let mut head = BytesMut::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                head.extend_from_slice(&data);
            }
            if head.len() > limit_bytes {
                let rest = Rest::new(body, give_up.clone());
                return Ok(Self { head: head.freeze(), rest: Some(rest) });
            }
        }
        Ok(Self { head: head.freeze(), rest: None })
    }
}

impl From<Bytes> for Answer {
    fn from(head: Bytes) -> Self {
        Self { head, rest: None }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if !self.head.is_empty() {
            let head = std::mem::take(&mut self.head);
            return Poll::Ready(Some(Ok(Frame::data(head))));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        if rest.given_up.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err("the proxy had to end".into())));
        }
        Pin::new(&mut rest.body).poll_frame(context).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.head.is_empty() && self.rest.as_ref().is_none_or(|rest| rest.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), |rest| rest.body.size_hint());
        longer(&rest, self.head.len())
    }
}

/// The size of what is longer by so many bytes.
pub fn longer(hint: &SizeHint, bytes: usize) -> SizeHint {
    let mut longer = SizeHint::new();
    longer.set_lower(hint.lower().saturating_add(bytes as u64));
    if let Some(upper) = hint.upper() {
        longer.set_upper(upper.saturating_add(bytes as u64));
    }
    longer
}

/// The body of an answer, and what is to live until it has been sent.
pub struct Holding<G> {
    body: Sent,
    _guard: G,
}

impl<G> Holding<G> {
    /// A body that keeps `guard`.
    pub fn new(body: Sent, guard: G) -> Self {
        Self { body, _guard: guard }
    }
}

impl<G: Unpin> Body for Holding<G> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
