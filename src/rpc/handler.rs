//! The end of the stack: checks a request, asks the coordinator, and puts its word into a message.

use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use onced_client::v1;
use tokio::sync::OwnedSemaphorePermit;

use super::call::{Answer, Call, Context, Places, Request, Response};
use super::convert::{page_token, request, response};
use super::failure::Failure;
use super::{Live, Settings};
use crate::clock::Clock;
use crate::config::Policy;
use crate::coordinator::{Applied, Begun, Coordinator, Listing, Patience};
use crate::record::{Command, RecordKey, View};

/// The records that a List with a filter reads at a time.
const FILTER_CHUNK: usize = 250;
/// How often it reads on, at most, before it answers with what it found.
const FILTER_CHUNKS: usize = 8;

/// Answers calls.
#[derive(Clone)]
pub struct Handler {
    pub coordinator: Coordinator,
    pub clock: Clock,
    pub rules: Live,
}

impl tower::Service<Call> for Handler {
    type Response = Answer;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<Answer, Failure>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let handler = self.clone();
        Box::pin(async move { handler.answer(call).await })
    }
}

impl Handler {
    async fn answer(&self, call: Call) -> Result<Answer, Failure> {
        let Call { request, context, places, .. } = call;
        match request {
            Request::Begin(request) => self.begin(request, context, places).await,
            Request::Lookup(request) => self.lookup(request, context, places).await,
            Request::Complete(request) => self.complete(request, places).await,
            Request::Renew(request) => self.renew(request, places).await,
            Request::Release(request) => self.release(request, places).await,
            // It changes nothing, and holds its place until it is answered.
            Request::List(request) => self.list(&request).await,
            Request::Resolve(request) => self.resolve(request, places).await,
            Request::Delete(request) => self.delete(&request, places).await,
        }
    }

    async fn begin(
        &self,
        request: v1::BeginRequest,
        context: Context,
        places: Places,
    ) -> Result<Answer, Failure> {
        let policy = self.policy(&request.namespace);
        let (key, begin, wait) = request::begin(request, &policy)?;
        let (patience, _place) = self.patience(wait, context, places);
        let patient_for = patience.until.since(patience.arrived);
        match self.coordinator.begin(key, begin, patience).await? {
            Begun::Claimed(claimed) => {
                let claim = response::claim(&claimed, policy.max_outcome_bytes);
                let result = Some(v1::begin_response::Result::Claim(claim));
                Ok(Answer { response: Response::Begin(v1::BeginResponse { result }), claim: Some(claimed) })
            }
            Begun::Standing(view) => {
                let result =
                    response::begin(&view, self.waited(patient_for, context)).ok_or(CONTRADICTION)?;
                Ok(v1::BeginResponse { result: Some(result) }.into())
            }
        }
    }

    async fn lookup(
        &self,
        request: v1::LookupRequest,
        context: Context,
        places: Places,
    ) -> Result<Answer, Failure> {
        let (key, wait) = request::lookup(request)?;
        let (patience, _place) = self.patience(wait, context, places);
        let patient_for = patience.until.since(patience.arrived);
        let view = self.coordinator.lookup(key, patience).await?;
        let record = response::lookup(&view, self.waited(patient_for, context)).ok_or(CONTRADICTION)?;
        Ok(v1::LookupResponse { record: Some(record) }.into())
    }

    async fn complete(&self, request: v1::CompleteRequest, places: Places) -> Result<Answer, Failure> {
        let policy = self.policy(&request.namespace);
        let (key, command) = request::complete(request, &policy)?;
        let (view, repeated) = self.apply(key, command, places).await?;
        let completed = response::completed_without_outcome(&view).ok_or(CONTRADICTION)?;
        Ok(v1::CompleteResponse { completed: Some(completed), repeated }.into())
    }

    async fn renew(&self, request: v1::RenewRequest, places: Places) -> Result<Answer, Failure> {
        let (key, command) = request::renew(request)?;
        let (view, _) = self.apply(key, command, places).await?;
        let armed = view.record().lock_ttl().ok_or(CONTRADICTION)?;
        Ok(v1::RenewResponse { lock_expires_in: Some(response::duration(armed)) }.into())
    }

