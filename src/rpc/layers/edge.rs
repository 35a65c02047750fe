//! The outermost layer, at the level of HTTP, around tonic's own code: it notes when a call arrived and until
//! when it has time, gives a reason to the answers that tonic makes by itself, turns panics into answers, and
//! tells a claim that it leaves. What comes in and goes out counts against the budget of its connection.

use std::any::Any;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Method, StatusCode, Uri};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use onced_client::v1::ErrorReason;
use tonic::body::Body;
use tonic::{Code, Status};

use super::inbound::{Inbound, Inflow};
use super::panic::{PANICKED, text};
use super::trace::Journal;
use crate::access::{Caller, Unproven};
use crate::clock::{Clock, Moment, wall_time};
use crate::coordinator::Claimed;
use crate::rpc::Live;
use crate::rpc::budget::{Budget, Hold};
use crate::rpc::failure::Failure;
use crate::rpc::status::name;
use crate::telemetry::metrics::REFUSED_REQUESTS;
use crate::telemetry::trace::{self, TraceParent};

/// The header by which gRPC sends the time that a caller has.
const TIMEOUT_HEADER: &str = "grpc-timeout";
/// The services whose every error has a reason. The standard ones (health, reflection) have their own ways.
const OUR_SERVICES: &str = "/onced.v1.";

/// The method whose requests are a stream that may last, and the service of another such.
const STREAMED: [&str; 2] = ["/onced.v1.IdempotencyService/Session", REFLECTION];
/// The service that tells what there is to call.
const REFLECTION: &str = "/grpc.reflection.";

/// When an HTTP request arrived, who sent it, and until when its caller waits.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// When it arrived.
    pub at: Moment,
    /// By when its caller wants the answer.
    pub deadline: Option<Moment>,
    /// Who calls; `None` where nobody is asked.
    pub caller: Option<Caller>,
    /// When it is no longer known who calls.
    pub expires: Option<Moment>,
    /// What its connection may make the server keep.
    pub budget: Budget,
    /// What has arrived of it.
    pub inflow: Inflow,
    /// Where it stands in the trace of its caller.
    pub trace: Option<TraceParent>,
    /// The other end of its connection, which the accept loop has put there.
    pub peer: Option<SocketAddr>,
}

/// What leaves with the next bytes of a response. It travels in the response's extensions, which must be `Clone`.
#[derive(Clone, Default)]
pub struct Outbound(Arc<Mutex<Leaving>>);

#[derive(Default)]
struct Leaving {
    /// Dropped with the response, it is given back.
    claim: Option<Claimed>,
    /// The bytes themselves, as held of the connection's budget.
    hold: Option<Hold>,
}

impl Outbound {
    /// What leaves with a response that is one message.
    pub fn new(claim: Option<Claimed>, hold: Hold) -> Self {
        Self(Arc::new(Mutex::new(Leaving { claim, hold: Some(hold) })))
    }

    /// Adds what leaves with the next bytes.
    pub fn add(&self, more: Hold) {
        match &mut self.lock().hold {
            Some(hold) => hold.join(more),
            none => *none = Some(more),
        }
    }

