//! What all measurements share.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

#[derive(Args)]
pub struct Options {
    /// Bytes of an outcome
    #[arg(long, global = true, default_value_t = 256)]
    pub payload: usize,

    /// A running etcd to use; without it, each measurement starts an etcd of its own
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub etcd: Option<String>,

    /// Run etcd, where it has one member, on the first core alone, and all else on the others
    #[arg(long, global = true, conflicts_with = "etcd")]
    pub etcd_apart: bool,

    /// The core that etcd has for itself.
    #[arg(skip)]
    pub etcd_core: Option<usize>,

    /// The server program to measure [default: the `onced` beside this program]
    #[arg(long, global = true, value_name = "PATH")]
    pub onced: Option<PathBuf>,

    /// Connections of each way to etcd or to the server
    #[arg(long, global = true, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
    pub channels: u8,

    /// Connections to PostgreSQL in the pool
    #[arg(long, global = true, default_value = "64")]
    pub pool: NonZeroUsize,

    /// Threads of the load generator
    #[arg(long, global = true, default_value = "2")]
    pub workers: NonZeroUsize,

    /// Print the results as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// Reads a number of seconds.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "write a number of seconds, such as 3 or 0.5".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
