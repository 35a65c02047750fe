//! The service behind the proxy.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tower::BoxError;

/// The body of an answer.
pub type Sent = UnsyncBoxBody<Bytes, BoxError>;

/// A request as the upstream saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// How many there were before, and this one.
    pub number: usize,
    pub method: Method,
    /// Path and query.
    pub target: String,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A server of HTTP/1. It ends with its test.
pub struct Upstream {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Upstream {
    /// One that reads each request to its end, and then answers so.
    pub async fn start<F, A>(answer: F) -> Self
    where
        F: Fn(Seen) -> A + Send + Sync + 'static,
        A: Future<Output = Response<Sent>> + Send + 'static,
    {
        let answer = Arc::new(answer);
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let noted = Arc::clone(&seen);
        let on_request = move |request: Request<Incoming>| {
            let (answer, noted) = (Arc::clone(&answer), Arc::clone(&noted));
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await?;
                let target = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
                let seen = {
                    let mut noted = noted.lock().unwrap();
                    let number = noted.len() + 1;
                    noted.push(Seen {
                        number,
                        method: parts.method,
                        target,
                        version: parts.version,
                        headers: parts.headers,
                        body: body.to_bytes(),
                    });
                    noted.last().cloned().unwrap()
                };
                Ok::<_, hyper::Error>(answer(seen).await)
            }
        };
        let mut upstream = Self::streaming(on_request).await;
        upstream.seen = seen;
        upstream
    }

    /// One that answers requests as they come.
    pub async fn streaming<F, A>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<Response<Sent>, hyper::Error>> + Send + 'static,
    {
        Self::raw(move |stream| {
            let answer = answer.clone();
            async move { serve(stream, answer).await }
        })
        .await
    }

    /// One that does so with each connection.
    pub async fn raw<F, A>(serve: F) -> Self
    where
        F: Fn(TcpStream) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        Self { address, seen: Arc::default(), task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it has seen, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The only request it has seen.
    #[track_caller]
    pub fn only(&self) -> Seen {
        let mut seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:#?}");
        seen.remove(0)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves a connection.
pub async fn serve<F, A>(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, answer: F)
where
    F: Fn(Request<Incoming>) -> A + Send + 'static,
    A: Future<Output = Result<Response<Sent>, hyper::Error>> + Send + 'static,
{
    // A proxy that hangs up in the middle is a case of its own.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
}

/// Reads the head of a request, and as much of its body as its length says.
pub async fn read_request(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let length = stream.read(&mut piece).await.unwrap();
        assert!(length > 0, "the proxy hung up after {:?}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&piece[..length]);
        let text = String::from_utf8_lossy(&read).to_ascii_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return text;
        }
    }
}

/// An answer of text.
pub fn text(status: u16, body: &str) -> Response<Sent> {
    let body = Full::from(body.to_owned()).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).header("content-type", "text/plain").body(body).unwrap()
}

/// Something that waits until it is told to go on.
#[derive(Clone)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Waits.
    pub async fn pass(&self) {
        self.0.acquire().await.unwrap().forget();
    }

    /// Lets one on.
    pub fn open(&self) {
        self.0.add_permits(1);
    }
}
