//! The server is killed under load, as by kill -9, again and again; sometimes while it recovers from the last
//! time. What it answered holds. `ONCED_TEST_ROUNDS` says how often it is killed under load.

use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use onced_client::v1::admin_service_client::AdminServiceClient;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use onced_client::v1::{self, begin_response, lookup_response};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, block_in_place};
use tokio_util::sync::CancellationToken;

use crate::support::onced::{KillOnDrop, ServerProcess, onced};
use crate::support::rounds::rounds;
use crate::support::server::{Connection, client, connect};

/// How often the server is killed under load.
const KILLS: usize = 300;
/// How many of these one store is for: what it holds is checked each time, and all of it in the end.
const KILLS_OF_A_STORE: usize = 15;
/// How many stores are tried at once.
const AT_ONCE: usize = 2;
/// On every so many stores, one of the kills comes while what was written is being moved from the log to the tree.
const STORES_TO_ONE_MOVE: usize = 3;
/// How many keys the callers are done with before a kill, and how many milliseconds pass after that, or after a move
/// has begun. A number of keys, for a slow machine is done with few in a given time.
const KEYS_DONE: Range<u32> = 0..20;
const LATER_MS: Range<u64> = 0..3;
const MOVING_MS: Range<u64> = 0..30;
/// By then the keys are done with, or a move has begun, on the slowest of machines.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How long after the kill a call is waited for. Once, a call whose connection was gone had not ended minutes later: the
/// HTTP/2 client had lost it. It was not answered, whatever became of it.
const LOST_AFTER: Duration = Duration::from_secs(10);
const CALLERS: usize = 8;
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
        let length = if fastrand::u8(0..20) == 0 { 100_000 } else { fastrand::usize(0..4_000) };
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
        let (answered, asked) = (self.answered, self.asked);
        assert!((answered..=asked).contains(&step), "{}: {step:?}, not {answered:?} to {asked:?}", self.key);
        (self.answered, self.asked) = (step, step);
    }
}

/// Works on one new key after another until the server is killed; adds a permit for each that it is done with.
async fn work_on(mut calls: Calls, killed: CancellationToken, keys_done: Arc<Semaphore>) -> Vec<Work> {
    let mut works = Vec::new();
    loop {
        let mut work = Work::new();
        let done = tokio::select! {
            done = work.go_on(&mut calls) => done,
            () = long_after(&killed) => Err(tonic::Status::cancelled("its server was killed long ago")),
        };
        works.push(work);
        if let Err(status) = done {
            assert!(killed.is_cancelled(), "{status:?}");
            return works;
        }
        keys_done.add_permits(1);
    }
}

