//! The real program, as its users run it.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

/// A command of the program under test.
pub fn onced() -> Command {
    Command::new(env!("CARGO_BIN_EXE_onced"))
}

/// A child process that ends with its test, however that ends.
pub struct KillOnDrop(pub Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server process on loopback, killed when dropped.
pub struct ServerProcess {
    child: KillOnDrop,
    address: SocketAddr,
    store: String,
}

impl ServerProcess {
    /// Starts a server on a free port.
    pub fn start(store: &str) -> Self {
        let (child, address) = launch(store, "127.0.0.1:0");
        Self { child, address, store: store.to_owned() }
    }

    /// Starts a server that logs everything to a disk that is full.
    pub fn start_with_full_log(store: &str) -> Self {
        let full = OpenOptions::new().write(true).open("/dev/full").expect("this system has one");
        let mut command = onced();
        command.env("RUST_LOG", "trace").stderr(full);
        Self::start_as(command, store)
    }

    /// Starts a server that is told by the system to have so many files open at most, unless it asks for more.
    pub fn start_with_files(store: &str, files: u32) -> Self {
        let mut command = Command::new("sh");
        let limited = format!("ulimit -S -n {files} && exec \"$0\" \"$@\"");
        command.args(["-c", &limited, env!("CARGO_BIN_EXE_onced")]);
        Self::start_as(command, store)
    }

    /// Starts a server on a free port by a command of the caller's making.
    pub fn start_as(command: Command, store: &str) -> Self {
        let (child, address) = try_launch(command, store, "127.0.0.1:0").expect("it starts");
        Self { child, address, store: store.to_owned() }
    }

    /// The process.
    pub fn child(&self) -> &Child {
        &self.child.0
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The most memory that it had at any time, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.0.id());
        let status = std::fs::read_to_string(path).expect("a process that runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
        let kilobytes: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
        kilobytes << 10
    }

    /// Waits for its end, which is to be by this signal.
    pub fn ended_by(&mut self, signal: rustix::process::Signal) {
        let status = self.child.0.wait().expect("waits");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(signal.as_raw()), "{status}");
    }

    /// Ends it as kill -9 does, and starts it anew at the same address.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        (self.child, self.address) = launch(&self.store, &self.address.to_string());
    }

    /// Ends it as kill -9 does.
    pub fn kill(&mut self) {
        self.child.0.kill().expect("kills");
        self.child.0.wait().expect("waits");
    }
}

fn launch(store: &str, listen: &str) -> (KillOnDrop, SocketAddr) {
    // A connection of another test may have the port of a server that is being restarted, for a moment.
    const TRIES: u32 = 50;
    for _ in 0..TRIES {
        let mut command = onced();
        command.stderr(Stdio::null());
        if let Some(launched) = try_launch(command, store, listen) {
            return launched;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("no server could be started at {listen} on {store}");
}

/// `None` if the program ended before it said where it listens.
fn try_launch(mut command: Command, store: &str, listen: &str) -> Option<(KillOnDrop, SocketAddr)> {
    let mut child = command
        .args(["serve", "--store", store, "--listen", listen])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let Some(first) = lines.next() else {
        child.wait().expect("waits");
        return None;
    };
    let first = first.expect("text");
    let address = first.strip_prefix("listening on ").expect("the address comes first");
    let address = address.parse().expect("an address");
    // Reads on, so that the server never writes to a closed pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Some((KillOnDrop(child), address))
}
