//! What was read lately, in memory: the outcomes that are replayed.

use std::borrow::Borrow;
use std::hash::Hash;

use lru::LruCache;

/// How much is remembered, in bytes of names, of values, and of what each of them takes besides.
const BYTES_MAX: usize = 16 << 20;
/// What an entry takes in memory beside its name and value, about.
const AROUND_ENTRY_BYTES: usize = 256;
/// A larger entry is not remembered: there would be room for few.
const ENTRY_BYTES_MAX: usize = 64 << 10;

/// Values by name, with the bytes of both. Those that were not asked for the longest give way.
pub(super) struct Remembered<K: Hash + Eq, V> {
    entries: LruCache<K, (V, usize)>,
    bytes: usize,
}

impl<K: Hash + Eq, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self { entries: LruCache::unbounded(), bytes: 0 }
    }
}

impl<K: Hash + Eq, V> Remembered<K, V> {
    pub(super) fn get<Q: Hash + Eq + ?Sized>(&mut self, name: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entries.get(name).map(|(value, _)| value)
    }

    /// Remembers a value, which has so many bytes with its name.
    pub(super) fn put(&mut self, name: K, bytes: usize, value: impl FnOnce() -> V) {
        let bytes = bytes + AROUND_ENTRY_BYTES;
        if bytes > ENTRY_BYTES_MAX {
            return;
        }
        self.bytes += bytes;
        if let Some((_, (_, replaced))) = self.entries.push(name, (value(), bytes)) {
            self.bytes -= replaced;
        }
        while self.bytes > BYTES_MAX
            && let Some((_, (_, bytes))) = self.entries.pop_lru()
        {
            self.bytes -= bytes;
        }
    }

    pub(super) fn forget<Q: Hash + Eq + ?Sized>(&mut self, name: &Q)
    where
        K: Borrow<Q>,
    {
        if let Some((_, bytes)) = self.entries.pop(name) {
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_so_many_bytes_and_what_was_asked_for_last() {
        let mut remembered = Remembered::default();
        let most = ENTRY_BYTES_MAX - AROUND_ENTRY_BYTES;
        remembered.put(0, most + 1, || "large");
        assert!(remembered.get(&0).is_none(), "it is too large");
        let count = BYTES_MAX / ENTRY_BYTES_MAX;
        (0..count).for_each(|number| remembered.put(number, most, || "first"));
        // One that is there already takes no room.
        remembered.put(7, most, || "second");
        assert_eq!(remembered.get(&7), Some(&"second"));
        assert_eq!(remembered.get(&0), Some(&"first"));
        remembered.put(count, most, || "first");
        let held = (0..=count).filter(|number| remembered.entries.contains(number)).count();
        assert_eq!((held, remembered.bytes), (count, BYTES_MAX));
        assert!(remembered.get(&0).is_some() && remembered.get(&1).is_none());
        // A smaller one in place of a larger one leaves room.
        remembered.put(0, 0, || "small");
        assert_eq!(remembered.bytes, BYTES_MAX - most);
        (0..=count).for_each(|number| remembered.forget(&number));
        assert_eq!(remembered.bytes, 0);
    }
}
