//! What is promised, and what has to happen at all, or the promises would be kept by doing nothing.

use onced::record::Lock;
use stateright::Property;

use super::caller::Stage;
use super::{Answer, Call, Phase, Protocol, Stored, World, Write};
use crate::record::{Change, Command, Outcome, Record, State, Token};

/// What an onlooker has seen of the key, over all of its lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    /// The last token of all.
    newest: Token,
    /// The token that completed.
    completed: Token,
    /// The outcome that was acknowledged.
    acknowledged: Outcome,
    /// The token of the claim that nobody may run again until an operator, or its holder, has said so.
    doubt: Token,
    /// The highest checkpoint that was saved.
    checkpoint: u8,
    pub(super) broken: Option<Broken>,
}

/// A promise that shows to be broken in a step, not in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Broken {
    TokenNotHigher,
    TwoTokensCompleted,
    StaleTokenCompleted,
    TwoClaimsOfOneRequest,
    DoubtRunAgain,
    CheckpointWentBack,
    AcknowledgedAnother,
}

impl World {
    /// A write went through.
    pub(super) fn saw_written(&mut self, write: &Write) {
        let before = self.seen;
        let Some(Stored { record, .. }) = self.record else {
            // Who deletes a record by its token knows what goes.
            if write.named == before.newest {
                self.seen = Seen { newest: before.newest, broken: before.broken, ..Seen::default() };
            }
            return;
        };
        if record.checkpoint < before.checkpoint && record.outcome().is_none() {
            self.breaks(Broken::CheckpointWentBack);
        }
        self.seen.checkpoint = record.checkpoint;
        match (write.change, record.state) {
            (Change::Claim, State::InProgress { hold }) => self.saw_claimed(record.token, hold),
            (_, State::Completed { .. }) => self.saw_completed(write, &record),
            (Change::Put, State::Released { .. }) if write.named == before.doubt => self.seen.doubt = 0,
            (Change::Put, State::InDoubt { .. }) => self.seen.doubt = record.token,
            _ => {}
        }
    }

    fn saw_claimed(&mut self, token: Token, hold: bool) {
        if token <= self.seen.newest {
            self.breaks(Broken::TokenNotHigher);
        }
        if self.seen.doubt != 0 {
            self.breaks(Broken::DoubtRunAgain);
        }
        self.seen.newest = token.max(self.seen.newest);
        self.seen.doubt = if hold { token } else { 0 };
    }

    fn saw_completed(&mut self, write: &Write, record: &Record) {
        if write.named != self.seen.newest {
            self.breaks(Broken::StaleTokenCompleted);
        }
        if ![0, record.token].contains(&self.seen.completed) {
            self.breaks(Broken::TwoTokensCompleted);
        }
        self.seen.completed = record.token;
        self.seen.newest = record.token.max(self.seen.newest);
        if write.named == self.seen.doubt {
            self.seen.doubt = 0;
        }
    }

    pub(super) fn saw_acknowledged(&mut self, outcome: Outcome) {
        if ![0, outcome].contains(&self.seen.acknowledged) {
            self.breaks(Broken::AcknowledgedAnother);
        }
        self.seen.acknowledged = outcome;
    }

    /// Its retention is over, and with it what was promised for so long.
    pub(super) fn saw_expired(&mut self) {
        (self.seen.completed, self.seen.acknowledged, self.seen.checkpoint) = (0, 0, 0);
    }

    /// The tokens of those who count their lock as held.
    fn living(&self) -> impl Iterator<Item = Token> + '_ {
        self.callers.iter().filter_map(|caller| match caller.stage {
            Stage::Working { token, until, .. } if until > 0 => Some(token),
            _ => None,
        })
    }

    fn holds(&self, token: Token) -> bool {
        self.record.is_some_and(|stored| {
            stored.record.token == token && stored.record.arms() && self.lock(&stored) == Lock::Held
        })
    }

    fn is_state(&self, is: impl Fn(State) -> bool) -> bool {
        self.record.is_some_and(|stored| is(stored.record.state))
    }

    /// Whether a write of a call is about to go through that is like this, on a record like this.
    fn about_to(&self, is: impl Fn(&Write, Option<&Stored>) -> bool) -> bool {
        let current = self.record.as_ref();
        let revision = current.map_or(0, |stored| stored.revision);
        self.calls.iter().any(|call| match call.phase {
            Phase::Writing { write, .. } => write.expected == revision && is(&write, current),
            _ => false,
        })
    }

    fn about_to_claim(&self, is: impl Fn(&Stored) -> bool) -> bool {
        self.about_to(|write, current| write.change == Change::Claim && current.is_some_and(&is))
    }

    fn answered(&self, is: impl Fn(&Call, Answer) -> bool) -> bool {
        self.calls.iter().any(|call| matches!(call.phase, Phase::Answered(answer) if is(call, answer)))
    }
}

impl Seen {
    pub(super) fn each_token(&mut self, visit: &mut impl FnMut(&mut Token)) {
        [&mut self.newest, &mut self.completed, &mut self.doubt].into_iter().for_each(visit);
    }
}

pub(super) fn all(model: &Protocol) -> Vec<Property<Protocol>> {
    [promises(), events(model)].concat()
}

