//! The latency of a lone caller's Begin while many records lapse and expire.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use onced::clock::{Clock, Moment};
use onced::record::limits::RETENTION_MARGIN;
use onced::record::{Lock, RecordKey};
use onced::store::{Expected, Loaded};
use serde_json::json;
use tokio::task::JoinSet;

use crate::etcd::Etcd;
use crate::load::Keys;
use crate::options::{Options, seconds};
use crate::progress::Progress;
use crate::stats::{Latencies, figure};
use crate::ways::{StoreWay, Way as _, in_progress, record_key};

/// The lock TTLs of the records that lapse, in seconds: within a minute, but not before they
/// are written.
const LOCK_TTLS: std::ops::RangeInclusive<u64> = 10..=40;
/// How many times as long as asked for a lock or a record may live: shared leases are a little longer than what
/// they serve.
const SLACK: f64 = 1.5;
/// What counts as a stall.
const STALL: Duration = Duration::from_millis(50);
/// How many records are looked at, and how often.
const SAMPLE: usize = 50;
const LOOK: Duration = Duration::from_secs(3);

#[derive(clap::Args)]
pub struct Args {
    /// How many records lapse, and then expire
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    records: u64,

    /// How many are written at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    writers: u64,

    /// The stores to look at
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Store::Etcd, Store::Embedded])]
    stores: Vec<Store>,

    /// Seconds of the same without the records, before
    #[arg(long, value_parser = seconds, default_value = "15")]
    quiet: Duration,

    /// Seconds that go on counting when all have expired: the embedded store sweeps slowly
    #[arg(long, value_parser = seconds, default_value = "10")]
    after: Duration,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Store {
    Etcd,
    Embedded,
}

/// A part of the time, and how long each Begin took in it.
struct Phase {
    name: &'static str,
    latencies: Latencies,
}

pub async fn run(options: &Options, args: &Args) -> anyhow::Result<()> {
    let mut results = Vec::new();
    for &store in &args.stores {
        let phases = measure(options, args, store).await.with_context(|| format!("{store:?}"))?;
        let name = format!("{store:?}").to_lowercase();
        if options.json {
            let phases = phases.iter().map(|Phase { name, latencies }| {
                json!({
                    "phase": name, "begins": latencies.count(), "p50_ms": latencies.quantile(0.5),
                    "p99_9_ms": latencies.quantile(0.999), "worst_ms": latencies.quantile(1.0), "over_50_ms": latencies.over(STALL),
                })
            });
            results.push(json!({ "store": name, "phases": phases.collect::<Vec<_>>() }));
            continue;
        }
        println!("{name} store, a lone Begin beside {} records that lapse and expire, ms", args.records);
        println!("{:12}{:>9}{:>9}{:>9}{:>9}{:>12}", "while", "Begins", "p50", "p99.9", "worst", "over 50 ms");
        for Phase { name, latencies } in phases {
            let [p50, p99_9, worst] = [0.5, 0.999, 1.0].map(|share| figure(latencies.quantile(share)));
            let (count, over) = (latencies.count(), latencies.over(STALL));
            println!("{name:12}{count:>9}{p50:>9}{p99_9:>9}{worst:>9}{over:>12}");
        }
        println!();
    }
    if options.json {
        println!("{:#}", json!(results));
    }
    Ok(())
}

async fn measure(options: &Options, args: &Args, store: Store) -> anyhow::Result<Vec<Phase>> {
    let (etcd, way) = match store {
        Store::Etcd => {
            let etcd = Etcd::open(options).await?;
            let way = StoreWay::etcd(etcd.endpoints(), &format!("bench-{:016x}", fastrand::u64(..))).await?;
            (Some(etcd), way)
        }
        Store::Embedded => (None, StoreWay::embedded()?),
    };
    let (way, clock) = (Arc::new(way), Clock::system());
    let stop = Arc::new(AtomicBool::new(false));
    let caller = tokio::spawn(lone_caller(Arc::clone(&way), Keys::new(options.payload), Arc::clone(&stop)));
    let phases = phases(args, &way, &clock).await;
    stop.store(true, Ordering::Relaxed);
    let begins = caller.await??;
    drop(etcd);

    // Between the phases' ends, from the first one's begin.
    let mut from = Moment::default();
    let phases = phases?.into_iter().map(|(name, until)| {
        let within = begins.iter().filter(|(sent, _)| (from..until).contains(sent));
        let latencies = Latencies::new(within.map(|(_, latency)| *latency).collect());
        from = until;
        Phase { name, latencies }
    });
    Ok(phases.collect())
}

