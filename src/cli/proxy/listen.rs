//! Connections from callers: HTTP/1.1, and HTTP/2 without TLS.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use metrics::gauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::Holding;
use super::front::Front;
use super::streams::{Streams, on_stream};
use super::writing::Writing;
use crate::telemetry::metrics::{LIMIT_SIZE, LIMIT_USED};

/// How long accepting pauses after it failed, as it does when files run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// The most that is read of the head of a request, in bytes.
const HEAD_MAX_BYTES: u32 = 64 << 10;
/// How often an HTTP/2 connection is asked whether anybody is there, and how long that may take.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How many requests an HTTP/2 connection may have open.
const STREAMS_MAX: u32 = 256;
/// The name of the limit on connections, as the metrics have it.
const LIMIT: &str = "connections";

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many there may be. Others wait to be accepted.
    pub connections: usize,
    /// How long one may be without a request, and a request may take to show its head.
    pub idle: Duration,
    /// How long a caller may take to read a piece of an answer.
    pub write: Duration,
}

/// The connections of a proxy.
pub struct Connections {
    front: Arc<Front>,
    http: auto::Builder<Streams>,
    limits: Limits,
    free: Arc<Semaphore>,
    tasks: TaskTracker,
    draining: CancellationToken,
    cut: CancellationToken,
}

impl Connections {
    /// Connections to `front`, none yet.
    pub fn new(front: Arc<Front>, limits: Limits) -> Self {
        let mut http = auto::Builder::new(Streams(limits.write));
        // It starts as soon as there could be a request, and so bounds how long a connection may be idle, too.
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.idle)
            .max_buf_size(HEAD_MAX_BYTES as usize);
        http.http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_MAX_BYTES);
        gauge!(LIMIT_SIZE, "limit" => LIMIT).set(limits.connections as f64);
        let free = Arc::new(Semaphore::new(limits.connections));
        let (tasks, draining, cut) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
        Self { front, http, limits, free, tasks, draining, cut }
    }

    /// Accepts and serves connections; never ends.
    pub async fn accept(&self, listener: &TcpListener) {
        loop {
            // It is never closed.
            let Ok(place) = Arc::clone(&self.free).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    self.tasks.spawn(self.connection(stream, peer, place));
                }
                Err(error) => {
                    // Out of files, most likely. The next attempt would fail at once too, so do not spin.
                    tracing::error!(%error, "cannot accept connections");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.tasks.len()
    }

    /// Tells the metrics how many are open.
    pub fn count(&self) {
        gauge!(LIMIT_USED, "limit" => LIMIT).set(self.open() as f64);
    }

    /// Has every connection end once its requests are answered, and waits for that.
    pub async fn drain(&self) {
        self.draining.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Ends those that are left while they drain, whatever their callers are at.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    fn connection(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + use<> {
        let (front, http) = (Arc::clone(&self.front), self.http.clone());
        let (limits, draining, cut) = (self.limits, self.draining.clone(), self.cut.clone());
        async move {
            let _place = place;
            // Without it, an answer in two segments waits 40 ms for the caller's delayed acknowledgement.
            if let Err(error) = stream.set_nodelay(true) {
                return tracing::debug!(%peer, %error, "lost a new connection");
            }
            let (open, mut opened) = watch::channel(0_usize);
            let open = Arc::new(open);
            let service = service_fn(move |request: Request<Incoming>| {
                let (front, one) = (Arc::clone(&front), Open::new(&open));
                async move {
                    let (response, place) = front.answer(request, peer.ip()).await;
                    let held = |body| Holding::new(body, (place, one)).boxed_unsync();
                    Ok::<_, Infallible>(response.map(held).map(on_stream))
                }
            });
            let io = TokioIo::new(Writing::new(stream, limits.write));
            let connection = http.serve_connection(io, service);
            tokio::pin!(connection);
            let ended = tokio::select! {
                biased;
                ended = connection.as_mut() => ended,
                () = due(&mut opened, limits.idle, &draining) => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        biased;
                        ended = connection.as_mut() => ended,
                        // One that has shown half of a request may take no longer than any other.
                        () = unused(&mut opened, limits.idle) => return,
                        () = cut.cancelled() => return,
                    }
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "a connection broke");
            }
        }
    }
}

/// Waits until a connection is to end: the proxy drains, or it has had no request for too long.
async fn due(opened: &mut watch::Receiver<usize>, limit: Duration, draining: &CancellationToken) {
    tokio::select! {
        biased;
        () = draining.cancelled() => {}
        () = unused(opened, limit) => {}
    }
}

/// Waits until there was no request for as long as the limit.
async fn unused(opened: &mut watch::Receiver<usize>, limit: Duration) {
    loop {
        // The sender is with the connection, which outlives this.
        if opened.wait_for(|open| *open == 0).await.is_err() {
            return std::future::pending().await;
        }
        if tokio::time::timeout(limit, opened.wait_for(|open| *open > 0)).await.is_err() {
            return;
        }
    }
}

/// One more request of a connection, as long as this lives.
struct Open(Arc<watch::Sender<usize>>);

impl Open {
    fn new(open: &Arc<watch::Sender<usize>>) -> Self {
        open.send_modify(|open| *open += 1);
        Self(Arc::clone(open))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}
