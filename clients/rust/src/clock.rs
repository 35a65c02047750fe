//! The one place that reads time. A claim's holder counts its lock on this clock, so it must go on while
//! the machine is suspended: a holder that slept must not think that its lock still lives.

use std::ops::{Add, Sub};
use std::sync::Arc;
use std::time::Duration;

/// A point in time on a [`Clock`]. Only differences mean anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// The moment `since_start` after the clock's own start.
    pub const fn from_start(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, time: Duration) -> Moment {
        Moment(self.0.saturating_add(time))
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;

    fn sub(self, time: Duration) -> Moment {
        Moment(self.0.saturating_sub(time))
    }
}

/// A source of time, injected so that tests can move it.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Moment + Send + Sync>);

impl Clock {
    /// The system's clock: `CLOCK_BOOTTIME` where there is one, else the larger of monotonic and wall time
    /// elapsed since the clock was made.
    pub fn system() -> Self {
        Self(system())
    }

    /// A clock that reads whatever `now` says.
    pub fn from_fn(now: impl Fn() -> Moment + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time now.
    pub fn now(&self) -> Moment {
        (self.0)()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clock({:?})", self.now())
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn system() -> Arc<dyn Fn() -> Moment + Send + Sync> {
    use rustix::time::{ClockId, clock_gettime};
    Arc::new(|| {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
        Moment(Duration::new(seconds, nanos))
    })
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
#[allow(clippy::disallowed_methods)] // This is where time is read.
fn system() -> Arc<dyn Fn() -> Moment + Send + Sync> {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Instant, SystemTime};
    let (monotonic, wall) = (Instant::now(), SystemTime::now());
    let latest = AtomicU64::new(0);
    Arc::new(move || {
        let elapsed = monotonic.elapsed().max(wall.elapsed().unwrap_or_default());
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        // Wall time may be set back; a clock that goes backward would lengthen locks.
        let latest = latest.fetch_max(nanos, Ordering::Relaxed).max(nanos);
        Moment(Duration::from_nanos(latest))
    })
}
