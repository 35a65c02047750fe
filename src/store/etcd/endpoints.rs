//! Which endpoint of the cluster calls go to: one for all of them, until it is bad and another is better.
//!
//! An endpoint is left at once when it refuses connections or has lost its leader, and as soon as it is slow
//! while another one answers: then what still waits on it is let go as well. A prober notices the slow ones,
//! and those that are well again; so does a call that is answered. Where none answers in time, each is waited for.
//! Where there is one endpoint alone, it is always tried.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Client, GetOptions};
use futures_util::future::join_all;
use tokio::sync::{Notify, OnceCell};
use tokio_util::sync::CancellationToken;

use super::client::{CallError, classify};
use super::dial::Dial;

/// How often endpoints are probed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How long the answer to a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// The least time between two rounds of probes, however much is in doubt.
const PROBE_PAUSE: Duration = Duration::from_millis(100);

/// The endpoints of a cluster.
pub(super) struct Endpoints {
    all: Vec<Endpoint>,
    /// Where calls go.
    current: AtomicUsize,
    /// Wakes the prober early.
    doubt: Notify,
    dial: Dial,
    /// How long a connection may take to be made.
    connect_timeout: Duration,
}

struct Endpoint {
    address: String,
    state: Mutex<State>,
}

struct State {
    link: Arc<Link>,
    down: bool,
}

/// A connection to an endpoint, made when first used. Whoever waits on it is let go when it is given up.
#[derive(Default)]
struct Link {
    client: OnceCell<Client>,
    gone: CancellationToken,
}

/// An endpoint as chosen for one attempt of a call.
#[derive(Clone)]
pub(super) struct Line {
    index: usize,
    link: Arc<Link>,
}

impl Line {
    /// Ends when the endpoint is given up: what is open on it is to be opened elsewhere.
    pub(super) fn gone(&self) -> CancellationToken {
        self.link.gone.clone()
    }
}

/// How far an attempt has come: what can be said of it at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The request has certainly not left.
    Connecting,
    /// The request may have left.
    Sent,
}

impl Endpoints {
    /// The endpoints at these addresses (host:port), the first one being the current one. Nothing is sent yet.
    pub(super) fn new(addresses: &[String], dial: Dial, connect_timeout: Duration) -> Self {
        let endpoint = |address: &String| {
            let state = Mutex::new(State { link: Arc::default(), down: false });
            Endpoint { address: address.clone(), state }
        };
        let all: Vec<Endpoint> = addresses.iter().map(endpoint).collect();
        if all.len() > 1 {
            // One alone is never probed, so nothing is known of it.
            all.iter().for_each(|endpoint| endpoint.count_up(true));
        }
        Self { all, current: AtomicUsize::new(0), doubt: Notify::new(), dial, connect_timeout }
    }

    /// Whether there is a choice.
    pub(super) fn several(&self) -> bool {
        self.all.len() > 1
    }

    /// Whether etcd is told who we are.
    pub(super) fn logs_in(&self) -> bool {
        self.dial.login.is_some()
    }

    /// Each endpoint.
    pub(super) fn lines(&self) -> Vec<Line> {
        (0..self.all.len()).map(|index| self.line(index)).collect()
    }

    /// The address of an endpoint.
    pub(super) fn address(&self, line: &Line) -> &str {
        self.all.get(line.index).map_or("", |endpoint| &endpoint.address)
    }

    /// Where to try next: the current endpoint, then others that are up, then those that are down.
    pub(super) fn next(&self, tried: &[Line]) -> Option<Line> {
        let untried: Vec<usize> =
            self.in_order().filter(|index| tried.iter().all(|line| line.index != *index)).collect();
        let up = untried.iter().find(|&&index| !self.all[index].state().down);
        up.or(untried.first()).map(|&index| self.line(index))
    }

