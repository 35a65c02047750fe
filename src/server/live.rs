//! What may change under a running server.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_rustls::rustls::ServerConfig;

use crate::access::{Serving, Unusable};
use crate::clock::wall_time;
use crate::config::Config;
use crate::rpc;

/// What new connections are served by.
pub(super) type LiveTls = Arc<ArcSwap<ServerConfig>>;

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
            Some(files) => Some(Arc::new(ArcSwap::new(files.load(wall_time())?.0))),
            None => None,
        };
        Ok(Self { tls, ..Self::in_plaintext(config) })
    }

    /// The same without TLS.
    pub(super) fn in_plaintext(config: &Config) -> Self {
        Self { rules: Arc::new(ArcSwap::from_pointee(rpc::Rules::of(config))), tls: None }
    }

    /// Serves by other rules from now on.
    pub fn set_rules(&self, config: &Config) {
        self.rules.store(Arc::new(rpc::Rules::of(config)));
    }

    /// Shows new connections another certificate from now on. A server that speaks no TLS goes on so.
    pub fn set_tls(&self, serving: Serving) {
        if let Some(tls) = &self.tls {
            tls.store(serving);
        }
    }
}
