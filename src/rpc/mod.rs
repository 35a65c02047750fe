//! The gRPC face: the only place that knows tonic's messages.
//!
//! Every call, unary or of a session, is a `call::Call` that one stack of layers takes to the handler:
//!
//! ```text
//! trace → panic → deadline → limit → handler → coordinator
//! ```
//!
//! Around all of it, at the level of HTTP, stands `layers::edge`: it notes when a call arrived, sees to it that
//! no answer goes without a reason, and tells a claim when it is about to leave.

mod budget;
mod call;
mod convert;
#[cfg(test)]
mod delivery_tests;
mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod handler;
pub mod health;
mod layers;
mod reflection;
mod service;
mod session;
mod status;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::coordinator::Coordinator;
use crate::generated::onced_v1::admin_service_server::AdminServiceServer;
use crate::generated::onced_v1::idempotency_service_server::IdempotencyServiceServer;
use crate::record::limits::OUTCOME_MAX_BYTES;

use layers::edge::EdgeLayer;
use layers::limit::Limits;
use layers::trace::StoreFailures;
use service::Service;

pub use budget::Budget;

/// The domain of every ErrorInfo.
pub const ERROR_DOMAIN: &str = "onced.dev";

/// Every limit of the face. What is over one is refused with a reason, never queued.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The longest that one call waits for somebody else's outcome, whatever it asks for.
    pub max_wait: Duration,
    /// How long before the deadline of a call its waiting ends, so that the answer still arrives in time.
    pub deadline_margin: Duration,
    /// The largest encoded outcome, in bytes. Over [`OUTCOME_MAX_BYTES`] it counts as that.
    pub max_outcome_bytes: usize,
    /// The largest request message, in bytes. Well over an outcome, so that one that is a little too large is
    /// told its own limit.
    pub max_message_bytes: usize,
    /// How many calls may be at work at once, those of holders aside. A call that only waits is not at work.
    pub max_active_calls: usize,
    /// How many calls of holders (Complete, Renew, Release) may be at work at once. Nobody else uses these
    /// places, so that a crowd of waiters never keeps out the holder they wait for.
    pub max_holder_calls: usize,
    /// How many calls may wait at once, watches included. A Begin or Lookup beyond does not wait; a Watch
    /// beyond is refused.
    pub max_waiting_calls: usize,
    /// How many calls of one session may be open at once.
    pub max_session_calls: usize,
    /// How long a request may take to arrive whole. A session's stream may last for ever.
    pub max_arrival: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_wait: Duration::from_secs(60),
            deadline_margin: Duration::from_millis(100),
            max_outcome_bytes: OUTCOME_MAX_BYTES,
            max_message_bytes: 2 * OUTCOME_MAX_BYTES,
            max_active_calls: 4_096,
            max_holder_calls: 4_096,
            max_waiting_calls: 32_768,
            max_session_calls: 1_024,
            max_arrival: Duration::from_secs(10),
        }
    }
}

/// Both services of the API, and reflection. Once `drain` is cancelled, watches and reflection streams end,
/// and sessions close after their open calls.
pub fn routes(coordinator: Coordinator, settings: Settings, drain: CancellationToken) -> Routes {
    // The coordinator's: a call's arrival is a moment on its clock.
    let clock = coordinator.clock().clone();
    let max_outcome_bytes = settings.max_outcome_bytes.min(OUTCOME_MAX_BYTES);
    let settings = Arc::new(Settings { max_outcome_bytes, ..settings });
    let limits = Limits::new(&settings);
    let store_failures = StoreFailures::new(clock.clone());
    let service = Service {
        stack: layers::stack(coordinator.clone(), &clock, &settings, &limits, &store_failures),
        coordinator,
        clock: clock.clone(),
        settings: Arc::clone(&settings),
        limits,
        drain: drain.clone(),
        store_failures,
    };
    let (max, max_arrival) = (settings.max_message_bytes, settings.max_arrival);
    let routes = Routes::new(IdempotencyServiceServer::new(service.clone()).max_decoding_message_size(max))
        .add_service(AdminServiceServer::new(service).max_decoding_message_size(max));
    reflection::add(routes, &drain).into_axum_router().layer(EdgeLayer { clock, max_arrival }).into()
}
