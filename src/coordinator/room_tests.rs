//! The room, explored exhaustively: every order of arrivals, answers of the store, lost answers, writes by
//! others, lapses, hints, hang-ups and deadlines up to a depth, with what must hold checked on every path.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::room::{Action, Answer, Event, Room, WaiterId};
use super::waiter::Wish;
use crate::record::{
    Begin, Change, Command, Decision, Disposition, Lock, OnLapse, Outcome, OutcomeResult, Record, Refusal,
    RequestId, Timestamp, View, decide,
};
use crate::store::{Expected, Loaded, Revision, StoreError, Swapped};

const NOW: Timestamp = Timestamp::from_micros(1);
const DEPTH: usize = 8;

/// Who comes, in this order. The third is the first caller's retry.
fn cast(id: WaiterId) -> Option<(Wish, bool)> {
    let begin = |request| {
        Wish::begin(Begin {
            request_id: RequestId([request; 16]),
            owner: String::new(),
            fingerprint: None,
            lock_ttl: Duration::from_secs(10),
            retention: Duration::from_secs(60),
            on_lapse: OnLapse::TakeOver,
        })
    };
    match id {
        0 => Some((begin(1), true)),
        1 => Some((begin(2), true)),
        2 => Some((begin(1), false)),
        3 => Some((Wish::Lookup, false)),
        _ => None,
    }
}

fn outcome() -> Arc<Outcome> {
    let result = OutcomeResult::Response(Bytes::from_static(b"done"));
    Arc::new(Outcome { result, content_type: String::new(), metadata: BTreeMap::new() })
}

/// A step of the world around the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Arrive,
    Answer,
    LoseAnswer,
    FailBefore,
    CompleteElsewhere,
    CompleteHere,
    ReleaseHere,
    Lapse,
    Hint,
    Leave,
    Deadline,
    Drain,
}

const STEPS: [Step; 12] = [
    Step::Arrive,
    Step::Answer,
    Step::LoseAnswer,
    Step::FailBefore,
    Step::CompleteElsewhere,
    Step::CompleteHere,
    Step::ReleaseHere,
    Step::Lapse,
    Step::Hint,
    Step::Leave,
    Step::Deadline,
    Step::Drain,
];

#[derive(Clone)]
enum Sent {
    Load,
    Swap(Expected, Box<Record>),
}

/// A store with one record, a room, and what the callers were told.
#[derive(Clone)]
struct World {
    room: Room,
    stored: Option<Loaded>,
    revision: u64,
    /// Every state the store was in, as a reader is told of it.
    history: Vec<Option<View>>,
    sent: Option<Sent>,
    /// What the store answered, where it does so at once and the answer is slow.
    early: Option<Event>,
    /// Whether the store acts when a trip is sent, rather than when its answer arrives.
    acts_at_once: bool,
    watching: bool,
    /// Whether the store changed while watched, and no hint of it was given yet.
    hint_due: bool,
    came: WaiterId,
    /// The waiters who are neither answered nor gone, and how long the history was when they came.
    waiting: BTreeMap<WaiterId, usize>,
    claims: BTreeSet<Revision>,
    /// Whether the server shuts down: then nobody comes any more.
    draining: bool,
}

impl World {
    fn new(acts_at_once: bool) -> Self {
        Self {
            room: Room::new(),
            early: None,
            acts_at_once,
            hint_due: false,
            stored: None,
            revision: 0,
            history: vec![None],
            sent: None,
            watching: false,
            came: 0,
            waiting: BTreeMap::new(),
            claims: BTreeSet::new(),
            draining: false,
        }
    }

    fn write(&mut self, next: Record) -> Revision {
        self.revision += 1;
        let revision = Revision(self.revision);
        let record = Arc::new(next.written_at(self.revision));
        self.stored = Some(Loaded { record, revision, lock: Lock::Held });
        self.note();
        revision
    }

