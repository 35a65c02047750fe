//! Client for `onced`, the idempotency coordination service.

pub mod clock;

/// The messages and client stubs of the API, package `onced.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("onced.v1");
}
