//! One line in the log for each call, at level debug; a warning when the store failed. Keys stand there as a
//! short hash only. Each line has the id of the caller's trace, if the caller is in one, and the call is a span in it,
//! where traces are sent anywhere.

use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use tonic::Code;

use super::Answering;
use crate::clock::Clock;
use crate::coordinator::Error;
use crate::record::{Key, Namespace, RecordKey};
use crate::rpc::call::{Answer, Call, Context, Request};
use crate::rpc::failure::Failure;
use crate::rpc::status;
use crate::store::StoreError;
use crate::telemetry::Throttle;
use crate::telemetry::span::{self, Span};
use crate::telemetry::trace::{TraceId, TraceParent};

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
    pub fn log(&self, rpc: &'static str, subject: &Subject, trace: Option<TraceParent>, failure: &Failure) {
        let Failure::Coordinator(Error::Store(error)) = failure else { return };
        let (Subject { namespace, key }, trace_id) = (subject, trace_id(trace));
        if let StoreError::Corrupt { .. } = error {
            // A List names no key.
            let key = error.corrupt_key().map_or_else(|| key.clone(), RecordKey::short_hash);
            tracing::warn!(rpc, namespace, key, trace_id, %error, "the store failed");
        } else if let Some(withheld) = self.throttle.pass(self.clock.now()) {
            let withheld = (withheld > 0).then_some(withheld);
            tracing::warn!(rpc, namespace, key, trace_id, withheld, %error, "the store failed");
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

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        let mut span = Span::of_call(call.request.kind().method(), call.context.trace);
        call.context.trace = span.place().or(call.context.trace);
        let line = Line::of(&call);
        let answering = span::at(span.place(), self.inner.call(call));
        let (clock, store_failures) = (self.clock.clone(), self.store_failures.clone());
        Box::pin(async move {
            let result = answering.await;
            if let Err(failure) = &result {
                store_failures.log(line.rpc, &line.subject, line.trace, failure);
            }
            line.write(&result, &clock);
            line.tell(&mut span, &result);
            result
        })
    }
}

struct Line {
    rpc: &'static str,
    method: &'static str,
    arrived: crate::clock::Moment,
    trace: Option<TraceParent>,
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
        let Context { arrived, trace, .. } = call.context;
        let (rpc, method) = (call.request.rpc(), call.request.kind().method());
        Self { rpc, method, arrived, trace, subject: Subject::of(&call.request) }
    }

    /// Says in the call's span what it was and came to, by OpenTelemetry's names.
    fn tell(&self, span: &mut Span, result: &Result<Answer, Failure>) {
        if !span.is_some() {
            return;
        }
        let reason = result.as_ref().err().map(Failure::reason);
        let code = reason.map_or(Code::Ok, status::code);
        span.set("rpc.system.name", "grpc");
        span.set("rpc.method", self.method);
        span.set("rpc.response.status_code", status::code_name(code));
        if let Some(reason) = reason {
            span.set("error.type", status::name(reason));
        }
        if !self.subject.key.is_empty() {
            span.set("onced.namespace", self.subject.namespace.clone());
            span.set("onced.key_hash", self.subject.key.clone());
        }
        // Those that a server answers for: others are the caller's.
        if let Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss = code
        {
            span.failed(status::code_name(code));
        }
    }

    fn write(&self, result: &Result<Answer, Failure>, clock: &Clock) {
        let Subject { namespace, key } = &self.subject;
        tracing::debug!(
            rpc = self.rpc,
            namespace,
            key,
            trace_id = trace_id(self.trace),
            reason = result.as_ref().err().map_or("OK", |failure| status::name(failure.reason())),
            duration = ?clock.now().since(self.arrived),
            "answered"
        );
    }
}

/// The id of a trace, as lines have it.
pub fn trace_id(trace: Option<TraceParent>) -> Option<tracing::field::DisplayValue<TraceId>> {
    trace.map(|parent| tracing::field::display(parent.trace))
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
