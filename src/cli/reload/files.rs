//! The files that say who calls, and that TLS stands on: looked at every few seconds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use super::{LOOK_EVERY, apart, count, show};
use crate::access::Unusable;
use crate::server::Live;

/// After how many looks those are read again of which one could not be used, though they are the same: what was wrong may
/// have been elsewhere.
const RETRY_LOOKS: u32 = 15;

/// What is taken or refused by itself, as the metrics have it.
const ACCESS: &str = "access";
const CERTIFICATE: &str = "certificate";

/// What files hold; nothing for one that cannot be read.
pub type Seen = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// The file that is being looked at.
type Reading = Arc<Mutex<Option<PathBuf>>>;

/// The files of a running server.
pub(super) struct Files {
    live: Live,
    /// What they held when they were last looked at.
    seen: Seen,
    /// Says that other files may be named.
    changed: Arc<Notify>,
    reading: Reading,
    /// Whether one of those was refused that say who calls.
    access_refused: bool,
    /// Whether one of those was that TLS stands on.
    certificate_refused: bool,
    /// How many looks ago they were read.
    looks: u32,
}

impl Files {
    pub(super) fn new(live: Live, seen: Seen, changed: Arc<Notify>) -> Self {
        let (access_refused, certificate_refused) = (false, false);
        Self {
            live,
            seen,
            changed,
            reading: Reading::default(),
            access_refused,
            certificate_refused,
            looks: 0,
        }
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
                let file = reading.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let file = file.unwrap_or_else(|| "one of them".into());
                tracing::error!(file = %file.display(), "a file hangs when it is read: none is reloaded until that ends");
            };
            let work = move || {
                self.look(asked);
                self
            };
            match apart(&[ACCESS, CERTIFICATE], work, slow).await {
                Some(files) => self = files,
                None => return,
            }
            show(ACCESS, self.access_refused);
            show(CERTIFICATE, self.certificate_refused);
        }
    }

    fn look(&mut self, asked: bool) {
        let seen = look(self.live.files(), &self.reading);
        let changed = asked || seen != self.seen;
        self.seen = seen;
        self.looks += 1;
        let again = self.looks >= RETRY_LOOKS;
        if changed || again {
            self.looks = 0;
        }
        if changed || again && self.access_refused {
            self.reload_access();
        }
        if changed || again && self.certificate_refused {
            self.reload_certificate();
        }
    }

    /// Takes callers for who the files say that they are now. What cannot be used is told, and what was before stays.
    fn reload_access(&mut self) {
        let Some(unusable) = self.live.renew_access() else { return };
        self.access_refused = !unusable.is_empty();
        count(ACCESS, self.access_refused);
        tell(&unusable, "a file was not reloaded: what it held before stays as it was, all else is reloaded");
        if !self.access_refused {
            tracing::info!("tokens are taken as their files have them now");
        }
    }

    /// The same for what TLS stands on.
    fn reload_certificate(&mut self) {
        let Some((doubts, unusable)) = self.live.renew_tls() else { return };
        self.certificate_refused = !unusable.is_empty();
        count(CERTIFICATE, self.certificate_refused);
        for doubt in doubts {
            tracing::warn!("{doubt}");
        }
        tell(&unusable, "what TLS stands on was not reloaded from it, and stays as it was");
        if !self.certificate_refused {
            tracing::info!("new connections get the certificate as it is in its file now");
        }
    }
}

/// What files hold.
pub fn look_at(files: impl IntoIterator<Item = PathBuf>) -> Seen {
    look(files, &Reading::default())
}

fn look(files: impl IntoIterator<Item = PathBuf>, reading: &Reading) -> Seen {
    let now = |file: Option<&Path>| {
        *reading.lock().unwrap_or_else(PoisonError::into_inner) = file.map(Path::to_owned);
    };
    let read = |file: &Path| {
        now(Some(file));
        fs::read(file).ok()
    };
    let seen = files.into_iter().map(|file| (file.clone(), read(&file))).collect();
    now(None);
    seen
}

fn tell(unusable: &[Unusable], consequence: &str) {
    for unusable in unusable {
        tracing::error!(%unusable, "{consequence}");
    }
}
