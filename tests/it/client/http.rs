//! The layer for the Idempotency-Key header, in front of a real axum server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Extension, Router};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use onced_client::http::{Disposition, OnceLayer};
use onced_client::v1::{ListRequest, RecordState};
use onced_client::{Claim, Client, OnFailure, Record};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};

use super::{Server, TTL, claim, dead_address, lookup};
use crate::support::proxy::Proxy;
use crate::support::server::HANGS;

/// A shop: what it does, it counts.
#[derive(Clone, Default)]
struct Shop {
    runs: Arc<AtomicUsize>,
    /// Told when a slow order begins.
    begun: Arc<Notify>,
    /// What a slow order waits for.
    go_on: Arc<Notify>,
    /// What a stream has to be sent.
    events: Arc<Events>,
}

struct Events(Semaphore);

impl Default for Events {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Shop {
    fn count(&self) -> usize {
        self.runs.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    async fn serve(&self, layer: OnceLayer) -> SocketAddr {
        let routes = Router::new()
            .route("/orders", post(order).get(order).patch(order))
            .route("/slow", post(slow))
            .route("/status/{status}", post(status))
            .route("/says/{word}", post(says))
            .route("/panics", post(panics))
            .route("/large/{bytes}", post(large))
            .route("/events", post(events))
            .route("/odd", post(odd))
            .layer(layer)
            .with_state(self.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        address
    }
}

async fn order(State(shop): State<Shop>, claim: Option<Extension<Claim>>, body: String) -> Response {
    let token = claim.map_or(0, |Extension(claim)| claim.fencing_token());
    assert_ne!(token, u64::MAX);
    let mut answer = (StatusCode::CREATED, format!("order {} of {body}", shop.count())).into_response();
    let headers = answer.headers_mut();
    headers.insert("location", HeaderValue::from_static("/orders/1"));
    headers.append("link", HeaderValue::from_static("</a>"));
    headers.append("link", HeaderValue::from_static("</b>"));
    headers.insert("set-cookie", HeaderValue::from_static("session=1"));
    headers.insert("x-mine", HeaderValue::from_static("mine"));
    answer
}

async fn slow(State(shop): State<Shop>) -> String {
    let run = shop.count();
    shop.begun.notify_one();
    shop.go_on.notified().await;
    format!("slow {run}")
}

async fn status(State(shop): State<Shop>, path: axum::extract::Path<u16>) -> Response {
    (StatusCode::from_u16(path.0).unwrap(), format!("run {}", shop.count())).into_response()
}

async fn says(State(shop): State<Shop>, path: axum::extract::Path<String>) -> Response {
    let (status, said) = match path.0.as_str() {
        "store" => (StatusCode::BAD_GATEWAY, Disposition::Store),
        "retry" => (StatusCode::OK, Disposition::Retry),
        _ => (StatusCode::OK, Disposition::InDoubt),
    };
    (status, Extension(said), format!("run {}", shop.count())).into_response()
}

async fn panics(State(shop): State<Shop>) -> String {
    shop.count();
    panic!("the handler panics, as it is meant to")
}

async fn large(State(shop): State<Shop>, bytes: axum::extract::Path<usize>) -> Vec<u8> {
    shop.count();
    vec![b'x'; bytes.0]
}

/// A body without end, an event for each that is allowed.
async fn events(State(shop): State<Shop>, headers: HeaderMap) -> Response {
    shop.count();
    let stream = futures_util::stream::unfold(shop, |shop| async move {
        shop.events.0.acquire().await.ok()?.forget();
        Some((Ok::<_, std::io::Error>("data: x\n\n"), shop))
    });
    let body = axum::body::Body::from_stream(stream);
    let mut answer = ([("content-type", "text/event-stream")], body).into_response();
    if headers.contains_key("x-retry") {
        answer.extensions_mut().insert(Disposition::Retry);
    }
    answer
}

async fn odd(State(shop): State<Shop>) -> Response {
    shop.count();
    ([("etag", HeaderValue::from_bytes(b"\xff").unwrap())], "odd").into_response()
}

type Request = http::Request<Full<Bytes>>;

fn request(method: &str, target: &str, key: Option<&str>, body: &'static str) -> Request {
    let mut request = http::Request::builder().method(method).uri(target).header("host", "shop");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    request.body(Full::from(body)).unwrap()
}

/// Sends a request on a connection of its own, which is closed when the answer is dropped.
async fn open(address: SocketAddr, request: Request) -> http::Response<hyper::body::Incoming> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    tokio::time::timeout(HANGS, sender.send_request(request)).await.expect("no answer").unwrap()
}

#[derive(Clone, Debug, PartialEq)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn replayed(&self) -> bool {
        self.headers.get("idempotent-replayed").is_some_and(|value| value == "true")
    }

