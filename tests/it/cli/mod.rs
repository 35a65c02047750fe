//! The command line against a server of its own process.

mod bench;
mod calls;
mod config;
mod exec;
mod exec_ends;
mod health;
mod reload;

use std::process::{Child, Command, Output, Stdio};

use crate::support::onced::{ServerProcess, onced};

/// `onced serve` with a store in memory.
struct Server {
    process: ServerProcess,
    /// Where it listens, as host:port.
    address: String,
}

impl Server {
    fn start() -> Self {
        let process = ServerProcess::start("memory:");
        let address = process.address().to_string();
        Self { process, address }
    }

    /// `onced` with these arguments, as a client of the server.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = onced();
        command.args(args).env("ONCED_SERVER", &self.address).stdin(Stdio::null());
        command
    }

    /// Runs `onced` to its end.
    fn run(&self, args: &[&str]) -> Ran {
        Ran::from(self.command(args).output().unwrap())
    }

    /// Runs `onced exec` for `key`: flags, then a script for the shell.
    fn exec(&self, key: &str, flags: &[&str], script: &str) -> Ran {
        Ran::from(self.exec_command(key, flags, script).output().unwrap())
    }

    fn exec_command(&self, key: &str, flags: &[&str], script: &str) -> Command {
        let mut command = self.command(&["exec", "--key", key]);
        command.args(flags).args(["--", "sh", "-c", script]);
        command
    }

    /// The state that `lookup` sees, and the answer.
    fn lookup(&self, key: &str) -> serde_json::Value {
        self.run(&["lookup", "--key", key, "--json"]).json()
    }

    /// Waits until `lookup` sees this state.
    fn until(&self, key: &str, state: &str) {
        while self.lookup(key)["state"] != state {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// How a process ended, and what it printed.
#[derive(Debug, PartialEq)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    #[track_caller]
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks the exit code, and that standard output holds each of `texts`.
    #[track_caller]
    fn expect(self, code: i32, texts: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        for text in texts {
            assert!(self.stdout.contains(text), "no {text:?} in {self:?}");
        }
        self
    }

    /// Checks that standard error holds each of `texts`.
    #[track_caller]
    fn said(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stderr.contains(text), "no {text:?} in {self:?}");
        }
        self
    }
}

/// Tells a process to end.
fn kill(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}
