//! What benches/ measure of stores: what they do to records, without a disk or a network.

use super::Revision;
use super::encoding::{self, Placement};
use crate::record::Record;

pub use super::etcd::measuring::Batch;

/// The stored form of a record.
pub fn encode(record: &Record) -> Vec<u8> {
    encoding::encode(record, &Placement { lock_lease: 7, keep_until_ms: 0 })
}

/// The record of a stored form, if it is one.
pub fn decode(stored: &[u8]) -> Option<Record> {
    encoding::decode(stored, Revision(1)).ok().map(|decoded| decoded.record)
}
