//! Shared leases. Locks hang on them by a sentinel, records by their retention; a lease per record would cost
//! etcd more than the records do.
//!
//! A lease of a length serves whatever needs less, as long as that much of it is left, counted from before
//! its grant was sent: so nothing ever ends early. Lengths come from a coarse grid, so that few are in use.
//! The next lease is granted while the last one still serves, and as long as the next use can be expected, so that
//! callers seldom wait for a grant, and a length that is not in use costs nothing.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::Shared;
use metrics::{Counter, counter};

use super::call_error::CallError;
use super::client::EtcdClient;
use super::keyspace::Keyspace;
use crate::clock::{Clock, Moment};
use crate::telemetry::metrics::{ETCD_LEASES_DISCARDED, ETCD_LEASES_GRANTED};

/// The most records on one retention lease. etcd stands still while it removes the keys of a lease, about 4 µs for
/// each, and revokes up to 16 leases that ended together one after the other: a caller waits for 32 ms then.
const RECORDS_PER_LEASE: u32 = 500;

/// How long after its last use a length still has a lease at hand, at most.
const KEPT_FOR_MAX: Duration = Duration::from_secs(60);

/// A granted lease.
#[derive(Debug)]
pub(super) struct Lease {
    /// Its id, positive and chosen by us.
    pub(super) id: i64,
    length: Duration,
    /// Before the grant was sent: etcd counts from later.
    sent: Moment,
    uses: AtomicU32,
}

impl Lease {
    /// How long the lease can still be given out for `time`; `None` if that much of it is no longer left.
    fn window(&self, time: Duration, now: Moment) -> Option<Duration> {
        self.length.checked_sub(now.since(self.sent))?.checked_sub(time)
    }
}

/// What leases are for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// Locks: each lease carries one sentinel, in this keyspace.
    Locks(Keyspace),
    /// The retention of records, which hang on the lease themselves.
    Retention,
}

impl Purpose {
    fn name(&self) -> &'static str {
        match self {
            Purpose::Locks(_) => "lock",
            Purpose::Retention => "retention",
        }
    }

    /// How often one lease is given out.
    fn uses_max(&self) -> u32 {
        match self {
            Purpose::Locks(_) => u32::MAX,
            Purpose::Retention => RECORDS_PER_LEASE,
        }
    }
}

/// A grant on its way, shared by all who wait for it.
type Grant = Shared<Pin<Box<dyn Future<Output = Result<(), CallError>> + Send>>>;

/// The leases of one length.
#[derive(Default)]
struct Line {
    ready: Option<Arc<Lease>>,
    granting: Option<Grant>,
    /// When one was last taken.
    taken: Option<Moment>,
    /// The longest time that one was taken for, since this was last begun to be kept.
    longest: Duration,
    /// Whether a task sees to it that one is ready.
    kept: bool,
    /// For how long after the last use it does.
    kept_for: Duration,
}

impl Line {
    /// Half of the time in which a lease of this length is given out.
    fn half_window(&self, length: Duration) -> Duration {
        length.saturating_sub(self.longest) / 2
    }
}

/// Leases for one purpose. Cheap to clone.
#[derive(Clone)]
pub(super) struct Leases(Arc<Inner>);

struct Inner {
    client: EtcdClient,
    clock: Clock,
    purpose: Purpose,
    /// By length in seconds.
    lines: Mutex<HashMap<u64, Line>>,
    granted: Counter,
    discarded: Counter,
}

impl Leases {
    /// No leases yet.
    pub(super) fn new(client: EtcdClient, clock: Clock, purpose: Purpose) -> Self {
        let granted = counter!(ETCD_LEASES_GRANTED, "purpose" => purpose.name());
        let discarded = counter!(ETCD_LEASES_DISCARDED, "purpose" => purpose.name());
        Self(Arc::new(Inner { client, clock, purpose, lines: Mutex::default(), granted, discarded }))
    }

    /// A lease that lives for at least `time` from now. Waits for one as long as it takes.
    ///
    /// # Errors
    /// Why none could be granted.
    pub(super) async fn take(&self, time: Duration) -> Result<Arc<Lease>, CallError> {
        let seconds = length_for(time);
        // A grant may be used up by those who came before, or come too late to be used: then the next one. The
        // caller bounds the time.
        loop {
            match self.try_take(seconds, time) {
                Ok(lease) => return Ok(lease),
                Err(granting) => granting.await?,
            }
        }
    }

