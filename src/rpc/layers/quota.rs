//! Keeps namespaces to their quotas. What holders call (Complete, Renew, Release) passes in any case, and tells which
//! claims live on.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;

use super::Answering;
use crate::coordinator::{Coordinator, Error, Patience};
use crate::record::{FencingToken, Key, Namespace, RecordKey, Refusal, View};
use crate::rpc::call::{Answer, Call, Request, Response};
use crate::rpc::failure::Failure;
use crate::rpc::quota::{Namespaced, Quotas};

/// Refuses Begins over a quota, and lets calls over one not wait.
#[derive(Clone)]
pub struct Quota<S> {
    pub inner: S,
    pub quotas: Quotas,
    pub coordinator: Coordinator,
}

impl<S> tower::Service<Call> for Quota<S>
where
    S: tower::Service<Call, Response = Answer, Error = Failure, Future = Answering> + Clone + Send + 'static,
{
    type Response = Answer;
    type Error = Failure;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let (namespace, _) = call.request.name();
        let Some(on) = self.quotas.of(namespace) else { return self.inner.call(call) };
        let layer = self.clone();
        Box::pin(async move {
            match &call.request {
                Request::Begin(_) => layer.begin(call, &on).await,
                Request::Lookup(_) => layer.lookup(call, &on).await,
                Request::Renew(_)
                | Request::Complete(_)
                | Request::Release(_)
                | Request::Resolve(_)
                | Request::Delete(_) => layer.of_claim(call, &on).await,
                Request::List(_) => layer.pass(call).await,
            }
        })
    }
}

impl<S> Quota<S>
where
    S: tower::Service<Call, Response = Answer, Error = Failure, Future = Answering> + Send,
{
    async fn pass(mut self, call: Call) -> Result<Answer, Failure> {
        self.inner.call(call).await
    }

    async fn lookup(self, mut call: Call, on: &Namespaced) -> Result<Answer, Failure> {
        let _waiter = on.wait(&mut call.places);
        self.pass(call).await
    }

    /// What a Begin takes up is reserved as long as it may become a claim, and given back while it only waits. One
    /// that waits gets its claim when its turn comes, and that counts, even if it is one too many.
    async fn begin(mut self, mut call: Call, on: &Namespaced) -> Result<Answer, Failure> {
        let _waiter = on.wait(&mut call.places);
        let Namespaced { policy, used, .. } = on;
        let now = self.quotas.now();
        let mut reservation =
            used.begin(policy.begins_per_second, now).map_err(|after| on.too_many_begins(after))?;
        if let Some(most) = policy.max_claims
            && !reservation.claim(most, now)
            && would_claim(&self.coordinator, &call).await?
        {
            return Err(on.too_many_claims());
        }
        let key = Key::new(call.request.name().1);
        let (working, only_waits) = oneshot::channel();
        call.places.working = Some(working);
        let mut reservation = Some(reservation);
        let answer = {
            let mut answering = std::pin::pin!(self.inner.call(call));
            tokio::select! {
                biased;
                answer = &mut answering => answer,
                _ = only_waits => {
                    reservation = None;
                    answering.await
                }
            }
        };
        if let (Ok(Answer { claim: Some(claim), .. }), Some(key)) = (&answer, key) {
            let now = self.quotas.now();
            if let (Some(_), Some(ttl)) = (policy.max_claims, claim.record.lock_ttl()) {
                used.held(key, claim.record.fencing_token, now + ttl);
            }
            match reservation {
                // It was paid for when it was made.
                _ if claim.resumed => {}
                Some(reservation) => reservation.spend(),
                None => used.begun(policy.begins_per_second, now),
            }
        }
        answer
    }

    /// Notes what becomes of a claim.
    async fn of_claim(self, call: Call, on: &Namespaced) -> Result<Answer, Failure> {
        let counted = on.policy.max_claims.and_then(|_| claim_of(&call.request));
        let quotas = self.quotas.clone();
        let result = self.pass(call).await;
        let Some((key, token)) = counted else { return result };
        match &result {
            Ok(Answer { response: Response::Renew(renewed), .. }) => {
                let ttl =
                    renewed.lock_expires_in.and_then(|ttl| Duration::try_from(ttl).ok()).unwrap_or_default();
                on.used.renewed(&key, token, quotas.now() + ttl);
            }
            Ok(_) => on.used.ended(&key, token),
            Err(Failure::Coordinator(Error::Refused {
                refusal: Refusal::ClaimLost | Refusal::NotFound,
                ..
            })) => on.used.ended(&key, token),
            Err(_) => {}
        }
        result
    }
}

/// Whether a Begin would make another claim, as the record stands: not if it is answered with what is there, nor
/// if it asks again for the claim that it has.
async fn would_claim(coordinator: &Coordinator, call: &Call) -> Result<bool, Failure> {
    // What is wrong with a request is told by who checks it.
    let Request::Begin(request) = &call.request else { return Ok(false) };
    let (Some(namespace), Some(key)) = (Namespace::new(&request.namespace), Key::new(&request.key)) else {
        return Ok(false);
    };
    let arrived = call.context.arrived;
    let at_once = Patience { arrived, until: arrived, busy: None };
    match coordinator.lookup(RecordKey { namespace, key }, at_once).await {
        Ok(View::Completed { .. } | View::InProgress { .. } | View::InDoubt { .. }) => Ok(false),
        Ok(View::Available { .. }) | Err(Error::Refused { refusal: Refusal::NotFound, .. }) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// The claim that a call is about.
fn claim_of(request: &Request) -> Option<(Key, FencingToken)> {
    let token = match request {
        Request::Complete(request) => request.fencing_token,
        Request::Renew(request) => request.fencing_token,
        Request::Release(request) => request.fencing_token,
        Request::Resolve(request) => request.fencing_token,
        Request::Delete(request) => request.fencing_token,
        Request::Begin(_) | Request::Lookup(_) | Request::List(_) => return None,
    };
    Some((Key::new(request.name().1)?, FencingToken(token)))
}
