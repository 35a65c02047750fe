//! The accept loop and its connections. What tonic's own server leaves open is closed here: TCP_NODELAY is
//! set, connections and their streams are counted, silent sockets are let go, running out of files does not
//! spin.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics::{Counter, Gauge, counter, gauge};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::rustls;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tower::util::MapRequest;

use super::live::LiveTls;
use super::open::open;
use crate::clock::Clock;
use crate::config::Limits;
use crate::rpc::{Budget, Closing};
use crate::telemetry::Throttle;
use crate::telemetry::metrics::{
    CERTIFICATE_EXPIRY, LIMIT_SHED, LIMIT_SIZE, LIMIT_USED, REFUSED_CONNECTIONS,
};

/// How long accepting pauses after it failed, as it does when files run out.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// What a stream may send before it is read: room for the largest request.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// What a connection may send before it is read.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// How long the calls of a connection may take that is to end: longer than they wait, as a rule.
const LAST_CALLS: Duration = Duration::from_secs(5 * 60);

/// The name of the limit on connections, as the settings have it.
const LIMIT: &str = "connections";

/// Why connections are refused, as the metrics have it.
const TLS: &str = "tls";
const PROTOCOL: &str = "protocol";
const SILENCE: &str = "silence";

/// Where connections come from: a socket of this machine, or of a simulated one.
pub trait Listener: Send + Sync {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next connection, and tells who made it. May be dropped and called again.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let (stream, peer) = TcpListener::accept(self).await?;
            // Without it, an answer in two segments waits 40 ms for the client's delayed acknowledgement.
            match stream.set_nodelay(true) {
                Ok(()) => return Ok((stream, peer)),
                Err(error) => tracing::debug!(%peer, %error, "lost a new connection"),
            }
        }
    }
}

/// The connections of a server.
pub(super) struct Connections {
    routes: Routes,
    tls: Option<LiveTls>,
    http: http2::Builder<TokioExecutor>,
    limits: Limits,
    clock: Clock,
    /// Between lines on handshakes that failed: one who cannot connect tries again and again.
    failures: Arc<Throttle>,
    free: Arc<Semaphore>,
    tasks: TaskTracker,
    draining: CancellationToken,
    dropped: CancellationToken,
    used: Gauge,
    shed: Counter,
}

