//! Pairs per second, of many callers at once.

use std::num::NonZeroUsize;
use std::time::Duration;

use serde_json::json;

use crate::load::Plan;
use crate::options::{Options, seconds};
use crate::rounds::{Row, measure};
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

    /// The ways to measure [default: onced's, and those by hand against etcd]
    #[arg(long, value_delimiter = ',', value_enum)]
    ways: Vec<Kind>,

    /// The ways that the others are compared with, if they are measured
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Kind::EtcdLeases, Kind::EtcdPuts, Kind::StreamEtcd])]
    baselines: Vec<Kind>,
}

pub async fn run(options: &Options, args: &Args) -> anyhow::Result<()> {
    let ways = if args.ways.is_empty() { Kind::own() } else { args.ways.clone() };
    // Before anything is measured: what is missing ends it.
    ways.iter().try_for_each(|way| way.version(options).map(drop))?;
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
        let costs = row.costs();
        let cpu: Vec<String> =
            costs.iter().map(|(process, cost)| format!("{process} {:.3}", cost.cpu)).collect();
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
        let cpu: serde_json::Map<_, _> =
            row.costs().iter().map(|(&process, cost)| (process.to_owned(), json!(cost.cpu))).collect();
        json!({
            "way": row.way.name(),
            "pairs_per_second": { "rounds": row.rates(), "median": median(&row.rates()) },
            "ratios": ratios,
            "cpu_seconds_per_1000_pairs": cpu,
        })
    };
    json!({
        "callers": plan.callers,
        "payload_bytes": plan.payload,
        "seconds": plan.time.as_secs_f64(),
        "ways": rows.iter().map(row).collect::<Vec<_>>(),
    })
}
