//! `onced exec` that is interrupted, killed, or taken over.

use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{Ran, Server, kill};

/// Starts a winner, and waits until its command prints `started`.
fn start(server: &Server, key: &str, flags: &[&str], script: &str) -> Child {
    started(server.exec_command(key, flags, script))
}

fn started(mut command: Command) -> Child {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut started = [0; 8];
    child.stdout.as_mut().unwrap().read_exact(&mut started).unwrap();
    assert_eq!(&started, b"started\n");
    child
}

fn end(child: Child) -> Ran {
    Ran::from(child.wait_with_output().unwrap())
}

#[test]
fn an_interrupt_reaches_the_command_and_the_key_is_free_again() {
    let server = Server::start();
    for (signal, name, trap, code) in
        [(Signal::INT, "SIGINT", "INT", 130), (Signal::TERM, "SIGTERM", "TERM", 143)]
    {
        let script = format!("trap 'echo bye; exit 0' {trap}; echo started; while :; do sleep 0.05; done");
        let child = start(&server, name, &[], &script);
        kill(&child, signal);
        end(child).expect(code, &["bye"]).said(&[name, "free again"]);
        assert_eq!(server.lookup(name)["state"], "available");
    }
}

#[test]
fn an_interrupt_of_the_whole_group_leaves_the_key_free() {
    let server = Server::start();
    // Both get the signal at once, as from Ctrl-C; which end is seen first is chance, hence the rounds.
    for round in 0..10 {
        let key = round.to_string();
        let mut command = server.exec_command(&key, &[], "echo started; exec sleep 600");
        command.process_group(0);
        let child = started(command);
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        kill_process_group(group, Signal::INT).unwrap();
        end(child).expect(130, &[]).said(&["SIGINT", "free again"]);
        assert_eq!(server.lookup(&key)["state"], "available");
    }
}

#[test]
fn nohup_keeps_the_command_running() {
    let server = Server::start();
    let directory = tempfile::tempdir().unwrap();
    let go = directory.path().join("go");
    let script = "echo started; while [ ! -e \"$GO\" ]; do sleep 0.05; done; echo done";
    let exec = server.exec_command("k", &[], script);
    let mut command = Command::new("nohup");
    command.arg(exec.get_program()).args(exec.get_args()).stdin(Stdio::null());
    command.envs(exec.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("GO", &go);
    command.process_group(0);
    let child = started(command);
    // As the end of a terminal does.
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process_group(group, Signal::HUP).unwrap();
    std::fs::write(&go, "").unwrap();
    end(child).expect(0, &["done"]);
    assert_eq!(server.lookup("k")["state"], "completed");
}

#[test]
fn an_interrupt_under_hold_leaves_doubt() {
    let server = Server::start();
    let child = start(&server, "k", &["--on-lapse", "hold"], "echo started; exec sleep 600");
    kill(&child, Signal::TERM);
    let ran = end(child).expect(143, &[]);
    let doubt = server.lookup("k");
    let resolve = format!("onced resolve --key k --token {}", doubt["fencing_token"]);
    ran.said(&["in doubt", &resolve, "--retry", "--error CODE"]);
    assert_eq!((&doubt["state"], &doubt["reason"]), (&"in_doubt".into(), &"interrupted by SIGTERM".into()));
}

#[test]
fn an_interrupted_waiter_leaves_the_winner_alone() {
    let server = Server::start();
    let script = "echo started; while [ ! -e \"$GO\" ]; do sleep 0.05; done; echo done";
    let directory = tempfile::tempdir().unwrap();
    let go = directory.path().join("go");
    let with_go = |flags: &[&str]| {
        let mut command = server.exec_command("k", flags, script);
        command.env("GO", &go).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let winner = with_go(&[]);
    server.until("k", "in_progress");
    let waiter = with_go(&[]);
    // Long enough for it to have set up its signals; if it has not, it just dies of the default.
    std::thread::sleep(std::time::Duration::from_millis(500));
    kill(&waiter, Signal::INT);
    assert_eq!(end(waiter).code, Some(130));
    std::fs::write(&go, "").unwrap();
    end(winner).expect(0, &["started\ndone\n"]);
}

#[test]
fn a_winner_that_is_killed_is_taken_over() {
    let server = Server::start();
    let script = "echo started; test $ONCED_ATTEMPT = 2 || exec sleep 600; echo taken over; exit 5";
    let winner = start(&server, "k", &["--ttl", "2s"], script);
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let mut command = server.exec_command("k", &["--ttl", "2s"], script);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    kill_with_child(winner);
    for waiter in waiters {
        end(waiter).expect(5, &["started\ntaken over\n"]);
    }
    assert_eq!(server.lookup("k")["attempt"], 2);
}

#[test]
fn a_winner_that_is_killed_under_hold_leaves_doubt() {
    let server = Server::start();
    let script = "echo started; exec sleep 600";
    let flags = ["--ttl", "2s", "--on-lapse", "hold"];
    let winner = start(&server, "k", &flags, script);
    kill_with_child(winner);
    server.until("k", "in_doubt");
    server.exec("k", &flags, script).expect(125, &[]).said(&["in doubt", "onced resolve --key k --token"]);
}

#[test]
fn a_command_whose_claim_was_lost_is_stopped() {
    let server = Server::start();
    let script = "trap 'echo told; exit 0' TERM; echo started; while :; do sleep 0.05; done";
    let winner = start(&server, "k", &["--ttl", "2s"], script);
    let token = server.run(&["list", "--json"]).json()["fencing_token"].to_string();
    server.run(&["delete", "--key", "k", "--token", &token, "--force"]).expect(0, &[]);
    end(winner).expect(125, &["told"]).said(&["stopping the command", "does not count"]);
}

#[test]
fn a_command_whose_lock_cannot_be_renewed_is_stopped() {
    let mut server = Server::start();
    let script = "trap 'echo told; exit 0' TERM; echo started; while :; do sleep 0.05; done";
    let winner = start(&server, "k", &["--ttl", "2s", "--timeout", "100ms"], script);
    server.process.kill();
    end(winner).expect(125, &["told"]).said(&["could not be renewed", "stopping the command"]);
}

#[test]
fn a_result_that_cannot_be_stored_is_told() {
    let mut server = Server::start();
    let script = "echo started; read line; echo done; exit 6";
    let mut command = server.exec_command("k", &["--ttl", "2s", "--timeout", "100ms"], script);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut winner = command.spawn().unwrap();
    server.until("k", "in_progress");
    server.process.kill();
    drop(winner.stdin.take());
    end(winner).expect(125, &["done"]).said(&["the command ran and exited with 6", "not known to be stored"]);
}

/// Kills a winner as a crash would, and then what it ran, which would else go on.
fn kill_with_child(mut winner: Child) {
    let children = format!("/proc/{0}/task/{0}/children", winner.id());
    let children = std::fs::read_to_string(children).unwrap();
    kill(&winner, Signal::KILL);
    winner.wait().unwrap();
    for child in children.split_whitespace() {
        let pid = Pid::from_raw(child.parse().unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}
