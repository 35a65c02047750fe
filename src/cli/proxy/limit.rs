//! How many requests may be at work at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use metrics::{Counter, counter, gauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::telemetry::metrics::{LIMIT_SHED, LIMIT_SIZE, LIMIT_USED};

/// Its name, as the metrics have it.
const LIMIT: &str = "max_requests";

/// The most that `--max-requests` takes.
pub const REQUESTS_MAX: usize = 1_000_000;

/// The places for requests.
pub struct Places {
    free: Arc<Semaphore>,
    count: usize,
    shed: Counter,
}

/// A place. Whatever works for a request has it in its extensions, and keeps it: also when its caller has hung up.
#[derive(Clone)]
pub struct Place(Arc<Taken>);

struct Taken {
    _permit: OwnedSemaphorePermit,
    ran: AtomicBool,
}

impl Places {
    /// So many, up to [`REQUESTS_MAX`].
    pub fn new(count: usize) -> Self {
        gauge!(LIMIT_SIZE, "limit" => LIMIT).set(count as f64);
        let shed = counter!(LIMIT_SHED, "limit" => LIMIT);
        Self { free: Arc::new(Semaphore::new(count)), count, shed }
    }

    /// How many there are.
    pub fn all(&self) -> usize {
        self.count
    }

    /// Takes one, if one is free.
    pub fn take(&self) -> Option<Place> {
        match Arc::clone(&self.free).try_acquire_owned() {
            Ok(permit) => Some(Place(Arc::new(Taken { _permit: permit, ran: AtomicBool::new(false) }))),
            Err(_) => {
                self.shed.increment(1);
                None
            }
        }
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.count - self.free.available_permits()
    }

    /// Tells the metrics how many are taken.
    pub fn count(&self) {
        gauge!(LIMIT_USED, "limit" => LIMIT).set(self.taken() as f64);
    }

    /// Waits until none is taken.
    pub async fn empty(&self) {
        let all = u32::try_from(self.count).unwrap_or(u32::MAX);
        // It is never closed.
        let _ = self.free.acquire_many(all).await;
    }
}

impl Place {
    /// Notes that the upstream was called for a key.
    pub fn set_ran(&self) {
        self.0.ran.store(true, Ordering::Relaxed);
    }

    /// Whether it was.
    pub fn has_run(&self) -> bool {
        self.0.ran.load(Ordering::Relaxed)
    }
}
