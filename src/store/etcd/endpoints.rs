//! Which endpoint of the cluster calls go to: one for all of them, until it is bad and another is better.
//!
//! An endpoint is left at once when it refuses connections or has lost its leader, and as soon as it is slow
//! while another one answers: then what still waits on it is let go as well. A prober notices the slow ones,
//! and those that are well again; so does a call that is answered. Where none answers in time, each is waited for.
//! One that is down is still tried where there is none better.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use etcd_client::Client;
use futures_util::future::join_all;
use tokio::sync::{Notify, OnceCell};
use tokio_util::sync::CancellationToken;

use super::attempt::{Failure, Fault, Stage};
use super::call_error::{CallError, classify};
use super::dial::Dial;
use super::identity::{Answer, Identity, foreign};
use crate::telemetry::metrics::{ETCD_ENDPOINT_UP, ETCD_FAILOVERS};

/// How often endpoints are probed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How long the answer to a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// The least time between two rounds of probes, however much is in doubt.
const PROBE_PAUSE: Duration = Duration::from_millis(100);
/// How many rounds in a row none serves when it is told: a disk may be slow for a second.
const ROUNDS_TOLD: usize = 3;

/// The endpoints of a cluster.
pub(super) struct Endpoints {
    all: Vec<Endpoint>,
    /// Where calls go.
    current: AtomicUsize,
    /// Where they were last told to go.
    told: AtomicUsize,
    /// Wakes the prober early.
    doubt: Notify,
    dial: Dial,
    identity: Identity,
    /// Why none of them is used any more: they are not of one cluster. It is set once.
    split: OnceLock<String>,
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
    /// Whether it was found to have another store, since it was last well.
    foreign: bool,
}

/// A connection to an endpoint, made when first used. Whoever waits on it is let go when it is given up.
#[derive(Default)]
struct Link {
    client: OnceCell<Client>,
    /// Set when it was found to reach the store that was opened.
    verified: OnceCell<()>,
    gone: CancellationToken,
    /// Why it was given up.
    why: OnceLock<CallError>,
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

impl Endpoints {
    /// The endpoints at these addresses (host:port), the first one being the current one. Nothing is sent yet.
    pub(super) fn new(
        addresses: &[String],
        dial: Dial,
        connect_timeout: Duration,
        identity: Identity,
    ) -> Self {
        let endpoint = |address: &String| {
            let state = Mutex::new(State { link: Arc::default(), down: false, foreign: false });
            Endpoint { address: address.clone(), state }
        };
        let all: Vec<Endpoint> = addresses.iter().map(endpoint).collect();
        all.iter().for_each(|endpoint| endpoint.count_up(true));
        // Shown before there is one.
        metrics::counter!(ETCD_FAILOVERS).increment(0);
        Self {
            all,
            current: AtomicUsize::new(0),
            told: AtomicUsize::new(0),
            doubt: Notify::new(),
            dial,
            identity,
            split: OnceLock::new(),
            connect_timeout,
        }
    }

    /// Settles which store calls are to reach.
    pub(super) fn settle(&self, marker: Vec<u8>) {
        self.identity.settle(marker);
    }

    /// The name of the marker of the store.
    pub(super) fn marker(&self) -> &str {
        self.identity.name()
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

    /// The connection to an endpoint, whatever it has reached.
    pub(super) async fn client<'a>(&self, line: &'a Line) -> Result<&'a Client, CallError> {
        let address = self.address(line);
        let connecting =
            line.link.client.get_or_try_init(|| self.dial.connect(address, self.connect_timeout));
        tokio::time::timeout(self.connect_timeout, connecting).await.unwrap_or_else(|_| {
            let text = format!("no connection to etcd at {address} within {:?}", self.connect_timeout);
            Err(CallError::Unreachable(text))
        })
    }

