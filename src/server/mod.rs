//! Wiring: the store, the coordinator, the services, the listener; and the way down.

mod accept;
mod admin;
mod drain;
mod live;
mod open;
mod process;

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::{Secret, StoreUrl};
use crate::coordinator::Coordinator;
use crate::rpc;
use crate::rpc::health::Reporter;
use crate::store::RecordStore;
use crate::store::embedded::EmbeddedStore;
use crate::store::etcd::{EtcdConfig, EtcdLogin, EtcdStore, EtcdTls, SizeWatch};
use crate::telemetry::metrics;

pub(crate) use admin::Admin;

pub use crate::config::{Config, Limits};
pub use accept::Listener;
pub use live::Live;

/// How often the metrics are told what is in use.
const COUNT_PERIOD: Duration = Duration::from_secs(1);

/// Why a server did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not ours.
    #[error("cannot listen on {listen}: {source}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The address of the admin port is taken, or not ours.
    #[error(
        "cannot listen on {listen} for health and metrics: {source}; name another address with --admin-listen, \
         or switch that off with --admin-listen off"
    )]
    AdminListen {
        /// The address.
        listen: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error("cannot open the store {store}: {reason}")]
    Open {
        /// The store.
        store: StoreUrl,
        /// Why.
        reason: String,
    },
    /// The store failed for good: the server ended, so that it can be started again on what is durable.
    #[error("the store failed, and the server with it: {0}")]
    StoreFailed(String),
    /// Something in this process keeps metrics already.
    #[error(transparent)]
    Metrics(#[from] metrics::Error),
    /// The process cannot listen for signals.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// A second signal came during the shutdown.
    #[error("ended by a second signal, before the shutdown was done")]
    Interrupted,
}

/// Serves on `listener` until `shutdown` is done, then drains: no call is cut short within the drain limit. Neither is TLS
/// spoken nor anybody asked who they are.
pub async fn run(
    config: Config,
    listener: impl Listener,
    store: Arc<dyn RecordStore>,
    clock: Clock,
    shutdown: impl Future<Output = ()>,
) {
    run_live(Live::in_plaintext(&config), config, listener, store, clock, shutdown).await;
}

/// As [`run`], by what may change meanwhile.
pub async fn run_live(
    live: Live,
    config: Config,
    listener: impl Listener,
    store: Arc<dyn RecordStore>,
    clock: Clock,
    shutdown: impl Future<Output = ()>,
) {
    run_by(live, config, listener, store, clock, Reporter::default(), shutdown).await;
}

/// The same, and reports how the server is.
async fn run_by(
    live: Live,
    config: Config,
    listener: impl Listener,
    store: Arc<dyn RecordStore>,
    clock: Clock,
    reporter: Reporter,
    shutdown: impl Future<Output = ()>,
) {
    let coordinator = Coordinator::new(store, clock.clone(), config.coordinator.clone());
    let reminding = live.clone();
    let (limits, draining) = (rpc::Limits::new(&config.rpc), CancellationToken::new());
    let routes = rpc::routes(coordinator.clone(), live.rules, limits.clone())
        .add_service(reporter.service())
        .prepare();
    let connections =
        accept::Connections::new(routes, live.tls, config.limits.clone(), clock.clone(), draining);

    let monitor = reporter.monitor(clock.clone(), || coordinator.probe());
    let serving = async {
        tokio::select! {
            biased;
            () = shutdown => {}
            () = monitor => {}
            () = connections.accept(&listener) => {}
        }
        // Closed first: who connects now is to be refused, not left waiting in a queue that nobody reads.
        drop(listener);
        drain::drain(&reporter, &coordinator, &connections, config.drain_limit, &clock).await;
    };
    tokio::select! {
        biased;
        () = serving => {}
        () = count(&limits, &connections, &coordinator) => {}
        () = reminding.remind() => {}
    }
}

/// Tells the metrics what is in use, every now and then; never ends.
async fn count(limits: &rpc::Limits, connections: &accept::Connections, coordinator: &Coordinator) {
    loop {
        coordinator.count();
        limits.count();
        connections.count();
        tokio::time::sleep(COUNT_PERIOD).await;
    }
}

/// Opens the store, listens, says so on standard output, and serves until SIGTERM or SIGINT; a second
/// signal ends it at once. What is live may change meanwhile.
///
/// # Errors
/// If it cannot start, if the store failed, or if the shutdown was interrupted.
pub async fn serve(config: Config, live: Live) -> Result<(), Error> {
    raise_file_limit();
    let (mut terminate, mut interrupt) =
        (listen_for(SignalKind::terminate())?, listen_for(SignalKind::interrupt())?);
    let listen = config.listen;
    let listener = TcpListener::bind(listen).await.map_err(|source| Error::Listen { listen, source })?;
    let address = listener.local_addr().map_err(|source| Error::Listen { listen, source })?;
    let (clock, reporter) = (Clock::system(), Reporter::default());
    // Before the store is opened, which may take a while; and until all this has ended.
    let admin = match config.admin_listen {
        Some(listen) => Some(Admin::start(listen, reporter.readiness(), clock.clone()).await?),
        None => None,
    };
    let Opened { store, failed } = open(&config, clock.clone()).await?;
    announce(address, admin.as_ref().map(Admin::address), &config);

    let stop = CancellationToken::new();
    let server = run_by(live, config, listener, store, clock, reporter, stop.clone().cancelled_owned());
    tokio::pin!(server);
    let failure = tokio::select! {
        biased;
        () = &mut server => return Ok(()),
        () = signalled(&mut terminate, &mut interrupt) => None,
        reason = failed => Some(reason),
    };
    match &failure {
        None => tracing::info!("asked to stop; a second signal ends it at once"),
        Some(reason) => tracing::error!(reason, "the store failed; stopping"),
    }
    stop.cancel();
    tokio::select! {
        biased;
        () = server => {}
        () = signalled(&mut terminate, &mut interrupt) => return Err(Error::Interrupted),
    }
    failure.map_or(Ok(()), |reason| Err(Error::StoreFailed(reason)))
}

