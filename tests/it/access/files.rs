//! The files of a server as operators meet them: mistakes at the start, and certificates that are renewed.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::support::onced::{ServerProcess, onced};

fn checked(flags: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = onced();
    command.arg("check-config").env_remove("RUST_LOG");
    for (flag, value) in flags {
        command.args([flag, value]);
    }
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn files_that_cannot_be_used_are_named_with_their_cause_and_the_exit_status_is_2() {
    let certificates = Certificates::for_a_server();
    certificates.sign("other", &["localhost"]);
    fs::write(certificates.path("empty"), "").unwrap();
    fs::write(certificates.path("broken"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    // As from an environment variable.
    let in_one_line = fs::read_to_string(certificates.path("server.key")).unwrap().replace('\n', "\\n");
    fs::write(certificates.path("in-one-line"), in_one_line).unwrap();
    let path = |name: &str| certificates.arg(name);
    let (cert, key, directory) = (path("server.crt"), path("server.key"), path(""));
    for (flags, file, cause) in [
        (vec![("--tls-cert", path("gone")), ("--tls-key", key.clone())], "gone", "tls.cert: cannot read"),
        (vec![("--tls-cert", cert.clone()), ("--tls-key", path("gone"))], "gone", "tls.key: cannot read"),
        (vec![("--tls-cert", directory), ("--tls-key", key.clone())], "", "tls.cert: cannot read"),
        (vec![("--tls-cert", path("empty")), ("--tls-key", key.clone())], "empty", "holds no certificate"),
        (
            vec![("--tls-cert", path("broken")), ("--tls-key", key.clone())],
            "broken",
            "a certificate that is none",
        ),
        (
            vec![("--tls-cert", cert.clone()), ("--tls-key", cert.clone())],
            "server.crt",
            "holds no private key",
        ),
        (
            vec![("--tls-cert", cert.clone()), ("--tls-key", path("in-one-line"))],
            "in-one-line",
            "the line that begins a part has no end",
        ),
        (
            vec![("--tls-cert", cert.clone()), ("--tls-key", path("other.key"))],
            "other.key",
            "is not the key of the certificate in",
        ),
        (
            vec![
                ("--tls-cert", cert.clone()),
                ("--tls-key", key.clone()),
                ("--tls-client-ca", path("server.key")),
            ],
            "server.key",
            "tls.client_ca: ",
        ),
        (vec![("--tls-cert", cert.clone())], "", "tls.cert: needs its key"),
        (vec![("--tls-key", key.clone())], "", "tls.key: needs its certificate"),
        (vec![("--tls-client-ca", path("ca.crt"))], "", "tls.client_ca: is for TLS"),
    ] {
        let flags: Vec<(&str, &str)> = flags.iter().map(|(flag, value)| (*flag, value.as_str())).collect();
        let (code, said) = checked(&flags);
        assert_eq!((code, said.lines().count()), (Some(2), 1), "{flags:?}: {said}");
        assert!(said.contains(file) && said.contains(cause), "{cause}: {said}");
        // Neither as text nor byte by byte.
        assert!(!said.contains("-----BEGIN") && !said.contains("45, 45"), "{said}");
    }
}

#[test]
fn every_file_that_cannot_be_used_is_told_at_once() {
    let gone: Vec<_> =
        ["cert", "key", "client_ca", "tokens", "jwks"].map(|file| format!("/gone/{file}")).into();
    let flags = ["--tls-cert", "--tls-key", "--tls-client-ca", "--access-tokens", "--access-jwks"];
    let mut flags: Vec<_> = flags.into_iter().zip(gone.iter().map(String::as_str)).collect();
    flags.extend([("--access-jwt-issuer", "https://issuer.example"), ("--access-jwt-audience", "onced")]);
    let (code, said) = checked(&flags);
    assert_eq!((code, said.lines().count()), (Some(2), gone.len()), "{said}");
    for file in gone {
        assert!(said.contains(&file), "{file}: {said}");
    }
}

#[test]
fn the_files_for_tls_to_etcd_are_looked_into_before_it_is_called() {
    let certificates = Certificates::for_a_server();
    certificates.sign("other", &["localhost"]);
    certificates.sign_for_year("old", "localhost", 2020);
    let path = |name: &str| certificates.arg(name);
    for (ca, cert, key, told) in [
        (
            "server.key",
            "server.crt",
            "other.key",
            &["--etcd-ca: etcd.ca: ", "is not the key of the certificate"][..],
        ),
        (
            "gone",
            "gone",
            "gone",
            &["etcd.ca: cannot read", "etcd.cert: cannot read", "etcd.key: cannot read"],
        ),
        ("ca.crt", "old.crt", "old.key", &["etcd.cert: ", "has expired"]),
    ] {
        let (ca, cert, key) = (path(ca), path(cert), path(key));
        let flags = [("--etcd-ca", ca), ("--etcd-cert", cert), ("--etcd-key", key)];
        let mut flags: Vec<_> = flags.iter().map(|(flag, path)| (*flag, path.as_str())).collect();
        flags.push(("--store", "etcds://localhost:1/onced"));
        let (code, said) = checked(&flags);
        assert!(code == Some(2) && told.iter().all(|told| said.contains(told)), "{told:?}: {said}");
    }
}

#[test]
fn a_certificate_that_has_expired_is_refused_and_one_that_is_yet_to_come_warned_of() {
    let certificates = Certificates::new();
    certificates.sign_for_year("old", "localhost", 2020);
    certificates.sign_for_year("new", "localhost", 2999);
    // What signs it begins it in 1975.
    certificates.sign_until("backwards", "localhost", Duration::ZERO);
    certificates.sign("good", &["localhost"]);
    for (name, exit, said) in [
        ("backwards", 2, "ends before it begins"),
        ("old", 2, "has expired at 2020-12-31"),
        ("new", 0, "is not valid before 2999-01-01"),
        ("good", 0, ""),
    ] {
        let (cert, key) =
            (certificates.arg(&format!("{name}.crt")), certificates.arg(&format!("{name}.key")));
        let (code, told) = checked(&[("--tls-cert", &cert), ("--tls-key", &key)]);
        assert_eq!((code, told.is_empty()), (Some(exit), said.is_empty()), "{told}");
        assert!(told.contains(said), "{told}");
    }
}

/// A server process that speaks TLS, and whose log can be read.
struct Process {
    certificates: Certificates,
    server: ServerProcess,
}

impl Process {
    fn start() -> Self {
        let certificates = Certificates::for_a_server();
        let log = fs::File::create(certificates.path("log")).unwrap();
        let mut command = onced();
        command.env("ONCED_TLS_CERT", certificates.path("server.crt"));
        command.env("ONCED_TLS_KEY", certificates.path("server.key"));
        command.env_remove("RUST_LOG").stderr(log);
        Self { server: ServerProcess::start_as(command, "memory:"), certificates }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = onced();
        command.args(args).stdin(Stdio::null());
        command.env("ONCED_SERVER", format!("https://localhost:{}", self.server.address().port()));
        command.env("ONCED_CLIENT_TLS_CA", self.certificates.ca());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Waits until the log has said something so often.
    fn until_logged(&self, text: &str, times: usize) {
        let log = || fs::read_to_string(self.certificates.path("log")).unwrap();
        for _ in 0..HANGS.as_millis() / 20 {
            if log().matches(text).count() >= times {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("no {text:?}, {times} times, in {}", log());
    }

    /// The certificate that a new connection sees.
    async fn shown(&self) -> Vec<u8> {
        let stream = self.certificates.connect(self.server.address(), None, &["h2"]).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }
}

const TAKEN: &str = "new connections get the certificate";
const KEPT: &str = "what TLS stands on was not reloaded from it, and stays as it was";

#[tokio::test]
async fn commands_call_by_tls() {
    let process = Process::start();
    let begun = process.run(&["begin", "--key", "k"]);
    let said = String::from_utf8(begun.stdout).unwrap();
    assert_eq!(begun.status.code(), Some(0), "{said}");
    let mut untrusting = process.command(&["begin", "--key", "k"]);
    let refused = untrusting.env_remove("ONCED_CLIENT_TLS_CA").output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(8) && said.contains("--tls-ca"), "{said}");
}

/// Asked until it is ready, which it is once it has asked its store.
fn asked(mut command: Command, code: i32) -> String {
    loop {
        let Output { status, stdout, stderr } = command.output().unwrap();
        let said = String::from_utf8([stdout, stderr].concat()).unwrap();
        if status.code() == Some(code) {
            return said;
        }
        assert!(said.contains("it says NOT_SERVING"), "{status}: {said}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_health_of_a_server_is_asked_by_tls() {
    let process = Process::start();
    let health = |server: Option<&str>| {
        let mut command = process.command(&["health"]);
        command.env_remove("ONCED_SERVER").args(server.iter().flat_map(|server| ["--server", server]));
        command
    };
    let port = process.server.address().port();
    assert!(asked(health(Some(&format!("https://localhost:{port}"))), 0).contains("is ready"));
    // As in its container: by the variables of the server itself.
    let mut inside = health(None);
    inside.env("ONCED_LISTEN", format!("0.0.0.0:{port}"));
    inside.env("ONCED_TLS_CERT", process.certificates.path("server.crt"));
    let said = asked(inside, 0);
    assert!(said.contains(&format!("https://127.0.0.1:{port} is ready")), "{said}");
    let mut untrusting = health(Some(&format!("https://localhost:{port}")));
    untrusting.env_remove("ONCED_CLIENT_TLS_CA");
    let said = asked(untrusting, 1);
    assert!(said.contains("is not ready") && said.contains("--tls-ca"), "{said}");
    let mut plain = health(Some(&format!("localhost:{port}")));
    plain.env_remove("ONCED_CLIENT_TLS_CA");
    let said = asked(plain, 1);
    assert!(said.contains("write https://"), "{said}");
    let mut misled = health(Some(&format!("https://localhost:{port}")));
    misled.args(["--tls-ca", "/no/such/file"]);
    assert!(asked(misled, 2).contains("/no/such/file"));
}

/// Nobody tells the server that its certificate was renewed.
#[tokio::test]
async fn renewed_certificates_are_found_and_broken_ones_left_alone() {
    let process = Process::start();
    let first = process.shown().await;
    process.certificates.sign("server", &["localhost"]);
    process.until_logged(TAKEN, 1);
    let second = process.shown().await;
    assert_ne!(first, second);

    process.certificates.sign_for_year("server", "localhost", 2020);
    process.until_logged(KEPT, 1);
    assert_eq!(process.shown().await, second);
    fs::remove_file(process.certificates.path("server.key")).unwrap();
    process.until_logged(KEPT, 2);
    assert_eq!(process.shown().await, second);
    assert_eq!(process.run(&["begin", "--key", "k"]).status.code(), Some(0));

    process.certificates.sign("server", &["localhost"]);
    process.until_logged(TAKEN, 2);
    assert_ne!(process.shown().await, second);
}

#[tokio::test]
async fn sighup_reads_the_certificate_again_where_there_is_no_file_of_settings() {
    let process = Process::start();
    let pid = Pid::from_raw(i32::try_from(process.server.child().id()).unwrap()).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    process.until_logged("the settings were reloaded", 1);
    process.until_logged(TAKEN, 1);
    fs::write(process.certificates.path("server.key"), "nonsense").unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    process.until_logged(KEPT, 1);
    // It holds up nothing else.
    process.until_logged("the settings were reloaded", 2);
    process.shown().await;
}

/// As it may on a file system that is away.
#[test]
fn a_file_that_hangs_when_it_is_read_stops_no_call_and_no_end() {
    let mut process = Process::start();
    let key = process.certificates.path("server.key");
    fs::remove_file(&key).unwrap();
    assert!(Command::new("mkfifo").arg(&key).status().unwrap().success());
    process.until_logged("a file hangs when it is read", 1);
    assert_eq!(process.run(&["begin", "--key", "k"]).status.code(), Some(0));
    process.server.ends();
}
