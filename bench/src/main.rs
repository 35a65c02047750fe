//! Measures onced: pairs per second, the latency of a lone caller, duplicates, lapses, overload; and beside it what one
//! would write by hand against etcd. Prints figures and judges none, but for answers: a wrong one ends it.

mod child;
mod cores;
mod cost;
mod disk;
mod duplicates;
mod etcd;
mod growth;
mod lapses;
mod load;
mod lone;
mod machine;
mod options;
mod overload;
mod pairs;
mod peers;
mod programs;
mod progress;
mod rounds;
mod server;
mod stats;
mod ways;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use options::Options;

#[derive(Parser)]
#[command(name = "onced-bench", about, max_term_width = 110)]
/// Measures onced, and what one would write by hand in its place
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    /// Pairs of Begin and Complete per second, of many callers at once
    Pairs(pairs::Args),
    /// The same work as others do it: Redis, PostgreSQL, etcd's locks, Powertools, Restate
    Peers(peers::Args),
    /// How pairs change with the callers, the duplicates of a key, the records stored and the size of an outcome
    Growth(growth::Args),
    /// The latency of a pair of a lone caller
    Lone(lone::Args),
    /// Many callers of one key, over two servers: how long they wait, and what etcd sees of them
    Duplicates(duplicates::Args),
    /// The latency of a Begin while many records lapse and expire
    Lapses(lapses::Args),
    /// More calls than a server can serve: what is granted, what is refused, and how soon
    Overload(overload::Args),
}

fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("onced-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(mut cli: Cli) -> anyhow::Result<()> {
    if cli.options.etcd_apart {
        // Before there are threads, which would run where this one does now.
        cli.options.etcd_core = Some(cores::leave_first()?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cli.options.workers.get())
        .enable_all()
        .build();
    runtime.context("cannot start threads")?.block_on(run(cli))
}

/// Runs until done or told to stop. Either way what was started is ended, by being dropped.
async fn run(cli: Cli) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let options = &cli.options;
    let work = async {
        match &cli.command {
            Command::Pairs(args) => pairs::run(options, args).await,
            Command::Peers(args) => peers::run(options, args).await,
            Command::Growth(args) => growth::run(options, args).await,
            Command::Lone(args) => lone::run(options, args).await,
            Command::Duplicates(args) => duplicates::run(options, args).await,
            Command::Lapses(args) => lapses::run(options, args).await,
            Command::Overload(args) => overload::run(options, args).await,
        }
    };
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("terminated"),
    }
}
