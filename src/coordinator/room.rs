//! The room of one key, as a pure state machine: events in, actions out. All who ask for the key at this
//! server meet here, so that N duplicates cost a few trips to the store. The task around it
//! (`rooms.rs`) only moves messages.
//!
//! - At most one trip (a load, or a swap for one waiter) is under way. What it learns is held against every
//!   waiter in order of arrival.
//! - A trip tells a waiter that it must wait, or that there is nothing, only if it was sent after the waiter
//!   arrived. Those who arrive during a trip share the next one; those who have time to wait, for a record
//!   that is watched and known to be held, need none until their time runs out.
//! - A claim goes to the waiter for whose call the swap was sent, and to nobody else.
//! - When nobody holds the key, the first waiter goes forward; when it ends with anything but a claim, the
//!   next one does.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::waiter::{Knowledge, Turn, Waiter, Wish, turn};
use crate::record::{Change, Command, Decision, Lock, Record, Refusal, Timestamp, View, decide};
use crate::store::{Expected, Loaded, StoreError, Swapped};

/// How often a waiter's swap is tried anew when the store did not do it, or what became of it is unknown.
const SWAP_TRIES: u32 = 3;

/// Names a waiter. Ids grow with arrival.
pub(super) type WaiterId = u64;

/// What happened.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A call arrived. `patient`: it has time to wait.
    Arrive { id: WaiterId, wish: Wish, patient: bool },
    /// A call was dropped.
    Leave(WaiterId),
    /// A call's time to wait ran out.
    Deadline(WaiterId),
    /// The load ended.
    Loaded(Result<Option<Loaded>, StoreError>),
    /// The swap ended.
    Swapped(Result<Swapped, StoreError>),
    /// The watch that was asked for is on, or could not be had.
    Watching(bool),
    /// The record may have changed: the watch, or the slow poll, says so.
    Hint,
    /// A write of this server went through: this is what stands now.
    Learned(Option<Loaded>),
    /// The server shuts down.
    Drain,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action {
    /// Send a load.
    Load,
    /// Send a swap on behalf of a waiter.
    Swap { waiter: WaiterId, expected: Expected, next: Record },
    /// Watch the key.
    StartWatch,
    /// This waiter only waits from here on.
    Seated(WaiterId),
    /// Show a watcher a state.
    Show(WaiterId, View),
    /// Answer a waiter, for good.
    Answer(WaiterId, Answer),
}

/// The last word to a waiter.
#[derive(Debug)]
pub(super) enum Answer {
    /// Its own swap armed this claim. Only a claim that is not resumed was certainly won by it.
    Claim { loaded: Loaded, resumed: bool },
    /// This is what stands.
    Standing(View),
    /// The state machine refuses.
    Refused(Refusal, Option<View>),
    /// The store failed.
    Failed(StoreError),
    /// The server shuts down.
    Draining,
}

