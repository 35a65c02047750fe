//! The room of a key at one server: calls that arrive together share a read of the store. None is told to wait, or
//! that there is nothing, by a read that was sent before the call arrived: an outcome may have been acknowledged in
//! between, and whoever was told of it may have told the caller.
//!
//! Other servers change the record meanwhile. What this server's own writes leave is told to the room, too; it may
//! end a wait by an outcome, and by nothing else.

use stateright::{Model, Property};

use crate::check::Tell;
use crate::fault::Fault;

/// What is looked at.
#[derive(Clone, Debug)]
pub struct Rooms {
    /// How many calls come.
    pub calls: u8,
    /// How often the record changes.
    pub changes: u8,
    pub fault: Option<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Standing {
    Absent,
    InProgress,
    Completed,
}

/// What stood there after so many changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    standing: Standing,
    changes: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    store: State,
    /// How many reads were sent.
    sent: u8,
    /// The latest one that was answered.
    learned_by: u8,
    /// The read on its way, and what it has found.
    read: Option<Option<State>>,
    calls: Vec<Call>,
    /// A call was told what stood before it arrived.
    told_old_news: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Call {
    ToCome,
    /// `needs`: the first read that may tell it to wait. `arrived`: how many changes there were by then.
    Waiting {
        needs: u8,
        arrived: u8,
    },
    Answered {
        from: u8,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Others change the record: it is claimed, completed, or it expires.
    Change(bool),
    /// The same, by this server, whose room is told.
    Learn,
    Arrive(usize),
    Send,
    Read,
    Answer,
}

impl Model for Rooms {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let store = State { standing: Standing::Absent, changes: 0 };
        let calls = vec![Call::ToCome; self.calls.into()];
        vec![World { store, sent: 0, learned_by: 0, read: None, calls, told_old_news: false }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.store.changes < self.changes {
            actions.push(Action::Change(false));
            match world.store.standing {
                Standing::InProgress => actions.extend([Action::Change(true), Action::Learn]),
                Standing::Absent | Standing::Completed => {}
            }
        }
        // Calls are alike: they come in order.
        actions.extend(world.calls.iter().position(|call| *call == Call::ToCome).map(Action::Arrive));
        let uninformed =
            |call: &Call| matches!(call, Call::Waiting { needs, .. } if *needs > world.learned_by);
        match world.read {
            None if world.calls.iter().any(uninformed) => actions.push(Action::Send),
            None => {}
            Some(None) => actions.push(Action::Read),
            Some(Some(_)) => actions.push(Action::Answer),
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Change(expires) => next.change(expires),
            Action::Learn => {
                next.change(false);
                next.tell(next.store, false);
            }
            Action::Arrive(at) => {
                let joins = self.fault == Some(Fault::ReadSentBeforeArrival) && next.read.is_some();
                let needs = if joins { next.sent } else { next.sent + 1 };
                next.calls[at] = Call::Waiting { needs, arrived: next.store.changes };
            }
            Action::Send => {
                next.sent += 1;
                next.read = Some(None);
            }
            Action::Read => next.read = Some(Some(next.store)),
            Action::Answer => {
                let found = next.read.take().flatten()?;
                next.learned_by = next.sent;
                next.tell(found, true);
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "who is told to wait, or that there is nothing, is told what stood since it came",
                |_, world: &World| !world.told_old_news,
            ),
            Property::sometimes("calls share a read", |_, world: &World| {
                let from = |call: &Call| match call {
                    Call::Answered { from } => Some(*from),
                    Call::ToCome | Call::Waiting { .. } => None,
                };
                let mut reads = world.calls.iter().filter_map(from);
                reads.next().is_some_and(|first| reads.any(|other| other == first))
            }),
            Property::sometimes("who came during a read waits for the next", |_, world: &World| {
                world.read.is_some()
                    && world
                        .calls
                        .iter()
                        .any(|call| matches!(call, Call::Waiting { needs, .. } if *needs > world.sent))
            }),
        ]
    }
}

impl World {
    fn change(&mut self, expires: bool) {
        self.store.changes += 1;
        self.store.standing = match self.store.standing {
            Standing::Absent => Standing::InProgress,
            Standing::InProgress if !expires => Standing::Completed,
            Standing::InProgress | Standing::Completed => Standing::Absent,
        };
    }

    /// Holds what is known against everyone who waits.
    fn tell(&mut self, known: State, by_read: bool) {
        for call in &mut self.calls {
            let Call::Waiting { needs, arrived } = *call else { continue };
            let fresh = by_read && needs <= self.learned_by;
            let outcome = known.standing == Standing::Completed;
            if fresh || (outcome && !by_read) {
                *call = Call::Answered { from: self.learned_by };
                self.told_old_news |= !outcome && known.changes < arrived;
            }
        }
    }
}

impl Tell for Rooms {
    fn tell(&self, world: &World, action: &Action) -> String {
        let mut then = world.clone();
        match action {
            Action::Change(expires) => {
                then.change(*expires);
                format!("elsewhere the record changes: {:?}", then.store.standing)
            }
            Action::Learn => "it completes through this server".to_owned(),
            Action::Arrive(at) => format!("call {} arrives", at + 1),
            Action::Send => "a read is sent".to_owned(),
            Action::Read => format!("the read finds: {:?}", world.store.standing),
            Action::Answer => "the read is answered".to_owned(),
        }
    }
}
