//! More calls than a server can serve, in an open loop: they come when they come, whatever became of those before.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use onced::clock::{Clock, Moment};
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use onced_client::v1::{BeginRequest, BeginResponse, CompleteRequest, Outcome, begin_response, outcome};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::etcd::Etcd;
use crate::load::{Keys, Plan, measure};
use crate::options::{Options, seconds};
use crate::progress::Progress;
use crate::server::{Place, Server};
use crate::stats::{Latencies, figure};
use crate::ways::{Kind, begin_request};

#[derive(clap::Args)]
pub struct Args {
    /// How many times what the server can do
    #[arg(long, default_value_t = 3.0)]
    times: f64,

    /// Seconds of each load
    #[arg(long, value_parser = seconds, default_value = "10")]
    time: Duration,

    /// Connections, each of which carries a thousand pairs at once
    #[arg(long, default_value = "8")]
    connections: NonZeroUsize,

    /// Keep records in etcd
    #[arg(long)]
    on_etcd: bool,

    /// Pairs per second that the server can do [default: as a closed loop of 256 callers measures]
    #[arg(long)]
    capacity: Option<f64>,
}

/// How long a caller waits for an answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// What a server may take under any load, in MiB.
const MEMORY_MAX_MIB: u64 = 1_024;
/// The share of the capacity that is a normal load.
const NORMAL: f64 = 0.5;
/// How often calls are let go: as many at a time as are due.
const TICK: Duration = Duration::from_millis(2);
/// How many pairs may be open on a connection: half of the streams that a server allows, for a pair's Complete goes by
/// another connection than its Begin. What is due beyond is not sent, and told: it would only grow old in this process.
const OPEN_PER_CONNECTION: usize = 1_024;
/// How long that may take.
const RECOVERS_WITHIN: Duration = Duration::from_secs(60);
/// How many pairs in a row must be as fast as normal for the overload to count as over.
const CALM_PAIRS: u32 = 20;

/// What became of the calls of a load.
#[derive(Default)]
struct Tally {
    sent: usize,
    /// Pairs that were due when too many were open.
    unsent: usize,
    /// How long Begins that were granted took, and Completes.
    begins: Vec<Duration>,
    completes: Vec<Duration>,
    /// How long refusals took, of Begins and of Completes.
    begins_refused: Vec<Duration>,
    completes_refused: Vec<Duration>,
    /// Refusals that do not say when to come again.
    without_hint: usize,
    /// All else, by its code.
    failed: std::collections::BTreeMap<String, usize>,
}

/// How one call ended.
enum End {
    Done,
    Refused { hint: bool },
    Failed(String),
}

impl End {
    fn of(status: &Status) -> Self {
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.as_str()).unwrap_or_default();
        if (status.code(), reason) != (Code::Unavailable, "OVERLOADED") {
            return End::Failed(format!("{:?} {reason}", status.code()));
        }
        let pushback = status.metadata().contains_key("grpc-retry-pushback-ms");
        End::Refused { hint: pushback && details.retry_info().is_some() }
    }
}

/// What a pair came to: its Begin, and its Complete if it got so far.
type Pair = ((Duration, End), Option<(Duration, End)>);

impl Tally {
    fn add(&mut self, (begin, complete): Pair) {
        self.sent += 1;
        Self::note(
            begin,
            &mut self.begins,
            &mut self.begins_refused,
            &mut self.without_hint,
            &mut self.failed,
        );
        if let Some(complete) = complete {
            let (done, refused) = (&mut self.completes, &mut self.completes_refused);
            Self::note(complete, done, refused, &mut self.without_hint, &mut self.failed);
        }
    }

    fn note(
        (took, end): (Duration, End),
        done: &mut Vec<Duration>,
        refused: &mut Vec<Duration>,
        without_hint: &mut usize,
        failed: &mut std::collections::BTreeMap<String, usize>,
    ) {
        match end {
            End::Done => done.push(took),
            End::Refused { hint } => {
                refused.push(took);
                *without_hint += usize::from(!hint);
            }
            End::Failed(what) => *failed.entry(what).or_default() += 1,
        }
    }
}

struct Load {
    clients: Vec<IdempotencyServiceClient<Channel>>,
    next: AtomicUsize,
    keys: Keys,
    clock: Clock,
}

impl Load {
    async fn open(options: &Options, args: &Args, server: &Server) -> anyhow::Result<Arc<Self>> {
        let mut clients = Vec::new();
        for _ in 0..args.connections.get() {
            let endpoint = Endpoint::from_shared(format!("http://{}", server.address()))?.tcp_nodelay(true);
            clients.push(IdempotencyServiceClient::new(endpoint.connect().await?));
        }
        let (next, keys, clock) = (AtomicUsize::new(0), Keys::new(options.payload), Clock::system());
        Ok(Arc::new(Self { clients, next, keys, clock }))
    }

