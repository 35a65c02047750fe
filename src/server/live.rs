//! What may change under a running server.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use crate::access::{Gate, Shown, TlsFiles, Unusable, both};
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
        Ok(Self { rules: Arc::new(ArcSwap::from_pointee(rpc::Rules::of(config, gate))), tls })
    }

    /// The same without any of the files: neither is TLS spoken, nor anybody asked who they are.
    pub(super) fn in_plaintext(config: &Config) -> Self {
        Self { rules: Arc::new(ArcSwap::from_pointee(rpc::Rules::of(config, Gate::default()))), tls: None }
    }

    /// Serves by other rules from now on.
    ///
    /// # Errors
    /// Each file that they name and cannot be used, or whose tokens are all gone: what it held before stays in force.
    /// All else is in force now.
    pub fn set_rules(&self, config: &Config) -> Result<(), Vec<Unusable>> {
        let (gate, unusable) = config.renew(&self.rules.load().gate);
        self.rules.store(Arc::new(rpc::Rules::of(config, gate)));
        if unusable.is_empty() { Ok(()) } else { Err(unusable) }
    }

    /// Shows new connections another certificate from now on. Where a CA is gone that callers were trusted by, the
    /// connections that there are end, once their calls are answered: it may have signed for who made them. A server that
    /// speaks no TLS goes on so.
    pub fn set_tls(&self, shown: Shown) {
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

    /// Shows new connections what the files hold now, each that can be used: what to warn of, and which cannot.
    pub fn renew_tls(&self, files: &TlsFiles) -> (Vec<String>, Vec<Unusable>) {
        let Some(tls) = &self.tls else { return Default::default() };
        let (shown, doubts, unusable) = files.renew(wall_time(), &tls.load().shown);
        self.set_tls(shown);
        (doubts, unusable)
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
