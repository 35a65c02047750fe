//! `onced`: a gRPC idempotency coordination service.

pub mod access;
pub mod cli;
pub mod clock;
pub mod config;
pub mod coordinator;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod record;
pub mod rpc;
pub mod server;
pub mod store;
pub mod telemetry;

/// Code generated from `proto/`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod generated {
    /// The server stubs of the API.
    pub mod onced_v1 {
        include!(concat!(env!("OUT_DIR"), "/onced.v1.rs"));
    }
    /// The standard health service.
    pub mod health_v1 {
        include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
    }
    /// What `onced exec` stores.
    pub mod exec_v1 {
        include!(concat!(env!("OUT_DIR"), "/onced.exec.v1.rs"));
    }
}
