//! Ends calls at their deadline, with DEADLINE_EXCEEDED. The work of a call that changes a record goes on
//! without it: the coordinator runs it detached.

use std::task::{Context, Poll};

use super::Answering;
use crate::clock::Clock;
use crate::rpc::call::{Answer, Call};
use crate::rpc::failure::Failure;

/// Keeps the deadline of each call.
#[derive(Clone)]
pub struct Deadline<S> {
    pub inner: S,
    pub clock: Clock,
}

impl<S> tower::Service<Call> for Deadline<S>
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
        let Some(deadline) = call.context.deadline else { return self.inner.call(call) };
        let left = deadline.since(self.clock.now());
        if left.is_zero() {
            return Box::pin(async { Err(Failure::DeadlineExceeded) });
        }
        let answering = self.inner.call(call);
        Box::pin(async move {
            tokio::time::timeout(left, answering).await.unwrap_or(Err(Failure::DeadlineExceeded))
        })
    }
}
