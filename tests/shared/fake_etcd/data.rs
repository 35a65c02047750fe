//! Keys, their revisions, and what happened to them.

use std::collections::BTreeMap;

use etcd_client::EventType;
use etcd_client::proto::{
    PbDeleteRequest, PbEvent, PbKeyValue, PbPutRequest, PbRangeRequest, PbRangeResponse,
};
use tonic::Status;

use super::lease::Leases;

/// All that the members agree on.
pub struct Data {
    revision: i64,
    /// Nothing before this revision can be read.
    compacted: i64,
    /// The versions of each key, the last one last.
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    /// What happened at each revision.
    log: BTreeMap<i64, Vec<PbEvent>>,
    pub(super) leases: Leases,
    pub(super) space: Space,
}

struct Version {
    at: i64,
    /// `None`: it was deleted.
    kv: Option<PbKeyValue>,
}

/// Whether there is room to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Enough,
    /// The next write hits the quota: it is refused, and done all the same.
    NearlyFull,
    /// The alarm is raised.
    Full,
}

/// Keys from one on, to before another.
#[derive(Clone)]
pub(super) struct Range {
    from: Vec<u8>,
    to: To,
}

#[derive(Clone)]
enum To {
    Itself,
    Before(Vec<u8>),
    TheEnd,
}

impl Range {
    pub(super) fn new(key: &[u8], end: &[u8]) -> Self {
        let to = match end {
            [] => To::Itself,
            [0] => To::TheEnd,
            end => To::Before(end.to_vec()),
        };
        Self { from: key.to_vec(), to }
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        match &self.to {
            To::Itself => key == self.from,
            To::Before(end) => (&self.from[..]..&end[..]).contains(&key),
            To::TheEnd => key >= &self.from[..],
        }
    }
}

impl Default for Data {
    fn default() -> Self {
        Self {
            // As of an etcd where nothing was written yet.
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            log: BTreeMap::new(),
            leases: Leases::default(),
            space: Space::Enough,
        }
    }
}

impl Data {
    pub fn revision(&self) -> i64 {
        self.revision
    }

    pub fn set_space(&mut self, space: Space) {
        self.space = space;
    }

    /// What is read before was compacted away.
    pub(super) fn compacted(&self) -> i64 {
        self.compacted
    }

    /// What is there now.
    pub fn get(&self, key: &[u8]) -> Option<&PbKeyValue> {
        self.keys.get(key)?.last()?.kv.as_ref()
    }

    /// What is there of a range now.
    pub(super) fn all(&self, range: &Range) -> impl Iterator<Item = &PbKeyValue> {
        self.all_at(range, self.revision)
    }

    fn all_at(&self, range: &Range, revision: i64) -> impl Iterator<Item = &PbKeyValue> {
        self.keys.range(range.from.clone()..).take_while(|(key, _)| range.contains(key)).filter_map(
            move |(_, versions)| versions.iter().rev().find(|version| version.at <= revision)?.kv.as_ref(),
        )
    }

    /// Whether a revision can be read; 0 is the present one.
    pub(super) fn check_revision(&self, revision: i64) -> Result<(), Status> {
        match revision {
            0 => Ok(()),
            revision => self.check_range(revision, self.compacted),
        }
    }

    /// Whether what was before a revision can be compacted.
    pub(super) fn check_compaction(&self, revision: i64) -> Result<(), Status> {
        self.check_range(revision, self.compacted + 1)
    }

    fn check_range(&self, revision: i64, from: i64) -> Result<(), Status> {
        if revision < from {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision has been compacted"));
        }
        if revision > self.revision {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision is a future revision"));
        }
        Ok(())
    }

