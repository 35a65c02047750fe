//! A disk that fails when told to.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use redb::StorageBackend;
use redb::backends::InMemoryBackend;

/// Storage that keeps its bytes when the store on it is closed, and counts and fails what is written.
#[derive(Clone, Debug)]
pub struct Disk {
    bytes: Arc<dyn StorageBackend>,
    /// How many writes and syncs still succeed.
    left: Arc<AtomicI64>,
    syncs: Arc<AtomicU64>,
}

impl Disk {
    pub fn in_memory() -> Self {
        Self::on(InMemoryBackend::new())
    }

    pub fn on(bytes: impl StorageBackend) -> Self {
        Self { bytes: Arc::new(bytes), left: Arc::new(AtomicI64::new(i64::MAX)), syncs: Arc::default() }
    }

    /// The disk as it is now, as if the machine had crashed.
    pub fn copy(&self) -> Self {
        let copy = InMemoryBackend::new();
        let length = self.bytes.len().unwrap();
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        self.bytes.read(0, &mut bytes).unwrap();
        copy.set_len(length).unwrap();
        StorageBackend::write(&copy, 0, &bytes).unwrap();
        Self::on(copy)
    }

    /// Fails all writes and syncs after the next few.
    pub fn fail_after(&self, few: i64) {
        self.left.store(few, Ordering::SeqCst);
    }

    pub fn heal(&self) {
        self.fail_after(i64::MAX);
    }

    /// How many syncs there have been.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::SeqCst)
    }

    fn spend(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        self.left.store(0, Ordering::SeqCst);
        Err(io::Error::other("the disk of this test has failed"))
    }
}

impl StorageBackend for Disk {
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
        self.bytes.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.spend()?;
        self.bytes.write(offset, data)
    }
}
