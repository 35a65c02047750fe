//! Reading records.

use std::iter::Peekable;
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, Range, ReadOnlyTable, ReadableDatabase, StorageError};

use super::layout::{self, Row, TABLE};
use super::recent::{NamedRow, Recent};
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
    pub recent: Recent,
    pub times: Times,
}

/// The tree as it was at one moment.
pub(super) struct Tree {
    pub table: ReadOnlyTable<&'static [u8], &'static [u8]>,
    /// How often something had been moved into it, at least.
    pub moves: u64,
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
    /// Reads a record if it was written or read lately, and takes up no more than `max_bytes`: from memory alone.
    pub(super) fn load_recent(
        &self,
        key: &RecordKey,
        max_bytes: usize,
    ) -> Option<Result<Option<Loaded>, StoreError>> {
        let row = layout::record_row(key);
        loop {
            let value = self.recent.get(&row)?;
            if value.as_ref().is_some_and(|value| value.len() > max_bytes) {
                return None;
            }
            match value.map(|value| self.read(&value)).transpose() {
                Err(error) => return Some(Err(error)),
                Ok(None | Some(Found::Expired)) => return Some(Ok(None)),
                Ok(Some(Found::Record(loaded))) => return Some(Ok(Some(loaded))),
                Ok(Some(Found::Replaced)) => {}
            }
        }
    }

    pub(super) fn load(&self, key: &RecordKey) -> Result<Option<Loaded>, StoreError> {
        let row = layout::record_row(key);
        loop {
            let moves = self.recent.moves();
            match self.with_row(&row, |value| self.read(value))? {
                // It may have been written anew before what the tree had expired. Then that is in memory, unless something
                // has been moved since.
                None | Some(Found::Expired) => {
                    if let Some(recent) = self.load_recent(key, usize::MAX) {
                        return recent;
                    }
                    if self.recent.moves() == moves {
                        return Ok(None);
                    }
                }
                Some(Found::Record(loaded)) => return Ok(Some(loaded)),
                Some(Found::Replaced) => {}
            }
        }
    }

    /// Reads what a row holds, if it is there.
    pub(super) fn with_row<T>(
        &self,
        row: &[u8],
        read: impl FnOnce(&[u8]) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        if let Some(recent) = self.recent.get(row) {
            return recent.map(|value| read(&value)).transpose();
        }
        let tree = self.tree().map_err(unreadable)?;
        // Owned, it keeps its snapshot, so that the mover is not given the page it lies in.
        let Some(value) = tree.table.get_owned(row).map_err(unreadable)? else { return Ok(None) };
        let found = read(value.value())?;
        self.recent.remember(row, value.value(), tree.moves);
        Ok(Some(found))
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
        // As of one moment: what the tree does not have then is in memory, unless something has been moved since.
        let (Tree { table, moves }, recent) = loop {
            let tree = self.tree().map_err(unreadable)?;
            let recent = self.recent.range(range);
            if self.recent.moves() == tree.moves {
                break (tree, recent);
            }
        };
        let mut recent = recent.into_iter().peekable();
        let mut tree = table.range::<&[u8]>(range).map_err(unreadable)?.peekable();
        while let Some(entry) = next_row(&mut recent, &mut tree) {
            let (row, value) = entry.map_err(unreadable)?;
            let key = RecordKey { namespace: namespace.clone(), key: layout::key_of(namespace, &row)? };
            bytes += value.as_ref().map_or(0, Bytes::len);
            rows += 1;
            let read = value.map(|value| self.read(&value)).transpose();
            let loaded = match read.map_err(|error| error.of(&key))? {
                None => None,
                // As for a load. Memory first: what leaves it counts as a move.
                Some(Found::Expired) if self.recent.get(&row).is_none() && self.recent.moves() == moves => {
                    None
                }
                Some(Found::Record(loaded)) => Some(loaded),
                Some(Found::Expired | Found::Replaced) => self.load(&key).map_err(|error| error.of(&key))?,
            };
            let RecordKey { key, .. } = key;
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
        self.with_row(&row, |value| self.moments_of(value))
    }

    fn moments_of(&self, value: &[u8]) -> Result<(Revision, Vec<Moment>), StoreError> {
        let row = Row::parse(value)?;
        let Decoded { record, placement } = encoding::decode(row.stored, row.revision)?;
        Ok((row.revision, self.times.moments(&record, row.revision, placement.keep_until_ms)))
    }

    /// Reads the row of a record.
    pub(super) fn read(&self, value: &[u8]) -> Result<Found, StoreError> {
        let row = Row::parse(value)?;
        let Decoded { record, placement } = match encoding::decode(row.stored, row.revision) {
            // As the sweep has it: what cannot be read expires, too, if that can be.
            Err(_) if self.times.is_expired(encoding::decode_keep_until_ms(row.stored)?) => {
                return Ok(Found::Expired);
            }
            decoded => decoded?,
        };
        if self.times.is_expired(placement.keep_until_ms) {
            return Ok(Found::Expired);
        }
        Ok(match self.times.lock(&record, row.revision) {
            Some(lock) => Found::Record(Loaded { record: Arc::new(record), revision: row.revision, lock }),
            None => Found::Replaced,
        })
    }

    /// The tree as it is now, or later.
    pub(super) fn tree(&self) -> Result<Tree, redb::Error> {
        let moves = self.recent.moves();
        Ok(Tree { table: self.table()?, moves })
    }

    /// The table as it is now.
    pub(super) fn table(&self) -> Result<ReadOnlyTable<&'static [u8], &'static [u8]>, redb::Error> {
        Ok(self.database.begin_read()?.open_table(TABLE)?)
    }
}

/// The next row in order, as written lately if it was.
fn next_row(
    recent: &mut Peekable<impl Iterator<Item = NamedRow>>,
    tree: &mut Peekable<Range<'_, &'static [u8], &'static [u8]>>,
) -> Option<Result<NamedRow, StorageError>> {
    let newer = recent.peek().map(|(row, _)| row.as_slice());
    let comes_first = |row: &[u8]| newer.is_none_or(|newer| row <= newer);
    match tree.next_if(|entry| entry.as_ref().map_or(true, |(row, _)| comes_first(row.value()))) {
        Some(Err(error)) => Some(Err(error)),
        Some(Ok((row, value))) if newer != Some(row.value()) => {
            Some(Ok((row.value().to_vec(), Some(Bytes::copy_from_slice(value.value())))))
        }
        Some(Ok(_)) | None => recent.next().map(Ok),
    }
}

fn unreadable(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Corrupted(what) => StoreError::corrupt(what),
        error => StoreError::NotApplied(format!("reading the data file failed: {error}")),
    }
}