    /// Tries a call once at an endpoint, in whatever time the caller leaves it.
    pub(super) async fn attempt<T: Answer, F: Future<Output = Result<T, etcd_client::Error>>>(
        &self,
        line: &Line,
        stage: &mut Stage,
        make: impl FnOnce(&Client) -> F,
    ) -> Result<T, Failure> {
        *stage = Stage::Connecting;
        if let Some(why) = self.split.get() {
            return Err(Failure { error: CallError::Foreign(why.clone()), fault: Fault::None });
        }
        let address = self.address(line);
        let call = async {
            let client = self.client(line).await.map_err(Failure::of)?;
            if self.identity.is_settled() {
                // In the time of the call: a cluster that is slow is waited for.
                let verified = line.link.verified.get_or_try_init(|| self.identity.verify(client, address));
                verified.await.map_err(Failure::of_verify)?;
            }
            let (call, before) = (make(client), self.identity.revision());
            *stage = Stage::Sent;
            let answer = call.await.map_err(|error| {
                Failure::of(match classify(error).at(address) {
                    // Authentication was switched on since the connection was made. The next one logs in.
                    CallError::Refused(text) if self.logs_in() && text.ends_with("user name is empty") => {
                        CallError::Unreachable(text)
                    }
                    error => error,
                })
            })?;
            match self.identity.check(&answer, before) {
                Ok(()) => Ok(answer),
                // Whatever was done was done elsewhere, and that may yet become the store.
                Err(why) => {
                    Err(Failure { error: CallError::Unknown(foreign(address, &why)), fault: Fault::Certain })
                }
            }
        };
        tokio::select! {
            biased;
            done = call => done,
            () = line.link.gone.cancelled() => {
                let error = match (line.link.why.get(), &stage) {
                    (Some(foreign @ CallError::Foreign(_)), Stage::Connecting) => foreign.clone(),
                    (why, stage) => {
                        let why = why.map(|why| format!(": {}", why.clone().into_text())).unwrap_or_default();
                        stage.lost(format!(
                            "the etcd endpoint {address} was given up while a call waited for it{why}"
                        ))
                    }
                };
                Err(Failure { error, fault: Fault::None })
            }
        }
    }

    /// Gives up an endpoint that failed: what still waits on it is let go, and the next call goes elsewhere.
    pub(super) fn give_up(&self, line: &Line, why: CallError) {
        let Some(endpoint) = self.all.get(line.index) else { return };
        let mut state = endpoint.state();
        if !Arc::ptr_eq(&state.link, &line.link) {
            // Somebody else did so before.
            return;
        }
        state.link = Arc::default();
        let newly_down = !std::mem::replace(&mut state.down, true);
        let is_foreign = matches!(why, CallError::Foreign(_));
        let newly_foreign = is_foreign && !std::mem::replace(&mut state.foreign, is_foreign);
        drop(state);
        if newly_down || newly_foreign {
            endpoint.count_up(false);
            let why = why.clone().into_text();
            tracing::warn!(endpoint = endpoint.address, why, "an etcd endpoint is down");
        }
        self.leave(line.index);
        let _ = line.link.why.set(why);
        // After the choice: who is let go is not to come back here.
        line.link.gone.cancel();
    }

    /// Gives up all of them for good: nobody can tell which of them is the store.
    fn give_up_all(&self, why: &str) {
        if self.split.set(why.to_owned()).is_ok() {
            tracing::error!("{why}");
        }
        for line in self.lines() {
            self.give_up(&line, CallError::Foreign(why.to_owned()));
        }
    }

    /// Makes another endpoint the current one, if this one is.
    fn leave(&self, index: usize) {
        let Some(next) = self.next(&[self.line(index)]) else { return };
        let _ = self.current.compare_exchange(index, next.index, Ordering::SeqCst, Ordering::SeqCst);
        self.tell_choice();
    }

