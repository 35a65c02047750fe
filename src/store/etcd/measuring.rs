//! What benches/ measure of etcd's store: transactions, before they are sent.

use super::keyspace::{Keyspace, PREFIX_DEFAULT};
use super::write::{self, Home, Put, Write};
use crate::record::RecordKey;

/// Writes that arrived together.
pub struct Batch {
    writes: Vec<Write>,
    keyspace: Keyspace,
    home: Home,
}

impl Batch {
    /// New records of these keys, each with the same stored form.
    ///
    /// # Errors
    /// None: the prefix is the default one.
    pub fn new(keys: &[RecordKey], stored: &[u8]) -> Result<Self, String> {
        let keyspace = Keyspace::new(PREFIX_DEFAULT)?;
        let write = |key| Write {
            name: keyspace.record(key).into(),
            expected: 0,
            put: Some(Put { value: stored.to_vec(), retention: None, lock: None }),
        };
        let home = Home::new(&keyspace, b"store".to_vec());
        Ok(Self { writes: keys.iter().map(write).collect(), keyspace, home })
    }

    /// Makes the transaction that writes all of them or nothing.
    pub fn flat(&self) -> impl Sized {
        write::flat(self.writes.iter(), [7].into_iter(), &self.keyspace, &self.home)
    }

    /// Makes the transaction in which each is decided for itself.
    pub fn nested(&self) -> impl Sized {
        write::nested(self.writes.iter(), &self.keyspace, &self.home)
    }
}
