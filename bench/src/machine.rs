//! What the machine is that figures are of.

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use onced::clock::Clock;
use serde_json::{Value, json};

use crate::stats::Latencies;

/// How often a write is synced to tell how long that takes, and how much is written.
const SYNCS: usize = 200;
const SYNCED_BYTES: usize = 4096;

/// What the machine is, and how long its disk takes. Fails if what is written would not get to a disk at all.
pub fn describe() -> anyhow::Result<Value> {
    let filesystem = filesystem()?;
    anyhow::ensure!(
        !matches!(&*filesystem, "tmpfs" | "ramfs"),
        "the temporary directory is in memory, where nothing is durable: name one on a disk with TMPDIR"
    );
    let line = |path: &str, name: &str| -> Option<String> {
        let text = std::fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let system = rustix::system::uname();
    let syncs = syncs()?;
    Ok(json!({
        "cpu": line("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism()?,
        "memory": line("/proc/meminfo", "MemTotal"),
        "system": format!("{} {}", system.sysname().to_string_lossy(), system.release().to_string_lossy()),
        "filesystem": filesystem,
        "revision": revision(),
        "sync_ms": { "p50": syncs.quantile(0.5), "p99": syncs.quantile(0.99) },
    }))
}

/// The revision of the sources that this program was built from, if git knows it.
fn revision() -> Option<String> {
    let git = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"])
        .output()
        .ok()?;
    git.status.success().then(|| String::from_utf8_lossy(&git.stdout).trim().to_owned())
}

/// The kind of the filesystem that the temporary directory is on.
fn filesystem() -> anyhow::Result<String> {
    let dir = std::env::temp_dir().canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let fields = mounts.lines().map(|mount| mount.split(' ').collect::<Vec<_>>());
    // Of those mounted at one place, the last one is seen.
    let mount =
        fields.filter(|fields| fields.len() > 2 && dir.starts_with(fields[1])).max_by_key(|f| f[1].len());
    Ok(mount.context("the temporary directory is on no filesystem")?[2].to_owned())
}

/// How long it takes to append a little to a file and sync it.
fn syncs() -> anyhow::Result<Latencies> {
    let mut file = tempfile::tempfile()?;
    let clock = Clock::system();
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..SYNCS {
        let sent = clock.now();
        file.write_all(&[0xa5; SYNCED_BYTES])?;
        file.sync_data()?;
        took.push(clock.now().since(sent));
    }
    Ok(Latencies::new(took))
}
