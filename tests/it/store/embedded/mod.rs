//! The embedded store, in a file and in memory.

pub mod disk;
mod failing;
mod killed;
mod opening;
mod power;
mod retention;

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use onced::clock::{Clock, Moment};
use onced::record::{Lifetime, RecordKey};
use onced::store::RecordStore;
use onced::store::embedded::EmbeddedStore;
use redb::backends::FileBackend;
use tempfile::TempDir;

use super::conformance::conformance;
use super::fixture::{Fixture, load};
use disk::Disk;

mod in_a_file {
    super::conformance!(super::Embedded::in_a_file());
}

mod in_memory {
    super::conformance!(super::Embedded::in_memory());
}

/// A clock that stands still until it is moved.
#[derive(Clone, Default)]
struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    fn clock(&self) -> Clock {
        let now_ms = Arc::clone(&self.0);
        Clock::from_fn(move || Moment::from_start(Duration::from_millis(now_ms.load(Ordering::SeqCst))))
    }

    fn pass(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

/// An embedded store on a disk that can fail, with a clock that can be moved.
struct Embedded {
    clock: ManualClock,
    disk: Disk,
    directory: Option<TempDir>,
    store: Mutex<Option<Arc<EmbeddedStore>>>,
}

impl Embedded {
    async fn in_a_file() -> Self {
        let directory = TempDir::new().unwrap();
        let file = |name| FileBackend::new(data_file(directory.path(), name)).unwrap();
        let disk = Disk::on(file("onced.redb"), [file("onced.log.0"), file("onced.log.1")]);
        Self::start(disk, Some(directory))
    }

    async fn in_memory() -> Self {
        Self::start(Disk::in_memory(), None)
    }

    fn start(disk: Disk, directory: Option<TempDir>) -> Self {
        let clock = ManualClock::default();
        let store = disk.open(clock.clock()).unwrap();
        Self { clock, disk, directory, store: Mutex::new(Some(Arc::new(store))) }
    }
}

fn data_file(directory: &Path, name: &str) -> std::fs::File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(directory.join(name)).unwrap()
}

#[async_trait]
impl Fixture for Embedded {
    async fn store(&self) -> Arc<dyn RecordStore> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(store.as_ref().unwrap()) as Arc<dyn RecordStore>
    }

    async fn restart(&self, last: Arc<dyn RecordStore>) -> Arc<dyn RecordStore> {
        drop(last);
        let ended = self.store.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(Arc::into_inner(ended.unwrap()).expect("the last handle"));
        self.disk.heal();
        let store = match &self.directory {
            Some(directory) => EmbeddedStore::open(directory.path(), self.clock.clock()),
            None => self.disk.open(self.clock.clock()),
        };
        *self.store.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(store.unwrap()));
        self.store().await
    }

    async fn pass(&self, time: Duration) {
        self.clock.pass(time);
    }

    async fn expire(&self, key: &RecordKey) {
        let lifetime = load(&self.store().await, key).await.record.lifetime();
        self.clock.pass(match lifetime {
            Lifetime::AtLeast(time) => time + Duration::from_secs(1),
            Lifetime::Forever => Duration::from_secs(10 * 365 * 24 * 3_600),
        });
    }

    async fn cut(&self) {
        self.disk.fail_after(0);
    }
}
