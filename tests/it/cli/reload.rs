//! SIGHUP: the file is read again, under a running server.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use super::*;
use crate::support::server::HANGS;

/// A server with a file of settings and a log that can be read.
struct Configured {
    directory: tempfile::TempDir,
    process: ServerProcess,
}

impl Configured {
    fn start(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("onced.toml"), text).unwrap();
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let mut command = onced();
        command.env("ONCED_CONFIG", directory.path().join("onced.toml"));
        command.env("ONCED_LIMITS_MAX_SESSION_CALLS", "7").env_remove("RUST_LOG").stderr(log);
        Self { process: ServerProcess::start_as(command, "memory:"), directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("onced.toml")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Asks for a reload, and waits until the log says the last word on it: what was logged since.
    fn reload(&self) -> String {
        let before = self.log().len();
        kill(self.process.child(), Signal::HUP);
        for _ in 0..HANGS.as_millis() / 20 {
            let log = self.log()[before..].to_owned();
            if log.contains("the settings were ") && log.ends_with('\n') {
                return log;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("no reload: {}", self.log());
    }

    /// The lock TTL of a new claim in a namespace, in seconds.
    fn lock_ttl(&self, namespace: &str) -> u64 {
        let key = uuid::Uuid::new_v4().to_string();
        let address = self.process.address().to_string();
        let begin = ["begin", "--key", &key, "--namespace", namespace, "--server", &address, "--json"];
        let begun = Ran::from(onced().args(begin).output().unwrap()).expect(0, &[]);
        begun.json()["lock_ttl_ms"].as_u64().unwrap() / 1_000
    }
}

/// Checks that a line of `log` holds each of `texts`.
#[track_caller]
fn told(log: &str, texts: &[&str]) {
    assert!(log.lines().any(|line| texts.iter().all(|text| line.contains(text))), "no {texts:?} in {log}");
}

#[test]
fn what_can_change_changes_and_what_cannot_is_told() {
    let server = Configured::start("[limits]\nconnections = 100\n[namespaces.orders]\nlock_ttl = \"40s\"\n");
    assert_eq!((server.lock_ttl("default"), server.lock_ttl("orders")), (30, 40));
    assert!(!server.log().contains("answered"), "{}", server.log());

    let text = "log = \"onced=debug\"\nlisten = \"127.0.0.1:1\"\n\
                [limits]\nconnections = 101\nmax_session_calls = 8\n\
                [defaults]\nlock_ttl = \"50s\"\n";
    fs::write(server.path(), text).unwrap();
    let log = server.reload();
    told(&log, &["INFO", "defaults.lock_ttl", "30s", "50s"]);
    told(&log, &["INFO", "namespaces.orders.lock_ttl", "40s", "50s"]);
    told(&log, &["WARN", "limits.connections", "100", "101", "needs a restart"]);
    told(&log, &["INFO", "the settings were reloaded"]);
    // A flag and a variable count more, as they did at the start.
    assert!(!log.contains("listen") && !log.contains("max_session_calls"), "{log}");

    assert_eq!((server.lock_ttl("default"), server.lock_ttl("orders")), (50, 50));
    told(&server.log(), &["DEBUG", "answered"]);
}

#[test]
fn a_file_in_which_anything_is_wrong_changes_nothing() {
    let server = Configured::start("[defaults]\nlock_ttl = \"40s\"\n");
    fs::write(server.path(), "lisetn = 1\n[defaults]\nlock_ttl = \"50s\"\nretention = \"1s\"\n").unwrap();
    let log = server.reload();
    told(&log, &["ERROR", "onced.toml:1: lisetn: there is no such setting: did you mean listen?"]);
    told(
        &log,
        &["ERROR", "onced.toml:4: defaults.retention: expected a time from 1m to 31d", "found \"1s\""],
    );
    told(&log, &["ERROR", "not reloaded, and stay as they were"]);
    assert_eq!(server.lock_ttl("default"), 40);

    fs::remove_file(server.path()).unwrap();
    told(&server.reload(), &["ERROR", "onced.toml: cannot read the file"]);
    assert_eq!(server.lock_ttl("default"), 40);

    fs::write(server.path(), "[defaults]\nlock_ttl = \"50s\"\n").unwrap();
    told(&server.reload(), &["INFO", "defaults.lock_ttl"]);
    assert_eq!(server.lock_ttl("default"), 50);
}

#[test]
fn quotas_are_reloaded_too() {
    let server = Configured::start("");
    server.lock_ttl("orders");
    fs::write(server.path(), "[namespaces.orders]\nmax_claims = 1\n").unwrap();
    told(&server.reload(), &["INFO", "namespaces.orders.max_claims", "unlimited"]);
    server.lock_ttl("orders");
    let address = server.process.address().to_string();
    let begin = ["begin", "--key", "k", "--namespace", "orders", "--server", &address, "--timeout", "1s"];
    Ran::from(onced().args(begin).output().unwrap()).expect(11, &[]).said(&["QUOTA_EXCEEDED", "max_claims"]);
}

/// Unless it is told, as by `nohup`, not to mind: what runs these tests may have been.
#[test]
fn a_server_without_a_file_ends_with_its_terminal() {
    let mut command = onced();
    command.stderr(Stdio::null());
    let mut server = ServerProcess::start_as(command, "memory:");
    kill(server.child(), Signal::HUP);
    if ignores_hangups() {
        let address = server.address().to_string();
        let begin = ["begin", "--key", "a", "--server", &address];
        Ran::from(onced().args(begin).output().unwrap()).expect(0, &[]);
    } else {
        server.ended_by(Signal::HUP);
    }
}

/// Whether this process, and so each that it starts, ignores SIGHUP.
fn ignores_hangups() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ignored =
        status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("which signals it ignores");
    u64::from_str_radix(ignored.trim(), 16).unwrap() & 1 << (Signal::HUP.as_raw() - 1) != 0
}
