//! What every call goes through before and after its handler.

pub mod access;
mod deadline;
pub mod edge;
pub mod inbound;
pub mod limit;
pub mod measure;
mod panic;
mod quota;
#[cfg(test)]
mod tests;
pub mod trace;

use std::sync::Arc;

use super::Live;
use super::handler::Handler;
use super::quota::Quotas;
use crate::clock::Clock;
use crate::coordinator::Coordinator;

pub use limit::Limits;

/// The handler with its layers.
pub type Stack = trace::Trace<
    measure::Measure<panic::Panic<access::Access<deadline::Deadline<limit::Limit<quota::Quota<Handler>>>>>>,
>;

/// Puts the layers around a handler, the innermost first: whatever happens is traced and measured, a panic
/// anywhere becomes an answer, who may not call takes up no place, and the time to get one counts against the
/// deadline.
pub fn stack(
    coordinator: Coordinator,
    clock: &Clock,
    rules: &Live,
    limits: &Limits,
    quotas: &Quotas,
    journal: &trace::Journal,
) -> Stack {
    let handler =
        Handler { coordinator: coordinator.clone(), clock: clock.clone(), rules: Arc::clone(rules) };
    let quota = quota::Quota { inner: handler, quotas: quotas.clone(), coordinator };
    let limit = limit::Limit { inner: quota, limits: limits.clone() };
    let deadline = deadline::Deadline { inner: limit, clock: clock.clone() };
    let access = access::Access { inner: deadline, rules: Arc::clone(rules) };
    let panic = panic::Panic { inner: access };
    let measure = measure::Measure { inner: panic, clock: clock.clone(), meters: measure::Meters::default() };
    trace::Trace { inner: measure, journal: journal.clone() }
}

/// The future of every layer.
type Answering =
    futures_util::future::BoxFuture<'static, Result<super::call::Answer, super::failure::Failure>>;