    fn take(&self) -> Leaving {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Leaving> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes on their way out, and what they hold of the budget until HTTP/2 has sent and dropped them.
struct Held {
    bytes: Bytes,
    _hold: Hold,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Puts an [`Edge`] around routes.
#[derive(Clone)]
pub struct EdgeLayer {
    pub clock: Clock,
    /// How long a request may take to arrive whole.
    pub max_arrival: Duration,
    pub rules: Live,
    pub journal: Journal,
}

impl<S> tower::Layer<S> for EdgeLayer {
    type Service = Edge<S>;

    fn layer(&self, inner: S) -> Edge<S> {
        let Self { clock, max_arrival, rules, journal } = self.clone();
        Edge { inner, clock, max_arrival, rules, journal }
    }
}

/// The edge of the server.
#[derive(Clone)]
pub struct Edge<S> {
    inner: S,
    clock: Clock,
    max_arrival: Duration,
    rules: Live,
    journal: Journal,
}

impl<S, Q, A> tower::Service<http::Request<Q>> for Edge<S>
where
    S: tower::Service<http::Request<Inbound<Q>>, Response = http::Response<A>, Error = Infallible>,
    S::Future: Send + 'static,
    Q: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    A: HttpBody<Data = Bytes> + Send + 'static,
    A::Error: Into<tonic::codegen::StdError>,
{
    type Response = http::Response<EdgeBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Q>) -> Self::Future {
        let at = self.clock.now();
        if let Some(refusal) = not_grpc(&request) {
            return Box::pin(async move { Ok(refusal) });
        }
        let timeout = match timeout(request.headers()) {
            Ok(timeout) => timeout,
            Err(failure) => return Box::pin(async move { Ok(refused(&failure)) }),
        };
        let peer = request.extensions_mut().remove::<SocketAddr>();
        let caller = match caller(&mut request, &self.rules) {
            Ok(caller) => caller,
            Err(unproven) => {
                self.journal.unproven(unproven, request.uri().path(), peer);
                return Box::pin(async move { Ok(refused(&Failure::Unproven(unproven))) });
            }
        };
        let until = caller.as_ref().and_then(|caller| caller.until);
        let expires = until.map(|until| at + until.since(wall_time()));
        let deadline = timeout.map(|timeout| at + timeout);
        let trace = request.headers().get(trace::HEADER).and_then(|header| header.to_str().ok());
        let trace = trace.and_then(TraceParent::parse);
        let uri = request.uri().clone();
        let budget = request.extensions_mut().remove::<Budget>().unwrap_or_default();
        let inflow = Inflow::new(&budget);
        let is_stream = STREAMED.iter().any(|path| uri.path().starts_with(path));
        request.extensions_mut().insert(Arrival {
            at,
            deadline,
            caller,
            expires,
            budget,
            inflow: inflow.clone(),
            trace,
            peer,
        });
        let request = request.map(|body| Inbound::new(body, inflow, self.max_arrival, is_stream));
        let answering = catch_unwind(AssertUnwindSafe(|| self.inner.call(request)));
        let caught = async move {
            match answering {
                Ok(answering) => AssertUnwindSafe(answering).catch_unwind().await,
                Err(panic) => Err(panic),
            }
        };
        Box::pin(async move {
            let caught = match timeout {
                // The layers further in keep it too, but see no request that has not come to its end.
                Some(timeout) => tokio::time::timeout(timeout, caught).await,
                None => Ok(caught.await),
            };
            Ok(match caught {
                Ok(Ok(Ok(response))) => finish(response.map(Body::new), &uri),
                Ok(Err(panic)) => {
                    log(&*panic);
                    refusal(&PANICKED)
                }
                Err(_) => refusal(&Failure::DeadlineExceeded),
            })
        })
    }
}

/// The answer to a request that is not gRPC's: in HTTP's terms too, as whoever sent it may know no others.
fn not_grpc<Q>(request: &http::Request<Q>) -> Option<http::Response<EdgeBody>> {
    let (field, limit, sent, code) = if request.method() != Method::POST {
        (":method", "must be POST", request.method().as_str(), StatusCode::METHOD_NOT_ALLOWED)
    } else {
        let sent = request.headers().get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("no text"));
        let format = sent.and_then(|sent| sent.strip_prefix("application/grpc"));
        if format.is_some_and(|format| format.is_empty() || format.starts_with(['+', ';'])) {
            return None;
        }
        let limit = "must be application/grpc, with or without a format such as +proto";
        ("content-type", limit, sent.unwrap_or("none"), StatusCode::UNSUPPORTED_MEDIA_TYPE)
    };
    let sent: String = sent.chars().take(100).collect();
    let mut refusal = refused(&Failure::invalid(ErrorReason::RequestMalformed, field, limit, sent));
    *refusal.status_mut() = code;
    Some(refusal)
}

/// Who sent a request, by its token or the certificate of its connection, which the accept loop has put there.
fn caller<Q>(request: &mut http::Request<Q>, rules: &Live) -> Result<Option<Caller>, Unproven> {
    let certified = request.extensions_mut().remove::<Caller>();
    let rules = rules.load();
    let gate = &rules.gate;
    let path = request.uri().path();
    if !path.starts_with(OUR_SERVICES) && (gate.open_reflection || !path.starts_with(REFLECTION)) {
        return Ok(None);
    }
    let tokens: Vec<&[u8]> =
        request.headers().get_all(AUTHORIZATION).iter().map(http::HeaderValue::as_bytes).collect();
    gate.identify(certified.as_ref(), &tokens, wall_time())
}

/// Reads gRPC's timeout: up to eight digits and a unit.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Failure> {
    let Some(value) = headers.get(TIMEOUT_HEADER) else { return Ok(None) };
    let parse = |value: &str| {
        let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
        if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let amount: u64 = digits.parse().ok()?;
        match unit {
            "H" => Some(Duration::from_secs(amount * 3_600)),
            "M" => Some(Duration::from_secs(amount * 60)),
            "S" => Some(Duration::from_secs(amount)),
            "m" => Some(Duration::from_millis(amount)),
            "u" => Some(Duration::from_micros(amount)),
            "n" => Some(Duration::from_nanos(amount)),
            _ => None,
        }
    };
    value.to_str().ok().and_then(parse).map(Some).ok_or_else(|| {
        let limit = "must be 1 to 8 digits and one of H, M, S, m, u, n";
        let sent = format!("{} bytes", value.len());
        Failure::invalid(ErrorReason::RequestMalformed, TIMEOUT_HEADER, limit, sent)
    })
}

