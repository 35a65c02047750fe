//! The body of a request on its way in. What has arrived counts against the budget of the connection, and a
//! request that does not come to its end in time is refused: with no deadline of its own, it would be kept until
//! its connection ends, and hold up a drain.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::codegen::StdError;

use crate::rpc::budget::{Budget, Hold};
use crate::rpc::failure::Failure;

/// What has arrived of a request: shared by its body and by whoever reads messages from it.
#[derive(Clone, Debug)]
pub struct Inflow(Arc<Mutex<Arrived>>);

#[derive(Debug)]
struct Arrived {
    hold: Hold,
    refused: Option<Failure>,
}

impl Inflow {
    /// Of a request of which nothing has arrived.
    pub fn new(budget: &Budget) -> Self {
        Self(Arc::new(Mutex::new(Arrived { hold: budget.hold_none(), refused: None })))
    }

    /// The bytes that arrived since the last time, now whoever's who has made a message of them.
    pub fn take(&self) -> Hold {
        self.lock().hold.take()
    }

    /// Why no more was read, if it was not the caller's doing.
    pub fn refused(&self) -> Option<Failure> {
        self.lock().refused.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Arrived> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, bytes: usize) -> Result<(), Failure> {
        let mut arrived = self.lock();
        let all = arrived.hold.bytes() + bytes;
        arrived.hold.resize(all)
    }
}

/// A request's body.
pub struct Inbound<B> {
    /// `None` once it is refused.
    body: Option<B>,
    inflow: Inflow,
    max_arrival: Duration,
    /// Whether it may last for ever.
    is_stream: bool,
    /// Runs once there was something to wait for.
    time: Option<Pin<Box<Sleep>>>,
}

impl<B> Inbound<B>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
{
    pub fn new(body: B, inflow: Inflow, max_arrival: Duration, is_stream: bool) -> Self {
        Self { body: Some(body), inflow, max_arrival, is_stream, time: None }
    }

    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.is_stream {
            return Poll::Pending;
        }
        let max_arrival = self.max_arrival;
        self.time.get_or_insert_with(|| Box::pin(tokio::time::sleep(max_arrival))).as_mut().poll(context)
    }

    /// What is still under way is dropped as it comes. Were the stream reset instead, HTTP/2 would count each of
    /// its frames as a fault of the client, and soon end the connection with all its calls.
    fn refuse(&mut self, failure: Failure) -> StdError {
        if let Some(mut body) = self.body.take() {
            let rest = async move { while let Some(Ok(_)) = body.frame().await {} };
            tokio::spawn(tokio::time::timeout(self.max_arrival, rest));
        }
        let status = failure.to_status();
        self.inflow.lock().refused = Some(failure);
        status.into()
    }
}

impl<B> HttpBody for Inbound<B>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let Poll::Ready(polled) = Pin::new(body).poll_frame(context) else {
            ready!(self.poll_late(context));
            let stalled = Failure::Stalled(self.max_arrival);
            return Poll::Ready(Some(Err(self.refuse(stalled))));
        };
        Poll::Ready(polled.map(|frame| {
            let frame = frame.map_err(Into::into)?;
            self.inflow
                .add(frame.data_ref().map_or(0, Bytes::len))
                .map_err(|failure| self.refuse(failure))?;
            Ok(frame)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}
