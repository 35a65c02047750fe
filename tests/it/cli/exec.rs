//! `onced exec`: one runs it, all print it.

use std::process::Stdio;

use super::{Ran, Server};

/// Where scripts leave a line for each time they ran.
struct Lines {
    directory: tempfile::TempDir,
}

impl Lines {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// A script that leaves a line.
    fn append(&self) -> String {
        format!("echo ran >> {}", self.directory.path().join("lines").display())
    }

    fn count(&self) -> usize {
        std::fs::read_to_string(self.directory.path().join("lines")).unwrap_or_default().lines().count()
    }
}

#[test]
fn of_many_invocations_one_runs_it_and_all_print_the_same_and_exit_alike() {
    let server = Server::start();
    let lines = Lines::new();
    let script =
        format!("{}; echo out $ONCED_ATTEMPT; echo err >&2; sleep 0.3; echo more; exit 7", lines.append());
    let children: Vec<_> = (0..12)
        .map(|_| {
            let mut command = server.exec_command("k", &[], &script);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        let ran = Ran::from(child.wait_with_output().unwrap());
        let expected = Ran { code: Some(7), stdout: "out 1\nmore\n".to_owned(), stderr: "err\n".to_owned() };
        assert_eq!(ran, expected);
    }
    assert_eq!(lines.count(), 1);
}

#[test]
fn stdout_and_stderr_are_replayed_in_order() {
    let server = Server::start();
    // Both to one pipe, so that the order shows.
    let script = "for i in 1 2 3; do echo out $i; sleep 0.05; echo err $i >&2; sleep 0.05; done";
    let both = |key: &str| {
        let all = format!("exec \"$0\" exec --key {key} -- sh -c '{script}' 2>&1");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &all, env!("CARGO_BIN_EXE_onced")]).env("ONCED_SERVER", &server.address);
        Ran::from(command.output().unwrap())
    };
    let first = both("k");
    assert_eq!(first.stdout, "out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\n");
    assert_eq!(both("k"), first);
}

#[test]
fn the_command_knows_its_claim() {
    let server = Server::start();
    let script = "echo $ONCED_KEY $ONCED_NAMESPACE $ONCED_ATTEMPT $ONCED_FENCING_TOKEN";
    let ran = server.exec("a key", &["--namespace", "n"], script).expect(0, &["a key n 1 "]);
    let token = ran.stdout.split_whitespace().last().unwrap().to_owned();
    let completed = server.run(&["lookup", "--key", "a key", "--namespace", "n", "--json"]).json();
    assert_eq!(completed["fencing_token"].to_string(), token);
}

#[test]
fn standard_input_reaches_the_command() {
    let server = Server::start();
    let mut command = server.exec_command("k", &[], "cat");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"hello").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"hello");
    server.exec("k", &[], "cat").expect(0, &["hello"]);
}

#[test]
fn binary_output_is_replayed_byte_for_byte() {
    let server = Server::start();
    let script = "head -c 100000 /dev/urandom; printf '\\000\\377'";
    let print = || server.exec_command("k", &[], script).output().unwrap();
    let first = print();
    assert_eq!(first.stdout.len(), 100_002);
    assert_eq!(print(), first);
}

#[test]
fn another_command_line_under_the_same_key_is_refused_unless_told_otherwise() {
    let server = Server::start();
    server.exec("k", &[], "echo one").expect(0, &["one"]);
    server.exec("k", &[], "echo two").expect(125, &[]).said(&["another command line", "--no-fingerprint"]);
    server.exec("k2", &["--no-fingerprint"], "echo one").expect(0, &["one"]);
    server.exec("k2", &["--no-fingerprint"], "echo two").expect(0, &["one"]);
    server.exec("k3", &["--fingerprint", "01"], "echo one").expect(0, &["one"]);
    server.exec("k3", &["--fingerprint", "01"], "echo two").expect(0, &["one"]);
}