    /// A pair of a key of its own; its Begin counts from when it was due.
    async fn pair(self: Arc<Self>, due: Moment) -> Pair {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let key = self.keys.key(0, number as u64);
        let mut client = self.clients[number % self.clients.len()].clone();
        let begun = in_time(client.begin(timed(begin_request(&key)))).await;
        let took = self.clock.now().since(due);
        let token = match begun.map(|BeginResponse { result }| result) {
            Ok(Some(begin_response::Result::Claim(claim))) => claim.fencing_token,
            Ok(_) => return ((took, End::Failed("no claim".to_owned())), None),
            Err(status) => return ((took, End::of(&status)), None),
        };
        let sent = self.clock.now();
        let BeginRequest { namespace, .. } = begin_request(&key);
        let result = Some(outcome::Result::Response(self.keys.outcome(&key)));
        let outcome = Some(Outcome { result, ..Outcome::default() });
        let request = CompleteRequest { namespace, key, fencing_token: token, outcome, retention: None };
        // On another connection than the one that is full of Begins, as the clients do it.
        let mut client = self.clients[(number + 1) % self.clients.len()].clone();
        let completed = in_time(client.complete(timed(request))).await;
        let end = completed.map_or_else(|status| End::of(&status), |_| End::Done);
        ((took, End::Done), Some((self.clock.now().since(sent), end)))
    }

    /// So many pairs a second for a while, and all of their ends.
    async fn run(self: &Arc<Self>, rate: f64, time: Duration) -> anyhow::Result<Tally> {
        let (begin, mut tally, mut open) = (self.clock.now(), Tally::default(), JoinSet::new());
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut seen = 0;
        loop {
            ticks.tick().await;
            let passed = self.clock.now().since(begin);
            if passed >= time {
                break;
            }
            let due = (passed.as_secs_f64() * rate) as usize;
            let room = self.clients.len() * OPEN_PER_CONNECTION - open.len();
            for number in (seen..due).take(room) {
                let at = begin + Duration::from_secs_f64(number as f64 / rate);
                open.spawn(Arc::clone(self).pair(at));
            }
            tally.unsent += due.saturating_sub(seen + room);
            seen = seen.max(due);
            while let Some(ended) = open.try_join_next() {
                tally.add(ended?);
            }
        }
        while let Some(ended) = open.join_next().await {
            tally.add(ended?);
        }
        Ok(tally)
    }

    /// How long from now until pairs are again as fast as they normally are; `None` if they are not for a minute.
    async fn recovery(self: &Arc<Self>, normal: Duration) -> Option<Duration> {
        let begin = self.clock.now();
        let mut calm_since = begin;
        let mut calm = 0;
        while calm < CALM_PAIRS {
            let sent = self.clock.now();
            if sent.since(begin) > RECOVERS_WITHIN {
                return None;
            }
            let ((_, begun), completed) = Arc::clone(self).pair(sent).await;
            let done = matches!((begun, completed), (End::Done, Some((_, End::Done))));
            if done && self.clock.now().since(sent) <= normal * 2 {
                calm += 1;
            } else {
                (calm, calm_since) = (0, self.clock.now());
            }
        }
        Some(calm_since.since(begin))
    }
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

async fn in_time<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    let answered = tokio::time::timeout(DEADLINE + Duration::from_secs(1), call).await;
    answered.unwrap_or_else(|_| Err(Status::deadline_exceeded("it hangs"))).map(tonic::Response::into_inner)
}

