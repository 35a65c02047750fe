//! The server from outside: connections, health, the way down.

mod admin;
mod connections;
mod health;
mod log;
mod metrics;
mod overload;
mod shutdown;
mod traces;

use std::sync::Arc;
use std::time::Duration;

use onced::server::{Config, Limits};

use crate::support::server::{HANGS, TestServer};
use crate::support::stores::Controlled;

/// A server on a store of its own, in memory.
async fn start(limits: Limits, drain_limit: Duration) -> TestServer {
    start_on(Controlled::in_memory(), limits, drain_limit).await
}

async fn start_on(store: Arc<Controlled>, limits: Limits, drain_limit: Duration) -> TestServer {
    TestServer::start_with(store, Config { limits, drain_limit, ..Config::default() }).await
}
