//! What processes use: CPU time, bytes written, memory.

use std::collections::HashMap;
use std::fs;

use anyhow::Context as _;

/// What a process, and all that it started, has used so far.
#[derive(Clone, Copy, Default)]
pub struct Used {
    /// Seconds of CPU, user and system.
    pub cpu: f64,
    /// Bytes that it made the kernel write to a disk.
    pub written: f64,
}

/// A process that is measured.
#[derive(Clone, Copy)]
pub struct Process {
    pub name: &'static str,
    pub pid: u32,
}

impl Process {
    /// What it used, with what runs beneath it and what ran there and has ended. Of this process, only its own.
    pub fn used(&self) -> anyhow::Result<Used> {
        let mut sum = Used::default();
        for pid in self.pids()? {
            match used_by(pid) {
                Ok(used) => {
                    sum.cpu += used.cpu;
                    sum.written += used.written;
                }
                // What ends meanwhile, its parent counts.
                Err(error) if pid == self.pid => return Err(error),
                Err(_) => {}
            }
        }
        Ok(sum)
    }

    /// Bytes of memory that it and what runs beneath it have, what they share counted once.
    pub fn memory(&self) -> anyhow::Result<f64> {
        let pids = self.pids()?;
        let kilobytes = pids.iter().filter_map(|pid| value(&format!("/proc/{pid}/smaps_rollup"), "Pss:"));
        Ok(kilobytes.sum::<f64>() * 1024.0)
    }

    fn pids(&self) -> anyhow::Result<Vec<u32>> {
        let mut pids = vec![self.pid];
        if self.pid == std::process::id() {
            return Ok(pids);
        }
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Some(parent) = stat(pid).ok().and_then(|fields| fields.get(1)?.parse().ok()) {
                children.entry(parent).or_default().push(pid);
            }
        }
        let mut next = 0;
        while let Some(pid) = pids.get(next) {
            pids.extend(children.remove(pid).unwrap_or_default());
            next += 1;
        }
        Ok(pids)
    }
}

fn used_by(pid: u32) -> anyhow::Result<Used> {
    // User and system time, its own and that of its children that ended.
    let ticks: Vec<f64> = stat(pid)?.iter().skip(11).take(4).filter_map(|field| field.parse().ok()).collect();
    anyhow::ensure!(ticks.len() == 4, "/proc/{pid}/stat cannot be read");
    let cpu = ticks.iter().sum::<f64>() / rustix::param::clock_ticks_per_second() as f64;
    let io = format!("/proc/{pid}/io");
    let written = value(&io, "write_bytes:").with_context(|| format!("{io} cannot be read"))?;
    // Of what was cut off before it reached the disk.
    let cancelled = value(&io, "cancelled_write_bytes:").unwrap_or_default();
    Ok(Used { cpu, written: written - cancelled })
}

/// The fields of a process from the third on: the name before them, in parentheses, may hold anything.
fn stat(pid: u32) -> anyhow::Result<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} has ended"))?;
    Ok(stat.rsplit(") ").next().unwrap_or_default().split(' ').map(str::to_owned).collect())
}

/// The number after a name, at the start of a line of a file.
fn value(path: &str, name: &str) -> Option<f64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}
