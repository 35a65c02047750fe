//! Real input: three servers on one real etcd, and fifty `onced exec` at once for one key. The command they
//! all want to run appends a line to a file.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::support::etcd::EtcdProcess;
use crate::support::onced::{ServerProcess, onced};

const INVOCATIONS: usize = 50;
const ROUNDS: usize = 20;
/// What the command exits with: not 0, so that a lost exit code shows.
const EXIT_CODE: i32 = 7;

/// Three servers that act as one.
struct Cluster {
    servers: Vec<ServerProcess>,
    files: tempfile::TempDir,
    _etcd: EtcdProcess,
}

impl Cluster {
    fn start() -> Self {
        let etcd = EtcdProcess::start();
        let store = format!("etcd://{}/onced", etcd.endpoint());
        let servers = (0..3).map(|_| ServerProcess::start(&store)).collect();
        Self { servers, files: tempfile::tempdir().expect("a directory"), _etcd: etcd }
    }

    /// The addresses of all servers, another one first for each invocation.
    fn addresses(&self, invocation: usize) -> String {
        let count = self.servers.len();
        let nth = |at: usize| format!("http://{}", self.servers[(invocation + at) % count].address());
        (0..count).map(nth).collect::<Vec<_>>().join(",")
    }

    /// Starts all invocations at once. Each would run `script`, with `$1` the file to append to, under a lock of `ttl`.
    fn invoke(&self, key: &str, script: &str, ttl: &str) -> JoinSet<Output> {
        let file = self.file(key);
        let mut running = JoinSet::new();
        for invocation in 0..INVOCATIONS {
            let mut command = tokio::process::Command::from(onced());
            command
                .args(["exec", "--server", &self.addresses(invocation), "--key", key, "--ttl", ttl])
                .args(["--", "sh", "-c", script, "sh"])
                .arg(&file)
                .stdin(Stdio::null())
                .kill_on_drop(true);
            running.spawn(async move {
                let ending = tokio::time::timeout(Duration::from_secs(120), command.output());
                ending.await.expect("no invocation hangs").expect("the program runs")
            });
        }
        running
    }

    fn file(&self, key: &str) -> std::path::PathBuf {
        self.files.path().join(key)
    }
}

fn lines(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Appends a line, prints to both streams in turn, and exits with a code of its own.
const SCRIPT: &str = r#"echo "ran as attempt $ONCED_ATTEMPT" >> "$1"; echo "out $$"; echo "err $$" >&2; echo "more $$"; exit 7"#;

fn assert_same(outputs: &[Output], key: &str) {
    let first = &outputs[0];
    assert!(!first.stdout.is_empty() && !first.stderr.is_empty(), "{key}: {first:?}");
    for output in outputs {
        assert_eq!(output.status.code(), Some(EXIT_CODE), "{key}: {output:?}");
        assert_eq!(output.stdout, first.stdout, "{key}");
        assert_eq!(output.stderr, first.stderr, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_invocations_on_three_servers_run_the_command_once_in_every_round() {
    let cluster = Cluster::start();
    for round in 0..ROUNDS {
        let key = format!("round-{round}");
        let outputs = cluster.invoke(&key, SCRIPT, "2s").join_all().await;
        assert_eq!(lines(&cluster.file(&key)), ["ran as attempt 1"], "{key}");
        assert_eq!(outputs.len(), INVOCATIONS);
        assert_same(&outputs, &key);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_and_restarted_in_mid_round_changes_nothing() {
    let mut cluster = Cluster::start();
    let slow = format!("sleep 2; {SCRIPT}");
    for round in 0..3 {
        let key = format!("round-{round}");
        // Renewed while the command runs, and yet not lost when a busy machine stands still for a second.
        let running = cluster.invoke(&key, &slow, "5s");
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        tokio::task::block_in_place(|| cluster.servers[round].kill_and_restart());
        let outputs = running.join_all().await;
        assert_eq!(lines(&cluster.file(&key)), ["ran as attempt 1"], "{key}");
        assert_same(&outputs, &key);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_winner_is_killed_another_takes_over_and_all_print_what_that_one_printed() {
    let cluster = Cluster::start();
    let key = "killed";
    // The first attempt tells who runs it, and never ends by itself in time.
    let script = format!(
        r#"if [ "$ONCED_ATTEMPT" = 1 ]; then echo "ran as attempt 1" >> "$1"; echo $PPID > "$1.pid"; sleep 10; exit; fi; {SCRIPT}"#
    );
    let mut running = cluster.invoke(key, &script, "2s");
    let pid_file = cluster.file("killed.pid");
    let winner = loop {
        if let Some(pid) = lines(&pid_file).first() {
            break pid.clone();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let kill = std::process::Command::new("kill").args(["-9", &winner]).status().expect("kill runs");
    assert!(kill.success(), "the winner was still there");
    let mut outputs = Vec::new();
    let mut killed = 0;
    while let Some(output) = running.join_next().await {
        let output = output.expect("no panic");
        if output.status.code().is_none() {
            killed += 1;
        } else {
            outputs.push(output);
        }
    }
    assert_eq!(killed, 1, "the winner");
    assert_eq!(lines(&cluster.file(key)), ["ran as attempt 1", "ran as attempt 2"]);
    assert_same(&outputs, key);
}
