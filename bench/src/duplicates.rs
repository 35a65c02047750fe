//! Many callers of one key at once, over two servers that share an etcd.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use onced::clock::Clock;
use serde_json::json;
use tokio::task::JoinSet;

use crate::etcd::Etcd;
use crate::load::Keys;
use crate::options::{Options, seconds};
use crate::progress::Progress;
use crate::server::{Place, Server};
use crate::stats::{figure, median};
use crate::ways::{Calls, Way as _, Work};

#[derive(clap::Args)]
pub struct Args {
    /// How many callers of one key there are, all at once
    #[arg(long, value_delimiter = ',', default_values = ["10", "100", "1000"])]
    duplicates: Vec<NonZeroUsize>,

    /// How often, each time with a new key
    #[arg(long, default_value = "5")]
    rounds: NonZeroUsize,

    /// Seconds that the work of the key takes
    #[arg(long, value_parser = seconds, default_value = "0.5")]
    work: Duration,
}

/// What came of the callers of one key.
struct Round {
    /// Milliseconds from the first call to the last answer, less the work's own.
    beyond_ms: f64,
    requests: f64,
    messages: f64,
}

/// Two servers on one etcd.
struct Cluster {
    calls: [Calls; 2],
    _servers: [Server; 2],
    etcd: Etcd,
}

pub async fn run(options: &Options, args: &Args) -> anyhow::Result<()> {
    let cluster = Arc::new(Cluster::open(options).await?);
    let progress = Progress::new();
    // Connections, leases: what only the first call needs.
    cluster.round(2, Duration::ZERO, options.payload).await?;
    let (mut results, mut lines) = (Vec::new(), Vec::new());
    for &count in &args.duplicates {
        let mut rounds = Vec::new();
        for round in 1..=args.rounds.get() {
            progress.show(&format!("{count} callers, round {round} of {}", args.rounds));
            rounds.push(cluster.round(count.get(), args.work, options.payload).await?);
        }
        let of = |value: fn(&Round) -> f64| median(&rounds.iter().map(value).collect::<Vec<_>>());
        let (beyond, requests, messages) =
            (of(|round| round.beyond_ms), of(|round| round.requests), of(|round| round.messages));
        results.push(json!({
            "callers": count, "beyond_work_ms": beyond, "etcd_requests": requests, "etcd_messages": messages,
        }));
        lines.push(format!(
            "{count:>8}{:>16}{:>16}{:>16}",
            figure(beyond),
            figure(requests),
            figure(messages)
        ));
    }
    let before = cluster.etcd.requests().await?;
    tokio::time::sleep(args.work).await;
    let idle = cluster.etcd.requests().await?.started - before.started;
    drop(progress);
    if options.json {
        println!("{:#}", json!({ "duplicates": results, "etcd_requests_idle": idle }));
        return Ok(());
    }
    println!(
        "callers of one key over two servers, medians of {} rounds, work of {:?}",
        args.rounds, args.work
    );
    println!("{:>8}{:>16}{:>16}{:>16}", "callers", "ms beyond work", "etcd requests", "etcd messages");
    println!("{}", lines.join("\n"));
    println!("idle, in the time of the work: {idle} requests");
    Ok(())
}

impl Cluster {
    async fn open(options: &Options) -> anyhow::Result<Self> {
        let etcd = Etcd::open(options).await?;
        let prefix = format!("bench-{:016x}", fastrand::u64(..));
        let place = || Place::Etcd { endpoints: etcd.endpoints(), prefix: &prefix };
        let servers = [Server::start(options, place()).await?, Server::start(options, place()).await?];
        let calls = [
            Calls::sessions(&servers[0], options.channels).await?,
            Calls::sessions(&servers[1], options.channels).await?,
        ];
        Ok(Self { calls, _servers: servers, etcd })
    }

    async fn round(self: &Arc<Self>, count: usize, work: Duration, payload: usize) -> anyhow::Result<Round> {
        let keys = Keys::new(payload);
        let clock = Clock::system();
        let before = self.etcd.requests().await?;
        let sent = clock.now();
        let mut callers: JoinSet<_> =
            (0..count).map(|caller| Arc::clone(self).caller(caller, keys, work)).collect();
        let mut claims = 0;
        while let Some(caller) = callers.join_next().await {
            claims += usize::from(caller??);
        }
        let took = clock.now().since(sent);
        let after = self.etcd.requests().await?;
        anyhow::ensure!(claims == 1, "{claims} callers of one key got the claim");
        Ok(Round {
            beyond_ms: took.saturating_sub(work).as_secs_f64() * 1e3,
            requests: (after.started - before.started) as f64,
            messages: (after.messages - before.messages) as f64,
        })
    }

    /// One caller of the key: whether it was the one that got the claim.
    async fn caller(self: Arc<Self>, caller: usize, keys: Keys, work: Duration) -> anyhow::Result<bool> {
        let key = keys.key(0, 0);
        let work = Work { time: work, outcome: keys.outcome(&key) };
        let (ran, outcome) = self.calls[caller % 2].share(caller / 2, &key, &work).await?;
        anyhow::ensure!(outcome == work.outcome, "a replay is another outcome");
        Ok(ran)
    }
}
