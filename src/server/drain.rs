//! The way down: nobody new, waiters answered, calls finished, and a bound on it all.

use std::time::Duration;

use crate::clock::Clock;
use crate::coordinator::Coordinator;
use crate::rpc::health::Reporter;

use super::accept::Connections;

/// Ends what the server is at: not ready and health watches closed; waiters answered with DRAINING; GOAWAY on
/// every connection; calls in flight and writes under way finished. After `limit` what is left is dropped.
pub(super) async fn drain(
    reporter: &Reporter,
    coordinator: &Coordinator,
    connections: &Connections,
    limit: Duration,
    clock: &Clock,
) {
    let began = clock.now();
    reporter.drain();
    tracing::info!(connections = connections.open(), limit_s = limit.as_secs(), "draining");
    let waiters_and_writes = async {
        coordinator.drain().await;
        tracing::info!(connections = connections.open(), "waiters are answered, writes are done");
    };
    let calls = async {
        connections.start_drain();
        connections.drained().await;
        // Calls that came before their GOAWAY may have left writes behind when their callers hung up.
        coordinator.drain().await;
    };
    // In this order, so that calls which come before their client has seen the GOAWAY are told to go
    // elsewhere, too.
    let all = async { tokio::join!(biased; waiters_and_writes, calls) };
    match tokio::time::timeout(limit, all).await {
        Ok(_) => {
            tracing::info!(took_ms = millis(clock.now().since(began)), "drained");
        }
        Err(_) => {
            tracing::warn!(
                connections = connections.open(),
                "the drain took too long: connections are dropped"
            );
            connections.drop_all();
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
