//! The sessions that calls take by themselves, against a server that does what the test says.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::Message as _;
use tokio::task::{JoinHandle, JoinSet};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::fake::{Fake, HANGS, Opened, UNARY, claim};
use crate::client::Client;
use crate::clock::{Clock, Moment};
use crate::error::Error;
use crate::transport::{self, Failed, Patience};
use crate::v1::begin_response::Result as Begun;
use crate::v1::session_request::Call as Sent;
use crate::v1::session_response::Answer;
use crate::v1::{BeginRequest, CancelCall, ErrorReason, RenewResponse};
use crate::wire;

/// The token of claims that were given in a session.
const IN_SESSION: u64 = 2;

/// A client, and how far its clock was moved.
struct Caller {
    client: Client,
    moved: Arc<AtomicU64>,
    crowd: JoinSet<()>,
}

impl Caller {
    fn of(fake: &Fake) -> Self {
        Self::with(fake, true)
    }

    fn with(fake: &Fake, sessions: bool) -> Self {
        let moved = Arc::new(AtomicU64::new(0));
        let (read, system) = (Arc::clone(&moved), Clock::system());
        let now = move || system.now() + Duration::from_secs(read.load(Ordering::SeqCst));
        let builder = Client::builder(fake.address.to_string()).clock(Clock::from_fn(now));
        Self { client: builder.sessions(sessions).build().unwrap(), moved, crowd: JoinSet::new() }
    }