pub async fn run(options: &Options, args: &Args) -> anyhow::Result<()> {
    let progress = Progress::new();
    let etcd = if args.on_etcd { Some(Arc::new(Etcd::open(options).await?)) } else { None };
    let capacity = match args.capacity {
        Some(capacity) => capacity,
        None => {
            let way = if args.on_etcd { Kind::UnaryEtcd } else { Kind::UnaryEmbedded };
            let open = way.open(options, etcd.clone()).await?;
            let second = Duration::from_secs(1);
            let plan = Plan { callers: 256, warm_up: second, time: args.time / 2, payload: options.payload };
            measure(&plan, &open, |rate| {
                progress.show(&format!("capacity: {} pairs/s", figure(rate)));
            })
            .await?
            .pairs_per_second
        }
    };
    let prefix = format!("overload-{:016x}", fastrand::u64(..));
    let place = match etcd.as_ref() {
        Some(etcd) => Place::Etcd { endpoints: etcd.endpoints(), prefix: &prefix },
        None => Place::Embedded,
    };
    let server = Server::start(options, place).await?;
    let load = Load::open(options, args, &server).await?;

    progress.show("normal load");
    load.run(capacity * NORMAL, Duration::from_secs(1)).await?;
    let normal = load.run(capacity * NORMAL, args.time).await?;
    let memory_before = memory(server.pid())?;
    progress.show("overload");
    let over = load.run(capacity * args.times, args.time).await?;
    progress.show("recovery");
    let usual = Latencies::new(normal.begins.clone()).quantile(0.99) / 1e3;
    let recovery = load.recovery(Duration::from_secs_f64(usual)).await;
    let memory_peak = memory(server.pid())?;
    drop(progress);

    let violations = violations(&normal, &over, recovery, memory_peak);
    let loads = [("normal", capacity * NORMAL, normal), ("overload", capacity * args.times, over)];
    let recovery_ms = recovery.map(|took| took.as_secs_f64() * 1e3);
    if options.json {
        let loads = loads.iter().map(|(name, rate, tally)| describe(name, *rate, tally)).collect::<Vec<_>>();
        let report = json!({
            "capacity": capacity, "loads": loads, "recovery_ms": recovery_ms,
            "memory_mib": { "before": memory_before, "peak": memory_peak }, "violations": violations,
        });
        println!("{report:#}");
        return kept(&violations);
    }
    println!("capacity: {} pairs/s, {} bytes", figure(capacity), options.payload);
    for (name, rate, tally) in loads {
        print(name, rate, args.time, tally);
    }
    if let Some(recovery_ms) = recovery_ms {
        println!("as fast as normal again {} ms after the last answer", figure(recovery_ms));
    }
    println!("server memory, at its peak: {memory_before} MiB before, {memory_peak} MiB after");
    kept(&violations)
}

/// What must not have been, however slow the machine is.
fn violations(normal: &Tally, over: &Tally, recovery: Option<Duration>, memory_peak: u64) -> Vec<String> {
    let refused = over.begins_refused.len();
    let lost = over.begins.len() - over.completes.len().min(over.begins.len());
    let found = [
        (over.begins_refused.is_empty(), "nothing was refused: that was no overload".to_owned()),
        (over.begins.is_empty(), "no Begin was granted under overload".to_owned()),
        (over.without_hint > 0, format!("{} of {refused} refusals have no hint", over.without_hint)),
        (lost > 0, format!("{lost} holders could not complete while Begins were shed")),
        (!normal.failed.is_empty(), format!("calls failed under normal load: {:?}", normal.failed)),
        (!over.failed.is_empty(), format!("calls failed under overload: {:?}", over.failed)),
        (recovery.is_none(), format!("the server has not recovered {RECOVERS_WITHIN:?} later")),
        (memory_peak > MEMORY_MAX_MIB, format!("the server took {memory_peak} MiB, of {MEMORY_MAX_MIB}")),
    ];
    found.into_iter().filter(|(is_so, _)| *is_so).map(|(_, what)| what).collect()
}

fn kept(violations: &[String]) -> anyhow::Result<()> {
    anyhow::ensure!(violations.is_empty(), "{}", violations.join("\n"));
    Ok(())
}

/// The quantiles that are told, in milliseconds.
fn quantiles(latencies: &[Duration]) -> [f64; 2] {
    let latencies = Latencies::new(latencies.to_vec());
    [latencies.quantile(0.5), latencies.quantile(0.99)]
}

fn describe(name: &str, rate: f64, tally: &Tally) -> Value {
    let of = |latencies: &[Duration]| {
        let [p50, p99] = quantiles(latencies);
        json!({ "count": latencies.len(), "p50_ms": p50, "p99_ms": p99 })
    };
    json!({
        "load": name, "pairs_per_second": rate, "sent": tally.sent, "unsent": tally.unsent,
        "begins": of(&tally.begins), "begins_refused": of(&tally.begins_refused),
        "completes": of(&tally.completes), "completes_refused": of(&tally.completes_refused),
        "refused_without_hint": tally.without_hint, "failed": tally.failed,
    })
}

fn print(name: &str, rate: f64, time: Duration, tally: Tally) {
    println!("\n{name}: {} pairs/s for {time:?}, {} sent", figure(rate), tally.sent);
    if tally.unsent > 0 {
        println!("due while the connections were full, and not sent: {}", tally.unsent);
    }
    println!("{:20}{:>10}{:>12}{:>12}", "", "count", "p50 ms", "p99 ms");
    let rows = [
        ("Begin, granted", tally.begins),
        ("Begin, refused", tally.begins_refused),
        ("Complete, stored", tally.completes),
        ("Complete, refused", tally.completes_refused),
    ];
    for (what, latencies) in rows {
        let [p50, p99] = quantiles(&latencies);
        println!("{what:20}{:>10}{:>12}{:>12}", latencies.len(), figure(p50), figure(p99));
    }
    println!("refused without a hint: {}", tally.without_hint);
    for (what, count) in tally.failed {
        println!("failed, {what}: {count}");
    }
}

/// The most memory that a process had so far, in MiB.
fn memory(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the server has ended")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(peak.trim().trim_end_matches(" kB").parse::<u64>()? >> 10)
}
