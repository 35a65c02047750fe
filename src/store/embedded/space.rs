//! The watch on free space. A write that fails for want of room ends the process, so claims are refused
//! before it comes to that: those who hold one can still complete.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::clock::Moment;

/// Below this much free space no new claim is made, so that the claims under way can complete.
///
/// It is ample, and no bound. The two halves of the log take about 110 MiB at most. What they hold takes up to a
/// page of 4 KiB of the tree for each record, but mostly pages that the tree has free: moving 60,000 small records
/// into 500,000 made the file no larger, and 250,000 new ones made it 24 MiB larger. The outcomes of the claims
/// under way have no bound, as a million claims may each bring a mebibyte; others may fill the disk, too; and the
/// free space was looked at up to a second ago. Should it run out all the same, the write that fails ends the
/// process, and opening the store needs room for what the log holds: nothing that was answered is lost.
pub(super) const RESERVE_BYTES: u64 = 512 << 20;

/// How long a look at the free space serves.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Tells how many bytes are free.
pub(super) type FreeSpace = Box<dyn Fn() -> io::Result<u64> + Send>;

/// The free space of the file system that holds `path`.
pub(super) fn free_space_of(path: &Path) -> FreeSpace {
    let path = path.to_owned();
    Box::new(move || free_bytes(&path))
}

/// How many bytes are free on the file system that holds `path`.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(path)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// A store in memory has no such limit.
pub(super) fn boundless() -> FreeSpace {
    Box::new(|| Ok(u64::MAX))
}

pub(super) struct Space {
    free: FreeSpace,
    looked: Option<Moment>,
    scarce: Option<u64>,
}

impl Space {
    pub(super) fn new(free: FreeSpace) -> Self {
        Self { free, looked: None, scarce: None }
    }

    /// How many bytes are free, if these are too few for a new claim.
    pub(super) fn scarce(&mut self, now: Moment) -> Option<u64> {
        if self.looked.is_none_or(|looked| now.since(looked) >= LOOK_AGAIN) {
            self.looked = Some(now);
            self.look();
        }
        self.scarce
    }

    fn look(&mut self) {
        match (self.free)() {
            Ok(free) => {
                let scarce = (free < RESERVE_BYTES).then_some(free);
                if scarce.is_some() != self.scarce.is_some() {
                    match scarce {
                        Some(free) => {
                            tracing::warn!(free, reserve = RESERVE_BYTES, "the disk runs full: no new claims")
                        }
                        None => tracing::info!(free, "there is room again: new claims are made"),
                    }
                }
                self.scarce = scarce;
            }
            // Not knowing is no reason to refuse work.
            Err(error) => tracing::warn!(%error, "cannot tell how much space is free"),
        }
    }
}