/// The answer to a request that never became a call.
fn refused(failure: &Failure) -> http::Response<EdgeBody> {
    metrics::counter!(REFUSED_REQUESTS, "error_type" => name(failure.reason())).increment(1);
    refusal(failure)
}

/// An answer that is nothing but a status.
fn refusal(failure: &Failure) -> http::Response<EdgeBody> {
    failure.to_status().into_http::<Body>().map(|body| EdgeBody::new(body, None))
}

/// The answer as it leaves.
fn finish(mut response: http::Response<Body>, uri: &Uri) -> http::Response<EdgeBody> {
    if let Some(failure) = Status::from_header_map(response.headers()).and_then(|status| bare(&status, uri)) {
        return refused(&failure);
    }
    let outbound = response.extensions_mut().remove::<Outbound>();
    response.map(|body| EdgeBody::new(body, outbound))
}

/// The failure behind a status that tonic made by itself, without a reason; `None` for any other.
fn bare(status: &Status, uri: &Uri) -> Option<Failure> {
    let ours = uri.path().starts_with(OUR_SERVICES);
    if !status.details().is_empty() || !(ours || status.code() == Code::Unimplemented) {
        return None;
    }
    match status.code() {
        Code::Ok => None,
        // Unknown methods come without a text.
        Code::Unimplemented if status.message().is_empty() => {
            Some(Failure::UnknownMethod(uri.path().chars().take(200).collect()))
        }
        Code::Unimplemented => Some(Failure::UnknownEncoding(status.message().to_owned())),
        _ => Some(undecodable(status)),
    }
}

/// The failure behind an error of reading a request, which tonic tells in a status of its own making.
pub fn undecodable(status: &Status) -> Failure {
    tracing::debug!(code = ?status.code(), text = status.message(), "a request could not be read");
    let malformed =
        |limit: &str, sent: &str| Failure::invalid(ErrorReason::RequestMalformed, "request", limit, sent);
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => {
            malformed("must be within the server's limit for a message", status.message())
        }
        Code::Cancelled => Failure::Cancelled,
        Code::DeadlineExceeded => Failure::DeadlineExceeded,
        Code::Internal | Code::InvalidArgument | Code::DataLoss => {
            malformed("must be one message of the method's request type", "none, or bytes that are not one")
        }
        Code::Ok
        | Code::Unknown
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unimplemented
        | Code::Unavailable
        | Code::Unauthenticated => malformed("must arrive whole", "a request that broke off"),
    }
}

