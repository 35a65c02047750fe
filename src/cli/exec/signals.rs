//! The signals that ask a process to end.

use std::io;

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal that was caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caught {
    Hangup,
    Interrupt,
    Quit,
    Terminate,
}

impl Caught {
    pub fn name(self) -> &'static str {
        match self {
            Caught::Hangup => "SIGHUP",
            Caught::Interrupt => "SIGINT",
            Caught::Quit => "SIGQUIT",
            Caught::Terminate => "SIGTERM",
        }
    }

    pub fn number(self) -> Number {
        match self {
            Caught::Hangup => Number::HUP,
            Caught::Interrupt => Number::INT,
            Caught::Quit => Number::QUIT,
            Caught::Terminate => Number::TERM,
        }
    }

    /// As shells have it.
    pub fn exit_code(self) -> u8 {
        match self {
            Caught::Hangup => 129,
            Caught::Interrupt => 130,
            Caught::Quit => 131,
            Caught::Terminate => 143,
        }
    }

    /// Whether a terminal sends it to all processes in front of it.
    pub fn is_typed(self) -> bool {
        matches!(self, Caught::Interrupt | Caught::Quit)
    }
}

/// The signals of this process. From when it is made, none of them ends the process by itself.
pub struct Signals {
    /// None if whoever started this process, such as nohup, had it ignore the signal.
    hangup: Option<Signal>,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
}

impl Signals {
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            hangup: if ignores_hangup() { None } else { Some(signal(SignalKind::hangup())?) },
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// The next signal.
    pub async fn next(&mut self) -> Caught {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = hangup => Caught::Hangup,
            _ = self.interrupt.recv() => Caught::Interrupt,
            _ = self.quit.recv() => Caught::Quit,
            _ = self.terminate.recv() => Caught::Terminate,
        }
    }
}

/// Whether SIGHUP is ignored now. Where the system does not tell, it counts as not ignored.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // Signal N is the bit N - 1, and SIGHUP is 1.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
