//! The way of a request through the layer.

use std::fmt;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use tokio::sync::oneshot;
use tower_service::Service;
use tracing::Instrument as _;

use super::answer::Answered;
use super::body::boxed;
use super::refusal::Refusal;
use super::request::Asked;
use super::{Body, Options, Wire, grpc, plain};
use crate::claim::Claim;
use crate::completion::{Completion, Failure, OnFailure, OnceError, WorkError};
use crate::once::Start;
use crate::v1::Outcome;
use crate::work::{Done, Run};

/// Runs the requests of a service once for each key. Made by [`OnceLayer`](super::OnceLayer).
#[derive(Clone)]
pub struct OnceService<S> {
    inner: S,
    options: Arc<Options>,
}

impl<S> OnceService<S> {
    pub(super) fn new(inner: S, options: Arc<Options>) -> Self {
        Self { inner, options }
    }
}

impl<S> fmt::Debug for OnceService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnceService").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<S, B, R> Service<Request<B>> for OnceService<S>
where
    S: Service<Request<Body>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<WorkError>,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<WorkError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    /// Always ready: the inner service is asked when it is its turn.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let inner = self.inner.clone();
        let handler = Box::new(move |request| Box::pin(forward(inner, request)) as Answering<S::Error>);
        Box::pin(serve(Arc::clone(&self.options), handler, request.map(boxed)))
    }
}

type Answering<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;
/// The inner service, for one request.
type Handler<E> = Box<dyn FnOnce(Request<Body>) -> Answering<E> + Send>;

async fn serve<E: Send + 'static>(
    options: Arc<Options>,
    handler: Handler<E>,
    request: Request<Body>,
) -> Result<Response<Body>, E> {
    let (request, once) = match options.ask(request).await {
        Ok(Asked { request, once: Some(once) }) => (request, once),
        Ok(Asked { request, once: None }) => return handler(request).await,
        Err(refusal) => return Ok(refusal.answer(&options.wire)),
    };
    // A caller that hangs up here waits no more.
    let run = match once.start().await {
        Ok(Start::Run(run)) => run,
        Ok(Start::Replay(completion)) => return Ok(options.wire.replay(&completion)),
        Err(error) => return Ok(Refusal::of(&error).answer(&options.wire)),
    };
    // From here on the handler runs, whether its caller hangs up or not: on a task of its own.
    let (reply, answer) = oneshot::channel();
    let refused = Refusal::Refused.answer(&options.wire);
    let handling = tokio::spawn(handle(options, handler, request, *run, reply).in_current_span());
    match answer.await {
        Ok(answer) => answer,
        Err(_) => match handling.await.map_err(tokio::task::JoinError::try_into_panic) {
            Err(Ok(panic)) => resume_unwind(panic),
            // The runtime is ending, and nobody will see this.
            _ => Ok(refused),
        },
    }
}

async fn forward<S, R>(mut inner: S, request: Request<Body>) -> Result<Response<Body>, S::Error>
where
    S: Service<Request<Body>, Response = Response<R>>,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<WorkError>,
{
    std::future::poll_fn(|context| inner.poll_ready(context)).await?;
    Ok(inner.call(request).await?.map(boxed))
}

/// What the handler came to.
enum Found<E> {
    Nothing,
    ToStore(Response<Body>),
    ToPass(Response<Body>),
    NotStorable,
    Threw(E),
}

type Reply<E> = oneshot::Sender<Result<Response<Body>, E>>;

/// Runs the handler under its claim, and answers the caller, if it is still there.
async fn handle<E: Send + 'static>(
    options: Arc<Options>,
    handler: Handler<E>,
    request: Request<Body>,
    run: Run,
    reply: Reply<E>,
) {
    let mut found = Found::Nothing;
    let mut reply = Some(reply);
    let work = Box::pin(work(&options, handler, request, run.claim(), &mut found, &mut reply));
    let ended = run.go(|_| work, |outcome: Outcome| (Ok(outcome.clone()), outcome)).await;
    let answer = answer(ended, found, &options.wire);
    if let (Some(reply), Some(answer)) = (reply, answer) {
        // Who has hung up asks again, with the same key.
        let _ = reply.send(answer);
    }
}

