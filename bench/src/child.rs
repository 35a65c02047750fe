//! Processes that end with this one.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;

/// Runs a program in a directory, and ends it and removes the directory when this process ends or lets go,
/// however that happens: a signal or a panic closes the pipe that it reads from.
const WATCHDOG: &str = r#"
dir=$1 signal=$2
shift 2
"$@" >"$dir/out" 2>"$dir/log" </dev/null &
echo $!
read -r _
kill -s "$signal" $!
wait
rm -rf "$dir"
"#;

/// How long a program may take to serve, in steps of [`STEP`].
const READY_STEPS: u32 = 1_200;
const STEP: Duration = Duration::from_millis(25);

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
        Self::start_ended_by("KILL", program, arguments)
    }

    /// The same of a program that leaves something behind unless this signal ends it.
    pub fn start_ended_by<A: AsRef<OsStr>>(
        signal: &str,
        program: &Path,
        arguments: impl FnOnce(&Path) -> Vec<A>,
    ) -> anyhow::Result<Self> {
        // The watchdog removes it.
        let dir = tempfile::Builder::new().prefix("onced-bench-").tempdir()?.keep();
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog"])
            .args([dir.as_os_str(), signal.as_ref(), program.as_os_str()])
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

    /// Waits until it serves.
    pub async fn ready(&self, name: &str, serves: impl AsyncFn() -> bool) -> anyhow::Result<()> {
        for _ in 0..READY_STEPS {
            if serves().await {
                return Ok(());
            }
            anyhow::ensure!(self.is_running(), "{name} ended:\n{}{}", self.output(), self.log());
            tokio::time::sleep(STEP).await;
        }
        anyhow::bail!("{name} did not get ready:\n{}{}", self.output(), self.log())
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The directory that it may use.
    pub fn dir(&self) -> &Path {
        &self.dir
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

/// Ports that are free now, below those that the system hands out for outgoing connections.
pub fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    // Held until all are found, so that none is found twice.
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = (0..1_000)
            .find_map(|_| TcpListener::bind(("127.0.0.1", fastrand::u16(10_000..32_000))).ok())
            .context("no port is free")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}
