//! What is told of each call when it ends, however it does: a line in the log, and a span where traces are sent anywhere.
//! Lines are at level debug; at info for what an operator changes, and, in a while, for who is turned away; and a warning
//! says that the store failed. Keys stand there as a short hash only. Each line has the id of the caller's trace, if the
//! caller is in one, and the call is a span in it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use onced_client::v1::resolve_request::Resolution;
use tonic::Code;
use tracing::field::{DisplayValue, display};

use super::Answering;
use super::measure::count_watch;
use crate::access::{Caller, Unproven};
use crate::clock::Clock;
use crate::coordinator::Error;
use crate::record::{Namespace, ShortHash};
use crate::rpc::call::{Answer, Call, Context, Request, Rpc};
use crate::rpc::failure::{Denied, Failure};
use crate::rpc::status;
use crate::store::StoreError;
use crate::telemetry::Throttle;
use crate::telemetry::span::{self, Span};
use crate::telemetry::trace::{TraceId, TraceParent};

/// The longest path that is logged.
const PATH_MAX: usize = 200;

/// Tells of each call.
#[derive(Clone)]
pub struct Trace<S> {
    pub inner: S,
    pub journal: Journal,
}

impl<S> tower::Service<Call> for Trace<S>
where
    S: tower::Service<Call, Response = Answer, Error = Failure, Future = Answering>,
{
    type Response = Answer;
    type Error = Failure;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        let (rpc, caller) = (call.request.kind(), call.caller.clone());
        let mut line = self.journal.open(rpc, call.request.name(), &mut call.context, caller);
        line.settles = Settles::of(&call.request);
        let answering = span::at(line.span.place(), self.inner.call(call));
        Box::pin(async move {
            let result = answering.await;
            line.end(result.as_ref().err());
            result
        })
    }
}

/// Where it is told what became of calls.
#[derive(Clone)]
pub struct Journal {
    clock: Clock,
    lines: Arc<Lines>,
}

/// Between lines of which there may be very many: a store that is away fails all calls, and who may not call tries again.
#[derive(Default)]
struct Lines {
    store_failures: Throttle,
    unproven: Throttle,
    denied: Throttle,
}

impl Journal {
    /// An empty one.
    pub fn new(clock: Clock) -> Self {
        Self { clock, lines: Arc::default() }
    }

    /// A call begins. What is done for it stands in its span, from here on.
    pub fn open(
        &self,
        rpc: Rpc,
        (namespace, key): (&str, &str),
        context: &mut Context,
        caller: Option<Caller>,
    ) -> Line {
        let span = Span::of_call(rpc.method(), context.trace);
        context.trace = span.place().or(context.trace);
        let subject = Subject::of(namespace, key);
        let settles = Settles::default();
        Line { journal: self.clone(), rpc, context: *context, caller, subject, settles, span, ended: false }
    }

    /// A request from nobody knows whom.
    pub fn unproven(&self, unproven: Unproven, path: &str, peer: Option<SocketAddr>) {
        let (path, peer) = (path.get(..PATH_MAX).unwrap_or(path), peer.map(display));
        match self.lines.unproven.pass(self.clock.now()) {
            Some(withheld) => {
                let withheld = some(withheld);
                tracing::info!(?unproven, path, peer, withheld, "it is not known who calls");
            }
            None => tracing::debug!(?unproven, path, peer, "it is not known who calls"),
        }
    }
}

/// How many lines were withheld, if any.
fn some(withheld: u64) -> Option<u64> {
    (withheld > 0).then_some(withheld)
}

/// What is told of a call when it ends. Dropped before that, its caller has left.
pub struct Line {
    journal: Journal,
    rpc: Rpc,
    context: Context,
    caller: Option<Caller>,
    subject: Subject,
    settles: Settles,
    span: Span,
    ended: bool,
}

/// What an operator does to a record.
#[derive(Clone, Copy, Default)]
struct Settles {
    fencing_token: Option<u64>,
    to: Option<&'static str>,
}

impl Settles {
    fn of(request: &Request) -> Self {
        let (token, to) = match request {
            Request::Resolve(request) => {
                let to = match &request.resolution {
                    Some(Resolution::Retry(_)) => "retry",
                    Some(Resolution::Outcome(_)) => "outcome",
                    None => return Self::default(),
                };
                (request.fencing_token, to)
            }
            Request::Delete(request) => {
                (request.fencing_token, if request.force { "deleted by force" } else { "deleted" })
            }
            _ => return Self::default(),
        };
        Self { fencing_token: Some(token), to: Some(to) }
    }
}

impl Line {
    /// The call has ended, with this failure if with one.
    pub fn end(mut self, failure: Option<&Failure>) {
        self.finish(failure);
    }

