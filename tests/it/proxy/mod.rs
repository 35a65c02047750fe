//! `onced proxy`, the program itself, between callers and an upstream of the test's, with a server in this process.

mod contract;
mod keys;
mod limits;
mod lost;
mod passing;
mod program;
mod upstream;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self};
use hyper_util::rt::TokioExecutor;
use onced::clock::Clock;
use onced::store::embedded::EmbeddedStore;
use onced_client::v1::{DeleteRequest, InDoubt, ListRequest, LookupRequest};
use onced_client::{Client, Record};
use rustix::process::{Pid, Signal};

use crate::support::onced::{KillOnDrop, onced};
use crate::support::server::{HANGS, TestServer};
use upstream::{Seen, Sent, Upstream, text};

pub use program::shown;

/// The shortest lock TTL there is.
const TTL: &str = "2s";

/// A proxy, killed when dropped.
struct Proxy {
    child: KillOnDrop,
    address: SocketAddr,
    admin: SocketAddr,
    log: tempfile::NamedTempFile,
}

impl Proxy {
    /// A proxy between callers, an upstream and a server; its ports are its own choice.
    fn start(upstream: &str, server: &str, flags: &[&str]) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut child = onced()
            .args(["proxy", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .args(["--upstream", upstream, "--server", server])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(log.path()).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut address = |start: &str| -> SocketAddr {
            let line = lines.next().unwrap_or_else(|| panic!("it ended: {}", read(&log))).unwrap();
            line.strip_prefix(start)
                .unwrap_or_else(|| panic!("{line} does not start with {start}"))
                .parse()
                .unwrap()
        };
        let (address, admin) = (address("listening on "), address("health and metrics on http://"));
        std::thread::spawn(move || lines.for_each(drop));
        Self { child: KillOnDrop(child), address, admin, log }
    }

    /// What it has logged.
    fn log(&self) -> String {
        read(&self.log)
    }

    /// Asks it to end, and leaves it to it.
    fn terminate(&self) {
        let pid = Pid::from_raw(i32::try_from(self.child.0.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
    }

    /// Waits until it has ended: its exit code.
    async fn ended(&mut self) -> Option<i32> {
        let ended = async {
            loop {
                if let Some(status) = self.child.0.try_wait().unwrap() {
                    return status.code();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(HANGS, ended).await.expect("it does not end")
    }
}

fn read(log: &tempfile::NamedTempFile) -> String {
    std::fs::read_to_string(log.path()).unwrap()
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    #[track_caller]
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).to_str().unwrap()
    }

    fn is_replay(&self) -> bool {
        self.headers.get("idempotent-replayed").is_some_and(|value| value == "true")
    }

    /// Checks that it is a problem with this status and code.
    #[track_caller]
    fn problem(self, status: u16, code: &str) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!((&problem["code"], &problem["status"]), (&code.into(), &status.into()), "{problem}");
        for text in ["title", "detail"] {
            assert!(problem[text].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
        }
        self
    }

    /// Checks its status and body.
    #[track_caller]
    fn is(self, status: u16, body: &str) -> Self {
        assert_eq!((self.status, String::from_utf8_lossy(&self.body).as_ref()), (status, body), "{self:?}");
        self
    }
}

/// A caller of HTTP/1.1.
#[derive(Clone)]
struct Caller(legacy::Client<HttpConnector, Full<Bytes>>);

impl Caller {
    fn new() -> Self {
        Self(legacy::Client::builder(TokioExecutor::new()).build_http())
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Reply {
        let sent = async {
            let (parts, body) = self.0.request(request).await.unwrap().into_parts();
            let body = body.collect().await.expect("an answer to the end").to_bytes();
            Reply { status: parts.status.as_u16(), headers: parts.headers, body }
        };
        tokio::time::timeout(HANGS, sent).await.expect("no answer")
    }
}

/// A server, an upstream, and a proxy between.
struct Setup {
    server: TestServer,
    upstream: Upstream,
    proxy: Proxy,
    caller: Caller,
}

impl Setup {
    /// With an upstream that answers 201 with how many requests it has had.
    async fn start(flags: &[&str]) -> Self {
        Self::with(flags, |seen| async move { text(201, &format!("answer {}", seen.number)) }).await
    }

    /// With an upstream that answers so.
    async fn with<F, A>(flags: &[&str], answer: F) -> Self
    where
        F: Fn(Seen) -> A + Send + Sync + 'static,
        A: Future<Output = Response<Sent>> + Send + 'static,
    {
        Self::of(flags, Upstream::start(answer).await).await
    }

    async fn of(flags: &[&str], upstream: Upstream) -> Self {
        let server = server().await;
        let proxy = Proxy::start(&upstream.url(), &server.address().to_string(), flags);
        Self { server, upstream, proxy, caller: Caller::new() }
    }

    /// Another proxy between the same.
    fn another(&self, flags: &[&str]) -> Proxy {
        Proxy::start(&self.upstream.url(), &self.server.address().to_string(), flags)
    }

    fn request(&self, method: Method, target: &str) -> http::request::Builder {
        Request::builder().method(method).uri(format!("http://{}{target}", self.proxy.address))
    }

    async fn post(&self, target: &str, key: &str, body: &'static str) -> Reply {
        let request = self.request(Method::POST, target).header("idempotency-key", key);
        self.caller.send(request.body(body.into()).unwrap()).await
    }

    /// Posts an order under a key.
    async fn order(&self, key: &str) -> Reply {
        self.post("/orders", key, "one").await
    }

    /// The same on a task of its own.
    fn order_meanwhile(&self, key: &str) -> tokio::task::JoinHandle<Reply> {
        let request = self.request(Method::POST, "/orders").header("idempotency-key", key);
        let (caller, request) = (self.caller.clone(), request.body(Full::from("one")).unwrap());
        tokio::spawn(async move { caller.send(request).await })
    }

    fn client(&self) -> Client {
        Client::connect(self.server.address().to_string()).unwrap()
    }

    /// What onced knows of a key.
    async fn lookup(&self, key: &str) -> Record {
        let request = LookupRequest { namespace: "default".to_owned(), key: key.to_owned(), wait: None };
        self.client().lookup(request).await.unwrap()
    }

    /// Checks that a key is free.
    async fn is_free(&self, key: &str) {
        let record = self.lookup(key).await;
        assert!(matches!(record, Record::Available(_)), "{record:?}");
    }

    /// Checks that a key is in doubt.
    async fn is_in_doubt(&self, key: &str) -> InDoubt {
        match self.lookup(key).await {
            Record::InDoubt(in_doubt) => in_doubt,
            record => panic!("{record:?}"),
        }
    }

    /// Waits until a key is in a state.
    async fn until(&self, key: &str, wanted: impl Fn(&Record) -> bool) -> Record {
        let found = async {
            loop {
                let request =
                    LookupRequest { namespace: "default".to_owned(), key: key.to_owned(), wait: None };
                if let Ok(record) = self.client().lookup(request).await
                    && wanted(&record)
                {
                    return record;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(HANGS, found).await.expect("the key never came to be so")
    }

    /// Forgets a key, whoever holds it.
    async fn forget(&self, key: &str) {
        let request = ListRequest { namespace: "default".to_owned(), ..ListRequest::default() };
        let records = self.client().list(request).await.unwrap().records;
        let record = records.into_iter().find(|record| record.key == key).expect("a record");
        let request = DeleteRequest {
            namespace: "default".to_owned(),
            key: key.to_owned(),
            fencing_token: record.fencing_token,
            force: true,
        };
        self.client().delete(request).await.unwrap();
    }
}

async fn server() -> TestServer {
    TestServer::start(Arc::new(EmbeddedStore::in_memory(Clock::system()).unwrap())).await
}

/// An address where nobody listens.
async fn dead_address() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}
