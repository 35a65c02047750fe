//! Pairs per second, of many callers at once.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use crate::etcd::Etcd;
use crate::load::{self, Measured, Plan};
use crate::options::{Options, seconds};
use crate::progress::Progress;
use crate::stats::{figure, median};
use crate::ways::Kind;

#[derive(clap::Args)]
pub struct Args {
    /// How many callers work at once
    #[arg(long, value_delimiter = ',', default_values = ["64", "256"])]
    callers: Vec<NonZeroUsize>,

    /// How often each way is measured, in turn with the others
    #[arg(long, default_value = "5")]
    rounds: NonZeroUsize,

    /// Seconds of one measurement
    #[arg(long, value_parser = seconds, default_value = "3")]
    seconds: Duration,

    /// Seconds before it that do not count
    #[arg(long, value_parser = seconds, default_value = "1")]
    warm_up: Duration,

    /// The ways to measure [default: all]
    #[arg(long, value_delimiter = ',', value_enum)]
    ways: Vec<Kind>,

    /// The ways that the others are compared with, if they are measured
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Kind::EtcdLeases, Kind::EtcdPuts, Kind::StreamEtcd])]
    baselines: Vec<Kind>,
}

/// What was measured of a way, round by round.
struct Row {
    way: Kind,
    rounds: Vec<Measured>,
}

pub async fn run(options: &Options, args: &Args) -> anyhow::Result<()> {
    let ways = if args.ways.is_empty() { Kind::all() } else { args.ways.clone() };
    let mut results = Vec::new();
    for &callers in &args.callers {
        let plan = Plan {
            callers: callers.get(),
            warm_up: args.warm_up,
            time: args.seconds,
            payload: options.payload,
        };
        let rows = measure(options, args.rounds.get(), &plan, &ways).await?;
        let baselines: Vec<&Row> = rows.iter().filter(|row| args.baselines.contains(&row.way)).collect();
        if options.json {
            results.push(json(&plan, &rows, &baselines));
        } else {
            print(&plan, &rows, &baselines);
        }
    }
    if options.json {
        println!("{:#}", json!(results));
    }
    Ok(())
}

async fn measure(options: &Options, rounds: usize, plan: &Plan, ways: &[Kind]) -> anyhow::Result<Vec<Row>> {
    let progress = Progress::new();
    let mut rows: Vec<Row> = ways.iter().map(|&way| Row { way, rounds: Vec::new() }).collect();
    for round in 1..=rounds {
        // Whatever changes with time changes alike for all of them.
        fastrand::shuffle(&mut rows);
        for row in &mut rows {
            let name = row.way.name();
            let line = format!("{} callers, round {round} of {rounds}: {name}", plan.callers);
            progress.show(&line);
            // Each starts with nothing stored, and nothing else running.
            let etcd = if row.way.needs_etcd() { Some(Etcd::open(options).await?) } else { None };
            let open = row.way.open(options, etcd.as_ref()).await.with_context(|| name.clone())?;
            let tell = |rate| progress.show(&format!("{line}, {} pairs/s", figure(rate)));
            let measured =
                load::measure(plan, &open, etcd.as_ref(), tell).await.with_context(|| name.clone())?;
            row.rounds.push(measured);
        }
    }
    rows.sort_by_key(|row| ways.iter().position(|&way| way == row.way));
    Ok(rows)
}

impl Row {
    fn rates(&self) -> Vec<f64> {
        self.rounds.iter().map(|round| round.pairs_per_second).collect()
    }

    /// How many times as fast as another way, round by round.
    fn ratios(&self, baseline: &Row) -> Vec<f64> {
        self.rates().iter().zip(baseline.rates()).map(|(rate, base)| rate / base).collect()
    }

    /// CPU seconds per 1,000 pairs, by process: the median of the rounds.
    fn cpu(&self) -> BTreeMap<&'static str, f64> {
        let mut rounds: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        for (process, seconds) in self.rounds.iter().flat_map(|round| &round.cpu) {
            rounds.entry(process).or_default().push(*seconds);
        }
        rounds.into_iter().map(|(process, seconds)| (process, median(&seconds))).collect()
    }
}

fn print(plan: &Plan, rows: &[Row], baselines: &[&Row]) {
    println!("{} callers, {} bytes, {:?} a round", plan.callers, plan.payload, plan.time);
    let titles: String =
        baselines.iter().map(|base| format!("{:>16}", format!("x {}", base.way.name()))).collect();
    println!("{:16}{:>9}{:>17}{titles}   CPU s per 1,000 pairs", "way", "pairs/s", "least to most");
    for row in rows {
        let rates = row.rates();
        let (least, most) =
            rates.iter().fold((f64::MAX, 0_f64), |(least, most), &rate| (least.min(rate), most.max(rate)));
        let spread = format!("{}–{}", figure(least), figure(most));
        let ratios: String =
            baselines.iter().map(|base| format!("{:>16}", figure(median(&row.ratios(base))))).collect();
        let cpu: Vec<String> =
            row.cpu().iter().map(|(process, seconds)| format!("{process} {seconds:.3}")).collect();
        let (name, rate) = (row.way.name(), figure(median(&rates)));
        println!("{name:16}{rate:>9}{spread:>17}{ratios}   {}", cpu.join(", "));
    }
    println!();
}

fn json(plan: &Plan, rows: &[Row], baselines: &[&Row]) -> serde_json::Value {
    let row = |row: &Row| {
        let ratios: serde_json::Map<_, _> = baselines
            .iter()
            .map(|base| {
                let ratios = row.ratios(base);
                (base.way.name(), json!({ "rounds": ratios, "median": median(&ratios) }))
            })
            .collect();
        json!({
            "way": row.way.name(),
            "pairs_per_second": { "rounds": row.rates(), "median": median(&row.rates()) },
            "ratios": ratios,
            "cpu_seconds_per_1000_pairs": row.cpu(),
        })
    };
    json!({
        "callers": plan.callers,
        "payload_bytes": plan.payload,
        "seconds": plan.time.as_secs_f64(),
        "ways": rows.iter().map(row).collect::<Vec<_>>(),
    })
}
