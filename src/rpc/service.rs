//! The two services of the API. A unary call is a [`Call`] and nothing more: all that happens to it is in the
//! layers and the handler, which a session's calls go through as well.

use std::sync::Arc;

use async_trait::async_trait;
use onced_client::v1;
use tonic::{Request, Response, Status, Streaming};
use tower::Service as _;

use super::call::{self, Call, Context, Places, Rpc};
use super::convert::request;
use super::failure::Failure;
use super::layers::access;
use super::layers::edge::{Arrival, Outbound};
use super::layers::trace::Journal;
use super::layers::{Limits, Stack};
use super::quota::Quotas;
use super::session::{self, Session};
use super::watch::{self, Watch, Watched};
use super::{Closing, Live};
use crate::access::{Action, Caller};
use crate::clock::Clock;
use crate::coordinator::Coordinator;
use crate::generated::onced_v1::admin_service_server::AdminService;
use crate::generated::onced_v1::idempotency_service_server::IdempotencyService;
use crate::telemetry::metrics::{Present, WATCHES};

/// An answer of no more bytes is not followed on its way out: as many streams as a connection may have of those
/// are no burden.
const SMALL_BYTES: usize = 4 << 10;

/// Both services.
#[derive(Clone)]
pub struct Service {
    pub stack: Stack,
    pub coordinator: Coordinator,
    pub clock: Clock,
    pub rules: Live,
    pub limits: Limits,
    pub quotas: Quotas,
    pub journal: Journal,
}

impl Service {
    async fn unary<Q, A>(&self, request: Request<Q>) -> Result<Response<A>, Status>
    where
        Q: Into<call::Request>,
        A: TryFrom<call::Response, Error = Failure>,
    {
        let arrival = arrival(&request)?;
        let context = context(&arrival);
        let Arrival { caller, budget, inflow, .. } = arrival;
        // What the message takes up is held until it is answered, and what the answer takes up until it has left.
        let mut hold = inflow.take();
        let (request, places) = (request.into_inner().into(), Places::default());
        let call = Call { request, context, caller, budget, places };
        let answered = self.stack.clone().call(call).await.and_then(|answer| {
            hold.resize(answer.response.encoded_len())?;
            Ok((A::try_from(answer.response)?, answer.claim))
        });
        let (message, claim) = answered.map_err(|failure| failure.to_status())?;
        let mut response = Response::new(message);
        // Both leave with the body: see `EdgeBody`.
        if claim.is_some() || hold.bytes() > SMALL_BYTES {
            response.extensions_mut().insert(Outbound::new(claim, hold));
        }
        Ok(response)
    }

    /// What a watch takes up, if it may be opened.
    fn watched(&self, caller: Option<&Caller>, request: &v1::WatchRequest) -> Result<Watched, Failure> {
        access::check(&self.rules, caller, &request.namespace, Action::Lookup)?;
        let place = self.limits.watch()?;
        let key = request::watch(request)?;
        let waiter = self.quotas.watch(&key)?;
        let views = self.coordinator.watch(&key)?;
        let present = Present::new(metrics::gauge!(WATCHES));
        Ok(Watched { key, views, _waiter: waiter, _place: place, _present: present })
    }
}

/// What the edge noted of a request.
fn arrival<Q>(request: &Request<Q>) -> Result<Arrival, Status> {
    let arrival = request.extensions().get::<Arrival>().cloned();
    arrival.ok_or_else(|| Failure::Internal("a request that did not come over the edge").to_status())
}

/// The circumstances of the call that it is.
fn context(arrival: &Arrival) -> Context {
    let Arrival { at, deadline, trace, peer, .. } = *arrival;
    Context { arrived: at, deadline, trace, peer }
}

#[async_trait]
impl IdempotencyService for Service {
    type WatchStream = watch::Stream;
    type SessionStream = session::Answers;

    async fn begin(&self, request: Request<v1::BeginRequest>) -> Result<Response<v1::BeginResponse>, Status> {
        self.unary(request).await
    }

    async fn complete(
        &self,
        request: Request<v1::CompleteRequest>,
    ) -> Result<Response<v1::CompleteResponse>, Status> {
        self.unary(request).await
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        self.unary(request).await
    }

    async fn release(
        &self,
        request: Request<v1::ReleaseRequest>,
    ) -> Result<Response<v1::ReleaseResponse>, Status> {
        self.unary(request).await
    }

    async fn lookup(
        &self,
        request: Request<v1::LookupRequest>,
    ) -> Result<Response<v1::LookupResponse>, Status> {
        self.unary(request).await
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let arrival = arrival(&request)?;
        let mut context = context(&arrival);
        let Arrival { caller, expires, budget, .. } = arrival;
        let closing = Closing::of(request.extensions());
        let request = request.get_ref();
        let name = (request.namespace.as_str(), request.key.as_str());
        let line = self.journal.open(Rpc::Watch, name, &mut context, caller.clone());
        let watched = match self.watched(caller.as_ref(), request) {
            Ok(watched) => watched,
            Err(failure) => {
                line.end(Some(&failure));
                return Err(failure.to_status());
            }
        };
        let outbound = Outbound::default();
        let watch = Watch {
            watched,
            clock: self.clock.clone(),
            deadline: context.deadline,
            rules: Arc::clone(&self.rules),
            caller,
            expires,
            closing,
            budget,
            outbound: outbound.clone(),
            line,
        };
        let mut response = Response::new(watch.states());
        response.extensions_mut().insert(outbound);
        Ok(response)
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let arrival = arrival(&request)?;
        let context = context(&arrival);
        let Arrival { caller, expires, budget, inflow, .. } = arrival;
        let session = Session {
            stack: self.stack.clone(),
            clock: self.clock.clone(),
            context,
            caller,
            expires,
            closing: Closing::of(request.extensions()),
            max_calls: self.rules.load().settings.max_session_calls,
            budget,
            inflow,
        };
        let outbound = Outbound::default();
        let mut response = Response::new(session.open(request.into_inner(), outbound.clone()));
        response.extensions_mut().insert(outbound);
        Ok(response)
    }
}

#[async_trait]
impl AdminService for Service {
    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        self.unary(request).await
    }

    async fn resolve(
        &self,
        request: Request<v1::ResolveRequest>,
    ) -> Result<Response<v1::ResolveResponse>, Status> {
        self.unary(request).await
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        self.unary(request).await
    }
}
