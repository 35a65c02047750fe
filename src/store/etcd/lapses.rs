//! Which lock leases are known to be over, and which watched records name which lease.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;

use lru::LruCache;

use super::super::hub::Hub;
use super::super::sync::{Arc, Mutex, MutexGuard, PoisonError};
use crate::record::RecordKey;
use crate::store::Revision;

/// How many leases that are over are remembered: for the rest, etcd is asked.
const GONE_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 16) - 1);

/// What is known of lapses. Cheap to clone.
#[derive(Clone)]
pub(super) struct Lapses {
    hub: Hub,
    known: Arc<Mutex<Known>>,
}

struct Known {
    /// Leases whose sentinel was seen to be gone. Ids are never used again, so that is for ever.
    gone: LruCache<i64, ()>,
    /// The lease that each watched record named at the newest revision that was read of it, and which that is; and
    /// the same the other way round.
    lease_of: HashMap<RecordKey, (Revision, i64)>,
    named_by: HashMap<i64, BTreeSet<RecordKey>>,
}

impl Lapses {
    /// Nothing known yet. Hints go to the watchers of `hub`.
    pub(super) fn new(hub: Hub) -> Self {
        let known =
            Known { gone: LruCache::new(GONE_MAX), lease_of: HashMap::new(), named_by: HashMap::new() };
        Self { hub, known: Arc::new(Mutex::new(known)) }
    }

    /// Notes the lock lease that a record was read to have, so that its watchers learn of the lapse. To be
    /// called before the sentinel is looked at, or a lapse in between is missed.
    pub(super) fn note(&self, key: &RecordKey, revision: Revision, lease: Option<i64>) {
        let mut known = self.known();
        // An answer may have been overtaken, and others wait for the end of the lease that came after.
        if known.lease_of.get(key).is_some_and(|(newest, _)| *newest > revision) {
            return;
        }
        known.forget(key);
        // Asked under the lock: see `forget`.
        if let Some(lease) = lease
            && self.hub.is_watched(key)
        {
            known.lease_of.insert(key.clone(), (revision, lease));
            known.named_by.entry(lease).or_default().insert(key.clone());
        }
    }

    /// Drops what was noted of a record that nobody watches any more. To be called after its last watcher
    /// left the hub: whoever notes it later finds nobody there, and whoever did before is undone here.
    pub(super) fn forget(&self, key: &RecordKey) {
        let mut known = self.known();
        if !self.hub.is_watched(key) {
            known.forget(key);
        }
    }

    /// Whether a lease is known to be over. If not, etcd has to be asked.
    pub(super) fn is_gone(&self, lease: i64) -> bool {
        self.known().gone.contains(&lease)
    }

    /// The sentinel of a lease was seen to be gone.
    pub(super) fn gone(&self, lease: i64) {
        let keys = {
            let mut known = self.known();
            known.gone.put(lease, ());
            let keys = known.named_by.remove(&lease).unwrap_or_default();
            for key in &keys {
                known.lease_of.remove(key);
            }
            keys
        };
        for key in keys {
            self.hub.changed(&key);
        }
    }

    /// Of how many records a lease is noted.
    #[cfg(test)]
    pub(super) fn noted(&self) -> usize {
        let known = self.known();
        assert_eq!(known.named_by.values().map(BTreeSet::len).sum::<usize>(), known.lease_of.len());
        known.lease_of.len()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn forget(&mut self, key: &RecordKey) {
        let Some((_, lease)) = self.lease_of.remove(key) else { return };
        if let Some(keys) = self.named_by.get_mut(&lease) {
            keys.remove(key);
            if keys.is_empty() {
                self.named_by.remove(&lease);
            }
        }
    }
}
