//! When a claim counts as delivered: not before its answer can leave, and not after.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame};
use onced_client::v1;
use tokio::sync::{Semaphore, mpsc};
use tonic::body::Body;

use super::budget::Budget;
use super::call::{Answer, Response};
use super::layers::edge::{EdgeBody, Outbound};
use super::session::{Answers, Outgoing, Turn};
use crate::clock::Clock;
use crate::coordinator::{self, Begun, Claimed, Coordinator, Patience};
use crate::record::{Begin, Key, Namespace, OnLapse, RecordKey, RequestId, State};
use crate::store::RecordStore;
use crate::store::embedded::EmbeddedStore;

/// A server with a claim on its way out.
struct Scene {
    store: Arc<EmbeddedStore>,
    coordinator: Coordinator,
}

impl Scene {
    async fn new() -> (Self, Claimed) {
        let clock = Clock::system();
        let store = Arc::new(EmbeddedStore::in_memory(clock.clone()).unwrap());
        let settings = coordinator::Settings::default();
        let coordinator = Coordinator::new(Arc::clone(&store) as _, clock.clone(), settings);
        let hour = Duration::from_secs(3_600);
        let begin = Begin {
            request_id: RequestId([1; 16]),
            owner: String::new(),
            fingerprint: None,
            lock_ttl: hour,
            retention: hour,
            on_lapse: OnLapse::TakeOver,
        };
        let now = clock.now();
        let patience = Patience { arrived: now, until: now, busy: None };
        let begun = coordinator.begin(key(), begin, patience).await.unwrap();
        let Begun::Claimed(claim) = begun else { panic!("no claim, but {begun:?}") };
        (Self { store, coordinator }, claim)
    }

    /// Whether the claim is still held when everything under way is done.
    async fn holds(self) -> bool {
        self.coordinator.drain().await;
        let loaded = self.store.load(&key()).await.unwrap().unwrap();
        match &loaded.record.state {
            State::InProgress { .. } => true,
            State::Released { request_spent, .. } => {
                assert!(!request_spent, "nobody spent the request id");
                false
            }
            State::InDoubt { .. } | State::Completed { .. } => panic!("{:?}", loaded.record),
        }
    }
}

fn key() -> RecordKey {
    RecordKey { namespace: Namespace::new("orders").unwrap(), key: Key::new("a").unwrap() }
}

/// A body that has its one message only when it is asked again.
#[derive(Default)]
struct Late {
    polls: usize,
}

impl HttpBody for Late {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        self.polls += 1;
        match self.polls {
            1 => Poll::Pending,
            2 => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"claim"))))),
            _ => Poll::Ready(None),
        }
    }
}

fn body_with(claim: Claimed) -> EdgeBody {
    let hold = Budget::default().hold_none();
    EdgeBody::new(Body::new(Late::default()), Some(Outbound::new(Some(claim), hold)))
}

#[tokio::test]
async fn a_unary_answer_that_nobody_reads_gives_its_claim_back() {
    let (scene, claim) = Scene::new().await;
    drop(body_with(claim));
    assert!(!scene.holds().await);
}

#[tokio::test]
async fn a_unary_answer_whose_bytes_were_not_there_yet_gives_its_claim_back() {
    let (scene, claim) = Scene::new().await;
    let mut body = body_with(claim);
    assert!(body.frame().now_or_never().is_none());
    drop(body);
    assert!(!scene.holds().await);
}

#[tokio::test]
async fn a_unary_answer_whose_bytes_may_have_left_keeps_its_claim() {
    let (scene, claim) = Scene::new().await;
    let mut body = body_with(claim);
    assert!(body.frame().now_or_never().is_none());
    assert!(body.frame().await.unwrap().unwrap().is_data());
    drop(body);
    assert!(scene.holds().await);
}

async fn session_answer(claim: Claimed) -> Answers {
    let (finished, answers) = mpsc::unbounded_channel();
    let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
    let turn = Turn { _place: place, hold: Budget::default().hold_none() };
    let response = Response::Begin(v1::BeginResponse::default());
    let answer = Answer { response, claim: Some(claim) };
    assert!(finished.send(Outgoing::Answer(1, Ok(answer), turn)).is_ok());
    Answers::new(answers, Outbound::default())
}

#[tokio::test]
async fn a_session_answer_that_nobody_took_gives_its_claim_back() {
    let (scene, claim) = Scene::new().await;
    drop(session_answer(claim).await);
    assert!(!scene.holds().await);
}

#[tokio::test]
async fn a_session_answer_that_was_taken_keeps_its_claim() {
    let (scene, claim) = Scene::new().await;
    let mut answers = session_answer(claim).await;
    assert_eq!(answers.next().await.unwrap().unwrap().id, 1);
    drop(answers);
    assert!(scene.holds().await);
}
