//! What benches/ measure of the coordinator: a room, without a store.

use std::collections::VecDeque;

use super::room::{Action, Event, Room};
use super::waiter::Wish;
use crate::record::{Begin, Timestamp};
use crate::store::{Loaded, Swapped};

/// Has these callers come to one room while somebody else holds the key, and then wait until it is completed: how many
/// of them were answered.
pub fn hand_off(callers: Vec<Begin>, held: &Loaded, completed: &Loaded) -> usize {
    let (mut room, mut answered) = (Room::new(), 0);
    let arrive = |(id, begin)| Event::Arrive { id, wish: Wish::begin(begin), patient: true };
    let mut events: VecDeque<Event> = (0..).zip(callers).map(arrive).collect();
    events.push_back(Event::Learned(Some(completed.clone())));
    while let Some(event) = events.pop_front() {
        for action in room.on(event, Timestamp::from_micros(1)) {
            match action {
                // The first one guesses that there is no record.
                Action::Swap { .. } => {
                    events.push_front(Event::Swapped(Ok(Swapped::Conflict(Some(held.clone())))));
                }
                Action::Load => events.push_front(Event::Loaded(Ok(Some(held.clone())))),
                Action::StartWatch => events.push_front(Event::Watching(true)),
                Action::Answer(..) => answered += 1,
                Action::Seated(_) | Action::Show(..) => {}
            }
        }
    }
    answered
}
