//! When locks lapse and records expire: by the clock of this process alone.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::layout::Counters;
use crate::clock::{Clock, Moment};
use crate::record::{Lifetime, Lock, Record};
use crate::store::Revision;

/// Whether a record kept until then has expired by this running time.
pub(super) fn expired_by(keep_until_ms: u64, running_ms: u64) -> bool {
    keep_until_ms != 0 && running_ms >= keep_until_ms
}

/// The times of a store.
///
/// A lock counts from the commit that armed it. What was armed before this process started counts from
/// the opening of the store: longer than asked, never shorter.
///
/// Retention counts in running time: how long the store has been open in all. It is written down with every
/// commit, and a crash loses what came after the last one, so that records are kept longer, never shorter.
pub(super) struct Times {
    clock: Clock,
    opened: Moment,
    /// The counters when the store was opened.
    before: Counters,
    /// The locks armed by this process, each by the revision of its write; `None` while that write is being
    /// committed. A revision newer than `before` that is not here has no lock any more: it was replaced.
    armed: Mutex<HashMap<Revision, Option<Moment>>>,
}

impl Times {
    pub(super) fn new(clock: Clock, before: Counters) -> Self {
        let opened = clock.now();
        Self { clock, opened, before, armed: Mutex::default() }
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// How long the store has been running in all, in milliseconds.
    pub(super) fn running_ms(&self) -> u64 {
        let elapsed = self.clock.now().since(self.opened);
        self.before.running_ms.saturating_add(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }

    /// Until when to keep a record that is written now, in running milliseconds; 0: for ever.
    pub(super) fn keep_until_ms(&self, record: &Record) -> u64 {
        match record.lifetime() {
            Lifetime::Forever => 0,
            Lifetime::AtLeast(lifetime) => {
                // The millisecond under way counts as not begun.
                let lifetime_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
                self.running_ms().saturating_add(lifetime_ms)
            }
        }
    }

    /// Whether a record kept until then has expired.
    pub(super) fn is_expired(&self, keep_until_ms: u64) -> bool {
        expired_by(keep_until_ms, self.running_ms())
    }

    /// The lock of a record written at `revision`; `None` if that write has been replaced meanwhile.
    pub(super) fn lock(&self, record: &Record, revision: Revision) -> Option<Lock> {
        let Some(lock_ttl) = record.lock_ttl() else { return Some(Lock::Held) };
        let lapsed = match self.armed_at(revision)? {
            Some(armed) => self.clock.now().since(armed) >= lock_ttl,
            None => false,
        };
        Some(if lapsed { Lock::Lapsed } else { Lock::Held })
    }

    /// When something will befall a record written at `revision` by the passing of time: its lapse, if its
    /// lock is armed, and its expiry, if it does not stay for ever.
    pub(super) fn moments(&self, record: &Record, revision: Revision, keep_until_ms: u64) -> Vec<Moment> {
        let armed = self.armed_at(revision).flatten();
        let lapse = record.lock_ttl().zip(armed).map(|(lock_ttl, armed)| armed + lock_ttl);
        let left_at_opening = Duration::from_millis(keep_until_ms.saturating_sub(self.before.running_ms));
        let expiry = (keep_until_ms != 0).then(|| self.opened + left_at_opening);
        lapse.into_iter().chain(expiry).collect()
    }

    /// A record with a lock is about to be committed. Once committed it can be read, so this comes before.
    pub(super) fn arming(&self, revision: Revision) {
        self.armed().insert(revision, None);
    }

    /// It was committed: its lock counts from now.
    pub(super) fn arm(&self, revision: Revision) {
        let now = self.clock.now();
        if let Some(armed) = self.armed().get_mut(&revision) {
            *armed = Some(now);
        }
    }

    /// What was written at `revision` is gone.
    pub(super) fn disarm(&self, revision: Revision) {
        self.armed().remove(&revision);
    }

    /// How many locks of this process are known.
    #[cfg(test)]
    pub(super) fn locks(&self) -> usize {
        self.armed().len()
    }

    fn armed_at(&self, revision: Revision) -> Option<Option<Moment>> {
        if revision <= self.before.revision {
            return Some(Some(self.opened));
        }
        self.armed().get(&revision).copied()
    }

    fn armed(&self) -> MutexGuard<'_, HashMap<Revision, Option<Moment>>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
