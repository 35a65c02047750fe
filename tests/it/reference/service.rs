//! The service under test: two servers on one store, reached by unary calls and over sessions.

use std::sync::Arc;
use std::time::Duration;

use onced::clock::{Clock, wall_time};
use onced::record::{Key, Namespace, RecordKey};
use onced::store::RecordStore;
use onced::store::embedded::EmbeddedStore;
use onced::store::etcd::{EtcdConfig, EtcdStore};
use onced_client::v1;
use onced_client::v1::admin_service_client::AdminServiceClient;
use onced_client::v1::resolve_request::Resolution;
use onced_client::v1::session_request::Call;
use proptest::prelude::*;
use tonic_types::Status;

use super::answers::{Checked, Facts, KEY_NAMES, Response, Window, checkpoint, duration, outcome, owner};
use super::commands::{Begin, Command, Step};
use super::table::{KEYS, LOCK_TTLS, RELEASE_REASON, RETENTIONS, Taken, Token};
use crate::store::embedded::disk::Disk;
use crate::store::etcd::{raw_at, revoke};
use crate::support::caller::{Caller, Session, Unary, rpc_status};
use crate::support::clock::ManualClock;
use crate::support::etcd::EtcdProcess;
use crate::support::server::{Connection, HANGS, TestServer};

/// Two servers on one store, and power over its time.
pub struct Service {
    keeper: Keeper,
    servers: Vec<TestServer>,
    ways: Vec<Way>,
}

struct Way {
    caller: Box<dyn Caller>,
    admin: AdminServiceClient<Connection>,
}

/// What keeps the records while no server runs.
enum Keeper {
    /// Time passes by the clock that the store is given.
    Disk { disk: Disk, clock: ManualClock, store: Option<Arc<EmbeddedStore>> },
    /// Time passes by taking away the leases that would have ended.
    Etcd(Box<EtcdConfig>),
}

impl Service {
    pub async fn on_embedded() -> Self {
        Self::start(Keeper::Disk { disk: Disk::in_memory(), clock: ManualClock::new(), store: None }).await
    }

    pub async fn on_etcd() -> Self {
        Self::start(Keeper::Etcd(Box::new(EtcdProcess::shared().config()))).await
    }

    async fn start(keeper: Keeper) -> Self {
        let mut service = Self { keeper, servers: Vec::new(), ways: Vec::new() };
        service.open().await;
        service
    }

    /// Whether a restart gives each lock all of its time again.
    pub fn rearms(&self) -> bool {
        matches!(self.keeper, Keeper::Disk { .. })
    }

    async fn open(&mut self) {
        for store in self.keeper.open().await {
            let server = TestServer::start(store).await;
            self.ways.extend([Way::unary(&server).await, Way::session(&server).await]);
            self.servers.push(server);
        }
    }

    async fn restart(&mut self) {
        self.ways.clear();
        for server in self.servers.drain(..) {
            server.stop().await;
        }
        self.keeper.close().await;
        self.open().await;
    }
}

impl Keeper {
    /// The store, for each of two servers.
    async fn open(&mut self) -> [Arc<dyn RecordStore>; 2] {
        match self {
            Keeper::Disk { disk, clock, store } => {
                let opened = store.insert(Arc::new(disk.open(clock.clock()).expect("opens")));
                [Arc::clone(opened) as _, Arc::clone(opened) as _]
            }
            Keeper::Etcd(config) => {
                let open = async || EtcdStore::connect(EtcdConfig::clone(config), Clock::system()).await;
                [Arc::new(open().await.expect("connects")), Arc::new(open().await.expect("connects"))]
            }
        }
    }

    /// Closes the store, once the servers have let go of it.
    async fn close(&mut self) {
        let Keeper::Disk { store, .. } = self else { return };
        let let_go = async {
            while store.as_ref().is_some_and(|store| Arc::strong_count(store) > 1) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(HANGS, let_go).await.expect("the servers let go of the store");
        drop(store.take());
    }
}

impl Way {
    async fn unary(server: &TestServer) -> Self {
        Self { caller: Box::new(Unary(server.client().await)), admin: server.admin().await }
    }

    async fn session(server: &TestServer) -> Self {
        Self { caller: Box::new(Session::open(server).await), admin: server.admin().await }
    }
}

/// A sequence under way, in a namespace of its own.
pub struct Sequence<'a> {
    service: &'a mut Service,
    namespace: String,
    facts: Facts,
    clock: Clock,
}

impl<'a> Sequence<'a> {
    pub fn new(service: &'a mut Service, namespace: String) -> Self {
        Self { service, namespace, facts: Facts::default(), clock: Clock::system() }
    }

    /// Takes a step, and checks that it comes to what the reference says.
    pub async fn take(&mut self, step: &Step, taken: &Taken) -> Checked<()> {
        let (from, sent) = (wall_time(), self.clock.now());
        let response = match tokio::time::timeout(HANGS, self.perform(step, taken)).await {
            Ok(response) => response,
            Err(_) => return Err(TestCaseError::fail("no answer")),
        };
        let took = self.clock.now().since(sent);
        self.facts.windows.push(Window { from, to: wall_time() });
        match response {
            Ok(response) => self.facts.check(&taken.told, response, took),
            Err(error) => self.facts.check_error(&taken.told, &error),
        }
    }