#[derive(Clone, Debug)]
enum Trip {
    Load,
    Swap { waiter: WaiterId, expected: Expected, change: Box<Change> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watching {
    Off,
    Starting,
    On,
    /// Tried again at the next hint, which the slow poll gives.
    Failed,
}

/// All who ask for one key at this server.
#[derive(Clone, Debug)]
pub(super) struct Room {
    waiters: BTreeMap<WaiterId, Waiter>,
    trip: Option<Trip>,
    /// How many trips were sent; the number of the one under way.
    sent: u64,
    /// The latest trip that brought the state.
    learned_by: u64,
    /// The newest state known, if any: no record is a state, too.
    known: Option<Option<Loaded>>,
    /// A hint came since the last trip was sent.
    hinted: bool,
    /// A swap failed since the state was last learned: nobody goes forward on it.
    doubtful: bool,
    watching: Watching,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug)]
enum Whose {
    /// That of each waiter.
    Each,
    /// That of one to whom something happened which is nothing to the others. Unless a trip is under way, none of those
    /// needs one: it would have been sent before. A key may have very many waiters, each of whom comes and goes.
    Only(WaiterId),
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            waiters: BTreeMap::new(),
            trip: None,
            sent: 0,
            learned_by: 0,
            known: None,
            hinted: false,
            doubtful: false,
            watching: Watching::Off,
        }
    }

    /// Whether the room can be closed.
    pub(super) fn is_idle(&self) -> bool {
        self.waiters.is_empty() && self.trip.is_none()
    }

    /// Takes an event and says what to do. `now` is only ever written down.
    pub(super) fn on(&mut self, event: Event, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut learned = false;
        let whose = match &event {
            Event::Arrive { id, .. } | Event::Leave(id) | Event::Deadline(id) => Whose::Only(*id),
            _ => Whose::Each,
        };
        match event {
            Event::Arrive { id, wish, patient } => self.arrive(id, wish, patient),
            Event::Leave(id) => {
                self.waiters.remove(&id);
            }
            Event::Deadline(id) => self.deadline(id),
            Event::Loaded(result) => {
                self.trip = None;
                match result {
                    Ok(state) => self.learn_by_trip(state),
                    Err(error) => self.load_failed(&error, &mut actions),
                }
            }
            Event::Swapped(result) => self.swapped(result, &mut actions),
            Event::Watching(on) => {
                self.watching = if on { Watching::On } else { Watching::Failed };
                // Registered; now check, for what changed before.
                self.hinted |= on;
            }
            Event::Hint => self.hint(),
            Event::Learned(state) => learned = self.learn_by_write(state),
            Event::Drain => self.drain(&mut actions),
        }
        self.go_on(whose, learned, now, &mut actions);
        actions
    }

    fn go_on(&mut self, whose: Whose, learned: bool, now: Timestamp, actions: &mut Vec<Action>) {
        let forward = self.take_turns(whose, learned, now, actions);
        self.next_trip(whose, forward, now, actions);
    }

    fn arrive(&mut self, id: WaiterId, wish: Wish, patient: bool) {
        let needs = self.sent + 1;
        let waiter =
            Waiter { wish, patient, needs, seated: false, failures: 0, unsettled: false, shown: None };
        self.waiters.insert(id, waiter);
    }

    fn deadline(&mut self, id: WaiterId) {
        let forward = self.forward();
        if let Some(waiter) = self.waiters.get_mut(&id) {
            waiter.patient = false;
            // A swap under way for it ends with a claim, or with a read that it may be answered from.
            if forward != Some(id) {
                waiter.needs = self.sent + 1;
            }
        }
    }

    /// The waiter for whom a swap is under way.
    fn forward(&self) -> Option<WaiterId> {
        match &self.trip {
            Some(Trip::Swap { waiter, .. }) => Some(*waiter),
            Some(Trip::Load) | None => None,
        }
    }

    fn learn_by_trip(&mut self, state: Option<Loaded>) {
        self.learned_by = self.sent;
        self.merge(state);
    }

    /// Whether the state was taken over. Nothing tells whether a removal is newer than what is known, nor
    /// whether a write is newer than a removal: then the next load does.
    fn learn_by_write(&mut self, state: Option<Loaded>) -> bool {
        let comparable = state.is_some() && !matches!(self.known, Some(None));
        if comparable {
            self.merge(state);
        } else {
            self.hinted = true;
        }
        comparable
    }

    fn hint(&mut self) {
        self.hinted = true;
        if self.watching == Watching::Failed {
            self.watching = Watching::Off;
        }
    }

    /// Takes over a state unless a newer one is known: an answer may have been overtaken.
    fn merge(&mut self, state: Option<Loaded>) {
        self.doubtful = false;
        if let (Some(Some(known)), Some(new)) = (&self.known, &state) {
            let lapse_known = known.revision == new.revision && known.lock == Lock::Lapsed;
            if known.revision > new.revision || lapse_known {
                return;
            }
        }
        self.known = Some(state);
    }

    fn load_failed(&mut self, error: &StoreError, actions: &mut Vec<Action>) {
        let sent = self.sent;
        let corrupt = matches!(error, StoreError::Corrupt { .. });
        self.waiters.retain(|id, waiter| {
            let rides_it_out = waiter.seated && waiter.patient && !corrupt;
            let stays = rides_it_out || waiter.needs > sent;
            if !stays {
                actions.push(Action::Answer(*id, waiter.failed(error.clone())));
            }
            stays
        });
    }

    fn swapped(&mut self, result: Result<Swapped, StoreError>, actions: &mut Vec<Action>) {
        let Some(Trip::Swap { waiter: id, change, .. }) = self.trip.take() else {
            return;
        };
        match result {
            Ok(Swapped::Done(revision)) => {
                let resumed = matches!(*change, Change::Resume(_));
                let doubt = matches!(*change, Change::Doubt(_));
                let state = change.into_next().map(|record| Loaded {
                    record: Arc::new(record.written_at(revision.0)),
                    revision,
                    lock: Lock::Held,
                });
                self.learn_by_trip(state.clone());
                self.waiters.entry(id).and_modify(|waiter| waiter.unsettled |= doubt);
                if let Some(loaded) = state.filter(|_| !doubt) {
                    self.waiters.remove(&id);
                    // Sent even if the waiter left: whoever drops the claim gives it back.
                    actions.push(Action::Answer(id, Answer::Claim { loaded, resumed }));
                }
            }
            Ok(Swapped::Conflict(current)) => self.learn_by_trip(current),
            Err(error) => self.swap_failed(id, error, actions),
        }
    }

    /// Nothing is concluded from a swap that failed: the next turns rest on a new load. Else those behind this
    /// waiter would each fail the same way, one after the other, while who came to read waits for all of them.
    fn swap_failed(&mut self, id: WaiterId, error: StoreError, actions: &mut Vec<Action>) {
        (self.doubtful, self.hinted) = (true, true);
        let settled_by_load = matches!(error, StoreError::NotApplied(_) | StoreError::OutcomeUnknown(_));
        let next_trip = self.sent + 1;
        let Some(waiter) = self.waiters.get_mut(&id) else {
            return;
        };
        waiter.failures += 1;
        waiter.unsettled |= matches!(error, StoreError::OutcomeUnknown(_));
        if settled_by_load && waiter.failures < SWAP_TRIES {
            waiter.needs = next_trip;
            waiter.seated = false;
        } else {
            actions.push(Action::Answer(id, waiter.failed(error)));
            self.waiters.remove(&id);
        }
    }

    fn drain(&mut self, actions: &mut Vec<Action>) {
        let forward = self.forward();
        self.waiters.retain(|id, waiter| {
            let stays = forward == Some(*id);
            waiter.patient = false;
            if !stays {
                actions.push(Action::Answer(*id, Answer::Draining));
            }
            stays
        });
    }

    /// Holds what is known against waiters in order of arrival. Returns the first who may write.
    fn take_turns(
        &mut self,
        whose: Whose,
        learned: bool,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) -> Option<(WaiterId, Expected, Change)> {
        let known = self.known.clone()?;
        let busy = self.trip.is_some() || self.doubtful;
        let (learned_by, in_flight) = (self.learned_by, self.forward());
        let watched = self.watching == Watching::On;
        let knowledge = Knowledge { state: known.as_ref(), learned_by, learned, watched, now };
        let mut forward = None;
        let mut stays = |id: &WaiterId, waiter: &mut Waiter| {
            if in_flight == Some(*id) {
                return true;
            }
            match turn(waiter, &knowledge) {
                // Who rested on what others knew needs a load of its own once that is over.
                Turn::Stay => waiter.seated &= waiter.needs <= learned_by,
                Turn::Sit => {
                    if !waiter.seated {
                        waiter.seated = true;
                        actions.push(Action::Seated(*id));
                    }
                }
                Turn::Show(view) => {
                    waiter.shown = known.as_ref().map(|loaded| (loaded.revision, loaded.lock));
                    if !waiter.seated {
                        waiter.seated = true;
                        actions.push(Action::Seated(*id));
                    }
                    actions.push(Action::Show(*id, view));
                }
                Turn::Forward(change) if !busy && forward.is_none() => {
                    forward = Some((*id, Expected::of(known.as_ref()), change));
                }
                Turn::Forward(_) => {}
                Turn::End(answer) => {
                    actions.push(Action::Answer(*id, answer));
                    return false;
                }
            }
            true
        };
        match whose {
            Whose::Each => self.waiters.retain(stays),
            Whose::Only(id) => {
                if self.waiters.get_mut(&id).is_some_and(|waiter| !stays(&id, waiter)) {
                    self.waiters.remove(&id);
                }
            }
        }
        forward
    }

    /// What the waiters would still have done, were each asked again: nothing, as long as no trip is under way.
    #[cfg(test)]
    pub(super) fn left_undone(&self, now: Timestamp) -> Vec<Action> {
        let (mut room, mut actions) = (self.clone(), Vec::new());
        if room.trip.is_none() {
            room.go_on(Whose::Each, false, now, &mut actions);
        }
        actions
    }

    fn next_trip(
        &mut self,
        whose: Whose,
        forward: Option<(WaiterId, Expected, Change)>,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let waiters = match whose {
            Whose::Each => self.waiters.range(..),
            Whose::Only(id) => self.waiters.range(id..=id),
        };
        let waits = waiters.clone().any(|(_, waiter)| waiter.seated && waiter.patient);
        if waits && self.watching == Watching::Off {
            self.watching = Watching::Starting;
            actions.push(Action::StartWatch);
        }
        if self.trip.is_some() || self.waiters.is_empty() {
            return;
        }
        let rests = |waiter: &Waiter| waiter.needs <= self.learned_by || (waiter.seated && waiter.patient);
        let uninformed = waiters.clone().find(|(_, waiter)| !rests(waiter));
        let trip = match (forward, uninformed) {
            (Some((waiter, expected, change)), _) => {
                Some(Trip::Swap { waiter, expected, change: Box::new(change) })
            }
            // Nothing is known yet: a Begin guesses that there is no record, and learns if there is one.
            (None, Some((id, Waiter { wish: Wish::Begin(begin), .. }))) if self.sent == 0 => {
                blind_claim(*id, begin, now)
            }
            (None, Some(_)) => Some(Trip::Load),
            (None, None) => self.hinted.then_some(Trip::Load),
        };
        if let Some(trip) = trip {
            self.sent += 1;
            self.hinted = false;
            actions.push(match &trip {
                Trip::Load => Action::Load,
                Trip::Swap { waiter, expected, change } => match Change::clone(change).into_next() {
                    Some(next) => Action::Swap { waiter: *waiter, expected: *expected, next },
                    None => Action::Load,
                },
            });
            self.trip = Some(trip);
        }
    }
}

fn blind_claim(waiter: WaiterId, begin: &Command, now: Timestamp) -> Option<Trip> {
    match decide(begin, None, now) {
        Decision::Write(change) => {
            Some(Trip::Swap { waiter, expected: Expected::Absent, change: Box::new(change) })
        }
        Decision::Unchanged | Decision::Wait | Decision::Refuse(_) => Some(Trip::Load),
    }
}
