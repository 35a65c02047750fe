//! The real program, as its users run it.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};

/// A command of the program under test. A server has an admin port that nobody else has.
pub fn onced() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onced"));
    command.env("ONCED_ADMIN_LISTEN", "127.0.0.1:0");
    command
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
    addresses: Addresses,
    store: String,
}

/// Where a server listens.
#[derive(Clone, Copy)]
struct Addresses {
    api: SocketAddr,
    admin: SocketAddr,
}

impl Addresses {
    /// Such as nobody else has.
    fn free() -> Self {
        Self { api: ([127, 0, 0, 1], 0).into(), admin: ([127, 0, 0, 1], 0).into() }
    }
}

impl ServerProcess {
    /// Starts a server on a free port.
    pub fn start(store: &str) -> Self {
        let (child, addresses) = launch(store, Addresses::free());
        Self { child, addresses, store: store.to_owned() }
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
        let (child, addresses) = try_launch(command, store, Addresses::free()).expect("it starts");
        Self { child, addresses, store: store.to_owned() }
    }

    /// The process.
    pub fn child(&self) -> &Child {
        &self.child.0
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.addresses.api
    }

    /// Where it tells of itself.
    pub fn admin(&self) -> SocketAddr {
        self.addresses.admin
    }

    /// Asks it to end, and leaves it to it.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Has it stand still. Returns once it does.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        // The state of a process stands after its name, which is in brackets.
        let stands_still = || {
            let status = std::fs::read_to_string(format!("/proc/{}/stat", self.child.0.id()));
            status.expect("a process that is there").contains(") T ")
        };
        while !stands_still() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Has it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.0.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).expect("signals");
    }

    /// Waits until it has ended, without blocking this thread, and says how.
    pub async fn ended(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.child.0.try_wait().expect("waits") {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts it anew at the same addresses, once it has ended.
    pub fn restart(&mut self) {
        (self.child, self.addresses) = launch(&self.store, self.addresses);
    }

    /// The most memory that it had at any time, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.0.id());
        let status = std::fs::read_to_string(path).expect("a process that runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
        let kilobytes: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
        kilobytes << 10
    }

    /// Asks it to end, and waits for that.
    pub fn ends(&mut self) {
        self.terminate();
        let status = self.child.0.wait().expect("waits");
        assert!(status.success(), "{status}");
    }

    /// Waits for its end, which is to be by this signal.
    pub fn ended_by(&mut self, signal: Signal) {
        let status = self.child.0.wait().expect("waits");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(signal.as_raw()), "{status}");
    }

    /// Ends it as kill -9 does, and starts it anew at the same address.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.restart();
    }

    /// Ends it as kill -9 does.
    pub fn kill(&mut self) {
        self.child.0.kill().expect("kills");
        self.child.0.wait().expect("waits");
    }
}

fn launch(store: &str, listen: Addresses) -> (KillOnDrop, Addresses) {
    // A connection of another test may have the port of a server that is being restarted, for a moment.
    const TRIES: u32 = 50;
    for _ in 0..TRIES {
        let mut command = onced();
        command.stderr(Stdio::null());
        if let Some(launched) = try_launch(command, store, listen) {
            return launched;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("no server could be started at {} on {store}", listen.api);
}

/// `None` if the program ended before it said where it listens.
fn try_launch(mut command: Command, store: &str, listen: Addresses) -> Option<(KillOnDrop, Addresses)> {
    let mut child = command
        .args(["serve", "--store", store])
        .args(["--listen", &listen.api.to_string(), "--admin-listen", &listen.admin.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let Some(first) = lines.next() else {
        child.wait().expect("waits");
        return None;
    };
    let address = |line: std::io::Result<String>, start| {
        let line = line.expect("text");
        let address =
            line.strip_prefix(start).unwrap_or_else(|| panic!("{line} does not start with {start}"));
        address.parse().expect("an address")
    };
    let api = address(first, "listening on ");
    let admin = address(lines.next().expect("a second line"), "health and metrics on http://");
    // Reads on, so that the server never writes to a closed pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Some((KillOnDrop(child), Addresses { api, admin }))
}
