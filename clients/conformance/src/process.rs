//! Child processes that end with the driver, however that ends.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Runs a program, sends it the signals that it reads, and kills it when the pipe that it reads from is closed. It
/// keeps the program's output open for nobody but the program, whose end shows by the end of that.
const WATCHDOG: &str = r#"
"$@" </dev/null &
pid=$!
exec >&-
while read -r signal; do kill -"$signal" "$pid"; done
kill -KILL "$pid" 2>/dev/null
wait
"#;

/// A server of a kind.
pub struct Watched {
    signals: ChildStdin,
    pub lines: Lines<BufReader<ChildStdout>>,
    _watchdog: Child,
}

impl Watched {
    /// Starts a program, with what it says to standard error at the end of a file.
    pub fn start(program: &Path, args: &[OsString], log: &Path) -> Result<Self> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut child = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C is for the driver, which then ends it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let signals = child.stdin.take().context("its input")?;
        let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
        Ok(Self { signals, lines, _watchdog: child })
    }

    /// Sends a signal, such as `TERM`.
    pub async fn signal(&mut self, signal: &str) -> Result<()> {
        self.signals.write_all(format!("{signal}\n").as_bytes()).await?;
        Ok(self.signals.flush().await?)
    }

    /// Waits until the program has ended.
    pub async fn ended(&mut self) -> Result<()> {
        self.lines.get_mut().read_to_end(&mut Vec::new()).await?;
        Ok(())
    }
}

/// An agent: what it is told and what it says. It ends when its input does.
pub struct Spoken {
    pub child: Child,
    pub input: ChildStdin,
    pub lines: Lines<BufReader<ChildStdout>>,
}

/// Starts a command line that is spoken with.
pub fn speak(command: &str, log: &Path) -> Result<Spoken> {
    let mut child = Command::new("sh")
        .args(["-c", &format!("exec {command}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(std::fs::OpenOptions::new().create(true).append(true).open(log)?)
        // Whatever it starts is killed with it.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {command}"))?;
    let input = child.stdin.take().context("its input")?;
    let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
    Ok(Spoken { child, input, lines })
}

/// kill -9 to all of a child's group.
pub fn kill_all(child: &Child) -> Result<()> {
    let Some(id) = child.id() else { return Ok(()) };
    let group = Pid::from_raw(i32::try_from(id)?).context("a process id")?;
    match kill_process_group(group, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The last lines of a file.
pub fn tail(file: &Path, lines: usize) -> String {
    let text =
        std::fs::read(file).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
