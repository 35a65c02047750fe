//! Logs, on standard error: standard output belongs to what the commands print.

pub mod metrics;
pub mod span;
pub mod trace;

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::reload;

use crate::clock::Moment;

/// The least time between two lines of which there may be very many.
const LINES_APART: Duration = Duration::from_secs(5);

/// Lets a first line through, then one in a while: what is away fails every call, and says the same of each.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    last: Option<Moment>,
    withheld: u64,
}

impl Throttle {
    /// Whether a line may be written now: then, how many were withheld since the last one.
    pub fn pass(&self, now: Moment) -> Option<u64> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.last.is_some_and(|last| now.since(last) < LINES_APART) {
            lines.withheld += 1;
            return None;
        }
        lines.last = Some(now);
        Some(std::mem::take(&mut lines.withheld))
    }
}

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
    /// The log is no longer written.
    #[error("the log is no longer written")]
    Over,
    /// Something else logs already.
    #[error("logging was set up before")]
    Twice,
}

/// The form of a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// For programs: an object of JSON for each line.
    Json,
}

/// Starts to log to standard error what `filter` lets through. To be called once, early in the process.
///
/// # Errors
/// If the filter cannot be read, or logging was set up before.
pub fn init(filter: &str, format: LogFormat) -> Result<Log, Error> {
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr);
    // Where a log cannot be written, telling so fails as well, and would end the process.
    let lines = lines.log_internal_errors(false);
    let filter = parse(filter)?;
    match format {
        LogFormat::Pretty => {
            let lines = lines.compact().with_ansi(std::io::stderr().is_terminal());
            let lines = lines.with_env_filter(filter).with_filter_reloading();
            let handle = lines.reload_handle();
            lines.try_init().map_err(|_| Error::Twice)?;
            Ok(Log(Box::new(move |filter| handle.reload(filter))))
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
            let lines = lines.with_env_filter(filter).with_filter_reloading();
            let handle = lines.reload_handle();
            lines.try_init().map_err(|_| Error::Twice)?;
            Ok(Log(Box::new(move |filter| handle.reload(filter))))
        }
    }
}

/// What is logged, to be changed.
pub struct Log(Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl Log {
    /// Logs what `filter` lets through from now on.
    ///
    /// # Errors
    /// If the filter cannot be read, or nothing is logged any more.
    pub fn set(&self, filter: &str) -> Result<(), Error> {
        (self.0)(parse(filter)?).map_err(|_| Error::Over)
    }
}

/// Whether a filter can be read.
///
/// # Errors
/// If it cannot.
pub fn check(filter: &str) -> Result<(), Error> {
    parse(filter).map(drop)
}

fn parse(filter: &str) -> Result<EnvFilter, Error> {
    EnvFilter::builder().parse(filter).map_err(|source| Error::Filter { filter: filter.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_line_passes_then_one_in_a_while_with_the_number_of_those_withheld() {
        let throttle = Throttle::default();
        let at = [0, 1, 4_999, 5_000, 5_001, 60_000, 65_000];
        let passed = at.map(|ms| throttle.pass(Moment::from_start(Duration::from_millis(ms))));
        assert_eq!(passed, [Some(0), None, None, Some(2), None, Some(1), Some(0)]);
    }

    #[test]
    fn levels_and_targets_are_filters_and_nonsense_is_named() {
        for filter in ["info", "warn,onced=debug", "onced::store=trace"] {
            assert!(parse(filter).is_ok(), "{filter}");
        }
        let error = parse("onced=loud").unwrap_err().to_string();
        assert!(error.contains("onced=loud") && error.contains("error, warn, info"), "{error}");
    }
}
