//! What is in memory: the newest writes, which the log holds and the tree does not yet, and what was read lately.

use std::collections::HashMap;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::store::remembered::Remembered;

/// Rows by name, with what stands in them; `None` for one that was removed.
pub(super) type RowMap = HashMap<Vec<u8>, Option<Bytes>>;
/// The name of a row and what it holds.
pub(super) type NamedRow = (Vec<u8>, Option<Bytes>);

/// The newest writes, and those that are being moved to the tree: both are durable, in the log. And rows of the tree that
/// nobody has written since they were read.
#[derive(Default)]
pub(super) struct Recent {
    state: Mutex<State>,
    /// A move ended, or is to be hurried.
    moved: Condvar,
    /// How often something has been moved.
    moves: AtomicU64,
}

#[derive(Default)]
struct State {
    newest: RowMap,
    moving: Option<Arc<RowMap>>,
    /// Somebody waits for the move under way, or soon will.
    hurried: bool,
    remembered: Remembered<Vec<u8>, Bytes>,
    /// Nothing is moved any more.
    stuck: bool,
}

impl Recent {
    /// What a row holds, if it was written or read lately. Whoever finds nothing here looks into the tree as it is
    /// after this: in that order, since what leaves here is in the tree before. What the tree had may have expired since,
    /// and be gone: who finds nothing there, either, looks here again.
    pub(super) fn get(&self, row: &[u8]) -> Option<Option<Bytes>> {
        let mut state = self.lock();
        let written = state.written(row).cloned();
        written.or_else(|| state.remembered.get(row).cloned().map(Some))
    }

    /// Remembers what a row held in the tree, as that was after so many moves. If more has been moved since, or the row
    /// written, it may hold something else by now.
    pub(super) fn remember(&self, row: &[u8], value: &[u8], moves: u64) {
        let mut state = self.lock();
        if moves == self.moves() && state.written(row).is_none() {
            state.remembered.put(row.to_vec(), row.len() + value.len(), || Bytes::copy_from_slice(value));
        }
    }

    /// The rows of a range that were written lately, in order. It looks at all that were.
    pub(super) fn range(&self, range: (Bound<&[u8]>, Bound<&[u8]>)) -> Vec<NamedRow> {
        let state = self.lock();
        let moving = || state.moving.iter().flat_map(|moving| moving.iter());
        let older = moving().filter(|(row, _)| !state.newest.contains_key(*row));
        let within = state
            .newest
            .iter()
            .chain(older)
            .filter(|(row, _)| RangeBounds::<[u8]>::contains(&range, row.as_slice()));
        let mut rows: Vec<NamedRow> = within.map(|(row, value)| (row.clone(), value.clone())).collect();
        drop(state);
        rows.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        rows
    }

    /// Shows what is in the log now.
    pub(super) fn add(&self, rows: RowMap) {
        let mut state = self.lock();
        rows.keys().for_each(|row| state.remembered.forget(row.as_slice()));
        state.newest.extend(rows);
    }

    /// Takes the newest to be moved to the tree, unless others still are. Those are hurried then, if it is to be.
    pub(super) fn start_moving(&self, hurried: bool) -> Option<Arc<RowMap>> {
        let mut state = self.lock();
        if hurried {
            self.hurry_now(&mut state);
        }
        if state.moving.is_some() {
            return None;
        }
        state.hurried = hurried;
        // With room for as many: a map that grows under the lock holds up everybody while it is copied.
        let room = RowMap::with_capacity(state.newest.len());
        let rows = Arc::new(std::mem::replace(&mut state.newest, room));
        state.moving = Some(Arc::clone(&rows));
        Some(rows)
    }

    /// What was to be moved is in the tree, durably.
    pub(super) fn end_moving(&self) {
        let mut state = self.lock();
        let moved = state.moving.take();
        state.hurried = false;
        self.moves.fetch_add(1, Ordering::SeqCst);
        drop(state);
        self.moved.notify_all();
        drop(moved); // Not under the lock: there may be much to free.
    }

    /// How often something has been moved: if that has changed since, the tree has.
    pub(super) fn moves(&self) -> u64 {
        self.moves.load(Ordering::SeqCst)
    }

    /// Nothing will be moved any more.
    pub(super) fn stick(&self) {
        self.lock().stuck = true;
        self.moved.notify_all();
    }

    /// Waits until nothing is being moved, or never will be.
    pub(super) fn wait_moved(&self) {
        let mut state = self.lock();
        self.hurry_now(&mut state);
        let moving = |state: &mut State| state.moving.is_some() && !state.stuck;
        drop(self.moved.wait_while(state, moving).unwrap_or_else(PoisonError::into_inner));
    }

    /// Has the move under way make no pauses.
    pub(super) fn hurry(&self) {
        self.hurry_now(&mut self.lock());
    }

    /// Whether somebody waits for the move under way, or soon will.
    pub(super) fn is_hurried(&self) -> bool {
        self.lock().hurried
    }

    /// A pause in the move under way, for so long unless it is hurried.
    pub(super) fn pause(&self, duration: Duration) {
        let unhurried = |state: &mut State| !state.hurried;
        drop(self.moved.wait_timeout_while(self.lock(), duration, unhurried));
    }

    fn hurry_now(&self, state: &mut State) {
        if !std::mem::replace(&mut state.hurried, true) {
            self.moved.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn written(&self, row: &[u8]) -> Option<&Option<Bytes>> {
        self.newest.get(row).or_else(|| self.moving.as_ref()?.get(row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_remembered_until_it_may_be_another() {
        let recent = Recent::default();
        let (row, old, new) = (b"row", Bytes::from_static(b"old"), Bytes::from_static(b"new"));
        let write = |value: &Bytes| recent.add([(row.to_vec(), Some(value.clone()))].into());
        recent.remember(row, &old, recent.moves());
        assert_eq!(recent.get(row), Some(Some(old.clone())));
        write(&new);
        // Read before that was written, and told of while it is to be moved, is being moved, and has been.
        let moves = recent.moves();
        recent.remember(row, &old, moves);
        recent.start_moving(false).unwrap();
        recent.remember(row, &old, moves);
        assert_eq!(recent.get(row), Some(Some(new)));
        recent.end_moving();
        recent.remember(row, &old, moves);
        assert_eq!(recent.get(row), None, "the tree has another one");
    }

    #[test]
    fn a_pause_ends_once_somebody_waits_for_the_move() {
        type Waiter = fn(&Recent);
        let next: Waiter = |recent| assert!(recent.start_moving(true).is_none(), "one is under way");
        for waiter in [next, Recent::wait_moved, Recent::hurry] {
            let recent = Recent::default();
            recent.start_moving(false).unwrap();
            paused(&recent, waiter);
            assert!(!recent.is_hurried(), "each move has its own hurry");
        }
    }

    #[test]
    fn a_pause_after_a_move_ends_once_the_next_one_is_hurried() {
        paused(&Recent::default(), |recent| drop(recent.start_moving(true).unwrap()));
    }

    /// Pauses until the other ends it, and then the move under way.
    fn paused(recent: &Recent, other: impl FnOnce(&Recent)) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                recent.pause(Duration::MAX);
                recent.end_moving();
            });
            other(recent);
        });
    }
}