    async fn release(&self, request: v1::ReleaseRequest, places: Places) -> Result<Answer, Failure> {
        let (key, command) = request::release(request)?;
        self.apply(key, command, places).await?;
        Ok(v1::ReleaseResponse {}.into())
    }

    async fn resolve(&self, request: v1::ResolveRequest, places: Places) -> Result<Answer, Failure> {
        let policy = self.policy(&request.namespace);
        let (key, command) = request::resolve(request, &policy)?;
        let (view, _) = self.apply(key.clone(), command, places).await?;
        let record = Some(response::summary(key.key.as_str(), &view));
        Ok(v1::ResolveResponse { record }.into())
    }

    async fn delete(&self, request: &v1::DeleteRequest, places: Places) -> Result<Answer, Failure> {
        let (key, command) = request::delete(request)?;
        self.coordinator.apply(key, command, places.into_busy()).await?;
        Ok(v1::DeleteResponse {}.into())
    }

    /// One page. A filter reads on for a while, so that the few records in doubt among many others do not
    /// take a call for each hundred of those.
    async fn list(&self, request: &v1::ListRequest) -> Result<Answer, Failure> {
        let request::List { namespace, state, page_size, mut after } = request::list(request)?;
        let (chunk, chunks) = if state.is_some() { (FILTER_CHUNK, FILTER_CHUNKS) } else { (page_size, 1) };
        let mut records = Vec::new();
        for _ in 0..chunks {
            let Listing { records: read, next } =
                self.coordinator.list(&namespace, after.as_ref(), chunk).await?;
            after = next;
            for (key, view) in read {
                if state.is_some_and(|state| state != response::state(&view)) {
                    continue;
                }
                if records.len() == page_size {
                    // This one is for the next page, which starts after the last one of this.
                    let last: &v1::RecordSummary = records.last().ok_or(CONTRADICTION)?;
                    after = crate::record::Key::new(&last.key);
                    break;
                }
                records.push(response::summary(key.as_str(), &view));
            }
            if after.is_none() || records.len() == page_size {
                break;
            }
        }
        let next_page_token = after.map(|after| page_token::encode(&namespace, &after)).unwrap_or_default();
        Ok(v1::ListResponse { records, next_page_token }.into())
    }

    /// What holds in a namespace now.
    fn policy(&self, namespace: &str) -> Policy {
        self.rules.load().namespaces.of(namespace).clone()
    }

    /// Applies a command that leaves a record.
    async fn apply(&self, key: RecordKey, command: Command, places: Places) -> Result<(View, bool), Failure> {
        let Applied { view, repeated } = self.coordinator.apply(key, command, places.into_busy()).await?;
        Ok((view.ok_or(CONTRADICTION)?, repeated))
    }

    /// Waiting ends after `wait`, at the server's own limit, or a margin before the call's deadline; a call
    /// without a place to wait does not. The place is the caller's to keep until the call is answered.
    fn patience(
        &self,
        wait: Duration,
        context: Context,
        mut places: Places,
    ) -> (Patience, Option<OwnedSemaphorePermit>) {
        let waiting = places.waiting.take();
        let busy = places.into_busy();
        let (max_wait, deadline_margin) = {
            let Settings { max_wait, deadline_margin, .. } = self.rules.load().settings;
            (max_wait, deadline_margin)
        };
        let arrived = context.arrived;
        let wait = if waiting.is_some() { wait.min(max_wait) } else { Duration::ZERO };
        let answered_by = context.deadline.map(|deadline| deadline - deadline_margin);
        let until = answered_by.map_or(arrived + wait, |by| by.min(arrived + wait));
        (Patience { arrived, until, busy }, waiting)
    }

    /// How long a call that would wait for so long has waited.
    fn waited(&self, patient_for: Duration, context: Context) -> Duration {
        self.clock.now().since(context.arrived).min(patient_for)
    }
}

const CONTRADICTION: Failure = Failure::Internal("the record contradicts what was done to it");