fn log(panic: &(dyn Any + Send)) {
    tracing::error!(panic = text(panic), "an HTTP request panicked: a fault of the server");
}

/// The body of an answer.
pub struct EdgeBody {
    body: Body,
    /// The claim in it counts as delivered when the first bytes are handed to HTTP/2, which from then on may send
    /// them: not earlier, so that the claim of a caller who hung up meanwhile is given back (its body is dropped
    /// unread), and not later, when the caller may already be at work. The headers that leave before say nothing
    /// of the claim.
    outbound: Option<Outbound>,
    ended: bool,
}

impl EdgeBody {
    /// A body, and what leaves with it.
    pub fn new(body: Body, outbound: Option<Outbound>) -> Self {
        Self { body, outbound, ended: false }
    }

    /// Bytes that leave now.
    fn leave(&self, bytes: Bytes) -> Bytes {
        let Some(outbound) = &self.outbound else { return bytes };
        let Leaving { claim, hold } = outbound.take();
        if let Some(mut claim) = claim {
            claim.delivered();
        }
        match hold {
            Some(hold) => Bytes::from_owner(Held { bytes, _hold: hold }),
            None => bytes,
        }
    }
}

impl HttpBody for EdgeBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.body).poll_frame(context)));
        match polled {
            Ok(Poll::Ready(Some(Ok(frame)))) => {
                Poll::Ready(Some(Ok(frame.map_data(|bytes| self.leave(bytes)))))
            }
            Ok(other) => other,
            Err(panic) => {
                log(&*panic);
                self.ended = true;
                let mut trailers = HeaderMap::new();
                Poll::Ready(Some(
                    PANICKED.to_status().add_header(&mut trailers).map(|()| Frame::trailers(trailers)),
                ))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(value: &str) -> Result<Option<Duration>, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(TIMEOUT_HEADER, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        timeout(&headers)
    }

    #[test]
    fn a_timeout_is_read_in_each_unit() {
        let cases =
            [("2H", 7_200_000), ("3M", 180_000), ("4S", 4_000), ("5m", 5), ("6000u", 6), ("7000000n", 7)];
        for (value, ms) in cases {
            assert_eq!(sent(value), Ok(Some(Duration::from_millis(ms))), "{value}");
        }
        assert_eq!(sent("99999999H"), Ok(Some(Duration::from_secs(99_999_999 * 3_600))));
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn a_malformed_timeout_is_refused() {
        for value in ["", "S", "5", "5s", "-5S", "+5S", "5.5S", "123456789S", "5 S", "\u{e9}S", "5\u{e9}"] {
            let failure = sent(value).unwrap_err();
            assert_eq!(failure.reason(), ErrorReason::RequestMalformed, "{value:?}");
        }
    }

    struct Bomb;

    impl HttpBody for Bomb {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            panic!("in the body");
        }
    }

    #[tokio::test]
    async fn a_panic_of_a_body_ends_it_with_internal() {
        use http_body_util::BodyExt;
        let mut body = EdgeBody::new(Body::new(Bomb), None);
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(Status::from_header_map(&trailers).unwrap().code(), Code::Internal);
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_panic_of_a_service_is_answered_with_internal() {
        let service = tower::service_fn(|_: http::Request<Inbound<Body>>| async {
            if true {
                panic!("in the service");
            }
            Ok::<_, Infallible>(http::Response::new(Body::empty()))
        });
        let layer = EdgeLayer {
            clock: Clock::system(),
            max_arrival: Duration::from_secs(10),
            rules: Live::default(),
            journal: Journal::new(Clock::system()),
        };
        let mut edge = tower::Layer::layer(&layer, service);
        let call = http::Request::post("/").header(http::header::CONTENT_TYPE, "application/grpc");
        let call = call.body(Body::empty()).unwrap();
        let response = tower::Service::call(&mut edge, call).await.unwrap();
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.details().is_empty());
    }
}
