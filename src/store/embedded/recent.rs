//! What the log holds and the tree does not yet: the newest writes, in memory.

use std::collections::HashMap;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Rows by name, with what stands in them; `None` for one that was removed.
pub(super) type RowMap = HashMap<Vec<u8>, Option<Bytes>>;
/// The name of a row and what it holds.
pub(super) type NamedRow = (Vec<u8>, Option<Bytes>);

/// The newest writes, and those that are being moved to the tree. Both are durable: in the log.
#[derive(Default)]
pub(super) struct Recent {
    state: Mutex<State>,
    moved: Condvar,
    /// How often something has been moved.
    moves: AtomicU64,
}

#[derive(Default)]
struct State {
    newest: RowMap,
    moving: Option<Arc<RowMap>>,
    /// Nothing is moved any more.
    stuck: bool,
}

impl Recent {
    /// What a row holds, if it was written lately. Whoever finds nothing here looks into the tree as it is
    /// after this: in that order, since what leaves here is in the tree before.
    pub(super) fn get(&self, row: &[u8]) -> Option<Option<Bytes>> {
        let state = self.lock();
        let moving = || state.moving.as_ref().and_then(|moving| moving.get(row));
        state.newest.get(row).or_else(moving).cloned()
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
        self.lock().newest.extend(rows);
    }

    /// Takes the newest to be moved to the tree, unless others still are.
    pub(super) fn start_moving(&self) -> Option<Arc<RowMap>> {
        let mut state = self.lock();
        if state.moving.is_some() {
            return None;
        }
        let rows = Arc::new(std::mem::take(&mut state.newest));
        state.moving = Some(Arc::clone(&rows));
        Some(rows)
    }

    /// What was to be moved is in the tree, durably.
    pub(super) fn end_moving(&self) {
        let mut state = self.lock();
        let moved = state.moving.take();
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
        let moving = |state: &mut State| state.moving.is_some() && !state.stuck;
        drop(self.moved.wait_while(self.lock(), moving).unwrap_or_else(PoisonError::into_inner));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
