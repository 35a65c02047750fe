//! The gRPC face: the only place that knows tonic's messages.
//!
//! Every call, unary or of a session, is a `call::Call` that one stack of layers takes to the handler:
//!
//! ```text
//! trace → measure → panic → access → deadline → limit → quota → handler → coordinator
//! ```
//!
//! Around all of it, at the level of HTTP, stands `layers::edge`: it notes when a call arrived and who makes it,
//! sees to it that no answer goes without a reason, and tells a claim when it is about to leave.

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
mod quota;
mod reflection;
mod service;
mod session;
mod status;
mod watch;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::access::Gate;
use crate::config::{Config, Namespaces};
use crate::coordinator::Coordinator;
use crate::generated::onced_v1::admin_service_server::AdminServiceServer;
use crate::generated::onced_v1::idempotency_service_server::IdempotencyServiceServer;

use layers::edge::EdgeLayer;
use layers::trace::Journal;
use quota::Quotas;
use service::Service;

pub use crate::config::Calls as Settings;
pub use budget::Budget;
pub use layers::Limits;
pub use status::code_name;

/// The domain of every ErrorInfo.
pub const ERROR_DOMAIN: &str = "onced.dev";

/// What may change while calls are served: each call goes by the rules that hold when it comes.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The limits of calls. Those that need a restart count as they were at the start.
    pub settings: Settings,
    /// What holds in each namespace.
    pub namespaces: Namespaces,
    /// Who may do what.
    pub gate: Gate,
}

impl Rules {
    /// Those of a configuration.
    pub fn of(config: &Config, gate: Gate) -> Self {
        Self { settings: config.rpc.clone(), namespaces: config.namespaces.clone(), gate }
    }
}

/// The rules that hold now.
pub type Live = Arc<ArcSwap<Rules>>;

/// Cancelled once a connection is to end: then its watches and reflection streams end, and its sessions after their open
/// calls. Each request carries that of its connection; without one it is never told.
#[derive(Clone, Debug, Default)]
pub struct Closing(pub CancellationToken);

impl Closing {
    fn of(extensions: &http::Extensions) -> CancellationToken {
        extensions.get::<Self>().cloned().unwrap_or_default().0
    }
}

/// Both services of the API, and reflection. `limits` are of the same settings.
pub fn routes(coordinator: Coordinator, rules: Live, limits: Limits) -> Routes {
    // The coordinator's: a call's arrival is a moment on its clock.
    let clock = coordinator.clock().clone();
    let quotas = Quotas::new(&rules, &clock);
    let (max, max_arrival) = {
        let settings = &rules.load().settings;
        (settings.max_message_bytes, settings.max_arrival)
    };
    let journal = Journal::new(clock.clone());
    let service = Service {
        stack: layers::stack(coordinator.clone(), &clock, &rules, &limits, &quotas, &journal),
        coordinator,
        clock: clock.clone(),
        rules: Arc::clone(&rules),
        limits,
        quotas,
        journal: journal.clone(),
    };
    let routes = Routes::new(IdempotencyServiceServer::new(service.clone()).max_decoding_message_size(max))
        .add_service(AdminServiceServer::new(service).max_decoding_message_size(max));
    reflection::add(routes).into_axum_router().layer(EdgeLayer { clock, max_arrival, rules, journal }).into()
}
