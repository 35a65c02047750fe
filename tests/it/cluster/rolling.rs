//! A rolling restart, under load by clients that try again: no call fails, and nothing is run twice.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onced::telemetry::metrics::LIMIT_USED;
use onced_client::{Client, Outcome};
use tokio::task::{JoinHandle, block_in_place};

use crate::support::etcd::EtcdProcess;
use crate::support::exposition;
use crate::support::http;
use crate::support::onced::ServerProcess;
use crate::support::open_call::OpenCall;
use crate::support::rounds::rounds;
use crate::support::server::HANGS;

const SERVERS: usize = 3;
/// How many keys are worked on at a time.
const GROUPS: usize = 12;
/// How many callers a key has, of which one gets it.
const CALLERS: usize = 3;
/// How long the work of a key takes: the others wait for as long.
const WORK: Duration = Duration::from_millis(200);
/// Nobody is away for as long, so that no claim lapses.
const LOCK_TTL: Duration = Duration::from_secs(120);

/// Callers that begin one key after the other.
struct Load {
    over: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    /// How often the work of each key was run.
    runs: Arc<Mutex<HashMap<String, usize>>>,
    groups: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts it, on servers with commas between.
    fn start(servers: &str) -> Self {
        let (over, done, runs) = (Arc::default(), Arc::default(), Arc::default());
        let mut load = Self { over, done, runs, groups: Vec::new() };
        for group in 0..GROUPS {
            let (over, done, runs) = (Arc::clone(&load.over), Arc::clone(&load.done), Arc::clone(&load.runs));
            let servers = servers.to_owned();
            load.groups.push(tokio::spawn(async move {
                let lasting: Vec<_> = (0..CALLERS).map(|_| Client::connect(&servers).unwrap()).collect();
                for number in 0.. {
                    if over.load(Ordering::SeqCst) {
                        break;
                    }
                    // Half of them come anew for each key, and so to any of the servers.
                    let clients = match group % 2 {
                        0 => lasting.clone(),
                        _ => (0..CALLERS).map(|_| Client::connect(&servers).unwrap()).collect(),
                    };
                    once_by_all(&clients, format!("{group}-{number}"), &runs).await;
                    done.fetch_add(CALLERS, Ordering::SeqCst);
                }
            }));
        }
        load
    }

    /// Ends it: how many calls there were, none of which failed, and how often each key was run.
    async fn end(self) -> (usize, HashMap<String, usize>) {
        self.over.store(true, Ordering::SeqCst);
        for group in self.groups {
            group.await.expect("no call fails");
        }
        (self.done.load(Ordering::SeqCst), std::mem::take(&mut self.runs.lock().unwrap()))
    }
}

/// Has all callers do a key at the same time. One runs it, and all must have its outcome.
async fn once_by_all(clients: &[Client], key: String, runs: &Arc<Mutex<HashMap<String, usize>>>) {
    let calls = clients.iter().map(|client| async {
        let run = client.once(&key).lock_ttl(LOCK_TTL).wait(HANGS).run(|_| async {
            *runs.lock().unwrap().entry(key.clone()).or_default() += 1;
            tokio::time::sleep(WORK).await;
            Ok(key.clone())
        });
        let done = run.await.unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(done.outcome, Outcome::response(key.clone()), "{key}");
        done.ran_here
    });
    let ran_here = futures_util::future::join_all(calls).await;
    assert_eq!(ran_here.iter().filter(|here| **here).count(), 1, "{key}: {ran_here:?}");
}

/// Restarts a server as an orchestrator does. Returns how many calls were sent elsewhere by it.
async fn restart(server: &mut ServerProcess) -> f64 {
    let waiting = |now: &exposition::Exposition| now.value(LIMIT_USED, &["limit=\"max_waiting_calls\""]);
    exposition::until(server.admin(), |now| waiting(now) > 0.0).await;
    // It keeps the server from ending before it has been looked at.
    let open = OpenCall::start(server.address()).await;
    server.terminate();
    let refused = |now: &exposition::Exposition| {
        now.value("rpc_server_call_duration_seconds_count", &["error_type=\"DRAINING\""])
    };
    let draining = exposition::until(server.admin(), |now| refused(now) > 0.0).await;
    let page = http::get(server.admin(), "/readyz").await;
    assert!(page.status == 503 && page.body.contains("draining"), "{page:?}");
    open.finish().await;
    let ended = tokio::time::timeout(HANGS, server.ended()).await.expect("the drain hangs");
    assert!(ended.success(), "{ended}");
    block_in_place(|| server.restart());
    http::until(server.admin(), "/readyz", |page| page.status == 200).await;
    refused(&draining)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rolling_restart_fails_no_call_and_runs_nothing_twice() {
    let etcd = block_in_place(EtcdProcess::start);
    let store = format!("etcd://{}/rolling", etcd.endpoint());
    let mut servers: Vec<_> = (0..SERVERS).map(|_| block_in_place(|| ServerProcess::start(&store))).collect();
    let addresses: Vec<_> = servers.iter().map(|server| server.address().to_string()).collect();
    let load = Load::start(&addresses.join(","));

    let (mut restarts, mut refused) = (0, 0.0);
    for _ in 0..rounds(1) {
        for server in &mut servers {
            let before = load.done.load(Ordering::SeqCst);
            refused += restart(server).await;
            restarts += 1;
            // Work went on meanwhile, and goes on.
            let goes_on = async {
                while load.done.load(Ordering::SeqCst) < before + GROUPS * CALLERS {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(HANGS, goes_on).await.expect("nothing is done any more");
        }
    }
    let (done, runs) = load.end().await;
    let twice: Vec<_> = runs.iter().filter(|(_, runs)| **runs != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(runs.len() * CALLERS, done);
    println!(
        "{restarts} restarts, {done} calls done, {refused} refused by a draining server and done elsewhere"
    );
}
