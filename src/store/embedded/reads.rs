//! Reading records.

use std::sync::Arc;

use redb::{Database, ReadOnlyTable, ReadableDatabase};

use super::layout::{self, Row, TABLE};
use super::times::Times;
use crate::clock::Moment;
use crate::record::{Key, Namespace, RecordKey};
use crate::store::encoding::{self, Decoded};
use crate::store::{Loaded, Page, Revision, StoreError};

/// The most that a page reads, in bytes of stored records: it need not fill up.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// The most rows that a page looks at, the expired ones included.
const PAGE_ROWS_MAX: usize = 4_096;

/// What is stored, and its times.
pub(super) struct Data {
    pub database: Database,
    pub times: Times,
}

/// What a row turned out to hold.
pub(super) enum Found {
    /// The record has expired.
    Expired,
    /// It was replaced while it was being read, and what its lock was can no longer be said.
    Replaced,
    /// A record.
    Record(Loaded),
}

impl Data {
    pub(super) fn load(&self, key: &RecordKey) -> Result<Option<Loaded>, StoreError> {
        let row = layout::record_row(key);
        loop {
            match self.table().map_err(unreadable)?.get(row.as_slice()).map_err(unreadable)? {
                None => return Ok(None),
                Some(value) => match self.read(value.value())? {
                    Found::Expired => return Ok(None),
                    Found::Record(loaded) => return Ok(Some(loaded)),
                    Found::Replaced => {}
                },
            }
        }
    }

    pub(super) fn scan(
        &self,
        namespace: &Namespace,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let mut page = Page::default();
        let (mut bytes, mut rows) = (0, 0);
        let range = layout::namespace_rows(namespace, after);
        let range = (range.0.as_ref().map(Vec::as_slice), range.1.as_ref().map(Vec::as_slice));
        for entry in self.table().map_err(unreadable)?.range::<&[u8]>(range).map_err(unreadable)? {
            let (row, value) = entry.map_err(unreadable)?;
            let key = layout::key_of(namespace, row.value())?;
            bytes += value.value().len();
            rows += 1;
            let loaded = match self.read(value.value())? {
                Found::Expired => None,
                Found::Record(loaded) => Some(loaded),
                Found::Replaced => {
                    self.load(&RecordKey { namespace: namespace.clone(), key: key.clone() })?
                }
            };
            page.records.extend(loaded.map(|loaded| (key.clone(), loaded)));
            if page.records.len() >= limit || bytes >= PAGE_BYTES_MAX || rows >= PAGE_ROWS_MAX {
                page.next = Some(key);
                break;
            }
        }
        Ok(page)
    }

    /// When something befalls a record by the passing of time, and as of which revision.
    pub(super) fn moments(&self, key: &RecordKey) -> Result<Option<(Revision, Vec<Moment>)>, StoreError> {
        let row = layout::record_row(key);
        let value = self.table().map_err(unreadable)?.get(row.as_slice()).map_err(unreadable)?;
        value.map(|value| self.moments_of(value.value())).transpose()
    }

    fn moments_of(&self, value: &[u8]) -> Result<(Revision, Vec<Moment>), StoreError> {
        let row = Row::parse(value)?;
        let Decoded { record, placement } = encoding::decode(row.stored, row.revision)?;
        Ok((row.revision, self.times.moments(&record, row.revision, placement.keep_until_ms)))
    }

    /// Reads the row of a record.
    pub(super) fn read(&self, value: &[u8]) -> Result<Found, StoreError> {
        let row = Row::parse(value)?;
        let Decoded { record, placement } = encoding::decode(row.stored, row.revision)?;
        if self.times.is_expired(placement.keep_until_ms) {
            return Ok(Found::Expired);
        }
        Ok(match self.times.lock(&record, row.revision) {
            Some(lock) => Found::Record(Loaded { record: Arc::new(record), revision: row.revision, lock }),
            None => Found::Replaced,
        })
    }

    /// The table as it is now.
    pub(super) fn table(&self) -> Result<ReadOnlyTable<&'static [u8], &'static [u8]>, redb::Error> {
        Ok(self.database.begin_read()?.open_table(TABLE)?)
    }
}

fn unreadable(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Corrupted(what) => StoreError::Corrupt(what),
        error => StoreError::NotApplied(format!("reading the data file failed: {error}")),
    }
}
