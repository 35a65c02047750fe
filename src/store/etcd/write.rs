//! One conditional write of one record, as a transaction.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};

use super::keyspace::Keyspace;
use super::leases::Lease;
use crate::store::{Expected, Revision};

/// A write, and what it expects.
pub(super) struct Write {
    /// The record, in etcd.
    pub(super) name: String,
    /// The revision of its last write; 0 if there is none.
    pub(super) expected: i64,
    /// What to put; `None`: remove it.
    pub(super) put: Option<Put>,
}

/// What to put.
pub(super) struct Put {
    /// The stored form, which names the lock's lease.
    pub(super) value: Vec<u8>,
    /// What the record hangs on; `None`: it stays until removed.
    pub(super) retention: Option<Arc<Lease>>,
    /// Whose sentinel has to be there when this arms a lock.
    pub(super) lock: Option<Arc<Lease>>,
}

/// What came of a write.
pub(super) enum Written {
    /// It is written, at this revision.
    Done(Revision),
    /// The record is another one.
    Lost(Option<KeyValue>),
    /// The record is as expected, but the lock's lease has ended.
    LockGone,
}

impl Write {
    /// The transaction.
    pub(super) fn txn(&self, keyspace: &Keyspace) -> Txn {
        let name = self.name.as_str();
        let mut compares = vec![Compare::mod_revision(name, CompareOp::Equal, self.expected)];
        let write = match &self.put {
            Some(put) => {
                if let Some(lock) = &put.lock {
                    // Bounds how late this write can land: not after the lock that it arms has lapsed.
                    let sentinel = keyspace.sentinel(lock.id);
                    compares.push(Compare::create_revision(sentinel, CompareOp::Greater, 0));
                }
                let lease = put.retention.as_ref().map_or(0, |lease| lease.id);
                TxnOp::put(name, put.value.clone(), Some(PutOptions::new().with_lease(lease)))
            }
            None => TxnOp::delete(name, None),
        };
        Txn::new().when(compares).and_then([write]).or_else([TxnOp::get(name, None)])
    }

    /// Reads the answer.
    pub(super) fn outcome(&self, answer: &TxnResponse) -> Written {
        if answer.succeeded() {
            return Written::Done(revision(answer.header().map_or(0, |header| header.revision())));
        }
        let current = answer.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(mut read) => read.take_kvs().pop(),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
        });
        match current {
            current if current.as_ref().map_or(0, KeyValue::mod_revision) == self.expected => {
                Written::LockGone
            }
            current => Written::Lost(current),
        }
    }
}

/// What etcd calls the revision that is expected.
pub(super) fn mod_revision(expected: Expected) -> i64 {
    match expected {
        Expected::Absent => 0,
        // No write has a revision beyond etcd's range, so that nothing is as expected there.
        Expected::At(revision) => i64::try_from(revision.0).unwrap_or(i64::MAX),
    }
}

/// A revision of etcd, which is never negative.
pub(super) fn revision(revision: i64) -> Revision {
    Revision(revision.unsigned_abs())
}