    /// Reads keys. `now` is the revision that counts as the present one.
    pub(super) fn range(&self, request: &PbRangeRequest, now: i64) -> PbRangeResponse {
        assert!(!request.serializable, "the store reads nothing that may be stale");
        assert_eq!((request.sort_order, request.sort_target), (0, 0), "not in this etcd");
        let revision = if request.revision == 0 { now } else { request.revision };
        let range = Range::new(&request.key, &request.range_end);
        let count = self.all_at(&range, revision).count();
        let limit = usize::try_from(request.limit).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX);
        let mut kvs = Vec::new();
        if !request.count_only {
            kvs.extend(self.all_at(&range, revision).take(limit).cloned());
        }
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        let more = !request.count_only && count > limit;
        PbRangeResponse { header: None, kvs, more, count: i64::try_from(count).expect("few keys") }
    }

    /// What happened to a range of keys from a revision on, by revision.
    pub(super) fn happened(&self, range: &Range, from: i64) -> impl Iterator<Item = (i64, Vec<PbEvent>)> {
        self.log.range(from..).filter_map(move |(&at, events)| {
            let of_range = |event: &&PbEvent| event.kv.as_ref().is_some_and(|kv| range.contains(&kv.key));
            let events: Vec<PbEvent> = events.iter().filter(of_range).cloned().collect();
            (!events.is_empty()).then_some((at, events))
        })
    }

    /// What was put after a revision.
    pub fn puts_after(&self, revision: i64) -> impl Iterator<Item = &PbKeyValue> {
        let events = self.log.range(revision + 1..).flat_map(|(_, events)| events);
        events.filter(|event| event.r#type() == EventType::Put).filter_map(|event| event.kv.as_ref())
    }

    /// Forgets what was before a revision.
    pub fn compact(&mut self, revision: i64) {
        self.compacted = revision.clamp(self.compacted, self.revision);
        let compacted = self.compacted;
        for versions in self.keys.values_mut() {
            let kept = versions.iter().rposition(|version| version.at <= compacted).unwrap_or(0);
            versions.drain(..kept);
            if matches!(versions[..], [Version { at, kv: None }] if at <= compacted) {
                versions.clear();
            }
        }
        self.keys.retain(|_, versions| !versions.is_empty());
        self.log = self.log.split_off(&(compacted + 1));
    }

    /// Everything that is there, as far as it is shown: the same at all times means the same data.
    pub fn digest(&self, mut note: impl FnMut(&[u8])) {
        for (key, versions) in &self.keys {
            note(key);
            for Version { at, kv } in versions {
                note(&at.to_be_bytes());
                note(&kv.as_ref().map_or(0, |kv| kv.value.len()).to_be_bytes());
            }
        }
    }

    pub(super) fn write(&mut self) -> Writing<'_> {
        let at = self.revision + 1;
        Writing { at, events: Vec::new(), data: self }
    }
}

/// Writes that share a revision.
pub(super) struct Writing<'a> {
    pub(super) data: &'a mut Data,
    at: i64,
    events: Vec<PbEvent>,
}

impl Writing<'_> {
    /// The revision that a read sees now.
    pub(super) fn now(&self) -> i64 {
        if self.events.is_empty() { self.data.revision } else { self.at }
    }

    /// Puts a key on a lease that exists, or on none.
    pub(super) fn put(&mut self, request: &PbPutRequest) {
        assert!(!(request.prev_kv || request.ignore_value || request.ignore_lease), "not in this etcd");
        let before = self.data.get(&request.key);
        let (create_revision, version) =
            before.map_or((self.at, 1), |before| (before.create_revision, before.version + 1));
        let kv = PbKeyValue {
            key: request.key.clone(),
            create_revision,
            mod_revision: self.at,
            version,
            value: request.value.clone(),
            lease: request.lease,
        };
        self.data.leases.attach(&kv.key, kv.lease);
        self.note(EventType::Put, kv.clone(), Some(kv));
    }

    /// Deletes keys, and tells how many were there.
    pub(super) fn delete(&mut self, request: &PbDeleteRequest) -> i64 {
        assert!(!request.prev_kv, "not in this etcd");
        let range = Range::new(&request.key, &request.range_end);
        let keys: Vec<Vec<u8>> = self.data.all_at(&range, self.at).map(|kv| kv.key.clone()).collect();
        let deleted = i64::try_from(keys.len()).expect("few keys");
        for key in keys {
            self.data.leases.attach(&key, 0);
            let gone = PbKeyValue { key, mod_revision: self.at, ..PbKeyValue::default() };
            self.note(EventType::Delete, gone, None);
        }
        deleted
    }

    fn note(&mut self, kind: EventType, told: PbKeyValue, kv: Option<PbKeyValue>) {
        let versions = self.data.keys.entry(told.key.clone()).or_default();
        versions.push(Version { at: self.at, kv });
        self.events.push(PbEvent { r#type: kind.into(), kv: Some(told), prev_kv: None });
    }

    /// Ends it: if anything was written, there is a new revision.
    pub(super) fn done(self) {
        if !self.events.is_empty() {
            self.data.revision = self.at;
            self.data.log.insert(self.at, self.events);
        }
    }
}
