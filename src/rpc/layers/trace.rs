//! One line in the log for each call, at level debug; a warning when the store failed. Keys stand there as a
//! short hash only.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::Answering;
use crate::clock::Clock;
use crate::coordinator::Error;
use crate::record::{Key, Namespace, RecordKey};
use crate::rpc::call::{Answer, Call, Request};
use crate::rpc::failure::Failure;
use crate::rpc::status;
use crate::store::StoreError;
use crate::telemetry::Throttle;

/// Logs each call when it is answered.
#[derive(Clone)]
pub struct Trace<S> {
    pub inner: S,
    pub clock: Clock,
    pub store_failures: StoreFailures,
}

/// Logs that the store failed a call. A store that is away fails all of them, so not each gets a line.
#[derive(Clone)]
pub struct StoreFailures {
    clock: Clock,
    throttle: Arc<Throttle>,
}

impl StoreFailures {
    /// None so far.
    pub fn new(clock: Clock) -> Self {
        Self { clock, throttle: Arc::default() }
    }

    /// Logs one, if it is one. A record that cannot be read always gets its line: it says which one it is.
    pub fn log(&self, rpc: &'static str, subject: &Subject, failure: &Failure) {
        let Failure::Coordinator(Error::Store(error)) = failure else { return };
        let Subject { namespace, key } = subject;
        if let StoreError::Corrupt { .. } = error {
            // A List names no key.
            let key = error.corrupt_key().map_or_else(|| key.clone(), RecordKey::short_hash);
            tracing::warn!(rpc, namespace, key, %error, "the store failed");
        } else if let Some(withheld) = self.throttle.pass(self.clock.now()) {
            let withheld = (withheld > 0).then_some(withheld);
            tracing::warn!(rpc, namespace, key, withheld, %error, "the store failed");
        }
    }
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
        let (clock, store_failures) = (self.clock.clone(), self.store_failures.clone());
        Box::pin(async move {
            let result = answering.await;
            if let Err(failure) = &result {
                store_failures.log(line.rpc, &line.subject, failure);
            }
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
        match Key::new(key) {
            Some(key) => Self::from(&RecordKey { namespace, key }),
            None => Self { namespace: namespace.as_str().to_owned(), key: String::new() },
        }
    }
}

impl From<&RecordKey> for Subject {
    fn from(key: &RecordKey) -> Self {
        Self { namespace: key.namespace.as_str().to_owned(), key: key.short_hash() }
    }
}
