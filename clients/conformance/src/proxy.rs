//! A proxy in front of a server that knows calls: what befalls one of them leaves the others alone.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use onced_client::v1::BeginRequest;
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::scenario::{Fate, Plan};

pub struct Proxy {
    address: String,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    plans: Mutex<Vec<Plan>>,
    /// How many calls have come, by method.
    seen: Mutex<BTreeMap<String, u64>>,
    /// The Begins among them.
    begins: Mutex<Vec<BeginRequest>>,
    /// Changes when answers that are held may go.
    cleared: watch::Sender<()>,
}

/// The connection of one client, and the one that it goes on to.
#[derive(Clone)]
struct Pair {
    server: SendRequest<Body>,
    cut: CancellationToken,
}

impl Proxy {
    /// Starts a proxy to a server at `target` (host:port), which may come and go.
    pub async fn start(target: String) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared::default());
        let accepting = tokio::spawn(accept(listener, target, Arc::clone(&shared)));
        Ok(Self { address, shared, accepting })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// What befalls calls from now on, ahead of what was said before.
    pub fn plan(&self, plan: Plan) {
        locked(&self.shared.plans).insert(0, plan);
    }

    /// Nothing befalls calls any more, answers that are held go their way, and calls are counted anew.
    pub fn clear(&self) {
        locked(&self.shared.plans).clear();
        locked(&self.shared.seen).clear();
        locked(&self.shared.begins).clear();
        self.shared.cleared.send_replace(());
    }

    /// The Begins that have come, whatever became of them.
    pub fn begins(&self) -> Vec<BeginRequest> {
        locked(&self.shared.begins).clone()
    }

    /// How many calls of a method have come.
    pub fn seen(&self, method: &str) -> u64 {
        locked(&self.shared.seen).get(method).copied().unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Shared {
    /// What befalls a call that has just come.
    fn fate(&self, method: &str) -> Option<Fate> {
        *locked(&self.seen).entry(method.to_owned()).or_default() += 1;
        for plan in locked(&self.plans).iter_mut() {
            if plan.call.as_ref().is_some_and(|call| call != method) || plan.times == Some(0) {
                continue;
            }
            if plan.after > 0 {
                plan.after -= 1;
                continue;
            }
            plan.times = plan.times.map(|times| times - 1);
            return Some(plan.fate.clone());
        }
        None
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, target: String, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(serve(client, target.clone(), Arc::clone(&shared)));
    }
}

/// Serves one client until its connection or that of the server ends: one without the other is of no use.
async fn serve(client: TcpStream, target: String, shared: Arc<Shared>) -> io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (server, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(server))
            .await
            .map_err(io::Error::other)?;
    let pair = Pair { server, cut: CancellationToken::new() };
    let cut = pair.cut.clone();
    let mut gone = tokio::spawn(connection);
    let service = hyper::service::service_fn(move |request| {
        let (shared, pair) = (Arc::clone(&shared), pair.clone());
        async move { Ok::<_, Infallible>(forward(request, &shared, pair).await) }
    });
    let mut serving = pin!(
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(client), service)
    );
    let served = tokio::select! {
        () = cut.cancelled() => return Ok(()),
        served = serving.as_mut() => served,
        // What it still answered is handed on.
        _ = &mut gone => {
            serving.as_mut().graceful_shutdown();
            tokio::select! {
                () = cut.cancelled() => return Ok(()),
                served = serving => served,
            }
        }
    };
    served.map_err(io::Error::other)
}

async fn forward(request: Request<Incoming>, shared: &Shared, mut pair: Pair) -> Response<Body> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let Ok(request) = read(request, &method, shared).await else { return lost(&pair).await };
    let fate = shared.fate(&method);
    let mut cleared = shared.cleared.subscribe();
    match &fate {
        Some(Fate::Cut) => return lost(&pair).await,
        Some(Fate::Refuse { code, reason, pushback }) => {
            return refusal(*code, reason.as_deref(), pushback.as_deref()).into_http();
        }
        Some(Fate::Lose | Fate::Hold) | None => {}
    }
    let Ok(answer) = pair.server.send_request(request).await else { return lost(&pair).await };
    match fate {
        Some(Fate::Lose) => return lost(&pair).await,
        Some(Fate::Hold) => {
            // An error says that the proxy is gone, and then so is this.
            let _ = cleared.changed().await;
        }
        Some(Fate::Cut | Fate::Refuse { .. }) | None => {}
    }
    answer.map(Body::new)
}

/// Reads a Begin, and hands it on. Other calls are streams, or nobody asks what is in them.
async fn read(request: Request<Incoming>, method: &str, shared: &Shared) -> Result<Request<Body>> {
    /// Whether it is compressed, and its length.
    const HEAD: usize = 5;
    if method != "Begin" {
        return Ok(request.map(Body::new));
    }
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let message = body.get(HEAD..).context("a message")?;
    locked(&shared.begins).push(BeginRequest::decode(message)?);
    Ok(Request::from_parts(head, Body::new(Full::new(body))))
}

/// The client's connection is gone, and with it the answer.
async fn lost(pair: &Pair) -> Response<Body> {
    pair.cut.cancel();
    std::future::pending().await
}

fn refusal(code: i32, reason: Option<&str>, pushback: Option<&str>) -> Status {
    let (code, text) = (Code::from_i32(code), "a word of the proxy");
    let mut status = match reason {
        Some(reason) => {
            let details = ErrorDetails::with_error_info(reason, "onced.dev", HashMap::new());
            Status::with_error_details(code, text, details)
        }
        None => Status::new(code, text),
    };
    if let Some(pushback) = pushback.and_then(|pushback| pushback.parse().ok()) {
        status.metadata_mut().insert("grpc-retry-pushback-ms", pushback);
    }
    status
}
