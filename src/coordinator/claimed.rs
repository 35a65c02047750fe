//! A claim on its way to its caller, and what becomes of it if nobody receives it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Inner;
use crate::clock::wall_time;
use crate::record::{Change, Command, Decision, Disposition, Record, RecordKey, decide};
use crate::store::{Expected, Loaded, StoreError, Swapped};

/// How often a claim that nobody received is tried to be given back before it is left to lapse.
const GIVE_BACK_TRIES: u32 = 3;

/// A claim on its way to its caller. Dropped before [`Claimed::delivered`], it is given back if this call
/// certainly won it: nobody received it.
pub struct Claimed {
    /// The record as written.
    pub record: Arc<Record>,
    /// How long the server had the call before it sent the write that armed the lock.
    pub waited: Duration,
    /// Whether the same request id had this claim before.
    pub resumed: bool,
    /// Set as long as the claim was certainly won by this call and its answer cannot have left.
    unreceived: Option<Unreceived>,
}

struct Unreceived {
    inner: Arc<Inner>,
    key: RecordKey,
    won: Loaded,
}

impl Claimed {
    pub(super) fn new(
        inner: &Arc<Inner>,
        key: &RecordKey,
        won: Loaded,
        waited: Duration,
        resumed: bool,
    ) -> Self {
        let record = Arc::clone(&won.record);
        // A resumed claim may be in its caller's hands already, by an earlier answer.
        let unreceived = (!resumed).then(|| Unreceived { inner: Arc::clone(inner), key: key.clone(), won });
        Self { record, waited, resumed, unreceived }
    }

    /// Call right before the first byte of the answer can leave: from here on the caller may have the claim.
    pub fn delivered(&mut self) {
        self.unreceived = None;
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if let Some(unreceived) = self.unreceived.take() {
            let inner = Arc::clone(&unreceived.inner);
            inner.tasks.spawn_on(unreceived.give_back(), &inner.runtime);
        }
    }
}

impl Unreceived {
    /// Releases exactly the revision that made the claim, so that it loses to any resume.
    async fn give_back(self) {
        let Self { inner, key, won } = self;
        let release = Command::Release {
            token: won.record.fencing_token,
            disposition: Disposition::Unreceived,
            reason: "the claim did not reach its caller".to_owned(),
        };
        let Decision::Write(Change::Put(next)) = decide(&release, Some(won.seen()), wall_time()) else {
            return;
        };
        for _ in 0..GIVE_BACK_TRIES {
            match inner.swap(&key, Expected::At(won.revision), Some(&next), None).await {
                Ok(Swapped::Done(revision)) => {
                    inner.meters.given_back.increment(1);
                    tracing::debug!(key = %key.short_hash(), "gave back a claim that nobody received");
                    inner.learned(&key, Some((next, revision)));
                    return;
                }
                // Somebody resumed it, or the first try did land.
                Ok(Swapped::Conflict(_)) => return inner.meters.kept.increment(1),
                Err(StoreError::NotApplied(_) | StoreError::OutcomeUnknown(_)) => {}
                Err(StoreError::Full(_) | StoreError::Corrupt { .. }) => break,
            }
        }
        inner.meters.kept.increment(1);
        tracing::warn!(key = %key.short_hash(), "a claim that nobody received could not be given back; it will lapse");
    }
}

impl fmt::Debug for Claimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claimed").field("record", &self.record).field("resumed", &self.resumed).finish()
    }
}
