//! How a run gets its claim, or learns that it cannot have it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::client::{Client, duration, wire};
use crate::clock::Moment;
use crate::error::Error;
use crate::transport::{Answer, Failed, Patience};
use crate::v1::begin_response::Result as Begun;
use crate::v1::{BeginRequest, Disposition, InProgress, ReleaseRequest};

/// The first wait is short, so that a record in doubt is told of soon and a long wait can be shown; each
/// further one doubles, up to the last.
const FIRST_POLL: Duration = Duration::from_secs(1);
const LAST_POLL: Duration = Duration::from_secs(16);

/// The least that one server has to answer before the next one is asked, where the work may come to run without a claim.
const LEAST_SHARE: Duration = Duration::from_millis(100);

pub(crate) type OnWait = Box<dyn FnMut(&InProgress) + Send>;

/// The Begins of one run, all with its request id.
pub(crate) struct Beginning {
    client: Client,
    request: BeginRequest,
    /// Whether a claim may have been given that nobody has heard of.
    unheard: bool,
}

impl Beginning {
    pub fn new(client: Client, request: BeginRequest) -> Self {
        Self { client, request, unheard: false }
    }

    /// The request, once nothing is to be asked any more.
    pub fn into_request(mut self) -> BeginRequest {
        self.unheard = false;
        std::mem::take(&mut self.request)
    }

    /// Asks until the key is ours, has an outcome, or `wait` is over (None: without end). None if no server could be
    /// asked for as long as `fail_open` says, and it says so.
    pub async fn ask(
        &mut self,
        wait: Option<Duration>,
        fail_open: Option<Duration>,
        mut on_wait: Option<OnWait>,
    ) -> Result<Option<Answer<Begun>>, Error> {
        let clock = self.client.transport().clock().clone();
        let until = wait.map(|wait| clock.now() + wait);
        let over = |until: Option<Moment>| until.is_some_and(|until| until <= clock.now());
        if let Some(after) = fail_open {
            match self.ask_for_outage(after).await? {
                Outage::Yes => return Ok(None),
                Outage::No(Some(answer))
                    if !over(until) && matches!(answer.message, Begun::InProgress(_)) => {}
                Outage::No(Some(answer)) => return Ok(Some(*answer)),
                Outage::No(None) => {}
            }
        }
        let mut longest = FIRST_POLL;
        loop {
            let poll = until.map_or(longest, |until| until.since(clock.now()).min(longest));
            let answer = self.ask_once(poll, self.client.patience(poll)).await?;
            let Begun::InProgress(in_progress) = &answer.message else { return Ok(Some(answer)) };
            self.client.rest(answer.sent, poll).await;
            if over(until) {
                return Ok(Some(answer));
            }
            if let Some(told) = &mut on_wait {
                told(in_progress);
            }
            longest = (longest * 2).min(LAST_POLL);
        }
    }

    /// Asks for up to `after`, without a wait: a server that is waiting for the holder is not silent, and must not be
    /// taken for it.
    async fn ask_for_outage(&mut self, after: Duration) -> Result<Outage, Error> {
        let clock = self.client.transport().clock().clone();
        let until = clock.now() + after;
        let mut patience = Patience { total: after, ..self.client.patience(Duration::ZERO) };
        if let servers @ 2.. = self.client.transport().count() {
            // One that hangs is not to take the time of others that would answer. A fifth of its share is for its answer
            // to be late.
            let share = (after / servers).max(LEAST_SHARE);
            patience.attempt = patience.attempt.min(share * 4 / 5);
        }
        match self.ask_once(Duration::ZERO, patience).await {
            Ok(answer) => Ok(Outage::No(Some(Box::new(answer)))),
            Err(failed) if failed.error.is_unavailable() && failed.outage => {
                // It may have ended early, where a server has asked for more time than there is.
                tokio::time::sleep(until.since(clock.now())).await;
                self.client.runs().unprotected.fetch_add(1, Ordering::Relaxed);
                // What follows is not nothing, so a claim that was made is not given back: it lapses.
                self.unheard = false;
                tracing::warn!(error = %failed.error, "running without a claim");
                Ok(Outage::Yes)
            }
            // A server is there: it is asked for as long as without failing open.
            Err(failed) if failed.error.is_unavailable() => Ok(Outage::No(None)),
            Err(failed) => Err(failed.error),
        }
    }

    async fn ask_once(&mut self, poll: Duration, patience: Patience) -> Result<Answer<Begun>, Failed> {
        self.request.wait = Some(wire(poll));
        let before = std::mem::replace(&mut self.unheard, true);
        let answer = self.client.begin_once(&self.request, patience).await;
        // A claim that an earlier attempt was given would have been given again by this answer.
        self.unheard = answer.as_ref().is_err_and(|failed| before || failed.unsettled);
        answer
    }
}

/// Whether no server can be asked; if not, what one has answered.
enum Outage {
    Yes,
    No(Option<Box<Answer<Begun>>>),
}

impl Drop for Beginning {
    /// Gives back a claim that nobody has heard of, as far as it can be told: it would keep the key from others for its
    /// lock TTL, and nothing has run under it.
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.unheard {
            return;
        }
        let (client, mut request) = (self.client.clone(), std::mem::take(&mut self.request));
        let open = client.runs().open.token();
        request.wait = None;
        runtime.spawn(async move {
            let _open = open;
            if let Err(error) = give_back(client, request).await {
                tracing::debug!(%error, "a claim that was given up may be held until it lapses");
            }
        });
    }
}

async fn give_back(client: Client, request: BeginRequest) -> Result<(), Error> {
    let answer = client.begin_once(&request, client.patience(Duration::ZERO)).await?;
    let Begun::Claim(claim) = answer.message else { return Ok(()) };
    tracing::debug!(ttl = ?duration(claim.lock_ttl.as_ref()), "giving back a claim that nobody waits for any more");
    let release = ReleaseRequest {
        namespace: request.namespace,
        key: request.key,
        fencing_token: claim.fencing_token,
        disposition: Disposition::Retry.into(),
        reason: "the caller gave up before it heard of its claim".to_owned(),
    };
    client.release(release).await
}
