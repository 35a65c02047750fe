//! What may change under a running server.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::access::{Gate, Shown, Tokens, Unusable};
use crate::clock::wall_time;
use crate::config::Config;
use crate::rpc;

/// How often it is looked at whether the certificate ends soon.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);

/// What new connections are served by.
pub(super) type LiveTls = Arc<ArcSwap<Shown>>;

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
    /// If a file that it names cannot be used.
    pub fn of(config: &Config) -> Result<Self, Unusable> {
        let tls = match config.tls.files() {
            Some(files) => Some(Arc::new(ArcSwap::from_pointee(files.load(wall_time())?.0))),
            None => None,
        };
        Ok(Self { rules: Arc::new(ArcSwap::from_pointee(rpc::Rules::of(config, config.gate()?))), tls })
    }

    /// The same without any of the files: neither is TLS spoken, nor anybody asked who they are.
    pub(super) fn in_plaintext(config: &Config) -> Self {
        Self { rules: Arc::new(ArcSwap::from_pointee(rpc::Rules::of(config, Gate::default()))), tls: None }
    }

    /// Serves by other rules from now on.
    ///
    /// # Errors
    /// If a file that they name cannot be used, or all tokens are gone; all is then as before.
    pub fn set_rules(&self, config: &Config) -> Result<(), Unusable> {
        let gate = config.gate()?;
        let without = |gate: &Gate| gate.tokens.as_ref().is_none_or(|tokens| tokens.is_empty());
        if let Some(file) = &config.access.tokens
            && without(&gate)
            && !without(&self.rules.load().gate)
        {
            return Err(Tokens::lost(file));
        }
        self.rules.store(Arc::new(rpc::Rules::of(config, gate)));
        Ok(())
    }

    /// Shows new connections another certificate from now on. A server that speaks no TLS goes on so.
    pub fn set_tls(&self, shown: Shown) {
        if let Some(tls) = &self.tls {
            tls.store(Arc::new(shown));
        }
    }

    /// Warns every hour of a certificate that ends soon, or has; never ends.
    pub(super) async fn remind(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Some(doubt) = self.tls.as_ref().and_then(|tls| tls.load().doubt(wall_time())) {
                tracing::warn!("{doubt}");
            }
        }
    }
}
