//! What this process takes of its machine, as far as the system tells.

use std::fs;

use metrics::gauge;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use crate::clock::wall_time;
use crate::telemetry::metrics::{CPU, MAX_FDS, OPEN_FDS, RESIDENT_MEMORY, START_TIME};

/// Tells the metrics that this process has started.
pub(super) fn started() {
    gauge!(START_TIME).set(wall_time().as_micros() as f64 / 1e6);
}

/// Tells the metrics what it takes now.
pub(super) fn count() {
    if let Some(taken) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Taken::parse) {
        gauge!(CPU).set(taken.ticks as f64 / clock_ticks_per_second() as f64);
        gauge!(RESIDENT_MEMORY).set(taken.pages as f64 * page_size() as f64);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        gauge!(OPEN_FDS).set(open.count() as f64);
    }
    gauge!(MAX_FDS).set(getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, |max| max as f64));
}

/// What Linux tells in `/proc/self/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Taken {
    /// The processor time, of the process and of the system for it.
    ticks: u64,
    /// The memory.
    pages: u64,
}

impl Taken {
    fn parse(stat: &str) -> Option<Self> {
        // The second field is the name of the program in parentheses, which may hold any of both, and spaces.
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        // proc(5) counts from 1, and this begins with the third.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self { ticks: field(14)? + field(15)?, pages: field(24)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_whatever_the_program_is_called() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 4 0 123 99999 321 18446744073709551615";
        assert_eq!(Taken::parse(stat), Some(Taken { ticks: 300, pages: 321 }));
        assert_eq!(Taken::parse("7 (a) S"), None);
    }
}
