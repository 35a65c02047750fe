//! What is counted of trips to the store, and of claims.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use tokio::time::error::Elapsed;

use crate::store::{Loaded, Page, StoreError, Swapped, Watch};
use crate::telemetry::metrics::{
    CLAIMS_OPEN, LATE_COMPLETES, RECORDS_CORRUPT, REPLAYS, ROOMS, STORE_OPERATION_DURATION, Times,
    UNRECEIVED_CLAIMS,
};
use crate::telemetry::span::Span;

/// A kind of trip to the store, in the order of [`TRIPS`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Trip {
    Load,
    Check,
    Swap,
    Watch,
    Scan,
}

const TRIPS: [&str; 5] = ["load", "check", "swap", "watch", "scan"];
/// The same as spans.
const SPANS: [&str; 5] = ["store.load", "store.check", "store.swap", "store.watch", "store.scan"];

impl Trip {
    /// The name of its span.
    pub(super) fn span(self) -> &'static str {
        SPANS[self as usize]
    }
}

/// What one came to, in the order of [`OUTCOMES`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    Done,
    Conflict,
    NotApplied,
    Unknown,
    Full,
    Corrupt,
    Timeout,
}

const OUTCOMES: [&str; 7] = ["done", "conflict", "not_applied", "unknown", "full", "corrupt", "timeout"];

impl Outcome {
    /// Says in the span of a trip what it came to.
    pub(super) fn tell(self, span: &mut Span) {
        let name = OUTCOMES[self as usize];
        span.set("onced.outcome", name);
        match self {
            Outcome::Done | Outcome::Conflict => {}
            Outcome::NotApplied | Outcome::Unknown | Outcome::Full | Outcome::Corrupt | Outcome::Timeout => {
                span.failed(name);
            }
        }
    }

    pub(super) fn of<'a, T>(came: &'a Result<Result<T, StoreError>, Elapsed>) -> Self
    where
        Outcome: From<&'a T>,
    {
        match came {
            Ok(Ok(done)) => Outcome::from(done),
            Ok(Err(StoreError::NotApplied(_))) => Outcome::NotApplied,
            Ok(Err(StoreError::OutcomeUnknown(_))) => Outcome::Unknown,
            Ok(Err(StoreError::Full(_))) => Outcome::Full,
            Ok(Err(StoreError::Corrupt { .. })) => Outcome::Corrupt,
            Err(_) => Outcome::Timeout,
        }
    }
}

/// What a check of what is in memory brought; `None`: it no longer stands.
pub(super) struct Checked(pub(super) Option<Loaded>);

impl From<&Checked> for Outcome {
    fn from(checked: &Checked) -> Self {
        match checked.0 {
            Some(_) => Outcome::Done,
            None => Outcome::Conflict,
        }
    }
}

impl From<&Swapped> for Outcome {
    fn from(swapped: &Swapped) -> Self {
        match swapped {
            Swapped::Done(_) => Outcome::Done,
            Swapped::Conflict(_) => Outcome::Conflict,
        }
    }
}

macro_rules! done {
    ($($answer:ty)*) => {
        $(impl From<&$answer> for Outcome {
            fn from(_: &$answer) -> Self {
                Outcome::Done
            }
        })*
    };
}

done!(Option<Loaded> Watch Page);

/// The meters of a coordinator.
pub(super) struct Meters {
    trips: Times,
    corrupt: Counter,
    /// Outcomes that came after the lapse of their claim.
    pub(super) late_completes: Counter,
    /// Claims that nobody received, given back.
    pub(super) given_back: Counter,
    /// And not given back.
    pub(super) kept: Counter,
    /// Outcomes told that were read for their caller.
    pub(super) replays_of_store: Counter,
    /// And that were known here.
    pub(super) replays_of_memory: Counter,
    pub(super) claims: Gauge,
    pub(super) rooms: Gauge,
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            trips: Times::new(TRIPS.len() * OUTCOMES.len()),
            // Shown before there is one: of a count that begins with one, nobody can tell that it grew.
            corrupt: counter!(RECORDS_CORRUPT),
            late_completes: counter!(LATE_COMPLETES),
            given_back: counter!(UNRECEIVED_CLAIMS, "end" => "given_back"),
            kept: counter!(UNRECEIVED_CLAIMS, "end" => "kept"),
            replays_of_store: counter!(REPLAYS, "source" => "store"),
            replays_of_memory: counter!(REPLAYS, "source" => "memory"),
            claims: gauge!(CLAIMS_OPEN),
            rooms: gauge!(ROOMS),
        }
    }
}

impl Meters {
    /// Counts a trip to the store.
    pub(super) fn trip(&self, trip: Trip, outcome: Outcome, took: Duration) {
        if let Outcome::Corrupt = outcome {
            self.corrupt.increment(1);
        }
        let (trip, outcome) = (trip as usize, outcome as usize);
        let make = || -> Histogram {
            let (operation, outcome) = (TRIPS[trip], OUTCOMES[outcome]);
            histogram!(STORE_OPERATION_DURATION, "operation" => operation, "outcome" => outcome)
        };
        self.trips.record(trip * OUTCOMES.len() + outcome, took, make);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_in_the_order_of_what_they_name() {
        let snake = |debug: String| {
            debug.char_indices().fold(String::new(), |name, (i, c)| match c.is_ascii_uppercase() && i > 0 {
                true => name + "_" + &c.to_ascii_lowercase().to_string(),
                false => name + &c.to_ascii_lowercase().to_string(),
            })
        };
        for trip in [Trip::Load, Trip::Check, Trip::Swap, Trip::Watch, Trip::Scan] {
            assert_eq!(TRIPS[trip as usize], snake(format!("{trip:?}")));
            assert_eq!(trip.span(), format!("store.{}", TRIPS[trip as usize]));
        }
        use Outcome::{Conflict, Corrupt, Done, Full, NotApplied, Timeout, Unknown};
        for outcome in [Done, Conflict, NotApplied, Unknown, Full, Corrupt, Timeout] {
            assert_eq!(OUTCOMES[outcome as usize], snake(format!("{outcome:?}")));
        }
    }
}
