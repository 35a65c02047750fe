//! Which cores run what.

use anyhow::Context as _;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Leaves the first core to etcd: all that is started from here on, this thread included, runs on the others. Tells which
/// core that is.
pub fn leave_first() -> anyhow::Result<usize> {
    let mut others = sched_getaffinity(None).context("cannot tell which cores there are")?;
    let first = (0..CpuSet::MAX_CPU).find(|&core| others.is_set(core)).context("there is no core")?;
    others.unset(first);
    anyhow::ensure!(others.count() > 0, "--etcd-apart needs two cores, and there is one");
    sched_setaffinity(None, &others).context("cannot leave a core to etcd")?;
    Ok(first)
}
