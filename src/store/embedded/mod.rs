//! The embedded store: one directory, one process, one machine. Everything lies in one table of a redb
//! database, the tree, but for the newest writes: those are in a log, and in memory.
//!
//! Writes go through one thread, which commits whatever was asked for while the last commit ran, and answers
//! once that is durable: appended to the log, and synced. Another thread moves it to the tree, in
//! transactions of many writes. A commit of the tree itself would write and sync a page of 4 KiB for nearly every record.
//! Reads look into memory first, then take a snapshot of the tree; where there is nothing in either, they make sure that
//! nothing has come meanwhile. Time is the clock of this process alone.

mod alarms;
mod layout;
mod log;
mod meters;
mod mover;
#[cfg(test)]
mod mover_tests;
mod open;
mod queue;
mod reads;
#[cfg(test)]
mod reads_tests;
mod recent;
mod space;
mod sweep;
mod times;
mod writer;

#[cfg(test)]
mod tests;

/// What fuzzing enters here.
#[cfg(any(test, fuzzing))]
pub mod fuzzing {
    pub use super::layout::fuzzing::row;
    pub use super::log::fuzzing::{log, logs};
}

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use async_trait::async_trait;
use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use tokio::sync::watch;

use super::hub::Hub;
use super::{Expected, Loaded, Page, Recalled, RecordStore, StoreError, Swapped, Watch};
use crate::clock::Clock;
use crate::record::{Key, Namespace, Record, RecordKey};
use alarms::Alarms;
use log::Half;
use meters::Meters;
use mover::Mover;
use queue::Queue;
use reads::Data;
use recent::Recent;
use space::{FreeSpace, Space};
use times::Times;
use writer::Writer;

/// The largest row that is recalled, in bytes: a larger one is read once for all who ask for it together, so that it is in
/// memory once.
const RECALLED_MAX_BYTES: usize = 16 << 10;

/// A store in one directory. Dropping it finishes what was handed over, waits for that, and closes the files once
/// no read is under way.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the store's threads and its callers share.
struct Shared {
    data: Data,
    queue: Queue,
    hub: Hub,
    alarms: Alarms,
    failure: watch::Sender<Option<String>>,
    meters: Meters,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is open already.
    #[error(
        "the store in {0} is in use: another onced has it open. Stop that one, connect to it instead, or \
         give this one a directory of its own"
    )]
    InUse(PathBuf),
    /// Its format is newer than what this program knows.
    #[error("the store in {0} was refused: {1}")]
    Format(PathBuf, String),
    /// A file or its directory cannot be created, read or written.
    #[error("{0} cannot be opened: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// What is in a file is no store, or is damaged.
    #[error("{0} cannot be read as a store: {1}")]
    Damaged(PathBuf, String),
    /// The threads of the store cannot be started.
    #[error("the threads of the store cannot be started: {0}")]
    Threads(#[source] io::Error),
}

impl EmbeddedStore {
    /// Opens the store in a directory, creating both if they are missing. After a crash this may take a
    /// while, as the file is checked; it blocks meanwhile.
    ///
    /// # Errors
    /// See [`OpenError`]: in use by another process, of a newer format, not accessible, or damaged.
    pub fn open(directory: &Path, clock: Clock) -> Result<Self, OpenError> {
        open::whole(directory, || {
            let (database, halves) = open::in_directory(directory)?;
            let (free_space, meters) = (space::free_space_of(directory), Meters::new(Some(directory)));
            Self::start(database, halves, directory, clock, free_space, meters)
        })
    }

