//! What changes under a running server. At SIGHUP the settings are read again: what can change does, the rest is told to
//! need a restart, and where anything is wrong, nothing changes. Files of certificates, tokens and keys are looked at every
//! few seconds as well: whoever renews them need not know of this server. Neither waits for the other: a file may be where
//! reading hangs, and rules that take something back are in force all the same.

mod files;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{Change, Loaded, Problems, Reload, Sources};
use crate::server::Live;
use crate::telemetry::Log;
use crate::telemetry::metrics::{RELOAD_REFUSED, RELOADS};

use files::Files;
pub use files::{Seen, look_at};

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long files may take to be read before that is told.
const SLOW: Duration = Duration::from_secs(10);

/// What is taken or refused by itself, as the metrics have it.
const SETTINGS: &str = "settings";

/// What it takes to read the settings again.
pub struct Reloads {
    hangups: Signal,
    settings: Settings,
    files: Files,
}

/// The settings, without what is in the files that they name.
struct Settings {
    sources: Sources,
    live: Live,
    log: Log,
    /// Has the files read, too.
    changed: Arc<Notify>,
    /// Whether they were refused when they were last read.
    refused: bool,
}

impl Reloads {
    /// Catches the signal from now on. `seen` is what the files held before `live` was made of them.
    ///
    /// # Errors
    /// If it cannot be caught.
    pub fn listen(sources: Sources, seen: Seen, live: Live, log: Log) -> io::Result<Self> {
        let hangups = signal(SignalKind::hangup())?;
        let changed = Arc::new(Notify::new());
        let files = Files::new(live.clone(), seen, Arc::clone(&changed));
        Ok(Self { hangups, settings: Settings { sources, live, log, changed, refused: false }, files })
    }

    /// Reads the settings again at each signal, and the files when they change.
    pub async fn go_on(self) {
        let Self { mut hangups, mut settings, files } = self;
        let reloads = async {
            let mut looks = interval(LOOK_EVERY);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased;
                    Some(()) = hangups.recv() => {}
                    _ = looks.tick() => {
                        show(SETTINGS, settings.refused);
                        continue;
                    }
                }
                let reload = move || {
                    settings.reload();
                    settings
                };
                let slow = || {
                    tracing::error!(
                        "the settings hang when they are read, and stay as they are until that ends"
                    )
                };
                match apart(&[SETTINGS], reload, slow).await {
                    Some(reloaded) => settings = reloaded,
                    None => return,
                }
                show(SETTINGS, settings.refused);
            }
        };
        tokio::join!(reloads, files.go_on());
    }
}

impl Settings {
    fn reload(&mut self) {
        let taken = self.sources.load_again().and_then(|loaded| self.take(loaded));
        if let Err(Problems(problems)) = &taken {
            for problem in problems {
                tracing::error!("{problem}");
            }
            tracing::error!(
                problems = problems.len(),
                "the settings were not reloaded, and stay as they were"
            );
        }
        self.refused = taken.is_err();
        count(SETTINGS, self.refused);
    }

    fn take(&mut self, loaded: Loaded) -> Result<(), Problems> {
        for doubt in &loaded.doubts {
            tracing::warn!("{doubt}");
        }
        let mut settings = self.live.settings();
        let changes = settings.take_over(loaded.config, &loaded.origins)?;
        // Before it is told.
        self.live.set_settings(&settings);
        if let Err(error) = self.log.set(&settings.log) {
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
        self.changed.notify_one();
        Ok(())
    }
}

/// Does what reads files on a thread where nothing else waits for it; and once it takes long, `slow`. None of `parts` is
/// reloaded until it ends.
async fn apart<T: Send + 'static>(
    parts: &[&'static str],
    work: impl FnOnce() -> T + Send + 'static,
    slow: impl FnOnce(),
) -> Option<T> {
    let mut working = tokio::task::spawn_blocking(work);
    let held_up = || parts.iter().for_each(|part| show(part, true));
    let worked = match tokio::time::timeout(SLOW, &mut working).await {
        Ok(worked) => worked,
        Err(_) => {
            held_up();
            slow();
            working.await
        }
    };
    if let Err(error) = &worked {
        held_up();
        tracing::error!(%error, ?parts, "they are not reloaded any more until this server is restarted");
    }
    worked.ok()
}

/// Shows the metrics whether a part that is read again was refused, also before there is anything to count.
fn show(part: &'static str, refused: bool) {
    gauge!(RELOAD_REFUSED, "part" => part).set(f64::from(u8::from(refused)));
    for result in ["taken", "refused"] {
        counter!(RELOADS, "part" => part, "result" => result).increment(0);
    }
}

/// Counts that a part was read again.
fn count(part: &'static str, refused: bool) {
    show(part, refused);
    let result = if refused { "refused" } else { "taken" };
    counter!(RELOADS, "part" => part, "result" => result).increment(1);
}
