//! The two services of the API. A unary call is a [`Call`] and nothing more: all that happens to it is in the
//! layers and the handler, which a session's calls go through as well.

use std::sync::Arc;

use async_trait::async_trait;
use onced_client::v1;
use tonic::{Request, Response, Status, Streaming};
use tower::Service as _;

use super::call::{self, Call, Context, Places};
use super::failure::Failure;
use super::layers::access;
use super::layers::edge::{Arrival, Outbound};
use super::layers::trace::StoreFailures;
use super::layers::{Limits, Stack};
use super::quota::Quotas;
use super::session::{self, Session};
use super::watch::{self, Watch};
use super::{Closing, Live};
use crate::access::Action;
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
    pub store_failures: StoreFailures,
}

impl Service {
    async fn unary<Q, A>(&self, request: Request<Q>) -> Result<Response<A>, Status>
    where
        Q: Into<call::Request>,
        A: TryFrom<call::Response, Error = Failure>,
    {
        let Arrival { at, deadline, caller, budget, inflow, trace, .. } = arrival(&request)?;
        let context = Context { arrived: at, deadline, trace };
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
}

/// What the edge noted of a request.
fn arrival<Q>(request: &Request<Q>) -> Result<Arrival, Status> {
    let arrival = request.extensions().get::<Arrival>().cloned();
    arrival.ok_or_else(|| Failure::Internal("a request that did not come over the edge").to_status())
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
        let Arrival { deadline, caller, expires, budget, trace, .. } = arrival(&request)?;
        let closing = Closing::of(request.extensions());
        let namespace = &request.get_ref().namespace;
        access::check(&self.rules, caller.as_ref(), namespace, Action::Lookup)
            .map_err(|failure| failure.to_status())?;
        let outbound = Outbound::default();
        let watch = Watch {
            clock: self.clock.clone(),
            deadline,
            trace,
            rules: Arc::clone(&self.rules),
            caller,
            expires,
            closing,
            store_failures: self.store_failures.clone(),
            budget,
            outbound: outbound.clone(),
            _place: self.limits.watch().map_err(|failure| failure.to_status())?,
            _present: Present::new(metrics::gauge!(WATCHES)),
        };
        let stream = watch.open(&self.coordinator, &self.quotas, request.get_ref());
        let mut response = stream.map(Response::new).map_err(|failure| failure.to_status())?;
        response.extensions_mut().insert(outbound);
        Ok(response)
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let Arrival { deadline, caller, expires, budget, inflow, trace, .. } = arrival(&request)?;
        let session = Session {
            stack: self.stack.clone(),
            clock: self.clock.clone(),
            deadline,
            trace,
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