    /// Lets so many calls be under way, and returns when they are.
    async fn crowd(&mut self, fake: &Fake, calls: usize) {
        let before = fake.waiting.load(Ordering::SeqCst);
        for _ in 0..calls {
            let client = self.client.clone();
            self.crowd.spawn(async move {
                let _ = client.begin_once(&begin("waits"), client.patience(HANGS)).await;
            });
        }
        let there = async {
            while fake.waiting.load(Ordering::SeqCst) < before + calls {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(HANGS, there).await.expect("all are under way");
    }

    /// The session that it then opens, once it takes calls.
    async fn session(&mut self, fake: &mut Fake) -> Opened {
        self.crowd(fake, 16).await;
        self.reopened(fake).await
    }

    /// The session that it opens where many calls are under way already.
    async fn reopened(&self, fake: &mut Fake) -> Opened {
        // The client may hear of it later than its server, and goes on with unary calls until then.
        let begins = async { while token(self.begin("k")).await == UNARY {} };
        let opened = async {
            let mut opened = fake.session().await;
            let id = opened.next_begin().await;
            opened.answer(id, Some(Answer::Begin(claim(IN_SESSION))));
            opened
        };
        tokio::join!(opened, begins).0
    }

    fn begin(&self, key: &str) -> Call {
        self.begin_within(begin(key), self.client.patience(Duration::ZERO))
    }

    fn begin_within(&self, request: BeginRequest, patience: Patience) -> Call {
        let client = self.client.clone();
        tokio::spawn(async move { client.begin_once(&request, patience).await })
    }

    fn now(&self) -> Moment {
        self.client.transport().clock().now()
    }
}

type Call = JoinHandle<Result<transport::Answer<Begun>, Failed>>;

fn begin(key: &str) -> BeginRequest {
    BeginRequest { key: key.to_owned(), ..BeginRequest::default() }
}

async fn ended(call: Call) -> Result<transport::Answer<Begun>, Failed> {
    tokio::time::timeout(HANGS, call).await.expect("it ends").unwrap()
}

/// The token of the claim that a call was given.
async fn token(call: Call) -> u64 {
    match ended(call).await.unwrap().message {
        Begun::Claim(claim) => claim.fencing_token,
        other => panic!("no claim: {other:?}"),
    }
}

fn refusal(code: Code, reason: &str, details: ErrorDetails) -> Status {
    let mut details = details;
    details.set_error_info(reason, "onced.dev", HashMap::new());
    Status::with_error_details(code, "no", details)
}

fn error(status: &Status) -> Option<Answer> {
    Some(Answer::Error(tonic_types::pb::Status::decode(status.details()).unwrap()))
}

#[tokio::test]
async fn calls_are_unary_until_there_are_many_and_then_share_a_session() {
    let mut fake = Fake::start();
    let mut caller = Caller::of(&fake);
    caller.crowd(&fake, 14).await;
    assert_eq!(token(caller.begin("k")).await, UNARY);
    assert!(fake.opens_none().await, "15 are not many");
    caller.crowd(&fake, 2).await;
    let mut opened = caller.reopened(&mut fake).await;
    let call = caller.begin("k");
    let sent = opened.next().await.unwrap();
    // What one attempt may take.
    assert_eq!(sent.timeout, Some(wire(Duration::from_secs(10))));
    opened.answer(sent.id, Some(Answer::Begin(claim(IN_SESSION))));
    assert_eq!(token(call).await, IN_SESSION);
    assert_eq!(fake.waiting.load(Ordering::SeqCst), 16, "those that were sent before stay where they are");
    assert!(fake.opens_none().await);
}

#[tokio::test]
async fn who_wants_no_sessions_has_none() {
    let mut fake = Fake::start();
    let mut caller = Caller::with(&fake, false);
    caller.crowd(&fake, 20).await;
    assert!(fake.opens_none().await);
    assert_eq!(token(caller.begin("k")).await, UNARY);
}

#[tokio::test]
async fn calls_of_a_session_that_ended_are_made_again_as_unary_ones() {
    let mut fake = Fake::start();
    let mut caller = Caller::of(&fake);
    let refused = refusal(Code::PermissionDenied, "ACCESS_DENIED", ErrorDetails::new());
    for end in [None, Some(Status::internal("a gateway broke")), Some(refused)] {
        let mut opened = match caller.crowd.is_empty() {
            true => caller.session(&mut fake).await,
            // There are many still.
            false => caller.reopened(&mut fake).await,
        };
        let calls = [caller.begin("a"), caller.begin("b")];
        for _ in &calls {
            opened.next_begin().await;
        }
        let before = caller.now();
        if let Some(status) = end {
            opened.fail(status);
        }
        drop(opened);
        for call in calls {
            let answer = ended(call).await.unwrap();
            assert!(matches!(&answer.message, Begun::Claim(claim) if claim.fencing_token == UNARY));
            assert!(answer.sent >= before, "the lock counts from the call that was answered");
        }
    }
}

#[tokio::test]
async fn a_session_that_says_it_ends_takes_no_more_calls_and_ends_with_its_last_one() {
    for (code, reason) in [
        (Code::Unavailable, "DRAINING"),
        (Code::Unauthenticated, "CREDENTIALS_EXPIRED"),
        (Code::Unauthenticated, "CREDENTIALS_NEVER_HEARD_OF"),
    ] {
        let mut fake = Fake::start();
        let mut caller = Caller::of(&fake);
        let mut opened = caller.session(&mut fake).await;
        let slow = caller.begin("slow");
        let slow_id = opened.next_begin().await;
        let told = caller.begin("k");
        let id = opened.next_begin().await;
        opened.answer(id, error(&refusal(code, reason, ErrorDetails::new())));
        assert_eq!(token(told).await, UNARY, "{reason}");
        // The first of these opens a session of its own.
        for _ in 0..3 {
            drop(caller.begin("k"));
        }
        assert!(opened.is_quiet().await, "{reason}");
        opened.answer(slow_id, Some(Answer::Begin(claim(IN_SESSION))));
        assert_eq!(token(slow).await, IN_SESSION, "{reason}");
        assert_eq!(opened.next().await, None, "{reason}");
    }
}

#[tokio::test]
async fn an_error_in_a_session_is_that_of_a_unary_call() {
    let mut fake = Fake::start();
    let mut caller = Caller::of(&fake);
    let mut opened = caller.session(&mut fake).await;
    let call = caller.begin("k");
    let busy = ErrorDetails::with_retry_info(Some(Duration::from_millis(300)));
    let id = opened.next_begin().await;
    opened.answer(id, error(&refusal(Code::Unavailable, "OVERLOADED", busy)));
    let before = caller.now();
    let again = opened.next_begin().await;
    assert!(caller.now().since(before) >= Duration::from_millis(300));
    let mismatch = refusal(Code::FailedPrecondition, "FINGERPRINT_MISMATCH", ErrorDetails::new());
    opened.answer(again, error(&mismatch));
    let failed = ended(call).await.err().unwrap();
    assert_eq!(failed.error.reason(), Some(ErrorReason::FingerprintMismatch));
    assert_eq!(failed.error.code(), Some(Code::FailedPrecondition));
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_an_error_and_one_that_nobody_waits_for_is_none() {
    let mut fake = Fake::start();
    let mut caller = Caller::of(&fake);
    let mut opened = caller.session(&mut fake).await;
    for unreadable in [None, Some(Answer::Renew(RenewResponse::default()))] {
        let call = caller.begin("k");
        let id = opened.next_begin().await;
        opened.answer(id + 1_000, Some(Answer::Begin(claim(IN_SESSION))));
        opened.answer(id, unreadable);
        let failed = ended(call).await.err().unwrap();
        assert!(matches!(failed.error, Error::Refused(_)), "{failed:?}");
        assert!(failed.unsettled && !failed.outage, "{failed:?}");
    }
}

#[tokio::test]
async fn who_gives_up_takes_the_call_back() {
    let mut fake = Fake::start();
    let mut caller = Caller::of(&fake);
    let mut opened = caller.session(&mut fake).await;
    let call = caller.begin("k");
    let id = opened.next_begin().await;
    call.abort();
    let cancel = opened.next().await.unwrap();
    assert_eq!((cancel.id, cancel.call), (id, Some(Sent::Cancel(CancelCall {}))));
    // Too late.
    opened.answer(id, Some(Answer::Begin(claim(IN_SESSION))));
    let call = caller.begin("k");
    let other = opened.next_begin().await;
    assert_ne!(other, id);
    opened.answer(other, Some(Answer::Begin(claim(IN_SESSION + 1))));
    assert_eq!(token(call).await, IN_SESSION + 1);
}

#[tokio::test]
async fn a_server_that_is_silent_costs_a_call_its_time_and_the_call_is_taken_back() {
    let mut fake = Fake::start();
    let mut caller = Caller::of(&fake);
    let mut opened = caller.session(&mut fake).await;
    let time = Duration::from_millis(100);
    let call = caller.begin_within(begin("k"), Patience { total: time, attempt: time });
    let sent = opened.next().await.unwrap();
    assert!(sent.timeout.is_some_and(|timeout| Duration::try_from(timeout).unwrap() <= time));
    assert!(matches!(opened.next().await.unwrap().call, Some(Sent::Cancel(_))));
    let failed = ended(call).await.err().unwrap();
    assert!(failed.error.is_unavailable() && failed.outage && failed.unsettled, "{failed:?}");
    // Not even that the time is over was told: the session is of no use.
    assert_eq!(token(caller.begin("k")).await, UNARY);
    assert_eq!(opened.next().await, None);
}

#[tokio::test]
async fn a_session_that_answers_others_outlives_a_call_that_it_does_not_answer() {
    let mut fake = Fake::start();
    let mut caller = Caller::of(&fake);
    let mut opened = caller.session(&mut fake).await;
    let time = Duration::from_millis(300);
    let late = caller.begin_within(begin("late"), Patience { total: time, attempt: time });
    opened.next_begin().await;
    let other = caller.begin("k");
    let id = opened.next_begin().await;
    opened.answer(id, Some(Answer::Begin(claim(IN_SESSION))));
    assert_eq!(token(other).await, IN_SESSION);
    assert!(ended(late).await.is_err());
    assert!(matches!(opened.next().await.unwrap().call, Some(Sent::Cancel(_))));
    let next = caller.begin("k");
    let id = opened.next_begin().await;
    opened.answer(id, Some(Answer::Begin(claim(IN_SESSION))));
    assert_eq!(token(next).await, IN_SESSION);
}

#[tokio::test]
async fn an_answer_that_the_time_is_over_is_silence() {
    let mut fake = Fake::start();
    let mut caller = Caller::of(&fake);
    let mut opened = caller.session(&mut fake).await;
    let time = Duration::from_secs(1);
    let call = caller.begin_within(begin("k"), Patience { total: time, attempt: time });
    let id = opened.next_begin().await;
    let late = refusal(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", ErrorDetails::new());
    opened.answer(id, error(&late));
    let failed = ended(call).await.err().unwrap();
    assert!(failed.error.is_unavailable() && failed.outage && failed.unsettled, "{failed:?}");
}

#[tokio::test]
async fn a_call_that_finds_the_session_full_at_the_server_is_unary_and_the_session_goes_on() {
    let mut fake = Fake::start();
    let mut caller = Caller::of(&fake);
    let mut opened = caller.session(&mut fake).await;
    let call = caller.begin("k");
    let id = opened.next_begin().await;
    let mut full = ErrorDetails::new();
    let limit = HashMap::from([("limit".to_owned(), "max_session_calls".to_owned())]);
    full.set_error_info("OVERLOADED", "onced.dev", limit);
    opened.answer(id, error(&Status::with_error_details(Code::Unavailable, "no", full)));
    assert_eq!(token(call).await, UNARY);
    let next = caller.begin("k");
    let id = opened.next_begin().await;
    opened.answer(id, Some(Answer::Begin(claim(IN_SESSION))));
    assert_eq!(token(next).await, IN_SESSION);
}

#[tokio::test]
async fn what_a_session_does_not_take_is_a_unary_call() {
    let mut fake = Fake::start();
    let mut caller = Caller::of(&fake);
    let mut opened = caller.session(&mut fake).await;
    let large = BeginRequest { owner: "x".repeat(64 << 10), ..begin("k") };
    let patience = caller.client.patience(Duration::ZERO);
    assert_eq!(token(caller.begin_within(large, patience)).await, UNARY);
    let calls: Vec<_> = (0..512).map(|_| caller.begin("k")).collect();
    let mut ids = HashSet::new();
    for _ in &calls {
        ids.insert(opened.next_begin().await);
    }
    assert_eq!(ids.len(), 512);
    assert_eq!(token(caller.begin("k")).await, UNARY);
    // There is room again.
    let id = ids.iter().next().copied().unwrap();
    opened.answer(id, Some(Answer::Begin(claim(IN_SESSION))));
    while !calls.iter().any(JoinHandle::is_finished) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(caller.begin("k"));
    assert!(ids.insert(opened.next_begin().await));
}

#[tokio::test]
async fn a_server_that_is_killed_leaves_it_open_what_became_of_a_begin() {
    let mut fake = Fake::start();
    let mut caller = Caller::of(&fake);
    let mut opened = caller.session(&mut fake).await;
    let time = Duration::from_millis(500);
    let call = caller.begin_within(begin("k"), Patience { total: time, attempt: time });
    opened.next_begin().await;
    fake.kill();
    let failed = ended(call).await.err().unwrap();
    assert!(failed.error.is_unavailable() && failed.outage && failed.unsettled, "{failed:?}");
}

#[tokio::test]
async fn a_session_that_carries_nothing_is_ended() {
    let mut fake = Fake::start();
    let mut caller = Caller::of(&fake);
    let mut opened = caller.session(&mut fake).await;
    let call = caller.begin("slow");
    let id = opened.next_begin().await;
    let looked = || tokio::time::sleep(Duration::from_millis(1_500));
    caller.moved.store(40, Ordering::SeqCst);
    looked().await;
    opened.answer(id, Some(Answer::Begin(claim(IN_SESSION))));
    assert_eq!(token(call).await, IN_SESSION);
    looked().await;
    caller.moved.store(65, Ordering::SeqCst);
    looked().await;
    assert!(opened.is_quiet().await, "it was not idle for long");
    caller.moved.store(75, Ordering::SeqCst);
    assert_eq!(opened.next().await, None);
    // There are many calls still.
    caller.reopened(&mut fake).await;
}

#[tokio::test]
async fn a_client_that_is_closed_or_dropped_ends_its_sessions() {
    for closes in [true, false] {
        let mut fake = Fake::start();
        let mut caller = Caller::of(&fake);
        let mut opened = caller.session(&mut fake).await;
        let call = caller.begin("k");
        let id = opened.next_begin().await;
        if closes {
            assert!(caller.client.close(HANGS).await);
            assert_eq!(token(caller.begin("k")).await, UNARY);
        }
        opened.answer(id, Some(Answer::Begin(claim(IN_SESSION))));
        assert_eq!(token(call).await, IN_SESSION);
        if !closes {
            caller.crowd.shutdown().await;
            drop(caller);
        }
        assert_eq!(opened.next().await, None, "{closes}");
        assert!(fake.opens_none().await, "{closes}");
    }
}

#[tokio::test]
async fn where_no_session_can_be_opened_none_is_tried_for_a_minute_and_where_none_is_now_for_a_second() {
    for (why, pause) in [(Status::unimplemented("unknown"), 60), (Status::unavailable("away"), 1)] {
        let mut fake = Fake::start();
        let refused = fake.refuse_one(why);
        let mut caller = Caller::of(&fake);
        caller.crowd(&fake, 16).await;
        tokio::time::timeout(HANGS, refused).await.expect("one is tried").unwrap();
        for seconds in [0, pause - 1] {
            caller.moved.store(seconds, Ordering::SeqCst);
            assert_eq!(token(caller.begin("k")).await, UNARY);
            // The clock goes on by itself as well.
            assert!(pause == 1 || fake.opens_none().await, "{seconds}");
        }
        caller.moved.store(pause + 1, Ordering::SeqCst);
        caller.reopened(&mut fake).await;
    }
}

#[tokio::test]
async fn sessions_that_end_at_once_are_left_be_for_a_minute_after_the_third() {
    let mut fake = Fake::start();
    let mut caller = Caller::of(&fake);
    drop(caller.session(&mut fake).await);
    for _ in 0..2 {
        drop(caller.reopened(&mut fake).await);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    for seconds in [0, 55] {
        caller.moved.store(seconds, Ordering::SeqCst);
        assert_eq!(token(caller.begin("k")).await, UNARY);
        assert!(fake.opens_none().await, "{seconds}");
    }
    caller.moved.store(61, Ordering::SeqCst);
    caller.reopened(&mut fake).await;
}
