//! What may change under a running server.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use crate::access::{Gate, Shown, Unusable, both};
use crate::clock::wall_time;
use crate::config::Config;
use crate::rpc;

/// How often it is looked at whether the certificate ends soon.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);

/// What new connections are served by.
pub(super) type LiveTls = Arc<ArcSwap<Served>>;

/// A certificate, and the connections that were made while it was shown.
pub(super) struct Served {
    pub(super) shown: Shown,
    /// Cancelled when a CA is gone whose certificates of callers were taken then.
    pub(super) trust: CancellationToken,
}

/// What may change under a running server.
#[derive(Clone)]
pub struct Live {
    pub(super) rules: rpc::Live,
    pub(super) tls: Option<LiveTls>,
    /// The settings that are in force; held while rules are made of them.
    config: Arc<Mutex<Config>>,
}

impl Live {
    /// What a configuration says.
    ///
    /// # Errors
    /// Each file that it names and cannot be used.
    pub fn of(config: &Config) -> Result<Self, Vec<Unusable>> {
        let tls = config.tls.files().map(|files| files.load(wall_time())).transpose();
        let (tls, gate) = both(tls, config.gate())?;
        let served = |(shown, _)| Served { shown, trust: CancellationToken::new() };
        let tls = tls.map(|loaded| Arc::new(ArcSwap::from_pointee(served(loaded))));
        Ok(Self::new(config, gate, tls))
    }

    fn new(config: &Config, gate: Gate, tls: Option<LiveTls>) -> Self {
        let rules = Arc::new(ArcSwap::from_pointee(rpc::Rules::of(config, gate)));
        Self { rules, tls, config: Arc::new(Mutex::new(config.clone())) }
    }

    /// The same without any of the files: neither is TLS spoken, nor anybody asked who they are.
    pub(super) fn in_plaintext(config: &Config) -> Self {
        Self::new(config, Gate::default(), None)
    }

    /// Serves by other settings from now on, with what the files held when they were last read.
    pub fn set_settings(&self, config: &Config) {
        let mut running = self.config();
        running.clone_from(config);
        let gate = &self.rules.load().gate;
        let gate = running.gate_of(gate.tokens.clone(), gate.issuer.clone());
        self.rules.store(Arc::new(rpc::Rules::of(&running, gate)));
    }

    /// The settings that are in force.
    pub fn settings(&self) -> Config {
        self.config().clone()
    }

    /// Takes callers for who the files say that they are now: which cannot be used, or have lost all their tokens. What
    /// such a one held before stays in force. `None` where no file says who calls.
    pub fn renew_access(&self) -> Option<Vec<Unusable>> {
        let read = self.settings();
        read.access.tokens.as_ref().or(read.access.jwks.as_ref())?;
        // Nobody waits for it: it may take long.
        let (tokens, issuer, unusable) = read.renew(&self.rules.load_full().gate);
        let running = self.config();
        let gate = running.gate_of(tokens, issuer);
        self.rules.store(Arc::new(rpc::Rules::of(&running, gate)));
        Some(unusable)
    }

    fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files that are read again.
    pub fn files(&self) -> Vec<PathBuf> {
        self.config().files().collect()
    }

    /// Shows new connections another certificate from now on. Where a CA is gone that callers were trusted by, the
    /// connections that there are end, once their calls are answered: it may have signed for who made them. A server that
    /// speaks no TLS goes on so.
    fn set_tls(&self, shown: Shown) {
        let Some(tls) = &self.tls else { return };
        let before = tls.load();
        if shown.trusts_all_of(&before.shown) {
            tls.store(Arc::new(Served { shown, trust: before.trust.clone() }));
        } else {
            tls.store(Arc::new(Served { shown, trust: CancellationToken::new() }));
            tracing::warn!(
                "a CA is gone from the file of tls.client_ca: the connections that there are end now"
            );
            before.trust.cancel();
        }
    }

    /// Shows new connections what the files of TLS hold now, each that can be used: what to warn of, and which cannot.
    /// `None` where no TLS is spoken.
    pub fn renew_tls(&self) -> Option<(Vec<String>, Vec<Unusable>)> {
        let files = self.config().tls.files();
        let (tls, files) = (self.tls.as_ref()?, files?);
        let (shown, doubts, unusable) = files.renew(wall_time(), &tls.load().shown);
        self.set_tls(shown);
        Some((doubts, unusable))
    }

    /// Warns every hour of a certificate that ends soon, or has; never ends.
    pub(super) async fn remind(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Some(doubt) = self.tls.as_ref().and_then(|tls| tls.load().shown.doubt(wall_time())) {
                tracing::warn!("{doubt}");
            }
        }
    }
}
