//! SIGHUP: the settings are read again. What can change under a running server does; the rest is told to need a
//! restart; and where anything is wrong, nothing changes. Files of certificates, tokens and keys are looked at every few
//! seconds as well: whoever renews them need not know of this server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::clock::wall_time;
use crate::config::{Change, Config, Loaded, Problems, Reload, Sources};
use crate::server::Live;
use crate::telemetry::Log;

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What it takes to read the settings again.
pub struct Reloads {
    hangups: Signal,
    looks: Interval,
    sources: Sources,
    /// The settings that are in force.
    running: Config,
    live: Live,
    log: Log,
    /// What the files held when they were last looked at.
    seen: BTreeMap<PathBuf, Option<Vec<u8>>>,
}

impl Reloads {
    /// Catches the signal from now on.
    ///
    /// # Errors
    /// If it cannot be caught.
    pub fn listen(sources: Sources, running: Config, live: Live, log: Log) -> io::Result<Self> {
        let hangups = signal(SignalKind::hangup())?;
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let seen = look(&running);
        Ok(Self { hangups, looks, sources, running, live, log, seen })
    }

    /// Reads the settings again at each signal, and the files when they change.
    pub async fn go_on(mut self) {
        loop {
            tokio::select! {
                biased;
                hangup = self.hangups.recv() => match hangup {
                    Some(()) => self.reload(),
                    None => return,
                },
                _ = self.looks.tick() => {
                    let seen = look(&self.running);
                    if seen != self.seen {
                        self.seen = seen;
                        self.reload_files();
                    }
                }
            }
        }
    }

    fn reload(&mut self) {
        match self.sources.load() {
            Ok(loaded) => self.apply(loaded),
            Err(problems) => refuse(&problems),
        }
    }

    fn apply(&mut self, loaded: Loaded) {
        for doubt in &loaded.doubts {
            tracing::warn!("{doubt}");
        }
        let changes = match self.running.take_over(loaded.config, &loaded.origins) {
            Ok(changes) => changes,
            Err(problems) => return refuse(&problems),
        };
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
        self.seen = look(&self.running);
        self.reload_files();
        tracing::info!(changes = changes.len(), "the settings were reloaded");
    }

    /// Takes what the files hold now. What cannot be used is told, and what was before stays.
    fn reload_files(&mut self) {
        match self.live.set_rules(&self.running) {
            Ok(()) => {
                let access = &self.running.access;
                if access.tokens.is_some() || access.jwks.is_some() {
                    tracing::info!("tokens are taken as their files have them now");
                }
            }
            Err(unusable) => {
                tracing::error!(%unusable, "who may call was not reloaded, and stays as it was");
            }
        }
        match self.running.tls.files().map(|files| files.load(wall_time())) {
            Some(Ok((serving, doubts))) => {
                for doubt in doubts {
                    tracing::warn!("{doubt}");
                }
                self.live.set_tls(serving);
                tracing::info!("new connections get the certificate as it is in its file now");
            }
            Some(Err(unusable)) => {
                tracing::error!(%unusable, "the certificate was not reloaded, and stays as it was");
            }
            None => {}
        }
    }
}

fn refuse(problems: &Problems) {
    for problem in &problems.0 {
        tracing::error!("{problem}");
    }
    tracing::error!(problems = problems.0.len(), "the settings were not reloaded, and stay as they were");
}

/// What the files of a configuration hold; none for one that cannot be read.
fn look(config: &Config) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    config.files().map(|file| (file.clone(), fs::read(file).ok())).collect()
}
