//! A panic becomes INTERNAL, and costs nobody but the call that met it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll};

use futures_util::FutureExt;

use super::Answering;
use super::trace::trace_id;
use crate::rpc::call::{Answer, Call};
use crate::rpc::failure::Failure;

/// What a caller is told of a panic.
pub const PANICKED: Failure = Failure::Internal("the call panicked");

/// Catches panics.
#[derive(Clone)]
pub struct Panic<S> {
    pub inner: S,
}

// Unwind safety: the state of the call that panicked is dropped, and what calls share (the coordinator, the
// semaphores) is made for being left at any point: a call may be dropped anywhere as well.
impl<S> tower::Service<Call> for Panic<S>
where
    S: tower::Service<Call, Response = Answer, Error = Failure, Future = Answering>,
{
    type Response = Answer;
    type Error = Failure;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let (rpc, trace) = (call.request.rpc(), call.context.trace);
        let answering = catch_unwind(AssertUnwindSafe(|| self.inner.call(call)));
        Box::pin(async move {
            let caught = match answering {
                Ok(answering) => AssertUnwindSafe(answering).catch_unwind().await,
                Err(panic) => Err(panic),
            };
            caught.unwrap_or_else(|panic| {
                tracing::error!(
                    rpc,
                    trace_id = trace_id(trace),
                    panic = text(&*panic),
                    "a call panicked: a fault of the server"
                );
                Err(PANICKED)
            })
        })
    }
}

/// The text of a panic.
pub fn text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "not a text"
    }
}