async fn work<E>(
    options: &Options,
    handler: Handler<E>,
    mut request: Request<Body>,
    claim: Claim,
    found: &mut Found<E>,
    reply: &mut Option<Reply<E>>,
) -> Result<Outcome, Failure> {
    request.extensions_mut().insert(claim.clone());
    let answer = match handler(request).await {
        Ok(answer) => answer,
        Err(error) => {
            *found = Found::Threw(error);
            return Err("the handler failed".into());
        }
    };
    if !claim.protected() {
        *found = Found::ToPass(answer);
        return Ok(Outcome::default());
    }
    match options.decide(answer, &claim).await {
        Answered::Stored(outcome, answer) => {
            *found = Found::ToStore(answer);
            Ok(outcome)
        }
        Answered::Passed(answer, failure) => {
            *found = Found::ToPass(answer);
            Err(failure)
        }
        Answered::Passing(answer, failure, end) => {
            if let Some(reply) = reply.take() {
                let _ = reply.send(Ok(answer));
            }
            end.reached(options.unread).await;
            Err(failure)
        }
        Answered::NotStorable(error) => {
            *found = Found::NotStorable;
            Err(Failure::in_doubt(format!("the answer cannot be stored: {error}")))
        }
    }
}

/// What the caller gets; nothing if it has been answered.
fn answer<E>(
    ended: Result<(Completion<()>, Done<Outcome>), OnceError>,
    found: Found<E>,
    wire: &Wire,
) -> Option<Result<Response<Body>, E>> {
    match &ended {
        Ok(_) => {}
        Err(error @ OnceError::Failed { rule: OnFailure::Retry, released: Ok(()), .. }) => {
            tracing::debug!(%error, "a key is free again");
        }
        Err(error) => tracing::warn!(%error, "a request did not end well"),
    }
    Some(match (found, ended) {
        (Found::Nothing, _) => return None,
        (Found::Threw(error), _) => Err(error),
        (Found::ToPass(answer), _) => Ok(answer),
        (Found::NotStorable, _) => Ok(Refusal::NotStorable.answer(wire)),
        // The work was done, stored or not.
        (Found::ToStore(answer), Ok(_) | Err(OnceError::NotStored { .. })) => Ok(answer),
        (Found::ToStore(_), Err(OnceError::ClaimLost { .. })) => Ok(Refusal::ClaimLost.answer(wire)),
        // It is too large with its headers.
        (Found::ToStore(_), Err(_)) => Ok(Refusal::NotStorable.answer(wire)),
    })
}

impl Wire {
    fn replay(&self, completion: &Completion) -> Response<Body> {
        let answer = match self {
            Wire::Http { .. } => plain::replay(&completion.outcome),
            Wire::Grpc { .. } => grpc::replay(&completion.outcome),
        };
        answer.unwrap_or_else(|error| {
            let owner = &completion.owner;
            tracing::error!(%owner, %error, "what is stored is no answer of this service");
            Refusal::Refused.answer(self)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::{Extension, Router, routing::post};
    use http_body_util::BodyExt as _;
    use tower_layer::Layer as _;

    use super::*;
    use crate::client::Client;
    use crate::http::OnceLayer;
    use crate::http::body::full;

    #[tokio::test]
    async fn a_handler_is_told_the_key_as_onced_has_it() {
        let layer = OnceLayer::new(Client::connect("127.0.0.1:1").unwrap())
            .namespace("shop")
            .scope(|_| Some("a".to_owned()))
            .fail_open(Duration::from_millis(10));
        let handler = async |Extension(claim): Extension<Claim>| {
            assert!(!claim.protected());
            format!("{} {}", claim.namespace(), claim.key())
        };
        let mut service = layer.layer(Router::new().route("/", post(handler)));
        let request = Request::post("/").header("idempotency-key", "\"k\"").body(full("")).unwrap();
        let told = service.call(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(told, "shop ca978112ca1bbdcafac231b39a23dc4d:k");
    }
}