    fn note(&mut self) {
        let view = self.stored.as_ref().map(|loaded| View::of(&loaded.record, loaded.lock, NOW));
        self.history.push(view);
        self.hint_due = self.watching;
    }

    /// Applies what was sent, as the store would.
    fn apply(&mut self, sent: Sent) -> Event {
        match sent {
            Sent::Load => Event::Loaded(Ok(self.stored.clone())),
            Sent::Swap(expected, next) => {
                let swapped = if Expected::of(self.stored.as_ref()) == expected {
                    Swapped::Done(self.write(*next))
                } else {
                    Swapped::Conflict(self.stored.clone())
                };
                Event::Swapped(Ok(swapped))
            }
        }
    }

    fn by_holder(&mut self, command: impl FnOnce(&Loaded) -> Command) -> bool {
        let Some(loaded) = self.stored.clone() else { return false };
        match decide(&command(&loaded), Some(loaded.seen()), NOW) {
            Decision::Write(Change::Put(next)) => {
                self.write(next);
                true
            }
            _ => false,
        }
    }

    fn complete(&mut self) -> bool {
        self.by_holder(|held| Command::Complete {
            token: held.record.fencing_token,
            outcome: outcome(),
            retention: None,
        })
    }

    /// Takes a step; false if it cannot be taken here.
    fn take(&mut self, step: Step) -> bool {
        match step {
            Step::Arrive => {
                let Some((wish, patient)) = cast(self.came).filter(|_| !self.draining) else { return false };
                let id = self.came;
                self.came += 1;
                self.waiting.insert(id, self.history.len());
                self.tell(Event::Arrive { id, wish, patient });
            }
            Step::Answer | Step::LoseAnswer | Step::FailBefore => return self.answer(step),
            Step::CompleteElsewhere => return self.complete(),
            Step::CompleteHere => {
                if !self.complete() {
                    return false;
                }
                self.tell(Event::Learned(self.stored.clone()));
            }
            Step::ReleaseHere => {
                let release = |held: &Loaded| Command::Release {
                    token: held.record.fencing_token,
                    disposition: Disposition::Unreceived,
                    reason: String::new(),
                };
                if !self.by_holder(release) {
                    return false;
                }
                self.tell(Event::Learned(self.stored.clone()));
            }
            Step::Lapse => {
                let Some(loaded) = &mut self.stored else { return false };
                if loaded.record.lock_ttl().is_none() || loaded.lock == Lock::Lapsed {
                    return false;
                }
                loaded.lock = Lock::Lapsed;
                self.note();
            }
            Step::Hint => {
                if !std::mem::take(&mut self.hint_due) {
                    return false;
                }
                self.tell(Event::Hint);
            }
            Step::Leave | Step::Deadline => {
                let Some((&id, _)) = self.waiting.first_key_value() else { return false };
                if step == Step::Leave {
                    self.waiting.remove(&id);
                    self.tell(Event::Leave(id));
                } else {
                    self.tell(Event::Deadline(id));
                }
            }
            Step::Drain => {
                if std::mem::replace(&mut self.draining, true) {
                    return false;
                }
                self.tell(Event::Drain);
            }
        }
        true
    }

    fn answer(&mut self, step: Step) -> bool {
        let swap = matches!(self.sent, Some(Sent::Swap(..)));
        if step == Step::FailBefore && swap && self.early.is_some() {
            return false;
        }
        let Some(sent) = self.sent.take() else { return false };
        let early = self.early.take();
        let lost = StoreError::OutcomeUnknown(String::new());
        let event = match step {
            Step::Answer => early.unwrap_or_else(|| self.apply(sent)),
            Step::LoseAnswer if swap => {
                early.unwrap_or_else(|| self.apply(sent));
                Event::Swapped(Err(lost))
            }
            _ if swap => Event::Swapped(Err(StoreError::NotApplied(String::new()))),
            _ => {
                // What the load would have told, the slow poll asks for again.
                self.hint_due = true;
                Event::Loaded(Err(StoreError::NotApplied(String::new())))
            }
        };
        self.tell(event);
        true
    }