    /// Tells where calls go, if that is elsewhere. While all are down, each in turn is the first to be tried, which is
    /// nothing to tell of.
    fn tell_choice(&self) {
        let current = self.current.load(Ordering::SeqCst);
        let Some(endpoint) = self.all.get(current).filter(|endpoint| !endpoint.state().down) else { return };
        if self.told.swap(current, Ordering::SeqCst) != current {
            metrics::counter!(ETCD_FAILOVERS).increment(1);
            tracing::info!(endpoint = endpoint.address, "calls to etcd go to another endpoint now");
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
        state.foreign = false;
        let newly_up = std::mem::take(&mut state.down);
        drop(state);
        if newly_up {
            endpoint.count_up(true);
            tracing::info!(endpoint = endpoint.address, "an etcd endpoint is up again");
            self.tell_choice();
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

    /// Probes all endpoints, again and again.
    pub(super) async fn probe(self: Arc<Self>) {
        let mut rounds = 0;
        loop {
            match self.probe_once().await {
                None if rounds >= ROUNDS_TOLD => {
                    tracing::info!("etcd serves again");
                    rounds = 0;
                }
                None => rounds = 0,
                Some(why) => {
                    rounds += 1;
                    if rounds == ROUNDS_TOLD {
                        tracing::warn!(why, "no etcd endpoint serves");
                    }
                }
            }
            tokio::time::sleep(PROBE_PAUSE).await;
            // Out of time or woken: the same.
            let _ = tokio::time::timeout(PROBE_INTERVAL - PROBE_PAUSE, self.doubt.notified()).await;
        }
    }

    /// Probes each once. If none serves, why.
    pub(super) async fn probe_once(&self) -> Option<String> {
        if let Some(why) = self.split.get() {
            return Some(why.clone());
        }
        let lines = self.lines();
        let probed: Vec<Line> = lines.iter().map(|line| self.to_probe(line)).collect();
        let found = join_all(probed.iter().map(|line| self.look(line))).await;
        for ((line, probed), _) in
            lines.iter().zip(&probed).zip(&found).filter(|(_, found)| **found == Found::Well)
        {
            self.replace(line, probed);
            self.is_well(probed);
        }
        // While none answers, none is better.
        let better = found.contains(&Found::Well);
        for (line, found) in lines.iter().zip(&found) {
            match found {
                Found::Foreign(why) => self.give_up(line, CallError::Foreign(why.clone())),
                Found::Bad(why) if better => self.give_up(line, CallError::Unreachable(why.clone())),
                Found::Bad(_) | Found::Well => {}
            }
        }
        if let Some(why) = self.clones(&probed).await {
            self.give_up_all(&why);
            return Some(why);
        }
        let why = found.into_iter().filter_map(|found| match found {
            Found::Bad(why) | Found::Foreign(why) => Some(why),
            Found::Well => None,
        });
        (!better).then(|| why.collect::<Vec<_>>().join("; "))
    }

    /// Probes an endpoint.
    async fn look(&self, line: &Line) -> Found {
        let mut stage = Stage::Connecting;
        // What is sent before may come there before the marker.
        let is_settled = self.identity.is_settled();
        let read = self.attempt(line, &mut stage, |client| {
            let client = client.clone();
            async move { self.identity.read(&client).await }
        });
        match tokio::time::timeout(PROBE_TIMEOUT, read).await {
            Ok(Ok(read)) => match self.identity.recognise(&read) {
                Err(why) if is_settled => Found::Foreign(foreign(self.address(line), &why)),
                Ok(()) | Err(_) => Found::Well,
            },
            Ok(Err(Failure { error: CallError::Foreign(why), .. })) => Found::Foreign(why),
            Ok(Err(failure)) if failure.error.is_refusal() => Found::Well,
            Ok(Err(failure)) => Found::Bad(failure.error.into_text()),
            Err(_) => {
                let address = self.address(line);
                Found::Bad(format!("etcd at {address} did not answer a probe within {PROBE_TIMEOUT:?}"))
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

/// What a probe found of an endpoint.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// It serves.
    Well,
    /// It does not.
    Bad(String),
    /// It serves another store.
    Foreign(String),
}

impl Endpoint {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_up(&self, up: bool) {
        metrics::gauge!(ETCD_ENDPOINT_UP, "endpoint" => self.address.clone()).set(f64::from(u8::from(up)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::etcd::dial::Network;

    #[test]
    fn a_late_answer_says_nothing_of_the_connection_that_came_after() {
        let addresses = ["one:1".to_owned(), "two:1".to_owned()];
        let dial = Dial { network: Network::system(), tls: None, login: None };
        let endpoints =
            Endpoints::new(&addresses, dial, Duration::from_secs(1), Identity::new("m".to_owned()));
        let is_down = || endpoints.all[0].state().down;
        let line = endpoints.line(0);
        endpoints.give_up(&line, CallError::Unreachable("it is silent".to_owned()));
        endpoints.is_well(&line);
        assert!(is_down());
        endpoints.is_well(&endpoints.line(0));
        assert!(!is_down());
    }
}
