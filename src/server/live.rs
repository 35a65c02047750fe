//! What may change under a running server.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use crate::access::{Gate, Shown, Tokens, Unusable, both};
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
    /// Cancelled when other certificates of callers are taken than were then.
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
    /// Each file that they name and cannot be used, or whose tokens are all gone; all is then as before.
    pub fn set_rules(&self, config: &Config) -> Result<(), Vec<Unusable>> {
        let gate = config.gate()?;
        let without = |gate: &Gate| gate.tokens.as_ref().is_none_or(|tokens| tokens.is_empty());
        if let Some(file) = &config.access.tokens
            && without(&gate)
            && !without(&self.rules.load().gate)
        {
            return Err(vec![Tokens::lost(file)]);
        }
        self.rules.store(Arc::new(rpc::Rules::of(config, gate)));
        Ok(())
    }

    /// Shows new connections another certificate from now on. Where callers are trusted by another CA, the connections
    /// that there are end once their calls are answered: who made them was trusted by the old one. A server that speaks
    /// no TLS goes on so.
    pub fn set_tls(&self, shown: Shown) {
        let Some(tls) = &self.tls else { return };
        let before = tls.load();
        if before.shown.trusts_as(&shown) {
            tls.store(Arc::new(Served { shown, trust: before.trust.clone() }));
        } else {
            tls.store(Arc::new(Served { shown, trust: CancellationToken::new() }));
            before.trust.cancel();
        }
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
