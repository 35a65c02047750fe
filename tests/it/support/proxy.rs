//! A TCP proxy that loses what it is told to lose.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use onced::clock::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// A proxy in front of one server, on the runtime of the test that started it.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    /// Whether answers are swallowed: requests still go through.
    mute: AtomicBool,
    /// How long answers are on their way, in milliseconds.
    delay_ms: AtomicU64,
    /// Whether new connections are closed at once.
    closed: AtomicBool,
    /// Changes to cut all connections.
    cut: watch::Sender<()>,
}

impl Proxy {
    /// Starts a proxy to `target` (host:port).
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (cut, _) = watch::channel(());
        let (mute, closed, delay_ms) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
        let shared = Arc::new(Shared { mute, delay_ms, closed, cut });
        tokio::spawn(accept(listener, target, Arc::clone(&shared)));
        Self { address, shared }
    }

    /// Where it listens, as host:port.
    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// From now on, requests arrive and answers are lost.
    pub fn mute(&self) {
        self.shared.mute.store(true, Ordering::SeqCst);
    }

    /// From now on, answers take that long.
    pub fn slow(&self, delay_ms: u64) {
        self.shared.delay_ms.store(delay_ms, Ordering::SeqCst);
    }

    /// Cuts all connections and takes no new ones.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.cut.send_replace(());
    }

    /// Works again, for new connections.
    pub fn open(&self) {
        self.shared.mute.store(false, Ordering::SeqCst);
        self.shared.closed.store(false, Ordering::SeqCst);
    }
}

async fn accept(listener: TcpListener, target: String, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        if shared.closed.load(Ordering::SeqCst) {
            continue;
        }
        let (target, shared) = (target.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let mut cut = shared.cut.subscribe();
            // The cut first: nothing that was to be lost gets through when answers are let through again.
            tokio::select! {
                biased;
                _ = cut.changed() => {}
                _ = forward(client, target, &shared) => {}
            }
        });
    }
}

async fn forward(client: TcpStream, target: String, shared: &Shared) -> io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    // Each piece is on its way for as long, however many there are.
    let (leave, mut under_way) = mpsc::unbounded_channel();
    let clock = &Clock::system();
    let pieces = async move {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = from_server.read(&mut buffer).await?;
            let delay = Duration::from_millis(shared.delay_ms.load(Ordering::SeqCst));
            if length == 0 || leave.send((clock.now() + delay, buffer[..length].to_vec())).is_err() {
                return io::Result::Ok(());
            }
        }
    };
    let arrivals = async {
        while let Some((arrival, piece)) = under_way.recv().await {
            tokio::time::sleep(arrival.since(clock.now())).await;
            if !shared.mute.load(Ordering::SeqCst) {
                to_client.write_all(&piece).await?;
            }
        }
        io::Result::Ok(())
    };
    let answers = async { tokio::try_join!(pieces, arrivals) };
    tokio::select! {
        ended = answers => ended.map(|_| ()),
        ended = tokio::io::copy(&mut from_client, &mut to_server) => ended.map(|_| ()),
    }
}
