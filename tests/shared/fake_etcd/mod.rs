//! An etcd in memory that fails on demand: as much of etcd's services as the store uses, on etcd's own messages.
//! Its members share one state, as if Raft had agreed on it. What goes wrong is up to [`Faults`]. The store's
//! conformance suite holds it against the real one.

mod data;
mod lease;
mod services;
mod txn;
mod watch;

use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use etcd_client::proto::{
    PbKvServer, PbLeaseServer, PbMaintenanceServer, PbResponseHeader, PbTxnRequest, PbWatchServer,
};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use onced::clock::{Clock, Moment};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tonic::service::Routes;
use tonic::{Code, Status};

pub use data::{Data, Space};

/// How often what is due is done: leases end, delayed writes land.
const TICK: Duration = Duration::from_millis(100);

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Effect<'a> {
    Read,
    /// This transaction, which writes.
    Transaction(&'a PbTxnRequest),
    /// Any other write: a lease, a key alone.
    Write,
}

/// What becomes of a call.
#[derive(Clone, Debug)]
pub enum Fate {
    /// It is served.
    Served,
    /// It is served after a while, unless its caller has left by then.
    ServedLate(Duration),
    /// It is served, and answered after a while.
    AnsweredLate(Duration),
    /// It is not served, and ends so.
    Failed(Ending),
    /// It is served, and ends so all the same.
    AnswerLost(Ending),
    /// It ends so, and is served after a while.
    LandsLate(Duration, Ending),
}

/// How a call ends that is not answered.
#[derive(Clone, Debug)]
pub enum Ending {
    /// With an error.
    Error(Status),
    /// Not at all: until its caller leaves.
    Silence,
}

/// What becomes of a stream of watches.
#[derive(Clone, Debug)]
pub enum StreamFate {
    /// It tells what there is to tell.
    Tells,
    /// It tells nothing just now.
    Silent,
    /// It ends.
    Breaks(Status),
}

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventFate {
    Told,
    Lost,
    ToldTwice,
}

/// What goes wrong at a member.
pub trait Faults: Send + Sync + 'static {
    fn call(&self, member: usize, effect: Effect<'_>) -> Fate;
    fn stream(&self, member: usize) -> StreamFate;
    fn event(&self, member: usize) -> EventFate;
    /// What came of it, to be counted.
    fn met(&self, what: &'static str);
    /// Looks at the data, just when there are writes newer than `before`.
    fn wrote(&self, data: &Data, before: i64);
}

/// A cluster.
pub struct FakeEtcd {
    state: Mutex<State>,
    faults: Arc<dyn Faults>,
    clock: Clock,
}

#[derive(Default)]
struct State {
    data: Data,
    /// Writes that land later: when, and what they do.
    later: Vec<(Moment, Landing)>,
    /// Who wants to know of changes, in order of coming.
    streams: Vec<mpsc::UnboundedSender<()>>,
}

/// A write as it lands.
type Landing = Box<dyn FnOnce(&mut Data, Moment) + Send>;

/// One of the members.
#[derive(Clone)]
pub struct Member {
    etcd: Arc<FakeEtcd>,
    index: usize,
}

impl FakeEtcd {
    pub fn new(faults: Arc<dyn Faults>, clock: Clock) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), faults, clock })
    }

    pub fn member(self: &Arc<Self>, index: usize) -> Member {
        Member { etcd: Arc::clone(self), index }
    }

    /// Looks at the data, or changes it as no client could.
    pub fn with<T>(&self, act: impl FnOnce(&mut Data, Moment) -> T) -> T {
        let now = self.clock.now();
        let mut state = self.state();
        let before = state.data.revision();
        let done = act(&mut state.data, now);
        if state.data.revision() != before {
            self.faults.wrote(&state.data, before);
            state.streams.retain(|stream| stream.send(()).is_ok());
        }
        done
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no call panicked")
    }

    fn later(&self, after: Duration, act: impl FnOnce(&mut Data, Moment) + Send + 'static) {
        self.state().later.push((self.clock.now() + after, Box::new(act)));
    }

    /// Does what is due.
    fn tick(&self) {
        let now = self.clock.now();
        let due: Vec<_> = self.state().later.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, act) in due {
            self.with(act);
        }
        self.with(Data::end_leases);
    }
}

impl Member {
    /// Does what is due, as long as it lives.
    pub async fn run(&self) {
        loop {
            tokio::time::sleep(TICK).await;
            self.etcd.tick();
        }
    }

    /// Serves a connection until it ends.
    pub fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
    ) -> impl Future<Output = ()> + use<S> {
        let routes = Routes::new(PbKvServer::new(self.clone()).max_decoding_message_size(usize::MAX))
            .add_service(PbLeaseServer::new(self.clone()))
            .add_service(PbWatchServer::new(self.clone()))
            .add_service(PbMaintenanceServer::new(self.clone()));
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20);
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
        async move {
            // A client that breaks off is no fault of ours.
            let _ = connection.await;
        }
    }

    /// Does a call, or fails as it is fated to.
    async fn call<T: Send + 'static>(
        &self,
        effect: Effect<'_>,
        act: impl FnOnce(&mut Data, Moment) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let faults = Arc::clone(&self.etcd.faults);
        let act = move |data: &mut Data, now| {
            let answer = act(data, now);
            match answer.as_ref().err().map(Status::code) {
                Some(Code::ResourceExhausted) => faults.met("writes refused for want of room"),
                Some(Code::NotFound) => faults.met("writes refused for a lease that is gone"),
                _ => {}
            }
            answer
        };
        match self.etcd.faults.call(self.index, effect) {
            Fate::Served => self.etcd.with(act),
            Fate::ServedLate(after) => {
                tokio::time::sleep(after).await;
                self.etcd.with(act)
            }
            Fate::AnsweredLate(after) => {
                let answer = self.etcd.with(act);
                tokio::time::sleep(after).await;
                answer
            }
            Fate::Failed(ending) => Err(ending.come().await),
            Fate::AnswerLost(ending) => {
                let _ = self.etcd.with(act);
                Err(ending.come().await)
            }
            Fate::LandsLate(after, ending) => {
                self.etcd.later(after, move |data, now| drop(act(data, now)));
                Err(ending.come().await)
            }
        }
    }

    fn header(&self, data: &Data) -> Option<PbResponseHeader> {
        Some(self.header_at(data.revision()))
    }

    fn header_at(&self, revision: i64) -> PbResponseHeader {
        let member_id = u64::try_from(self.index).expect("few members") + 1;
        PbResponseHeader { cluster_id: 1, member_id, revision, raft_term: 1 }
    }
}

impl Ending {
    async fn come(self) -> Status {
        match self {
            Ending::Error(status) => status,
            Ending::Silence => match std::future::pending::<Infallible>().await {},
        }
    }
}
