//! The embedded store and its server, which are one process: it dies, and starts again later. Here time counts.
//!
//! - A write is answered once it is durable. A death takes what is not; of what was under way it may take it or not.
//! - Locks are counted by a clock that does not outlive the process, so a start gives each claim its full TTL again.
//! - Retention is counted by how long the store has been running, which it writes down.
//! - The wall clock may jump at any time. Nothing rests on it.
//!
//! Callers count their locks by clocks of their own, from when they sent Begin, through every death of the server.

use onced::record::Lock;
use stateright::{Model, Property};

use crate::check::Tell;
use crate::fault::Fault;
use crate::record::{Command, Decision, Outcome, Record, RequestId, Token, decide};

/// What a claim's lock lives for, in ticks.
const LOCK_TTL: u8 = 2;
/// How long an outcome is kept, in ticks.
const RETENTION: u8 = 2;
/// How far the wall clock jumps.
const JUMP: u8 = 4;

/// What is looked at.
#[derive(Clone, Debug)]
pub struct Restarts {
    /// How many ticks there are.
    pub end: u8,
    /// How many deaths.
    pub deaths: u8,
    pub fault: Option<Fault>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    time: u8,
    /// The wall clock has jumped.
    jumped: bool,
    /// How many ticks the store has been running, over all of its lives.
    ran: u8,
    running: bool,
    deaths: u8,
    /// What would be there after a death.
    durable: Option<Kept>,
    /// What is there.
    record: Option<Kept>,
    /// When the lock lapses, by the clock of the process.
    lock_ends: u8,
    revision: u8,
    callers: [Caller; 2],
    /// The outcome that was acknowledged, and until when it has to be there.
    promised: Option<(Outcome, u8)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kept {
    record: Record,
    /// When it expires, in ticks that the store ran.
    expires: u8,
    /// The same times by the wall clock, which only a fault looks at.
    by_wall: ByWall,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ByWall {
    lock_ends: u8,
    expires: u8,
}

/// Where a caller is with the one attempt it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Caller {
    Idle,
    /// It has sent a command, when.
    Sent {
        command: Command,
        at: u8,
    },
    /// That was done, when, and is answered once it is durable.
    Served {
        command: Command,
        at: u8,
        token: Token,
        done: u8,
    },
    /// It works, and counts its lock as held until then.
    Working {
        token: Token,
        until: u8,
    },
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Tick,
    Jump,
    Begin(u8),
    Complete(u8),
    /// The server does what a caller asked for.
    Serve(usize),
    /// What was written is made durable.
    Sync,
    /// The answer reaches a caller.
    Answer(usize),
    /// The process dies. What was under way to the disk may have arrived.
    Die {
        kept: bool,
    },
    Start,
    Expire,
}

impl Model for Restarts {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            time: 0,
            jumped: false,
            ran: 0,
            running: true,
            deaths: self.deaths,
            durable: None,
            record: None,
            lock_ends: 0,
            revision: 0,
            callers: [Caller::Idle; 2],
            promised: None,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.time < self.end {
            actions.push(Action::Tick);
        }
        if !world.jumped {
            actions.push(Action::Jump);
        }
        for (number, caller) in world.callers.iter().enumerate() {
            let id = u8::from(number == 1);
            match caller {
                Caller::Idle => actions.push(Action::Begin(id)),
                Caller::Sent { .. } if world.running => actions.push(Action::Serve(number)),
                Caller::Served { .. } if world.is_synced() || self.has(Fault::AnsweredBeforeDurable) => {
                    actions.push(Action::Answer(number));
                }
                Caller::Working { .. } => actions.push(Action::Complete(id)),
                Caller::Sent { .. } | Caller::Served { .. } | Caller::Done => {}
            }
        }
        if !world.running {
            return actions.push(Action::Start);
        }
        if world.deaths > 0 {
            actions.push(Action::Die { kept: false });
        }
        if !world.is_synced() {
            actions.push(Action::Sync);
            if world.deaths > 0 {
                actions.push(Action::Die { kept: true });
            }
        }
        if self.expired(world) {
            actions.push(Action::Expire);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Tick => {
                next.time += 1;
                next.ran += u8::from(next.running);
            }
            Action::Jump => next.jumped = true,
            Action::Begin(caller) => {
                let request = RequestId { caller, nth: 1 };
                next.send(caller, Command::Begin { request, hold: false });
            }
            Action::Complete(caller) => {
                let Caller::Working { token, .. } = next.callers[usize::from(caller)] else { return None };
                let outcome = RequestId { caller, nth: 1 }.outcome();
                next.send(caller, Command::Complete { token, outcome });
            }
            Action::Serve(caller) => next.serve(self, caller)?,
            Action::Sync => next.durable = next.record,
            Action::Answer(caller) => next.answer(caller),
            Action::Die { kept } => next.die(kept),
            Action::Start => {
                next.running = true;
                next.record = next.durable;
                // Its clock begins anew: every claim gets its full TTL again.
                next.lock_ends = next.time + if self.has(Fault::LocksLostAtStart) { 0 } else { LOCK_TTL };
            }
            Action::Expire => (next.record, next.durable) = (None, None),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "who counts its lock as held holds the key",
                |model: &Restarts, world: &World| {
                    let holds = |token: Token| {
                        let lapsed = world.running && model.lock(world) == Lock::Lapsed;
                        !lapsed
                            && world
                                .there()
                                .is_some_and(|kept| kept.record.arms() && kept.record.token == token)
                    };
                    world.callers.iter().all(|caller| match *caller {
                        Caller::Working { token, until } => until <= world.time || holds(token),
                        _ => true,
                    })
                },
            ),
            Property::always("an acknowledged outcome is there for its retention", |_, world: &World| {
                world.promised.is_none_or(|(outcome, until)| {
                    until <= world.time
                        || world.there().and_then(|kept| kept.record.outcome()) == Some(outcome)
                })
            }),
            Property::sometimes(
                "a claim outlives a death of the server",
                |model: &Restarts, world: &World| {
                    let working = |caller: &Caller| matches!(caller, Caller::Working { until, .. } if *until > world.time);
                    world.running && world.deaths < model.deaths && world.callers.iter().any(working)
                },
            ),
            Property::sometimes(
                "a claim lapses after a restart, and is taken over",
                |model: &Restarts, world: &World| {
                    world.deaths < model.deaths
                        && world.record.is_some_and(|kept| kept.record.arms() && kept.record.token > 1)
                        && world
                            .callers
                            .iter()
                            .any(|caller| matches!(caller, Caller::Working { token: 1, .. }))
                },
            ),
            Property::sometimes("an unanswered write is lost", |_, world: &World| {
                !world.running && world.durable != world.record
            }),
            Property::sometimes("an outcome is there after a restart", |model: &Restarts, world: &World| {
                world.running
                    && world.deaths < model.deaths
                    && world.promised.is_some_and(|(_, until)| until > world.time)
            }),
        ]
    }
}

