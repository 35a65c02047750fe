//! The command line. Each file is a group of commands; what they share is how they connect, how they print
//! and how they exit.

mod admin;
mod connect;
mod exec;
mod exit;
mod input;
mod output;
mod record;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

use exit::Exit;

/// Makes an operation take effect once, however many hosts try it at the same time.
///
/// Without a command: serves, as `onced serve` does.
#[derive(Debug, Parser)]
#[command(name = "onced", version, max_term_width = 110, after_help = exit::HELP)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API
    Serve(serve::ServeArgs),
    /// Run a command once across hosts; every other invocation prints its output and exits with its code
    Exec(Box<exec::ExecArgs>),
    /// Claim a key, or learn what became of it
    Begin(record::BeginArgs),
    /// Store the outcome of a claimed key
    Complete(record::CompleteArgs),
    /// Keep a claim alive, and save a checkpoint
    Renew(record::RenewArgs),
    /// Give a claim back without an outcome
    Release(record::ReleaseArgs),
    /// Read what is known of a key
    Lookup(record::LookupArgs),
    /// Print the states of a key until it is completed
    Watch(record::WatchArgs),
    /// List the records of a namespace
    List(admin::ListArgs),
    /// Settle a record in doubt
    Resolve(admin::ResolveArgs),
    /// Remove a record, outcome and all
    Delete(admin::DeleteArgs),
}

/// Runs what the command line says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let (runtime, exec) = match &cli.command {
        None => (serve_runtime(&cli.serve), false),
        Some(Command::Serve(args)) => (serve_runtime(args), false),
        // Clients do one thing at a time: threads would only cost.
        Some(command) => {
            (Builder::new_current_thread().enable_all().build(), matches!(command, Command::Exec(_)))
        }
    };
    match runtime {
        Ok(runtime) => run(runtime, cli),
        Err(error) => {
            output::say(&format!("cannot start: {error}"));
            ExitCode::from(if exec { exec::OWN_FAILURE } else { Exit::Failed.code() })
        }
    }
}

fn serve_runtime(args: &serve::ServeArgs) -> std::io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().worker_threads(args.worker_threads()).build()
}

fn run(runtime: Runtime, cli: Cli) -> ExitCode {
    let command = cli.command.unwrap_or(Command::Serve(cli.serve));
    let code = runtime.block_on(async {
        let exit = match command {
            Command::Exec(args) => return exec::run(*args).await,
            Command::Serve(args) => serve::run(args).await,
            Command::Begin(args) => record::begin(args).await,
            Command::Complete(args) => record::complete(args).await,
            Command::Renew(args) => record::renew(args).await,
            Command::Release(args) => record::release(args).await,
            Command::Lookup(args) => record::lookup(args).await,
            Command::Watch(args) => record::watch(args).await,
            Command::List(args) => admin::list(args).await,
            Command::Resolve(args) => admin::resolve(args).await,
            Command::Delete(args) => admin::delete(args).await,
        };
        exit.code()
    });
    // A thread that is stuck in a read or a write of this process's streams must not hold up its end.
    runtime.shutdown_background();
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_means_serve_with_the_same_flags() {
        let cli = Cli::parse_from(["onced", "--listen", "127.0.0.1:1"]);
        assert!(cli.command.is_none());
        assert_eq!(cli.serve.listen.port(), 1);
    }
}
