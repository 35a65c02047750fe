//! The network between the members of a cluster, which loses what it is told to lose.
//!
//! Each member is known to the others by the address of a proxy in front of it. Who dials says who it is: what
//! carries Raft's messages names its sender in each request. Which way the messages go is another matter: who
//! listens for them has dialled for most of them, and hears them in the answer.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::OnceLock;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

use super::cluster::MEMBERS;

/// What a member that dials says of itself: its id, in hexadecimal.
const DIALLER: &[u8] = b"\r\nX-Server-From: ";

/// A proxy in front of each member, on a thread of its own, since those who wait for a cluster block theirs.
pub(super) struct PeerNetwork {
    addresses: [SocketAddr; MEMBERS],
    roads: watch::Sender<Roads>,
    _stop: oneshot::Sender<()>,
}

/// What gets through.
#[derive(Default)]
struct Roads {
    /// The id of each member.
    ids: [String; MEMBERS],
    /// What is lost, by sender and receiver.
    cut: [[bool; MEMBERS]; MEMBERS],
}

impl PeerNetwork {
    /// Proxies in front of members that listen on these ports.
    pub(super) fn start(ports: [u16; MEMBERS]) -> Self {
        let listeners = ports.map(|_| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
        let addresses = listeners.each_ref().map(|listener| listener.local_addr().expect("an address"));
        let roads = watch::Sender::new(Roads::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let seen = roads.subscribe();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                for (member, (listener, port)) in listeners.into_iter().zip(ports).enumerate() {
                    listener.set_nonblocking(true).expect("it can wait");
                    let listener = TcpListener::from_std(listener).expect("a listener");
                    tokio::spawn(accept(listener, member, port, seen.clone()));
                }
                // An error says that the cluster is gone.
                let _ = stopped.await;
            });
        });
        Self { addresses, roads, _stop: stop }
    }

    /// Where the others find a member.
    pub(super) fn url(&self, member: usize) -> String {
        format!("http://{}", self.addresses[member])
    }

    /// Tells the ids of the members, by which they are told apart.
    pub(super) fn introduce(&self, ids: [String; MEMBERS]) {
        self.roads.send_modify(|roads| roads.ids = ids);
    }

    /// From now on, what one member sends does not reach another. It is not told so: bytes that are on their
    /// way arrive when all is well again, if their connection still lives.
    pub(super) fn cut(&self, from: usize, to: usize) {
        self.roads.send_modify(|roads| {
            assert!(!roads.ids[from].is_empty(), "members are told apart once they were introduced");
            roads.cut[from][to] = true;
        });
    }

    /// Nothing is lost any more.
    pub(super) fn heal(&self) {
        self.roads.send_modify(|roads| roads.cut = Default::default());
    }
}

impl Roads {
    /// Whether what goes along a connection to `target` gets through. Before its dialler has said who it is, it
    /// counts as anybody: with a cut anywhere around the target it waits. None of Raft's messages goes there.
    fn open(&self, dialler: Option<&str>, target: usize, way: Way) -> bool {
        let cut = |other: usize| match way {
            Way::ToTarget => self.cut[other][target],
            Way::ToDialler => self.cut[target][other],
        };
        match dialler.map(|id| self.ids.iter().position(|it| it == id)) {
            Some(Some(dialler)) => !cut(dialler),
            Some(None) | None => !(0..MEMBERS).any(cut),
        }
    }
}

#[derive(Clone, Copy)]
enum Way {
    ToTarget,
    ToDialler,
}

async fn accept(listener: TcpListener, target: usize, port: u16, roads: watch::Receiver<Roads>) {
    while let Ok((dialler, _)) = listener.accept().await {
        let connection = Connection { target, dialler: OnceLock::new(), roads: roads.clone() };
        tokio::spawn(async move { connection.forward(dialler, port).await });
    }
}

struct Connection {
    target: usize,
    /// The id of who dialled, once it has told.
    dialler: OnceLock<String>,
    roads: watch::Receiver<Roads>,
}

impl Connection {
    async fn forward(&self, dialler: TcpStream, port: u16) -> io::Result<()> {
        let target = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        dialler.set_nodelay(true)?;
        target.set_nodelay(true)?;
        let (from_dialler, to_dialler) = dialler.into_split();
        let (from_target, to_target) = target.into_split();
        // The halves live until the end: a connection is closed by dropping both.
        let (mut up, mut down) = ((from_dialler, to_target), (from_target, to_dialler));
        let ended = tokio::select! {
            ended = self.carry(Way::ToTarget, &mut up) => ended,
            ended = self.carry(Way::ToDialler, &mut down) => ended,
        };
        // That a connection has ended is news, too, which gets lost.
        self.road(&[Way::ToTarget, Way::ToDialler]).await;
        ended
    }

    async fn carry(&self, way: Way, (from, to): &mut (OwnedReadHalf, OwnedWriteHalf)) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = from.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            let bytes = &buffer[..length];
            if let (Way::ToTarget, None, Some(id)) = (way, self.dialler.get(), dialler(bytes)) {
                self.dialler.get_or_init(|| id);
            }
            self.road(&[way]).await;
            to.write_all(bytes).await?;
        }
    }

    /// Waits until what goes these ways gets through.
    async fn road(&self, ways: &[Way]) {
        let dialler = || self.dialler.get().map(String::as_str);
        let open = |roads: &Roads| ways.iter().all(|&way| roads.open(dialler(), self.target, way));
        // An error says that the cluster is gone.
        let _ = self.roads.clone().wait_for(open).await;
    }
}

/// Who sent a request that begins in these bytes. Its head comes in one piece: it is small, and written at once.
fn dialler(bytes: &[u8]) -> Option<String> {
    let start = bytes.windows(DIALLER.len()).position(|it| it == DIALLER)? + DIALLER.len();
    let id = bytes[start..].split(|&byte| byte == b'\r').next()?;
    String::from_utf8(id.to_vec()).ok()
}
