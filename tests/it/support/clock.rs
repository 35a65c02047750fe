//! A clock that stands still until a test moves it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use onced::clock::{Clock, Moment};

/// A clock that a test moves by hand.
#[derive(Clone)]
pub struct ManualClock {
    millis: Arc<AtomicU64>,
}

impl ManualClock {
    /// A clock that stands at some moment well after its start.
    pub fn new() -> Self {
        Self { millis: Arc::new(AtomicU64::new(1_000_000)) }
    }

    /// The clock to inject.
    pub fn clock(&self) -> Clock {
        let millis = Arc::clone(&self.millis);
        Clock::from_fn(move || Moment::from_start(Duration::from_millis(millis.load(Ordering::SeqCst))))
    }

    /// Lets time pass.
    pub fn advance(&self, time: Duration) {
        self.millis.fetch_add(u64::try_from(time.as_millis()).expect("a sane time"), Ordering::SeqCst);
    }
}
