//! A proxy in front of etcd that knows calls: what befalls one of them leaves the others alone.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

use super::faulty::Gate;

/// What a read is called.
pub const RANGE: &str = "/etcdserverpb.KV/Range";
/// What a transaction is called.
pub const TXN: &str = "/etcdserverpb.KV/Txn";
/// What a stream of watches is called.
pub const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// What a look at the size of a member is called.
const STATUS: &str = "/etcdserverpb.Maintenance/Status";
/// The bytes before each message of gRPC.
const HEAD: usize = 5;

/// What befalls a call.
#[derive(Clone)]
pub enum Fate {
    /// It is made; its answer is lost, and the client's connection with it.
    LoseAnswer,
    /// It is made; its answer never comes, and the connection stays.
    Swallow,
    /// The client's connection is lost, and it is made when the gate opens: a call that lands late.
    LandLate(Gate),
}

/// A proxy in front of one server, on the runtime of the test that started it.
pub struct CallProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    plan: Mutex<Option<Plan>>,
    /// The call that met its fate.
    befallen: Mutex<Option<String>>,
    /// Whether watches bring no events.
    deaf: AtomicBool,
    /// Whether probes are left alone.
    probes_spared: AtomicBool,
    /// Signalled when a call that was to land late has landed.
    landed: Semaphore,
}

struct Plan {
    method: &'static str,
    skip: usize,
    fate: Fate,
}

/// The connection of one client, and the one that it goes on to.
#[derive(Clone)]
struct Pair {
    server: SendRequest<Body>,
    cut: CancellationToken,
}

impl CallProxy {
    /// Starts a proxy to `target` (host:port).
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            plan: Mutex::default(),
            befallen: Mutex::default(),
            deaf: AtomicBool::new(false),
            probes_spared: AtomicBool::new(false),
            landed: Semaphore::new(0),
        });
        tokio::spawn(accept(listener, target, Arc::clone(&shared)));
        Self { address, shared }
    }

    /// Where it listens, as host:port.
    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// From now on, lets `skip` calls of a method pass (any, if it is empty) and has the next one meet its fate.
    pub fn plan(&self, method: &'static str, skip: usize, fate: Fate) {
        *self.shared.plan.lock().expect("not poisoned") = Some(Plan { method, skip, fate });
    }

    /// From now on, nothing befalls calls.
    pub fn forget_plan(&self) {
        *self.shared.plan.lock().expect("not poisoned") = None;
    }

    /// The call that met its fate, if one did.
    pub fn befallen(&self) -> Option<String> {
        self.shared.befallen.lock().expect("not poisoned").clone()
    }

    /// Forgets the call that met its fate.
    pub fn forget_befallen(&self) {
        *self.shared.befallen.lock().expect("not poisoned") = None;
    }

    /// From now on, nothing befalls what a store sends by itself, time and again: reads of its marker, and looks at
    /// etcd's size. They count for no plan, either.
    pub fn spare_probes(&self) {
        self.shared.probes_spared.store(true, Ordering::SeqCst);
    }

    /// From now on, watches begin and bring nothing.
    pub fn drop_events(&self) {
        self.shared.deaf.store(true, Ordering::SeqCst);
    }

    /// Waits until etcd has answered the call that was to land late.
    pub async fn landed(&self) {
        self.shared.landed.acquire().await.expect("never closed").forget();
    }
}

impl Shared {
    /// The fate of a call that has just come.
    fn fate(&self, method: &str) -> Option<Fate> {
        let mut plan = self.plan.lock().expect("not poisoned");
        let due = plan.as_mut().filter(|plan| plan.method.is_empty() || plan.method == method)?;
        if due.skip > 0 {
            due.skip -= 1;
            return None;
        }
        *self.befallen.lock().expect("not poisoned") = Some(method.to_owned());
        plan.take().map(|plan| plan.fate)
    }
}

async fn accept(listener: TcpListener, target: String, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(serve(client, target.clone(), Arc::clone(&shared)));
    }
}

