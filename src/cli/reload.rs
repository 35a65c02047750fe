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

use crate::config::{Change, Config, Loaded, Problems, Reload, Sources};
use crate::server::Live;
use crate::telemetry::Log;
use crate::telemetry::metrics::{RELOAD_REFUSED, RELOADS};

use files::Files;
pub use files::{Seen, look_at};

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
    /// Those that are in force.
    running: Config,
    live: Live,
    log: Log,
    /// Has the files read, too.
    changed: Arc<Notify>,
}

impl Reloads {
    /// Catches the signal from now on. `seen` is what the files held before `live` was made of them.
    ///
    /// # Errors
    /// If it cannot be caught.
    pub fn listen(sources: Sources, running: Config, seen: Seen, live: Live, log: Log) -> io::Result<Self> {
        let hangups = signal(SignalKind::hangup())?;
        let changed = Arc::new(Notify::new());
        let files = Files::new(live.clone(), seen, Arc::clone(&changed));
        Ok(Self { hangups, settings: Settings { sources, running, live, log, changed }, files })
    }

    /// Reads the settings again at each signal, and the files when they change.
    pub async fn go_on(self) {
        let Self { mut hangups, mut settings, files } = self;
        count_reload(SETTINGS, None);
        let reloads = async {
            while hangups.recv().await.is_some() {
                let reload = move || {
                    settings.reload();
                    settings
                };
                let slow = || {
                    gauge!(RELOAD_REFUSED, "part" => SETTINGS).set(1.0);
                    tracing::error!(
                        "the settings hang when they are read: they stay as they are until that ends"
                    );
                };
                match apart(reload, slow).await {
                    Some(reloaded) => settings = reloaded,
                    None => return,
                }
            }
        };
        tokio::join!(reloads, files.go_on());
    }
}

impl Settings {
    fn reload(&mut self) {
        match self.sources.load_again() {
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
        // Before it is told.
        self.live.set_settings(&self.running);
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
        count_reload(SETTINGS, Some(true));
        tracing::info!(changes = changes.len(), "the settings were reloaded");
        self.changed.notify_one();
    }
}

fn refuse(problems: &Problems) {
    for problem in &problems.0 {
        tracing::error!("{problem}");
    }
    tracing::error!(problems = problems.0.len(), "the settings were not reloaded, and stay as they were");
    count_reload(SETTINGS, Some(false));
}

/// Does what reads files on a thread where nothing else waits for it; and once it takes long, `slow`.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    slow: impl FnOnce(),
) -> Option<T> {
    let mut working = tokio::task::spawn_blocking(work);
    let worked = match tokio::time::timeout(SLOW, &mut working).await {
        Ok(worked) => worked,
        Err(_) => {
            slow();
            working.await
        }
    };
    worked.inspect_err(|error| tracing::error!(%error, "nothing is reloaded any more")).ok()
}

/// Tells the metrics what became of a part that was read again; of one that was not, that there is such a count.
fn count_reload(part: &'static str, taken: Option<bool>) {
    gauge!(RELOAD_REFUSED, "part" => part).set(f64::from(u8::from(taken == Some(false))));
    for (result, counted) in [("taken", Some(true)), ("refused", Some(false))] {
        counter!(RELOADS, "part" => part, "result" => result)
            .increment(u64::from(taken.is_some() && taken == counted));
    }
}
