//! The rooms of a server, one per key with callers, and the task around each: it moves messages between the
//! callers, the store and the pure [`Room`].

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::claimed::Claimed;
use super::meters::Meters;
use super::room::{Action, Answer, Event, Room, WaiterId};
use super::waiter::Wish;
use super::{Begun, Busy, Error, Inner, Patience};
use crate::clock::{Moment, wall_time};
use crate::record::{RecordKey, View};
use crate::store::{Loaded, Watch};
use crate::telemetry::span;
use crate::telemetry::trace::TraceParent;

/// How long the next read of a room waits at most for the answers of the last one to be taken.
const TAKEN_WITHIN: Duration = Duration::from_millis(100);

/// What a Begin or Lookup is answered with.
pub(super) type Reply = Result<Begun, Error>;

/// The latest state of a watched key, and the last word on it.
pub(super) type LatestView = Option<Result<View, Error>>;

/// The rooms that are open.
#[derive(Default)]
pub(super) struct Rooms {
    /// In order: a drain reaches them the same way each time.
    open: Mutex<BTreeMap<RecordKey, mpsc::UnboundedSender<Message>>>,
    next_waiter: AtomicU64,
    draining: AtomicBool,
}

/// A caller's place in a room. Dropped, it leaves the room.
pub(super) struct Ticket {
    id: WaiterId,
    room: mpsc::UnboundedSender<Message>,
}

enum Message {
    Arrive { id: WaiterId, wish: Wish, patient: bool, seat: Seat },
    Event(Event),
}

/// What the task knows of a waiter.
struct Seat {
    arrived: Moment,
    /// What the call holds while it works; dropped once it only waits.
    busy: Busy,
    /// Where the call stands in its trace.
    place: Option<TraceParent>,
    reply: ReplyTo,
}

/// An answer on its way to its caller: until it is taken it is work, too.
struct Sent {
    reply: Reply,
    _busy: Busy,
    _untaken: Option<TaskTrackerToken>,
}

enum ReplyTo {
    Once(oneshot::Sender<Sent>),
    Views(watch::Sender<LatestView>),
}

impl Ticket {
    /// The call's time to wait ran out.
    fn deadline(&self) {
        // A closed room has answered everybody.
        let _ = self.room.send(Message::Event(Event::Deadline(self.id)));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let _ = self.room.send(Message::Event(Event::Leave(self.id)));
    }
}

impl Rooms {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<RecordKey, mpsc::UnboundedSender<Message>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the room of a key, if there is one, what this server's own write left.
    pub(super) fn learned(&self, key: &RecordKey, state: Option<Loaded>) {
        if let Some(room) = self.lock().get(key) {
            let _ = room.send(Message::Event(Event::Learned(state)));
        }
    }

    /// How many are open.
    pub(super) fn open(&self) -> usize {
        self.lock().len()
    }

    /// Answers all waiters with `Draining`, and lets nobody in any more.
    pub(super) fn drain(&self) {
        let open = self.lock();
        self.draining.store(true, Ordering::Relaxed);
        for room in open.values() {
            let _ = room.send(Message::Event(Event::Drain));
        }
    }
}

/// Enters the room of `key` and waits for the answer; unless the store has in memory that the key is completed, which no
/// room would change.
pub(super) async fn ask(inner: &Arc<Inner>, key: &RecordKey, wish: Wish, patience: Patience) -> Reply {
    let recalled = inner.recall(key).await.map_err(Error::Store)?;
    if let Some(told) = recalled.and_then(|recalled| wish.replay(&recalled, wall_time())) {
        let view = told?;
        inner.meters.replays_of_memory.increment(1);
        return Ok(Begun::Standing(view));
    }
    let (reply, mut answer) = oneshot::channel();
    let patient = patience.until > patience.arrived;
    let (arrived, busy, place) = (patience.arrived, patience.busy, span::place());
    let seat = Seat { arrived, busy, place, reply: ReplyTo::Once(reply) };
    let ticket = enter(inner, key, wish, patient, seat)?;
    let left = patience.until.since(inner.clock.now());
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        () = tokio::time::sleep(left), if patient => {
            ticket.deadline();
            answer.await
        }
    };
    answer.map_or(Err(Error::Fault), |sent| sent.reply)
}

/// Enters the room of `key` as a watcher.
pub(super) fn subscribe(
    inner: &Arc<Inner>,
    key: &RecordKey,
) -> Result<(Ticket, watch::Receiver<LatestView>), Error> {
    let (reply, views) = watch::channel(None);
    let (arrived, place) = (inner.clock.now(), span::place());
    let seat = Seat { arrived, busy: None, place, reply: ReplyTo::Views(reply) };
    Ok((enter(inner, key, Wish::Watch, true, seat)?, views))
}

