//! How pairs change with what grows: the callers, the duplicates of a key, the records stored, the size of an outcome.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use onced::clock::Clock;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cost::Process;
use crate::load::{self, Keys, Plan};
use crate::machine;
use crate::options::{Options, seconds};
use crate::peers::{Found, memory};
use crate::progress::Progress;
use crate::rounds;
use crate::stats::{figure, median};
use crate::ways::{Kind, Open, Work};

#[derive(clap::Args)]
pub struct Args {
    /// What grows
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Over::value_variants().to_vec())]
    over: Vec<Over>,

    /// The ways to measure
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [
        Kind::UnaryEmbedded, Kind::StreamEmbedded, Kind::RedisAlways, Kind::Postgres, Kind::Powertools,
        Kind::Restate, Kind::UnaryEtcd, Kind::StreamEtcd, Kind::EtcdLeases, Kind::EtcdV3lock,
    ])]
    ways: Vec<Kind>,

    /// How many callers there are, where something else grows
    #[arg(long, default_value = "64")]
    callers: NonZeroUsize,

    /// How often each point is measured, but for records, which grow once
    #[arg(long, default_value = "3")]
    rounds: NonZeroUsize,

    /// Seconds of one measurement
    #[arg(long, value_parser = seconds, default_value = "3")]
    seconds: Duration,

    /// Seconds before it that do not count
    #[arg(long, value_parser = seconds, default_value = "1")]
    warm_up: Duration,

    /// The most records that are stored
    #[arg(long, default_value = "1000000")]
    records: u64,

    /// Seconds that a way may take to store them
    #[arg(long, value_parser = seconds, default_value = "300")]
    patience: Duration,
}

/// What grows.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Over {
    Callers,
    Duplicates,
    Records,
    Payload,
}

const CALLERS: [usize; 6] = [1, 4, 16, 64, 256, 512];
const DUPLICATES: [usize; 4] = [1, 10, 100, 1_000];
const PAYLOADS: [usize; 5] = [100, 1_000, 10_000, 100_000, 1_000_000];
/// How long the work of a key with duplicates takes. Who looks again and again is late by half a [`crate::ways::POLL`].
const WORK: Duration = Duration::from_millis(450);

pub async fn run(options: &Options, args: &Args) -> anyhow::Result<()> {
    let machine = machine::describe()?;
    let found = Found::new(options, &args.ways).await;
    let mut results = serde_json::Map::new();
    results.insert("machine".to_owned(), machine);
    for &over in &args.over {
        let (name, points) = match over {
            Over::Callers => ("callers", callers(options, args, &found.ways).await?),
            Over::Duplicates => ("duplicates", duplicates(options, args, &found.ways).await?),
            Over::Records => ("records", records(options, args, &found.ways).await?),
            Over::Payload => ("payload", payload(options, args, &found.ways).await?),
        };
        if !options.json {
            println!("over {name}");
            points.iter().for_each(|point| println!("{point}"));
        }
        results.insert(name.to_owned(), points.into());
    }
    if options.json {
        println!("{:#}", Value::from(results));
    }
    Ok(())
}

async fn callers(options: &Options, args: &Args, ways: &[Kind]) -> anyhow::Result<Vec<Value>> {
    let mut points = Vec::new();
    for at in CALLERS {
        let plan = Plan { callers: at, ..plan(args, options.payload) };
        points.extend(rates(options, args, &plan, at, ways).await?);
    }
    Ok(points)
}

async fn payload(options: &Options, args: &Args, ways: &[Kind]) -> anyhow::Result<Vec<Value>> {
    let mut points = Vec::new();
    for at in PAYLOADS {
        points.extend(rates(options, args, &plan(args, at), at, ways).await?);
    }
    Ok(points)
}

fn plan(args: &Args, payload: usize) -> Plan {
    Plan { callers: args.callers.get(), warm_up: args.warm_up, time: args.seconds, payload }
}

