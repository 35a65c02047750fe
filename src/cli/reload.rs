//! SIGHUP: the settings are read again. What can change under a running server does; the rest is told to need a
//! restart; and where anything is wrong, nothing changes. Files of certificates, tokens and keys are looked at every few
//! seconds as well: whoever renews them need not know of this server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

use metrics::{counter, gauge};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::access::Unusable;
use crate::config::{Change, Config, Loaded, Problems, Reload, Sources};
use crate::server::Live;
use crate::telemetry::Log;
use crate::telemetry::metrics::{RELOAD_REFUSED, RELOADS};

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long the files may take to be read before that is told.
const SLOW: Duration = Duration::from_secs(10);

/// What is taken or refused by itself, as the metrics have it.
const SETTINGS: &str = "settings";
const ACCESS: &str = "access";
const CERTIFICATE: &str = "certificate";

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
    /// Whether each part was refused when it was last read.
    refused: BTreeMap<&'static str, bool>,
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
        let refused = [SETTINGS, ACCESS, CERTIFICATE].map(|part| (part, false)).into();
        Ok(Self { hangups, looks, sources, running, live, log, seen, refused })
    }

    /// Reads the settings again at each signal, and the files when they change.
    pub async fn go_on(mut self) {
        loop {
            let read: fn(&mut Self) = tokio::select! {
                biased;
                hangup = self.hangups.recv() => match hangup {
                    Some(()) => Self::reload,
                    None => return,
                },
                _ = self.looks.tick() => Self::look_again,
            };
            // A file may be where reading hangs, which is not to be the end of all calls.
            let mut reading = tokio::task::spawn_blocking(move || {
                read(&mut self);
                self
            });
            let read = match tokio::time::timeout(SLOW, &mut reading).await {
                Ok(read) => read,
                Err(_) => {
                    tracing::error!("a file hangs when it is read: nothing is reloaded until that ends");
                    reading.await
                }
            };
            match read {
                Ok(reloads) => self = reloads,
                Err(error) => return tracing::error!(%error, "nothing is reloaded any more"),
            }
        }
    }

    fn look_again(&mut self) {
        self.count();
        let seen = look(&self.running);
        if seen != self.seen {
            self.seen = seen;
            self.reload_files();
        }
    }

    fn reload(&mut self) {
        match self.sources.load_again() {
            Ok(loaded) => self.apply(loaded),
            Err(problems) => self.refuse(&problems),
        }
    }

    fn apply(&mut self, loaded: Loaded) {
        for doubt in &loaded.doubts {
            tracing::warn!("{doubt}");
        }
        let changes = match self.running.take_over(loaded.config, &loaded.origins) {
            Ok(changes) => changes,
            Err(problems) => return self.refuse(&problems),
        };
        self.tell(SETTINGS, true);
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
        let rules = self.live.set_rules(&self.running);
        self.tell(ACCESS, rules.is_ok());
        match rules {
            Ok(()) => {
                let access = &self.running.access;
                if access.tokens.is_some() || access.jwks.is_some() {
                    tracing::info!("tokens are taken as their files have them now");
                }
            }
            Err(unusable) => {
                tell_unusable(
                    &unusable,
                    "a file was not reloaded: what it held before stays as it was, all else is reloaded",
                );
            }
        }
        let Some(files) = self.running.tls.files() else { return };
        let (doubts, unusable) = self.live.renew_tls(&files);
        self.tell(CERTIFICATE, unusable.is_empty());
        for doubt in doubts {
            tracing::warn!("{doubt}");
        }
        if unusable.is_empty() {
            tracing::info!("new connections get the certificate as it is in its file now");
        }
        tell_unusable(&unusable, "what TLS stands on was not reloaded from it, and stays as it was");
    }

    fn refuse(&mut self, problems: &Problems) {
        for problem in &problems.0 {
            tracing::error!("{problem}");
        }
        tracing::error!(problems = problems.0.len(), "the settings were not reloaded, and stay as they were");
        self.tell(SETTINGS, false);
    }

    /// Tells the metrics what became of a part that was read again.
    fn tell(&mut self, part: &'static str, taken: bool) {
        self.refused.insert(part, !taken);
        self.count();
        counter!(RELOADS, "part" => part, "result" => if taken { "taken" } else { "refused" }).increment(1);
    }

    /// Tells the metrics how each part is, and that there are such counts, before there is anything to count.
    fn count(&self) {
        for (&part, &refused) in &self.refused {
            gauge!(RELOAD_REFUSED, "part" => part).set(f64::from(u8::from(refused)));
            for result in ["taken", "refused"] {
                counter!(RELOADS, "part" => part, "result" => result).increment(0);
            }
        }
    }
}

fn tell_unusable(files: &[Unusable], consequence: &str) {
    for unusable in files {
        tracing::error!(%unusable, "{consequence}");
    }
}

/// What the files of a configuration hold; none for one that cannot be read.
fn look(config: &Config) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    config.files().map(|file| (file.clone(), fs::read(file).ok())).collect()
}
