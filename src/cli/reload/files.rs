//! The files that say who calls, and that TLS stands on: looked at every few seconds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::gauge;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use super::{apart, count_reload};
use crate::access::Unusable;
use crate::server::Live;
use crate::telemetry::metrics::RELOAD_REFUSED;

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// After how many looks those are read again of which one could not be used, though they are the same: what was wrong may
/// have been elsewhere.
const RETRY_LOOKS: u32 = 15;

/// What is taken or refused by itself, as the metrics have it.
const ACCESS: &str = "access";
const CERTIFICATE: &str = "certificate";

/// What files hold; nothing for one that cannot be read.
pub type Seen = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// The file that is being read.
type Reading = Arc<Mutex<PathBuf>>;

/// The files of a running server.
pub(super) struct Files {
    live: Live,
    /// What they held when they were last looked at.
    seen: Seen,
    /// Says that other files may be named.
    changed: Arc<Notify>,
    reading: Reading,
    /// How many looks ago some were refused.
    refused: Option<u32>,
}

impl Files {
    pub(super) fn new(live: Live, seen: Seen, changed: Arc<Notify>) -> Self {
        Self { live, seen, changed, reading: Reading::default(), refused: None }
    }

    /// Takes what they hold whenever that has changed; never ends, unless reading does not.
    pub(super) async fn go_on(mut self) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                biased;
                () = self.changed.notified() => true,
                _ = looks.tick() => false,
            };
            let reading = Arc::clone(&self.reading);
            let slow = || {
                for part in [ACCESS, CERTIFICATE] {
                    gauge!(RELOAD_REFUSED, "part" => part).set(1.0);
                }
                let file = reading.lock().unwrap_or_else(PoisonError::into_inner).clone();
                tracing::error!(file = %file.display(), "a file hangs when it is read: none is reloaded until that ends");
            };
            let work = move || {
                self.look(asked);
                self
            };
            match apart(work, slow).await {
                Some(files) => self = files,
                None => return,
            }
        }
    }

    fn look(&mut self, asked: bool) {
        let seen = look(self.live.files(), &self.reading);
        self.refused = self.refused.map(|looks| looks + 1);
        let again = self.refused.is_some_and(|looks| looks >= RETRY_LOOKS);
        if asked || again || seen != self.seen {
            self.seen = seen;
            self.reload();
        } else if self.refused.is_none() {
            // Shown before there is anything to count.
            count_reload(ACCESS, None);
            count_reload(CERTIFICATE, None);
        }
    }

    /// Takes what they hold now. What cannot be used is told, and what was before stays.
    fn reload(&mut self) {
        let unusable = self.live.renew_access();
        count_reload(ACCESS, Some(unusable.is_empty()));
        let mut refused = !unusable.is_empty();
        tell(&unusable, "a file was not reloaded: what it held before stays as it was, all else is reloaded");
        if !refused {
            tracing::info!("tokens are taken as their files have them now");
        }
        if let Some((doubts, unusable)) = self.live.renew_tls() {
            count_reload(CERTIFICATE, Some(unusable.is_empty()));
            refused |= !unusable.is_empty();
            for doubt in doubts {
                tracing::warn!("{doubt}");
            }
            tell(&unusable, "what TLS stands on was not reloaded from it, and stays as it was");
            if unusable.is_empty() {
                tracing::info!("new connections get the certificate as it is in its file now");
            }
        }
        self.refused = refused.then_some(0);
    }
}

/// What files hold.
pub fn look_at(files: impl IntoIterator<Item = PathBuf>) -> Seen {
    look(files, &Reading::default())
}

fn look(files: impl IntoIterator<Item = PathBuf>, reading: &Reading) -> Seen {
    let read = |file: &Path| {
        file.clone_into(&mut reading.lock().unwrap_or_else(PoisonError::into_inner));
        fs::read(file).ok()
    };
    files.into_iter().map(|file| (file.clone(), read(&file))).collect()
}

fn tell(unusable: &[Unusable], consequence: &str) {
    for unusable in unusable {
        tracing::error!(%unusable, "{consequence}");
    }
}
