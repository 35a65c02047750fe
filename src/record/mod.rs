//! The pure core: what a record is, and what each command does to it. No I/O, no clock, no async, no
//! protocol, no store: everything that a decision needs is an argument.

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod key;
pub mod limits;
pub mod state;
pub mod transition;
pub mod view;

#[cfg(test)]
mod tests;
#[cfg(any(test, fuzzing))]
pub mod world;

pub use key::{Key, Namespace, RecordKey, ShortHash};
pub use state::{
    Checkpoint, DoubtCause, FencingToken, Fingerprint, Lifetime, OnLapse, Outcome, OutcomeResult, Record,
    RequestId, State, Timestamp,
};
pub use transition::{
    Begin, Change, Command, Decision, Disposition, Lock, Refusal, Resolution, Seen, decide,
};
pub use view::View;
