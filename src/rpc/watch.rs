//! Watch: the states of a key as a stream. A client that goes away drops the stream, and with it everything.

use std::pin::Pin;
use std::time::Duration;

use futures_util::stream;
use onced_client::v1;
use prost::Message as _;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::Live;
use super::budget::Budget;
use super::convert::{request, response};
use super::failure::Failure;
use super::layers::access;
use super::layers::edge::Outbound;
use super::layers::trace::{StoreFailures, Subject};
use super::quota::Quotas;
use super::session::reached;
use crate::access::{Action, Caller, Unproven};
use crate::clock::{Clock, Moment};
use crate::coordinator::{Coordinator, Views};
use crate::record::{RecordKey, View};
use crate::telemetry::metrics::Present;
use crate::telemetry::trace::TraceParent;

/// The answers of a watch.
pub type Stream = Pin<Box<dyn futures_util::Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

/// What a watch needs.
pub struct Watch {
    pub clock: Clock,
    /// When its caller has enough.
    pub deadline: Option<Moment>,
    /// Where it stands in the trace of its caller.
    pub trace: Option<TraceParent>,
    pub rules: Live,
    /// Who watches.
    pub caller: Option<Caller>,
    /// When that is no longer known.
    pub expires: Option<Moment>,
    pub closing: CancellationToken,
    pub store_failures: StoreFailures,
    pub budget: Budget,
    pub outbound: Outbound,
    /// Its place under the limit of waiting calls.
    pub _place: OwnedSemaphorePermit,
    pub _present: Present,
}

impl Watch {
    /// Starts watching.
    ///
    /// # Errors
    /// If the request is wrong, or the server shuts down.
    pub fn open(
        self,
        coordinator: &Coordinator,
        quotas: &Quotas,
        request: &v1::WatchRequest,
    ) -> Result<Stream, Failure> {
        let key = request::watch(request)?;
        let waiter = quotas.watch(&key)?;
        let views = coordinator.watch(&key)?;
        // The stream is asked for one state at a time, when the client has taken the one before: a slow client
        // skips states and piles up nothing.
        let states = stream::unfold(Some((self, views, waiter)), move |open| {
            let key = key.clone();
            async move {
                let (mut watch, mut views, waiter) = open?;
                match watch.next(&mut views, &key).await? {
                    Ok(state) => Some((Ok(state), Some((watch, views, waiter)))),
                    Err(failure) => {
                        watch.store_failures.log("Watch", &Subject::from(&key), watch.trace, &failure);
                        Some((Err(failure.to_status()), None))
                    }
                }
            }
        });
        Ok(Box::pin(states))
    }

    async fn next(
        &mut self,
        views: &mut Views,
        key: &RecordKey,
    ) -> Option<Result<v1::WatchResponse, Failure>> {
        let view = tokio::select! {
            biased;
            view = views.next() => view?,
            () = self.closing.cancelled() => return Some(Err(Failure::DRAINING)),
            () = reached(&self.clock, self.expires) => return Some(Err(Failure::Unproven(Unproven::Expired))),
            () = reached(&self.clock, self.deadline) => return Some(Err(Failure::DeadlineExceeded)),
        };
        // Rules may have changed since it was opened.
        let namespace = key.namespace.as_str();
        if let Err(failure) = access::check(&self.rules, self.caller.as_ref(), namespace, Action::Lookup) {
            return Some(Err(failure));
        }
        Some(match view {
            Ok(view) => self.tell(&view),
            Err(error) => Err(error.into()),
        })
    }

    /// A state, which leaves now.
    fn tell(&self, view: &View) -> Result<v1::WatchResponse, Failure> {
        let record = response::watch(view, Duration::ZERO);
        let record = record.ok_or(Failure::Internal("the record contradicts itself"))?;
        let state = v1::WatchResponse { record: Some(record) };
        let mut hold = self.budget.hold_none();
        hold.resize(state.encoded_len())?;
        self.outbound.add(hold);
        Ok(state)
    }
}
