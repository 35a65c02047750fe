//! Spans, sent to a collector by OTLP where one is configured. Elsewhere, and in calls that nobody traces, a span is
//! nothing and costs nothing.

use std::pin::Pin;
use std::sync::OnceLock;
use std::time::Duration;

use futures_util::future::Either;
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags,
    TraceState, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, StringValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tokio::task::futures::TaskLocalFuture;

use super::trace::{TraceId, TraceParent};

/// How long the collector may take for what it is sent.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How many spans one is linked to, at most.
const LINKS_MAX: usize = 32;

static TRACING: OnceLock<Tracing> = OnceLock::new();

struct Tracing {
    tracer: SdkTracer,
    /// The share of the calls that are in nobody's trace to begin one for.
    share: f64,
}

/// Sends spans for as long as it lives.
pub struct Export(SdkTracerProvider);

/// Why spans cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint is none.
    #[error("traces cannot be sent to {endpoint}: {why}")]
    Endpoint {
        /// The endpoint.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something sends them already.
    #[error("tracing was set up before")]
    Twice,
}

/// Starts to send spans to the collector at `endpoint`, an URL, by gRPC: those of callers who keep their trace, and
/// those of `percent` of the calls that are in nobody's. To be called once, in a runtime.
///
/// # Errors
/// If the endpoint is none, or this was called before. Whether anybody listens there is found out later.
pub fn start(endpoint: &str, percent: u32) -> Result<Export, Error> {
    let refused = |why: String| Error::Endpoint { endpoint: endpoint.to_owned(), why };
    let exporter =
        SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_TIMEOUT).build();
    let exporter = exporter.map_err(|error| refused(error.to_string()))?;
    let resource = Resource::builder()
        .with_service_name("onced")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        // What is not to be sent is not even made.
        .with_sampler(Sampler::AlwaysOn)
        .build();
    let tracing = Tracing { tracer: provider.tracer("onced"), share: f64::from(percent) / 100.0 };
    TRACING.set(tracing).map_err(|_| Error::Twice)?;
    Ok(Export(provider))
}

impl Export {
    /// Sends what has not been sent, within the time that the collector may take.
    pub async fn finish(self) {
        // It blocks.
        let sent = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(EXPORT_TIMEOUT));
        if let Ok(Err(error)) = sent.await {
            tracing::warn!(%error, "the last spans could not be sent");
        }
    }
}

/// Whether spans are sent anywhere.
pub fn is_on() -> bool {
    TRACING.get().is_some()
}

/// A span, which ends when it is dropped; or none.
#[derive(Default)]
pub struct Span(Option<Box<opentelemetry_sdk::trace::Span>>);

impl Span {
    /// The span of a call that is served: in the trace of its caller, if he keeps it; where he is in none, some calls
    /// begin one.
    pub fn of_call(method: &'static str, caller: Option<TraceParent>) -> Self {
        let Some(tracing) = TRACING.get() else { return Self(None) };
        if !caller.map_or_else(|| fastrand::f64() < tracing.share, |caller| caller.sampled) {
            return Self(None);
        }
        let span = SpanBuilder::from_name(method).with_kind(SpanKind::Server);
        Self(Some(Box::new(tracing.tracer.build_with_context(span, &context(caller)))))
    }

    /// A span of what is done for one or more others, if there are any: it is within the first, and linked to the
    /// rest.
    pub fn within(name: &'static str, others: impl IntoIterator<Item = TraceParent>) -> Self {
        let Some(tracing) = TRACING.get() else { return Self(None) };
        let mut others = others.into_iter().filter(|other| other.sampled);
        let Some(first) = others.next() else { return Self(None) };
        let links = others.take(LINKS_MAX).map(|other| Link::with_context(span_context(other))).collect();
        let span = SpanBuilder::from_name(name).with_kind(SpanKind::Internal).with_links(links);
        Self(Some(Box::new(tracing.tracer.build_with_context(span, &context(Some(first))))))
    }

    /// Whether there is one.
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Where it stands: what others are within.
    pub fn place(&self) -> Option<TraceParent> {
        let context = self.0.as_ref()?.span_context();
        Some(TraceParent {
            trace: TraceId(u128::from_be_bytes(context.trace_id().to_bytes())),
            span: u64::from_be_bytes(context.span_id().to_bytes()),
            sampled: true,
        })
    }

    /// Says something of it.
    pub fn set(&mut self, key: &'static str, value: impl Into<StringValue>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, value.into()));
        }
    }

    /// Says how many there were of something.
    pub fn count(&mut self, key: &'static str, count: usize) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, i64::try_from(count).unwrap_or(i64::MAX)));
        }
    }

    /// Says that what it is about failed.
    pub fn failed(&mut self, why: &'static str) {
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(why));
        }
    }
}

fn context(parent: Option<TraceParent>) -> Context {
    parent.map_or_else(Context::new, |parent| Context::new().with_remote_span_context(span_context(parent)))
}

fn span_context(place: TraceParent) -> SpanContext {
    let (trace, span) = (place.trace.0.to_be_bytes(), place.span.to_be_bytes());
    let (trace, span) = (opentelemetry::trace::TraceId::from_bytes(trace), SpanId::from_bytes(span));
    SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::NONE)
}

tokio::task_local! {
    static PLACE: TraceParent;
}

/// `work`, which knows where it stands: see [`place`].
pub fn at<F: Future>(place: Option<TraceParent>, work: F) -> Placed<F> {
    match place {
        // Boxed, so that nobody else's future is larger.
        Some(place) => Either::Left(Box::pin(PLACE.scope(place, work))),
        None => Either::Right(work),
    }
}

/// Work that may stand in a trace.
pub type Placed<F> = Either<Pin<Box<TaskLocalFuture<TraceParent, F>>>, F>;

/// Where that stands which is done here, if it is in a trace.
pub fn place() -> Option<TraceParent> {
    PLACE.try_with(|place| *place).ok()
}