/// Each connection is a file, and what a shell allows by default is far below what the server does. The system's
/// own limit stands.
pub(crate) fn raise_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Hears of a signal from now on; without this it ends the process.
pub(crate) fn listen_for(kind: SignalKind) -> Result<Signal, Error> {
    signal(kind).map_err(Error::Signals)
}

/// Waits for either.
pub(crate) async fn signalled(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// A store, and what ends when it has failed for good.
struct Opened {
    store: Arc<dyn RecordStore>,
    failed: BoxFuture<'static, String>,
}

impl Opened {
    fn embedded(store: EmbeddedStore) -> Self {
        let store = Arc::new(store);
        let watched = Arc::clone(&store);
        Self { store, failed: async move { watched.failed().await }.boxed() }
    }
}

async fn open(config: &Config, clock: Clock) -> Result<Opened, Error> {
    let refuse = |reason: String| Error::Open { store: config.store.clone(), reason };
    match config.store.clone() {
        StoreUrl::File(directory) => {
            // After a crash the file is checked, which takes a while.
            let opening = tokio::task::spawn_blocking(move || EmbeddedStore::open(&directory, clock));
            match opening.await {
                Ok(store) => Ok(Opened::embedded(store.map_err(|error| refuse(error.to_string()))?)),
                Err(error) => Err(refuse(error.to_string())),
            }
        }
        StoreUrl::Memory => {
            let store = EmbeddedStore::in_memory(clock).map_err(|error| refuse(error.to_string()))?;
            Ok(Opened::embedded(store))
        }
        StoreUrl::Etcd { endpoints, prefix, tls } => {
            let etcd = etcd_config(config, endpoints, prefix, tls);
            let store = EtcdStore::connect(etcd, clock).await.map_err(|error| refuse(error.to_string()))?;
            // etcd being away is no end: it comes back.
            Ok(Opened { store: Arc::new(store), failed: std::future::pending().boxed() })
        }
    }
}

fn etcd_config(config: &Config, endpoints: Vec<String>, prefix: String, tls: bool) -> EtcdConfig {
    let etcd = config.etcd.clone();
    let identity = etcd.cert.zip(etcd.key);
    let login = etcd.user.zip(config.etcd_password.clone());
    EtcdConfig {
        call_timeout: etcd.call_timeout,
        tls: tls.then_some(EtcdTls { ca: etcd.ca, identity }),
        login: login.map(|(user, Secret(password))| EtcdLogin { user, password }),
        size: SizeWatch { quota_bytes: etcd.quota_bytes, ..SizeWatch::default() },
        ..EtcdConfig::new(endpoints, prefix)
    }
}

/// Says where the server is, where its data is, and what to try next. The first lines, which say where it listens,
/// are for scripts.
fn announce(address: SocketAddr, admin: Option<SocketAddr>, config: &Config) {
    let store = &config.store;
    let data = match store {
        StoreUrl::File(directory) => {
            let directory = directory.canonicalize().unwrap_or_else(|_| directory.clone());
            format!("records are kept in {}", directory.display())
        }
        StoreUrl::Memory => "records are kept in memory, and gone when this process ends".to_owned(),
        StoreUrl::Etcd { .. } => format!("records are kept in {store}"),
    };
    let admin = admin.map(|admin| format!("health and metrics on http://{admin}\n")).unwrap_or_default();
    // Clients look at 127.0.0.1:7411 unless told otherwise.
    let server = match (config.tls.cert.is_some(), address == Config::default().listen) {
        (false, true) => String::new(),
        (false, false) => format!(" --server {address}"),
        // The certificate is for names that are not known here.
        (true, _) => format!(" --server https://HOST:{}", address.port()),
    };
    // As it was started, so that the lines can be pasted: it may not be on the PATH.
    let onced = std::env::args_os().next().unwrap_or_else(|| "onced".into());
    let onced = onced.to_string_lossy();
    let text = format!(
        "listening on {address}\n\
         {admin}\
         {data}\n\
         \n\
         try, in another terminal:\n\
         \x20 {onced} begin --key order-1{server}\n\
         \x20 {onced} complete --key order-1 --token TOKEN --response 'it is done'{server}\n\
         \x20 {onced} begin --key order-1{server}\n\
         or run a command once, wherever and however often it is started:\n\
         \x20 {onced} exec --key nightly-report{server} -- date\n"
    );
    // A reader that is gone is no reason to stop.
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
