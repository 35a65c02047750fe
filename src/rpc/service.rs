//! The two services of the API. A unary call is a [`Call`] and nothing more: all that happens to it is in the
//! layers and the handler, which a session's calls go through as well.

use std::sync::Arc;

use async_trait::async_trait;
use onced_client::v1;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tower::Service as _;

use super::Settings;
use super::call::{self, Answer, Call, Context, Places};
use super::failure::Failure;
use super::layers::edge::{Arrival, Outbound};
use super::layers::trace::StoreFailures;
use super::layers::{Limits, Stack};
use super::session::{self, Session};
use super::watch::{self, Watch};
use crate::clock::Clock;
use crate::coordinator::Coordinator;
use crate::generated::onced_v1::admin_service_server::AdminService;
use crate::generated::onced_v1::idempotency_service_server::IdempotencyService;

/// Both services.
#[derive(Clone)]
pub struct Service {
    pub stack: Stack,
    pub coordinator: Coordinator,
    pub clock: Clock,
    pub settings: Arc<Settings>,
    pub limits: Limits,
    pub drain: CancellationToken,
    pub store_failures: StoreFailures,
}

impl Service {
    async fn unary<Q, A>(&self, request: Request<Q>) -> Result<Response<A>, Status>
    where
        Q: Into<call::Request>,
        A: TryFrom<call::Response, Error = Failure>,
    {
        let context = self.context(&request);
        let call = Call { request: request.into_inner().into(), context, places: Places::default() };
        let Answer { response, claim } =
            self.stack.clone().call(call).await.map_err(|failure| failure.to_status())?;
        let message = A::try_from(response).map_err(|failure| failure.to_status())?;
        let mut response = Response::new(message);
        if let Some(claim) = claim {
            // The claim leaves with the body: see `EdgeBody`.
            response.extensions_mut().insert(Outbound::new(claim));
        }
        Ok(response)
    }

    fn context<Q>(&self, request: &Request<Q>) -> Context {
        match request.extensions().get::<Arrival>() {
            Some(arrival) => Context { arrived: arrival.at, deadline: arrival.deadline },
            None => Context { arrived: self.clock.now(), deadline: None },
        }
    }
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
        let context = self.context(&request);
        let watch = Watch {
            clock: self.clock.clone(),
            deadline: context.deadline,
            drain: self.drain.clone(),
            store_failures: self.store_failures.clone(),
            _place: self.limits.watch().map_err(|failure| failure.to_status())?,
        };
        let stream = watch.open(&self.coordinator, request.get_ref());
        stream.map(Response::new).map_err(|failure| failure.to_status())
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let deadline = self.context(&request).deadline;
        let session = Session {
            stack: self.stack.clone(),
            clock: self.clock.clone(),
            deadline,
            drain: self.drain.clone(),
            max_calls: self.settings.max_session_calls,
        };
        Ok(Response::new(session.open(request.into_inner())))
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
