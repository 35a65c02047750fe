//! The latency of a pair of a lone caller.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use onced::clock::Clock;
use serde_json::json;

use crate::etcd::Etcd;
use crate::load::Keys;
use crate::options::{Options, seconds};
use crate::progress::Progress;
use crate::stats::{Latencies, figure, median};
use crate::ways::{Kind, Open};

#[derive(clap::Args)]
pub struct Args {
    /// How often each way gets a turn
    #[arg(long, default_value = "20")]
    rounds: NonZeroUsize,

    /// Seconds of one turn
    #[arg(long, value_parser = seconds, default_value = "0.3")]
    slice: Duration,

    /// The ways to measure
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [
        Kind::EtcdTxns, Kind::StoreEtcd, Kind::UnaryEtcd, Kind::StreamEtcd,
        Kind::StoreEmbedded, Kind::UnaryEmbedded, Kind::StreamEmbedded,
    ])]
    ways: Vec<Kind>,

    /// The way that the others are compared with
    #[arg(long, value_enum, default_value_t = Kind::EtcdTxns)]
    baseline: Kind,
}

/// A way, and the median of each of its turns, in milliseconds.
struct Row {
    way: Kind,
    open: Open,
    keys: Keys,
    done: u64,
    medians: Vec<f64>,
    all: Vec<Duration>,
}

pub async fn run(options: &Options, args: &Args) -> anyhow::Result<()> {
    let progress = Progress::new();
    // Turns are short, so all ways are open at once and share an etcd; only one is at work.
    let needs_etcd = args.ways.iter().any(|way| way.etcd_members() == 1);
    let etcd = if needs_etcd { Some(Arc::new(Etcd::open(options).await?)) } else { None };
    let mut rows = Vec::new();
    for &way in &args.ways {
        let open = match way.etcd_members() {
            1 => way.open(options, etcd.clone()).await,
            _ => way.open_alone(options).await,
        };
        let open = open.with_context(|| way.name())?;
        let keys = Keys::new(options.payload);
        let mut row = Row { way, open, keys, done: 0, medians: Vec::new(), all: Vec::new() };
        row.turn(args.slice * 2).await?;
        (row.medians, row.all) = (Vec::new(), Vec::new());
        rows.push(row);
    }
    for round in 1..=args.rounds.get() {
        fastrand::shuffle(&mut rows);
        for row in &mut rows {
            progress.show(&format!("round {round} of {}: {}", args.rounds, row.way.name()));
            row.turn(args.slice).await.with_context(|| row.way.name())?;
        }
    }
    for row in &rows {
        row.keys.check(&*row.open.way, &row.keys.key(0, fastrand::u64(..row.done))).await?;
    }
    rows.sort_by_key(|row| args.ways.iter().position(|&way| way == row.way));
    drop(progress);
    report(options, args, &rows);
    Ok(())
}

impl Row {
    async fn turn(&mut self, time: Duration) -> anyhow::Result<()> {
        let clock = Clock::system();
        let end = clock.now() + time;
        let mut latencies = Vec::new();
        while latencies.is_empty() || clock.now() < end {
            let key = self.keys.key(0, self.done);
            let outcome = self.keys.outcome(&key);
            let sent = clock.now();
            let claim = self.open.way.begin(0, &key).await?;
            self.open.way.complete(0, &key, claim, outcome).await?;
            latencies.push(clock.now().since(sent));
            self.done += 1;
        }
        self.all.extend_from_slice(&latencies);
        self.medians.push(Latencies::new(latencies).quantile(0.5));
        Ok(())
    }
}

fn report(options: &Options, args: &Args, rows: &[Row]) {
    let base = rows.iter().find(|row| row.way == args.baseline).map(|row| row.medians.clone());
    let mut results = Vec::new();
    if !options.json {
        println!("a lone caller, {} bytes, {} turns of {:?}", options.payload, args.rounds, args.slice);
        println!(
            "{:16}{:>8}{:>8}{:>8}{:>16}",
            "way",
            "p50 ms",
            "p99 ms",
            "pairs",
            format!("x {}", args.baseline.name())
        );
    }
    for row in rows {
        let ratios: Vec<f64> =
            row.medians.iter().zip(base.iter().flatten()).map(|(own, base)| own / base).collect();
        let all = Latencies::new(row.all.clone());
        let (name, p50, p99, ratio) =
            (row.way.name(), median(&row.medians), all.quantile(0.99), median(&ratios));
        if options.json {
            results.push(json!({
                "way": name, "p50_ms": p50, "p99_ms": p99, "pairs": all.count(),
                "ratio": { "to": args.baseline.name(), "rounds": ratios, "median": ratio },
            }));
        } else {
            println!("{name:16}{p50:>8.3}{p99:>8.3}{:>8}{:>16}", all.count(), figure(ratio));
        }
    }
    if options.json {
        println!("{:#}", json!(results));
    }
}
