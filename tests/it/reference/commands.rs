//! What callers and operators ask for, and how it is chosen.

use proptest::option;
use proptest::prelude::*;

use super::table::Table;

/// How many ways there are to each of the servers: unary calls, and a session.
pub const WAYS: usize = 4;

/// One step of a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Which way a call takes.
    pub way: usize,
    /// The key; a List asks for all of them.
    pub key: usize,
    pub command: Command,
}

#[derive(Clone, Copy, Debug)]
pub enum Command {
    Begin(Begin),
    Complete {
        token: TokenChoice,
        outcome: usize,
        retention: Option<usize>,
    },
    Renew {
        token: TokenChoice,
        checkpoint: Option<Checkpoint>,
    },
    Release {
        token: TokenChoice,
        in_doubt: bool,
    },
    Lookup,
    List {
        state: usize,
        page_size: u32,
    },
    Resolve {
        token: TokenChoice,
        outcome: Option<usize>,
        retention: Option<usize>,
    },
    Delete {
        token: TokenChoice,
        force: bool,
    },
    Pass(Until),
    /// All servers end, and start again on what is stored.
    Restart,
}

/// Numbers stand for the values that a server is told: the reference does not care for these.
#[derive(Clone, Copy, Debug)]
pub struct Begin {
    pub caller: Caller,
    pub fingerprint: Option<u8>,
    pub lock_ttl: usize,
    pub retention: usize,
    pub hold: bool,
}

/// Who begins. The same request id from another owner is another caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub request: u8,
    pub owner: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub sequence: u64,
    pub data: u8,
}

/// Which token a call names.
#[derive(Clone, Copy, Debug)]
pub enum TokenChoice {
    /// The one of the record.
    Current,
    /// One that the key had before its latest, in this life or an earlier one.
    Earlier(usize),
    /// The latest of another key.
    OfAnother,
    /// One that nobody was ever given.
    Huge,
    /// The one right after the latest of the key.
    Next,
}

/// How long time passes.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// A second before the lock of the key lapses.
    BeforeLapse,
    /// A second after.
    Lapse,
    /// A second before the record expires.
    BeforeExpiry,
    /// A second after; where it never does, for longer than any other is kept.
    Expiry,
}

/// How a sequence begins: with steps that bring the first key to a state, so that rare ones are met as often as others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opening(&'static [Command]);

impl Opening {
    pub fn any() -> impl Strategy<Value = Opening> {
        prop::sample::select(&OPENINGS[..]).prop_map(Opening)
    }
}

const OPENINGS: [&[Command]; 12] = [
    &[],
    &[begins(1, false)],
    &[begins(1, false), Command::Pass(Until::Lapse)],
    &[begins(1, false), Command::Pass(Until::Lapse), Command::Restart],
    &[begins(1, true)],
    &[begins(1, true), Command::Pass(Until::Lapse)],
    &[begins(1, true), Command::Pass(Until::Lapse), begins(2, false)],
    &[begins(1, true), Command::Pass(Until::Lapse), RESOLVED],
    &[begins(1, false), released(false)],
    &[begins(1, false), released(true)],
    &[begins(1, false), COMPLETED],
    &[begins(1, false), released(true), SETTLED],
];

const fn begins(request: u8, hold: bool) -> Command {
    let caller = Caller { request, owner: 0 };
    Command::Begin(Begin { caller, fingerprint: Some(0), lock_ttl: 0, retention: 0, hold })
}

const fn released(in_doubt: bool) -> Command {
    Command::Release { token: TokenChoice::Current, in_doubt }
}

const COMPLETED: Command = Command::Complete { token: TokenChoice::Current, outcome: 0, retention: None };
const RESOLVED: Command = Command::Resolve { token: TokenChoice::Current, outcome: None, retention: None };
const SETTLED: Command = Command::Resolve { token: TokenChoice::Current, outcome: Some(0), retention: None };
const DELETED: Command = Command::Delete { token: TokenChoice::Current, force: true };

/// What may come next, `taken` steps after the beginning.
pub fn step(table: &Table, opening: Opening, taken: usize) -> BoxedStrategy<Step> {
    // An earlier life first, so that there are earlier tokens.
    let script = [begins(0, false), DELETED];
    if let Some(command) = script.iter().chain(opening.0).nth(taken) {
        let command = *command;
        return (0..WAYS).prop_map(move |way| Step { way, key: 0, command }).boxed();
    }
    let callers = [0, 1, 2].map(|key| table.record(key).map(|record| record.caller));
    prop_oneof![2 => Just(0), 1 => Just(1), 1 => Just(2)]
        .prop_flat_map(move |key| (0..WAYS, Just(key), command(callers[key])))
        .prop_map(|(way, key, command)| Step { way, key, command })
        .boxed()
}

fn command(caller: Option<Caller>) -> impl Strategy<Value = Command> {
    prop_oneof![
        80 => begin(caller),
        40 => (token(), 0_usize..3, option::of(0_usize..2))
            .prop_map(|(token, outcome, retention)| Command::Complete { token, outcome, retention }),
        40 => (token(), option::of(checkpoint()))
            .prop_map(|(token, checkpoint)| Command::Renew { token, checkpoint }),
        70 => (token(), any::<bool>()).prop_map(|(token, in_doubt)| Command::Release { token, in_doubt }),
        70 => (token(), option::of(0_usize..3), option::of(0_usize..2))
            .prop_map(|(token, outcome, retention)| Command::Resolve { token, outcome, retention }),
        25 => (token(), any::<bool>()).prop_map(|(token, force)| Command::Delete { token, force }),
        20 => Just(Command::Lookup),
        20 => (0_usize..5, 1_u32..4).prop_map(|(state, page_size)| Command::List { state, page_size }),
        40 => pass().prop_map(Command::Pass),
        1 => Just(Command::Restart),
    ]
}

fn token() -> impl Strategy<Value = TokenChoice> + Clone {
    prop_oneof![
        10 => Just(TokenChoice::Current),
        6 => (0_usize..2).prop_map(TokenChoice::Earlier),
        1 => Just(TokenChoice::OfAnother),
        1 => Just(TokenChoice::Huge),
        1 => Just(TokenChoice::Next),
    ]
}

fn begin(holder: Option<Caller>) -> BoxedStrategy<Command> {
    let anybody = || (0_u8..3, 0_u8..2).prop_map(|(request, owner)| Caller { request, owner });
    let caller = match holder {
        None => anybody().boxed(),
        Some(holder) => {
            let other_owner = Caller { owner: 1 - holder.owner, ..holder };
            prop_oneof![2 => Just(holder), 1 => Just(other_owner), 2 => anybody()].boxed()
        }
    };
    let fingerprint = prop_oneof![2 => Just(None), 2 => Just(Some(0_u8)), 1 => Just(Some(1_u8))];
    (caller, fingerprint, 0_usize..2, 0_usize..2, any::<bool>())
        .prop_map(|(caller, fingerprint, lock_ttl, retention, hold)| {
            Command::Begin(Begin { caller, fingerprint, lock_ttl, retention, hold })
        })
        .boxed()
}

fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    (1_u64..6, any::<u8>()).prop_map(|(sequence, data)| Checkpoint { sequence, data })
}

fn pass() -> impl Strategy<Value = Until> {
    prop_oneof![
        1 => Just(Until::BeforeLapse),
        6 => Just(Until::Lapse),
        1 => Just(Until::BeforeExpiry),
        1 => Just(Until::Expiry),
    ]
}