/// Writes records and waits until they have lapsed, then expired: the phases by name, with their ends.
async fn phases(
    args: &Args,
    way: &Arc<StoreWay>,
    clock: &Clock,
) -> anyhow::Result<Vec<(&'static str, Moment)>> {
    let progress = Progress::new();
    let (shortest, longest) =
        (Duration::from_secs(*LOCK_TTLS.start()), Duration::from_secs(*LOCK_TTLS.end()));
    let wait_until = async |what: &str, until: Moment| {
        while clock.now() < until {
            let left = until.since(clock.now());
            progress.show(&format!("{what}: {} s", left.as_secs()));
            tokio::time::sleep(left.min(Duration::from_secs(1))).await;
        }
    };
    let mut ends = Vec::new();
    wait_until("quiet", clock.now() + args.quiet).await;
    ends.push(("quiet", clock.now()));

    let (keys, first) = (Keys::new(0), clock.now());
    progress.show(&format!("writing {} records", args.records));
    write(args, way, keys).await?;
    let last = clock.now();
    ends.push(("writing", last));

    let sample = Sample::new(args, keys, way)?;
    wait_until("lapsing", first + shortest).await;
    sample
        .wait(&progress, "lapsing", last + longest.mul_f64(SLACK), clock, |found| {
            found.is_none_or(|found| found.lock == Lock::Lapsed)
        })
        .await?;
    ends.push(("lapsing", clock.now()));

    wait_until("between", first + shortest + RETENTION_MARGIN).await;
    ends.push(("between", clock.now()));
    let latest = last + (longest + RETENTION_MARGIN).mul_f64(SLACK);
    sample.wait(&progress, "expiring", latest, clock, |found| found.is_none()).await?;
    // The embedded store takes them away later than they expire, and etcd a lease at a time.
    wait_until("expiring", clock.now() + args.after).await;
    ends.push(("expiring", clock.now()));
    Ok(ends)
}

/// Some of the records, to see that they did lapse and expire.
struct Sample<'a> {
    way: &'a StoreWay,
    keys: Vec<RecordKey>,
}

impl<'a> Sample<'a> {
    fn new(args: &Args, keys: Keys, way: &'a StoreWay) -> anyhow::Result<Self> {
        let key = |_| record_key(&keys.key(0, fastrand::u64(..args.records)));
        Ok(Self { way, keys: (0..SAMPLE).map(key).collect::<Result<_, _>>()? })
    }

    /// Waits until all of them are so; fails if that is not until `latest`.
    async fn wait(
        &self,
        progress: &Progress,
        what: &str,
        latest: Moment,
        clock: &Clock,
        is_so: impl Fn(Option<Loaded>) -> bool,
    ) -> anyhow::Result<()> {
        let mut left: Vec<&RecordKey> = self.keys.iter().collect();
        loop {
            let mut not_yet = Vec::new();
            for key in left {
                if !is_so(self.way.store.load(key).await?) {
                    not_yet.push(key);
                }
            }
            left = not_yet;
            if left.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(
                clock.now() < latest,
                "{} of {SAMPLE} records are still not so: {what}",
                left.len()
            );
            progress.show(&format!("{what}: {} of {SAMPLE} are left", left.len()));
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Writes records in progress, with the least retention that there is.
async fn write(args: &Args, way: &Arc<StoreWay>, keys: Keys) -> anyhow::Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut writers = JoinSet::new();
    for _ in 0..args.writers {
        let (way, next, records) = (Arc::clone(way), Arc::clone(&next), args.records);
        writers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= records {
                    return anyhow::Ok(());
                }
                let lock_ttl = Duration::from_secs(fastrand::u64(LOCK_TTLS));
                let record = in_progress(lock_ttl, Duration::ZERO);
                way.write(&record_key(&keys.key(0, number))?, Expected::Absent, &record).await?;
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    Ok(())
}

/// Does pair after pair until told to stop: when each Begin was sent, and how long it took.
async fn lone_caller(
    way: Arc<StoreWay>,
    keys: Keys,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<Vec<(Moment, Duration)>> {
    let clock = Clock::system();
    let mut begins = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let key = keys.key(0, begins.len() as u64);
        let sent = clock.now();
        let claim = way.begin(0, &key).await?;
        begins.push((sent, clock.now().since(sent)));
        way.complete(0, &key, claim, keys.outcome(&key)).await?;
    }
    Ok(begins)
}
