//! The disk that all that is measured writes to.

use std::os::unix::fs::MetadataExt as _;

/// What the kernel counts in, whatever the disk does.
const SECTOR_BYTES: f64 = 512.0;
/// Where a line of /proc/diskstats has the sectors written.
const SECTORS_WRITTEN: usize = 9;

/// Bytes written so far to the disk that the temporary directory is on, by whatever runs here; `None` if it is on none.
///
/// What the kernel counts for a process is of no use: it counts whole pieces of its cache, and eight kilobytes within a
/// file that was once filled in large pieces can count as two megabytes.
pub fn written() -> Option<f64> {
    let device = std::env::temp_dir().metadata().ok()?.dev();
    let (major, minor) = (rustix::fs::major(device).to_string(), rustix::fs::minor(device).to_string());
    let disks = std::fs::read_to_string("/proc/diskstats").ok()?;
    disks.lines().find_map(|disk| {
        let fields: Vec<&str> = disk.split_whitespace().collect();
        let sectors: f64 = fields.get(SECTORS_WRITTEN)?.parse().ok()?;
        (fields[0] == major && fields[1] == minor).then_some(sectors * SECTOR_BYTES)
    })
}

/// Has all that was written before reach the disk, so that it does not count for what comes now.
pub fn settle() {
    rustix::fs::sync();
}
