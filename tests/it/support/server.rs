//! A server in this process, on a port of its own, and connections to it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use onced::clock::Clock;
use onced::generated::health_v1::health_client::HealthClient;
use onced::server::{self, Config, Live};
use onced::store::RecordStore;
use onced_client::v1::admin_service_client::AdminServiceClient;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;

/// What hangs is to fail its test, not to hang it. Far above what any machine needs.
pub const HANGS: Duration = Duration::from_secs(60);

/// A bare HTTP/2 connection: unlike tonic's channel it keeps no deadlines by itself, so that what a test sees
/// is the server's doing.
pub type Connection =
    BoxCloneSyncService<http::Request<Body>, http::Response<hyper::body::Incoming>, hyper::Error>;

/// A server. Dropped, it ends at once; [`TestServer::stop`] lets it drain.
pub struct TestServer {
    address: SocketAddr,
    live: Live,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl TestServer {
    /// A server on a store.
    pub async fn start(store: Arc<dyn RecordStore>) -> Self {
        Self::start_with(store, Config::default()).await
    }

    /// A server on a store, so configured; the port is its own choice.
    pub async fn start_with(store: Arc<dyn RecordStore>, config: Config) -> Self {
        let listener = TcpListener::bind((config.listen.ip(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let live = Live::of(&config).unwrap();
        let served = server::run_live(live.clone(), config, listener, store, Clock::system(), stopped);
        Self { address, live, stop, task: tokio::spawn(served) }
    }

    /// What may change while it serves.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// A new connection.
    pub async fn connect(&self) -> Connection {
        connect(self.address).await
    }

    /// A client on a connection of its own.
    pub async fn client(&self) -> IdempotencyServiceClient<Connection> {
        client(self.address).await
    }

    /// An operator's client on a connection of its own.
    pub async fn admin(&self) -> AdminServiceClient<Connection> {
        AdminServiceClient::with_origin(self.connect().await, self.origin())
    }

    /// A client of the standard health service, on a connection of its own.
    pub async fn health(&self) -> HealthClient<Connection> {
        HealthClient::with_origin(self.connect().await, self.origin())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where requests go.
    pub fn origin(&self) -> http::Uri {
        origin(self.address)
    }

    /// Asks it to end, without waiting.
    pub fn begin_stop(&self) {
        self.stop.cancel();
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Asks it to end, and waits until it has.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let ended = tokio::time::timeout(HANGS, &mut self.task).await.expect("the shutdown hangs");
        ended.expect("no panic");
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A new connection to a server.
pub async fn connect(address: SocketAddr) -> Connection {
    try_connect(address).await.unwrap()
}

async fn try_connect(address: SocketAddr) -> io::Result<Connection> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    try_over(stream).await
}

/// A connection over a stream that is open.
pub async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Connection {
    try_over(stream).await.unwrap()
}

async fn try_over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> io::Result<Connection> {
    let connecting = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = connecting.await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(BoxCloneSyncService::new(tower::service_fn(move |request| {
        let mut sender = sender.clone();
        async move { sender.send_request(request).await }
    })))
}

/// A client of a server that may be away just now.
pub async fn try_client(address: SocketAddr) -> io::Result<IdempotencyServiceClient<Connection>> {
    Ok(IdempotencyServiceClient::with_origin(try_connect(address).await?, origin(address)))
}

/// A client of a server, on a connection of its own.
pub async fn client(address: SocketAddr) -> IdempotencyServiceClient<Connection> {
    IdempotencyServiceClient::with_origin(connect(address).await, origin(address))
}

fn origin(address: SocketAddr) -> http::Uri {
    format!("http://{address}").parse().unwrap()
}