    /// Tries a call once at an endpoint, in whatever time the caller leaves it.
    pub(super) async fn attempt<T, F: Future<Output = Result<T, etcd_client::Error>>>(
        &self,
        line: &Line,
        stage: &mut Stage,
        make: impl FnOnce(&Client) -> F,
    ) -> Result<T, Failure> {
        *stage = Stage::Connecting;
        let address = self.address(line);
        let call = async {
            let connecting =
                line.link.client.get_or_try_init(|| self.dial.connect(address, self.connect_timeout));
            let client = match tokio::time::timeout(self.connect_timeout, connecting).await {
                Ok(Ok(client)) => client,
                Ok(Err(error)) => return Err(Failure::of(error)),
                Err(_) => {
                    let text =
                        format!("no connection to etcd at {address} within {:?}", self.connect_timeout);
                    return Err(Failure::of(CallError::Unreachable(text)));
                }
            };
            let call = make(client);
            *stage = Stage::Sent;
            call.await.map_err(|error| {
                Failure::of(match classify(error) {
                    // Authentication was switched on since the connection was made. The next one logs in.
                    CallError::Refused(text) if self.logs_in() && text.ends_with("user name is empty") => {
                        CallError::Unreachable(text)
                    }
                    error => error,
                })
            })
        };
        tokio::select! {
            biased;
            done = call => done,
            () = line.link.gone.cancelled() => {
                let text = format!("the etcd endpoint {address} was given up while a call waited for it");
                Err(Failure { error: stage.lost(text), fault: Fault::None })
            }
        }
    }

    /// Gives up an endpoint that failed: what still waits on it is let go, and the next call goes elsewhere.
    pub(super) fn give_up(&self, line: &Line, why: &str) {
        let Some(endpoint) = self.all.get(line.index) else { return };
        let mut state = endpoint.state();
        if !Arc::ptr_eq(&state.link, &line.link) {
            // Somebody else did so before.
            return;
        }
        state.link = Arc::default();
        let newly_down = self.several() && !std::mem::replace(&mut state.down, self.several());
        drop(state);
        if newly_down {
            endpoint.count_up(false);
            tracing::warn!(endpoint = endpoint.address, why, "an etcd endpoint is down");
        }
        self.leave(line.index);
        // After the choice: who is let go is not to come back here.
        line.link.gone.cancel();
    }

    /// Makes another endpoint the current one, if this one is.
    fn leave(&self, index: usize) {
        let Some(next) = self.next(&[self.line(index)]) else { return };
        if self.current.compare_exchange(index, next.index, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            metrics::counter!("onced_etcd_endpoint_failovers_total").increment(1);
            tracing::info!(endpoint = self.address(&next), "calls to etcd go to another endpoint now");
        }
    }

    /// Notes that an endpoint answered.
    pub(super) fn is_well(&self, line: &Line) {
        let Some(endpoint) = self.all.get(line.index) else { return };
        let mut state = endpoint.state();
        if !Arc::ptr_eq(&state.link, &line.link) {
            // It was given up since: a late answer says nothing of the connection that came after.
            return;
        }
        let newly_up = std::mem::take(&mut state.down);
        drop(state);
        if newly_up {
            endpoint.count_up(true);
            tracing::info!(endpoint = endpoint.address, "an etcd endpoint is up again");
        }
        // With all down the current one may be any.
        let current = self.current.load(Ordering::SeqCst);
        if self.all[current].state().down {
            self.leave(current);
        }
    }

    /// What a probe of this endpoint is sent on. One that is down is tried on a connection of its own: an old one
    /// may wait long until it sends again, and yet is not to be given up while none is better.
    fn to_probe(&self, line: &Line) -> Line {
        let down = self.all[line.index].state().down;
        if down { Line { index: line.index, link: Arc::default() } } else { line.clone() }
    }

    /// Has calls to an endpoint that is still down go on this connection, which is known to work.
    fn replace(&self, old: &Line, new: &Line) {
        let mut state = self.all[old.index].state();
        if state.down && Arc::ptr_eq(&state.link, &old.link) {
            state.link = Arc::clone(&new.link);
            old.link.gone.cancel();
        }
    }

