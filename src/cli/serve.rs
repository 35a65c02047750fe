//! `onced serve` and `onced check-config`.

use clap::Args;

use super::exit::Exit;
use super::output::{print, say};
use super::reload::{self, Reloads};
use super::settings::SettingsArgs;
use crate::config::{self, Config, Loaded, Sources};
use crate::server::{self, Live};
use crate::telemetry::{self, span};

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    settings: SettingsArgs,

    /// Print the settings that would be in force, each with where it comes from, and serve nothing
    #[arg(long)]
    print_config: bool,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    settings: SettingsArgs,

    /// Print the reference of all settings instead: docs/configuration.md
    #[arg(long)]
    reference: bool,
}

/// A server that is ready to be started.
pub struct Serve {
    sources: Sources,
    loaded: Loaded,
}

impl Serve {
    /// What it runs with.
    #[cfg(test)]
    pub fn config(&self) -> &Config {
        &self.loaded.config
    }

    /// How many threads serve calls. Each more hands work to the others and wakes them: on two cores shared with
    /// etcd one took a fifth less of the processor than two, and a lone call was faster.
    pub fn worker_threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        self.loaded.config.worker_threads.unwrap_or_else(|| cores().div_ceil(2))
    }

    /// Serves until it is told to end.
    pub async fn run(self) -> Exit {
        let Loaded { config, file, doubts, .. } = self.loaded;
        let log = match telemetry::init(&config.log, config.log_format) {
            Ok(log) => log,
            Err(error) => {
                say(&error.to_string());
                return Exit::Usage;
            }
        };
        for doubt in doubts {
            tracing::warn!("{doubt}");
        }
        let traces =
            config.otlp_endpoint.as_deref().map(|endpoint| span::start(endpoint, config.trace_percent));
        let traces = match traces.transpose() {
            Ok(traces) => traces,
            Err(error) => {
                say(&error.to_string());
                return Exit::Failed;
            }
        };
        // Before they are used: what changes in between is to be seen.
        let seen = reload::look_at(config.files());
        let live = match Live::of(&config) {
            Ok(live) => live,
            // It could be used a moment ago, when all of it was checked.
            Err(unusable) => {
                unusable.iter().for_each(|unusable| say(&unusable.to_string()));
                return Exit::Failed;
            }
        };
        // Where there is no file nothing can have changed: the signal then ends the process, as it does when the
        // terminal goes.
        if file.is_some() || config.files().next().is_some() {
            match Reloads::listen(self.sources, seen, live.clone(), log) {
                Ok(reloads) => drop(tokio::spawn(reloads.go_on())),
                Err(error) => {
                    say(&format!("cannot listen for signals: {error}"));
                    return Exit::Failed;
                }
            }
        }
        if let Some(file) = file {
            tracing::info!(file = %file.display(), "settings come from a file, too; SIGHUP reads it again");
        }
        let ended = server::serve(config, live).await;
        if let Some(traces) = traces {
            traces.finish().await;
        }
        match ended {
            Ok(()) => Exit::Done,
            Err(error) => {
                say(&error.to_string());
                Exit::Failed
            }
        }
    }
}

impl ServeArgs {
    /// The server that these ask for; otherwise how the command has ended.
    pub fn prepare(self) -> Result<Serve, Exit> {
        let sources = self.settings.sources();
        let loaded = load(&sources)?;
        if self.print_config {
            return Err(print(&loaded.print()));
        }
        Ok(Serve { sources, loaded })
    }
}

/// Says what is wrong with a configuration, or that nothing is.
pub fn check(args: CheckArgs) -> Exit {
    if args.reference {
        return print(&config::reference());
    }
    match load(&args.settings.sources()) {
        Ok(loaded) => {
            for doubt in &loaded.doubts {
                say(doubt);
            }
            print(&summary(&loaded))
        }
        Err(exit) => exit,
    }
}

fn load(sources: &Sources) -> Result<Loaded, Exit> {
    sources.load().map_err(|problems| {
        for problem in problems.0 {
            say(&problem.to_string());
        }
        Exit::Usage
    })
}

fn summary(loaded: &Loaded) -> String {
    let Loaded { config: Config { listen, store, .. }, file, origins, .. } = loaded;
    let file = file.as_ref().map_or_else(|| "no file".to_owned(), |file| file.display().to_string());
    let set = origins.len();
    format!("ok: {file}; {set} settings are set; it would listen on {listen} and keep records in {store}\n")
}