    fn tell(&mut self, event: Event) {
        let actions = self.room.on(event, NOW);
        let undone = self.room.left_undone(NOW);
        assert!(undone.is_empty(), "{undone:?} after {actions:?}");
        for action in actions {
            match action {
                Action::Load => self.send(Sent::Load),
                Action::Swap { expected, next, .. } => self.send(Sent::Swap(expected, Box::new(next))),
                Action::StartWatch => {
                    self.watching = true;
                    self.tell(Event::Watching(true));
                }
                Action::Seated(_) | Action::Show(..) => {}
                Action::Answer(id, answer) => self.answered(id, answer),
            }
        }
    }

    fn send(&mut self, sent: Sent) {
        if self.acts_at_once {
            self.early = Some(self.apply(sent.clone()));
        }
        assert!(self.sent.replace(sent).is_none(), "two trips at once");
    }

    fn answered(&mut self, id: WaiterId, answer: Answer) {
        let came = self.waiting.remove(&id);
        let standing = match answer {
            Answer::Claim { loaded, .. } => {
                // Given back by whoever drops it, if the waiter is gone.
                assert!(self.claims.insert(loaded.revision), "one write armed two claims");
                let Some((Wish::Begin(begin), _)) = cast(id) else { panic!("a claim for a reader") };
                let Command::Begin(begin) = &*begin else { panic!("not a Begin") };
                assert_eq!(begin.request_id, loaded.record.request_id, "somebody else's claim");
                return;
            }
            Answer::Draining => {
                assert!(came.is_some() && self.draining, "sent away by a server that stays");
                return;
            }
            Answer::Standing(View::Completed { .. }) | Answer::Failed(_) => return,
            Answer::Standing(view) => Some(view),
            Answer::Refused(refusal, _) => {
                assert_eq!(refusal, Refusal::NotFound);
                None
            }
        };
        // What the caller was told was so at some time after it came.
        let came = came.expect("answered twice, or after it left");
        let lived = &self.history[came - 1..];
        let told = lived.contains(&standing);
        assert!(told, "a caller was told of a state that was over when it came");
    }

    /// From here on all goes well: everybody must be answered.
    fn heal(mut self, path: &[Step]) {
        for round in 0..40 {
            while self.take(Step::Answer) {}
            let Some((&id, _)) = self.waiting.first_key_value() else { return };
            // No slow poll here: the hints of a watch that works are enough.
            while self.take(Step::Hint) || self.take(Step::Answer) {}
            if self.waiting.contains_key(&id) {
                assert!(self.waiting_is_right(), "somebody waits for nothing after {path:?}, round {round}");
                self.tell(Event::Deadline(id));
            }
        }
        panic!("somebody was never answered after {path:?}");
    }

    /// With no trip under way and all hints given, patience is due only while somebody holds the key.
    fn waiting_is_right(&self) -> bool {
        self.stored
            .as_ref()
            .is_some_and(|loaded| loaded.lock == Lock::Held && loaded.record.lock_ttl().is_some())
    }
}

fn explore(world: &World, path: &mut Vec<Step>, paths: &mut u64) {
    if path.len() == DEPTH {
        *paths += 1;
        world.clone().heal(path);
        return;
    }
    for step in STEPS {
        let mut next = world.clone();
        path.push(step);
        if next.take(step) {
            explore(&next, path, paths);
        }
        path.pop();
    }
}

#[test]
fn every_order_of_events_answers_everybody_and_shares_no_claim() {
    let mut paths = 0;
    for acts_at_once in [false, true] {
        explore(&World::new(acts_at_once), &mut Vec::new(), &mut paths);
    }
    println!("{paths} paths of {DEPTH} steps");
    assert!(paths > 1_000_000, "the exploration ended early: {paths} paths");
}

