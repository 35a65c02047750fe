//! How calls are sent: by unary calls or on sessions, over several connections. Each is sent once.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use clap::ValueEnum;
use onced_client::v1::{BeginRequest, CompleteRequest};
use onced_client::{Begun, Client, Refusal, Session, Stub};
use tokio::sync::Mutex;
use tonic::{Request, Status};

/// How calls are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Each by itself
    Unary,
    /// All of a connection on one stream
    Stream,
}

/// Connections to the servers.
pub struct Calls {
    lanes: Vec<Lane>,
    timeout: Duration,
}

enum Lane {
    Unary(Stub),
    Stream(Stream),
}

/// A session, and what it takes to open another one: servers end them when their connection is old.
struct Stream {
    stub: Stub,
    current: ArcSwap<Session>,
    opening: Mutex<()>,
}

impl Calls {
    /// Connects, each time to the next server.
    ///
    /// # Errors
    /// The first one that cannot be reached, or refuses a session.
    pub async fn connect(
        client: &Client,
        connections: usize,
        mode: Mode,
        timeout: Duration,
    ) -> Result<Self, Refusal> {
        let mut lanes = Vec::new();
        for number in 0..connections {
            let stub = client.connect_to(number).await?;
            lanes.push(match mode {
                Mode::Unary => Lane::Unary(stub),
                Mode::Stream => {
                    let session = Session::open(stub.clone(), timeout).await?;
                    let current = ArcSwap::from_pointee(session);
                    Lane::Stream(Stream { stub, current, opening: Mutex::default() })
                }
            });
        }
        Ok(Self { lanes, timeout })
    }

    /// A Begin of a caller; callers are spread over the connections.
    pub async fn begin(&self, caller: usize, request: BeginRequest) -> Result<Begun, Refusal> {
        match self.lane(caller) {
            Lane::Unary(stub) => {
                let answer =
                    stub.clone().begin(self.timed(request)).await.map_err(|status| Refusal::of(&status))?;
                let nothing = || Refusal::of(&Status::internal("an answer that holds nothing known here"));
                answer.into_inner().result.ok_or_else(nothing)
            }
            Lane::Stream(stream) => stream.session(self.timeout).await?.begin(request).await,
        }
    }

    /// A Complete of a caller.
    pub async fn complete(&self, caller: usize, request: CompleteRequest) -> Result<(), Refusal> {
        match self.lane(caller) {
            Lane::Unary(stub) => {
                let answer = stub.clone().complete(self.timed(request)).await;
                answer.map(drop).map_err(|status| Refusal::of(&status))
            }
            Lane::Stream(stream) => stream.session(self.timeout).await?.complete(request).await.map(drop),
        }
    }

    fn lane(&self, caller: usize) -> &Lane {
        &self.lanes[caller % self.lanes.len()]
    }

    fn timed<Q>(&self, request: Q) -> Request<Q> {
        let mut request = Request::new(request);
        request.set_timeout(self.timeout);
        request
    }
}

impl Stream {
    /// The session, or a new one if it has ended.
    async fn session(&self, timeout: Duration) -> Result<Arc<Session>, Refusal> {
        let opened = tokio::time::timeout(timeout, self.opened(timeout)).await;
        opened.unwrap_or_else(|_| {
            Err(Refusal::of(&Status::deadline_exceeded("no session could be opened in time")))
        })
    }

    async fn opened(&self, timeout: Duration) -> Result<Arc<Session>, Refusal> {
        let current = self.current.load_full();
        if current.is_open() {
            return Ok(current);
        }
        let _alone = self.opening.lock().await;
        let current = self.current.load_full();
        if current.is_open() {
            return Ok(current);
        }
        let opened = Arc::new(Session::open(self.stub.clone(), timeout).await?);
        self.current.store(Arc::clone(&opened));
        Ok(opened)
    }
}
