//! Callers in a closed loop: each does pair after pair.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use onced::clock::{Clock, Moment};
use tokio::task::JoinSet;

use crate::cost::Process;
use crate::disk;
use crate::stats::Latencies;
use crate::ways::{Open, Way};

/// How many keys are looked up at the end.
const SAMPLE: usize = 64;
/// What takes longer hangs.
pub const HANGS: Duration = Duration::from_secs(30);
/// How often the progress is told.
const TICK: Duration = Duration::from_millis(250);

/// What came of a measurement.
pub struct Measured {
    pub pairs_per_second: f64,
    /// Of the pairs that were done meanwhile.
    pub latencies: Latencies,
    /// What each process used; those of one name together.
    pub costs: BTreeMap<&'static str, Cost>,
    /// Bytes written to the disk per pair, by all of them.
    pub written: Option<f64>,
}

/// What the processes of one name used.
#[derive(Clone, Copy, Default)]
pub struct Cost {
    /// CPU seconds per 1,000 pairs.
    pub cpu: f64,
    /// Bytes of memory at the end.
    pub memory: f64,
}

/// The keys of one load, and how many pairs were done.
struct Load {
    way: Arc<dyn Way>,
    keys: Keys,
    pairs: AtomicU64,
    /// Whether pairs count: the load is warm, and not yet at its end.
    counts: AtomicBool,
    stop: AtomicBool,
}

/// What a caller got done.
struct Done {
    caller: usize,
    pairs: u64,
    latencies: Vec<Duration>,
}

/// Keys that no other load uses, and an outcome for each.
#[derive(Clone, Copy)]
pub struct Keys {
    run: u64,
    payload: usize,
}

impl Keys {
    pub fn new(payload: usize) -> Self {
        Self { run: fastrand::u64(..), payload }
    }

    /// The `number`th key of a caller.
    pub fn key(&self, caller: usize, number: u64) -> String {
        format!("{:016x}-{caller:04}-{number:010}", self.run)
    }

    /// The outcome of a key, unlike any other's: text that nothing compresses, since what is stored may be compressed.
    pub fn outcome(&self, key: &str) -> Bytes {
        let mut hash = DefaultHasher::new();
        key.hash(&mut hash);
        let mut random = fastrand::Rng::with_seed(hash.finish());
        (0..self.payload).map(|_| random.alphanumeric() as u8).collect()
    }

    /// Fails unless the outcome of a key is there, byte for byte.
    pub async fn check(&self, way: &dyn Way, key: &str) -> anyhow::Result<()> {
        anyhow::ensure!(
            way.outcome(key).await? == self.outcome(key),
            "an outcome is another than was stored"
        );
        Ok(())
    }
}

impl Load {
    /// Does pairs until told to stop.
    async fn caller(self: Arc<Self>, caller: usize) -> anyhow::Result<Done> {
        let clock = Clock::system();
        let mut done = Done { caller, pairs: 0, latencies: Vec::new() };
        while !self.stop.load(Ordering::Relaxed) {
            let sent = clock.now();
            if let Err(error) = self.pair(caller, done.pairs).await {
                self.stop.store(true, Ordering::Relaxed);
                return Err(error);
            }
            if self.counts.load(Ordering::Relaxed) {
                done.latencies.push(clock.now().since(sent));
            }
            done.pairs += 1;
            self.pairs.fetch_add(1, Ordering::Relaxed);
        }
        Ok(done)
    }

    async fn pair(&self, caller: usize, number: u64) -> anyhow::Result<()> {
        let key = self.keys.key(caller, number);
        let claim = self.way.begin(caller, &key).await.context("Begin")?;
        let outcome = self.keys.outcome(&key);
        self.way.complete(caller, &key, claim, outcome).await.context("Complete")
    }

    fn rate_since(&self, begin: &Snapshot, clock: &Clock) -> f64 {
        let pairs = self.pairs.load(Ordering::Relaxed) - begin.pairs;
        pairs as f64 / clock.now().since(begin.at).as_secs_f64()
    }

    /// Ends the callers, then looks some of their keys up; the latencies of their pairs.
    async fn finish(&self, mut callers: JoinSet<anyhow::Result<Done>>) -> anyhow::Result<Latencies> {
        self.stop.store(true, Ordering::Relaxed);
        let (mut done, mut latencies) = (Vec::new(), Vec::new());
        while let Some(caller) =
            tokio::time::timeout(HANGS, callers.join_next()).await.context("a call hangs")?
        {
            let mut caller = caller??;
            latencies.append(&mut caller.latencies);
            done.push(caller);
        }
        for _ in 0..SAMPLE {
            let Done { caller, pairs, .. } = done[fastrand::usize(..done.len())];
            anyhow::ensure!(pairs > 0, "a caller got nothing done");
            self.keys.check(&*self.way, &self.keys.key(caller, fastrand::u64(..pairs))).await?;
        }
        Ok(Latencies::new(latencies))
    }
}

