//! What processes use: CPU time, memory.

use std::collections::HashMap;
use std::fs;

use anyhow::Context as _;

/// A process that is measured.
#[derive(Clone, Copy)]
pub struct Process {
    pub name: &'static str,
    pub pid: u32,
}

impl Process {
    /// Seconds of CPU that it used so far, user and system, with what runs beneath it and what ran there and has ended. Of
    /// this process, only its own.
    pub fn cpu(&self) -> anyhow::Result<f64> {
        let mut sum = 0.0;
        for pid in self.pids()? {
            match cpu_of(pid) {
                Ok(cpu) => sum += cpu,
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

fn cpu_of(pid: u32) -> anyhow::Result<f64> {
    // User and system time, its own and that of its children that ended.
    let ticks: Vec<f64> = stat(pid)?.iter().skip(11).take(4).filter_map(|field| field.parse().ok()).collect();
    anyhow::ensure!(ticks.len() == 4, "/proc/{pid}/stat cannot be read");
    Ok(ticks.iter().sum::<f64>() / rustix::param::clock_ticks_per_second() as f64)
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
