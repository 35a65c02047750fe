//! `onced serve`.

use std::net::SocketAddr;

use clap::Args;

use super::exit::Exit;
use super::output::say;
use crate::config::StoreUrl;
use crate::server::{self, Config};
use crate::telemetry;

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where to listen for gRPC
    #[arg(long, env = "ONCED_LISTEN", default_value = "127.0.0.1:7411", value_name = "IP:PORT", value_parser = address)]
    pub listen: SocketAddr,

    /// Where records are kept: file:DIR, memory: (for tests), or etcd://HOST:PORT,HOST:PORT/prefix
    #[arg(long, env = "ONCED_STORE", default_value_t = StoreUrl::default(), value_name = "URL")]
    pub store: StoreUrl,

    /// What to log to standard error: error, warn, info, debug or trace, or levels by target [default: RUST_LOG,
    /// else info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "write an IP address of this machine and a port: 127.0.0.1:7411, [::1]:7411, or 0.0.0.0:7411 for all"
            .to_owned()
    })
}

pub async fn run(args: ServeArgs) -> Exit {
    if let Err(error) = telemetry::init(args.log.as_deref()) {
        say(&error.to_string());
        return Exit::Usage;
    }
    let config = Config { listen: args.listen, store: args.store, ..Config::default() };
    match server::serve(config).await {
        Ok(()) => Exit::Done,
        Err(error) => {
            say(&error.to_string());
            Exit::Failed
        }
    }
}
