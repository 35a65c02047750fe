//! How everything lies in the one table: what a record's row is called, and what stands in it.
//!
//! | row | value |
//! |---|---|
//! | `0` `format` | the format of the store, a `u32` |
//! | `0` `counters` | the last revision and the running time in milliseconds, two `u64` |
//! | `1` namespace `0` key | the revision of the write, a `u64`; then the stored form of the record |
//!
//! Numbers are big-endian. A namespace holds no zero byte, so no two names collide, and the rows of a
//! namespace lie together in order of key.

#[cfg(any(test, fuzzing))]
pub mod fuzzing;

use std::ops::Bound;

use redb::TableDefinition;

use crate::record::{Key, Namespace, RecordKey};
use crate::store::{Revision, StoreError};

pub(super) const TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("onced");
pub(super) const FORMAT_ROW: &[u8] = b"\0format";
pub(super) const COUNTERS_ROW: &[u8] = b"\0counters";

const RECORDS: u8 = 1;
const AFTER_RECORDS: &[u8] = &[RECORDS + 1];
const SEPARATOR: u8 = 0;

/// A range of rows.
pub(super) type Rows = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// The row of a record.
pub(super) fn record_row(key: &RecordKey) -> Vec<u8> {
    let mut row = namespace_row(&key.namespace, SEPARATOR);
    row.extend_from_slice(key.key.as_str().as_bytes());
    row
}

/// The rows of a namespace, from the first after `after`.
pub(super) fn namespace_rows(namespace: &Namespace, after: Option<&Key>) -> Rows {
    let mut first = namespace_row(namespace, SEPARATOR);
    // The name up to its separator is no row: a key is never empty.
    first.extend_from_slice(after.map_or("", Key::as_str).as_bytes());
    (Bound::Excluded(first), Bound::Excluded(namespace_row(namespace, SEPARATOR + 1)))
}

/// The rows of all records, from the first after the row `after`.
pub(super) fn all_rows(after: Option<&[u8]>) -> Rows {
    let first = after.map_or(Bound::Included(vec![RECORDS]), |row| Bound::Excluded(row.to_vec()));
    (first, Bound::Excluded(AFTER_RECORDS.to_vec()))
}

/// The key whose row this is, within its namespace.
pub(super) fn key_of(namespace: &Namespace, row: &[u8]) -> Result<Key, StoreError> {
    row.get(namespace.as_str().len() + 2..)
        .and_then(|key| std::str::from_utf8(key).ok())
        .and_then(Key::new)
        .ok_or_else(|| StoreError::corrupt("the name of a row is not a key"))
}

fn namespace_row(namespace: &Namespace, end: u8) -> Vec<u8> {
    [&[RECORDS], namespace.as_str().as_bytes(), &[end]].concat()
}

/// What stands in the row of a record.
pub(super) struct Row<'a> {
    /// The revision of the write.
    pub revision: Revision,
    /// The stored form of the record.
    pub stored: &'a [u8],
}

impl<'a> Row<'a> {
    pub(super) fn parse(value: &'a [u8]) -> Result<Self, StoreError> {
        let (revision, stored) = value
            .split_first_chunk::<8>()
            .ok_or_else(|| StoreError::corrupt("its row is too short for a revision"))?;
        Ok(Self { revision: Revision(u64::from_be_bytes(*revision)), stored })
    }

    pub(super) fn to_value(&self) -> Vec<u8> {
        [&self.revision.0.to_be_bytes(), self.stored].concat()
    }
}

/// What the store counts, written with every commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counters {
    /// The last revision given out.
    pub revision: Revision,
    /// How long the store has been running in all, in milliseconds.
    pub running_ms: u64,
}

impl Counters {
    /// Those of a new store.
    pub(super) const NEW: Counters = Counters { revision: Revision(0), running_ms: 0 };

    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let (revision, running_ms) = value.split_first_chunk::<8>()?;
        Some(Self {
            revision: Revision(u64::from_be_bytes(*revision)),
            running_ms: u64::from_be_bytes(running_ms.try_into().ok()?),
        })
    }

    pub(super) fn to_value(self) -> Vec<u8> {
        [self.revision.0.to_be_bytes(), self.running_ms.to_be_bytes()].concat()
    }
}
