//! SIGHUP: the settings are read again. What can change under a running server does; the rest is told to need a
//! restart; and where anything is wrong, nothing changes.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{Change, Config, Loaded, Reload, Sources};
use crate::rpc::{Live, Rules};
use crate::telemetry::Log;

/// What it takes to read the settings again.
pub struct Reloads {
    hangups: Signal,
    sources: Sources,
    /// The settings that are in force.
    running: Config,
    rules: Live,
    log: Log,
}

impl Reloads {
    /// Catches the signal from now on.
    ///
    /// # Errors
    /// If it cannot be caught.
    pub fn listen(sources: Sources, running: Config, rules: Live, log: Log) -> io::Result<Self> {
        Ok(Self { hangups: signal(SignalKind::hangup())?, sources, running, rules, log })
    }

    /// Reads the settings again at each signal.
    pub async fn go_on(mut self) {
        while self.hangups.recv().await.is_some() {
            match self.sources.load() {
                Ok(loaded) => self.apply(loaded),
                Err(problems) => {
                    for problem in &problems.0 {
                        tracing::error!("{problem}");
                    }
                    let count = problems.0.len();
                    tracing::error!(
                        problems = count,
                        "the settings were not reloaded, and stay as they were"
                    );
                }
            }
        }
    }

    fn apply(&mut self, loaded: Loaded) {
        for doubt in &loaded.doubts {
            tracing::warn!("{doubt}");
        }
        let changes = self.running.take_over(loaded.config);
        self.rules.store(Arc::new(Rules::of(&self.running)));
        if let Err(error) = self.log.set(&self.running.log) {
            tracing::error!(%error, "what is logged stays as it was");
        }
        for Change { key, from, to, reload } in &changes {
            match reload {
                Reload::Live => tracing::info!(key, from, to, "a setting has changed"),
                Reload::Restart => {
                    tracing::warn!(
                        key,
                        from,
                        to,
                        "a setting was changed that needs a restart: it stays as it was"
                    );
                }
            }
        }
        tracing::info!(changes = changes.len(), "the settings were reloaded");
    }
}