/// How to measure.
pub struct Plan {
    pub callers: usize,
    pub warm_up: Duration,
    pub time: Duration,
    pub payload: usize,
}

/// Measures the pairs per second of a way, and checks what it stored. `tell` hears of the pairs per second
/// meanwhile.
pub async fn measure(plan: &Plan, open: &Open, tell: impl Fn(f64)) -> anyhow::Result<Measured> {
    disk::settle();
    let running = Running::start(plan, open);
    tokio::time::sleep(plan.warm_up).await;
    let window = running.window(plan.time, tell).await;
    let latencies = running.load.finish(running.callers).await?;
    Ok(Measured { latencies, ..window? })
}

/// What came of a way while it had so many records.
pub struct Grown {
    /// The mean of those at the begin of the measurement and those at its end.
    pub records: u64,
    pub measured: Measured,
    /// Bytes that it has on disk.
    pub stored: u64,
}

/// Measures a way each time that it has so many more records, as long as `patience` lasts. Counts that were passed
/// while it was measured for the one before are left out.
pub async fn grow(
    plan: &Plan,
    open: &Open,
    counts: &[u64],
    patience: Duration,
    tell: impl Fn(f64),
) -> anyhow::Result<Vec<Grown>> {
    let running = Running::start(plan, open);
    let until = running.clock.now() + patience;
    let mut grown = Vec::new();
    for &records in counts {
        if running.load.pairs.load(Ordering::Relaxed) > records {
            continue;
        }
        while running.load.pairs.load(Ordering::Relaxed) < records && running.clock.now() < until {
            tokio::time::sleep(TICK).await;
            // A caller has failed, and `finish` tells why.
            if running.load.stop.load(Ordering::Relaxed) {
                break;
            }
        }
        if running.load.pairs.load(Ordering::Relaxed) < records {
            break;
        }
        let before = running.load.pairs.load(Ordering::Relaxed);
        let measured = running.window(plan.time, &tell).await?;
        let records = before.midpoint(running.load.pairs.load(Ordering::Relaxed));
        grown.push(Grown { records, measured, stored: open.stored() });
    }
    running.load.finish(running.callers).await?;
    Ok(grown)
}

/// Callers at work.
struct Running {
    load: Arc<Load>,
    callers: JoinSet<anyhow::Result<Done>>,
    clock: Clock,
    processes: Vec<Process>,
}

impl Running {
    fn start(plan: &Plan, open: &Open) -> Self {
        let load = Arc::new(Load {
            way: Arc::clone(&open.way),
            keys: Keys::new(plan.payload),
            pairs: AtomicU64::new(0),
            counts: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let callers = (0..plan.callers).map(|caller| Arc::clone(&load).caller(caller)).collect();
        Self { load, callers, clock: Clock::system(), processes: open.processes() }
    }

    /// What they get done in a time; without the latencies, which they tell when they have ended.
    async fn window(&self, time: Duration, tell: impl Fn(f64)) -> anyhow::Result<Measured> {
        let begin = Snapshot::take(self)?;
        self.load.counts.store(true, Ordering::Relaxed);
        let until = self.clock.now() + time;
        while !self.load.stop.load(Ordering::Relaxed) {
            let left = until.since(self.clock.now());
            if left.is_zero() {
                break;
            }
            tokio::time::sleep(left.min(TICK)).await;
            tell(self.load.rate_since(&begin, &self.clock));
        }
        self.load.counts.store(false, Ordering::Relaxed);
        begin.until(&Snapshot::take(self)?, &self.processes)
    }
}

/// How things stand at a moment.
struct Snapshot {
    at: Moment,
    pairs: u64,
    /// Seconds of CPU that each process used.
    cpu: Vec<f64>,
    /// Bytes written to the disk.
    written: Option<f64>,
}

impl Snapshot {
    fn take(running: &Running) -> anyhow::Result<Self> {
        let cpu = running.processes.iter().map(Process::cpu).collect::<Result<_, _>>()?;
        let pairs = running.load.pairs.load(Ordering::Relaxed);
        Ok(Self { at: running.clock.now(), pairs, cpu, written: disk::written() })
    }

    fn until(&self, end: &Snapshot, processes: &[Process]) -> anyhow::Result<Measured> {
        let pairs = (end.pairs - self.pairs) as f64;
        let mut costs: BTreeMap<_, Cost> = BTreeMap::new();
        for (process, (before, after)) in processes.iter().zip(self.cpu.iter().zip(&end.cpu)) {
            let cost = costs.entry(process.name).or_default();
            cost.cpu += (after - before) / pairs * 1e3;
            cost.memory += process.memory()?;
        }
        let pairs_per_second = pairs / end.at.since(self.at).as_secs_f64();
        let written = self.written.zip(end.written).map(|(before, after)| (after - before) / pairs);
        Ok(Measured { pairs_per_second, latencies: Latencies::new(Vec::new()), costs, written })
    }
}