    async fn perform(&mut self, step: &Step, taken: &Taken) -> Result<Response, Status> {
        let (namespace, key) = (self.namespace.clone(), KEY_NAMES[step.key].to_owned());
        let fencing_token = taken.token.map_or(0, |token| self.value(token));
        let call = match step.command {
            Command::Begin(begin) => Call::Begin(begin_request(namespace, step.key, &begin)),
            Command::Complete { outcome: number, retention, .. } => {
                let (outcome, retention) = (Some(outcome(number)), retention_of(step.key, retention));
                Call::Complete(v1::CompleteRequest { namespace, key, fencing_token, outcome, retention })
            }
            Command::Renew { checkpoint: sent, .. } => {
                let checkpoint = sent.map(checkpoint);
                Call::Renew(v1::RenewRequest { namespace, key, fencing_token, checkpoint })
            }
            Command::Release { in_doubt, .. } => {
                let (disposition, reason) = (disposition(in_doubt), RELEASE_REASON.to_owned());
                Call::Release(v1::ReleaseRequest { namespace, key, fencing_token, disposition, reason })
            }
            Command::Lookup => Call::Lookup(v1::LookupRequest { namespace, key, wait: None }),
            Command::List { .. } | Command::Resolve { .. } | Command::Delete { .. } => {
                return self.operate(step, fencing_token).await;
            }
            Command::Pass(_) => {
                self.pass(taken).await;
                return Ok(Response::Nothing);
            }
            Command::Restart => {
                self.service.restart().await;
                return Ok(Response::Nothing);
            }
        };
        self.service.ways[step.way].caller.call(call, None).await.map(Response::Call)
    }

    async fn operate(&self, step: &Step, fencing_token: u64) -> Result<Response, Status> {
        let mut admin = self.service.ways[step.way].admin.clone();
        let (namespace, key) = (self.namespace.clone(), KEY_NAMES[step.key].to_owned());
        match step.command {
            Command::List { state, page_size } => {
                let state = i32::try_from(state).expect("a state");
                let request = v1::ListRequest { namespace, state, page_size, page_token: String::new() };
                list(&mut admin, request).await.map(Response::List)
            }
            Command::Resolve { outcome: number, retention, .. } => {
                let resolution = Some(match number {
                    None => Resolution::Retry(v1::ResolveRetry {}),
                    Some(number) => Resolution::Outcome(outcome(number)),
                });
                let retention = retention_of(step.key, retention);
                let request = v1::ResolveRequest { namespace, key, fencing_token, resolution, retention };
                unary(admin.resolve(request)).await.map(Response::Resolve)
            }
            Command::Delete { force, .. } => {
                let request = v1::DeleteRequest { namespace, key, fencing_token, force };
                unary(admin.delete(request)).await.map(Response::Delete)
            }
            other => panic!("no operator's command: {other:?}"),
        }
    }

    /// The value of a token. One that was never given is surely none.
    fn value(&self, token: Token) -> u64 {
        match token {
            Token::Given(token) => self.facts.tokens[token],
            Token::After(token) => self.facts.tokens[token] + 1,
            Token::Huge => u64::MAX,
        }
    }

    async fn pass(&self, taken: &Taken) {
        let config = match &self.service.keeper {
            Keeper::Disk { clock, .. } => return clock.advance(taken.passed),
            Keeper::Etcd(config) => config,
        };
        let mut locks = [None; KEYS];
        let mut retentions = [None; KEYS];
        for (key, name) in KEY_NAMES.into_iter().enumerate() {
            let namespace = Namespace::new(&self.namespace).expect("a namespace");
            let raw =
                raw_at(config, &RecordKey { namespace, key: Key::new(name).expect("a key") }, None).await;
            locks[key] = raw.as_ref().map(|raw| raw.lock_lease);
            retentions[key] = raw.as_ref().map(|raw| raw.retention_lease);
        }
        for (ending, leases) in [(&taken.lapsed, locks), (&taken.expired, retentions)] {
            for key in ending {
                let lease = leases[*key].expect("a record on a lease");
                let shared = (0..KEYS).any(|other| leases[other] == Some(lease) && !ending.contains(&other));
                assert!(lease != 0 && !shared, "another key's lease would end as well");
                revoke(config, lease).await;
            }
        }
    }
}

fn begin_request(namespace: String, key: usize, begin: &Begin) -> v1::BeginRequest {
    let on_lapse = if begin.hold { v1::OnLapse::Hold } else { v1::OnLapse::TakeOver };
    v1::BeginRequest {
        namespace,
        key: KEY_NAMES[key].to_owned(),
        request_id: uuid::Uuid::from_bytes([begin.caller.request + 1; 16]).to_string(),
        fingerprint: begin.fingerprint.map_or_else(Vec::new, |digest| vec![digest; 32]).into(),
        owner: owner(begin.caller.owner),
        lock_ttl: Some(duration(LOCK_TTLS[key][begin.lock_ttl])),
        wait: None,
        retention: Some(duration(RETENTIONS[key][begin.retention])),
        on_lapse: on_lapse.into(),
    }
}

fn retention_of(key: usize, choice: Option<usize>) -> Option<prost_types::Duration> {
    choice.map(|choice| duration(RETENTIONS[key][choice]))
}

fn disposition(in_doubt: bool) -> i32 {
    if in_doubt { v1::Disposition::InDoubt.into() } else { v1::Disposition::Retry.into() }
}

async fn unary<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Status> {
    call.await.map(tonic::Response::into_inner).map_err(|status| rpc_status(&status))
}

/// All pages of a List, joined.
async fn list(
    admin: &mut AdminServiceClient<Connection>,
    mut request: v1::ListRequest,
) -> Result<Vec<v1::RecordSummary>, Status> {
    let mut all = Vec::new();
    loop {
        let page = unary(admin.list(request.clone())).await?;
        assert!(page.records.len() <= request.page_size as usize, "a page of {}", page.records.len());
        all.extend(page.records);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        request.page_token = page.next_page_token;
    }
}