    /// Opens a store in memory, which ends with it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn in_memory(clock: Clock) -> Result<Self, OpenError> {
        let half = InMemoryBackend::new;
        Self::with_backends(half(), [half(), half()], clock)
    }

    /// Opens a store on another kind of storage, for its tree and the two halves of its log: one that fails,
    /// or one whose power can be cut.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn with_backends<B: StorageBackend>(tree: B, log: [B; 2], clock: Clock) -> Result<Self, OpenError> {
        let directory = Path::new(open::BACKEND);
        open::whole(directory, || {
            let database = open::on_backend(tree)?;
            let halves = log.map(|half| Box::new(half) as Half);
            Self::start(database, halves, directory, clock, space::boundless(), Meters::new(None))
        })
    }

    fn start(
        database: redb::Database,
        halves: [Half; 2],
        directory: &Path,
        clock: Clock,
        free_space: FreeSpace,
        meters: Meters,
    ) -> Result<Self, OpenError> {
        let counters = open::counters(&database, directory)?;
        let (log, counters) = open::log(&database, halves, counters, directory)?;
        let shared = Arc::new(Shared {
            data: Data { database, recent: Recent::default(), times: Times::new(clock, counters) },
            queue: Queue::new(),
            hub: Hub::default(),
            alarms: Alarms::default(),
            failure: watch::Sender::new(None),
            meters,
        });
        // Made before the threads, so that those that started are ended if another does not.
        let mut store = Self { shared: Arc::clone(&shared), threads: Vec::new() };
        let (loads, taken) = mpsc::channel();
        let mover = Mover::new(Arc::clone(&shared), counters);
        let writer = Writer::new(Arc::clone(&shared), Space::new(free_space), log, loads, counters);
        store.spawn("store-mover", move || mover.run(&taken))?;
        store.spawn("store-writer", move || writer.run())?;
        store.spawn("store-alarms", move || {
            shared.alarms.run(shared.data.times.clock(), &shared.hub);
        })?;
        Ok(store)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        self.threads.push(thread.map_err(OpenError::Threads)?);
        Ok(())
    }

    /// Waits until the store fails, which is for good, and says why. The process should end then: only
    /// opening the store anew shows what became of its last writes.
    pub async fn failed(&self) -> String {
        let mut failure = self.shared.failure.subscribe();
        loop {
            if let Some(reason) = failure.borrow_and_update().clone() {
                return reason;
            }
            if failure.changed().await.is_err() {
                // Not while `self` holds the sender.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Runs a read on a thread that may block: what is not in memory comes from the disk.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        let run = move || {
            // A write that failed may show or not; nothing is told that may be taken back.
            if let Some(reason) = shared.failure.borrow().as_ref() {
                return Err(StoreError::NotApplied(reason.clone()));
            }
            read(&shared)
        };
        tokio::task::spawn_blocking(run)
            .await
            .unwrap_or_else(|error| Err(StoreError::NotApplied(format!("the read was broken off: {error}"))))
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.shared.queue.close("the store is closed");
        self.shared.alarms.close();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The store has failed, for good.
    fn fail(&self, reason: &str) {
        let first = self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| reason.to_owned());
            first
        });
        if first {
            tracing::error!(reason, "the store failed");
            self.queue.close(reason);
            // Whoever waits finds out.
            self.hub.all_changed();
        }
    }

    fn fail_writing(&self, error: &redb::Error) {
        self.fail(&format!(
            "writing to the data files failed: {error}. Whether the last writes are in them is known only once \
             they are opened anew, so this process must end; see to the disk, then start it again"
        ));
    }

    /// What a key has, from memory alone: nothing if that is not there.
    fn load_recent(&self, key: &RecordKey) -> Result<Option<Option<Loaded>>, StoreError> {
        match self.failure.borrow().as_ref() {
            // A write that failed may show or not; nothing is told that may be taken back.
            Some(reason) => Err(StoreError::NotApplied(reason.clone())),
            None => self.data.load_recent(key, usize::MAX).transpose(),
        }
    }

    /// Sets the alarms of a key that somebody begins to watch.
    fn set_alarms(&self, key: &RecordKey) {
        match self.data.moments(key) {
            Ok(Some((revision, moments))) => self.alarms.set(key, revision, moments),
            // Whoever creates it sets them.
            Ok(None) => {}
            // A hint that is missing costs time alone. Whoever reads the record will meet the error.
            Err(error) => tracing::debug!(?key, %error, "no alarms for a record that cannot be read"),
        }
    }
}

#[async_trait]
impl RecordStore for EmbeddedStore {
    async fn load(&self, key: &RecordKey) -> Result<Option<Loaded>, StoreError> {
        if let Some(loaded) = self.shared.load_recent(key)? {
            return Ok(loaded);
        }
        let key = key.clone();
        self.read(move |shared| shared.data.load(&key)).await
    }

    fn recall<'a>(&'a self, key: &'a RecordKey) -> Option<Recalled<'a>> {
        if self.shared.failure.borrow().is_some() {
            return None;
        }
        // An error is told by the load that follows.
        self.shared.data.load_recent(key, RECALLED_MAX_BYTES)?.ok()?.map(Recalled::Now)
    }

    async fn swap(
        &self,
        key: &RecordKey,
        expected: Expected,
        next: Option<&Record>,
    ) -> Result<Swapped, StoreError> {
        // Most Begins expect that there is no record. Where there is one it can be told at once.
        if expected == Expected::Absent
            && let Some(current @ Some(_)) = self.shared.load_recent(key)?
        {
            return Ok(Swapped::Conflict(current));
        }
        self.shared.queue.swap(key, expected, next).await
    }

    async fn watch(&self, key: &RecordKey) -> Result<Watch, StoreError> {
        let (shared, ended) = (Arc::downgrade(&self.shared), key.clone());
        let on_end = Box::new(move || {
            if let Some(shared) = shared.upgrade() {
                shared.alarms.clear_unwatched(&ended, &shared.hub);
            }
        });
        let watch = self.shared.hub.watch(key, Some(on_end));
        let key = key.clone();
        self.read(move |shared| {
            shared.set_alarms(&key);
            Ok(())
        })
        .await?;
        Ok(watch)
    }

    async fn scan(
        &self,
        namespace: &Namespace,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let (namespace, after) = (namespace.clone(), after.cloned());
        self.read(move |shared| shared.data.scan(&namespace, after.as_ref(), limit)).await
    }
}
