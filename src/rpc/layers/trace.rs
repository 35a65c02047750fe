//! One line in the log for each call, at level debug; a warning when the store failed. Keys stand there as a
//! short hash only.

use std::task::{Context, Poll};

use super::Answering;
use crate::clock::Clock;
use crate::coordinator::Error;
use crate::record::{Key, Namespace, RecordKey};
use crate::rpc::call::{Answer, Call, Request};
use crate::rpc::failure::Failure;
use crate::rpc::status;

/// Logs each call when it is answered.
#[derive(Clone)]
pub struct Trace<S> {
    pub inner: S,
    pub clock: Clock,
}

impl<S> tower::Service<Call> for Trace<S>
where
    S: tower::Service<Call, Response = Answer, Error = Failure>,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = Failure;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let line = Line::of(&call);
        let answering = self.inner.call(call);
        let clock = self.clock.clone();
        Box::pin(async move {
            let result = answering.await;
            line.write(&result, &clock);
            result
        })
    }
}

struct Line {
    rpc: &'static str,
    arrived: crate::clock::Moment,
    subject: Subject,
}

/// The namespace and the hash of the key. Empty unless both are valid: what is not may be anything.
#[derive(Default)]
pub struct Subject {
    pub namespace: String,
    pub key: String,
}

impl Line {
    fn of(call: &Call) -> Self {
        Self { rpc: call.request.rpc(), arrived: call.context.arrived, subject: Subject::of(&call.request) }
    }

    fn write(&self, result: &Result<Answer, Failure>, clock: &Clock) {
        let Subject { namespace, key } = &self.subject;
        if let Err(Failure::Coordinator(Error::Store(error))) = result {
            // A List names no key, but may have met a record that cannot be read.
            let key = &error.corrupt_key().map_or_else(|| key.clone(), RecordKey::short_hash);
            tracing::warn!(rpc = self.rpc, namespace, key, %error, "the store failed");
        }
        tracing::debug!(
            rpc = self.rpc,
            namespace,
            key,
            reason = result.as_ref().err().map_or("OK", |failure| status::name(failure.reason())),
            duration = ?clock.now().since(self.arrived),
            "answered"
        );
    }
}

impl Subject {
    fn of(request: &Request) -> Self {
        if !tracing::enabled!(tracing::Level::WARN) {
            return Self::default();
        }
        let (namespace, key) = request.name();
        let Some(namespace) = Namespace::new(namespace) else { return Self::default() };
        let hash = Key::new(key).map(|key| RecordKey { namespace: namespace.clone(), key }.short_hash());
        Self { namespace: namespace.as_str().to_owned(), key: hash.unwrap_or_default() }
    }
}
