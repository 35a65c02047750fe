//! Names: a namespace, a key within it, and the two together.

use std::fmt;

use super::limits::{KEY_MAX_BYTES, NAMESPACE_MAX_BYTES};

/// A tenant or service that owns keys. Matches `[a-z0-9][a-z0-9._-]{0,62}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(Box<str>);

impl Namespace {
    /// Checks a name; `None` if it does not match.
    pub fn new(name: &str) -> Option<Self> {
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let (&first, rest) = name.as_bytes().split_first()?;
        let matches = name.len() <= NAMESPACE_MAX_BYTES
            && alphanumeric(first)
            && rest.iter().all(|&b| alphanumeric(b) || matches!(b, b'.' | b'_' | b'-'));
        matches.then(|| Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The caller's name for one logical operation: any UTF-8 of 1 to 512 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Box<str>);

impl Key {
    /// Checks a key; `None` if it is empty or too long.
    pub fn new(key: &str) -> Option<Self> {
        Self::fits(key).then(|| Self(key.into()))
    }

    fn fits(key: &str) -> bool {
        (1..=KEY_MAX_BYTES).contains(&key.len())
    }

    /// The key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A key with its namespace: what names a record.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey {
    /// The namespace.
    pub namespace: Namespace,
    /// The key within it.
    pub key: Key,
}

impl RecordKey {
    /// A short hash of the name, for logs: keys themselves are never logged.
    pub fn short_hash(&self) -> ShortHash {
        ShortHash::new(&self.namespace, self.key.as_str())
    }
}

/// A hash of the name of a record, written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortHash(u64);

impl ShortHash {
    /// That of a key, checked as [`Key::new`] does.
    pub fn of(namespace: &Namespace, key: &str) -> Option<Self> {
        Key::fits(key).then(|| Self::new(namespace, key))
    }

    fn new(namespace: &Namespace, key: &str) -> Self {
        // FNV-1a: stable over builds and machines, so that logs of several servers can be joined.
        let bytes = namespace.0.bytes().chain([0]).chain(key.bytes());
        Self(bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }
}

impl fmt::Display for ShortHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

// Debug prints go to logs, and keys must not.
impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Namespace({})", self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bytes)", self.0.len())
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordKey({}, #{})", self.namespace.0, self.short_hash())
    }
}
