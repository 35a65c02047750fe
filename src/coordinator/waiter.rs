//! One who waits in a room, and what a state of the key means to it.

use std::sync::Arc;

use super::Error;
use super::room::Answer;
use crate::record::{Begin, Change, Command, Decision, Lock, Refusal, Timestamp, View, decide};
use crate::store::{Loaded, Revision, StoreError};

/// What a waiter wants.
#[derive(Clone, Debug)]
pub(super) enum Wish {
    /// The claim, or the outcome. Always a [`Command::Begin`].
    Begin(Arc<Command>),
    /// The outcome.
    Lookup,
    /// Every state.
    Watch,
}

impl Wish {
    /// The wish for a claim.
    pub(super) fn begin(begin: Begin) -> Self {
        Wish::Begin(Arc::new(Command::Begin(begin)))
    }

    /// What a completed record answers, whoever else there is: nothing comes after that. Of any other record nothing.
    pub(super) fn replay(&self, loaded: &Loaded, now: Timestamp) -> Option<Result<View, Error>> {
        let view @ View::Completed { .. } = View::of(&loaded.record, loaded.lock, now) else { return None };
        match self {
            Wish::Begin(begin) => match decide(begin, Some(loaded.seen()), now) {
                Decision::Unchanged => Some(Ok(view)),
                Decision::Refuse(refusal) => Some(Err(Error::refused(refusal, Some(view)))),
                Decision::Write(_) | Decision::Wait => None,
            },
            Wish::Lookup => Some(Ok(view)),
            Wish::Watch => None,
        }
    }
}

/// Who asks for the key.
#[derive(Clone, Debug)]
pub(super) struct Waiter {
    pub(super) wish: Wish,
    /// Whether it has time left to wait.
    pub(super) patient: bool,
    /// The first trip sent after it arrived, or after its time ran out: the first one that may tell it to wait.
    pub(super) needs: u64,
    /// Whether it was told to wait, by a good read or by what is known of a watched record, so that a store gone
    /// since then does not end its wait.
    pub(super) seated: bool,
    /// How often its swap has failed.
    pub(super) failures: u32,
    /// Whether one of its swaps may have been done, or wrote a lapse down: something may have been written.
    pub(super) unsettled: bool,
    /// What a watcher saw last.
    pub(super) shown: Option<(Revision, Lock)>,
}

impl Waiter {
    pub(super) fn failed(&self, error: StoreError) -> Answer {
        Answer::Failed(if self.unsettled { error.after_unknown() } else { error })
    }
}

/// What one waiter's turn comes to.
pub(super) enum Turn {
    Stay,
    Sit,
    Show(View),
    Forward(Change),
    End(Answer),
}

/// What is known, and how far it can be relied on.
pub(super) struct Knowledge<'a> {
    pub(super) state: Option<&'a Loaded>,
    /// The latest trip that brought it.
    pub(super) learned_by: u64,
    /// Whether this server's own write brought it just now.
    pub(super) learned: bool,
    /// Whether changes are hinted at.
    pub(super) watched: bool,
    pub(super) now: Timestamp,
}

/// What is known means this to one waiter.
pub(super) fn turn(waiter: &Waiter, known: &Knowledge<'_>) -> Turn {
    let fresh = waiter.needs <= known.learned_by;
    let new = fresh || known.learned;
    // It costs no trip of its own: a hint or the slow poll ends its wait, and its deadline asks for a load.
    let can_rest = waiter.patient && known.watched;
    let view = || known.state.map(|loaded| View::of(&loaded.record, loaded.lock, known.now));
    match &waiter.wish {
        Wish::Begin(begin) => match (decide(begin, known.state.map(Loaded::seen), known.now), view()) {
            (Decision::Write(change), _) if new => Turn::Forward(change),
            (Decision::Unchanged, Some(view)) if new => Turn::End(Answer::Standing(view)),
            (Decision::Refuse(refusal), view) if fresh => Turn::End(Answer::Refused(refusal, view)),
            (Decision::Wait, Some(view)) if fresh => wait_or(waiter, view),
            (Decision::Wait, _) if can_rest => Turn::Sit,
            (Decision::Write(_) | Decision::Unchanged | Decision::Refuse(_) | Decision::Wait, _) => {
                Turn::Stay
            }
        },
        Wish::Lookup => match view() {
            Some(view @ View::Completed { .. }) if new => Turn::End(Answer::Standing(view)),
            Some(View::Completed { .. }) => Turn::Stay,
            Some(view) if fresh => wait_or(waiter, view),
            Some(_) if can_rest => Turn::Sit,
            None if fresh => Turn::End(Answer::Refused(Refusal::NotFound, None)),
            Some(_) | None => Turn::Stay,
        },
        Wish::Watch => match (view(), known.state) {
            (Some(view @ View::Completed { .. }), _) if new => Turn::End(Answer::Standing(view)),
            (Some(view), Some(loaded)) if new && waiter.shown != Some((loaded.revision, loaded.lock)) => {
                Turn::Show(view)
            }
            (None, _) if fresh => Turn::End(Answer::Refused(Refusal::NotFound, None)),
            (Some(_) | None, _) => Turn::Stay,
        },
    }
}

fn wait_or(waiter: &Waiter, view: View) -> Turn {
    if waiter.patient { Turn::Sit } else { Turn::End(Answer::Standing(view)) }
}