fn promises() -> Vec<Property<Protocol>> {
    macro_rules! never {
        ($what:literal, $broken:ident) => {
            Property::<Protocol>::always($what, |_, world| world.seen.broken != Some(Broken::$broken))
        };
    }
    vec![
        never!("tokens strictly increase", TokenNotHigher),
        never!("at most one token completes", TwoTokensCompleted),
        never!("a stale holder completes nothing", StaleTokenCompleted),
        never!("at most one claim of a request id lives", TwoClaimsOfOneRequest),
        never!("what is in doubt is not run again", DoubtRunAgain),
        never!("a checkpoint never goes back", CheckpointWentBack),
        never!("no other outcome is acknowledged", AcknowledgedAnother),
        Property::always("an acknowledged outcome stays", |_, world: &World| {
            let outcome = world.record.and_then(|stored| stored.record.outcome());
            world.seen.acknowledged == 0 || outcome == Some(world.seen.acknowledged)
        }),
        Property::always("no two claims live", |_, world: &World| world.living().count() <= 1),
        Property::always("who counts its lock as held holds the key", |_, world: &World| {
            world.living().all(|token| world.holds(token))
        }),
    ]
}

/// What has to be reached.
fn events(model: &Protocol) -> Vec<Property<Protocol>> {
    let parts = [lost_answers(model), lapses(model), extras(model)].concat();
    parts.into_iter().filter(|(reachable, _)| *reachable).map(|(_, event)| event).collect()
}

/// An event, and whether it can come about at this size.
type Event = (bool, Property<Protocol>);

fn lost_answers(model: &Protocol) -> Vec<Event> {
    let completes = completes(model);
    vec![
        (
            completes,
            Property::sometimes("a claim is resumed, its first answer lost", |_, world: &World| {
                world.answered(|_, answer| matches!(answer, Answer::Claim { resumed: true, .. }))
            }),
        ),
        (
            completes,
            Property::sometimes("a lost answer to Complete is recovered", |_, world: &World| {
                world.answered(|call, answer| {
                    is_complete(call) && matches!(answer, Answer::Ok { repeated: true, .. })
                })
            }),
        ),
        (
            true,
            Property::sometimes("an outcome is replayed", |_, world: &World| {
                world.answered(|_, answer| matches!(answer, Answer::Replay(_)))
            }),
        ),
        (
            true,
            Property::sometimes("a claim that nobody received is given back", |_, world: &World| {
                world.is_state(|state| state == State::Released { spent: false })
            }),
        ),
        (
            true,
            Property::sometimes("a write of unknown outcome lands late", |_, world: &World| {
                world.late.iter().any(|write| write.change == Change::Claim) && world.record.is_none()
            }),
        ),
    ]
}

fn lapses(model: &Protocol) -> Vec<Event> {
    let lapses = model.leases > 1;
    vec![
        (
            lapses && completes(model),
            Property::sometimes("a late Complete is accepted", |_, world: &World| {
                world.about_to(|write, current| {
                    write.next.is_some_and(|next| next.outcome().is_some()) && current.is_some_and(is_lapsed)
                })
            }),
        ),
        (
            lapses && completes(model) && !model.hold,
            Property::sometimes("a stale Complete is refused", |_, world: &World| {
                world.answered(|call, answer| is_complete(call) && answer == Answer::Lost)
            }),
        ),
        (
            lapses && !model.hold,
            Property::sometimes("a lapsed claim is taken over", |_, world: &World| {
                world.about_to_claim(is_lapsed)
            }),
        ),
        (
            lapses && model.hold,
            Property::sometimes("a lapse puts a HOLD claim in doubt", |_, world: &World| {
                world.is_state(|state| state == State::InDoubt { lapsed: true })
            }),
        ),
    ]
}

/// What only some models have.
fn extras(model: &Protocol) -> Vec<Event> {
    vec![
        (
            model.expiry,
            Property::sometimes("a record expires, and its key is born again", |_, world: &World| {
                world.seen.newest != 0
                    && world.about_to(|write, current| write.change == Change::Claim && current.is_none())
            }),
        ),
        (
            !model.release.is_empty(),
            Property::sometimes("a released key is claimed again", |_, world: &World| {
                world.about_to_claim(|stored| stored.record.state == State::Released { spent: true })
            }),
        ),
        (
            model.checkpoints,
            Property::sometimes("a checkpoint is handed over", |_, world: &World| {
                world.answered(|_, answer| {
                    matches!(answer, Answer::Claim { resumed: false, checkpoint: 1.., .. })
                })
            }),
        ),
        (
            model.operators > 0,
            Property::sometimes("an operator deletes", |_, world: &World| {
                world.about_to(|write, _| write.change == Change::Remove)
            }),
        ),
        (
            model.operators > 0,
            Property::sometimes("an operator settles a doubt", |_, world: &World| {
                world.is_state(|state| matches!(state, State::Completed { resolved_from: 1.., .. }))
            }),
        ),
    ]
}

/// Whether one caller may send Begin and Complete.
fn completes(model: &Protocol) -> bool {
    model.calls.iter().any(|calls| *calls > 1)
}

fn is_complete(call: &Call) -> bool {
    matches!(call.command, Command::Complete { .. })
}

fn is_lapsed(stored: &Stored) -> bool {
    stored.record.arms() && stored.lease == 0
}
