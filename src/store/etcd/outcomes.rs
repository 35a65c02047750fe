//! Outcomes that were read lately, in memory: all that etcd has to tell again of a completed record is that it is there,
//! unchanged.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use etcd_client::KeyValue;

use crate::record::{Record, RecordKey, State};
use crate::store::remembered::Remembered;

/// Completed records as they are stored: decoded, one would take up to five times as much memory.
#[derive(Default)]
pub(super) struct Outcomes(Mutex<Remembered<RecordKey, Arc<KeyValue>>>);

impl Outcomes {
    /// Remembers a record if it is completed.
    pub(super) fn remember(&self, key: &RecordKey, record: &Record, kv: KeyValue) {
        if matches!(record.state, State::Completed { .. }) {
            self.lock().put(key.clone(), 2 * kv.key().len() + kv.value().len(), || Arc::new(kv));
        }
    }

    /// What is remembered of a key, whether or not it is there still.
    pub(super) fn get(&self, key: &RecordKey) -> Option<Arc<KeyValue>> {
        self.lock().get(key).cloned()
    }

    pub(super) fn forget(&self, key: &RecordKey) {
        self.lock().forget(key);
    }

    fn lock(&self) -> MutexGuard<'_, Remembered<RecordKey, Arc<KeyValue>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
