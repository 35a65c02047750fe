//! Rows of the tree that were read lately, in memory: the outcomes that are replayed.

use bytes::Bytes;
use lru::LruCache;

/// How much is remembered, in bytes of names, of values, and of what each of them takes besides.
const BYTES_MAX: usize = 16 << 20;
/// What a row takes in memory beside its name and value, about.
const AROUND_ROW_BYTES: usize = 128;
/// A larger row is not remembered: there would be room for few.
const ROW_BYTES_MAX: usize = 64 << 10;

pub(super) struct Remembered {
    rows: LruCache<Vec<u8>, Bytes>,
    bytes: usize,
}

impl Default for Remembered {
    fn default() -> Self {
        Self { rows: LruCache::unbounded(), bytes: 0 }
    }
}

impl Remembered {
    pub(super) fn get(&mut self, row: &[u8]) -> Option<&Bytes> {
        self.rows.get(row)
    }

    /// Remembers a row, in place of those that were not asked for the longest.
    pub(super) fn put(&mut self, row: &[u8], value: &[u8]) {
        if bytes(row, value) > ROW_BYTES_MAX {
            return;
        }
        self.forget(row);
        self.bytes += bytes(row, value);
        self.rows.push(row.to_vec(), Bytes::copy_from_slice(value));
        while self.bytes > BYTES_MAX
            && let Some((row, value)) = self.rows.pop_lru()
        {
            self.bytes -= bytes(&row, &value);
        }
    }

    pub(super) fn forget(&mut self, row: &[u8]) {
        if let Some(value) = self.rows.pop(row) {
            self.bytes -= bytes(row, &value);
        }
    }
}

fn bytes(row: &[u8], value: &[u8]) -> usize {
    row.len() + value.len() + AROUND_ROW_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_so_many_bytes_and_what_was_asked_for_last() {
        let mut remembered = Remembered::default();
        let row = |number: u32| number.to_be_bytes();
        let value = vec![0; ROW_BYTES_MAX - AROUND_ROW_BYTES - 4];
        remembered.put(&row(0), &[&value[..], b"more"].concat());
        assert!(remembered.get(&row(0)).is_none(), "it is too large");
        let count = u32::try_from(BYTES_MAX / ROW_BYTES_MAX).unwrap();
        (0..count).for_each(|number| remembered.put(&row(number), &value));
        // One that is there already takes no room.
        remembered.put(&row(7), &value);
        assert!(remembered.get(&row(0)).is_some());
        remembered.put(&row(count), &value);
        let held = (0..=count).filter(|&number| remembered.rows.contains(&row(number)[..])).count();
        assert_eq!((held, remembered.bytes), (count as usize, BYTES_MAX));
        assert!(remembered.get(&row(0)).is_some() && remembered.get(&row(1)).is_none());
        (0..=count).for_each(|number| remembered.forget(&row(number)));
        assert_eq!(remembered.bytes, 0);
    }
}