    /// Never gives out this lease again: etcd does not know it any more, or may not.
    pub(super) fn discard(&self, lease: Option<&Arc<Lease>>) {
        let Some(lease) = lease else { return };
        let taken = |line: &mut Line| line.ready.take_if(|ready| Arc::ptr_eq(ready, lease)).is_some();
        // All writes of a transaction that failed come here, and one of them finds it.
        if self.0.lines().values_mut().any(taken) {
            let purpose = self.0.purpose.name();
            self.0.discarded.increment(1);
            tracing::info!(
                lease = format!("{:x}", lease.id),
                purpose,
                "dropped a lease that etcd may not have any more"
            );
        }
    }

    /// A lease that lives for at least `time` from now, if there is one at hand.
    pub(super) fn take_ready(&self, time: Duration) -> Option<Arc<Lease>> {
        self.try_take(length_for(time), time).ok()
    }

    /// The lease at hand, or the grant that will bring the next one.
    fn try_take(&self, seconds: u64, time: Duration) -> Result<Arc<Lease>, Grant> {
        let mut lines = self.0.lines();
        let line = lines.entry(seconds).or_default();
        let now = self.0.clock.now();
        let idle = line.taken.replace(now).map(|taken| now.since(taken));
        if !std::mem::replace(&mut line.kept, true) {
            line.longest = Duration::ZERO;
            tokio::spawn(keep(Arc::downgrade(&self.0), seconds));
        }
        line.longest = line.longest.max(time);
        let uses_max = self.0.purpose.uses_max();
        if let Some(lease) = line.ready.clone()
            && let Some(window) = lease.window(time, now)
            && lease.uses.load(Ordering::Relaxed) < uses_max
        {
            // The line's mutex is held: no other use comes between the check and this.
            let uses = lease.uses.fetch_add(1, Ordering::Relaxed);
            let worn = uses >= uses_max / 2 || window * 2 < lease.length.saturating_sub(time);
            if worn {
                // It runs without being waited for.
                drop(self.granting(line, seconds));
            }
            return Ok(lease);
        }
        line.kept_for = kept_for(line.kept_for, idle, Duration::from_secs(seconds));
        Err(self.granting(line, seconds))
    }

    /// Has the next lease of a length granted if there is none at hand that will serve for a while. Tells in what
    /// time to look again; `None` if none was taken for so long that this is not worth while.
    fn look_after(&self, seconds: u64) -> Option<Duration> {
        let mut lines = self.0.lines();
        let line = lines.entry(seconds).or_default();
        let now = self.0.clock.now();
        if line.taken.is_none_or(|taken| now.since(taken) > line.kept_for) {
            line.kept = false;
            return None;
        }
        let half_window = line.half_window(Duration::from_secs(seconds));
        if line.ready.as_ref().is_none_or(|ready| now.since(ready.sent) >= half_window / 2) {
            drop(self.granting(line, seconds));
        }
        Some(half_window)
    }

    /// The grant under way; begins one if there is none.
    fn granting(&self, line: &mut Line, seconds: u64) -> Grant {
        if let Some(granting) = line.granting.as_ref().filter(|granting| granting.peek().is_none()) {
            return granting.clone();
        }
        // A task of its own, so that a caller who goes away takes nobody's lease with it.
        let task = tokio::spawn(Arc::clone(&self.0).grant_next(seconds));
        let ended = |_| Err(CallError::Unknown("the grant of a lease was given up".to_owned()));
        let granting: Grant = task.map(move |granted| granted.unwrap_or_else(ended)).boxed().shared();
        line.granting = Some(granting.clone());
        granting
    }
}

/// Sees to it that a lease of a length is ready, as long as that is worth while.
async fn keep(leases: Weak<Inner>, seconds: u64) {
    while let Some(again) = leases.upgrade().and_then(|inner| Leases(inner).look_after(seconds)) {
        tokio::time::sleep(again).await;
    }
}

/// For how long after its last use a length is to have a lease at hand, when somebody found none: as long as one
/// lease, and when callers come at longer intervals, twice as long as these, so that the next one need not wait.
fn kept_for(last: Duration, idle: Option<Duration>, length: Duration) -> Duration {
    let wanted = match idle {
        Some(idle) if idle <= KEPT_FOR_MAX => last.max(2 * idle),
        Some(_) | None => length,
    };
    wanted.min(KEPT_FOR_MAX)
}

