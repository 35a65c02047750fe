//! `onced proxy`: the `Idempotency-Key` header for a service in any language, without code. What it keeps to is the
//! HTTP contract of clients/README.md, by the layer of the Rust client; what is here is the way to and from that.

mod args;
mod body;
mod forward;
mod front;
mod headers;
mod limit;
mod listen;
mod refusal;
mod rules;
mod streams;
mod upstream;
mod writing;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use onced_client::Client;
use onced_client::http::OnceLayer;
use tokio::net::TcpListener;
use tokio::signal::unix::SignalKind;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use args::ProxyArgs;

use super::exit::Exit;
use super::health;
use super::output::{print, say};
use crate::clock::Clock;
use crate::rpc::health::Readiness;
use crate::server::{self, Admin, listen_for, raise_file_limit, signalled};
use crate::telemetry;
use crate::telemetry::metrics::PROXY_UNPROTECTED;
use forward::Forward;
use front::Front;
use limit::Places;
use listen::Connections;

/// How often the metrics are told what is in use.
const COUNT_PERIOD: Duration = Duration::from_secs(1);
/// How long a server of onced may take to say that it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long it may take to say of what was given up what becomes of its key, to its caller and to onced.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// The same without callers: one may well read nothing, or not have sent what it is to ask for.
const LAST_WORDS_ALONE: Duration = Duration::from_secs(1);

/// Why the proxy did not start, or ended: what to say, and how to exit.
struct Ended(Exit, String);

impl Ended {
    fn usage(text: impl Into<String>) -> Self {
        Self(Exit::Usage, text.into())
    }

    fn failed(text: impl Into<String>) -> Self {
        Self(Exit::Failed, text.into())
    }
}

impl From<server::Error> for Ended {
    fn from(error: server::Error) -> Self {
        Self::failed(error.to_string())
    }
}

/// Runs until SIGTERM or SIGINT, then lets what is at work end; a second signal ends it at once.
pub async fn run(args: ProxyArgs) -> Exit {
    match serve(args).await {
        Ok(()) => Exit::Done,
        Err(Ended(exit, text)) => {
            say(&text);
            exit
        }
    }
}

async fn serve(args: ProxyArgs) -> Result<(), Ended> {
    telemetry::init(&args.log, args.log_format.into()).map_err(|error| Ended::usage(error.to_string()))?;
    raise_file_limit();
    let (mut terminate, mut interrupt) =
        (listen_for(SignalKind::terminate())?, listen_for(SignalKind::interrupt())?);
    let client = args.connect.client().map_err(|error| Ended(Exit::of_error(&error), error.to_string()))?;
    let listener = listen(&args).await?;
    let address = listener.local_addr().map_err(|error| Ended::failed(error.to_string()))?;
    if args.upstream.is_at(address) {
        return Err(Ended::usage(format!("the upstream {} is this proxy itself", args.upstream)));
    }
    let clock = Clock::system();
    let (readiness, told) = watch::channel(Readiness::Ready);
    // Before anything is made that counts.
    let admin = match args.admin_listen.0 {
        Some(listen) => Some(Admin::start(listen, told, clock.clone()).await?),
        None => None,
    };
    let pool = upstream::pool(&args.upstream, args.behind.upstream_ca.as_deref(), args.pooling());
    let give_up = CancellationToken::new();
    let forward = Forward::new(pool.map_err(Ended::usage)?, args.forwarding(give_up.clone()), clock);
    let places = Places::new(args.limits.max_requests);
    let layer = layer(&args, client.clone());
    let front = Arc::new(Front::new(places, args.rules(), &layer, forward, args.limits.body_timeout));
    let connections = Connections::new(Arc::clone(&front), args.listening());
    announce(&args, address, admin.as_ref().map(Admin::address));

    tokio::select! {
        biased;
        () = signalled(&mut terminate, &mut interrupt) => {}
        () = connections.accept(&listener) => {}
        () = count(&front, &connections, &client) => {}
        () = probe(&client) => {}
    }
    tracing::info!(requests = front.places.taken(), "asked to stop; a second signal ends it at once");
    readiness.send_replace(Readiness::Draining);
    // Who connects now is to be refused, not left waiting in a queue that nobody reads.
    drop(listener);
    let drained = async {
        let drain = drain(&front, &connections, &client);
        tokio::pin!(drain);
        let limit = args.limits.drain_limit;
        if tokio::time::timeout(limit, drain.as_mut()).await.is_err() {
            let requests = front.places.taken();
            tracing::warn!(requests, "the drain took too long: the upstream is not waited for any longer");
            give_up.cancel();
            if tokio::time::timeout(LAST_WORDS, drain.as_mut()).await.is_err() {
                tracing::warn!(
                    connections = connections.open(),
                    "what callers have not sent or read is cut off"
                );
                connections.cut();
                return tokio::time::timeout(LAST_WORDS_ALONE, drain).await.is_ok();
            }
        }
        true
    };
    tokio::select! {
        biased;
        drained = drained => match drained {
            true => Ok(()),
            false => Err(Ended::failed("requests were still at work; what was claimed for them lapses by itself")),
        },
        () = signalled(&mut terminate, &mut interrupt) => Err(server::Error::Interrupted.into()),
    }
}

