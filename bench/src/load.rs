//! Callers in a closed loop: each does pair after pair.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use onced::clock::{Clock, Moment};
use tokio::task::JoinSet;

use crate::cpu;
use crate::etcd::Etcd;
use crate::ways::{Open, Way};

/// How many keys are looked up at the end.
const SAMPLE: usize = 64;
/// What takes longer hangs.
const HANGS: Duration = Duration::from_secs(30);
/// How often the progress is told.
const TICK: Duration = Duration::from_millis(250);

/// What came of a measurement.
pub struct Measured {
    pub pairs_per_second: f64,
    /// CPU seconds per 1,000 pairs, by process.
    pub cpu: Vec<(&'static str, f64)>,
}

/// The keys of one load, and how many pairs were done.
struct Load {
    way: Arc<dyn Way>,
    keys: Keys,
    pairs: AtomicU64,
    stop: AtomicBool,
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

    /// The outcome of a key, unlike any other's.
    pub fn outcome(&self, key: &str) -> Bytes {
        let mut outcome = Vec::with_capacity(self.payload);
        while outcome.len() < self.payload {
            let part = key.len().min(self.payload - outcome.len());
            outcome.extend_from_slice(&key.as_bytes()[..part]);
        }
        outcome.into()
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
    /// Does pairs until told to stop; how many.
    async fn caller(self: Arc<Self>, caller: usize) -> anyhow::Result<(usize, u64)> {
        let mut done = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if let Err(error) = self.pair(caller, done).await {
                self.stop.store(true, Ordering::Relaxed);
                return Err(error);
            }
            done += 1;
            self.pairs.fetch_add(1, Ordering::Relaxed);
        }
        Ok((caller, done))
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

    /// Ends the callers, then looks some of their keys up.
    async fn finish(&self, mut callers: JoinSet<anyhow::Result<(usize, u64)>>) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let mut done = Vec::new();
        while let Some(caller) =
            tokio::time::timeout(HANGS, callers.join_next()).await.context("a call hangs")?
        {
            done.push(caller??);
        }
        for _ in 0..SAMPLE {
            let (caller, pairs) = done[fastrand::usize(..done.len())];
            anyhow::ensure!(pairs > 0, "a caller got nothing done");
            self.keys.check(&*self.way, &self.keys.key(caller, fastrand::u64(..pairs))).await?;
        }
        Ok(())
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
pub async fn measure(
    plan: &Plan,
    open: &Open,
    etcd: Option<&Etcd>,
    tell: impl Fn(f64),
) -> anyhow::Result<Measured> {
    let load = Arc::new(Load {
        way: Arc::clone(&open.way),
        keys: Keys::new(plan.payload),
        pairs: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let callers: JoinSet<_> = (0..plan.callers).map(|caller| Arc::clone(&load).caller(caller)).collect();
    let clock = Clock::system();
    let processes = processes(open, etcd);

    tokio::time::sleep(plan.warm_up).await;
    let begin = Snapshot::take(&load, &clock, &processes)?;
    let until = clock.now() + plan.time;
    while !load.stop.load(Ordering::Relaxed) {
        let left = until.since(clock.now());
        if left.is_zero() {
            break;
        }
        tokio::time::sleep(left.min(TICK)).await;
        tell(load.rate_since(&begin, &clock));
    }
    let measured = Snapshot::take(&load, &clock, &processes).map(|end| begin.until(&end, &processes));

    load.finish(callers).await?;
    measured
}

fn processes(open: &Open, etcd: Option<&Etcd>) -> Vec<(&'static str, u32)> {
    let server = open.server.as_ref().map(|server| ("server", server.pid()));
    let etcd = etcd.and_then(Etcd::pid).map(|pid| ("etcd", pid));
    [Some(("load", std::process::id())), server, etcd].into_iter().flatten().collect()
}

/// How things stand at a moment.
struct Snapshot {
    at: Moment,
    pairs: u64,
    cpu: Vec<f64>,
}

impl Snapshot {
    fn take(load: &Load, clock: &Clock, processes: &[(&'static str, u32)]) -> anyhow::Result<Self> {
        let cpu = processes.iter().map(|&(_, pid)| cpu::seconds_of(pid)).collect::<Result<_, _>>()?;
        Ok(Self { at: clock.now(), pairs: load.pairs.load(Ordering::Relaxed), cpu })
    }

    fn until(&self, end: &Snapshot, processes: &[(&'static str, u32)]) -> Measured {
        let pairs = (end.pairs - self.pairs) as f64;
        let used = self.cpu.iter().zip(&end.cpu).map(|(before, after)| (after - before) / pairs * 1e3);
        Measured {
            pairs_per_second: pairs / end.at.since(self.at).as_secs_f64(),
            cpu: processes.iter().map(|&(name, _)| name).zip(used).collect(),
        }
    }
}
