//! The command itself: started, listened to, and stopped if it must be.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use onced_client::{Claim, Lost};
use rustix::process::{Pid, Signal, getpgrp, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::capture::{Capture, Captured};
use super::signals::Caught;
use crate::cli::output::say;
use crate::generated::exec_v1::OutputStream;

/// How long a command whose claim was lost has to end by itself.
const GRACE: Duration = Duration::from_secs(10);
/// How long output that is still on its way is waited for after a command was stopped.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a signal that ended the command may take to be seen here as well.
const SAME_MOMENT: Duration = Duration::from_millis(10);

/// How a command ended.
#[derive(Clone, Copy, Debug)]
pub enum Ended {
    /// By itself: its exit code, or 128 + the signal that ended it.
    Exited(u8),
    /// It was not even started: 126 or 127.
    NotStarted(u8),
    /// After this signal was passed on to it.
    Interrupted(Caught),
    /// After it was stopped, because the claim was lost.
    Lost(Lost),
}

/// A command to run under a claim.
pub struct Job<'a> {
    pub key: &'a str,
    pub namespace: &'a str,
    pub command: &'a [OsString],
    /// Whether the head of too much output is stored.
    pub truncate: bool,
}

impl Job<'_> {
    /// Runs the command to its end. Its output is passed on as it comes.
    pub async fn run(&self, claim: &Claim, signals: mpsc::UnboundedReceiver<Caught>) -> (Ended, Captured) {
        let captured = Captured::new(claim.max_outcome_bytes());
        let note = self.overflow_note(captured.limit_bytes);
        let mut child = match self.spawn(claim) {
            Ok(child) => child,
            Err(error) => return (self.not_started(&error), captured),
        };
        let capture = Capture::new(captured, &note);
        let mut pumps = tokio::task::JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            pumps.spawn(capture.clone().pump(OutputStream::Stdout, stdout, tokio::io::stdout()));
        }
        if let Some(stderr) = child.stderr.take() {
            pumps.spawn(capture.clone().pump(OutputStream::Stderr, stderr, tokio::io::stderr()));
        }
        let output = async { while pumps.join_next().await.is_some() {} };
        let ended = supervise(child, claim, signals, output).await;
        (ended, capture.take())
    }

    fn spawn(&self, claim: &Claim) -> io::Result<Child> {
        let (program, arguments) = self.command.split_first().ok_or(io::ErrorKind::NotFound)?;
        Command::new(program)
            .args(arguments)
            .env("ONCED_KEY", self.key)
            .env("ONCED_NAMESPACE", self.namespace)
            .env("ONCED_FENCING_TOKEN", claim.fencing_token().to_string())
            .env("ONCED_ATTEMPT", claim.attempt().to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    }

    fn not_started(&self, error: &io::Error) -> Ended {
        let program = self.command.first().map(|program| program.to_string_lossy()).unwrap_or_default();
        say(&format!("cannot run {program}: {error}"));
        Ended::NotStarted(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
    }

    fn overflow_note(&self, limit_bytes: usize) -> String {
        let then = if self.truncate {
            "the head of it will be stored, marked as truncated"
        } else {
            "an error will be stored in its place (see --on-overflow)"
        };
        format!(
            "the output is over the {limit_bytes} bytes that can be stored; the command goes on, and {then}"
        )
    }
}

/// Waits for the command and its output, passes signals on, and stops it when the claim is lost.
async fn supervise(
    mut child: Child,
    claim: &Claim,
    mut signals: mpsc::UnboundedReceiver<Caught>,
    output: impl Future<Output = ()>,
) -> Ended {
    let mut output = pin!(output);
    let (mut status, mut printed): (Option<ExitStatus>, bool) = (None, false);
    let (mut interrupted, mut lost): (Option<Caught>, Option<Lost>) = (None, None);
    // What happens when the patience with a command that was told to end is over.
    let mut patience = pin!(tokio::time::sleep(GRACE));
    let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    while status.is_none() || !printed {
        tokio::select! {
            ended = child.wait(), if status.is_none() => {
                // A child that cannot be waited for has ended in a way that nobody will ever know.
                status = Some(ended.unwrap_or_else(|_| ExitStatus::from_raw(127 << 8)));
                if interrupted.is_some() || lost.is_some() {
                    patience.set(tokio::time::sleep(LAST_WORDS));
                }
            }
            () = &mut output, if !printed => printed = true,
            Some(caught) = signals.recv() => {
                let typed = interrupted.is_none() && caught.is_typed() && before_a_terminal();
                interrupted.get_or_insert(caught);
                match (status, pid) {
                    (None, Some(pid)) if !typed => send(pid, caught.number()),
                    (None, _) => {}
                    // It has ended; only those it left behind still print.
                    (Some(_), _) => patience.set(tokio::time::sleep(LAST_WORDS)),
                }
            }
            Some(how) = claim.lost(), if lost.is_none() && status.is_none() => {
                lost = Some(how);
                say(&format!("{how}; stopping the command"));
                if let Some(pid) = pid {
                    send(pid, Signal::TERM);
                }
                patience.set(tokio::time::sleep(GRACE));
            }
            () = &mut patience, if lost.is_some() || (interrupted.is_some() && status.is_some()) => {
                if status.is_some() {
                    break;
                }
                let _ = child.start_kill();
                patience.set(tokio::time::sleep(GRACE));
            }
        }
    }
    if interrupted.is_none() && lost.is_none() {
        // Ctrl-C goes to the command and to this process at once, and the command's end may be seen first.
        interrupted = tokio::time::timeout(SAME_MOMENT, signals.recv()).await.ok().flatten();
    }
    match (interrupted, lost) {
        (Some(caught), _) => Ended::Interrupted(caught),
        (None, Some(lost)) => Ended::Lost(lost),
        (None, None) => Ended::Exited(exit_code(status)),
    }
}

/// A signal to a process that was not waited for yet, so that its number is still its own.
fn send(pid: Pid, signal: Signal) {
    // It may have ended in this moment.
    let _ = kill_process(pid, signal);
}

/// Whether this process is in the foreground of a terminal, which then sends Ctrl-C to the command as well.
fn before_a_terminal() -> bool {
    let front = |group: Result<Pid, _>| group.is_ok_and(|group: Pid| group == getpgrp());
    front(rustix::termios::tcgetpgrp(std::io::stdin()))
        || front(rustix::termios::tcgetpgrp(std::io::stdout()))
        || front(rustix::termios::tcgetpgrp(std::io::stderr()))
}

fn exit_code(status: Option<ExitStatus>) -> u8 {
    let code = status.and_then(|status| status.code().or_else(|| status.signal().map(|signal| 128 + signal)));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(super::OWN_FAILURE)
}
