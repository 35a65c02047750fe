//! A claim in the hands of its holder: kept alive in the background, and watched on the holder's own clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::client::{Client, duration};
use crate::clock::{Clock, Moment};
use crate::error::Error;
use crate::retry::jittered;
use crate::transport::Patience;
use crate::v1::{self, Checkpoint, Disposition, ReleaseRequest, RenewRequest};

/// The longest sleep between two looks at the clock. Timers stand still while a machine is suspended and
/// the clock does not, so nothing sleeps much longer than it may be late.
const TICK: Duration = Duration::from_millis(500);

/// Why a claim no longer protects its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The server said so: somebody took over, or the record was settled or deleted.
    TakenOver,
    /// The lock ended on the holder's own clock, for want of a successful Renew: somebody may take over at
    /// any moment.
    LockEnded,
    /// This process gave it back, because the run failed or was dropped.
    GivenBack,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Lost::TakenOver => "the claim was taken over, settled or deleted",
            Lost::LockEnded => "the lock could not be renewed in time, so that others may take over",
            Lost::GivenBack => "the claim was given back",
        })
    }
}

/// The right to run the work of a key, as the work gets it. Clones are the same claim.
#[derive(Clone, Debug)]
pub struct Claim(Arc<Held>);

impl Claim {
    /// The namespace that the run was begun with.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// The key that the run was begun with. Behind the layer of the module `http` with a scope that is the key as onced
    /// has it, with the digest of the scope in front.
    pub fn key(&self) -> &str {
        &self.0.key
    }

    /// Strictly larger than that of every earlier claim of the key. Give it to the resources that the work
    /// changes, so that they can refuse a stale holder.
    pub fn fencing_token(&self) -> u64 {
        self.0.claim.fencing_token
    }

    /// Whether there is a claim at all. False only for work that runs without one, because no server could be asked and
    /// the caller has chosen so by [`Once::fail_open`](crate::Once::fail_open): then the token and the attempt are 0,
    /// checkpoints go nowhere, and no lock is held.
    pub fn protected(&self) -> bool {
        self.0.protected
    }

    /// How many claims the key has had, this one included.
    pub fn attempt(&self) -> u64 {
        self.0.claim.attempt
    }

    /// The last checkpoint of an earlier claim of the key, if there is one.
    pub fn checkpoint(&self) -> Option<&Bytes> {
        self.0.claim.checkpoint.as_ref().map(|checkpoint| &checkpoint.data)
    }

    /// The largest encoded outcome that can be stored, in bytes.
    pub fn max_outcome_bytes(&self) -> u64 {
        self.0.claim.max_outcome_bytes
    }

    /// How long the claim lives without a renewal. Renewals happen by themselves.
    pub fn lock_ttl(&self) -> Duration {
        self.0.ttl
    }

    /// How long the lock lives for certain, on this machine's clock; zero once the claim is lost or the run is over.
    pub fn lock_left(&self) -> Duration {
        let state = *self.0.state.borrow();
        if state.is_held() { state.ends.since(self.0.clock.now()) } else { Duration::ZERO }
    }

    /// Whether the claim no longer protects the work, and why.
    pub fn is_lost(&self) -> Option<Lost> {
        self.0.look();
        self.0.state.borrow().lost
    }

    /// Ends when the claim is lost: the cancel signal of the work. `None` if the run has ended without that: what still
    /// runs of the work then has no claim any more, either.
    pub async fn lost(&self) -> Option<Lost> {
        let mut state = self.0.state.subscribe();
        // The sender lives in `self`, so the wait cannot fail.
        state.wait_for(|state| !state.is_held()).await.ok().and_then(|state| state.lost)
    }

    /// Saves where the work is, at most 64 KiB, for whoever takes over after a lapse or a release. Renews
    /// the lock as well. Of two saves under way at once the later call wins.
    ///
    /// # Errors
    /// What the server refused, or [`Error::Unavailable`]. The work may go on, unless the claim is lost.
    pub async fn save_checkpoint(&self, data: impl Into<Bytes>) -> Result<(), Error> {
        let sequence = self.0.sequence.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if !self.0.protected {
            return Ok(());
        }
        let patience = Patience { total: self.0.client.timeout(), attempt: self.0.attempt_time() };
        self.0.renew(patience, Some(Checkpoint { sequence, data: data.into() })).await
    }

    pub(crate) fn new(held: &Arc<Held>) -> Self {
        Self(Arc::clone(held))
    }
}

