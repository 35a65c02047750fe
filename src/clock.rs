//! The only place of the server that reads time: [`Clock`] for everything that is measured or waited for,
//! [`wall_time`] for what people read.

use std::time::{SystemTime, UNIX_EPOCH};

pub use onced_client::clock::{Clock, Moment};

use crate::record::Timestamp;

/// The wall time now, for display, for announced times, and for how long tokens and certificates hold: what becomes
/// of a record never rests on it.
#[allow(clippy::disallowed_methods)] // This is where time is read.
pub fn wall_time() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
}