async fn long_after(killed: &CancellationToken) {
    killed.cancelled().await;
    tokio::time::sleep(LOST_AFTER).await;
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

/// Kills a server as it starts. Whether it was on its way still: it may have been recovering.
fn kill_early(store: &str) -> bool {
    let mut command = onced();
    command.args(["serve", "--store", store, "--listen", "127.0.0.1:0"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = KillOnDrop(child.expect("the program starts"));
    let mut output = child.0.stdout.take().expect("it is piped");
    std::thread::sleep(Duration::from_millis(fastrand::u64(0..60)));
    drop(child);
    let mut said = String::new();
    output.read_to_string(&mut said).expect("what it said until it was killed");
    !said.contains("listening on")
}

/// What was seen of kills.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    kills: usize,
    /// How many of them had callers wait for the answer to a write.
    amid_writes: usize,
    /// How many of them came after a move from the log to the tree had begun.
    moving: usize,
    /// How often it was killed besides, as it started, before it served.
    early: usize,
    /// How many outcomes that were answered were read again, byte for byte.
    outcomes: usize,
    /// How many other writes that were answered were found to have been made.
    others: usize,
    /// How many of the writes under way had landed, and how many were lost.
    landed: usize,
    lost: usize,
}

impl Totals {
    fn plus(self, more: Self) -> Self {
        Self {
            kills: self.kills + more.kills,
            amid_writes: self.amid_writes + more.amid_writes,
            moving: self.moving + more.moving,
            early: self.early + more.early,
            outcomes: self.outcomes + more.outcomes,
            others: self.others + more.others,
            landed: self.landed + more.landed,
            lost: self.lost + more.lost,
        }
    }

    /// Reads what each work has left, and counts it.
    async fn audit(&mut self, works: &mut [Work], server: SocketAddr) {
        let (asked, answered): (Vec<_>, Vec<_>) = works.iter().map(|it| (it.asked, it.answered)).unzip();
        audit(works, server).await;
        for ((work, asked), answered) in works.iter().zip(asked).zip(answered) {
            self.outcomes += usize::from(answered == Step::Completed);
            self.others += usize::from(matches!(answered, Step::Claimed | Step::Deleted));
            self.landed += usize::from(asked > answered && work.answered == asked);
            self.lost += usize::from(asked > answered && work.answered == answered);
        }
    }
}

/// What the two halves of the log begin with: both change while a server runs only if it moves one to the tree.
fn halves(directory: &Path) -> [Vec<u8>; 2] {
    ["onced.log.0", "onced.log.1"].map(|name| {
        let (half, mut bytes) = (File::open(directory.join(name)).unwrap(), Vec::new());
        half.take(64).read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Whether a move to the tree has begun since the halves of the log were as `before`.
fn has_moved(directory: &Path, before: &[Vec<u8>; 2]) -> bool {
    before.iter().zip(&halves(directory)).all(|(before, after)| before != after)
}

async fn until_a_move_begins(directory: &Path, before: &[Vec<u8>; 2]) {
    let begins = async {
        while !has_moved(directory, before) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(WAIT_MAX, begins).await.expect("what is written is moved");
}

/// Kills a server of a new store under load some times: once, if so wished, as it moves what it holds.
async fn kill_some_times(kills: usize, at_a_move: bool) -> Totals {
    let directory = TempDir::new().unwrap();
    let store = format!("file:{}", directory.path().display());
    let mut server = block_in_place(|| ServerProcess::start(&store));
    let (mut old, mut newest_token) = (Vec::new(), 0);
    let mut totals = Totals { kills, ..Totals::default() };
    let at_a_move = at_a_move.then(|| fastrand::usize(0..kills));
    for kill in 0..kills {
        let before = halves(directory.path());
        let (killed, keys_done) = (CancellationToken::new(), Arc::new(Semaphore::new(0)));
        let mut callers = JoinSet::new();
        let calls = Calls::to(server.address()).await;
        for _ in 0..CALLERS {
            callers.spawn(work_on(calls.clone(), killed.clone(), Arc::clone(&keys_done)));
        }
        let at_a_move = at_a_move == Some(kill);
        let later_ms = if at_a_move {
            until_a_move_begins(directory.path(), &before).await;
            fastrand::u64(MOVING_MS)
        } else {
            let enough = keys_done.acquire_many(fastrand::u32(KEYS_DONE));
            drop(tokio::time::timeout(WAIT_MAX, enough).await.expect("keys are done with"));
            fastrand::u64(LATER_MS)
        };
        tokio::time::sleep(Duration::from_millis(later_ms)).await;
        killed.cancel();
        let early = fastrand::usize(0..3).saturating_sub(1);
        block_in_place(|| {
            server.kill();
            totals.moving += usize::from(has_moved(directory.path(), &before));
            totals.early += (0..early).filter(|_| kill_early(&store)).count();
            server.kill_and_restart();
        });
        let mut works: Vec<Work> = callers.join_all().await.into_iter().flatten().collect();
        totals.amid_writes += usize::from(works.iter().any(|work| work.asked > work.answered));
        // Tokens are revisions, and go up.
        let tokens = || works.iter().map(|work| work.fencing_token).filter(|token| *token != 0);
        assert!(tokens().all(|token| token > newest_token), "a fencing token came twice");
        newest_token = tokens().max().unwrap_or(newest_token);
        totals.audit(&mut works, server.address()).await;
        old.extend(works);
    }
    audit(&mut old, server.address()).await;
    totals
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_a_kill_at_any_moment() {
    let (kills, next) = (rounds(KILLS), Arc::new(AtomicUsize::new(0)));
    let mut tries = JoinSet::new();
    for _ in 0..AT_ONCE {
        let next = Arc::clone(&next);
        tries.spawn(async move {
            let mut seen = Totals::default();
            loop {
                let store = next.fetch_add(1, Ordering::SeqCst);
                match kills.saturating_sub(store * KILLS_OF_A_STORE).min(KILLS_OF_A_STORE) {
                    0 => return seen,
                    kills => {
                        let at_a_move = store.is_multiple_of(STORES_TO_ONE_MOVE);
                        seen = seen.plus(kill_some_times(kills, at_a_move).await);
                    }
                }
            }
        });
    }
    let seen = tries.join_all().await.into_iter().fold(Totals::default(), Totals::plus);
    println!(
        "kill -9: {} under load, {} of them amid writes, {} after a move to the tree had begun, and {} more before it served again; \
         {} acknowledged outcomes and {} other acknowledged writes audited, 0 lost; of the writes under way {} had \
         landed, {} had not",
        seen.kills,
        seen.amid_writes,
        seen.moving,
        seen.early,
        seen.outcomes,
        seen.others,
        seen.landed,
        seen.lost
    );
    assert!(seen.amid_writes * 10 >= seen.kills * 9 && seen.outcomes > seen.kills, "{seen:?}");
    assert!(seen.moving > 0 && seen.early > 0 && seen.landed > 0 && seen.lost > 0, "{seen:?}");
}