impl Restarts {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn lock(&self, world: &World) -> Lock {
        let lapsed = world.record.is_some_and(|kept| {
            let by_clock = world.time >= world.lock_ends;
            let by_wall = world.wall() >= kept.by_wall.lock_ends;
            kept.record.arms() && if self.has(Fault::LocksByWallClock) { by_wall } else { by_clock }
        });
        if lapsed { Lock::Lapsed } else { Lock::Held }
    }

    fn expired(&self, world: &World) -> bool {
        world.is_synced()
            && world.record.is_some_and(|kept| {
                let by_running = world.ran >= kept.expires;
                let by_wall = world.wall() >= kept.by_wall.expires;
                let over = if self.has(Fault::RetentionByWallClock) { by_wall } else { by_running };
                over && kept.record.may_expire(self.lock(world))
            })
    }
}

impl World {
    fn is_synced(&self) -> bool {
        self.record == self.durable
    }

    fn wall(&self) -> u8 {
        self.time + if self.jumped { JUMP } else { 0 }
    }

    /// What is there, or will be after the next start.
    fn there(&self) -> Option<Kept> {
        if self.running { self.record } else { self.durable }
    }

    fn send(&mut self, caller: u8, command: Command) {
        self.callers[usize::from(caller)] = Caller::Sent { command, at: self.time };
    }

    fn serve(&mut self, model: &Restarts, caller: usize) -> Option<()> {
        let Caller::Sent { command, at } = self.callers[caller] else { return None };
        let current = self.record.map(|kept| (kept.record, model.lock(self)));
        match decide(command, current, model.fault) {
            Decision::Write(_, next) => {
                let token = self.write(next?);
                self.callers[caller] = Caller::Served { command, at, token, done: self.time };
            }
            Decision::Unchanged | Decision::Refuse(_) => self.callers[caller] = Caller::Done,
            Decision::Wait => return None,
        }
        Some(())
    }

    fn write(&mut self, mut record: Record) -> Token {
        self.revision += 1;
        if record.token == 0 {
            record.token = self.revision;
        }
        let lock = if record.arms() { LOCK_TTL } else { 0 };
        self.lock_ends = self.time + lock;
        let by_wall = ByWall { lock_ends: self.wall() + lock, expires: self.wall() + lock + RETENTION };
        self.record = Some(Kept { record, expires: self.ran + lock + RETENTION, by_wall });
        record.token
    }

    fn answer(&mut self, caller: usize) {
        let Caller::Served { command, at, token, done } = self.callers[caller] else { return };
        self.callers[caller] = match command {
            Command::Begin { .. } => Caller::Working { token, until: at + LOCK_TTL },
            _ => Caller::Done,
        };
        if let Command::Complete { outcome, .. } = command {
            self.promised = Some((outcome, done + RETENTION));
        }
    }

    /// Calls fail, and are sent again.
    fn die(&mut self, kept: bool) {
        self.running = false;
        self.deaths -= 1;
        if kept {
            self.durable = self.record;
        }
        for caller in &mut self.callers {
            if let Caller::Served { command, .. } = *caller {
                *caller = Caller::Sent { command, at: self.time };
            }
        }
    }
}

impl Tell for Restarts {
    fn tell(&self, _: &World, action: &Action) -> String {
        let caller = |number: usize| if number == 0 { 'A' } else { 'B' };
        match *action {
            Action::Tick => "time passes".to_owned(),
            Action::Jump => "the wall clock jumps".to_owned(),
            Action::Begin(number) => format!("{} sends Begin", caller(number.into())),
            Action::Complete(number) => format!("{} sends Complete", caller(number.into())),
            Action::Serve(at) => format!("the server does what {} asked for", caller(at)),
            Action::Sync => "what was written is durable".to_owned(),
            Action::Answer(at) => format!("the answer reaches {}", caller(at)),
            Action::Die { kept } => format!("the process dies (what was under way is kept: {kept})"),
            Action::Start => "the process starts again".to_owned(),
            Action::Expire => "the record expires".to_owned(),
        }
    }
}