    /// Something went wrong that probes will tell more of.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Probes all endpoints, again and again, by reading `key`.
    pub(super) async fn probe(self: Arc<Self>, key: String) {
        loop {
            self.probe_once(&key).await;
            tokio::time::sleep(PROBE_PAUSE).await;
            // Out of time or woken: the same.
            let _ = tokio::time::timeout(PROBE_INTERVAL - PROBE_PAUSE, self.doubt.notified()).await;
        }
    }

    async fn probe_once(&self, key: &str) {
        let probe = async |line: Line| {
            let (probed, mut stage) = (self.to_probe(&line), Stage::Connecting);
            let read = self.attempt(&probed, &mut stage, |client| {
                let mut kv = client.kv_client();
                // Linearizable: a member that lost its cluster, or cannot write its disk, does not answer.
                async move { kv.get(key, Some(GetOptions::new().with_count_only())).await }
            });
            let failed = match tokio::time::timeout(PROBE_TIMEOUT, read).await {
                Ok(Ok(_)) => None,
                Ok(Err(failure)) if failure.error.is_refusal() => None,
                Ok(Err(failure)) => Some(failure.error.into_text()),
                Err(_) => Some(format!("no answer to a probe within {PROBE_TIMEOUT:?}")),
            };
            (line, probed, failed)
        };
        let probes = join_all(self.lines().into_iter().map(probe)).await;
        for (line, probed, _) in probes.iter().filter(|(.., failed)| failed.is_none()) {
            self.replace(line, probed);
            self.is_well(probed);
        }
        // While none answers, none is better.
        if probes.iter().any(|(.., failed)| failed.is_none()) {
            for (line, _, failed) in &probes {
                if let Some(why) = failed {
                    self.give_up(line, why);
                }
            }
        }
    }

    fn line(&self, index: usize) -> Line {
        Line { index, link: Arc::clone(&self.all[index].state().link) }
    }

    /// All endpoints in their order, beginning with the current one.
    fn in_order(&self) -> impl Iterator<Item = usize> {
        let current = self.current.load(Ordering::SeqCst);
        (current..self.all.len()).chain(0..current)
    }
}

impl Endpoint {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_up(&self, up: bool) {
        metrics::gauge!("onced_etcd_endpoint_up", "endpoint" => self.address.clone())
            .set(f64::from(u8::from(up)));
    }
}

impl Stage {
    /// The error of an attempt that was ended here.
    pub(super) fn lost(self, text: String) -> CallError {
        match self {
            Stage::Connecting => CallError::Unreachable(text),
            Stage::Sent => CallError::Unknown(text),
        }
    }
}

/// Why an attempt failed.
pub(super) struct Failure {
    /// What it means for the call.
    pub(super) error: CallError,
    /// What it says of the endpoint.
    pub(super) fault: Fault,
}

/// Whether an endpoint failed, whatever it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It did not.
    None,
    /// It may have: it is bad if another one does better.
    Likely,
    /// It serves nobody.
    Certain,
}

impl Failure {
    fn of(error: CallError) -> Self {
        let fault = match &error {
            CallError::Unreachable(_) => Fault::Certain,
            CallError::Unknown(_) => Fault::Likely,
            _ => Fault::None,
        };
        Self { error, fault }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_says_nothing_of_the_connection_that_came_after() {
        let addresses = ["one:1".to_owned(), "two:1".to_owned()];
        let dial = Dial { tls: None, login: None };
        let endpoints = Endpoints::new(&addresses, dial, Duration::from_secs(1));
        let is_down = || endpoints.all[0].state().down;
        let line = endpoints.line(0);
        endpoints.give_up(&line, "it is silent");
        endpoints.is_well(&line);
        assert!(is_down());
        endpoints.is_well(&endpoints.line(0));
        assert!(!is_down());
    }
}
