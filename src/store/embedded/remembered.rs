//! Rows of the tree that were read lately, in memory: the outcomes that are replayed.

use bytes::Bytes;
use lru::LruCache;

/// How much is remembered, in bytes of names and values.
const BYTES_MAX: usize = 16 << 20;
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
    pub(super) fn put(&mut self, row: &[u8], value: Bytes) {
        let bytes = row.len() + value.len();
        if bytes > ROW_BYTES_MAX {
            return;
        }
        self.forget(row);
        self.bytes += bytes;
        self.rows.push(row.to_vec(), value);
        while self.bytes > BYTES_MAX
            && let Some((row, value)) = self.rows.pop_lru()
        {
            self.bytes -= row.len() + value.len();
        }
    }

    pub(super) fn forget(&mut self, row: &[u8]) {
        if let Some(value) = self.rows.pop(row) {
            self.bytes -= row.len() + value.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_so_many_bytes_and_what_was_asked_for_last() {
        let mut remembered = Remembered::default();
        let row = |number: u32| number.to_be_bytes();
        let value = Bytes::from(vec![0; ROW_BYTES_MAX - 4]);
        remembered.put(&row(0), Bytes::from(vec![0; ROW_BYTES_MAX - 3]));
        assert!(remembered.get(&row(0)).is_none(), "it is too large");
        let count = u32::try_from(BYTES_MAX / ROW_BYTES_MAX).unwrap();
        (0..count).for_each(|number| remembered.put(&row(number), value.clone()));
        // One that is there already takes no room.
        remembered.put(&row(7), value.clone());
        assert!(remembered.get(&row(0)).is_some());
        remembered.put(&row(count), value);
        let held = (0..=count).filter(|&number| remembered.rows.contains(&row(number)[..])).count();
        assert_eq!((held, remembered.bytes), (count as usize, BYTES_MAX));
        assert!(remembered.get(&row(0)).is_some() && remembered.get(&row(1)).is_none());
        (0..=count).for_each(|number| remembered.forget(&row(number)));
        assert_eq!(remembered.bytes, 0);
    }
}
