//! The cache of replays that a server may have (DESIGN, section 9; there is none yet). Here time counts.
//!
//! - It keeps completed records only, each with the revision at which it was read, and serves one only before it
//!   expires as announced. The store keeps a record for a margin longer, which the clocks of servers may differ by.
//! - An operator's Delete moves a marker, in the same transaction. A server reads the marker now and then, purges
//!   what is older, refuses what is older when it would come in later, and serves only for so long after it *sent*
//!   the last read of the marker.
//!
//! So what was deleted is served for that long at most, and what has expired never.

use stateright::{Model, Property};

use crate::check::Tell;
use crate::fault::Fault;

/// For how long after sending a read of the marker a cache may serve, in ticks.
const FRESH: u8 = 2;
/// How long a record is announced to be kept.
const RETENTION: u8 = 3;
/// How much longer the store keeps it, and how much the clock of a server may be behind.
const MARGIN: u8 = 1;

/// What is looked at.
#[derive(Clone, Debug)]
pub struct Cache {
    /// How many ticks there are.
    pub end: u8,
    /// How often the key is completed.
    pub lives: usize,
    pub fault: Option<Fault>,
}

/// One key, and one server with a cache. The key's records come from other servers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    time: u8,
    /// How much the server's clock is behind.
    behind: u8,
    revision: u8,
    /// All lives of the key.
    lives: Vec<Life>,
    /// Whether the last one is there.
    there: bool,
    /// The revision of the last Delete.
    marker: u8,
    /// A Delete has moved its marker, and has yet to remove the record: only by a fault.
    deleting: bool,
    /// The marker that the server knows, and until when that is fresh enough to serve.
    known: u8,
    fresh_until: u8,
    marker_read: Option<MarkerRead>,
    /// What a read of the record has found, on its way to the server.
    record_read: Option<Entry>,
    entry: Option<Entry>,
    served_old: bool,
}

/// A record, completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Life {
    /// As announced.
    expires_at: u8,
    /// From when on it must not be served.
    over: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Entry {
    life: usize,
    /// The revision of the store when it was read.
    read_at: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct MarkerRead {
    sent: u8,
    found: Option<u8>,
}

const NEVER: u8 = u8::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Tick,
    /// The key is completed, for the first time or once more.
    Complete,
    /// An operator deletes the record.
    Delete,
    /// The second half of that.
    Remove,
    Expire,
    SendMarkerRead,
    ReadMarker,
    LearnMarker,
    ReadRecord,
    /// What was read comes into the cache.
    Insert,
    /// A replay is served from the cache.
    Serve,
}

