//! Sheds what is over the server's limits, at once: a queue would only make every call late.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Answering;
use crate::rpc::Settings;
use crate::rpc::call::{Answer, Call, Places};
use crate::rpc::failure::{self, Failure};

/// The places of a server, shared by all its calls.
#[derive(Clone)]
pub struct Limits {
    active: Arc<Semaphore>,
    holders: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    settings: Arc<Settings>,
}

impl Limits {
    /// The places that the settings allow.
    pub fn new(settings: &Arc<Settings>) -> Self {
        let places = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Self {
            active: places(settings.max_active_calls),
            holders: places(settings.max_holder_calls),
            waiting: places(settings.max_waiting_calls),
            settings: Arc::clone(settings),
        }
    }

    /// A place for a watch, for as long as it lasts.
    ///
    /// # Errors
    /// `Overloaded` if there is none.
    pub fn watch(&self) -> Result<OwnedSemaphorePermit, Failure> {
        place(&self.waiting)
            .ok_or(Failure::Overloaded(failure::Limit::Waiting(self.settings.max_waiting_calls)))
    }

    /// Who only waits hands back the first place, and keeps the second. Without the second a call does not
    /// wait, but is still served: waiters of other keys must not keep it from its claim.
    fn places(&self, call: &Call) -> Result<Places, Failure> {
        let (pool, limit) = if call.request.is_of_holder() {
            (&self.holders, failure::Limit::Holders(self.settings.max_holder_calls))
        } else {
            (&self.active, failure::Limit::Active(self.settings.max_active_calls))
        };
        let busy = place(pool).ok_or(Failure::Overloaded(limit))?;
        let waiting = if call.request.asks_to_wait() { place(&self.waiting) } else { None };
        Ok(Places { busy: Some(busy), working: None, waiting })
    }
}

fn place(pool: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(pool).try_acquire_owned().ok()
}

/// Gives each call its places, or sheds it.
#[derive(Clone)]
pub struct Limit<S> {
    pub inner: S,
    pub limits: Limits,
}

impl<S> tower::Service<Call> for Limit<S>
where
    S: tower::Service<Call, Response = Answer, Error = Failure>,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = Failure;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        match self.limits.places(&call) {
            Ok(places) => {
                call.places = places;
                Box::pin(self.inner.call(call))
            }
            Err(failure) => Box::pin(async { Err(failure) }),
        }
    }
}
