//! Watches that go on after their stream is lost. etcd-client never resumes one, so each stream has a
//! supervisor: it opens the stream anew and asks for what came after the last revision that it heard of.
//! Where etcd has already compacted that away, it begins at the present and hints that anything may have
//! happened.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use etcd_client::{Event, EventType, KeyValue, WatchOptions, WatchRequestSender, WatchResponse, WatchStream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::call_error::{CallError, classify};
use super::client::EtcdClient;
use super::keyspace::Keyspace;
use super::lapses::Lapses;
use crate::record::RecordKey;
use crate::store::hub::Hub;
use crate::telemetry::metrics::{ETCD_WATCH_COMPACTIONS, ETCD_WATCH_RESUMES};

/// How long to wait before a lost stream is opened again: at first, and at most.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// The end of any lock lease.
    Sentinels,
    /// A record.
    Record(RecordKey),
}

/// Where what is heard goes.
#[derive(Clone)]
pub(super) struct Hints {
    pub(super) keyspace: Keyspace,
    pub(super) hub: Hub,
    pub(super) lapses: Lapses,
}

impl Hints {
    fn name(&self, subject: &Subject) -> String {
        match subject {
            Subject::Sentinels => self.keyspace.sentinels(),
            Subject::Record(key) => self.keyspace.record(key),
        }
    }

    fn options(subject: &Subject) -> WatchOptions {
        let options = WatchOptions::new().with_progress_notify().with_fragment();
        match subject {
            Subject::Sentinels => options.with_prefix(),
            Subject::Record(_) => options,
        }
    }

    fn heard(&self, subject: &Subject, event: &Event) {
        match subject {
            Subject::Sentinels if event.event_type() == EventType::Delete => {
                if let Some(lease) = event.kv().and_then(|it| self.keyspace.lease_of(it.key())) {
                    self.lapses.gone(lease);
                }
            }
            Subject::Sentinels => {}
            Subject::Record(key) => self.hub.changed(key),
        }
    }

    fn missed(&self, subject: &Subject) {
        match subject {
            Subject::Sentinels => self.hub.all_changed(),
            Subject::Record(key) => self.hub.changed(key),
        }
    }
}

enum Command {
    Watch(Subject, oneshot::Sender<()>),
    Unwatch(Subject),
}

/// A stream of watches. It ends when the last clone of this is dropped.
#[derive(Clone)]
pub(super) struct Watcher {
    commands: mpsc::UnboundedSender<Command>,
}

impl Watcher {
    /// Starts the supervisor. There is no stream until something is watched.
    pub(super) fn start(client: EtcdClient, hints: Hints) -> Self {
        // Shown before there is one.
        for resumed in [ETCD_WATCH_RESUMES, ETCD_WATCH_COMPACTIONS] {
            metrics::counter!(resumed).increment(0);
        }
        let (commands, orders) = mpsc::unbounded_channel();
        let watches = Watches { hints, watched: BTreeMap::new(), by_id: HashMap::new(), last_id: 0 };
        let supervisor = Supervisor { client, orders, watches, outbox: VecDeque::new() };
        tokio::spawn(supervisor.run());
        Self { commands }
    }

    /// Watches a subject, until [`Watcher::unwatch`] was called as often as this. The answer comes when
    /// etcd has confirmed the watch.
    pub(super) fn watch(&self, subject: Subject) -> oneshot::Receiver<()> {
        let (ready, confirmed) = oneshot::channel();
        // Without a supervisor, the sender is dropped and the receiver errs.
        let _ = self.commands.send(Command::Watch(subject, ready));
        confirmed
    }

    /// Ends what one call of [`Watcher::watch`] began.
    pub(super) fn unwatch(&self, subject: Subject) {
        let _ = self.commands.send(Command::Unwatch(subject));
    }
}

/// A request on its way to etcd.
#[derive(Clone)]
enum Request {
    Create(String, WatchOptions),
    Cancel(i64),
}

