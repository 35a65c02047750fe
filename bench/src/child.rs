//! Processes that end with this one.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, ChildStdin, Command, Stdio};

use anyhow::Context as _;

/// Runs a program in a directory, and ends it and removes the directory when this process ends or lets go,
/// however that happens: a signal or a panic closes the pipe that it reads from.
const WATCHDOG: &str = r#"
dir=$1
shift
"$@" >"$dir/out" 2>"$dir/log" </dev/null &
echo $!
read -r _
kill -KILL $!
wait
rm -rf "$dir"
"#;

/// A running program, ended when dropped.
pub struct Child {
    watchdog: process::Child,
    /// `None` once it is being ended.
    leash: Option<ChildStdin>,
    pid: u32,
    dir: PathBuf,
}

impl Child {
    /// Starts a program; `arguments` is given the directory that it may use.
    pub fn start<A: AsRef<OsStr>>(
        program: &Path,
        arguments: impl FnOnce(&Path) -> Vec<A>,
    ) -> anyhow::Result<Self> {
        // The watchdog removes it.
        let dir = tempfile::Builder::new().prefix("onced-bench-").tempdir()?.keep();
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog"])
            .args([dir.as_os_str(), program.as_os_str()])
            .args(arguments(&dir))
            // Ctrl-C is for this process, which then ends its children.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run sh")?;
        let leash = watchdog.stdin.take();
        let mut pid = String::new();
        BufReader::new(watchdog.stdout.take().context("no pipe")?).read_line(&mut pid)?;
        let pid = pid.trim().parse().context("sh did not start the program")?;
        Ok(Self { watchdog, leash, pid, dir })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it wrote to standard output so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.dir.join("out")).unwrap_or_default()
    }

    /// What it wrote to standard error so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Whether it runs: what has ended waits as a zombie for its watchdog.
    pub fn is_running(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid));
        stat.is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("Z").starts_with('Z'))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.leash = None;
        let _ = self.watchdog.wait();
    }
}
