//! Transactions, nested ones too: first every compare, then what they chose.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use etcd_client::proto::{
    PbCompare, PbCompareTarget, PbDeleteResponse, PbKeyValue, PbPutResponse, PbResponseOp, PbTargetUnion,
    PbTxnOpRequest, PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
};
use prost::Message;
use tonic::Status;

use super::data::{Data, Range, Space, Writing};

/// The most operations of a transaction, and the largest request in bytes.
const OPS_MAX: usize = 128;
const REQUEST_MAX_BYTES: usize = 3 << 19;

/// A transaction whose compares are decided.
struct Chosen<'a> {
    succeeded: bool,
    ops: Vec<Op<'a>>,
}

enum Op<'a> {
    Plain(&'a PbTxnOpRequest),
    Nested(Chosen<'a>),
}

impl Data {
    pub(super) fn txn(&mut self, txn: &PbTxnRequest) -> Result<PbTxnResponse, Status> {
        check_size(txn)?;
        check_ops(txn, OPS_MAX)?;
        check_puts(txn)?;
        let nearly_full = if may_put(txn) { check_space(self)? } else { None };
        let chosen = self.choose(txn);
        self.check(&chosen)?;
        let mut writing = self.write();
        let answer = writing.apply(&chosen);
        writing.done();
        nearly_full.map_or(Ok(answer), Err)
    }

    fn choose<'a>(&self, txn: &'a PbTxnRequest) -> Chosen<'a> {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let ops = ops.iter().map(|op| match request(op) {
            PbTxnOpRequest::RequestTxn(nested) => Op::Nested(self.choose(nested)),
            plain => Op::Plain(plain),
        });
        Chosen { succeeded, ops: ops.collect() }
    }

    /// Of a range, a compare holds if it does of every key in it; of no key, if it does of one that is absent.
    fn holds(&self, compare: &PbCompare) -> bool {
        let range = Range::new(&compare.key, &compare.range_end);
        let mut there = self.all(&range).peekable();
        if there.peek().is_some() {
            return there.all(|kv| holds_of(compare, kv));
        }
        compare.target != PbCompareTarget::Value as i32 && holds_of(compare, &PbKeyValue::default())
    }

    /// What would fail the whole of it: a lease that is gone, a revision that cannot be read.
    fn check(&self, chosen: &Chosen<'_>) -> Result<(), Status> {
        chosen.ops.iter().try_for_each(|op| match op {
            Op::Nested(nested) => self.check(nested),
            Op::Plain(PbTxnOpRequest::RequestPut(put)) => self.check_lease(put.lease),
            Op::Plain(PbTxnOpRequest::RequestRange(range)) => self.check_revision(range.revision),
            Op::Plain(_) => Ok(()),
        })
    }

    pub(super) fn check_lease(&self, lease: i64) -> Result<(), Status> {
        match lease == 0 || self.leases.exists(lease) {
            true => Ok(()),
            false => Err(Status::not_found("etcdserver: requested lease not found")),
        }
    }
}

fn holds_of(compare: &PbCompare, kv: &PbKeyValue) -> bool {
    let ordering = match compare.target_union.as_ref().expect("what to compare with") {
        PbTargetUnion::Version(version) => kv.version.cmp(version),
        PbTargetUnion::CreateRevision(revision) => kv.create_revision.cmp(revision),
        PbTargetUnion::ModRevision(revision) => kv.mod_revision.cmp(revision),
        PbTargetUnion::Value(value) => kv.value.cmp(value),
        PbTargetUnion::Lease(lease) => kv.lease.cmp(lease),
    };
    match compare.result {
        0 => ordering == Ordering::Equal,
        1 => ordering == Ordering::Greater,
        2 => ordering == Ordering::Less,
        _ => ordering != Ordering::Equal,
    }
}

impl Writing<'_> {
    fn apply(&mut self, chosen: &Chosen<'_>) -> PbTxnResponse {
        let responses = chosen.ops.iter().map(|op| {
            let response = match op {
                Op::Nested(nested) => PbTxnOpResponse::ResponseTxn(self.apply(nested)),
                Op::Plain(PbTxnOpRequest::RequestRange(range)) => {
                    PbTxnOpResponse::ResponseRange(self.data.range(range, self.now()))
                }
                Op::Plain(PbTxnOpRequest::RequestPut(put)) => {
                    self.put(put);
                    PbTxnOpResponse::ResponsePut(PbPutResponse::default())
                }
                Op::Plain(PbTxnOpRequest::RequestDeleteRange(delete)) => {
                    let deleted = self.delete(delete);
                    let response = PbDeleteResponse { deleted, ..PbDeleteResponse::default() };
                    PbTxnOpResponse::ResponseDeleteRange(response)
                }
                Op::Plain(PbTxnOpRequest::RequestTxn(_)) => unreachable!("it is nested"),
            };
            PbResponseOp { response: Some(response) }
        });
        PbTxnResponse { header: None, succeeded: chosen.succeeded, responses: responses.collect() }
    }
}

fn request(op: &PbTxnRequestOp) -> &PbTxnOpRequest {
    op.request.as_ref().expect("an operation")
}

/// Refuses a request for its size.
pub(super) fn check_size(request: &impl Message) -> Result<(), Status> {
    match request.encoded_len() > REQUEST_MAX_BYTES {
        true => Err(Status::invalid_argument("etcdserver: request is too large")),
        false => Ok(()),
    }
}

/// Each of the three lists counts by itself, and what is nested has what the largest of them left.
fn check_ops(txn: &PbTxnRequest, max: usize) -> Result<(), Status> {
    let count = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    if count > max {
        return Err(Status::invalid_argument("etcdserver: too many operations in txn request"));
    }
    txn.success.iter().chain(&txn.failure).try_for_each(|op| match request(op) {
        PbTxnOpRequest::RequestTxn(nested) => check_ops(nested, max - count),
        _ => Ok(()),
    })
}

/// No key may be put twice, whatever the compares decide: only the two branches of a transaction exclude each other.
fn check_puts(txn: &PbTxnRequest) -> Result<(), Status> {
    fn puts(ops: &[PbTxnRequestOp]) -> Result<BTreeSet<&[u8]>, Status> {
        let mut keys = BTreeSet::new();
        for op in ops {
            let more = match request(op) {
                PbTxnOpRequest::RequestPut(put) => BTreeSet::from([&put.key[..]]),
                PbTxnOpRequest::RequestTxn(nested) => {
                    let (mut success, failure) = (puts(&nested.success)?, puts(&nested.failure)?);
                    success.extend(failure);
                    success
                }
                _ => BTreeSet::new(),
            };
            if !keys.is_disjoint(&more) {
                return Err(Status::invalid_argument("etcdserver: duplicate key given in txn request"));
            }
            keys.extend(more);
        }
        Ok(keys)
    }
    puts(&txn.success).and(puts(&txn.failure)).map(drop)
}

fn may_put(txn: &PbTxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match request(op) {
        PbTxnOpRequest::RequestPut(_) => true,
        PbTxnOpRequest::RequestTxn(nested) => may_put(nested),
        _ => false,
    })
}

/// Refuses a write for want of room. The one that first hits the quota is done, and then answered with the error
/// that this brings.
pub(super) fn check_space(data: &mut Data) -> Result<Option<Status>, Status> {
    let no_space = Status::resource_exhausted("etcdserver: mvcc: database space exceeded");
    match std::mem::replace(&mut data.space, Space::Full) {
        Space::Enough => {
            data.space = Space::Enough;
            Ok(None)
        }
        Space::NearlyFull => Ok(Some(no_space)),
        Space::Full => Err(no_space),
    }
}
