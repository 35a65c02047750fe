//! Tokens and rules as operators meet them: the program, its files, and what it says of mistakes.

use std::fs;
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::support::onced::{ServerProcess, onced};

/// Runs `onced` to its end: the exit code, and what it said on each of its outputs.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = onced();
    let Output { status, stdout, stderr } =
        command.args(args).env_remove("RUST_LOG").stdin(Stdio::null()).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A new token, and its line.
fn token(name: &str) -> (String, String) {
    let (code, stdout, stderr) = run(&["token", "new", name]);
    assert!(code == Some(0) && stderr.contains("once"), "{stderr}");
    let (token, line) = stdout.trim_end().split_once('\n').unwrap();
    (token.to_owned(), line.to_owned())
}

#[test]
fn a_token_that_can_have_no_such_name_is_not_made() {
    let (code, stdout, stderr) = run(&["token", "new", "a b"]);
    assert!(code == Some(2) && stdout.is_empty() && stderr.contains("\"a b\""), "{stderr}");
}

/// A server process with tokens and rules, and whose log can be read.
struct Process {
    directory: tempfile::TempDir,
    server: ServerProcess,
}

impl Process {
    fn start(tokens: &str, rules: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("tokens"), tokens).unwrap();
        fs::write(path("onced.toml"), format!("access.tokens = {:?}\n{rules}", path("tokens"))).unwrap();
        let mut command = onced();
        command.env("ONCED_CONFIG", path("onced.toml")).env_remove("RUST_LOG");
        command.stderr(fs::File::create(path("log")).unwrap());
        Self { server: ServerProcess::start_as(command, "memory:"), directory }
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn tokens(&self) -> String {
        self.directory.path().join("tokens").to_str().unwrap().to_owned()
    }

