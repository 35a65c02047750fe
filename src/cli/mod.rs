//! The command line. Each file is a group of commands; what they share is how they connect, how they print
//! and how they exit.

mod admin;
mod bench;
mod connect;
mod exec;
mod exit;
mod health;
mod input;
mod output;
mod proxy;
mod record;
mod reload;
mod serve;
mod settings;
mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::runtime::Builder;

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
    /// Check what `serve` would run with: file, environment and flags
    CheckConfig(serve::CheckArgs),
    /// Make tokens of the server's own
    Token(token::TokenArgs),
    /// Run a command once across hosts; every other invocation prints its output and exits with its code
    Exec(Box<exec::ExecArgs>),
    /// Put a load on a running server, check each answer, and tell how long they took
    Bench(Box<bench::BenchArgs>),
    /// Give a service the Idempotency-Key header: run each request once, and answer duplicates with what was stored
    Proxy(Box<proxy::ProxyArgs>),
    #[command(flatten)]
    Call(Box<Call>),
}

/// The commands that are calls of a client.
#[derive(Debug, Subcommand)]
enum Call {
    /// Ask servers whether calls are welcome there: exit code 0 if so, else 1
    Health(health::HealthArgs),
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
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(args) => match args.prepare() {
            Ok(serve) => {
                let mut threads = Builder::new_multi_thread();
                threads.worker_threads(serve.worker_threads());
                run(threads, Exit::Failed.code(), async { serve.run().await.code() })
            }
            Err(exit) => ExitCode::from(exit.code()),
        },
        Command::CheckConfig(args) => ExitCode::from(serve::check(args).code()),
        Command::Token(args) => ExitCode::from(token::run(args).code()),
        Command::Exec(args) => run(Builder::new_current_thread(), exec::OWN_FAILURE, exec::run(*args)),
        Command::Bench(args) => {
            run(Builder::new_multi_thread(), Exit::Failed.code(), async { bench::run(*args).await.code() })
        }
        Command::Proxy(args) => {
            run(Builder::new_multi_thread(), Exit::Failed.code(), async { proxy::run(*args).await.code() })
        }
        // Clients do one thing at a time: threads would only cost.
        Command::Call(call) => {
            run(Builder::new_current_thread(), Exit::Failed.code(), async { call.run().await.code() })
        }
    }
}

/// Runs a command to its end, on threads of that kind; `failed` is the code of one that cannot start.
fn run(mut threads: Builder, failed: u8, command: impl Future<Output = u8>) -> ExitCode {
    let runtime = match threads.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::say(&format!("cannot start: {error}"));
            return ExitCode::from(failed);
        }
    };
    let code = runtime.block_on(command);
    // A thread that is stuck in a read or a write of this process's streams must not hold up its end.
    runtime.shutdown_background();
    ExitCode::from(code)
}

impl Call {
    async fn run(self) -> Exit {
        match self {
            Call::Health(args) => health::run(args).await,
            Call::Begin(args) => record::begin(args).await,
            Call::Complete(args) => record::complete(args).await,
            Call::Renew(args) => record::renew(args).await,
            Call::Release(args) => record::release(args).await,
            Call::Lookup(args) => record::lookup(args).await,
            Call::Watch(args) => record::watch(args).await,
            Call::List(args) => admin::list(args).await,
            Call::Resolve(args) => admin::resolve(args).await,
            Call::Delete(args) => admin::delete(args).await,
        }
    }
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
        let serve = cli.serve.prepare().map_err(|exit| exit.code()).unwrap();
        assert_eq!(serve.config().listen.port(), 1);
    }
}
