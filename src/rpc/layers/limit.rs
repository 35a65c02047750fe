//! Sheds what is over the server's limits, at once: a queue would only make every call late.

use std::sync::Arc;
use std::task::{Context, Poll};

use metrics::{Gauge, counter, gauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Answering;
use crate::rpc::Settings;
use crate::rpc::call::{Answer, Call, Places};
use crate::rpc::failure::{self, Failure};
use crate::telemetry::metrics::{LIMIT_SHED, LIMIT_SIZE, LIMIT_USED, SESSIONS, WATCHES};

/// The places of a server, shared by all its calls. Cheap to clone.
#[derive(Clone)]
pub struct Limits(Arc<Pools>);

struct Pools {
    active: Pool,
    holders: Pool,
    waiting: Pool,
}

struct Pool {
    places: Arc<Semaphore>,
    limit: failure::Limit,
    used: Gauge,
}

impl Limits {
    /// The places that the settings allow.
    pub fn new(settings: &Settings) -> Self {
        // Shown from the start, before any is refused or opened.
        let of_one_caller = [
            failure::Limit::Session(0),
            failure::Limit::Connection(0),
            failure::Limit::Streams(0),
            failure::Limit::Bytes(0),
        ];
        for limit in of_one_caller {
            counter!(LIMIT_SHED, "limit" => limit.name()).increment(0);
        }
        for open in [SESSIONS, WATCHES] {
            gauge!(open).increment(0.0);
        }
        Self(Arc::new(Pools {
            active: Pool::new(failure::Limit::Active(settings.max_active_calls)),
            holders: Pool::new(failure::Limit::Holders(settings.max_holder_calls)),
            waiting: Pool::new(failure::Limit::Waiting(settings.max_waiting_calls)),
        }))
    }

    /// A place for a watch, for as long as it lasts.
    ///
    /// # Errors
    /// `Overloaded` if there is none.
    pub fn watch(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.0.waiting.place()
    }

    /// Tells the metrics how much is in use now.
    pub fn count(&self) {
        let Pools { active, holders, waiting, .. } = &*self.0;
        [active, holders, waiting].into_iter().for_each(Pool::count);
    }

    /// Who only waits hands back the first place, and keeps the second. Without the second a call does not
    /// wait, but is still served: waiters of other keys must not keep it from its claim.
    fn places(&self, call: &Call) -> Result<Places, Failure> {
        let of_holder = call.request.is_of_holder();
        let pool = if of_holder { &self.0.holders } else { &self.0.active };
        let busy = [call.budget.place(of_holder)?, pool.place()?];
        let waiting = if call.request.asks_to_wait() { self.0.waiting.place().ok() } else { None };
        Ok(Places { busy: Some(busy), working: None, waiting })
    }
}

/// Counts what is refused for want of this, and says so to the caller.
pub fn shed(limit: failure::Limit) -> Failure {
    counter!(LIMIT_SHED, "limit" => limit.name()).increment(1);
    Failure::Overloaded(limit)
}

impl Pool {
    fn new(limit: failure::Limit) -> Self {
        gauge!(LIMIT_SIZE, "limit" => limit.name()).set(limit.size() as f64);
        counter!(LIMIT_SHED, "limit" => limit.name()).increment(0);
        Self {
            places: Arc::new(Semaphore::new(limit.size().min(Semaphore::MAX_PERMITS))),
            limit,
            used: gauge!(LIMIT_USED, "limit" => limit.name()),
        }
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| shed(self.limit))
    }

    fn count(&self) {
        let free = self.places.available_permits();
        self.used.set(self.limit.size().min(Semaphore::MAX_PERMITS).saturating_sub(free) as f64);
    }
}

/// Gives each call its places, or sheds it.
#[derive(Clone)]
pub struct Limit<S> {
    pub inner: S,
    pub limits: Limits,
}

impl<S> tower::Service<Call> for Limit<S>
where
    S: tower::Service<Call, Response = Answer, Error = Failure, Future = Answering>,
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
                self.inner.call(call)
            }
            Err(failure) => Box::pin(async { Err(failure) }),
        }
    }
}
