//! The quotas of namespaces: how much the calls of each may take up at this server.

mod used;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Moment};
use crate::config::Policy;
use crate::record::{Namespace, RecordKey};
use crate::rpc::Live;
use crate::rpc::call::Places;
use crate::rpc::failure::{Failure, Quota};
use crate::telemetry::metrics::QUOTA_REFUSED;

pub use used::{Used, Waiter};

/// From how many namespaces on those that take up nothing are forgotten.
const NAMESPACES_MIN: usize = 1_024;
/// How long a caller is told to wait where the server cannot know how long it takes, and how far the times that
/// callers are told lie apart: all come back otherwise when one could go on.
const PAUSE: Duration = Duration::from_secs(1);

/// The names of the quotas, as the settings have them.
const BEGINS_PER_SECOND: &str = "begins_per_second";
const MAX_WAITERS: &str = "max_waiters";
const MAX_CLAIMS: &str = "max_claims";

/// The quotas of all namespaces, shared by all calls.
#[derive(Clone)]
pub struct Quotas {
    rules: Live,
    clock: Clock,
    namespaces: Arc<Mutex<Namespaces>>,
}

struct Namespaces {
    used: HashMap<Namespace, Arc<Used>>,
    /// How many there may be before those that take up nothing are forgotten.
    enough: usize,
}

/// What holds in the namespace of a call, and what that takes up.
pub struct Namespaced {
    namespace: Namespace,
    pub policy: Policy,
    pub used: Arc<Used>,
}

impl Quotas {
    /// Nothing is taken up yet.
    pub fn new(rules: &Live, clock: &Clock) -> Self {
        // Shown from the start, before any is refused.
        for limit in [BEGINS_PER_SECOND, MAX_WAITERS, MAX_CLAIMS] {
            refused(limit, 0);
        }
        let namespaces = Namespaces { used: HashMap::new(), enough: NAMESPACES_MIN };
        Self { rules: Arc::clone(rules), clock: clock.clone(), namespaces: Arc::new(Mutex::new(namespaces)) }
    }

    /// The time now.
    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// The namespace of this name; `None` if it has no quotas, or is none.
    pub fn of(&self, namespace: &str) -> Option<Namespaced> {
        let policy = {
            let rules = self.rules.load();
            let policy = rules.namespaces.of(namespace);
            if policy.has_no_quotas() {
                return None;
            }
            policy.clone()
        };
        let namespace = Namespace::new(namespace)?;
        let mut all = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        if all.used.len() >= all.enough {
            let now = self.clock.now();
            // One that a call is at work with is shared with it.
            all.used.retain(|_, used| Arc::strong_count(used) > 1 || !used.is_idle(now));
            all.enough = NAMESPACES_MIN.max(2 * all.used.len());
        }
        let used = Arc::clone(all.used.entry(namespace.clone()).or_default());
        Some(Namespaced { namespace, policy, used })
    }

    /// A place for a watch, for as long as it lasts; none is needed where there is no quota.
    ///
    /// # Errors
    /// If there is none.
    pub fn watch(&self, key: &RecordKey) -> Result<Option<Waiter>, Failure> {
        let Some(on) = self.of(key.namespace.as_str()) else { return Ok(None) };
        match on.policy.max_waiters {
            None => Ok(None),
            Some(most) => match on.used.wait(most) {
                Some(waiter) => Ok(Some(waiter)),
                None => Err(on.refusal(MAX_WAITERS, most, PAUSE)),
            },
        }
    }
}

/// Counts what a quota refused.
fn refused(limit: &'static str, times: u64) {
    metrics::counter!(QUOTA_REFUSED, "limit" => limit).increment(times);
}

impl Namespaced {
    /// Over the quota of Begins; `after`: until there is room for one.
    pub fn too_many_begins(&self, after: Duration) -> Failure {
        self.refusal(BEGINS_PER_SECOND, self.policy.begins_per_second.unwrap_or_default(), after)
    }

    /// Over the quota of claims.
    pub fn too_many_claims(&self) -> Failure {
        self.refusal(MAX_CLAIMS, self.policy.max_claims.unwrap_or_default(), PAUSE)
    }

    /// Over a quota; `after`: when it may help to try again.
    fn refusal(&self, limit: &'static str, size: u32, after: Duration) -> Failure {
        refused(limit, 1);
        let retry = after + PAUSE.mul_f64(fastrand::f64());
        let namespace = self.namespace.as_str().to_owned();
        Failure::Quota(Quota { namespace, limit, size, retry })
    }

    /// A place for a call to wait. Where there is none left, it does not wait.
    pub fn wait(&self, places: &mut Places) -> Option<Waiter> {
        let most = self.policy.max_waiters?;
        places.waiting.as_ref()?;
        let waiter = self.used.wait(most);
        if waiter.is_none() {
            refused(MAX_WAITERS, 1);
            places.waiting = None;
        }
        waiter
    }
}

impl Policy {
    fn has_no_quotas(&self) -> bool {
        self.begins_per_second.is_none() && self.max_waiters.is_none() && self.max_claims.is_none()
    }
}