async fn listen(args: &ProxyArgs) -> Result<TcpListener, Ended> {
    let listen = args.listen;
    TcpListener::bind(listen).await.map_err(|source| {
        Ended::failed(format!("cannot listen on {listen}: {source}; name another address with --listen"))
    })
}

/// Lets requests end: those with callers, then those whose callers are gone, then what is to be stored of them.
async fn drain(front: &Front, connections: &Connections, client: &Client) {
    // Who waits for a claim is told at once to come again: there may be no time left to run what it would get.
    client.close(Duration::ZERO).await;
    connections.drain().await;
    front.places.empty().await;
    client.close(Duration::MAX).await;
    tracing::info!("drained");
}

/// The rules of keys, as the settings have them.
fn layer(args: &ProxyArgs, client: Client) -> OnceLayer {
    let keys = &args.keys;
    let mut layer = OnceLayer::new(client)
        .methods(keys.methods.iter().cloned())
        .namespace(&args.connect.namespace)
        .wait(keys.wait)
        .on_lapse(keys.on_lapse.into())
        .on_5xx(keys.on_5xx.into())
        .store_headers(keys.store_headers.iter().cloned())
        .max_request_bytes(args.limits.max_request_bytes)
        .unread(args.limits.body_timeout);
    if let Some(name) = &keys.scope_header {
        layer = layer.scope_header(name.clone());
    }
    if let Some(ttl) = keys.ttl {
        layer = layer.lock_ttl(ttl);
    }
    if let Some(retention) = keys.retention {
        layer = layer.retention(retention);
    }
    if let Some(bytes) = args.limits.max_response_bytes {
        layer = layer.max_response_bytes(bytes);
    }
    if let Some(after) = keys.fail_open {
        layer = layer.fail_open(after);
    }
    layer
}

/// Tells the metrics what is in use, every now and then; never ends.
async fn count(front: &Front, connections: &Connections, client: &Client) {
    let unprotected = metrics::counter!(PROXY_UNPROTECTED);
    loop {
        front.places.count();
        connections.count();
        unprotected.absolute(client.unprotected_runs());
        tokio::time::sleep(COUNT_PERIOD).await;
    }
}

/// Warns if no server of onced is there: requests with a key are refused until one is. Never ends.
async fn probe(client: &Client) {
    let answers = health::ask(client, PROBE_TIMEOUT, false).await;
    if answers.iter().all(|(_, answer)| answer.is_err()) {
        for (server, answer) in &answers {
            let why = answer.as_ref().err().map(String::as_str).unwrap_or_default();
            tracing::warn!(%server, why, "onced is not ready; requests with a key are refused until it is");
        }
    }
    std::future::pending().await
}

/// Says where the proxy is, and what to try next. The first lines, which say where it listens, are for scripts.
fn announce(args: &ProxyArgs, address: SocketAddr, admin: Option<SocketAddr>) {
    let admin = admin.map(|admin| format!("health and metrics on http://{admin}\n")).unwrap_or_default();
    let (upstream, server) = (&args.upstream, &args.connect.server);
    // A reader that is gone is no reason to stop.
    let _ = print(&format!(
        "listening on {address}\n\
         {admin}\
         requests go to {upstream}, their keys to onced at {server}\n\
         \n\
         try, in another terminal, twice:\n\
         \x20 curl -i http://{address}/ -H 'Idempotency-Key: order-1' -d 'one order'\n"
    ));
}
