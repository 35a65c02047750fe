//! What is counted of the embedded store.

use std::path::{Path, PathBuf};

use metrics::{Counter, Histogram, counter, gauge, histogram};

use super::{log, open, space};
use crate::telemetry::metrics::{
    EMBEDDED_COMMIT_DURATION, EMBEDDED_COMMIT_WRITES, EMBEDDED_FREE_BYTES, EMBEDDED_LOG_BYTES,
    EMBEDDED_MOVE_DURATION, EMBEDDED_MOVED_ROWS, EMBEDDED_SWEPT_RECORDS, EMBEDDED_TREE_BYTES,
};

/// The meters of a store.
pub(super) struct Meters {
    /// How long commits took.
    pub commit: Histogram,
    /// How many writes they had.
    pub writes: Histogram,
    /// How long moving what was committed to the tree took.
    pub moving: Histogram,
    /// Rows that were moved.
    pub moved: Counter,
    /// Records that were swept.
    pub swept: Counter,
    /// Where its files are, if it has any.
    directory: Option<PathBuf>,
}

impl Meters {
    /// The meters of a store in a directory, or in none.
    pub(super) fn new(directory: Option<&Path>) -> Self {
        Self {
            commit: histogram!(EMBEDDED_COMMIT_DURATION),
            writes: histogram!(EMBEDDED_COMMIT_WRITES),
            moving: histogram!(EMBEDDED_MOVE_DURATION),
            moved: counter!(EMBEDDED_MOVED_ROWS),
            swept: counter!(EMBEDDED_SWEPT_RECORDS),
            directory: directory.map(Path::to_owned),
        }
    }

    /// Tells how large the files are, and how much they may grow.
    pub(super) fn count_files(&self) {
        let Some(directory) = &self.directory else { return };
        let size = |name: &str| directory.join(name).metadata().map_or(0, |file| file.len());
        gauge!(EMBEDDED_TREE_BYTES).set(size(open::FILE) as f64);
        gauge!(EMBEDDED_LOG_BYTES).set(log::FILES.into_iter().map(size).sum::<u64>() as f64);
        if let Ok(free) = space::free_bytes(directory) {
            gauge!(EMBEDDED_FREE_BYTES).set(free as f64);
        }
    }
}