    /// The code of a problem.
    #[track_caller]
    fn code(&self) -> String {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        let problem: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(problem["status"], self.status);
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
        problem["code"].as_str().unwrap().to_owned()
    }
}

async fn send(address: SocketAddr, request: Request) -> Answer {
    let (parts, body) = open(address, request).await.into_parts();
    let body = tokio::time::timeout(HANGS, body.collect()).await.expect("no end").unwrap();
    let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

async fn post_to(address: SocketAddr, target: &str, key: &str) -> Answer {
    send(address, request("POST", target, Some(key), "")).await
}

/// Hangs up on a request as soon as the shop is at it.
async fn hang_up_on_slow(shop: &Shop, address: SocketAddr, key: &'static str) {
    let asking = tokio::spawn(async move { post_to(address, "/slow", key).await });
    tokio::time::timeout(HANGS, shop.begun.notified()).await.expect("it does not begin");
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
}

/// The state of the only key there is.
async fn state(client: &Client) -> RecordState {
    let request = ListRequest { namespace: "default".to_owned(), ..ListRequest::default() };
    client.list(request).await.unwrap().records[0].state()
}

fn layer(client: &Client) -> OnceLayer {
    OnceLayer::new(client.clone()).lock_ttl(TTL)
}

#[tokio::test]
async fn an_answer_is_replayed_byte_for_byte() {
    let server = Server::start().await;
    let shop = Shop::default();
    let mine = http::HeaderName::from_static("x-mine");
    let address = shop.serve(layer(&server.client()).store_headers([mine])).await;
    let ask = || async move { send(address, request("POST", "/orders?a=1", Some("\"k\""), "book")).await };
    let (first, second) = (ask().await, ask().await);
    assert_eq!((first.status, first.body.as_str(), first.replayed()), (201, "order 1 of book", false));
    assert_eq!(first.headers["set-cookie"], "session=1");
    assert!(second.replayed());
    assert_eq!((second.status, &second.body), (first.status, &first.body));
    for name in ["content-type", "content-length", "location", "x-mine"] {
        assert_eq!(second.headers.get(name), first.headers.get(name), "{name}");
    }
    let links: Vec<_> = second.headers.get_all("link").iter().collect();
    assert_eq!(links, ["</a>", "</b>"]);
    assert_eq!(second.headers.get("set-cookie"), None, "it was for the first caller alone");
    assert_eq!(shop.runs(), 1);
}

#[tokio::test]
async fn duplicates_at_the_same_time_wait_or_are_told() {
    let server = Server::start().await;
    let client = server.client();
    let shop = Shop::default();
    let patient = shop.serve(layer(&client)).await;
    let hasty = shop.serve(layer(&client).wait(Duration::ZERO)).await;
    let first = tokio::spawn(async move { post_to(patient, "/slow", "k").await });
    shop.begun.notified().await;
    let second = tokio::spawn(async move { post_to(patient, "/slow", "k").await });
    let told = post_to(hasty, "/slow", "k").await;
    assert_eq!((told.status, told.code().as_str()), (409, "REQUEST_IN_PROGRESS"));
    assert_eq!(told.headers["retry-after"], "1");
    shop.go_on.notify_one();
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert_eq!((first.body.as_str(), second.body.as_str()), ("slow 1", "slow 1"));
    assert_eq!((first.replayed(), second.replayed(), shop.runs()), (false, true, 1));
}

#[tokio::test]
async fn a_handler_runs_to_its_end_when_its_caller_hangs_up() {
    let server = Server::start().await;
    let shop = Shop::default();
    let address = shop.serve(layer(&server.client())).await;
    hang_up_on_slow(&shop, address, "k").await;
    let second = tokio::spawn(async move { post_to(address, "/slow", "k").await });
    // Longer than the lock would live if nobody renewed it: the key is not free while the handler runs.
    tokio::time::sleep(TTL + Duration::from_millis(500)).await;
    shop.go_on.notify_one();
    let second = second.await.unwrap();
    assert_eq!((second.body.as_str(), second.replayed(), shop.runs()), ("slow 1", true, 1));
}

#[tokio::test]
async fn closing_the_client_waits_for_a_handler_whose_caller_has_gone() {
    let server = Server::start().await;
    let client = server.client();
    let shop = Shop::default();
    let address = shop.serve(layer(&client)).await;
    hang_up_on_slow(&shop, address, "k").await;
    assert!(!client.close(Duration::from_millis(50)).await);
    shop.go_on.notify_one();
    assert!(client.close(Duration::from_secs(60)).await);
    assert!(matches!(lookup(&server.client(), "k").await.unwrap(), Record::Completed(_)));
    assert_eq!(post_to(address, "/slow", "other").await.code(), "UNAVAILABLE");
}

#[tokio::test]
async fn a_caller_that_hangs_up_while_it_waits_leaves_the_key_alone() {
    let server = Server::start().await;
    let client = server.client();
    let shop = Shop::default();
    let address = shop.serve(layer(&client)).await;
    let held = claim(&client, "k").await;
    let waiting = tokio::spawn(async move { post_to(address, "/orders", "k").await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    waiting.abort();
    let release = onced_client::v1::ReleaseRequest {
        namespace: "default".to_owned(),
        key: "k".to_owned(),
        fencing_token: held.fencing_token,
        disposition: onced_client::v1::Disposition::Retry.into(),
        reason: String::new(),
    };
    client.release(release).await.unwrap();
    // Whoever comes next has it at once, and is the first to run.
    let next = tokio::time::timeout(TTL * 5, post_to(address, "/orders", "k")).await.unwrap();
    assert_eq!((next.status, next.body.as_str()), (201, "order 1 of "));
}

#[tokio::test]
async fn what_a_status_says_becomes_of_the_key() {
    let server = Server::start().await;
    let client = server.client();
    let shop = Shop::default();
    let address = shop.serve(layer(&client)).await;
    let strict = shop.serve(layer(&client).on_5xx(OnFailure::InDoubt)).await;
    for (status, stored) in [
        (200, true),
        (302, true),
        (404, true),
        (401, false),
        (408, false),
        (429, false),
        (500, false),
        (503, false),
    ] {
        let (target, key) = (format!("/status/{status}"), format!("k{status}"));
        let (first, second) = (post_to(address, &target, &key).await, post_to(address, &target, &key).await);
        assert_eq!((first.status, second.status), (status, status));
        assert_eq!((second.replayed(), second.body == first.body), (stored, stored), "{status}");
    }
    for (status, expected) in [(500, 409), (429, 429)] {
        let (target, key) = (format!("/status/{status}"), format!("strict{status}"));
        assert_eq!(post_to(strict, &target, &key).await.status, status);
        assert_eq!(post_to(strict, &target, &key).await.status, expected, "{status}");
    }
    let doubt = post_to(strict, "/status/500", "strict500").await;
    assert_eq!(doubt.code(), "IN_DOUBT");
}

#[tokio::test]
async fn a_handlers_own_word_outranks_its_status() {
    let server = Server::start().await;
    let shop = Shop::default();
    let address = shop.serve(layer(&server.client()).on_5xx(OnFailure::InDoubt)).await;
    let twice = async |word: &str| {
        let target = format!("/says/{word}");
        let first = post_to(address, &target, word).await;
        assert_eq!(first.headers.get("idempotent-replayed"), None);
        (first, post_to(address, &target, word).await)
    };
    let (first, second) = twice("store").await;
    assert_eq!((first.status, second.status, second.replayed(), &second.body), (502, 502, true, &first.body));
    let (first, second) = twice("retry").await;
    assert_eq!((first.body.as_str(), second.body.as_str()), ("run 2", "run 3"));
    let (first, second) = twice("in-doubt").await;
    assert_eq!((first.status, first.body.as_str(), second.code().as_str()), (200, "run 4", "IN_DOUBT"));
}

#[tokio::test]
async fn a_panic_gives_the_key_back_by_the_rule() {
    let server = Server::start().await;
    let client = server.client();
    let shop = Shop::default();
    let address = shop.serve(layer(&client).on_5xx(OnFailure::InDoubt)).await;
    let asking = tokio::spawn(async move { post_to(address, "/panics", "k").await });
    // As without the layer: the connection breaks.
    assert!(asking.await.unwrap_err().is_panic());
    assert_eq!((state(&client).await, shop.runs()), (RecordState::InDoubt, 1));
    assert_eq!(post_to(address, "/panics", "k").await.code(), "IN_DOUBT");
}

#[tokio::test]
async fn what_a_request_lacks_is_told_and_nothing_runs() {
    let server = Server::start().await;
    let client = server.client();
    let shop = Shop::default();
    let strict = shop.serve(layer(&client).max_request_bytes(4)).await;
    let scoped = shop.serve(layer(&client).scope_header(http::HeaderName::from_static("x-account"))).await;
    let code = async |address, request| send(address, request).await.code();
    assert_eq!(code(strict, request("POST", "/orders", None, "")).await, "IDEMPOTENCY_KEY_MISSING");
    assert_eq!(code(strict, request("PATCH", "/orders", None, "")).await, "IDEMPOTENCY_KEY_MISSING");
    assert_eq!(code(strict, request("POST", "/orders", Some("\"a"), "")).await, "IDEMPOTENCY_KEY_INVALID");
    let mut twice = request("POST", "/orders", Some("a"), "");
    twice.headers_mut().append("idempotency-key", HeaderValue::from_static("b"));
    assert_eq!(code(strict, twice).await, "IDEMPOTENCY_KEY_INVALID");
    assert_eq!(code(strict, request("POST", "/orders", Some("k"), "12345")).await, "REQUEST_TOO_LARGE");
    assert_eq!(code(scoped, request("POST", "/orders", Some("k"), "")).await, "SCOPE_MISSING");
    assert_eq!(shop.runs(), 0);

    let open = shop.serve(layer(&client).key_optional()).await;
    assert_eq!(send(open, request("POST", "/orders", None, "")).await.status, 201);
    assert_eq!(send(strict, request("GET", "/orders", None, "")).await.status, 201);
    assert_eq!(shop.runs(), 2);
}

#[tokio::test]
async fn a_key_is_of_one_request_and_one_scope() {
    let server = Server::start().await;
    let shop = Shop::default();
    let account = http::HeaderName::from_static("x-account");
    let address = shop.serve(layer(&server.client()).scope_header(account)).await;
    let ask = async |target: &str, account: &'static str, body: &'static str| {
        let mut request = request("POST", target, Some("k"), body);
        request.headers_mut().insert("x-account", HeaderValue::from_static(account));
        send(address, request).await
    };
    assert_eq!(ask("/orders", "anna", "book").await.body, "order 1 of book");
    assert_eq!(ask("/orders", "bert", "lamp").await.body, "order 2 of lamp");
    assert_eq!(ask("/orders", "anna", "book").await.body, "order 1 of book");
    for (target, body) in [("/orders", "lamp"), ("/orders?x", "book")] {
        let other = ask(target, "anna", body).await;
        assert_eq!((other.status, other.code().as_str()), (422, "FINGERPRINT_MISMATCH"), "{target} {body}");
    }
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_and_in_doubt() {
    let server = Server::start().await;
    let client = server.client();
    let shop = Shop::default();
    let address = shop.serve(layer(&client)).await;
    let small = shop.serve(layer(&client).max_response_bytes(10)).await;
    assert_eq!(post_to(small, "/large/10", "small").await.status, 200);
    // The claim allows 1 MiB for all: with its status and headers, so large a body is not in it.
    for (address, target) in [
        (small, "/large/11"),
        (address, "/large/1048577"),
        (address, "/large/1048576"),
        (address, "/events"),
        (address, "/odd"),
    ] {
        let key = target.replace('/', "-");
        let answer = post_to(address, target, &key).await;
        assert_eq!((answer.status, answer.code().as_str()), (500, "RESPONSE_NOT_STORABLE"), "{target}");
        assert_eq!(post_to(address, target, &key).await.code(), "IN_DOUBT", "{target}");
    }
    assert_eq!(shop.runs(), 6);
}

#[tokio::test]
async fn an_answer_that_is_not_to_be_stored_passes_and_holds_its_key_to_its_end() {
    let server = Server::start().await;
    let client = server.client();
    let shop = Shop::default();
    let address = shop.serve(layer(&client).wait(Duration::ZERO).unread(Duration::from_millis(200))).await;
    let retry = || {
        let mut request = request("POST", "/events", Some("k"), "");
        request.headers_mut().insert("x-retry", HeaderValue::from_static("1"));
        request
    };
    for hangs_up in [true, false] {
        let mut answer = open(address, retry()).await;
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        shop.events.0.add_permits(1);
        let event = tokio::time::timeout(HANGS, answer.body_mut().frame()).await.expect("it is held back");
        assert_eq!(event.unwrap().unwrap().into_data().unwrap(), "data: x\n\n");
        // The handler is still at it.
        assert_eq!(send(address, retry()).await.code(), "REQUEST_IN_PROGRESS");
        let _unread = (!hangs_up).then_some(answer);
        // The server notices by what it sends that nobody listens.
        let freed = async {
            while state(&client).await != RecordState::Available {
                shop.events.0.add_permits(100_000);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(HANGS, freed).await.expect("the key is free");
        shop.events.0.forget_permits(usize::MAX);
    }
    assert_eq!(shop.runs(), 2);
}

#[tokio::test]
async fn without_onced_requests_are_refused_unless_told_otherwise() {
    let client = Client::builder(dead_address().await).timeout(Duration::from_millis(200)).build().unwrap();
    let shop = Shop::default();
    let closed = shop.serve(layer(&client).wait(Duration::ZERO)).await;
    let answer = post_to(closed, "/orders", "k").await;
    assert_eq!((answer.status, answer.code().as_str(), shop.runs()), (503, "UNAVAILABLE", 0));
    assert_eq!(answer.headers["retry-after"], "1");
    let open = shop.serve(layer(&client).fail_open(Duration::from_millis(50))).await;
    let answer = post_to(open, "/orders", "k").await;
    assert_eq!((answer.status, answer.body.as_str(), client.unprotected_runs()), (201, "order 1 of ", 1));
}

#[tokio::test]
async fn an_answer_that_may_not_be_stored_is_handed_out_all_the_same() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.address.clone()).await;
    let client = Client::builder(proxy.endpoint()).timeout(Duration::from_millis(200)).build().unwrap();
    let shop = Shop::default();
    let address = shop.serve(layer(&client)).await;
    let asking = tokio::spawn(async move { post_to(address, "/slow", "k").await });
    shop.begun.notified().await;
    proxy.close();
    shop.go_on.notify_one();
    let answer = asking.await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "slow 1"));
}

#[tokio::test]
async fn an_outcome_that_is_no_answer_is_refused() {
    let server = Server::start().await;
    let client = server.client();
    let shop = Shop::default();
    let address = shop.serve(layer(&client)).await;
    client.once("k").run(|_| async { Ok("not of HTTP") }).await.unwrap();
    assert_eq!(post_to(address, "/orders", "k").await.code(), "REFUSED");
    assert_eq!(post_to(address, "/orders", "k2").await.status, 201);
}