/// What the helper knows of a claim.
#[derive(Debug)]
pub(crate) struct Held {
    client: Client,
    clock: Clock,
    pub namespace: String,
    pub key: String,
    pub claim: v1::Claim,
    /// False for work that runs without a claim.
    pub protected: bool,
    ttl: Duration,
    /// The sequence of the last checkpoint.
    sequence: AtomicU64,
    state: watch::Sender<LockState>,
}

#[derive(Clone, Copy, Debug)]
struct LockState {
    /// When the lock ends on this machine's clock, at the earliest.
    ends: Moment,
    lost: Option<Lost>,
    /// Whether the run has ended, one way or the other.
    over: bool,
}

impl LockState {
    fn new(ends: Moment) -> Self {
        Self { ends, lost: None, over: false }
    }

    fn is_held(self) -> bool {
        self.lost.is_none() && !self.over
    }
}

impl Held {
    /// A claim that came as the answer to a Begin sent at `sent`.
    pub fn new(client: Client, namespace: String, key: String, claim: v1::Claim, sent: Moment) -> Arc<Self> {
        let ttl = duration(claim.lock_ttl.as_ref());
        let ends = sent + duration(claim.waited.as_ref()) + ttl;
        let sequence = AtomicU64::new(claim.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.sequence));
        let clock = client.transport().clock().clone();
        let state = watch::Sender::new(LockState::new(ends));
        let held = Self { client, clock, namespace, key, claim, protected: true, ttl, sequence, state };
        held.look();
        Arc::new(held)
    }

    /// What stands for a claim where there is none.
    pub fn unprotected(client: Client, namespace: String, key: String) -> Arc<Self> {
        let clock = client.transport().clock().clone();
        let state = watch::Sender::new(LockState::new(Moment::default()));
        Arc::new(Self {
            client,
            clock,
            namespace,
            key,
            claim: v1::Claim::default(),
            protected: false,
            ttl: Duration::ZERO,
            sequence: AtomicU64::new(0),
            state,
        })
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Tells the work that the claim is being given back: parts of it may still run elsewhere.
    pub fn let_go(&self) {
        self.state.send_modify(|state| {
            if state.lost != Some(Lost::TakenOver) {
                state.lost = Some(Lost::GivenBack);
            }
        });
    }

    /// Gives the claim back.
    pub async fn release(&self, disposition: Disposition, reason: &str) -> Result<(), Error> {
        let request = ReleaseRequest {
            namespace: self.namespace.clone(),
            key: self.key.clone(),
            fencing_token: self.claim.fencing_token,
            disposition: disposition.into(),
            reason: head(reason, 1_024),
        };
        self.client.release(request).await
    }

    /// Looks at the clock: a lock that has ended by it is lost.
    fn look(&self) {
        if !self.protected {
            return;
        }
        let now = self.clock.now();
        self.state.send_if_modified(|state| {
            let ended = state.is_held() && now >= state.ends;
            if ended {
                state.lost = Some(Lost::LockEnded);
            }
            ended
        });
    }

    async fn renew(&self, patience: Patience, checkpoint: Option<Checkpoint>) -> Result<(), Error> {
        let request = RenewRequest {
            namespace: self.namespace.clone(),
            key: self.key.clone(),
            fencing_token: self.claim.fencing_token,
            checkpoint,
        };
        match self.client.renew_within(patience, request).await {
            Ok(answer) => {
                let ends = answer.sent + duration(answer.message.lock_expires_in.as_ref());
                self.state.send_modify(|state| state.ends = state.ends.max(ends));
                Ok(())
            }
            Err(error) => {
                if error.is_claim_lost() {
                    self.state.send_modify(|state| state.lost = Some(Lost::TakenOver));
                }
                Err(error)
            }
        }
    }

    /// One attempt of a Renew leaves time for another at another server within the TTL.
    fn attempt_time(&self) -> Duration {
        (self.ttl / 4).clamp(Duration::from_millis(250), Duration::from_secs(10))
    }

    /// Renews the lock when about a third of it has passed, for as long as the claim is ours. A lock that
    /// ended by the clock alone is renewed all the same: nobody may have taken over yet.
    async fn keep(&self) {
        let mut next = self.state.borrow().ends - self.ttl + jittered(self.ttl * 2 / 5);
        loop {
            self.sleep_until(next).await;
            let patience = Patience { total: self.ttl / 3, attempt: self.attempt_time() };
            let wait = match self.renew(patience, None).await {
                Ok(()) => jittered(self.ttl * 2 / 5),
                Err(error) if error.is_claim_lost() => return,
                Err(error) => {
                    tracing::debug!(%error, "a renewal failed");
                    self.ttl / 20
                }
            };
            next = self.clock.now() + wait;
        }
    }

    /// Ends the lock on time, whatever its renewals are doing.
    async fn guard(&self) {
        loop {
            self.look();
            let state = *self.state.borrow();
            if !state.is_held() {
                return;
            }
            self.sleep_until(state.ends).await;
        }
    }

    async fn sleep_until(&self, moment: Moment) {
        loop {
            let left = moment.since(self.clock.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(TICK)).await;
        }
    }
}

