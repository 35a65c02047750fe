//! What cannot be seen or brought about from outside.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use redb::backends::{FileBackend, InMemoryBackend};
use redb::{Database, ReadableTableMetadata};

use super::layout::{COUNTERS_ROW, Counters, FORMAT_ROW, Row, TABLE, record_row};
use super::log::Log;
use super::space::{RESERVE_BYTES, boundless};
use super::*;
use crate::clock::Moment;
use crate::record::limits::LOCK_TTL_MIN;
use crate::record::{DoubtCause, FencingToken, OnLapse, Outcome, OutcomeResult, RequestId, State, Timestamp};
use crate::store::Revision;
use crate::store::encoding::STORE_FORMAT;

/// How long a test waits for what another thread does.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Default)]
struct Hand(Arc<AtomicU64>);

impl Hand {
    fn clock(&self) -> Clock {
        let now_ms = Arc::clone(&self.0);
        Clock::from_fn(move || Moment::from_start(Duration::from_millis(now_ms.load(Ordering::SeqCst))))
    }

    fn pass(&self, time_ms: u64) {
        self.0.fetch_add(time_ms, Ordering::SeqCst);
    }
}

pub(super) fn claim() -> Record {
    Record {
        fencing_token: FencingToken::THIS_WRITE,
        attempt: 1,
        request_id: RequestId([1; 16]),
        owner: "holder".to_owned(),
        fingerprint: None,
        checkpoint: None,
        began_at: Timestamp::default(),
        retention: Duration::from_secs(60),
        state: State::InProgress {
            lock_ttl: LOCK_TTL_MIN,
            on_lapse: OnLapse::TakeOver,
            armed_at: Timestamp::default(),
        },
    }
}

fn completed(claim: &Record) -> Record {
    let outcome = Outcome {
        result: OutcomeResult::Response(Bytes::from_static(b"done")),
        content_type: String::new(),
        metadata: [].into(),
    };
    let completed_at = Timestamp::default();
    let state = State::Completed { outcome: Arc::new(outcome), completed_at, resolved_from: None };
    Record { state, ..claim.clone() }
}

pub(super) fn key(name: &str) -> RecordKey {
    RecordKey { namespace: Namespace::new("tests").unwrap(), key: Key::new(name).unwrap() }
}

fn start(database: Database, hand: &Hand, free_space: FreeSpace) -> EmbeddedStore {
    let halves = [(); 2].map(|()| Box::new(InMemoryBackend::new()) as Half);
    EmbeddedStore::start(database, halves, Path::new("memory"), hand.clock(), free_space, Meters::new(None))
        .unwrap()
}

fn database() -> Database {
    open::on_backend(InMemoryBackend::new()).unwrap()
}

fn put(database: &Database, row: &[u8], value: &[u8]) {
    let transaction = database.begin_write().unwrap();
    transaction.open_table(TABLE).unwrap().insert(row, value).unwrap();
    transaction.commit().unwrap();
}

