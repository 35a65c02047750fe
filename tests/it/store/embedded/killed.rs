//! The server is killed under load, as by kill -9, again and again; sometimes while it recovers from the last
//! time. What it answered holds. `ONCED_TEST_ROUNDS` says how often it is killed.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use onced_client::v1::admin_service_client::AdminServiceClient;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use onced_client::v1::{self, begin_response, lookup_response};
use tempfile::TempDir;
use tokio::task::{JoinSet, block_in_place};

use crate::support::onced::{KillOnDrop, ServerProcess, onced};
use crate::support::server::{Connection, client, connect};

const ROUNDS: usize = 4;
const CALLERS: usize = 16;
const NAMESPACE: &str = "orders";
/// What the server holds it keeps past the end of the test.
const LOCK_TTL: Duration = Duration::from_secs(3_600);

/// A caller's connection.
#[derive(Clone)]
struct Calls {
    keys: IdempotencyServiceClient<Connection>,
    admin: AdminServiceClient<Connection>,
}

impl Calls {
    async fn to(server: SocketAddr) -> Self {
        let origin = format!("http://{server}").parse().unwrap();
        let admin = AdminServiceClient::with_origin(connect(server).await, origin);
        Self { keys: client(server).await, admin }
    }
}

/// How far a key has come; each step is a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Nothing,
    Claimed,
    Completed,
    Deleted,
}

/// A key, and what is known of it.
#[derive(Debug)]
struct Work {
    key: String,
    response: Bytes,
    fencing_token: u64,
    /// The last step that was answered.
    answered: Step,
    /// The last step that was asked for.
    asked: Step,
}

impl Work {
    fn new() -> Self {
        let length = if fastrand::u8(0..10) == 0 { 100_000 } else { fastrand::usize(0..4_000) };
        Self {
            key: uuid::Uuid::new_v4().to_string(),
            response: vec![fastrand::u8(..); length].into(),
            fencing_token: 0,
            answered: Step::Nothing,
            asked: Step::Nothing,
        }
    }

    /// Claims, completes and deletes the key, or stops on the way.
    async fn go_on(&mut self, calls: &mut Calls) -> Result<(), tonic::Status> {
        let (namespace, key) = (NAMESPACE.to_owned(), self.key.clone());
        let last = fastrand::choice([Step::Claimed, Step::Completed, Step::Deleted]).unwrap();

        self.asked = Step::Claimed;
        let request = v1::BeginRequest {
            namespace: namespace.clone(),
            key: key.clone(),
            request_id: uuid::Uuid::new_v4().to_string(),
            lock_ttl: Some(LOCK_TTL.try_into().unwrap()),
            ..v1::BeginRequest::default()
        };
        match calls.keys.begin(request).await?.into_inner().result {
            Some(begin_response::Result::Claim(claim)) => self.fencing_token = claim.fencing_token,
            other => panic!("a new key is {other:?}"),
        }
        self.answered = Step::Claimed;
        if last == self.answered {
            return Ok(());
        }
        self.asked = Step::Completed;
        let result = Some(v1::outcome::Result::Response(self.response.clone()));
        let request = v1::CompleteRequest {
            namespace: namespace.clone(),
            key: key.clone(),
            fencing_token: self.fencing_token,
            outcome: Some(v1::Outcome { result, ..v1::Outcome::default() }),
            retention: None,
        };
        calls.keys.complete(request).await?;
        self.answered = Step::Completed;
        if last == self.answered {
            return Ok(());
        }
        self.asked = Step::Deleted;
        let fencing_token = self.fencing_token;
        calls.admin.delete(v1::DeleteRequest { namespace, key, fencing_token, force: false }).await?;
        self.answered = Step::Deleted;
        Ok(())
    }

    /// What was answered is there, and at most what was asked for besides. From now on it stays so.
    async fn audit(&mut self, mut calls: Calls) {
        let request =
            v1::LookupRequest { namespace: NAMESPACE.to_owned(), key: self.key.clone(), wait: None };
        let found = match calls.keys.lookup(request).await {
            Ok(found) => found.into_inner().record,
            Err(status) => {
                assert_eq!(status.code(), tonic::Code::NotFound, "{status:?}");
                None
            }
        };
        let step = match found {
            None if self.asked == Step::Deleted => Step::Deleted,
            None => Step::Nothing,
            Some(lookup_response::Record::InProgress(_)) => Step::Claimed,
            Some(lookup_response::Record::Completed(completed)) => {
                assert_eq!(completed.fencing_token, self.fencing_token, "{}", self.key);
                let result = completed.outcome.and_then(|outcome| outcome.result);
                let expected = v1::outcome::Result::Response(self.response.clone());
                assert!(result == Some(expected), "{} holds another outcome", self.key);
                Step::Completed
            }
            Some(other) => panic!("{}: {other:?}", self.key),
        };
        assert!((self.answered..=self.asked).contains(&step), "{step:?} was found of {self:?}");
        (self.answered, self.asked) = (step, step);
    }
}

/// Works on one new key after another until the server is killed.
async fn work_on(mut calls: Calls, killed: Arc<AtomicBool>) -> Vec<Work> {
    let mut works = Vec::new();
    loop {
        let mut work = Work::new();
        let done = work.go_on(&mut calls).await;
        works.push(work);
        if let Err(status) = done {
            assert!(killed.load(Ordering::SeqCst), "{status:?}");
            return works;
        }
    }
}

async fn audit(works: &mut [Work], server: SocketAddr) {
    let calls = Calls::to(server).await;
    futures_util::stream::iter(works)
        .for_each_concurrent(CALLERS, |work| {
            let calls = calls.clone();
            async move { work.audit(calls).await }
        })
        .await;
}

/// Kills a server as it starts, which may be while it recovers.
fn kill_early(store: &str) {
    let mut command = onced();
    command.args(["serve", "--store", store, "--listen", "127.0.0.1:0"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = KillOnDrop(child.expect("the program starts"));
    std::thread::sleep(Duration::from_millis(fastrand::u64(0..60)));
    drop(child);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_a_kill_at_any_moment() {
    let rounds =
        std::env::var("ONCED_TEST_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("a number"));
    let directory = TempDir::new().unwrap();
    let store = format!("file:{}", directory.path().display());
    let mut server = block_in_place(|| ServerProcess::start(&store));
    let (mut old, mut newest_token) = (Vec::new(), 0);
    for _ in 0..rounds {
        let killed = Arc::new(AtomicBool::new(false));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            callers.spawn(work_on(Calls::to(server.address()).await, Arc::clone(&killed)));
        }
        // Mostly long enough that something is being moved from the log to the tree.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(100..1_300))).await;
        killed.store(true, Ordering::SeqCst);
        block_in_place(|| {
            server.kill();
            (0..fastrand::usize(0..3)).for_each(|_| kill_early(&store));
            server.kill_and_restart();
        });
        let mut works: Vec<Work> = callers.join_all().await.into_iter().flatten().collect();
        // Tokens are revisions, and go up.
        let tokens = || works.iter().map(|work| work.fencing_token).filter(|token| *token != 0);
        assert!(tokens().all(|token| token > newest_token), "a fencing token came twice");
        newest_token = tokens().max().unwrap_or(newest_token);
        audit(&mut works, server.address()).await;
        old.extend(works);
    }
    audit(&mut old, server.address()).await;
    for step in [Step::Completed, Step::Deleted] {
        assert!(old.iter().any(|work| work.answered == step), "nothing was {step:?}");
    }
}