/// The background tasks of a claim; they end with this.
#[derive(Debug)]
pub(crate) struct Keeper([JoinHandle<()>; 2]);

impl Keeper {
    pub fn start(held: &Arc<Held>) -> Self {
        let (renewed, guarded) = (Arc::clone(held), Arc::clone(held));
        Self([
            tokio::spawn(async move { renewed.keep().await }),
            tokio::spawn(async move { guarded.guard().await }),
        ])
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// Tells who still waits for the loss of a claim that its run is over, when that is dropped.
#[derive(Debug)]
pub(crate) struct Over(pub Arc<Held>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.over = true);
    }
}

/// The first `max_bytes` bytes of `text`, cut between characters.
fn head(text: &str, max_bytes: usize) -> String {
    let mut end = text.len().min(max_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A claim of 10 s, sent at 100 s, that the server had for 3 s before it armed the lock.
    fn held() -> (Arc<Held>, Arc<Mutex<u64>>) {
        let now = Arc::new(Mutex::new(100));
        let read = Arc::clone(&now);
        let clock = Clock::from_fn(move || Moment::from_start(Duration::from_secs(*read.lock().unwrap())));
        let client = Client::builder("127.0.0.1:1").clock(clock).build().unwrap();
        let claim = v1::Claim {
            lock_ttl: Some(crate::wire(Duration::from_secs(10))),
            waited: Some(crate::wire(Duration::from_secs(3))),
            checkpoint: Some(Checkpoint { sequence: 7, data: Bytes::from_static(b"half") }),
            ..v1::Claim::default()
        };
        let sent = Moment::from_start(Duration::from_secs(100));
        (Held::new(client, "n".to_owned(), "k".to_owned(), claim, sent), now)
    }

    #[test]
    fn a_lock_ends_at_sent_plus_waited_plus_ttl() {
        let (held, now) = held();
        let claim = Claim::new(&held);
        *now.lock().unwrap() = 112;
        assert_eq!(claim.is_lost(), None);
        assert_eq!(claim.lock_left(), Duration::from_secs(1));
        *now.lock().unwrap() = 113;
        assert_eq!(claim.is_lost(), Some(Lost::LockEnded));
        assert_eq!(claim.lock_left(), Duration::ZERO);
    }

    #[tokio::test]
    async fn the_cancel_signal_fires_when_the_machine_slept_past_the_lock() {
        let (held, now) = held();
        let claim = Claim::new(&held);
        let _keeper = Keeper::start(&held);
        let signal = tokio::spawn(async move { claim.lost().await });
        tokio::task::yield_now().await;
        assert!(!signal.is_finished());
        *now.lock().unwrap() = 500;
        assert_eq!(signal.await.unwrap(), Some(Lost::LockEnded));
    }

    #[tokio::test]
    async fn a_claim_names_what_it_is_of_also_where_there_is_none() {
        let (held, _now) = held();
        let claim = Claim::new(&held);
        assert_eq!((claim.namespace(), claim.key()), ("n", "k"));

        let client = Client::connect("127.0.0.1:1").unwrap();
        let open = client.once("k").namespace("n").fail_open(Duration::from_millis(10));
        let done = open.run(|claim| async move {
            assert!(!claim.protected());
            Ok(format!("{} {}", claim.namespace(), claim.key()))
        });
        assert_eq!(done.await.unwrap().outcome, "n k".into());
    }

    #[test]
    fn the_checkpoint_of_an_earlier_claim_is_handed_over_and_counted_on_from() {
        let (held, _now) = held();
        assert_eq!(Claim::new(&held).checkpoint().map(|data| &data[..]), Some(&b"half"[..]));
        assert_eq!(held.sequence.load(Ordering::Relaxed), 7);
    }

    #[test]
    fn reasons_are_cut_between_characters() {
        assert_eq!(head("aöö", 4), "aö");
        assert_eq!(head("short", 1_024), "short");
    }
}