/// Waits until what is stored is as wanted.
async fn until(store: &EmbeddedStore, wanted: impl Fn(&Data) -> bool) {
    let waiting = async {
        while !wanted(&store.shared.data) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the writer's upkeep");
}

fn rows(data: &Data) -> u64 {
    data.table().unwrap().len().unwrap()
}

fn stored_counters(data: &Data) -> Counters {
    let value = data.table().unwrap().get_owned(COUNTERS_ROW).unwrap().unwrap();
    Counters::parse(value.value()).unwrap()
}

#[tokio::test]
async fn a_store_of_a_newer_format_is_refused_and_left_as_it_is() {
    let directory = tempfile::TempDir::new().unwrap();
    drop(EmbeddedStore::open(directory.path(), Clock::system()).unwrap());
    let newer = STORE_FORMAT + 1;
    put(&open::in_directory(directory.path()).unwrap().0, FORMAT_ROW, &newer.to_be_bytes());
    for _ in 0..2 {
        let refused = EmbeddedStore::open(directory.path(), Clock::system()).err().unwrap();
        assert!(matches!(refused, OpenError::Format(..)), "{refused:?}");
        let text = refused.to_string();
        assert!(text.contains("a newer onced wrote it, in format 2"), "{text}");
        assert!(text.contains(directory.path().to_str().unwrap()), "{text}");
    }
}

#[test]
fn a_new_store_syncs_every_directory_that_may_name_a_new_one() {
    let root = tempfile::TempDir::new().unwrap();
    let [top, middle, directory] = ["a", "a/b", "a/b/c"].map(|it| root.path().join(it));
    let synced = RefCell::new(Vec::new());
    let sync = |above: &Path| {
        assert!(directory.is_dir(), "it was not there yet");
        synced.borrow_mut().push(above.to_owned());
        Ok(())
    };
    // Whoever made them the first time may have been killed before he synced them.
    for _ in 0..2 {
        open::make_directory(&directory, sync).unwrap();
        assert_eq!(synced.take()[..3], [middle.as_path(), &top, root.path()]);
    }
    File::create(directory.join("onced.redb")).unwrap();
    open::make_directory(&directory, sync).unwrap();
    assert_eq!(synced.take(), [] as [PathBuf; 0]);
    open::make_directory(Path::new("src"), sync).unwrap();
    assert_eq!(synced.take(), [Path::new(".")]);
}

#[test]
fn a_directory_that_cannot_be_synced_ends_the_opening_unless_it_cannot_be_a_new_one() {
    let root = tempfile::TempDir::new().unwrap();
    let directory = root.path().join("a/b");
    let fail =
        |kind| move |above: &Path| if above.ends_with("a") { Ok(()) } else { Err(io::Error::from(kind)) };
    match open::make_directory(&directory, fail(io::ErrorKind::Other)) {
        Err(OpenError::Io(path, _)) => assert_eq!(path, root.path()),
        other => panic!("{other:?}"),
    }
    open::make_directory(&directory, fail(io::ErrorKind::PermissionDenied)).unwrap();
}

/// A file whose disk fails once told to.
#[derive(Clone, Debug, Default)]
struct Failing(Arc<InMemoryBackend>, Arc<AtomicBool>);

impl Failing {
    fn fail(&self) {
        self.1.store(true, Ordering::SeqCst);
    }

    fn checked<T>(&self, done: io::Result<T>) -> io::Result<T> {
        if self.1.load(Ordering::SeqCst) { Err(io::Error::other("a broken sector")) } else { done }
    }
}

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.checked(self.0.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.checked(self.0.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.checked(self.0.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.checked(StorageBackend::write(&*self.0, offset, data))
    }
}

/// A commit of one row to the log, which begins after `before`.
fn commit(log: &mut Log, before: Counters, value: &[u8]) -> Counters {
    let after = Counters { revision: Revision(before.revision.0 + 1), ..before };
    log.begin();
    log.put(b"row", Some(value));
    log.commit(before, after).unwrap();
    after
}

#[test]
fn a_disk_that_fails_as_the_store_is_opened_is_told_from_damage_and_the_file_is_named() {
    let [tree, even, odd] = [(); 3].map(|()| Failing::default());
    let halves = || [&even, &odd].map(|half| Box::new(half.clone()) as Half);
    let directory = Path::new("data");
    let database = open::on_backend(tree.clone()).unwrap();
    let counters = open::counters(&database, directory).unwrap();
    commit(&mut Log::open(halves(), counters, directory).unwrap().0, counters, b"value");
    let refusal = || open::log(&database, halves(), counters, directory).err().unwrap();
    let failed = |file: &str| match refusal() {
        OpenError::Io(path, cause) => {
            assert_eq!((path, cause.to_string().as_str()), (directory.join(file), "a broken sector"));
        }
        other => panic!("{other:?}"),
    };
    // What the log holds is read well, and cannot be moved to the tree.
    tree.fail();
    failed("onced.redb");
    odd.fail();
    failed("onced.log.1");
    even.fail();
    failed("onced.log.0");
}

#[test]
fn a_log_that_makes_no_sense_is_damaged_and_named() {
    let halves = [(); 2].map(|()| Failing::default());
    let open = |counters| {
        let halves = halves.each_ref().map(|half| Box::new(half.clone()) as Half);
        Log::open(halves, counters, Path::new("data"))
    };
    let damage = |counters| match open(counters).err().unwrap() {
        OpenError::Damaged(path, why) => (path, why),
        other => panic!("{other:?}"),
    };
    let mut log = open(Counters::NEW).unwrap().0;
    let first = commit(&mut log, Counters::NEW, b"value");
    log.change_half();
    // A commit that no frame leads to.
    let later = Counters { revision: Revision(first.revision.0 + 5), ..first };
    commit(&mut log, later, b"value");
    let (path, why) = damage(Counters::NEW);
    assert_eq!((path.as_path(), why.as_str()), (Path::new("data"), "a part of the log is missing"));
    // A frame with a right sum, whose rows are a single byte.
    let summed = [&41_u32.to_be_bytes(), &[0; 41][..]].concat();
    let senseless = [&crc32fast::hash(&summed).to_be_bytes(), &summed[..]].concat();
    halves[0].set_len(senseless.len() as u64).unwrap();
    StorageBackend::write(&halves[0], 0, &senseless).unwrap();
    let (path, why) = damage(Counters::NEW);
    assert_eq!(
        (path, why.as_str()),
        (Path::new("data/onced.log.0").into(), "a frame of the log makes no sense")
    );
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_corrupt_and_harms_no_other() {
    let database = database();
    open::counters(&database, Path::new("memory")).unwrap();
    // Format 9, and nothing more; no revision; no record.
    put(&database, &record_row(&key("newer")), &Row { revision: Revision(1), stored: &[8, 9] }.to_value());
    put(&database, &record_row(&key("short")), b"short");
    put(&database, &record_row(&key("garbage")), &[0xff; 40]);
    // Format 1, kept for 500 ms, and in no state.
    let expires = Row { revision: Revision(1), stored: &[8, 1, 0xa8, 1, 0xf4, 3] }.to_value();
    put(&database, &record_row(&key("expires")), &expires);
    let hand = Hand::default();
    let store = start(database, &hand, boundless());
    for name in ["newer", "short", "garbage"] {
        let key = key(name);
        assert!(matches!(store.load(&key).await, Err(StoreError::Corrupt { .. })), "{name}");
        for expected in [Expected::Absent, Expected::At(Revision(1))] {
            let (next, good_key) = (claim(), self::key(&format!("good {name} {expected:?}")));
            let (swap, good) = tokio::join!(
                store.swap(&key, expected, Some(&next)),
                store.swap(&good_key, Expected::Absent, Some(&next)),
            );
            assert!(matches!(swap, Err(StoreError::Corrupt { .. })), "{name}: {swap:?}");
            assert!(matches!(good, Ok(Swapped::Done(_))), "{good:?}");
        }
    }
    let (expires, next) = (key("expires"), claim());
    assert!(matches!(store.load(&expires).await, Err(StoreError::Corrupt { .. })));
    hand.pass(1_000);
    assert!(matches!(store.load(&expires).await, Ok(None)));
    assert!(matches!(store.swap(&expires, Expected::Absent, Some(&next)).await, Ok(Swapped::Done(_))));
    // In order of key, the first of them.
    let page = store.scan(&Namespace::new("tests").unwrap(), None, 10).await;
    let named = page.as_ref().err().and_then(StoreError::corrupt_key);
    assert_eq!(named, Some(&key("garbage")), "{page:?}");
}

#[tokio::test]
async fn when_space_is_low_claims_are_refused_and_all_else_goes_on() {
    let (hand, free) = (Hand::default(), Arc::new(AtomicU64::new(RESERVE_BYTES)));
    let probe = Arc::clone(&free);
    let store = start(database(), &hand, Box::new(move || Ok(probe.load(Ordering::SeqCst))));
    let done = |swapped| match swapped {
        Ok(Swapped::Done(revision)) => Expected::At(revision),
        other => panic!("{other:?}"),
    };
    let claimed = done(store.swap(&key("k"), Expected::Absent, Some(&claim())).await);
    free.store(RESERVE_BYTES - 1, Ordering::SeqCst);
    hand.pass(1_000);
    let refused = store.swap(&key("new"), Expected::Absent, Some(&claim())).await;
    assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    assert_eq!(store.load(&key("new")).await, Ok(None));
    // Whoever loses hears that first, and who holds a claim can renew, complete and be deleted.
    let lost = store.swap(&key("k"), Expected::Absent, Some(&claim())).await;
    assert!(matches!(lost, Ok(Swapped::Conflict(Some(_)))), "{lost:?}");
    let mine = store.load(&key("k")).await.unwrap().unwrap().record;
    let renewed = done(store.swap(&key("k"), claimed, Some(&mine)).await);
    let completed = done(store.swap(&key("k"), renewed, Some(&completed(&mine))).await);
    done(store.swap(&key("k"), completed, None).await);
    free.store(RESERVE_BYTES, Ordering::SeqCst);
    hand.pass(1_000);
    done(store.swap(&key("new"), Expected::Absent, Some(&claim())).await);
}

#[tokio::test]
async fn not_knowing_the_free_space_refuses_nothing() {
    let store = start(database(), &Hand::default(), Box::new(|| Err(io::Error::other("no such call"))));
    let swapped = store.swap(&key("k"), Expected::Absent, Some(&claim())).await;
    assert!(matches!(swapped, Ok(Swapped::Done(_))), "{swapped:?}");
}

#[tokio::test]
async fn the_sweep_removes_what_expired_and_nothing_else() {
    const RECORDS: u64 = 5_000; // More than a step of the sweep.
    let hand = Hand::default();
    let store = start(database(), &hand, boundless());
    let before = rows(&store.shared.data);
    let record = claim();
    let swaps = (0..RECORDS).map(|index| {
        let (store, record) = (&store, &record);
        async move { store.swap(&key(&format!("k{index}")), Expected::Absent, Some(record)).await }
    });
    for swapped in futures_util::future::join_all(swaps).await {
        assert!(matches!(swapped, Ok(Swapped::Done(_))), "{swapped:?}");
    }
    let doubt = State::InDoubt { since: Timestamp::default(), cause: DoubtCause::Lapse };
    let doubtful = Record { state: doubt, ..claim() };
    store.swap(&key("in doubt"), Expected::Absent, Some(&doubtful)).await.unwrap();
    hand.pass(1_000);
    until(&store, |data| rows(data) == before + RECORDS + 1).await;
    hand.pass(24 * 3_600_000);
    // The clock moves on, as it does, so that one step follows another.
    until(&store, |data| {
        hand.pass(1_000);
        // Their locks are forgotten, too.
        rows(data) == before + 1 && data.times.locks() == 0
    })
    .await;
    assert!(store.load(&key("in doubt")).await.unwrap().is_some());
}

#[tokio::test]
async fn pages_show_what_was_written_lately_in_place_of_what_lies_in_the_tree() {
    let hand = Hand::default();
    let store = start(database(), &hand, boundless());
    let before = rows(&store.shared.data);
    let mut known = BTreeMap::new();
    for name in ["b", "d", "f", "h"] {
        known.insert(name, store.swap(&key(name), Expected::Absent, Some(&claim())).await.unwrap());
    }
    hand.pass(1_000);
    until(&store, |data| rows(data) == before + 4).await;
    // Before, between and after; in place of one, and one removed.
    for name in ["a", "c", "d", "i"] {
        let expected = match known.get(name) {
            Some(Swapped::Done(revision)) => Expected::At(*revision),
            _ => Expected::Absent,
        };
        known.insert(name, store.swap(&key(name), expected, Some(&claim())).await.unwrap());
    }
    let Some(Swapped::Done(removed)) = known.remove("f") else { panic!("f was not written") };
    store.swap(&key("f"), Expected::At(removed), None).await.unwrap();
    assert_eq!(rows(&store.shared.data), before + 4, "it was moved too early for this test");
    for limit in [1, 2, 3, 100] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = store.scan(&Namespace::new("tests").unwrap(), after.as_ref(), limit).await.unwrap();
            assert!(page.records.len() <= limit);
            found.extend(page.records.into_iter().map(|(key, loaded)| (key, loaded.revision)));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let expected = known.iter().map(|(name, swapped)| match swapped {
            Swapped::Done(revision) => (Key::new(name).unwrap(), *revision),
            Swapped::Conflict(current) => panic!("{name} was {current:?}"),
        });
        assert_eq!(found, expected.collect::<Vec<_>>(), "{limit} a page");
    }
}

/// The clock moves with every round, so that something is being moved all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_being_moved_is_found() {
    const KEYS: usize = 100;
    const ROUNDS: usize = 100;
    let hand = Hand::default();
    let store = start(database(), &hand, boundless());
    let mut expected = vec![Expected::Absent; KEYS];
    for round in 0..ROUNDS {
        hand.pass(1_000);
        let swaps = expected.iter().enumerate().map(|(index, expected)| {
            let (store, record) = (&store, claim());
            async move { store.swap(&key(&format!("k{index}")), *expected, Some(&record)).await }
        });
        let swapped = futures_util::future::join_all(swaps).await;
        for (expected, swapped) in expected.iter_mut().zip(swapped) {
            match swapped {
                Ok(Swapped::Done(revision)) => *expected = Expected::At(revision),
                other => panic!("round {round}: {other:?}"),
            }
        }
        let loads = (0..KEYS).map(|index| {
            let store = &store;
            async move { store.load(&key(&format!("k{index}"))).await }
        });
        for (expected, loaded) in expected.iter().zip(futures_util::future::join_all(loads).await) {
            assert_eq!(Expected::of(loaded.unwrap().as_ref()), *expected, "round {round}");
        }
    }
}

/// redb sees that in a debug build alone, and then the mover panics.
#[test]
fn no_page_that_is_being_read_is_given_to_the_mover() {
    let data = &start(database(), &Hand::default(), boundless()).shared.data;
    let row = record_row(&key("k"));
    let write = |value: &[u8]| {
        let rows = [(row.clone(), Some(Bytes::copy_from_slice(value)))].into();
        mover::write(&data.database, Counters::NEW, &rows, &mover::Pace::Alone).unwrap();
    };
    write(b"old");
    let read = data.with_row(&row, |value| {
        (0..10).for_each(|_| write(b"new"));
        Ok(value.to_vec())
    });
    assert_eq!(read.unwrap().unwrap(), b"old");
}

#[tokio::test]
async fn running_time_is_written_down_while_nothing_else_is() {
    let hand = Hand::default();
    let store = start(database(), &hand, boundless());
    let before = stored_counters(&store.shared.data);
    hand.pass(25_000);
    until(&store, |data| stored_counters(data).running_ms >= before.running_ms + 25_000).await;
    assert_eq!(stored_counters(&store.shared.data).revision, before.revision);
}

#[tokio::test]
async fn locks_and_alarms_are_forgotten_with_what_they_were_for() {
    let store = start(database(), &Hand::default(), boundless());
    let watch = store.watch(&key("k")).await.unwrap();
    let mut expected = Expected::Absent;
    for next in [Some(claim()), Some(claim()), Some(completed(&claim())), None] {
        match store.swap(&key("k"), expected, next.as_ref()).await.unwrap() {
            Swapped::Done(revision) => expected = Expected::At(revision),
            Swapped::Conflict(current) => panic!("{current:?}"),
        }
        assert!(store.shared.data.times.locks() <= 1);
        assert!(store.shared.alarms.count() <= 2);
    }
    assert_eq!((store.shared.data.times.locks(), store.shared.alarms.count()), (0, 0));
    store.swap(&key("k"), Expected::Absent, Some(&claim())).await.unwrap();
    assert_eq!((store.shared.data.times.locks(), store.shared.alarms.count()), (1, 2));
    drop(watch);
    assert_eq!(store.shared.alarms.count(), 0);
}

#[test]
fn what_an_earlier_generation_left_in_the_log_is_never_taken_for_a_frame() {
    for (length, shift) in [1, 41].into_iter().flat_map(|length| (0..8 + length).map(move |it| (length, it)))
    {
        // What a caller may have stored: its sum is right, and there is no sense in it.
        let summed = [&u32::try_from(length).unwrap().to_be_bytes(), &vec![0; length][..]].concat();
        let made_up = [&crc32fast::hash(&summed).to_be_bytes(), &summed[..]].concat();
        let files = [(); 2].map(|()| tempfile::tempfile().unwrap());
        let half = |file: &File| Box::new(FileBackend::new(file.try_clone().unwrap()).unwrap()) as Half;
        let open = |counters| Log::open(files.each_ref().map(half), counters, Path::new("log")).unwrap();
        let mut log = open(Counters::NEW).0;
        let in_tree = commit(&mut log, Counters::NEW, &made_up.repeat(100));
        log.change_half();
        log.change_half();
        let newest = commit(&mut log, in_tree, &vec![0; shift]);
        assert_eq!(open(in_tree).1.counters, newest, "{length}, {shift}");
    }
}
