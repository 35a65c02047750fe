//! Hands requests on to the upstream, and says what becomes of their keys where it fails.

use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Incoming};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use metrics::histogram;
use onced_client::http::Disposition;
use onced_client::{Claim, OnFailure};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tower::{BoxError, Service};

use super::body::{Answer, Holding, Sent, boxed};
use super::headers::{self, ATTEMPT, FENCING_TOKEN, OUTCOME, REPLAYED};
use super::limit::Place;
use super::refusal::Refusal;
use super::upstream::{Pool, Upstream};
use super::writing;
use crate::clock::Clock;
use crate::record::limits::OUTCOME_MAX_BYTES;
use crate::telemetry::Throttle;
use crate::telemetry::metrics::PROXY_UPSTREAM_DURATION;

/// An answer that streams, and so has no end to wait for.
const EVENT_STREAM: &str = "text/event-stream";

/// What is handed on, and how.
#[derive(Debug)]
pub struct Options {
    pub upstream: Upstream,
    /// Whether the upstream is called by its own name, and not by the one that the caller asked for.
    pub rewrite_host: bool,
    /// How long a connection to it may take to be made.
    pub connect: Duration,
    /// How long it may take to answer.
    pub answer: Duration,
    /// What becomes of a key where the upstream may have done what it was asked, and has not answered.
    pub on_lost: OnFailure,
    /// Cancelled when the upstream is not waited for any longer: the proxy has to end.
    pub give_up: CancellationToken,
}

/// The way to the upstream. Never fails: that it cannot be reached is an answer, too.
#[derive(Clone)]
pub struct Forward(Arc<Inner>);

struct Inner {
    pool: Pool,
    options: Options,
    clock: Clock,
    /// Between lines on an upstream that fails: it fails every request.
    failures: Throttle,
}

/// Why there is no answer.
enum Failed {
    /// Nothing was sent.
    NotSent(String),
    /// The connection broke after something may have been sent.
    Lost(String),
    /// The time is up, after something may have been sent.
    Late,
    /// The caller has not sent its request to the end.
    Caller,
}

impl Forward {
    /// The way to the upstream, over connections of this pool.
    pub fn new(pool: Pool, options: Options, clock: Clock) -> Self {
        Self(Arc::new(Inner { pool, options, clock, failures: Throttle::default() }))
    }

