//! A disk that fails when told to, and whose power can be cut.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use onced::clock::Clock;
use onced::store::embedded::{EmbeddedStore, OpenError};
use redb::StorageBackend;

/// A disk with the files of a store. It keeps their bytes when the store is closed.
#[derive(Clone, Debug)]
pub struct Disk {
    tree: File,
    log: [File; 2],
}

/// A file that counts what is synced, and fails with its disk.
#[derive(Clone, Debug)]
pub struct File {
    bytes: Arc<dyn StorageBackend>,
    /// How many writes and syncs still succeed.
    left: Arc<AtomicI64>,
    syncs: Arc<AtomicU64>,
    /// How long a sync takes.
    pause: Duration,
    /// Whether a sync does nothing, and says that it did.
    lies: bool,
    unsynced: Arc<Mutex<Unsynced>>,
}

/// What befell a file since it was last synced.
#[derive(Debug)]
struct Unsynced {
    /// Its length then.
    length: u64,
    /// Offsets of writes in their order, and what stood there before.
    overwritten: Vec<(u64, Vec<u8>)>,
}

/// What became of writes that were not synced when the power was cut.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unsafe {
    /// Nothing of them is there.
    pub lost: usize,
    /// A part of them is there.
    pub torn: usize,
}

/// What a disk writes whole or not at all, in bytes.
const SECTOR: u64 = 512;
const TREE_SYNC: Duration = Duration::from_millis(1);

impl Disk {
    pub fn in_memory() -> Self {
        Self::on(Memory::default(), [Memory::default(), Memory::default()])
    }

    pub fn on<B: StorageBackend>(tree: B, log: [B; 2]) -> Self {
        let (left, syncs) = (Arc::new(AtomicI64::new(i64::MAX)), Arc::default());
        let file = |bytes: B, pause| File {
            unsynced: Arc::new(Mutex::new(Unsynced {
                length: bytes.len().unwrap(),
                overwritten: Vec::new(),
            })),
            bytes: Arc::new(bytes),
            left: Arc::clone(&left),
            syncs: Arc::clone(&syncs),
            pause,
            lies: false,
        };
        // So that both halves of the log hold something while the tree is written.
        Self { tree: file(tree, TREE_SYNC), log: log.map(|half| file(half, Duration::ZERO)) }
    }

    /// The same, but syncs of the log do nothing.
    pub fn with_a_lying_log(mut self) -> Self {
        self.log.iter_mut().for_each(|half| half.lies = true);
        self
    }

    /// The same, but syncs of the tree do nothing.
    pub fn with_a_lying_tree(mut self) -> Self {
        self.tree.lies = true;
        self
    }

    /// The store on it.
    pub fn open(&self, clock: Clock) -> Result<EmbeddedStore, OpenError> {
        EmbeddedStore::with_backends(self.tree.clone(), self.log.clone(), clock)
    }

    /// The disk as it is now, as if the machine had crashed.
    pub fn copy(&self) -> Self {
        self.with(File::copy)
    }

    /// The disk as it may be after its power was cut now: of what was not synced, any sectors are on it.
    pub fn cut(&self, random: &mut fastrand::Rng) -> (Self, Unsafe) {
        // Sometimes most are, and sometimes few.
        let (kept, mut became) = (random.f64(), Unsafe::default());
        let cut = self.with(|file| file.cut(|| random.f64() < kept, &mut became));
        (cut, became)
    }

    fn with(&self, mut change: impl FnMut(&File) -> Memory) -> Self {
        let mut disk = Self::on(change(&self.tree), self.log.each_ref().map(change));
        disk.tree.lies = self.tree.lies;
        disk.log.iter_mut().zip(&self.log).for_each(|(half, like)| half.lies = like.lies);
        disk
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
    fn copy(&self) -> Memory {
        let mut bytes = vec![0; usize::try_from(self.bytes.len().unwrap()).unwrap()];
        self.bytes.read(0, &mut bytes).unwrap();
        Memory(Mutex::new(bytes))
    }

    fn cut(&self, mut is_kept: impl FnMut() -> bool, became: &mut Unsafe) -> Memory {
        let (copy, unsynced) = (self.copy(), self.unsynced());
        if unsynced.length < copy.len().unwrap() && !is_kept() {
            copy.set_len(unsynced.length).unwrap();
        }
        let length = copy.len().unwrap();
        for (offset, before) in unsynced.overwritten.iter().rev() {
            let (mut kept, mut lost) = (false, false);
            for sector in sectors(*offset, before.len()) {
                let (at, before) = (*offset + sector.start as u64, &before[sector]);
                if at + before.len() as u64 > length {
                    lost = true;
                } else if is_kept() {
                    kept = true;
                } else {
                    copy.write(at, before).unwrap();
                    lost = true;
                }
            }
            became.torn += usize::from(kept && lost);
            became.lost += usize::from(lost && !kept);
        }
        copy
    }

    fn unsynced(&self) -> MutexGuard<'_, Unsynced> {
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

/// The parts of a write that lie in one sector each.
fn sectors(offset: u64, length: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let room = SECTOR - (offset + start as u64) % SECTOR;
        let end = length.min(start + usize::try_from(room).unwrap());
        let sector = start..end;
        start = end;
        (!sector.is_empty()).then_some(sector)
    })
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
        if !self.lies {
            self.bytes.sync_data()?;
            *self.unsynced() = Unsynced { length: self.bytes.len()?, overwritten: Vec::new() };
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.spend()?;
        let mut before = vec![0; data.len()];
        self.bytes.read(offset, &mut before)?;
        self.unsynced().overwritten.push((offset, before));
        self.bytes.write(offset, data)
    }
}

/// The bytes of a file. redb's own kind of this takes its time to grow where it is not optimised.
#[derive(Debug, Default)]
struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn range(offset: u64, length: usize) -> Range<usize> {
    let start = usize::try_from(offset).unwrap();
    start..start + length
}

impl StorageBackend for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes();
        let there = bytes.get(range(offset, out.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(there);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut bytes = self.bytes();
        let mut resized = vec![0; usize::try_from(len).unwrap()];
        let kept = bytes.len().min(resized.len());
        resized[..kept].copy_from_slice(&bytes[..kept]);
        *bytes = resized;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes();
        let there = bytes.get_mut(range(offset, data.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        there.copy_from_slice(data);
        Ok(())
    }
}
