//! Opening a store: by whom, where, and what it finds.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use onced::clock::Clock;
use onced::record::Lock;
use onced::record::limits::LOCK_TTL_MIN;
use onced::store::RecordStore;
use onced::store::embedded::{EmbeddedStore, OpenError};
use tempfile::TempDir;

use super::ManualClock;
use crate::store::fixture::{as_written, claim, completed, create, key, load};

fn refusal(directory: &Path) -> OpenError {
    match EmbeddedStore::open(directory, Clock::system()) {
        Ok(_) => panic!("{} was opened", directory.display()),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_second_handle_on_one_directory_is_refused_until_the_first_is_gone() {
    let directory = TempDir::new().unwrap();
    let first = EmbeddedStore::open(directory.path(), Clock::system()).unwrap();
    let refused = refusal(directory.path());
    assert!(matches!(refused, OpenError::InUse(_)), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains("in use") && text.contains(directory.path().to_str().unwrap()), "{text}");
    drop(first);
    EmbeddedStore::open(directory.path(), Clock::system()).unwrap();
}

#[tokio::test]
async fn missing_directories_are_made() {
    let root = TempDir::new().unwrap();
    let directory = root.path().join("a/b");
    let store = Arc::new(EmbeddedStore::open(&directory, Clock::system()).unwrap()) as Arc<dyn RecordStore>;
    create(&store, &key("k"), &completed("holder", "done")).await;
    drop(store);
    let store = Arc::new(EmbeddedStore::open(&directory, Clock::system()).unwrap()) as Arc<dyn RecordStore>;
    assert_eq!(load(&store, &key("k")).await.record.owner, "holder");
}

#[cfg(unix)]
#[test]
fn only_the_owner_may_look_into_it() {
    use std::os::unix::fs::PermissionsExt;
    let root = TempDir::new().unwrap();
    let directory = root.path().join("data");
    let _store = EmbeddedStore::open(&directory, Clock::system()).unwrap();
    let files = ["onced.redb", "onced.log.0", "onced.log.1"].map(|name| (directory.join(name), 0o600));
    for (path, mode) in [(directory.clone(), 0o700)].into_iter().chain(files) {
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
    }
}

#[test]
fn what_cannot_be_opened_is_named() {
    let root = TempDir::new().unwrap();
    let file = root.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    for (directory, why) in [(file.clone(), "no directory"), (file.join("below"), "Not a directory")] {
        let text = refusal(&directory).to_string();
        assert!(text.contains(file.to_str().unwrap()) && text.contains(why), "{text}");
    }
}

#[test]
fn what_is_no_store_is_left_alone() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("onced.redb");
    let text = "something else entirely".repeat(1_000);
    std::fs::write(&file, &text).unwrap();
    let refused = refusal(directory.path());
    assert!(matches!(&refused, OpenError::Damaged(path, _) if *path == file), "{refused}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn what_was_cut_short_is_damaged() {
    let directory = TempDir::new().unwrap();
    drop(EmbeddedStore::open(directory.path(), Clock::system()).unwrap());
    let file = directory.path().join("onced.redb");
    let whole = std::fs::read(&file).unwrap();
    for length in [100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).unwrap();
        let refused = refusal(directory.path());
        assert!(matches!(&refused, OpenError::Damaged(path, _) if *path == file), "{length}: {refused}");
    }
}

/// Where the tree says of what type its rows are, which nothing but redb's own reading checks.
#[test]
fn what_redb_panics_at_is_damaged() {
    const TYPE: &[u8] = b"&[u8]";
    let directory = TempDir::new().unwrap();
    drop(EmbeddedStore::open(directory.path(), Clock::system()).unwrap());
    let file = directory.path().join("onced.redb");
    let mut bytes = std::fs::read(&file).unwrap();
    let types: Vec<usize> = (1..bytes.len()).filter(|&at| bytes[at..].starts_with(TYPE)).collect();
    assert!(!types.is_empty(), "the tree says it otherwise");
    types.iter().for_each(|at| bytes[at - 1] = 0xff);
    std::fs::write(&file, &bytes).unwrap();
    let refused = refusal(directory.path());
    assert!(matches!(refused, OpenError::Damaged(..)), "{refused}");
}

#[tokio::test]
async fn a_restart_gives_every_claim_its_full_lock_ttl_again() {
    const MOMENT: Duration = Duration::from_millis(1);
    let (directory, clock) = (TempDir::new().unwrap(), ManualClock::default());
    let open = || {
        let store = EmbeddedStore::open(directory.path(), clock.clock()).unwrap();
        Arc::new(store) as Arc<dyn RecordStore>
    };
    let store = open();
    let revision = create(&store, &key("k"), &claim("holder")).await;
    clock.pass(LOCK_TTL_MIN - MOMENT);
    drop(store);

    let store = open();
    clock.pass(LOCK_TTL_MIN - MOMENT);
    assert_eq!(load(&store, &key("k")).await, as_written(&claim("holder"), revision));
    // It counts for this process's own claims, too, which are no older than their commit.
    create(&store, &key("new"), &claim("holder")).await;
    clock.pass(MOMENT);
    assert_eq!(load(&store, &key("k")).await.lock, Lock::Lapsed);
    assert_eq!(load(&store, &key("new")).await.lock, Lock::Held);
}