async fn rates(
    options: &Options,
    args: &Args,
    plan: &Plan,
    at: usize,
    ways: &[Kind],
) -> anyhow::Result<Vec<Value>> {
    let rows = rounds::measure(options, args.rounds.get(), plan, ways).await?;
    let point = |row: &rounds::Row| {
        json!({
            "way": row.way.name(), "at": at, "pairs_per_second": median(&row.rates()),
            "p50_ms": row.quantile(0.5), "p99_ms": row.quantile(0.99),
        })
    };
    Ok(rows.iter().map(point).collect())
}

/// The records of a way grow while pairs go on, and it is measured each time that they are ten times as many.
async fn records(options: &Options, args: &Args, ways: &[Kind]) -> anyhow::Result<Vec<Value>> {
    let progress = Progress::new();
    let counts: Vec<u64> = (3..).map(|power| 10_u64.pow(power)).take_while(|&n| n <= args.records).collect();
    let mut points = Vec::new();
    for &way in ways {
        let name = way.name();
        let tell = |rate| progress.show(&format!("records of {name}, {} pairs/s", figure(rate)));
        let open = way.open_alone(options).await.with_context(|| name.clone())?;
        let plan = plan(args, options.payload);
        let grown = load::grow(&plan, &open, &counts, args.patience, tell).await;
        for grown in grown.with_context(|| name.clone())? {
            points.push(json!({
                "way": name, "at": grown.records, "pairs_per_second": grown.measured.pairs_per_second,
                "cpu_seconds_per_1000_pairs": grown.measured.costs.values().map(|cost| cost.cpu).sum::<f64>(),
                "memory_mib": memory(&grown.measured.costs), "disk_bytes": grown.stored,
            }));
        }
    }
    Ok(points)
}

/// Callers of one key, all at once: one does the work, and the others wait for its outcome.
async fn duplicates(options: &Options, args: &Args, ways: &[Kind]) -> anyhow::Result<Vec<Value>> {
    let progress = Progress::new();
    let mut points = Vec::new();
    for &way in ways.iter().filter(|way| way.shares()) {
        let name = way.name();
        let open = way.open_alone(options).await.with_context(|| name.clone())?;
        // Connections: what only the first callers need.
        for count in DUPLICATES {
            share(&open, count, options.payload).await.with_context(|| name.clone())?;
        }
        for count in DUPLICATES {
            let mut rounds = Vec::new();
            for round in 1..=args.rounds.get() {
                progress.show(&format!("{count} duplicates, round {round} of {}: {name}", args.rounds));
                rounds.push(share(&open, count, options.payload).await.with_context(|| name.clone())?);
            }
            let of = |value: fn(&(f64, f64)) -> f64| median(&rounds.iter().map(value).collect::<Vec<_>>());
            let (beyond, cpu) = (of(|round| round.0), of(|round| round.1));
            points.push(json!({ "way": name, "at": count, "beyond_work_ms": beyond, "cpu_ms": cpu }));
        }
    }
    Ok(points)
}

/// Milliseconds from the first call to the last answer, less the work's own; and of CPU, of all processes.
async fn share(open: &Open, callers: usize, payload: usize) -> anyhow::Result<(f64, f64)> {
    let keys = Keys::new(payload);
    let key = keys.key(0, 0);
    let work = Work { time: WORK, outcome: keys.outcome(&key) };
    let processes = open.processes();
    let cpu = || -> anyhow::Result<f64> {
        let used: anyhow::Result<Vec<f64>> = processes.iter().map(Process::cpu).collect();
        Ok(used?.iter().sum::<f64>() * 1e3)
    };
    let clock = Clock::system();
    let (before, sent) = (cpu()?, clock.now());
    let mut shares = JoinSet::new();
    for caller in 0..callers {
        let (way, key, work) = (Arc::clone(&open.way), key.clone(), work.clone());
        shares.spawn(async move { way.share(caller, &key, &work).await });
    }
    let mut ran = 0;
    while let Some(share) = shares.join_next().await {
        let (own, outcome) = share??;
        anyhow::ensure!(outcome == work.outcome, "a replay is another outcome");
        ran += usize::from(own);
    }
    let took = clock.now().since(sent);
    anyhow::ensure!(ran == 1, "{ran} callers of one key did its work");
    Ok((took.saturating_sub(WORK).as_secs_f64() * 1e3, cpu()? - before))
}