/// Why a stream ended.
enum Ended {
    /// Nobody wants it any more.
    Unwanted,
    /// It broke.
    Lost(CallError),
}

struct Supervisor {
    client: EtcdClient,
    orders: mpsc::UnboundedReceiver<Command>,
    watches: Watches,
    outbox: VecDeque<Request>,
}

impl Supervisor {
    async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        loop {
            while self.watches.watched.is_empty() {
                let Some(command) = self.orders.recv().await else { return };
                self.watches.obey(command);
            }
            let lost = match self.open().await {
                Ok((stream, gone)) => {
                    if pause > PAUSE_MIN {
                        tracing::info!("a watch on etcd is resumed");
                    }
                    match self.serve(stream, gone).await {
                        Ended::Unwanted => return,
                        // What was refused once is refused again.
                        Ended::Lost(lost @ CallError::Refused(_)) => lost,
                        Ended::Lost(lost) => {
                            pause = PAUSE_MIN;
                            lost
                        }
                    }
                }
                Err(lost) => lost,
            };
            if self.orders.is_closed() {
                return;
            }
            if lost == CallError::TooLarge {
                self.watches.give_up_history();
            }
            metrics::counter!(ETCD_WATCH_RESUMES).increment(1);
            // Until it is back, once is enough.
            if pause == PAUSE_MIN {
                tracing::warn!(error = lost.into_text(), "a watch on etcd was lost and is being resumed");
            } else {
                tracing::debug!(error = lost.into_text(), "a watch on etcd is still lost");
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Opens a stream that asks for all that is watched.
    async fn open(&mut self) -> Result<(WatchStream, CancellationToken), CallError> {
        self.outbox = self.watches.create_all();
        match self.outbox.pop_front() {
            Some(Request::Create(name, options)) => self.client.watch(name, options).await,
            Some(Request::Cancel(_)) | None => Err(CallError::Refused("nothing is watched".to_owned())),
        }
    }

    async fn serve(&mut self, stream: WatchStream, gone: CancellationToken) -> Ended {
        let (mut requests, mut responses) = stream.split();
        loop {
            // Requests go out while answers come in, or both sides could wait for each other.
            tokio::select! {
                biased;
                () = gone.cancelled() => {
                    return Ended::Lost(CallError::Unreachable("its endpoint was given up".to_owned()));
                }
                sent = send(&mut requests, self.outbox.front().cloned()), if !self.outbox.is_empty() => {
                    if let Err(error) = sent {
                        return Ended::Lost(classify(error));
                    }
                    self.outbox.pop_front();
                }
                response = responses.message() => match response {
                    Ok(Some(response)) => match self.watches.hear(&response) {
                        Ok(again) => self.outbox.extend(again),
                        Err(lost) => return Ended::Lost(lost),
                    },
                    Ok(None) => return Ended::Lost(CallError::Unknown("etcd ended the stream".to_owned())),
                    Err(error) => return Ended::Lost(classify(error)),
                },
                command = self.orders.recv() => match command {
                    Some(command) => self.outbox.extend(self.watches.obey(command)),
                    None => return Ended::Unwanted,
                },
            }
        }
    }
}

async fn send(requests: &mut WatchRequestSender, next: Option<Request>) -> Result<(), etcd_client::Error> {
    match next {
        Some(Request::Create(name, options)) => requests.watch(name, Some(options)).await,
        Some(Request::Cancel(id)) => requests.cancel(id).await,
        None => Ok(()),
    }
}

/// What is watched on a stream, and how far it was heard.
struct Watches {
    hints: Hints,
    watched: BTreeMap<Subject, Watched>,
    by_id: HashMap<i64, Subject>,
    last_id: i64,
}

struct Watched {
    /// How many want it.
    watchers: usize,
    /// Its id on the stream; never used again.
    id: i64,
    /// The first revision not yet heard of; 0: the present one.
    resume_at: i64,
    /// Whether etcd confirmed it on this stream.
    live: bool,
    /// Whether something may have been missed before it goes live.
    missed: bool,
    /// Who waits for it to go live.
    waiting: Vec<oneshot::Sender<()>>,
}

impl Watches {
    fn obey(&mut self, command: Command) -> Option<Request> {
        match command {
            Command::Watch(subject, ready) => {
                if let Some(watched) = self.watched.get_mut(&subject) {
                    watched.watchers += 1;
                    if watched.live {
                        let _ = ready.send(());
                    } else {
                        watched.waiting.push(ready);
                    }
                    return None;
                }
                let watched = Watched {
                    watchers: 1,
                    id: 0,
                    resume_at: 0,
                    live: false,
                    missed: false,
                    waiting: vec![ready],
                };
                self.watched.insert(subject.clone(), watched);
                self.create(&subject)
            }
            Command::Unwatch(subject) => {
                let watched = self.watched.get_mut(&subject)?;
                watched.watchers -= 1;
                if watched.watchers > 0 {
                    return None;
                }
                let id = self.watched.remove(&subject)?.id;
                self.by_id.remove(&id)?;
                Some(Request::Cancel(id))
            }
        }
    }

    /// Asks for all that is watched, on a new stream.
    fn create_all(&mut self) -> VecDeque<Request> {
        self.by_id.clear();
        let subjects: Vec<Subject> = self.watched.keys().cloned().collect();
        subjects.iter().filter_map(|subject| self.create(subject)).collect()
    }

    fn create(&mut self, subject: &Subject) -> Option<Request> {
        let watched = self.watched.get_mut(subject)?;
        self.last_id += 1;
        watched.id = self.last_id;
        watched.live = false;
        self.by_id.insert(watched.id, subject.clone());
        let options = Hints::options(subject).with_watch_id(watched.id);
        Some(Request::Create(self.hints.name(subject), options.with_start_revision(watched.resume_at)))
    }

    /// Begins at the present, on the next stream.
    fn give_up_history(&mut self) {
        for watched in self.watched.values_mut() {
            (watched.missed, watched.resume_at) = (true, 0);
        }
    }

    fn hear(&mut self, response: &WatchResponse) -> Result<Option<Request>, CallError> {
        let refused = || Err(CallError::Refused(format!("etcd ended a watch: {}", response.cancel_reason())));
        if response.created() && response.canceled() {
            return refused();
        }
        // Answers to what was cancelled may still be on their way.
        let Some(subject) = self.by_id.get(&response.watch_id()).cloned() else { return Ok(None) };
        let Some(watched) = self.watched.get_mut(&subject) else { return Ok(None) };
        if response.canceled() {
            if response.compact_revision() == 0 {
                return refused();
            }
            metrics::counter!(ETCD_WATCH_COMPACTIONS).increment(1);
            self.by_id.remove(&response.watch_id());
            (watched.missed, watched.resume_at) = (true, 0);
            return Ok(self.create(&subject));
        }
        let next_revision = response.header().map_or(0, |header| header.revision()) + 1;
        if response.created() {
            watched.live = true;
            if watched.resume_at == 0 {
                watched.resume_at = next_revision;
            }
            if std::mem::take(&mut watched.missed) {
                self.hints.missed(&subject);
            }
            for ready in watched.waiting.drain(..) {
                let _ = ready.send(());
            }
        } else if response.events().is_empty() {
            // A sign that all before this revision was told.
            watched.resume_at = watched.resume_at.max(next_revision);
        }
        for event in response.events() {
            // Not the header's revision, which may be ahead of what this part of the answer tells.
            let revision = event.kv().map_or(0, KeyValue::mod_revision);
            watched.resume_at = watched.resume_at.max(revision + 1);
            self.hints.heard(&subject, event);
        }
        Ok(None)
    }
}
