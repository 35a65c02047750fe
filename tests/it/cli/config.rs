//! The configuration as operators meet it: files, the environment, flags, and what is said of mistakes.

use std::io::Read as _;
use std::net::TcpStream;
use std::path::PathBuf;

use super::*;
use crate::support::server::HANGS;

/// A file of settings in a directory of its own.
struct File {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl File {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("onced.toml");
        std::fs::write(&path, text).unwrap();
        Self { _directory: directory, path }
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

/// Runs `onced` to its end, with these variables.
fn run(args: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = onced();
    command.args(args).envs(variables.iter().copied()).env_remove("RUST_LOG").stdin(Stdio::null());
    Ran::from(command.output().unwrap())
}

#[test]
fn flags_count_more_than_the_environment_and_that_more_than_the_file() {
    let file = File::new("log = \"warn\"\n[limits]\nconnections = 1\nmax_wait = \"1s\"\n");
    let variables =
        [("ONCED_CONFIG", file.path()), ("ONCED_LIMITS_CONNECTIONS", "2"), ("ONCED_LOG", "error")];
    let printed = run(&["serve", "--print-config", "--log", "debug"], &variables).expect(0, &[]);
    for line in [
        "log = \"debug\"  # --log".to_owned(),
        "connections = 2  # ONCED_LIMITS_CONNECTIONS".to_owned(),
        format!("max_wait = \"1s\"  # {}:4", file.path()),
        "listen = \"127.0.0.1:7411\"  # default".to_owned(),
    ] {
        assert!(printed.stdout.lines().any(|printed| printed == line), "no {line:?} in {printed:?}");
    }
    // Without a command it is the same.
    assert_eq!(run(&["--print-config", "--log", "debug"], &variables), printed);
}

#[test]
fn every_mistake_is_told_at_once_and_the_exit_status_is_2() {
    let file = File::new("listen = 1\n[limits]\nmax_wiat = \"1s\"\n");
    let missing = file.path().replace("onced.toml", "password");
    let flags = ["--config", file.path(), "--store", "etcd://localhost", "--etcd-user", "me"];
    let variables = [("ONCED_ETCD_PASSWORD_FILE", missing.as_str()), ("ONCED_LIMITS_CONNECTIONS", "x")];
    for command in [&["check-config"][..], &["serve"], &["serve", "--print-config"], &[]] {
        let told = run(&[command, &flags].concat(), &variables).expect(2, &[]).said(&[
            &format!("{}:1: listen: expected an IP address", file.path()),
            &format!("{}:3: limits.max_wiat: there is no such setting: did you mean limits.max_wait?", file.path()),
            "ONCED_LIMITS_CONNECTIONS: limits.connections: expected a whole number from 1 to 1000000, found \"x\"",
            &format!("etcd.password_file: cannot read {missing}"),
        ]);
        assert_eq!((told.stderr.lines().count(), told.stdout.as_str()), (4, ""), "{told:?}");
    }
}

#[test]
fn a_configuration_in_which_nothing_is_wrong_is_ok_and_opens_nothing() {
    let file = File::new("store = \"file:/no/such/place\"\nlisten = \"192.0.2.1:1\"\n");
    run(&["check-config", "--config", file.path()], &[("ONCED_LISTN", "x")])
        .expect(0, &["ok: ", file.path(), "192.0.2.1:1", "file:/no/such/place"])
        .said(&["ONCED_LISTN", "did you mean ONCED_LISTEN?"]);
    let missing = file.path().replace("onced", "other");
    run(&["check-config", "--config", &missing], &[])
        .expect(2, &[])
        .said(&[&missing, "cannot read the file"]);
}

#[test]
fn no_file_is_read_that_nobody_named() {
    let file = File::new("nonsense");
    let mut command = onced();
    command.arg("check-config").current_dir(file.path.parent().unwrap()).env_remove("RUST_LOG");
    Ran::from(command.output().unwrap()).expect(0, &["ok: no file"]);
}

#[test]
fn the_reference_is_printed_as_it_stands_in_docs() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md")).unwrap();
    assert_eq!(run(&["check-config", "--reference"], &[]).expect(0, &[]).stdout, page);
}

#[test]
fn a_password_is_never_printed() {
    let file = File::new("hunter2\n");
    let flags = ["serve", "--print-config", "--store", "etcds://one", "--etcd-user", "me"];
    let of_variable = run(&flags, &[("ONCED_ETCD_PASSWORD", "hunter2")]).expect(0, &["ONCED_ETCD_PASSWORD"]);
    let of_file = run(&flags, &[("ONCED_ETCD_PASSWORD_FILE", file.path())]).expect(0, &[file.path()]);
    assert!(!format!("{of_variable:?}{of_file:?}").contains("hunter2"));
}

#[test]
fn a_server_keeps_to_the_limits_of_its_file() {
    let file = File::new("[limits]\nconnections = 1\n");
    let mut command = onced();
    command.env("ONCED_CONFIG", file.path()).stderr(Stdio::null());
    let server = ServerProcess::start_as(command, "memory:");
    let first = TcpStream::connect(server.address()).unwrap();
    // The first connection has its place once the second one is refused; the default would be far above both.
    let mut second = TcpStream::connect(server.address()).unwrap();
    second.set_read_timeout(Some(HANGS)).unwrap();
    assert_eq!(second.read(&mut [0; 1]).unwrap(), 0, "it is closed");
    drop(first);
}