/// A store that stopped answering costs a waiter of a free key one trip, and not one for each in front of it.
#[test]
fn after_a_swap_that_failed_the_next_trip_is_a_load_whoever_waits() {
    let mut room = Room::new();
    let mut tell = |event| room.on(event, NOW);
    let begin = |id| {
        let (wish, _) = cast(id).unwrap();
        Event::Arrive { id, wish, patient: true }
    };
    let (Wish::Begin(theirs), _) = cast(1).unwrap() else { panic!("not a Begin") };
    let Command::Begin(theirs) = &*theirs else { panic!("not a Begin") };
    let theirs = Command::Begin(Begin { request_id: RequestId([9; 16]), ..theirs.clone() });
    let Decision::Write(change) = decide(&theirs, None, NOW) else { panic!("not a claim") };
    let record = Arc::new(change.into_next().unwrap().written_at(7));
    let held = Loaded { record, revision: Revision(7), lock: Lock::Held };
    tell(begin(0));
    tell(begin(1));
    tell(Event::Swapped(Ok(Swapped::Conflict(Some(held.clone())))));
    tell(Event::Loaded(Ok(Some(held.clone()))));
    tell(Event::Watching(true));
    let lapsed = Loaded { lock: Lock::Lapsed, ..held };
    let actions = tell(Event::Loaded(Ok(Some(lapsed.clone()))));
    assert!(matches!(actions[..], [Action::Swap { .. }]), "{actions:?}");
    tell(Event::Arrive { id: 3, wish: Wish::Lookup, patient: false });
    let actions = tell(Event::Swapped(Err(StoreError::OutcomeUnknown(String::new()))));
    assert!(matches!(actions[..], [Action::Load]), "{actions:?}");
    let actions = tell(Event::Loaded(Err(StoreError::NotApplied(String::new()))));
    assert!(
        matches!(actions[..], [Action::Answer(0, Answer::Failed(_)), Action::Answer(3, Answer::Failed(_))]),
        "{actions:?}"
    );
    // The other rides it out, and goes forward once the store is back.
    let actions = tell(Event::Hint);
    assert!(matches!(actions[..], [Action::Load]), "{actions:?}");
    let actions = tell(Event::Loaded(Ok(Some(lapsed))));
    assert!(matches!(actions[..], [Action::Swap { .. }]), "{actions:?}");
}

/// It wrote the lapse down, and its fingerprint with it.
#[test]
fn who_wrote_a_lapse_down_is_not_told_that_nothing_was_written() {
    let mut room = Room::new();
    let mut tell = |event| room.on(event, NOW);
    let (Wish::Begin(theirs), _) = cast(1).unwrap() else { panic!("not a Begin") };
    let Command::Begin(theirs) = &*theirs else { panic!("not a Begin") };
    let theirs = Begin { request_id: RequestId([9; 16]), on_lapse: OnLapse::Hold, ..theirs.clone() };
    let Decision::Write(change) = decide(&Command::Begin(theirs), None, NOW) else { panic!("not a claim") };
    let record = Arc::new(change.into_next().unwrap().written_at(7));
    let lapsed = Loaded { record, revision: Revision(7), lock: Lock::Lapsed };
    tell(Event::Arrive { id: 0, wish: cast(0).unwrap().0, patient: true });
    let actions = tell(Event::Swapped(Ok(Swapped::Conflict(Some(lapsed)))));
    assert!(matches!(actions[..], [Action::Swap { .. }]), "{actions:?}");
    tell(Event::Swapped(Ok(Swapped::Done(Revision(8)))));
    let actions = tell(Event::Deadline(0));
    assert!(matches!(actions[..], [Action::Load]), "{actions:?}");
    let actions = tell(Event::Loaded(Err(StoreError::NotApplied(String::new()))));
    let told = matches!(actions[..], [Action::Answer(0, Answer::Failed(StoreError::OutcomeUnknown(_)))]);
    assert!(told, "{actions:?}");
}
