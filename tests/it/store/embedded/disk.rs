//! A disk that fails when told to.

use std::io;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use onced::clock::Clock;
use onced::store::embedded::{EmbeddedStore, OpenError};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;

/// A disk with the files of a store. It keeps their bytes when the store is closed.
#[derive(Clone, Debug)]
pub struct Disk {
    tree: File,
    log: [File; 2],
}

/// Offsets and bytes, in order of the writes.
type Overwritten = Vec<(u64, Vec<u8>)>;

/// A file that counts what is synced, and fails with its disk.
#[derive(Clone, Debug)]
pub struct File {
    bytes: Arc<dyn StorageBackend>,
    /// How many writes and syncs still succeed.
    left: Arc<AtomicI64>,
    syncs: Arc<AtomicU64>,
    /// How long a sync takes.
    pause: Duration,
    /// What stood where something was written since the last sync.
    unsynced: Arc<Mutex<Overwritten>>,
}

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;
const TREE_SYNC: Duration = Duration::from_millis(1);

impl Disk {
    pub fn in_memory() -> Self {
        Self::on(InMemoryBackend::new(), [InMemoryBackend::new(), InMemoryBackend::new()])
    }

    pub fn on<B: StorageBackend>(tree: B, log: [B; 2]) -> Self {
        let (left, syncs) = (Arc::new(AtomicI64::new(i64::MAX)), Arc::default());
        let file = |bytes: B, pause| File {
            bytes: Arc::new(bytes),
            left: Arc::clone(&left),
            syncs: Arc::clone(&syncs),
            pause,
            unsynced: Arc::default(),
        };
        // So that both halves of the log hold something while the tree is written.
        Self { tree: file(tree, TREE_SYNC), log: log.map(|half| file(half, Duration::ZERO)) }
    }

    /// The store on it.
    pub fn open(&self, clock: Clock) -> Result<EmbeddedStore, OpenError> {
        EmbeddedStore::with_backends(self.tree.clone(), self.log.clone(), clock)
    }

    /// The disk as it is now, as if the machine had crashed.
    pub fn copy(&self) -> Self {
        Self::on(self.tree.copy(), self.log.each_ref().map(File::copy))
    }

    /// The disk as it may be after its power was cut now: of what was not synced, any sectors are on it.
    pub fn cut(&self, random: &mut fastrand::Rng) -> Self {
        let mut cut = |file: &File| {
            let copy = file.copy();
            for (offset, before) in file.unsynced().iter().rev() {
                for (index, sector) in before.chunks(SECTOR).enumerate() {
                    if random.bool() {
                        StorageBackend::write(&copy, offset + (index * SECTOR) as u64, sector).unwrap();
                    }
                }
            }
            copy
        };
        Self::on(cut(&self.tree), self.log.each_ref().map(&mut cut))
    }

    /// Fails all writes and syncs after the next few.
    pub fn fail_after(&self, few: i64) {
        self.tree.left.store(few, Ordering::SeqCst);
    }

    pub fn heal(&self) {
        self.fail_after(i64::MAX);
    }

    /// How many syncs there have been.
    pub fn syncs(&self) -> u64 {
        self.tree.syncs.load(Ordering::SeqCst)
    }
}

impl File {
    fn copy(&self) -> InMemoryBackend {
        let copy = InMemoryBackend::new();
        let length = self.bytes.len().unwrap();
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        self.bytes.read(0, &mut bytes).unwrap();
        copy.set_len(length).unwrap();
        StorageBackend::write(&copy, 0, &bytes).unwrap();
        copy
    }

    fn unsynced(&self) -> MutexGuard<'_, Overwritten> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spend(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        self.left.store(0, Ordering::SeqCst);
        Err(io::Error::other("the disk of this test has failed"))
    }
}

impl StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        self.bytes.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.bytes.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.spend()?;
        self.bytes.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.spend()?;
        self.syncs.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(self.pause);
        self.bytes.sync_data()?;
        self.unsynced().clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.spend()?;
        let mut before = vec![0; data.len()];
        self.bytes.read(offset, &mut before)?;
        self.unsynced().push((offset, before));
        self.bytes.write(offset, data)
    }
}
