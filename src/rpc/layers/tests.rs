//! The layers around a handler that does what the test says.

use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use onced_client::v1;
use tokio::sync::oneshot;
use tower::Service as _;

use super::limit::{Limit, Limits};
use super::{deadline::Deadline, panic::Panic};
use crate::clock::{Clock, Moment};
use crate::rpc::Settings;
use crate::rpc::budget::Budget;
use crate::rpc::call::{Answer, Call, Context, Places, Request};
use crate::rpc::failure::{self, Failure};

type Answering = BoxFuture<'static, Result<Answer, Failure>>;

/// A handler.
#[derive(Clone)]
struct Stub(Arc<dyn Fn(Call) -> Answering + Send + Sync>);

impl Stub {
    fn new(answer: impl Fn(Call) -> Answering + Send + Sync + 'static) -> Self {
        Self(Arc::new(answer))
    }

    /// Never answers, and keeps what it was given.
    fn stuck() -> Self {
        Self::new(|call| {
            Box::pin(async move {
                let _kept = call;
                std::future::pending().await
            })
        })
    }
}

impl tower::Service<Call> for Stub {
    type Response = Answer;
    type Error = Failure;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Answering {
        (self.0)(call)
    }
}

fn call(request: impl Into<Request>) -> Call {
    let context = Context { arrived: Moment::default(), deadline: None, trace: None, peer: None };
    let (budget, places) = (Budget::default(), Places::default());
    Call { request: request.into(), context, caller: None, budget, places }
}

fn waiting_begin() -> v1::BeginRequest {
    let wait = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    v1::BeginRequest { wait, ..v1::BeginRequest::default() }
}

fn limited(settings: Settings) -> (Limit<Stub>, Limits) {
    let limits = Limits::new(&Arc::new(settings));
    (Limit { inner: Stub::stuck(), limits: limits.clone() }, limits)
}

#[tokio::test]
async fn a_panic_becomes_internal_wherever_it_comes_from() {
    let at_once = Stub::new(|_| panic!("before there is a future"));
    let later = Stub::new(|_| Box::pin(async { panic!("{}", "in the future") }));
    for stub in [at_once, later] {
        let mut layer = Panic { inner: stub };
        let failure = layer.call(call(v1::BeginRequest::default())).await.unwrap_err();
        assert_eq!(failure, super::panic::PANICKED);
    }
}

#[tokio::test]
async fn a_call_ends_at_its_deadline() {
    let mut layer = Deadline { inner: Stub::stuck(), clock: Clock::from_fn(Moment::default) };
    let mut with_deadline = call(v1::RenewRequest::default());
    with_deadline.context.deadline = Some(Moment::from_start(Duration::from_millis(50)));
    let mut answering = layer.call(with_deadline);
    assert!((&mut answering).now_or_never().is_none());
    assert_eq!(answering.await.unwrap_err(), Failure::DeadlineExceeded);
}

#[tokio::test]
async fn a_call_that_comes_too_late_does_not_reach_the_handler() {
    let inner = Stub::new(|_| unreachable!("its deadline has passed"));
    let mut layer = Deadline { inner, clock: Clock::from_fn(|| Moment::from_start(Duration::from_secs(5))) };
    let mut late = call(v1::RenewRequest::default());
    late.context.deadline = Some(Moment::from_start(Duration::from_secs(5)));
    assert_eq!(layer.call(late).await.unwrap_err(), Failure::DeadlineExceeded);
}

#[tokio::test]
async fn a_crowd_of_begins_is_shed_and_never_keeps_a_holder_out() {
    let (mut layer, _) =
        limited(Settings { max_active_calls: 2, max_holder_calls: 1, ..Settings::default() });
    let first = layer.call(call(v1::BeginRequest::default()));
    let _second = layer.call(call(v1::LookupRequest::default()));
    let shed = layer.call(call(v1::BeginRequest::default())).await.unwrap_err();
    assert_eq!(shed, Failure::Overloaded(failure::Limit::Active(2)));

    let mut renew = layer.call(call(v1::RenewRequest::default()));
    assert!((&mut renew).now_or_never().is_none(), "the holder is served");
    let shed = layer.call(call(v1::CompleteRequest::default())).await.unwrap_err();
    assert_eq!(shed, Failure::Overloaded(failure::Limit::Holders(1)));

    drop(first);
    let mut next = layer.call(call(v1::BeginRequest::default()));
    assert!((&mut next).now_or_never().is_none(), "a place is free again");
}

#[tokio::test]
async fn a_call_that_only_waits_hands_back_its_place() {
    let (seen, handed) = oneshot::channel();
    let seen = std::sync::Mutex::new(Some(seen));
    let inner = Stub::new(move |mut call: Call| {
        let busy = call.places.busy.take();
        if let Some(seen) = seen.lock().unwrap().take() {
            let _ = seen.send(busy);
        }
        Box::pin(async move {
            let _kept = call;
            std::future::pending().await
        })
    });
    let limits = Limits::new(&Arc::new(Settings { max_active_calls: 1, ..Settings::default() }));
    let mut layer = Limit { inner, limits };
    let _waiter = layer.call(call(waiting_begin()));
    assert!(matches!(
        layer.call(call(waiting_begin())).await,
        Err(Failure::Overloaded(failure::Limit::Active(1)))
    ));
    drop(handed.await.unwrap());
    assert!(layer.call(call(waiting_begin())).now_or_never().is_none(), "the place is free");
}

#[tokio::test]
async fn waiting_has_places_of_its_own_and_without_one_a_call_is_served_but_does_not_wait() {
    let settings = Settings { max_waiting_calls: 1, ..Settings::default() };
    let limits = Limits::new(&Arc::new(settings));
    let (sender, mut places) = tokio::sync::mpsc::unbounded_channel();
    let inner = Stub::new(move |call| {
        let _ = sender.send(call.places);
        Box::pin(async { std::future::pending().await })
    });
    let mut layer = Limit { inner, limits: limits.clone() };
    let _impatient = layer.call(call(v1::BeginRequest::default()));
    let _first = layer.call(call(waiting_begin()));
    let _second = layer.call(call(waiting_begin()));
    let mut next = || places.try_recv().unwrap();
    let (impatient, first, second) = (next(), next(), next());
    assert!(impatient.waiting.is_none() && impatient.busy.is_some());
    assert!(first.waiting.is_some());
    assert!(second.waiting.is_none() && second.busy.is_some());
    assert_eq!(limits.watch().unwrap_err(), Failure::Overloaded(failure::Limit::Waiting(1)));
    drop(first);
    assert!(limits.watch().is_ok());
}
