//! The admin port, over HTTP/1: `/livez`, `/readyz` and `/metrics`. It is there before the store is opened, and
//! until the shutdown is done, so that who looks after the server always gets an answer.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::accept::{ACCEPT_PAUSE, is_of_one_connection};
use super::{Error, process};
use crate::clock::Clock;
use crate::rpc::health::Readiness;
use crate::telemetry::metrics::{self, Counted};

/// How many connections are kept. One more ends the oldest: whoever comes is served, whatever the others do.
const CONNECTIONS_MAX: usize = 64;
/// How long a connection may take, from its request to its answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The most that is read of a request, in bytes.
const REQUEST_MAX_BYTES: usize = 16 << 10;

/// The paths, for those who ask for another one.
const PATHS: &str = "there are /livez, /readyz and /metrics\n";
/// The form of `/metrics`.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// How often what was measured is sorted into its buckets.
const SORT_PERIOD: Duration = Duration::from_secs(1);

/// The admin port of a server, or of a proxy. It is served as long as this lives.
pub(crate) struct Admin {
    address: SocketAddr,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// What is told there.
#[derive(Clone)]
struct Pages {
    readiness: watch::Receiver<Readiness>,
    clock: Clock,
    counted: Counted,
}

impl Admin {
    /// Starts to serve, and to count: what was made before this is not counted.
    ///
    /// # Errors
    /// If the address is taken, or not ours; if something counts already.
    pub(crate) async fn start(
        listen: SocketAddr,
        readiness: watch::Receiver<Readiness>,
        clock: Clock,
    ) -> Result<Self, Error> {
        let refused = |source| Error::AdminListen { listen, source };
        let listener = TcpListener::bind(listen).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let counted = metrics::start()?;
        process::started();
        let pages = Pages { readiness, clock, counted: counted.clone() };
        let tasks = [tokio::spawn(accept(listener, pages)), tokio::spawn(sort(counted))];
        Ok(Self { address, _tasks: tasks.map(AbortOnDropHandle::new) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Sorts what was measured, or it would pile up where nobody asks for it; never ends.
async fn sort(counted: Counted) {
    loop {
        tokio::time::sleep(SORT_PERIOD).await;
        counted.sort();
    }
}

/// Accepts and serves connections; never ends. Dropped, it ends them.
async fn accept(listener: TcpListener, pages: Pages) {
    let mut newest = VecDeque::with_capacity(CONNECTIONS_MAX + 1);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = tokio::time::timeout(CONNECTION_TIMEOUT, connection(stream, pages.clone()));
                newest.push_back(AbortOnDropHandle::new(tokio::spawn(served)));
                if newest.len() > CONNECTIONS_MAX {
                    newest.pop_front();
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept connections to the admin port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers one request. More would have to be told apart from connections that only stay open.
async fn connection(stream: TcpStream, pages: Pages) {
    let service = hyper::service::service_fn(move |request: http::Request<_>| {
        let answer = pages.answer(request.method(), request.uri().path());
        async { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .max_buf_size(REQUEST_MAX_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection to the admin port broke");
    }
}

impl Pages {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let mut response = match (path, method) {
            ("/livez" | "/readyz" | "/metrics", method) if !matches!(*method, Method::GET | Method::HEAD) => {
                let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
                refused.headers_mut().insert(ALLOW, http::HeaderValue::from_static("GET, HEAD"));
                refused
            }
            ("/livez", _) => status(StatusCode::OK, &json!({ "status": "live" })),
            ("/readyz", _) => self.readiness(),
            ("/metrics", _) => {
                process::count();
                answer(StatusCode::OK, PROMETHEUS, self.counted.render())
            }
            _ => text(StatusCode::NOT_FOUND, PATHS),
        };
        // What holds now does not hold a moment later.
        let no_store = http::HeaderValue::from_static("no-store");
        response.headers_mut().insert(http::header::CACHE_CONTROL, no_store);
        response
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        let readiness = self.readiness.borrow().clone();
        match readiness.why_not(self.clock.now()) {
            None => status(StatusCode::OK, &json!({ "status": "ready" })),
            Some(why) => {
                let page = json!({ "status": "not ready", "reason": readiness.name(), "why": why });
                status(StatusCode::SERVICE_UNAVAILABLE, &page)
            }
        }
    }
}

fn status(code: StatusCode, page: &serde_json::Value) -> Response<Full<Bytes>> {
    answer(code, "application/json", format!("{page}\n"))
}

fn text(code: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    answer(code, "text/plain; charset=utf-8", text.to_owned())
}

fn answer(code: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