impl Inner {
    fn lines(&self) -> MutexGuard<'_, HashMap<u64, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn grant_next(self: Arc<Self>, seconds: u64) -> Result<(), CallError> {
        let granted = self.grant(seconds).await;
        let mut lines = self.lines();
        let line = lines.entry(seconds).or_default();
        line.granting = None;
        line.ready = Some(Arc::new(granted?));
        Ok(())
    }

    async fn grant(&self, seconds: u64) -> Result<Lease, CallError> {
        let id = fastrand::i64(1..=i64::MAX);
        let sent = self.clock.now();
        let ttl = i64::try_from(seconds).unwrap_or(i64::MAX);
        match self.client.grant(id, ttl).await {
            // The id tells the lease from every other: if it exists now, the first grant arrived.
            Err(CallError::Unknown(_)) => match self.client.grant(id, ttl).await {
                Err(CallError::LeaseExists) => {}
                again => again?,
            },
            granted => granted?,
        }
        if let Purpose::Locks(keyspace) = &self.purpose {
            // A sentinel not known to be there is no lock. Repeating the put is harmless: it needs the lease.
            match self.client.put_sentinel(keyspace.sentinel(id), id).await {
                Err(CallError::Unknown(_)) => self.client.put_sentinel(keyspace.sentinel(id), id).await?,
                put => put?,
            }
        }
        self.granted.increment(1);
        Ok(Lease { id, length: Duration::from_secs(seconds), sent, uses: AtomicU32::new(0) })
    }
}

/// The length of the leases that serve `time`, in seconds: an eighth more, during which one is given out,
/// rounded up to whole seconds and to a grid of eight steps for each power of two.
fn length_for(time: Duration) -> u64 {
    let wanted = time.saturating_add(time / 8);
    let seconds = wanted.as_secs().saturating_add(u64::from(wanted.subsec_nanos() > 0)).max(1);
    let step = (1 << seconds.ilog2() >> 3).max(1);
    seconds.checked_next_multiple_of(step).unwrap_or(seconds)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::record::limits::{LOCK_TTL_MAX, LOCK_TTL_MIN, RETENTION_MAX};

    #[test]
    fn a_lease_is_a_little_longer_than_what_it_serves() {
        let mut time = LOCK_TTL_MIN;
        while time < RETENTION_MAX * 2 {
            let length = Duration::from_secs(length_for(time));
            let window = length.checked_sub(time).unwrap();
            assert!(window >= time / 8, "{time:?} {length:?}");
            // An eighth to give it out, an eighth of that sum by the grid, a second by rounding.
            assert!(length <= (time + time / 8) * 9 / 8 + Duration::from_secs(1), "{time:?} {length:?}");
            time += time / 97 + Duration::from_millis(1);
        }
    }

    #[test]
    fn all_lock_ttls_together_need_few_lengths() {
        let millis = LOCK_TTL_MIN.as_millis()..=LOCK_TTL_MAX.as_millis();
        let ttls = millis.step_by(100).map(|ttl| Duration::from_millis(ttl.try_into().unwrap()));
        let lengths: HashSet<_> = ttls.map(length_for).collect();
        assert!(lengths.len() <= 80, "{}", lengths.len());
    }

    #[test]
    fn a_length_is_kept_for_as_long_as_its_callers_stay_away_within_a_minute() {
        let seconds = Duration::from_secs;
        let length = seconds(3);
        let first = kept_for(Duration::ZERO, None, length);
        assert_eq!(first, length);
        let rhythm = kept_for(first, Some(seconds(10)), length);
        assert_eq!(rhythm, seconds(20));
        assert_eq!(kept_for(rhythm, Some(Duration::ZERO), length), rhythm, "others wait for the same grant");
        assert_eq!(kept_for(rhythm, Some(seconds(59)), length), KEPT_FOR_MAX);
        assert_eq!(kept_for(rhythm, Some(seconds(61)), length), length, "too seldom to be worth while");
        assert_eq!(kept_for(Duration::ZERO, None, seconds(100_000)), KEPT_FOR_MAX);
    }

    #[test]
    fn a_lease_is_given_out_only_while_enough_of_it_is_left() {
        let at = |seconds: f64| Moment::from_start(Duration::from_secs_f64(seconds));
        let seconds = Duration::from_secs;
        let lease = Lease { id: 1, length: seconds(36), sent: at(100.0), uses: AtomicU32::new(0) };
        assert_eq!(lease.window(seconds(30), at(100.0)), Some(seconds(6)));
        assert_eq!(lease.window(seconds(30), at(106.0)), Some(seconds(0)));
        assert_eq!(lease.window(seconds(30), at(106.1)), None);
        assert_eq!(lease.window(seconds(2), at(134.0)), Some(seconds(0)));
        assert_eq!(lease.window(seconds(2), at(200.0)), None);
    }
}
