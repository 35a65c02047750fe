//! Leases, and the keys that hang on them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use etcd_client::proto::{PbDeleteRequest, PbLeaseGrantRequest};
use onced::clock::Moment;
use tonic::Status;

use super::data::Data;
use super::txn::check_space;

/// What etcd makes of less.
const TTL_MIN_SECONDS: i64 = 2;

#[derive(Default)]
pub(super) struct Leases {
    by_id: BTreeMap<i64, Lease>,
    of_key: BTreeMap<Vec<u8>, i64>,
}

struct Lease {
    ttl: Duration,
    ends: Moment,
    keys: BTreeSet<Vec<u8>>,
}

impl Leases {
    pub(super) fn exists(&self, id: i64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Hangs a key on a lease, 0 being none, and takes it off its last one.
    pub(super) fn attach(&mut self, key: &[u8], id: i64) {
        if let Some(before) = self.of_key.remove(key)
            && let Some(lease) = self.by_id.get_mut(&before)
        {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.insert(key.to_vec());
            self.of_key.insert(key.to_vec(), id);
        }
    }
}

impl Data {
    pub(super) fn grant(&mut self, request: &PbLeaseGrantRequest, now: Moment) -> Result<i64, Status> {
        assert!(request.id > 0, "the store chooses its ids");
        let (nearly_full, id) = (check_space(self)?, request.id);
        if self.leases.exists(id) {
            return Err(Status::failed_precondition("etcdserver: lease already exists"));
        }
        let seconds = request.ttl.max(TTL_MIN_SECONDS);
        let ttl = Duration::from_secs(seconds.unsigned_abs());
        self.leases.by_id.insert(id, Lease { ttl, ends: now + ttl, keys: BTreeSet::new() });
        nearly_full.map_or(Ok(seconds), Err)
    }

    /// Ends a lease, and deletes what hangs on it.
    pub fn revoke(&mut self, id: i64) -> Result<(), Status> {
        let Some(lease) = self.leases.by_id.get_mut(&id) else {
            return Err(Status::not_found("etcdserver: requested lease not found"));
        };
        let keys = std::mem::take(&mut lease.keys);
        let mut writing = self.write();
        for key in keys {
            writing.delete(&PbDeleteRequest { key, ..PbDeleteRequest::default() });
        }
        writing.done();
        self.leases.by_id.remove(&id);
        Ok(())
    }

    /// Ends the leases whose time is up.
    pub(super) fn end_leases(&mut self, now: Moment) {
        let over = self.leases.by_id.iter().filter(|(_, lease)| lease.ends <= now);
        for id in over.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.revoke(id).expect("it exists");
        }
    }

    /// Gives every lease its whole TTL again, as a new leader does.
    pub fn renew_leases(&mut self, now: Moment) {
        self.leases.by_id.values_mut().for_each(|lease| lease.ends = now + lease.ttl);
    }

    /// The leases on which a key hangs whose name has this in it.
    pub fn leases_of(&self, part: &str) -> Vec<i64> {
        let has_part = |key: &&Vec<u8>| key.windows(part.len()).any(|at| at == part.as_bytes());
        let leases =
            self.leases.by_id.iter().filter(|(_, lease)| lease.keys.iter().any(|key| has_part(&key)));
        leases.map(|(&id, _)| id).collect()
    }
}