async fn serve(client: TcpStream, target: String, shared: Arc<Shared>) -> io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (server, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(server))
            .await
            .map_err(io::Error::other)?;
    tokio::spawn(connection);
    let pair = Pair { server, cut: CancellationToken::new() };
    let cut = pair.cut.clone();
    let service = hyper::service::service_fn(move |request| {
        let (shared, pair) = (Arc::clone(&shared), pair.clone());
        async move { forward(request, &shared, pair).await }
    });
    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(client), service);
    tokio::select! {
        () = cut.cancelled() => {}
        served = serving => served.map_err(io::Error::other)?,
    }
    Ok(())
}

async fn forward(
    request: Request<Incoming>,
    shared: &Arc<Shared>,
    mut pair: Pair,
) -> io::Result<Response<Body>> {
    let method = request.uri().path().to_owned();
    let mut request = request.map(Body::new);
    let mut is_spared = false;
    if shared.probes_spared.load(Ordering::SeqCst) {
        is_spared = method == STATUS;
        if method == RANGE {
            let whole = collected(request).await?;
            is_spared = reads_marker(whole.body());
            request = whole.map(|body| Body::new(Full::new(body)));
        }
    }
    let fate = if is_spared { None } else { shared.fate(&method) };
    if let Some(Fate::LandLate(gate)) = fate {
        // A stream of watches has no end to wait for: it is lost, and that is all.
        if method != WATCH {
            tokio::spawn(land_late(collected(request).await?, pair.server, gate, Arc::clone(shared)));
        }
        pair.cut.cancel();
        return std::future::pending().await;
    }
    let answer = pair.server.send_request(request).await.map_err(io::Error::other)?;
    match fate {
        Some(Fate::LoseAnswer) => pair.cut.cancel(),
        Some(Fate::Swallow) => {}
        Some(Fate::LandLate(_)) | None if method == WATCH => {
            let shared = Arc::clone(shared);
            return Ok(answer.map(|body| Body::new(body.map_frame(without_events(shared)))));
        }
        Some(Fate::LandLate(_)) | None => return Ok(answer.map(Body::new)),
    }
    std::future::pending().await
}

async fn collected(request: Request<Body>) -> io::Result<Request<Bytes>> {
    let (head, body) = request.into_parts();
    Ok(Request::from_parts(head, body.collect().await.map_err(io::Error::other)?.to_bytes()))
}

/// Whether a message to etcd, with its head, is a read of a store's marker.
fn reads_marker(message: &[u8]) -> bool {
    /// The part of etcd's RangeRequest that matters here.
    #[derive(Clone, PartialEq, Message)]
    struct Read {
        #[prost(bytes = "vec", tag = "1")]
        key: Vec<u8>,
    }
    let read = Read::decode(&message[HEAD..]).expect("a message to etcd");
    read.key.ends_with(b"/meta")
}

async fn land_late(
    request: Request<Bytes>,
    mut server: SendRequest<Body>,
    gate: Gate,
    shared: Arc<Shared>,
) -> Result<(), hyper::Error> {
    gate.pass().await;
    let answer = server.send_request(request.map(|body| Body::new(Full::new(body)))).await?;
    answer.into_body().collect().await?;
    shared.landed.add_permits(1);
    Ok(())
}

/// Takes the messages that bring events out of a stream of watches, once it is to be deaf.
fn without_events(shared: Arc<Shared>) -> impl FnMut(Frame<Bytes>) -> Frame<Bytes> + Send + 'static {
    /// The part of etcd's WatchResponse that matters here.
    #[derive(Clone, PartialEq, Message)]
    struct Heard {
        #[prost(bytes = "vec", repeated, tag = "11")]
        events: Vec<Vec<u8>>,
    }
    let mut buffer = BytesMut::new();
    move |frame| {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(trailers) => return trailers,
        };
        buffer.extend_from_slice(&data);
        let mut kept = BytesMut::new();
        while buffer.len() >= HEAD {
            let length = HEAD + (&buffer[1..HEAD]).get_u32() as usize;
            if buffer.len() < length {
                break;
            }
            let message = buffer.split_to(length);
            let heard = Heard::decode(&message[HEAD..]).expect("a message of etcd");
            if heard.events.is_empty() || !shared.deaf.load(Ordering::SeqCst) {
                kept.extend_from_slice(&message);
            }
        }
        Frame::data(kept.freeze())
    }
}
