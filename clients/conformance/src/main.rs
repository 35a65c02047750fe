//! Plays the scenarios of the client libraries with an agent of each, against real servers.

mod agent;
mod certificates;
mod direct;
mod etcd;
mod expect;
mod fingerprints;
mod play;
mod process;
mod proxy;
mod report;
mod scenario;
mod server;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::certificates::Certificates;
use crate::etcd::Etcd;
use crate::fingerprints::Vectors;
use crate::play::{Theatre, play};
use crate::report::Report;
use crate::scenario::{Scenario, Store};
use crate::server::{House, Token};

/// What hangs is to fail its scenario. Far above what any machine needs.
const HANGS: Duration = Duration::from_secs(90);
/// How often something is looked at that tells nobody when it changes.
const POLL: Duration = Duration::from_millis(20);

/// Plays the scenarios of the client libraries with the agent of one of them (clients/README.md), or of two.
#[derive(Parser)]
struct Args {
    /// The command line of the agent. Given twice, the second one plays the other process of scenarios with two.
    #[arg(long = "agent", required = true, value_name = "COMMAND")]
    agents: Vec<String>,
    /// The stores to play on; every one without it.
    #[arg(long = "store", value_name = "STORE", default_values = ["embedded", "etcd"])]
    stores: Vec<Store>,
    /// Plays these scenarios alone.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// How many are played at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// Where the scenarios and the vectors are.
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/.."))]
    clients: PathBuf,
    /// The program under whose servers it is played.
    #[arg(long, env = "ONCED_BINARY", value_name = "FILE")]
    onced: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let played = tokio::select! {
        played = run(Args::parse()) => played,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match played {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("onced-conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether all scenarios passed.
async fn run(args: Args) -> Result<bool> {
    let mut scenarios = Scenario::read_all(&args.clients.join("scenarios"))?;
    if let Some(name) =
        args.only.iter().find(|&name| !scenarios.iter().any(|scenario| scenario.name == *name))
    {
        bail!("no scenario is called {name}");
    }
    if !args.only.is_empty() {
        scenarios.retain(|scenario| args.only.contains(&scenario.name));
    }
    let agents = match &args.agents[..] {
        [one] => [one.clone(), one.clone()],
        [one, other] => [one.clone(), other.clone()],
        _ => bail!("two agents at most"),
    };
    let dir = tempfile::Builder::new().prefix("onced-conformance-").tempdir()?;
    let binary = std::path::absolute(&args.onced)?;
    let tokens = vec![Token::make(&binary, "one").await?, Token::make(&binary, "two").await?];
    let certificates = Certificates::make(&dir.path().join("certificates"))?;
    let house = House { binary, certificates, tokens };
    let vectors = Vectors::read(&args.clients.join("vectors/fingerprints.json"))?;
    let theatre = Arc::new(Theatre { house, agents, vectors });
    let etcd = match args.stores.contains(&Store::Etcd) {
        true => Some(Etcd::start(dir.path()).await?),
        false => None,
    };
    let passed = play_all(scenarios, &args, &theatre, etcd.as_ref(), dir.path()).await?;
    if let Some(etcd) = etcd {
        etcd.end().await?;
    }
    Ok(passed)
}

#[allow(clippy::disallowed_methods)] // How long a scenario took is told, and nothing rests on it.
async fn play_all(
    scenarios: Vec<Scenario>,
    args: &Args,
    theatre: &Arc<Theatre>,
    etcd: Option<&Etcd>,
    dir: &Path,
) -> Result<bool> {
    let turns = Arc::new(Semaphore::new(args.jobs.into()));
    let mut scenarios: Vec<Arc<Scenario>> = scenarios.into_iter().map(Arc::new).collect();
    // What waits longest is begun first, so that nothing waits alone at the end.
    scenarios.sort_by_key(|scenario| Reverse(scenario.pauses()));
    let on = |scenario| args.stores.iter().map(move |&store| (scenario, store));
    let planned: Vec<(&Arc<Scenario>, Store)> =
        scenarios.iter().flat_map(on).filter(|(scenario, store)| scenario.stores.contains(store)).collect();
    let report = Arc::new(Report::default());
    report.plan(planned.len());
    let mut plays = JoinSet::new();
    for (scenario, store) in planned {
        let dir = dir.join(format!("{}-{store}", scenario.name));
        std::fs::create_dir(&dir)?;
        let prefix = etcd.filter(|_| store == Store::Etcd).map(|etcd| etcd.store(&scenario.name));
        let address = move |dir: &Path, server: &str| match &prefix {
            // Servers on one etcd share their records.
            Some(store) => store.clone(),
            None => format!("file:{}", dir.join(server).display()),
        };
        let (scenario, theatre, report) = (Arc::clone(scenario), Arc::clone(theatre), Arc::clone(&report));
        let turn = Arc::clone(&turns).acquire_owned().await?;
        plays.spawn(async move {
            let _turn = turn;
            let began = Instant::now();
            report.begins(&scenario, store);
            let played = play(&scenario, &theatre, |server| address(&dir, server), &dir).await;
            report.ends(&scenario, store, played, began.elapsed());
        });
    }
    while let Some(ended) = plays.join_next().await {
        ended.context("a scenario ended the driver")?;
    }
    Ok(report.close())
}