    /// Hands a request on as it comes, and its answer, too.
    pub async fn pass<B>(&self, request: Request<B>) -> Response<Answer>
    where
        B: Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (with_body, taken) = oneshot::channel::<Infallible>();
        let mut request = request.map(|body| Holding::new(boxed(body), with_body).boxed_unsync());
        let connection = capture_connection(&mut request);
        // The upstream has its time once it has all of the request. For each piece of it the connection sees to that.
        let late = async {
            let Err(_) = taken.await;
            tokio::time::sleep(self.0.options.answer).await;
        };
        let exchange = async {
            let give_up = &self.0.options.give_up;
            let response = tokio::select! {
                biased;
                response = self.send(request) => response?,
                () = late => return Err(Failed::Late),
                () = give_up.cancelled() => return Err(Failed::ended(&connection)),
            };
            let mut response = answered(response.map(|body| Answer::streamed(body, give_up.clone())));
            response.headers_mut().remove(OUTCOME);
            Ok(response)
        };
        self.measured(exchange, "").await
    }

    /// Does the work of a key: the answer is read to its end before it counts.
    async fn work(&self, mut request: Request<Sent>, claim: &Claim) -> Response<Answer> {
        let Options { connect, answer, on_lost, ref give_up, .. } = self.0.options;
        if claim.fencing_token() > 0 {
            request.headers_mut().insert(FENCING_TOKEN, HeaderValue::from(claim.fencing_token()));
            request.headers_mut().insert(ATTEMPT, HeaderValue::from(claim.attempt()));
        }
        let limit_bytes = match usize::try_from(claim.max_outcome_bytes()) {
            Ok(0) | Err(_) => OUTCOME_MAX_BYTES,
            Ok(limit_bytes) => limit_bytes,
        };
        let connection = capture_connection(&mut request);
        let exchange = async {
            let response = self.send(request).await.map_err(|failed| match failed {
                // All of it had arrived before.
                Failed::Caller => Failed::Lost("the connection was given up".to_owned()),
                failed => failed,
            })?;
            let (parts, body) = response.into_parts();
            let body = match streams(&parts.headers) {
                true => Answer::streamed(body, give_up.clone()),
                false => {
                    let read = Answer::read(body, limit_bytes, give_up).await;
                    read.map_err(|error| Failed::Lost(format!("its answer broke off: {}", told(&error))))?
                }
            };
            Ok::<_, Failed>(answered(Response::from_parts(parts, body)))
        };
        let late = connect.saturating_add(answer);
        let in_time = async {
            tokio::select! {
                biased;
                ended = tokio::time::timeout(late, exchange) => ended.unwrap_or(Err(Failed::Late)),
                () = give_up.cancelled() => Err(Failed::ended(&connection)),
            }
        };
        let (lost, of_key) = match on_lost {
            OnFailure::Retry => (Disposition::Retry, "; the key is free, so the same request runs again"),
            OnFailure::InDoubt => {
                (Disposition::InDoubt, "; the key is in doubt until an operator has looked")
            }
        };
        // Without a claim, nothing is known of the key.
        let of_key = if claim.protected() { of_key } else { "" };
        let mut response = self.measured(in_time, of_key).await;
        let disposition = match response.extensions().get::<Refusal>() {
            None => said(response.headers()),
            // Nothing was done, for certain.
            Some(Refusal::UpstreamUnreachable) => Some(Disposition::Retry),
            Some(_) => Some(lost),
        };
        if let Some(disposition) = disposition {
            response.extensions_mut().insert(disposition);
        }
        response.headers_mut().remove(OUTCOME);
        // Of a request with a key it is for the proxy to say so.
        response.headers_mut().remove(REPLAYED);
        response
    }

    /// Sends a request. There is no answer without an end to it: that the connection is made within its time is the
    /// connector's part, and the rest the caller's.
    async fn send(&self, request: Request<Sent>) -> Result<Response<Incoming>, Failed> {
        let (mut parts, body) = request.into_parts();
        let options = &self.0.options;
        if options.give_up.is_cancelled() {
            // Nothing is begun that would be given up at once, and then be in doubt.
            return Err(Failed::NotSent("the proxy had to end".to_owned()));
        }
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        parts.uri = options.upstream.uri(&path).map_err(|error| Failed::NotSent(error.to_string()))?;
        parts.version = Version::HTTP_11;
        // How long it is, is said anew, by what was read of it; but not of what is empty, which some refuse with 411.
        let told = parts.headers.remove(CONTENT_LENGTH).is_some();
        let has_content = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH);
        if body.is_end_stream() && (told || has_content) {
            parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
        }
        if options.rewrite_host || !parts.headers.contains_key(HOST) {
            parts.headers.remove(HOST);
            parts.headers.extend(options.upstream.host().map(|host| (HOST, host)));
        }
        let response = self.0.pool.request(Request::from_parts(parts, body)).await.map_err(Failed::of)?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failed::Lost("it went over to another protocol unasked".to_owned()));
        }
        Ok(response)
    }

    /// The answer of an exchange, or what there is to say instead, with what became of its key where what was done is
    /// unknown; counts how long it took.
    async fn measured(
        &self,
        exchange: impl Future<Output = Result<Response<Answer>, Failed>>,
        of_key: &str,
    ) -> Response<Answer> {
        let began = self.0.clock.now();
        let ended = exchange.await;
        let now = self.0.clock.now();
        let (result, response) = match ended {
            Ok(response) => ("answered", response),
            Err(failed) => {
                let (refusal, detail) = failed.refusal(&self.0.options, of_key);
                if refusal != Refusal::RequestInvalid
                    && let Some(withheld) = self.0.failures.pass(now)
                {
                    let withheld = (withheld > 0).then_some(withheld);
                    let upstream = &self.0.options.upstream;
                    tracing::warn!(%upstream, code = refusal.code(), withheld, "{}", failed.told());
                }
                let mut response = refusal.answer(&detail);
                response.extensions_mut().insert(refusal);
                (failed.name(), response)
            }
        };
        histogram!(PROXY_UPSTREAM_DURATION, "result" => result).record(now.since(began));
        response
    }
}