#[test]
fn a_failure_is_stored_released_or_held() {
    let server = Server::start();
    let lines = Lines::new();
    let script = format!("{}; echo no >&2; exit 3", lines.append());
    for _ in 0..2 {
        server.exec("stored", &[], &script).expect(3, &[]).said(&["no"]);
    }
    assert_eq!(lines.count(), 1);
    for _ in 0..2 {
        let ran = server.exec("released", &["--on-failure", "release"], &script).expect(3, &[]);
        ran.said(&["no", "exited with 3", "free again"]);
    }
    assert_eq!(lines.count(), 3);
    let hold = server.exec("held", &["--on-failure", "hold"], &script).expect(3, &[]);
    hold.said(&["exited with 3", "in doubt", "onced resolve --key held"]);
    let doubt = server.exec("held", &["--on-failure", "hold"], &script).expect(125, &[]);
    let doubt = doubt.said(&["in doubt", "exited with 3", "--retry"]);
    assert_eq!(lines.count(), 4);

    // The message says how to go on, word for word.
    let retry = doubt.stderr.lines().find(|line| line.ends_with("--retry")).unwrap();
    let retry: Vec<_> = retry.split_whitespace().skip(1).collect();
    server.run(&retry).expect(0, &["resolved"]);
    let again = server.exec("held", &["--on-failure", "hold"], &script).expect(3, &[]);
    assert_eq!(lines.count(), 5);

    // Or the operator finds that it did what it was to do.
    let done = again.stderr.lines().find(|line| line.ends_with("--exit-code 0")).unwrap();
    let done: Vec<_> = done.split_whitespace().skip(1).collect();
    server.run(&done).expect(0, &["resolved", "completed"]);
    server.exec("held", &["--on-failure", "hold"], &script).expect(0, &[]);
    assert_eq!(lines.count(), 5);
}

#[test]
fn a_command_ended_by_a_signal_exits_as_shells_have_it() {
    let server = Server::start();
    for _ in 0..2 {
        server.exec("k", &[], "kill -9 $$").expect(137, &[]);
    }
}

#[test]
fn a_command_that_cannot_run_leaves_the_key_free() {
    let server = Server::start();
    let missing = server.run(&["exec", "--key", "k", "--no-fingerprint", "--", "no-such-command"]);
    missing.expect(127, &[]).said(&["cannot run no-such-command", "free again"]);
    let denied = server.run(&["exec", "--key", "k", "--no-fingerprint", "--", "/etc/passwd"]);
    denied.expect(126, &[]).said(&["cannot run /etc/passwd", "free again"]);
    server.exec("k", &["--no-fingerprint"], "echo $ONCED_ATTEMPT").expect(0, &["3"]);
}

#[test]
fn too_much_output_is_told_at_once_and_nobody_runs_it_again() {
    let server = Server::start();
    let lines = Lines::new();
    let script = format!("{}; head -c 1100000 /dev/zero | tr '\\0' x; exit 4", lines.append());
    let first = server.exec("k", &[], &script).expect(125, &[]);
    assert_eq!(first.stdout.len(), 1_100_000);
    let first = first.said(&["the command goes on", "OUT_OF_RANGE", "exited with 4", "1100000 bytes"]);
    let second = server.exec("k", &[], &script).expect(125, &[]);
    assert_eq!(second.stdout, "");
    // The same clear error as the first one's last line.
    assert_eq!(second.stderr.lines().last(), first.stderr.lines().last());
    assert_eq!(lines.count(), 1);
}

#[test]
fn too_much_output_is_truncated_if_asked_for() {
    let server = Server::start();
    let script = "head -c 1100000 /dev/zero | tr '\\0' x; exit 4";
    let flags = ["--on-overflow", "truncate"];
    assert_eq!(server.exec("k", &flags, script).expect(4, &[]).said(&["truncated"]).stdout.len(), 1_100_000);
    let second = server.exec("k", &flags, script).expect(4, &[]).said(&["truncated", "of 1100000 bytes"]);
    assert!(second.stdout.len() > 1_000_000 && second.stdout.len() < 1 << 20, "{}", second.stdout.len());
}

#[test]
fn a_reader_that_goes_away_does_not_end_the_command() {
    let server = Server::start();
    let lines = Lines::new();
    let script = format!("seq 100000; {}", lines.append());
    let mut child = server.exec_command("k", &[], &script).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(lines.count(), 1);
    let replay = server.exec("k", &[], &script).expect(0, &["\n100000\n"]);
    assert!(replay.stdout.starts_with("1\n2\n"));
}

#[test]
fn what_another_program_completed_is_no_result_of_a_command() {
    let server = Server::start();
    let begun = server.run(&["begin", "--key", "k", "--json"]).json();
    let token = begun["fencing_token"].to_string();
    server.run(&["complete", "--key", "k", "--token", &token, "--response", "x"]).expect(0, &[]);
    server.exec("k", &[], "true").expect(125, &[]).said(&["not with the result of a command"]);
}

#[test]
fn a_wait_that_is_over_says_who_runs_it() {
    let server = Server::start();
    server.run(&["begin", "--key", "k", "--owner", "web-3"]).expect(0, &[]);
    server.exec("k", &["--wait", "100ms"], "true").expect(125, &[]).said(&["web-3 is still running"]);
}
