//! onced beside its peers: the same work, each as its users would write it, and as durable as it claims to be.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use serde_json::{Value, json};

use crate::load::{Cost, Plan};
use crate::machine;
use crate::options::{Options, seconds};
use crate::progress::Progress;
use crate::rounds::{Row, measure};
use crate::stats::{figure, median};
use crate::ways::Kind;

/// The shares of pairs whose latency is told.
const SHARES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

#[derive(clap::Args)]
pub struct Args {
    /// How many callers work at once
    #[arg(long, value_delimiter = ',', default_values = ["1", "64", "256"])]
    callers: Vec<NonZeroUsize>,

    /// How often each way is measured, in turn with the others
    #[arg(long, default_value = "5")]
    rounds: NonZeroUsize,

    /// Seconds of one measurement
    #[arg(long, value_parser = seconds, default_value = "5")]
    seconds: Duration,

    /// Seconds before it that do not count
    #[arg(long, value_parser = seconds, default_value = "2")]
    warm_up: Duration,

    /// The ways to measure [default: onced and all its peers]
    #[arg(long, value_delimiter = ',', value_enum)]
    ways: Vec<Kind>,
}

/// The ways that can be had here, and why the others cannot.
pub struct Found {
    pub ways: Vec<Kind>,
    versions: BTreeMap<String, String>,
    missing: BTreeMap<String, String>,
}

impl Found {
    /// Looks for them, and starts each once.
    pub async fn new(options: &Options, ways: &[Kind]) -> Self {
        let progress = Progress::new();
        let mut found = Self { ways: Vec::new(), versions: BTreeMap::new(), missing: BTreeMap::new() };
        for &way in ways {
            progress.show(&format!("looking for {}", way.name()));
            let version = async {
                let version = way.version(options)?;
                way.open_alone(options).await?;
                anyhow::Ok(version)
            };
            match version.await {
                Ok(version) => {
                    found.ways.push(way);
                    found.versions.insert(way.name(), version);
                }
                Err(error) => {
                    eprintln!("{} is missing: {error:#}", way.name());
                    found.missing.insert(way.name(), format!("{error:#}"));
                }
            }
        }
        found
    }
}

pub async fn run(options: &Options, args: &Args) -> anyhow::Result<()> {
    let machine = machine::describe()?;
    let ways = if args.ways.is_empty() { Kind::peers() } else { args.ways.clone() };
    let found = Found::new(options, &ways).await;
    let mut results = Vec::new();
    for &callers in &args.callers {
        let (warm_up, time) = (args.warm_up, args.seconds);
        let plan = Plan { callers: callers.get(), warm_up, time, payload: options.payload };
        let rows = measure(options, args.rounds.get(), &plan, &found.ways).await?;
        if !options.json {
            print(&plan, &rows);
        }
        results.push(json(&plan, &rows));
    }
    let about: BTreeMap<_, _> = ways.iter().map(|way| (way.name(), way.about())).collect();
    if options.json {
        let (versions, missing) = (found.versions, found.missing);
        println!(
            "{:#}",
            json!({
                "machine": machine, "versions": versions, "missing": missing, "about": about,
                "payload_bytes": options.payload, "results": results,
            })
        );
    } else {
        println!("{machine:#}");
        found.versions.iter().for_each(|(way, version)| println!("{way:16}{version}"));
        found.missing.iter().for_each(|(way, why)| println!("{way:16}MISSING: {why}"));
    }
    Ok(())
}

impl Row {
    /// How many times as fast as onced's own way that is as durable, round by round, if that is measured.
    fn to_onced<'a>(&self, rows: &'a [Row]) -> Option<(&'a Row, Vec<f64>)> {
        let onced = rows.iter().find(|row| row.way == self.way.like())?;
        Some((onced, self.ratios(onced)))
    }
}

/// What all processes but the load generator have of memory, in MiB.
pub fn memory(costs: &BTreeMap<&str, Cost>) -> f64 {
    let others = costs.iter().filter(|(name, _)| **name != "load");
    others.map(|(_, cost)| cost.memory).sum::<f64>() / f64::from(1 << 20)
}

fn print(plan: &Plan, rows: &[Row]) {
    println!("{} callers, {} bytes, {:?} a round", plan.callers, plan.payload, plan.time);
    let shares: String = SHARES.iter().map(|(name, _)| format!("{:>9}", format!("{name} ms"))).collect();
    println!(
        "{:16}{:>9}{:>9}{shares}{:>9}{:>9}   CPU s per 1,000 pairs",
        "way", "pairs/s", "x onced", "KB", "MiB"
    );
    for row in rows {
        let ratio = row.to_onced(rows).map_or(f64::NAN, |(_, ratios)| median(&ratios));
        let shares: String =
            SHARES.iter().map(|&(_, share)| format!("{:>9}", figure(row.quantile(share)))).collect();
        let costs = row.costs();
        let written = row.written().map_or(f64::NAN, |bytes| bytes / 1e3);
        let cpu: Vec<String> =
            costs.iter().map(|(process, cost)| format!("{process} {:.3}", cost.cpu)).collect();
        let (name, rate) = (row.way.name(), figure(median(&row.rates())));
        let (ratio, written, memory) = (figure(ratio), figure(written), figure(memory(&costs)));
        println!("{name:16}{rate:>9}{ratio:>9}{shares}{written:>9}{memory:>9}   {}", cpu.join(", "));
    }
    println!();
}

fn json(plan: &Plan, rows: &[Row]) -> Value {
    json!({
        "callers": plan.callers,
        "payload_bytes": plan.payload,
        "seconds": plan.time.as_secs_f64(),
        "ways": rows.iter().map(|row| json_of(row, rows)).collect::<Vec<_>>(),
    })
}

fn json_of(row: &Row, rows: &[Row]) -> Value {
    let ratio = row.to_onced(rows).map(
        |(onced, ratios)| json!({ "to": onced.way.name(), "rounds": ratios, "median": median(&ratios) }),
    );
    let latency: BTreeMap<_, _> = SHARES.iter().map(|&(name, share)| (name, row.quantile(share))).collect();
    let costs: BTreeMap<_, _> = row
        .costs()
        .into_iter()
        .map(|(process, Cost { cpu, memory })| {
            (process, json!({ "cpu_seconds_per_1000_pairs": cpu, "memory_bytes": memory }))
        })
        .collect();
    json!({
        "way": row.way.name(),
        "pairs_per_second": { "rounds": row.rates(), "median": median(&row.rates()) },
        "ratio": ratio,
        "latency_ms": latency,
        "costs": costs,
        "bytes_written_per_pair": row.written(),
    })
}