/// Runs what the layer hands on. Requests without a claim do not get here, unless it lets them pass.
impl<B> Service<Request<B>> for Forward
where
    B: Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Answer>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let forward = self.clone();
        let claim = request.extensions().get::<Claim>().cloned();
        let place = request.extensions().get::<Place>().cloned();
        async move {
            if let Some(place) = &place {
                place.set_ran();
            }
            let response = match claim {
                Some(claim) => forward.work(request.map(boxed), &claim).await,
                None => forward.pass(request).await,
            };
            // Not before: the caller, who has the other one, may be gone.
            drop(place);
            Ok(response)
        }
        .boxed()
    }
}

impl Failed {
    fn of(error: legacy::Error) -> Self {
        let of_http = error.source().and_then(|source| source.downcast_ref::<hyper::Error>());
        // A request is cancelled only as long as none of it was written.
        if error.is_connect() || of_http.is_some_and(hyper::Error::is_canceled) {
            return Failed::NotSent(told(&error));
        }
        let of_io = of_http.and_then(|error| error.source()?.downcast_ref::<io::Error>());
        match of_http.is_some_and(hyper::Error::is_user) {
            true => Failed::Caller,
            false if of_io.is_some_and(writing::is_late) => Failed::Late,
            false => Failed::Lost(told(&error)),
        }
    }

    /// The proxy does not wait any longer. Nothing was sent where the request has not got a connection yet.
    fn ended(connection: &CaptureConnection) -> Self {
        let why = "the proxy had to end".to_owned();
        match connection.connection_metadata().is_some() {
            true => Failed::Lost(why),
            false => Failed::NotSent(why),
        }
    }

    /// What to tell the caller, for people with some detail.
    fn refusal(&self, options: &Options, of_key: &str) -> (Refusal, String) {
        match self {
            Failed::NotSent(_) => {
                (Refusal::UpstreamUnreachable, "nothing was sent to it; try again".to_owned())
            }
            Failed::Lost(_) => {
                let detail = "the connection to it broke, and whether it did what it was asked is not known";
                (Refusal::UpstreamLost, format!("{detail}{of_key}"))
            }
            Failed::Late => {
                let limit = humantime::format_duration(options.answer);
                let detail =
                    format!("it took longer than {limit}; whether it did what it was asked is not known");
                (Refusal::UpstreamTimeout, format!("{detail}{of_key}"))
            }
            Failed::Caller => (Refusal::RequestInvalid, "its body did not come to an end".to_owned()),
        }
    }

    fn told(&self) -> String {
        match self {
            Failed::NotSent(why) => format!("the upstream cannot be reached: {why}"),
            Failed::Lost(why) => format!("the upstream did not answer to the end: {why}"),
            Failed::Late => "the upstream did not answer in time".to_owned(),
            Failed::Caller => "a request did not come to its end".to_owned(),
        }
    }

    /// As the metrics have it.
    fn name(&self) -> &'static str {
        match self {
            Failed::NotSent(_) => "unreachable",
            Failed::Lost(_) => "lost",
            Failed::Late => "timeout",
            Failed::Caller => "cut_short",
        }
    }
}

/// An error with its causes: those of HTTP clients tell little by themselves.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The answer as its caller gets it.
fn answered(mut response: Response<Answer>) -> Response<Answer> {
    // That of the upstream may be older than what is spoken with the caller.
    *response.version_mut() = Version::default();
    headers::of_response(response.headers_mut());
    response
}

fn streams(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next()).map(str::trim);
    essence.is_some_and(|essence| essence.eq_ignore_ascii_case(EVENT_STREAM))
}

/// What the upstream says is to become of its answer.
fn said(headers: &HeaderMap) -> Option<Disposition> {
    let said = headers.get(OUTCOME)?;
    match said.as_bytes() {
        b"store" => Some(Disposition::Store),
        b"retry" => Some(Disposition::Retry),
        b"in-doubt" => Some(Disposition::InDoubt),
        _ => {
            // It meant something, and it is not known what.
            tracing::warn!(header = %OUTCOME, "the upstream says neither store, retry nor in-doubt: in doubt");
            Some(Disposition::InDoubt)
        }
    }
}