impl Model for Cache {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let world = |behind| World {
            time: 0,
            behind,
            revision: 1,
            lives: Vec::new(),
            there: false,
            marker: 0,
            deleting: false,
            known: 0,
            fresh_until: 0,
            marker_read: None,
            record_read: None,
            entry: None,
            served_old: false,
        };
        (0..=MARGIN).map(world).collect()
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.time < self.end {
            actions.push(Action::Tick);
        }
        match world.lives.last() {
            Some(life) if world.there => {
                actions.extend([if world.deleting { Action::Remove } else { Action::Delete }]);
                if world.time >= life.expires_at + MARGIN {
                    actions.push(Action::Expire);
                }
                if world.record_read.is_none() {
                    actions.push(Action::ReadRecord);
                }
            }
            _ if world.lives.len() < self.lives => actions.push(Action::Complete),
            _ => {}
        }
        actions.push(match world.marker_read {
            None => Action::SendMarkerRead,
            Some(MarkerRead { found: None, .. }) => Action::ReadMarker,
            Some(MarkerRead { found: Some(_), .. }) => Action::LearnMarker,
        });
        if world.record_read.is_some() {
            actions.push(Action::Insert);
        }
        if self.serves(world) {
            actions.push(Action::Serve);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Tick => next.time += 1,
            Action::Complete => {
                next.revision += 1;
                next.lives.push(Life { expires_at: next.time + RETENTION, over: NEVER });
                next.there = true;
            }
            Action::Delete => {
                next.revision += 1;
                next.marker = next.revision;
                if self.has(Fault::MarkerApart) {
                    next.deleting = true;
                } else {
                    next.remove(FRESH);
                }
            }
            Action::Remove => {
                next.revision += 1;
                next.remove(FRESH);
            }
            Action::Expire => next.remove(0),
            Action::SendMarkerRead => next.marker_read = Some(MarkerRead { sent: next.time, found: None }),
            Action::ReadMarker => next.marker_read.as_mut()?.found = Some(next.marker),
            Action::LearnMarker => {
                let MarkerRead { sent, found } = next.marker_read.take()?;
                next.known = found?;
                next.fresh_until = FRESH + if self.has(Fault::FreshFromAnswer) { next.time } else { sent };
                next.entry = next.entry.filter(|entry| entry.read_at >= next.known);
            }
            Action::ReadRecord => {
                next.record_read = Some(Entry { life: next.lives.len() - 1, read_at: next.revision });
            }
            Action::Insert => {
                let read = next.record_read.take()?;
                if read.read_at >= next.known || self.has(Fault::CacheInsertAfterPurge) {
                    next.entry = Some(read);
                }
            }
            Action::Serve => {
                let life = next.lives[next.entry?.life];
                next.served_old = next.time >= life.over;
            }
        }
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "nothing is served that was deleted long ago, or has expired",
                |_, world: &World| !world.served_old,
            ),
            Property::sometimes("a replay can be served", |model: &Cache, world: &World| model.serves(world)),
            Property::sometimes("the marker purges what is cached", |_, world: &World| {
                let learns = world.marker_read.and_then(|read| read.found);
                world.entry.is_some_and(|entry| learns.is_some_and(|marker| entry.read_at < marker))
            }),
            Property::sometimes("what was read before the purge comes after it", |_, world: &World| {
                world.record_read.is_some_and(|read| read.read_at < world.known)
            }),
            Property::sometimes("a later life is cached", |_, world: &World| {
                world.entry.is_some_and(|entry| entry.life > 0)
            }),
        ]
    }
}

impl Cache {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn serves(&self, world: &World) -> bool {
        let unexpired = |entry: Entry| {
            world.time - world.behind.min(world.time) < world.lives[entry.life].expires_at
                || self.has(Fault::ServedPastExpiry)
        };
        world.time < world.fresh_until && world.entry.is_some_and(unexpired)
    }
}

impl World {
    /// The record is gone, and may still be served for so long.
    fn remove(&mut self, longer: u8) {
        (self.there, self.deleting) = (false, false);
        if let Some(life) = self.lives.last_mut() {
            life.over = self.time + longer;
        }
    }
}

impl Tell for Cache {
    fn tell(&self, world: &World, action: &Action) -> String {
        match action {
            Action::Tick => "time passes".to_owned(),
            Action::Complete => "the key is completed".to_owned(),
            Action::Delete if self.has(Fault::MarkerApart) => "a Delete moves the marker".to_owned(),
            Action::Delete => "the record is deleted, and the marker moved".to_owned(),
            Action::Remove => "the record is deleted".to_owned(),
            Action::Expire => "the record expires".to_owned(),
            Action::SendMarkerRead => "the server sends a read of the marker".to_owned(),
            Action::ReadMarker => format!("the read finds the marker at {}", world.marker),
            Action::LearnMarker => "the server learns the marker, and purges what is older".to_owned(),
            Action::ReadRecord => format!("the server reads the record, at {}", world.revision),
            Action::Insert => "what was read comes into the cache".to_owned(),
            Action::Serve => {
                format!("the cache serves outcome {}", world.entry.map_or(0, |entry| entry.life + 1))
            }
        }
    }
}
