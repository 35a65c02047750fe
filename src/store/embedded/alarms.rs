//! Hints at what happens by the passing of time: lapses and expiries of watched records.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::super::hub::Hub;
use super::super::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use crate::clock::{Clock, Moment};
use crate::record::RecordKey;
use crate::store::Revision;

/// The longest sleep while an alarm is set. Sleeps do not count the time a machine is suspended, and the
/// clock does: after waking up, what fell due meanwhile is noticed within this.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// The moments at which watchers are to be told to look again.
#[derive(Default)]
pub(super) struct Alarms {
    set: Mutex<Set>,
    changed: Condvar,
}

#[derive(Default)]
struct Set {
    /// The moments of each key, and the revision they are from.
    of_key: HashMap<RecordKey, (Revision, Vec<Moment>)>,
    in_order: BTreeSet<(Moment, RecordKey)>,
    closed: bool,
}

impl Alarms {
    /// Sets the alarms of a key, in place of those of earlier revisions.
    pub(super) fn set(&self, key: &RecordKey, revision: Revision, moments: Vec<Moment>) {
        let mut set = self.lock();
        // Whoever begins to watch reads by himself, and may come later than the writer of what follows.
        if set.of_key.get(key).is_some_and(|(newest, _)| *newest > revision) {
            return;
        }
        set.clear(key);
        set.in_order.extend(moments.iter().map(|moment| (*moment, key.clone())));
        set.of_key.insert(key.clone(), (revision, moments));
        self.changed.notify_one();
    }

    /// Clears the alarms of a key if nobody watches it any more.
    pub(super) fn clear_unwatched(&self, key: &RecordKey, hub: &Hub) {
        // Both under the lock: a new watcher registers before it sets its alarms.
        let mut set = self.lock();
        if !hub.is_watched(key) {
            set.clear(key);
        }
    }

    /// Rings until closed.
    pub(super) fn run(&self, clock: &Clock, hub: &Hub) {
        let mut set = self.lock();
        while !set.closed {
            let now = clock.now();
            let due = set.take_due(now);
            if !due.is_empty() {
                drop(set);
                due.iter().for_each(|key| hub.changed(key));
                set = self.lock();
                continue;
            }
            let first = set.in_order.first().map(|(moment, _)| moment.since(now).min(SLEEP_MAX));
            set = match first {
                Some(sleep) => {
                    self.changed.wait_timeout(set, sleep).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(set).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Ends `run`.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// How many alarms are set.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock().in_order.len()
    }

    fn lock(&self) -> MutexGuard<'_, Set> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Set {
    fn clear(&mut self, key: &RecordKey) {
        for moment in self.of_key.remove(key).into_iter().flat_map(|(_, moments)| moments) {
            self.in_order.remove(&(moment, key.clone()));
        }
    }

    fn take_due(&mut self, now: Moment) -> Vec<RecordKey> {
        let mut due = Vec::new();
        while self.in_order.first().is_some_and(|(moment, _)| *moment <= now) {
            due.extend(self.in_order.pop_first().map(|(_, key)| key));
        }
        due
    }
}
