//! The parts of a call that are neither network nor store: what a record becomes, its stored form, the hand-off of an
//! outcome to those who wait, and the batches that go to etcd. `cargo bench --bench micro` compares with the run before.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use onced::coordinator::measuring::hand_off;
use onced::record::{
    Begin, Command, Decision, FencingToken, Fingerprint, Key, Lock, Namespace, OnLapse, Outcome,
    OutcomeResult, Record, RecordKey, RequestId, Seen, Timestamp, decide,
};
use onced::store::measuring::{Batch, decode, encode};
use onced::store::{Loaded, Revision};

const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

fn begin(caller: u8) -> Begin {
    Begin {
        request_id: RequestId([caller; 16]),
        owner: "orders@host-17".to_owned(),
        fingerprint: Fingerprint::new(Bytes::from_static(&[7; 32])),
        lock_ttl: Duration::from_secs(30),
        retention: Duration::from_secs(86_400),
        on_lapse: OnLapse::TakeOver,
    }
}

fn complete(bytes: usize) -> Command {
    let result = OutcomeResult::Response(vec![b'x'; bytes].into());
    let outcome = Outcome { result, content_type: "application/json".to_owned(), metadata: BTreeMap::new() };
    Command::Complete { token: FencingToken(1), outcome: Arc::new(outcome), retention: None }
}

/// The record that a command leaves.
fn after(command: &Command, current: Option<&Record>) -> Record {
    let seen = current.map(|record| Seen { record, lock: Lock::Held });
    match decide(command, seen, NOW) {
        Decision::Write(change) => change.into_next().map(|record| record.written_at(1)),
        Decision::Unchanged | Decision::Wait | Decision::Refuse(_) => None,
    }
    .unwrap_or_else(|| panic!("{command:?} writes nothing"))
}

fn in_progress() -> Record {
    after(&Command::Begin(begin(1)), None)
}

fn completed(bytes: usize) -> Record {
    after(&complete(bytes), Some(&in_progress()))
}

fn decisions(criterion: &mut Criterion) {
    let (held, done) = (in_progress(), completed(256));
    let mut group = criterion.benchmark_group("decide");
    for (name, command, current) in [
        ("begin of a new key", Command::Begin(begin(1)), None),
        ("begin of a held key", Command::Begin(begin(2)), Some(&held)),
        ("begin of a completed key", Command::Begin(begin(2)), Some(&done)),
        ("complete", complete(256), Some(&held)),
    ] {
        let seen = current.map(|record| Seen { record, lock: Lock::Held });
        group.bench_function(name, |bencher| {
            bencher.iter(|| decide(black_box(&command), black_box(seen), NOW))
        });
    }
    group.finish();
}

fn stored_form(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stored form");
    for bytes in [256, 16 << 10] {
        let record = completed(bytes);
        let stored = encode(&record);
        assert_eq!(decode(&stored), Some(record.clone()), "it is measured as it is used");
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("encode", bytes), |bencher| {
            bencher.iter(|| encode(black_box(&record)));
        });
        group.bench_function(BenchmarkId::new("decode", bytes), |bencher| {
            bencher.iter(|| decode(black_box(&stored)));
        });
    }
    group.finish();
}

fn rooms(criterion: &mut Criterion) {
    let loaded = |record, revision| Loaded {
        record: Arc::new(record),
        revision: Revision(revision),
        lock: Lock::Held,
    };
    let (held, done) = (loaded(in_progress(), 1), loaded(completed(256), 2));
    let mut group = criterion.benchmark_group("hand-off");
    for count in [1, 10, 100, 1_000] {
        let callers = vec![begin(2); count];
        assert_eq!(hand_off(callers.clone(), &held, &done), count, "all of them are answered");
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter_batched(
                || callers.clone(),
                |callers| hand_off(callers, &held, &done),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn batches(criterion: &mut Criterion) {
    let stored = encode(&completed(256));
    let key = |number| {
        let (namespace, key) = (Namespace::new("orders"), Key::new(&format!("order-{number:036}")));
        namespace.zip(key).map(|(namespace, key)| RecordKey { namespace, key })
    };
    let mut group = criterion.benchmark_group("batch");
    for count in [1, 10, 100] {
        let keys: Vec<_> = (0..count).filter_map(key).collect();
        assert_eq!(keys.len(), count, "names of records");
        let batch = Batch::new(&keys, &stored).unwrap_or_else(|why| panic!("{why}"));
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new("flat", count), |bencher| bencher.iter(|| batch.flat()));
        group.bench_function(BenchmarkId::new("nested", count), |bencher| bencher.iter(|| batch.nested()));
    }
    group.finish();
}

criterion_group!(micro, decisions, stored_form, rooms, batches);
criterion_main!(micro);
