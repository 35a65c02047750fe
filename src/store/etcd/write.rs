//! Conditional writes of single records, and the transactions that carry them: one alone, or several at once.
//!
//! Several go flat first, all compares and all puts in one plain transaction, which writes all of them or
//! nothing. Where one of them lost, they go nested: each a transaction of its own within one outer transaction,
//! so that each is decided for itself.

use std::sync::Arc;

use etcd_client::{
    Compare, CompareOp, GetResponse, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse,
};

use super::keyspace::Keyspace;
use super::leases::Lease;
use crate::store::{Expected, Revision};

/// A write, and what it expects.
pub(super) struct Write {
    /// The record, in etcd.
    pub(super) name: Arc<str>,
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
    /// This etcd has another store.
    Foreign,
}

/// The store that writes are for, by its marker: where that is not, nothing is written.
#[derive(Clone)]
pub(super) struct Home {
    name: String,
    marker: Vec<u8>,
}

impl Home {
    /// The store whose marker holds this.
    pub(super) fn new(keyspace: &Keyspace, marker: Vec<u8>) -> Self {
        Self { name: keyspace.meta(), marker }
    }

    fn is_here(&self) -> Compare {
        Compare::value(self.name.as_str(), CompareOp::Equal, self.marker.as_slice())
    }

    fn read(&self) -> TxnOp {
        TxnOp::get(self.name.as_str(), None)
    }

    fn was_here(&self, read: &GetResponse) -> bool {
        read.kvs().first().is_some_and(|marker| marker.value() == self.marker)
    }
}

impl Write {
    /// About how many bytes it takes of a request.
    pub(super) fn size(&self) -> usize {
        2 * self.name.len() + self.put.as_ref().map_or(0, |put| put.value.len())
    }

    /// The lease whose sentinel it compares.
    pub(super) fn lock_lease(&self) -> Option<i64> {
        Some(self.put.as_ref()?.lock.as_ref()?.id)
    }

    fn compare(&self) -> Compare {
        Compare::mod_revision(&*self.name, CompareOp::Equal, self.expected)
    }

    fn op(&self) -> TxnOp {
        match &self.put {
            Some(put) => {
                let lease = put.retention.as_ref().map_or(0, |lease| lease.id);
                let options = PutOptions::new().with_lease(lease);
                TxnOp::put(&*self.name, put.value.as_slice(), Some(options))
            }
            None => TxnOp::delete(&*self.name, None),
        }
    }

    /// Reads the answer to this write alone, or nested.
    fn outcome(&self, answer: &TxnResponse, at: Revision) -> Written {
        if answer.succeeded() {
            return Written::Done(at);
        }
        let current = reads(answer).next().and_then(|mut read| read.take_kvs().pop());
        match current {
            current if current.as_ref().map_or(0, KeyValue::mod_revision) == self.expected => {
                Written::LockGone
            }
            current => Written::Lost(current),
        }
    }
}

/// Bounds how late a write can land: not after the lock that it arms has lapsed.
fn lock_is_there(keyspace: &Keyspace, lease: i64) -> Compare {
    Compare::create_revision(keyspace.sentinel(lease), CompareOp::Greater, 0)
}

fn compares(write: &Write, keyspace: &Keyspace) -> Vec<Compare> {
    let lock = write.lock_lease().map(|lease| lock_is_there(keyspace, lease));
    std::iter::once(write.compare()).chain(lock).collect()
}

/// One write. Its answer tells what is there if it lost.
pub(super) fn alone(write: &Write, keyspace: &Keyspace, home: &Home) -> Txn {
    let mut compares = compares(write, keyspace);
    compares.push(home.is_here());
    let current = TxnOp::get(&*write.name, None);
    Txn::new().when(compares).and_then([write.op()]).or_else([current, home.read()])
}

/// All of several writes, or none. `locks` are their leases, each once.
pub(super) fn flat<'a>(
    writes: impl Iterator<Item = &'a Write> + Clone,
    locks: impl Iterator<Item = i64>,
    keyspace: &Keyspace,
    home: &Home,
) -> Txn {
    let locks = locks.map(|lease| lock_is_there(keyspace, lease));
    let home = std::iter::once(home.is_here());
    let compares: Vec<Compare> = home.chain(writes.clone().map(Write::compare)).chain(locks).collect();
    Txn::new().when(compares).and_then(writes.map(Write::op).collect::<Vec<_>>())
}

/// Several writes, each decided for itself.
pub(super) fn nested<'a>(writes: impl Iterator<Item = &'a Write>, keyspace: &Keyspace, home: &Home) -> Txn {
    let each = writes.map(|write| {
        let current = TxnOp::get(&*write.name, None);
        TxnOp::txn(Txn::new().when(compares(write, keyspace)).and_then([write.op()]).or_else([current]))
    });
    Txn::new().when([home.is_here()]).and_then(each.collect::<Vec<_>>())
}

/// What came of a write that went alone.
pub(super) fn outcome_alone(write: &Write, answer: &TxnResponse, home: &Home) -> Written {
    if !answer.succeeded() && !reads(answer).nth(1).is_some_and(|read| home.was_here(&read)) {
        return Written::Foreign;
    }
    write.outcome(answer, revision_of(answer))
}

fn reads(answer: &TxnResponse) -> impl Iterator<Item = GetResponse> {
    answer.op_responses().into_iter().filter_map(|response| match response {
        TxnOpResponse::Get(read) => Some(read),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    })
}

/// What came of writes that went nested, in their order; an answer that does not fit them has less of them.
pub(super) fn outcomes_nested<'a>(
    writes: impl Iterator<Item = &'a Write>,
    answer: &TxnResponse,
) -> Vec<Written> {
    if !answer.succeeded() {
        return writes.map(|_| Written::Foreign).collect();
    }
    let at = revision_of(answer);
    let nested = answer.op_responses().into_iter().map_while(|response| match response {
        TxnOpResponse::Txn(answer) => Some(answer),
        TxnOpResponse::Get(_) | TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) => None,
    });
    writes.zip(nested).map(|(write, answer)| write.outcome(&answer, at)).collect()
}

/// The revision of all that a transaction wrote.
pub(super) fn revision_of(answer: &TxnResponse) -> Revision {
    revision(answer.header().map_or(0, |header| header.revision()))
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