    /// Begins a key with a token, if there is one: how the command ended, and what it said.
    fn begin(&self, token: Option<&str>) -> (Option<i32>, String) {
        let address = self.server.address().to_string();
        let key = uuid::Uuid::new_v4().to_string();
        let mut args = vec!["begin", "--server", &address, "--namespace", "orders", "--key", &key];
        let file = token.map(|token| self.write("mine", token));
        args.extend(file.iter().flat_map(|file| ["--token-file", file]));
        let (code, _, stderr) = run(&args);
        (code, stderr)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Does something, and waits until the log says something new.
    fn until_logged(&self, text: &str, act: impl FnOnce()) {
        let before = self.log().len();
        act();
        for _ in 0..HANGS.as_millis() / 20 {
            if self.log()[before..].contains(text) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("no {text:?} in {}", self.log());
    }

    fn hang_up(&self) {
        let pid = Pid::from_raw(i32::try_from(self.server.child().id()).unwrap()).unwrap();
        kill_process(pid, Signal::HUP).unwrap();
    }
}

const RULES: &str = "[access.rules.workers]\nidentities = [\"token:worker\"]\nnamespaces = [\"orders\"]\n\
                     actions = [\"begin\"]\n";

#[test]
fn commands_show_their_token_and_are_told_what_they_may_not_do() {
    let ((worker, worker_line), (other, other_line)) = (token("worker"), token("other"));
    let process = Process::start(&format!("{worker_line}\n{other_line}\n"), RULES);
    assert_eq!(process.begin(Some(&worker)).0, Some(0));
    let (code, said) = process.begin(None);
    assert!(code == Some(12) && said.contains("CREDENTIALS_MISSING"), "{said}");
    let (code, said) = process.begin(Some(&other));
    let texts = ["ACCESS_DENIED", "token:other", "begin", "orders"];
    assert!(code == Some(12) && texts.iter().all(|text| said.contains(text)), "{said}");
    let (code, said) = process.begin(Some("onced_nobodys"));
    assert!(code == Some(12) && said.contains("CREDENTIALS_INVALID"), "{said}");
    assert!(!format!("{}{said}", process.log()).contains(&worker), "a token is shown");
}

#[test]
fn rules_take_access_back_while_a_file_hangs() {
    let (worker, line) = token("worker");
    let process = Process::start(&line, RULES);
    let tokens = process.tokens();
    fs::remove_file(&tokens).unwrap();
    process.until_logged("a file hangs when it is read", || {
        assert!(std::process::Command::new("mkfifo").arg(&tokens).status().unwrap().success());
    });
    assert!(process.log().contains(&tokens), "{}", process.log());
    assert_eq!(process.begin(Some(&worker)).0, Some(0));
    let nobody = RULES.replace("token:worker", "token:nobody");
    process.write("onced.toml", &format!("access.tokens = {tokens:?}\n{nobody}"));
    process.until_logged("the settings were reloaded", || process.hang_up());
    assert_eq!(process.begin(Some(&worker)).0, Some(12));
}

/// Tokens by themselves, as whoever writes them need not know of the server; rules at SIGHUP.
#[test]
fn tokens_and_rules_are_reloaded_and_what_is_wrong_with_them_changes_nothing() {
    let ((old, old_line), (new, new_line)) = (token("worker"), token("worker"));
    let process = Process::start(&old_line, RULES);
    assert_eq!((process.begin(Some(&old)).0, process.begin(Some(&new)).0), (Some(0), Some(12)));
    let tokens = process.tokens();
    process.until_logged("tokens are taken as their files have them now", || {
        fs::write(&tokens, format!("{old_line}\n{new_line}\n")).unwrap();
    });
    assert_eq!((process.begin(Some(&old)).0, process.begin(Some(&new)).0), (Some(0), Some(0)));
    process.until_logged("stays as it was", || fs::write(&tokens, "nonsense").unwrap());
    assert_eq!(process.begin(Some(&new)).0, Some(0));
    process.until_logged("the settings were reloaded", || process.hang_up());
    process.until_logged("holds no token any more", || fs::write(&tokens, "# soon\n").unwrap());
    assert_eq!(process.begin(Some(&new)).0, Some(0));
    // As the log advises whoever means it.
    let nobody = RULES.replace("token:worker", "token:nobody");
    process.write("onced.toml", &format!("access.tokens = {tokens:?}\n{nobody}"));
    process.until_logged("the settings were reloaded", || process.hang_up());
    assert_eq!(process.begin(Some(&new)).0, Some(12));
    process.write("onced.toml", &format!("access.tokens = {tokens:?}\n{RULES}"));
    process.until_logged("the settings were reloaded", || process.hang_up());
    assert_eq!(process.begin(Some(&new)).0, Some(0));
    process.until_logged("tokens are taken", || fs::write(&tokens, &new_line).unwrap());
    assert_eq!((process.begin(Some(&old)).0, process.begin(Some(&new)).0), (Some(12), Some(0)));

    let rules = RULES.replace("orders", "invoices");
    process.write("onced.toml", &format!("access.tokens = {tokens:?}\n{rules}"));
    process.until_logged("the settings were reloaded", || process.hang_up());
    assert!(process.log().contains("access.rules.workers.namespaces"), "{}", process.log());
    assert_eq!(process.begin(Some(&new)).0, Some(12));
    process.write("onced.toml", &format!("access.tokens = {tokens:?}\n{}", RULES.replace("begin", "beginn")));
    process.until_logged("not reloaded, and stay as they were", || process.hang_up());
    assert_eq!(process.begin(Some(&new)).0, Some(12));

    // Without any rule all would be allowed.
    process.write("onced.toml", &format!("access.tokens = {tokens:?}\nlog = \"info\"\n"));
    process.until_logged("the settings were reloaded", || process.hang_up());
    let log = process.log();
    let kept = log.lines().rfind(|line| line.contains("access.rules.workers.namespaces")).unwrap();
    assert!(kept.contains("needs a restart"), "{log}");
    assert_eq!(process.begin(Some(&new)).0, Some(12));
}

fn checked(text: &str, args: &[&str]) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens");
    fs::write(&tokens, token("worker").1).unwrap();
    let file = directory.path().join("onced.toml");
    fs::write(&file, text.replace("TOKENS", &format!("{tokens:?}"))).unwrap();
    let (code, _, stderr) = run(&[&["check-config", "--config", file.to_str().unwrap()], args].concat());
    (code, stderr)
}

#[test]
fn tokens_over_a_network_without_tls_are_refused_at_the_start_unless_that_is_said() {
    let tokens = "access.tokens = TOKENS\n";
    let away = ["--listen", "0.0.0.0:1"];
    let (code, said) = checked(tokens, &away);
    assert!(code == Some(2) && said.contains("for all to read") && said.contains("access.tokens"), "{said}");
    let allowed = format!("{tokens}access.allow_tokens_in_plaintext = true\n{RULES}");
    let (code, said) = checked(&allowed, &away);
    assert!(code == Some(0) && said.contains("for all to read"), "{said}");
    assert_eq!(checked(&format!("{tokens}{RULES}"), &["--listen", "[::1]:1"]), (Some(0), String::new()));
}

#[test]
fn a_server_that_lets_everybody_do_anything_says_so() {
    let (code, said) = checked("", &["--listen", "0.0.0.0:1"]);
    assert!(code == Some(0) && said.contains("whoever reaches 0.0.0.0:1 may do anything"), "{said}");
    assert_eq!(checked("", &[]), (Some(0), String::new()));
    let (code, said) = checked("access.tokens = TOKENS\n", &[]);
    assert!(code == Some(0) && said.contains("there are no access.rules"), "{said}");
    let (code, said) = checked(&format!("access.tokens = \"/dev/null\"\n{RULES}"), &[]);
    assert!(code == Some(0) && said.contains("/dev/null holds no token"), "{said}");
}

#[test]
fn what_is_wrong_with_rules_is_told_with_its_line() {
    for (text, told) in [
        (RULES, ":2: access.rules.workers.identities: nobody could show who they are"),
        (
            "access.tokens = TOKENS\n[access.rules.x]\nidentities = [\"token:a\"]\n",
            "access.rules.x.actions: is missing",
        ),
        (
            "[access.rules.x]\nidentities = [\"worker\"]\n",
            ":2: access.rules.x.identities: expected an identity",
        ),
        ("[access.rules.x]\nidentities = [\"Token:*\"]\n", "token:…"),
        ("[access.rules.x]\nnamespaces = [\"Orders\"]\n", "[a-z0-9][a-z0-9._-]"),
        ("[access.rules.x]\nnamespaces = [\"-*\"]\n", ":2: access.rules.x.namespaces: expected a namespace"),
        (
            "access.tokens = TOKENS\n[access.rules.x]\nidentities = []\nnamespaces = [\"a*b\"]\nactions = [\"write\"]\n",
            ":5: access.rules.x.actions: expected \"begin\"",
        ),
        ("[access.rules]\nx = 1\n", ":2: access.rules.x: expected a table"),
        ("[access.rules.x]\nnamespace = [\"a\"]\n", "did you mean namespaces?"),
        ("[access.rules.x]\n", "access.rules.x.identities: is missing"),
        ("access.jwks = TOKENS\n", "set access.jwt_issuer"),
        ("access.jwt_audience = \"x\"\n", "set access.jwks"),
        ("access.open_reflection = 1\n", "expected true or false, found 1"),
    ] {
        let (code, said) = checked(text, &[]);
        assert!(code == Some(2) && said.contains(told), "{told}: {said}");
    }
}

#[test]
fn rules_are_printed_as_they_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let (tokens, file) = (directory.path().join("tokens"), directory.path().join("onced.toml"));
    fs::write(&tokens, "").unwrap();
    let text = format!("access.tokens = {tokens:?}\n{}", RULES.replace("workers", "\"a.b\""));
    fs::write(&file, text).unwrap();
    let print = ["serve", "--print-config", "--config", file.to_str().unwrap()];
    let (code, printed, _) = run(&print);
    assert_eq!(code, Some(0));
    for line in ["[access.rules.\"a.b\"]", "identities = [\"token:worker\"]", "actions = [\"begin\"]"] {
        assert!(printed.lines().any(|printed| printed.starts_with(line)), "no {line} in {printed}");
    }
    fs::write(&file, &printed).unwrap();
    let (code, again, said) = run(&print);
    assert!(code == Some(0) && again.contains("identities = [\"token:worker\"]"), "{said}");
}
