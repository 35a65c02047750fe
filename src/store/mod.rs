//! The store contract: four operations on single records, a shortcut of one, and what they promise.
//!
//! - The check of a swap and its write are one atomic step. Losing it is `Ok(Conflict)`, never an error.
//! - Whether a lock has lapsed is the store's word alone; no server's clock takes part. A lapse is for ever,
//!   of that revision, so a takeover is a swap `At` the revision that was seen lapsed.
//! - Writing a record that is in progress arms its lock for at least its `lock_ttl`, counted from the call.
//! - A record is kept for at least its `lifetime`, then it is absent.
//! - A write that was answered is durable. A write whose future was dropped happens whole or not at all.
//! - Revisions grow over all writes of the store, so fencing tokens grow over the death and rebirth of a key.
//! - A `load` reads what was there after it was called, or later.
//! - A watch is a hint. Nothing may depend on it for correctness.
//! - Keys are independent: no operation spans two of them.

pub mod embedded;
mod encoding;
pub mod etcd;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod hub;
#[doc(hidden)]
pub mod measuring;
mod remembered;
#[cfg(test)]
mod schedules;
mod sync;

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;

use crate::record::{Key, Lock, Namespace, Record, RecordKey, Seen};

pub use hub::Watch;

/// Where records are kept.
#[async_trait]
pub trait RecordStore: Send + Sync + 'static {
    /// Reads a record; `None` if it is absent.
    ///
    /// # Errors
    /// `NotApplied` if the store does not answer, `Corrupt` if what is there cannot be read.
    async fn load(&self, key: &RecordKey) -> Result<Option<Loaded>, StoreError>;

    /// What a `load` called now would bring, where that is in memory; `None` where it is not.
    fn recall<'a>(&'a self, _key: &'a RecordKey) -> Option<Recalled<'a>> {
        None
    }

    /// Replaces a record if it is as `expected`; with no `next`, removes it.
    ///
    /// # Errors
    /// `NotApplied`: nothing was written. `OutcomeUnknown`: it may have been written, or may yet be.
    /// `Full`: nothing was written, for want of room. `Corrupt` as for `load`.
    async fn swap(
        &self,
        key: &RecordKey,
        expected: Expected,
        next: Option<&Record>,
    ) -> Result<Swapped, StoreError>;

    /// Hints at changes of a record, its end included, and at the lapse of the record as it was last loaded
    /// from here. Once this returns, no change after it is missed as long as the store is well: so register
    /// first, then load; and after a hint load again.
    ///
    /// # Errors
    /// `NotApplied` if the store does not answer.
    async fn watch(&self, key: &RecordKey) -> Result<Watch, StoreError>;

    /// Reads the records of a namespace in order of key, from the first one after `after`. A page holds
    /// `limit` records at most, and may hold fewer, or none, without being the last.
    ///
    /// # Errors
    /// As for `load`; a record that cannot be read fails the page, and is named.
    async fn scan(
        &self,
        namespace: &Namespace,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Page, StoreError>;
}

/// The store revision at which a record was written: unlike that of any other write of its key. Records of
/// different keys may share one, when they were written together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// What a swap expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// No record.
    Absent,
    /// The record as written at this revision.
    At(Revision),
}

impl Expected {
    /// What was found, expected again.
    pub fn of(current: Option<&Loaded>) -> Self {
        current.map_or(Expected::Absent, |loaded| Expected::At(loaded.revision))
    }
}

/// A record as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The record, its fencing token spelt out.
    pub record: Arc<Record>,
    /// The revision of its last write.
    pub revision: Revision,
    /// Its lock.
    pub lock: Lock,
}

impl Loaded {
    /// What the state machine needs of it.
    pub fn seen(&self) -> Seen<'_> {
        Seen { record: &self.record, lock: self.lock }
    }
}

/// What is in memory of a record.
pub enum Recalled<'a> {
    /// This is what stands.
    Now(Loaded),
    /// Whether it still stands is to be asked first: `None` if not. It fails as a `load` does.
    Checked(BoxFuture<'a, Result<Option<Loaded>, StoreError>>),
}

/// What came of a swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// Written, at this revision.
    Done(Revision),
    /// Not written: the record is not as expected, but so.
    Conflict(Option<Loaded>),
}

/// Some records of a namespace.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The records, in order of key.
    pub records: Vec<(Key, Loaded)>,
    /// Where to go on: the `after` of the next page; `None` on the last one.
    pub next: Option<Key>,
}

/// Why a store could not do what it was asked. The text is for the log, never for a caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nothing was written; safe to try again.
    #[error("the store did not do it: {0}")]
    NotApplied(String),
    /// It may have been written, or may yet be.
    #[error("what became of the write is unknown: {0}")]
    OutcomeUnknown(String),
    /// Nothing was written, for want of room.
    #[error("the store is full: {0}")]
    Full(String),
    /// What is stored cannot be read by this server.
    #[error("the stored record cannot be read: {why}")]
    Corrupt {
        /// What is wrong with it.
        why: String,
        /// Which one it is, where that is known.
        key: Option<RecordKey>,
    },
}

impl StoreError {
    /// Something that cannot be read. Whoever knows which record it is says so with [`StoreError::of`].
    pub fn corrupt(why: impl Into<String>) -> Self {
        StoreError::Corrupt { why: why.into(), key: None }
    }

    /// The same, met at this record.
    #[must_use]
    pub fn of(mut self, record: &RecordKey) -> Self {
        if let StoreError::Corrupt { key, .. } = &mut self {
            key.get_or_insert_with(|| record.clone());
        }
        self
    }

    /// The record that cannot be read, if this is such an error and says which.
    pub fn corrupt_key(&self) -> Option<&RecordKey> {
        match self {
            StoreError::Corrupt { key, .. } => key.as_ref(),
            StoreError::NotApplied(_) | StoreError::OutcomeUnknown(_) | StoreError::Full(_) => None,
        }
    }

    /// The same for a call that wrote before, and never learned what became of that: no later failure to write or
    /// to read makes it a call that wrote nothing.
    #[must_use]
    pub fn after_unknown(self) -> Self {
        match self {
            StoreError::NotApplied(why) | StoreError::Full(why) => StoreError::OutcomeUnknown(why),
            StoreError::OutcomeUnknown(_) | StoreError::Corrupt { .. } => self,
        }
    }
}