    fn finish(&mut self, failure: Option<&Failure>) {
        self.ended = true;
        match failure {
            Some(Failure::Coordinator(Error::Store(error))) => self.store_failed(error),
            Some(Failure::Unproven(unproven)) => {
                self.journal.unproven(*unproven, self.rpc.method(), self.context.peer);
            }
            Some(Failure::Denied(denied)) => self.denied(denied),
            Some(_) | None => {}
        }
        self.write(failure);
        self.finish_span(failure);
        if let Rpc::Watch = self.rpc {
            count_watch(failure);
        }
    }

    /// A record that cannot be read always gets its line: it says which one it is.
    fn store_failed(&self, error: &StoreError) {
        let (rpc, trace_id) = (self.rpc.name(), trace_id(self.context.trace));
        let (namespace, key) = (&self.subject.namespace, self.subject.key());
        let (caller, peer) = (self.caller(), self.context.peer.map(display));
        if let StoreError::Corrupt { .. } = error {
            // A List names no key.
            let key = error.corrupt_key().map_or(key, |key| key.short_hash().to_string());
            tracing::warn!(rpc, namespace, key, caller, peer, trace_id, %error, "the store failed");
        } else if let Some(withheld) = self.journal.lines.store_failures.pass(self.journal.clock.now()) {
            let withheld = some(withheld);
            tracing::warn!(rpc, namespace, key, caller, peer, trace_id, withheld, %error, "the store failed");
        }
    }

    fn denied(&self, denied: &Denied) {
        let Denied { caller, namespace, action } = denied;
        if let Some(withheld) = self.journal.lines.denied.pass(self.journal.clock.now()) {
            let (rpc, action, trace_id) = (self.rpc.name(), action.name(), trace_id(self.context.trace));
            let (peer, withheld) = (self.context.peer.map(display), some(withheld));
            tracing::info!(rpc, action, caller, namespace, peer, trace_id, withheld, "a call was denied");
        }
    }

    /// As text, which is quoted: a name may have any character that can be read.
    fn caller(&self) -> Option<String> {
        self.caller.as_ref().map(Caller::to_string)
    }

    fn write(&self, failure: Option<&Failure>) {
        macro_rules! answered {
            ($level:ident) => {
                tracing::$level!(
                    rpc = self.rpc.name(),
                    namespace = self.subject.namespace,
                    key = self.subject.key(),
                    fencing_token = self.settles.fencing_token,
                    to = self.settles.to,
                    caller = self.caller(),
                    peer = self.context.peer.map(display),
                    trace_id = trace_id(self.context.trace),
                    reason = failure.map_or("OK", |failure| status::name(failure.reason())),
                    duration = ?self.journal.clock.now().since(self.context.arrived),
                    "answered"
                )
            };
        }
        match (self.rpc, failure) {
            // What nobody but an operator does, and is asked about later: what was done, and what may have been. Who may
            // not is told of by another line, now and then.
            (
                Rpc::Resolve | Rpc::Delete,
                None
                | Some(
                    Failure::Coordinator(Error::Store(_) | Error::Fault)
                    | Failure::Internal(_)
                    | Failure::Cancelled
                    | Failure::DeadlineExceeded,
                ),
            ) => answered!(info),
            _ => answered!(debug),
        }
    }

    /// Says in the call's span what it was and came to, by OpenTelemetry's names.
    fn finish_span(&mut self, failure: Option<&Failure>) {
        let span = &mut self.span;
        if !span.is_some() {
            return;
        }
        let reason = failure.map(Failure::reason);
        let code = reason.map_or(Code::Ok, status::code);
        span.set("rpc.system.name", "grpc");
        span.set("rpc.method", self.rpc.method());
        span.set("rpc.response.status_code", status::code_name(code));
        if let Some(reason) = reason {
            span.set("error.type", status::name(reason));
        }
        if let Some(key) = self.subject.key {
            span.set("onced.namespace", self.subject.namespace.clone());
            span.set("onced.key_hash", key.to_string());
        }
        if let Some(caller) = &self.caller {
            span.set("onced.caller", caller.to_string());
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
}

/// The id of a trace, as lines have it.
pub fn trace_id(trace: Option<TraceParent>) -> Option<DisplayValue<TraceId>> {
    trace.map(|parent| display(parent.trace))
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.ended {
            self.finish(Some(&self.context.given_up(self.journal.clock.now())));
        }
    }
}

/// The namespace and the key. Nothing of what is not valid: it may be anything.
#[derive(Default)]
struct Subject {
    namespace: String,
    key: Option<ShortHash>,
}

impl Subject {
    fn of(namespace: &str, key: &str) -> Self {
        if !tracing::enabled!(tracing::Level::WARN) {
            return Self::default();
        }
        let Some(namespace) = Namespace::new(namespace) else { return Self::default() };
        Self { key: ShortHash::of(&namespace, key), namespace: namespace.as_str().to_owned() }
    }

    /// The key, as it is told.
    fn key(&self) -> String {
        self.key.map(|key| key.to_string()).unwrap_or_default()
    }
}
