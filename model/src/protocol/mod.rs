//! The main model: one key, its callers, the servers between, and the store.
//!
//! - A **caller** begins, works under the claim it gets, renews, completes or releases; it sends any of these
//!   again, through any server, whenever it likes, and answers reach it late or never.
//! - A **server** has no memory that an answer rests on, so what there is of it is its calls. Each reads the record
//!   and asks the product's `decide`; its answer or its write is then on the way. A write that is not answered in
//!   time is of unknown outcome: it stays on the way, and the call is decided anew. Which server has a call makes
//!   no difference, so calls do not say.
//! - The **store** compares the revision and writes, in one step. Locks hang on leases that end in their order. A
//!   write without an answer may land late, and again.
//!
//! Some of what may happen needs no step of its own. A caller that hangs up, or dies, is one whose answer never
//! comes to it. A server that dies is one whose calls take no more steps. A read that takes long is a call whose
//! next step comes late. A first guess of the record that a Complete is for (the claim as this server wrote it) was
//! right if it writes, and then a read would have found the same; else it writes nothing, and tells nothing.
//!
//! Time is an order of leases. Those that live are numbered from 1, oldest first; all that are over are 0. A lock
//! hangs on the newest there is when its write is made. Its holder counts it from the sending of the call that
//! armed it, and so as long as the lease lives that was the newest *then*: it is over before that lease can end.

mod caller;
mod numbering;
mod properties;
mod server;
mod store;
mod tell;

use onced::record::Lock;
use stateright::{Model, Property};

use crate::fault::Fault;
use crate::record::{Change, Command, How, Outcome, Record, RequestId, Revision, Token};
use caller::{Caller, Stage};
use properties::{Broken, Seen};

/// A lease of locks: 1 or more while it lives, 0 once it is over.
type Lease = u8;

/// What is looked at.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// How many calls each caller may send.
    pub calls: &'static [u8],
    /// Whether claims are held for an operator when they lapse.
    pub hold: bool,
    /// Whether holders renew their locks.
    pub renew: bool,
    /// Whether they save checkpoints with that.
    pub checkpoints: bool,
    /// How holders may release their claims.
    pub release: &'static [How],
    /// Whether servers guess that there is no record.
    pub guess: bool,
    /// Whether records expire.
    pub expiry: bool,
    /// How many commands operators may send.
    pub operators: u8,
    /// How many leases of locks may live at once.
    pub leases: u8,
    /// What is wrong with it.
    pub fault: Option<Fault>,
}

/// All there is at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    record: Option<Stored>,
    /// The newest lease of locks.
    lease: Lease,
    /// Writes on the way whose answer nobody waits for any more. Each may land, late, and more than once.
    late: Vec<Write>,
    calls: Vec<Call>,
    callers: Vec<Caller>,
    /// How many commands operators may still send.
    operators: u8,
    /// What an onlooker has seen, to judge by.
    seen: Seen,
}

/// A record as the store has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stored {
    record: Record,
    revision: Revision,
    /// What its lock hangs on, if it has one.
    lease: Lease,
}

/// A conditional write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Write {
    /// The revision it expects. 0: no record.
    expected: Revision,
    change: Change,
    /// The token that the command named. 0: none, it is a Begin.
    named: Token,
    /// What to write. `None`: remove the record.
    next: Option<Record>,
    /// What the lock hangs on, if this arms it. It has to be there still.
    lease: Lease,
}

/// A call that a server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Call {
    command: Command,
    /// The newest lease when the caller sent it, as long as that matters.
    sent: Lease,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Phase {
    /// To be decided, for the first time or anew. That a write of unknown outcome went before is kept only where
    /// a fault makes something of it.
    Deciding { unsettled: bool },
    /// Its write is on the way. `until`: how long the holder may count on the lock that this arms.
    Writing { write: Write, until: Lease },
    /// The answer is on the way to the caller.
    Answered(Answer),
    /// The answer has arrived, and by a fault the claim is still guarded.
    Delivered(Answer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Answer {
    /// The claim. `won`: the revision of the write that certainly made it, which it can be given back by.
    Claim { token: Token, until: Lease, checkpoint: u8, resumed: bool, won: Revision },
    /// The outcome.
    Replay(Outcome),
    /// What was asked for is so. `repeated`: it was so before.
    Ok { until: Lease, repeated: bool },
    /// The claim, or the request id, is no longer the caller's.
    Lost,
}

/// A step. Calls and late writes are named by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A caller sends a call.
    Send(u8, Command),
    /// A caller that released its claim wants the key again.
    Anew(u8),
    /// A server reads the record, and decides a call.
    Decide(usize),
    /// A server guesses that there is no record, though there is one.
    Guess(usize),
    /// The same, but by its own clock the lock has lapsed.
    DecideByClock(usize),
    /// The write of a call lands, and is answered.
    Land(usize),
    /// The write of a call is not answered in time.
    TimeOut(usize),
    /// The answer of a call reaches its caller.
    Receive(usize),
    /// The answer of a call is dropped before it could leave: the claim is given back.
    GiveBack(usize),
    /// A write lands whose answer nobody waits for.
    LandLate(usize),
    /// The newest lease of locks is given out no more: the next one is.
    NextLease,
    /// The oldest lease of locks ends.
    EndLease,
    /// The record expires.
    Expire,
    /// An operator sends a command that names the token it sees.
    Operate(Command),
}

impl Protocol {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let caller = |&calls| Caller { nth: 1, stage: Stage::Asking, calls };
        vec![World {
            record: None,
            lease: 1,
            late: Vec::new(),
            calls: Vec::new(),
            callers: self.calls.iter().map(caller).collect(),
            operators: self.operators,
            seen: Seen::default(),
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        world.offer_callers(self, actions);
        world.offer_servers(self, actions);
        world.offer_store(self, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Send(caller, command) => next.send(self, usize::from(caller), command),
            Action::Anew(caller) => next.anew(self, usize::from(caller)),
            Action::Decide(call) => next.decide(self, call, None),
            Action::Guess(call) => next.guess(self, call),
            Action::DecideByClock(call) => next.decide(self, call, Some(Lock::Lapsed)),
            Action::Land(call) => next.land(self, call),
            Action::TimeOut(call) => next.time_out(self, call),
            Action::Receive(call) => next.receive(self, call),
            Action::GiveBack(call) => next.give_back(self, call),
            Action::LandLate(write) => {
                next.apply(self, next.late[write]);
            }
            Action::NextLease => next.lease += 1,
            Action::EndLease => next.end_lease(),
            Action::Expire => next.expire(),
            Action::Operate(command) => next.operate(command),
        }
        next.tidy(self);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(self)
    }
}

impl World {
    fn lock(&self, stored: &Stored) -> Lock {
        if stored.record.arms() && stored.lease == 0 { Lock::Lapsed } else { Lock::Held }
    }

    /// A promise is broken.
    fn breaks(&mut self, what: Broken) {
        self.seen.broken.get_or_insert(what);
    }
}

impl Call {
    fn new(command: Command, sent: Lease) -> Self {
        Self { command, sent, phase: Phase::Deciding { unsettled: false } }
    }

    fn request(&self) -> Option<RequestId> {
        match self.command {
            Command::Begin { request, .. } => Some(request),
            _ => None,
        }
    }
}
