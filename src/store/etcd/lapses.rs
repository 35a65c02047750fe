//! Which lock leases are known to be over, and which watched records name which lease.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::record::RecordKey;
use crate::store::hub::Hub;

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
    /// The lease that each watched record named when it was last read, and the same the other way round.
    lease_of: HashMap<RecordKey, i64>,
    named_by: HashMap<i64, HashSet<RecordKey>>,
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
    pub(super) fn note(&self, key: &RecordKey, lease: Option<i64>) {
        let mut known = self.known();
        known.forget(key);
        // Asked under the lock: see `forget`.
        if let Some(lease) = lease
            && self.hub.is_watched(key)
        {
            known.lease_of.insert(key.clone(), lease);
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

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn forget(&mut self, key: &RecordKey) {
        let Some(lease) = self.lease_of.remove(key) else { return };
        if let Some(keys) = self.named_by.get_mut(&lease) {
            keys.remove(key);
            if keys.is_empty() {
                self.named_by.remove(&lease);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::record::{Key, Namespace};

    fn key(name: &str) -> RecordKey {
        RecordKey { namespace: Namespace::new("n").unwrap(), key: Key::new(name).unwrap() }
    }

    async fn hinted(watch: &mut crate::store::Watch) -> bool {
        tokio::time::timeout(Duration::from_millis(20), watch.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn a_lapse_hints_the_watchers_of_the_records_that_name_the_lease() {
        let hub = Hub::default();
        let lapses = Lapses::new(hub.clone());
        let (mut moved, mut held) = (hub.watch(&key("moved"), None), hub.watch(&key("held"), None));
        lapses.note(&key("moved"), Some(1));
        lapses.note(&key("held"), Some(1));
        lapses.note(&key("moved"), Some(2));
        lapses.gone(1);
        assert!(hinted(&mut held).await);
        assert!(!hinted(&mut moved).await);
        assert!(lapses.is_gone(1));
        assert!(!lapses.is_gone(2));
        lapses.gone(2);
        assert!(hinted(&mut moved).await);
    }

    #[test]
    fn nothing_is_kept_of_records_that_nobody_watches() {
        let hub = Hub::default();
        let lapses = Lapses::new(hub.clone());
        lapses.note(&key("never"), Some(1));
        let (one, other) = (hub.watch(&key("left"), None), hub.watch(&key("left"), None));
        lapses.note(&key("left"), Some(1));
        drop(one);
        lapses.forget(&key("left"));
        assert_eq!(lapses.known().lease_of.len(), 1);
        drop(other);
        lapses.forget(&key("left"));
        let known = lapses.known();
        assert!(known.lease_of.is_empty() && known.named_by.is_empty());
    }
}