fn enter(
    inner: &Arc<Inner>,
    key: &RecordKey,
    wish: Wish,
    patient: bool,
    seat: Seat,
) -> Result<Ticket, Error> {
    let id = inner.rooms.next_waiter.fetch_add(1, Ordering::Relaxed);
    let mut message = Message::Arrive { id, wish, patient, seat };
    let mut open = inner.rooms.lock();
    if inner.rooms.draining.load(Ordering::Relaxed) {
        return Err(Error::Draining);
    }
    if let Some(room) = open.get(key) {
        match room.send(message) {
            Ok(()) => return Ok(Ticket { id, room: room.clone() }),
            // Its task has died.
            Err(unsent) => message = unsent.0,
        }
    }
    let (room, messages) = mpsc::unbounded_channel();
    let _ = room.send(message);
    open.insert(key.clone(), room.clone());
    drop(open);
    let task = RoomTask {
        inner: Arc::clone(inner),
        key: key.clone(),
        room: Room::new(),
        messages,
        seats: HashMap::new(),
        trip: None,
        left_busy: Vec::new(),
        untaken: TaskTracker::new(),
        starting: None,
        watch: None,
    };
    inner.tasks.spawn_on(task.run(), &inner.runtime);
    Ok(Ticket { id, room })
}

type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

struct RoomTask {
    inner: Arc<Inner>,
    key: RecordKey,
    room: Room,
    messages: mpsc::UnboundedReceiver<Message>,
    seats: HashMap<WaiterId, Seat>,
    /// The trip to the store under way: when a swap was sent, and what the room is to hear of it.
    trip: Option<(Moment, Pending<Event>)>,
    /// What callers held who left during the trip: it is work all the same, until it ends.
    left_busy: Vec<Busy>,
    /// Counts the outcomes that their callers have not taken. Each read brings a copy, which lives as long as they:
    /// so the next read waits for them, and who comes meanwhile shares it.
    untaken: TaskTracker,
    /// The watch that is being set up.
    starting: Option<Pending<Option<Watch>>>,
    watch: Option<Watch>,
}

impl RoomTask {
    async fn run(mut self) {
        // Only then can it be waited for; it counts on.
        self.untaken.close();
        loop {
            if self.room.is_idle() && self.untaken.is_empty() && self.close() {
                return;
            }
            // A trip that is answered from memory does not wait: others have to come to their turn all the same.
            tokio::task::coop::consume_budget().await;
            if let Some(message) = self.next().await {
                if matches!(message, Message::Event(Event::Loaded(_) | Event::Swapped(_))) {
                    self.hear_who_came();
                }
                self.hear(message);
            }
        }
    }

    /// Hears those who came while a trip was under way, before what it brought: so they all share the next one.
    /// Only those who are there by now, so that its answer does not wait for a flood.
    fn hear_who_came(&mut self) {
        for _ in 0..self.messages.len() {
            if let Ok(message) = self.messages.try_recv() {
                self.hear(message);
            }
        }
    }

    /// Waits for what happens next. Callers come last: a flood of them must not keep the answer of the store,
    /// which they all wait for, from being heard.
    async fn next(&mut self) -> Option<Message> {
        let poll = self.inner.settings.poll;
        let event = tokio::select! {
            biased;
            event = pending(self.trip.as_mut().map(|(_, trip)| trip)) => {
                return Some(Message::Event(event));
            }
            watch = pending(self.starting.as_mut()) => {
                self.starting = None;
                self.watch = watch;
                Event::Watching(self.watch.is_some())
            }
            // Where nothing is untaken the room stays for a message, which comes last.
            () = self.untaken.wait(), if self.room.is_idle() && !self.untaken.is_empty() => return None,
            () = changed(self.watch.as_mut()) => Event::Hint,
            message = self.messages.recv() => return message,
            // A trip has a bound of its own, and what it brings is as good as a hint.
            () = slow_poll(poll), if self.trip.is_none() => Event::Hint,
        };
        Some(Message::Event(event))
    }

    /// Closes the room unless somebody has just come in.
    fn close(&mut self) -> bool {
        let mut open = self.inner.rooms.lock();
        let empty = self.messages.is_empty();
        if empty {
            open.remove(&self.key);
        }
        empty
    }

    fn hear(&mut self, message: Message) {
        let event = match message {
            Message::Arrive { id, wish, patient, seat } => {
                self.seats.insert(id, seat);
                Event::Arrive { id, wish, patient }
            }
            Message::Event(event) => event,
        };
        let mut sent_at = None;
        match &event {
            Event::Leave(id) => {
                if let Some(Seat { busy: busy @ Some(_), .. }) = self.seats.remove(id)
                    && self.trip.is_some()
                {
                    self.left_busy.push(busy);
                }
            }
            Event::Loaded(_) | Event::Swapped(_) => {
                self.left_busy.clear();
                sent_at = self.trip.take().map(|(sent_at, _)| sent_at);
            }
            _ => {}
        }
        for action in self.room.on(event, wall_time()) {
            self.act(action, sent_at);
        }
    }

