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
use super::convert::response;
use super::failure::Failure;
use super::layers::access;
use super::layers::edge::Outbound;
use super::layers::trace::Line;
use super::quota::Waiter;
use super::session::reached;
use crate::access::{Action, Caller, Unproven};
use crate::clock::{Clock, Moment};
use crate::coordinator::Views;
use crate::record::{RecordKey, View};
use crate::telemetry::metrics::Present;

/// The answers of a watch.
pub type Stream = Pin<Box<dyn futures_util::Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

/// What is watched, and the room that it takes up.
pub struct Watched {
    pub key: RecordKey,
    pub views: Views,
    /// Its place under the quota of its namespace.
    pub _waiter: Option<Waiter>,
    /// Its place under the limit of waiting calls.
    pub _place: OwnedSemaphorePermit,
    pub _present: Present,
}

/// What a watch needs.
pub struct Watch {
    pub watched: Watched,
    pub clock: Clock,
    /// When its caller has enough.
    pub deadline: Option<Moment>,
    pub rules: Live,
    /// Who watches.
    pub caller: Option<Caller>,
    /// When that is no longer known.
    pub expires: Option<Moment>,
    pub closing: CancellationToken,
    pub budget: Budget,
    pub outbound: Outbound,
    /// What is told of it when it ends.
    pub line: Line,
}

impl Watch {
    /// The states, from now on. The stream is asked for one at a time, when the client has taken the one before: a slow
    /// client skips states and piles up nothing.
    pub fn states(self) -> Stream {
        Box::pin(stream::unfold(Some(self), |open| async move {
            let mut watch = open?;
            let failure = match watch.next().await {
                Some(Ok(state)) => return Some((Ok(state), Some(watch))),
                Some(Err(failure)) => Some(failure),
                None => None,
            };
            watch.line.end(failure.as_ref());
            failure.map(|failure| (Err(failure.to_status()), None))
        }))
    }

    async fn next(&mut self) -> Option<Result<v1::WatchResponse, Failure>> {
        let view = tokio::select! {
            biased;
            view = self.watched.views.next() => view?,
            () = self.closing.cancelled() => return Some(Err(Failure::DRAINING)),
            () = reached(&self.clock, self.expires) => return Some(Err(Failure::Unproven(Unproven::Expired))),
            () = reached(&self.clock, self.deadline) => return Some(Err(Failure::DeadlineExceeded)),
        };
        // Rules may have changed since it was opened.
        let namespace = self.watched.key.namespace.as_str();
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