impl Connections {
    /// Connections to `routes`, none yet; they end once their calls are answered after `draining` was cancelled.
    pub(super) fn new(
        routes: Routes,
        tls: Option<LiveTls>,
        limits: Limits,
        clock: Clock,
        draining: CancellationToken,
    ) -> Self {
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams_per_connection)
            // As many as may be open: when a server is behind, the deadlines of many calls pass at once, and those
            // who are left on the connection must not pay for it.
            .max_pending_accept_reset_streams(limits.streams_per_connection as usize)
            .keep_alive_interval(limits.keepalive_interval)
            .keep_alive_timeout(limits.keepalive_timeout)
            .max_header_list_size(limits.header_list_bytes)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let free = Arc::new(Semaphore::new(limits.connections));
        let (tasks, dropped) = (TaskTracker::new(), CancellationToken::new());
        gauge!(LIMIT_SIZE, "limit" => LIMIT).set(limits.connections as f64);
        let (used, shed) = (gauge!(LIMIT_USED, "limit" => LIMIT), counter!(LIMIT_SHED, "limit" => LIMIT));
        // Shown from the start, before any is refused.
        for cause in [TLS, PROTOCOL, SILENCE] {
            refused(cause, 0);
        }
        let failures = Arc::default();
        Self { routes, tls, http, limits, clock, failures, free, tasks, draining, dropped, used, shed }
    }

    /// Accepts and serves connections; never ends.
    pub(super) async fn accept(&self, listener: &impl Listener) {
        let mut refused = 0_u64;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => match Arc::clone(&self.free).try_acquire_owned() {
                    Ok(place) => {
                        self.tasks.spawn(self.connection(stream, peer, place));
                    }
                    Err(_) => {
                        refused += 1;
                        self.shed.increment(1);
                        // Each power of two: a flood of connections must not become a flood of lines.
                        if refused.is_power_of_two() {
                            let limit = self.limits.connections;
                            tracing::warn!(%peer, refused, limit, "too many connections: refused");
                        }
                    }
                },
                Err(error) if is_of_one_connection(&error) => {
                    tracing::debug!(%error, "lost a new connection")
                }
                Err(error) => {
                    // Out of files, most likely. The next attempt would fail at once too, so do not spin.
                    tracing::error!(%error, "cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// How many connections are open.
    pub(super) fn open(&self) -> usize {
        self.tasks.len()
    }

    /// Tells the metrics how many are open, and until when the certificate holds that new ones are shown.
    pub(super) fn count(&self) {
        self.used.set(self.open() as f64);
        if let Some(ends) = self.tls.as_ref().and_then(|tls| tls.load().shown.ends()) {
            gauge!(CERTIFICATE_EXPIRY).set(ends as f64);
        }
    }

    /// Tells every connection to end once its calls are answered.
    pub(super) fn start_drain(&self) {
        self.draining.cancel();
        self.tasks.close();
    }

    /// Waits for the end of all connections.
    pub(super) async fn drained(&self) {
        self.tasks.wait().await;
    }

    /// Drops what connections are left.
    pub(super) fn drop_all(&self) {
        self.dropped.cancel();
    }

    fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        peer: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + use<S> {
        let Limits { bytes_per_connection, active_calls_per_connection, streams_per_connection, .. } =
            self.limits;
        let budget =
            Budget::new(bytes_per_connection, active_calls_per_connection, streams_per_connection as usize);
        let (http, routes) = (self.http.clone(), self.routes.clone());
        // Also when the server drains.
        let (closing, dropped) = (self.draining.child_token(), self.dropped.clone());
        let max_age = self.limits.max_connection_age.map(jittered);
        // The certificate as it is now.
        let served = self.tls.as_ref().map(|tls| tls.load_full());
        let tls = served.as_ref().map(|served| served.shown.serving.clone());
        let trust = served.map_or_else(CancellationToken::new, |served| served.trust.clone());
        let handshake = self.limits.handshake;
        let (clock, failures) = (self.clock.clone(), Arc::clone(&self.failures));
        let draining = self.draining.clone();
        async move {
            let _place = place;
            let opened = tokio::select! {
                biased;
                opened = tokio::time::timeout(handshake, open(stream, tls)) => opened,
                // It has sent nothing that could be answered.
                () = closing.cancelled() => return,
            };
            let (io, caller) = match opened {
                Ok(Ok(opened)) => opened,
                Ok(Err(error)) => return tell(&error, peer, || failures.pass(clock.now())),
                Err(_) => {
                    refused(SILENCE, 1);
                    return tracing::debug!(%peer, "a silent connection was let go");
                }
            };
            if trust.is_cancelled() {
                // Trusted a moment ago, by those who are no longer asked.
                return;
            }
            let of_requests = Closing(closing.clone());
            let routes = MapRequest::new(routes, move |mut request: http::Request<Incoming>| {
                request.extensions_mut().insert(budget.clone());
                request.extensions_mut().insert(of_requests.clone());
                request.extensions_mut().insert(peer);
                if let Some(caller) = &caller {
                    request.extensions_mut().insert(caller.clone());
                }
                request
            });
            let service = TowerToHyperService::new(routes);
            let connection = http.serve_connection(TokioIo::new(io), service);
            tokio::pin!(connection);
            let ended = tokio::select! {
                biased;
                ended = connection.as_mut() => ended,
                () = due(&closing, &trust, max_age) => {
                    // Before clients are told: no stream is to keep it open.
                    closing.cancel();
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        biased;
                        ended = connection.as_mut() => ended,
                        () = dropped.cancelled() => return,
                        // Longer than any call has a right to. Who was told to go, and goes on calling, has none.
                        () = overdue(&draining) => {
                            return tracing::debug!(%peer, "a connection did not end, and was dropped");
                        }
                    }
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "a connection broke");
            }
        }
    }
}

/// Waits until a connection is to end: the server drains, callers are trusted by another CA, or it is old enough.
async fn due(closing: &CancellationToken, trust: &CancellationToken, max_age: Option<Duration>) {
    let ends = async {
        tokio::select! {
            biased;
            () = closing.cancelled() => {}
            () = trust.cancelled() => {}
        }
    };
    match max_age {
        Some(max_age) => drop(tokio::time::timeout(max_age, ends).await),
        None => ends.await,
    }
}

/// Waits until a connection has had its time to end, unless the server drains: that has a limit of its own.
async fn overdue(draining: &CancellationToken) {
    tokio::time::sleep(LAST_CALLS).await;
    if draining.is_cancelled() {
        std::future::pending().await
    }
}

/// A tenth more or less, or connections that were opened together would end together for ever.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(0.9 + fastrand::f64() / 5.0)
}

/// Counts connections that were refused.
fn refused(cause: &'static str, count: u64) {
    counter!(REFUSED_CONNECTIONS, "cause" => cause).increment(count);
}

/// Logs and counts why a connection could not be opened: as a rule somebody has certificates that do not fit, and looks here. Who
/// only knocks, as probes of the port do, gets no line that is seen by default.
fn tell(error: &io::Error, peer: SocketAddr, pass: impl FnOnce() -> Option<u64>) {
    if error.kind() != io::ErrorKind::InvalidData {
        return tracing::debug!(%peer, %error, "a connection was not opened");
    }
    let of_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
    refused(if of_tls { TLS } else { PROTOCOL }, 1);
    if let Some(withheld) = pass() {
        let withheld = (withheld > 0).then_some(withheld);
        tracing::info!(%peer, %error, withheld, "a connection was not opened");
    }
}

/// Whether an accept failed for a reason that went with its connection.
pub(super) fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
