//! Who watches which key, in this process. Both stores tell it of changes; it passes the hint on.

use std::collections::BTreeMap;

use tokio::sync::watch;

use super::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use crate::record::RecordKey;

/// The watchers of a store, in order: what happens to all of them happens the same way each time.
#[derive(Clone, Default)]
pub(super) struct Hub(Arc<Mutex<BTreeMap<RecordKey, watch::Sender<()>>>>);

/// A stream of hints that a record may have changed.
pub struct Watch {
    changes: watch::Receiver<()>,
    _registration: Registration,
}

struct Registration {
    hub: Weak<Mutex<BTreeMap<RecordKey, watch::Sender<()>>>>,
    key: RecordKey,
    on_end: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Watch {
    /// Waits for the next hint. Hints that come while nobody waits are one.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The store is gone: no more hints. The waiter's own poll goes on.
            std::future::pending::<()>().await;
        }
    }
}

impl Hub {
    /// Registers a watcher; `on_end` runs when it is dropped.
    pub(super) fn watch(&self, key: &RecordKey, on_end: Option<Box<dyn FnOnce() + Send + Sync>>) -> Watch {
        let changes = self.lock().entry(key.clone()).or_default().subscribe();
        let registration = Registration { hub: Arc::downgrade(&self.0), key: key.clone(), on_end };
        Watch { changes, _registration: registration }
    }

    /// Tells the watchers of a key that it may have changed.
    pub(super) fn changed(&self, key: &RecordKey) {
        if let Some(sender) = self.lock().get(key) {
            sender.send_replace(());
        }
    }

    /// Tells all watchers: what happened meanwhile is not known.
    pub(super) fn all_changed(&self) {
        for sender in self.lock().values() {
            sender.send_replace(());
        }
    }

    /// Whether anybody watches a key.
    pub(super) fn is_watched(&self, key: &RecordKey) -> bool {
        self.lock().contains_key(key)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RecordKey, watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            let mut watched = hub.lock().unwrap_or_else(PoisonError::into_inner);
            // A watch's receiver is dropped before its registration.
            if watched.get(&self.key).is_some_and(|sender| sender.receiver_count() == 0) {
                watched.remove(&self.key);
            }
        }
        if let Some(on_end) = self.on_end.take() {
            on_end();
        }
    }
}