    fn act(&mut self, action: Action, sent_at: Option<Moment>) {
        match action {
            Action::Load => {
                let (inner, key, places) = (Arc::clone(&self.inner), self.key.clone(), self.places());
                let untaken = self.untaken.clone();
                let trip = Box::pin(async move {
                    if !untaken.is_empty() {
                        let _ = tokio::time::timeout(TAKEN_WITHIN, untaken.wait()).await;
                    }
                    Event::Loaded(inner.load(&key, places).await)
                });
                self.trip = Some((self.inner.clock.now(), trip));
            }
            Action::Swap { waiter, expected, next } => {
                let (inner, key) = (Arc::clone(&self.inner), self.key.clone());
                let place = self.seats.get(&waiter).and_then(|seat| seat.place);
                let trip =
                    Box::pin(
                        async move { Event::Swapped(inner.swap(&key, expected, Some(&next), place).await) },
                    );
                self.trip = Some((self.inner.clock.now(), trip));
            }
            Action::StartWatch => {
                let (inner, key) = (Arc::clone(&self.inner), self.key.clone());
                self.starting = Some(Box::pin(async move { inner.watch(&key).await }));
            }
            Action::Seated(id) => {
                if let Some(seat) = self.seats.get_mut(&id) {
                    seat.busy = None;
                }
            }
            Action::Show(id, view) => {
                if let Some(Seat { reply: ReplyTo::Views(views), .. }) = self.seats.get(&id) {
                    views.send_replace(Some(Ok(view)));
                }
            }
            Action::Answer(id, answer) => self.answer(id, answer, sent_at),
        }
    }

    /// Where those who are here stand in their traces, in order of arrival.
    fn places(&self) -> Vec<TraceParent> {
        if !span::is_on() {
            return Vec::new();
        }
        let mut places: Vec<_> =
            self.seats.iter().filter_map(|(id, seat)| Some((*id, seat.place?))).collect();
        places.sort_unstable_by_key(|(id, _)| *id);
        places.into_iter().map(|(_, place)| place).collect()
    }

    fn answer(&mut self, id: WaiterId, answer: Answer, sent_at: Option<Moment>) {
        let seat = self.seats.remove(&id);
        let replays = matches!(answer, Answer::Standing(View::Completed { .. }));
        let reply = match answer {
            Answer::Claim { loaded, resumed } => {
                self.inner.remember(&self.key, &loaded);
                let arrived = seat.as_ref().map(|seat| seat.arrived);
                // From sending the swap: the lock was armed no earlier.
                let waited =
                    sent_at.zip(arrived).map(|(sent, arrived)| sent.since(arrived)).unwrap_or_default();
                Ok(Begun::Claimed(Claimed::new(&self.inner, &self.key, loaded, waited, resumed)))
            }
            Answer::Standing(view) => Ok(Begun::Standing(view)),
            Answer::Refused(refusal, current) => Err(Error::refused(refusal, current)),
            Answer::Failed(error) => Err(Error::Store(error)),
            Answer::Draining => Err(Error::Draining),
        };
        // A claim that finds nobody here is dropped, and so given back.
        match seat {
            Some(Seat { reply: ReplyTo::Once(waiter), busy, .. }) => {
                let _untaken = replays.then(|| {
                    let Meters { replays_of_store, replays_of_memory, .. } = &self.inner.meters;
                    if sent_at.is_some() { replays_of_store } else { replays_of_memory }.increment(1);
                    self.untaken.token()
                });
                drop(waiter.send(Sent { reply, _busy: busy, _untaken }));
            }
            Some(Seat { reply: ReplyTo::Views(views), .. }) => {
                let last = match reply {
                    Ok(Begun::Standing(view)) => Ok(view),
                    Ok(Begun::Claimed(_)) => return,
                    Err(error) => Err(error),
                };
                views.send_replace(Some(last));
            }
            None => drop(reply),
        }
    }
}

impl Drop for RoomTask {
    /// However the task ends: a dead room must not keep callers out. A room closed in order is out already,
    /// and the key may have another one, whose sender is not closed.
    fn drop(&mut self) {
        self.messages.close();
        let mut open = self.inner.rooms.lock();
        if open.get(&self.key).is_some_and(mpsc::UnboundedSender::is_closed) {
            open.remove(&self.key);
        }
    }
}

/// With jitter, so that rooms that were opened together do not load together for ever.
async fn slow_poll(period: Duration) {
    tokio::time::sleep(period.mul_f64(0.75 + 0.5 * fastrand::f64())).await;
}

async fn pending<T>(future: Option<&mut Pending<T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn changed(watch: Option<&mut Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}
