//! Logs, on standard error: standard output belongs to what the commands print.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// What is logged if nobody says otherwise.
const DEFAULT_FILTER: &str = "info";

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter cannot be read.
    #[error(
        "\"{filter}\" is not a log filter: {source}; write a level (error, warn, info, debug, trace), \
         or levels by target such as info,onced::store=debug"
    )]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Something else logs already.
    #[error("logging was set up before")]
    Twice,
}

/// Starts to log to standard error what `filter` lets through; if it is `None`, what the environment variable
/// `RUST_LOG` lets through, else `info` and above. To be called once, early in the process.
///
/// # Errors
/// If the filter cannot be read, or logging was set up before.
pub fn init(filter: Option<&str>) -> Result<(), Error> {
    let from_environment = || std::env::var("RUST_LOG").ok().filter(|text| !text.trim().is_empty());
    let filter =
        filter.map(str::to_owned).or_else(from_environment).unwrap_or_else(|| DEFAULT_FILTER.to_owned());
    let parsed = parse(&filter)?;
    tracing_subscriber::fmt()
        .compact()
        .with_env_filter(parsed)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init()
        .map_err(|_| Error::Twice)
}

fn parse(filter: &str) -> Result<EnvFilter, Error> {
    EnvFilter::builder().parse(filter).map_err(|source| Error::Filter { filter: filter.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_targets_are_filters_and_nonsense_is_named() {
        for filter in ["info", "warn,onced=debug", "onced::store=trace"] {
            assert!(parse(filter).is_ok(), "{filter}");
        }
        let error = parse("onced=loud").unwrap_err().to_string();
        assert!(error.contains("onced=loud") && error.contains("error, warn, info"), "{error}");
    }
}
