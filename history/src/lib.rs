//! What callers of onced saw, and whether it can have been.
//!
//! A test records every call of its callers in a [`History`]: what was asked ([`Call`]), when each try was sent,
//! and what it was told ([`Answer`]), all on one clock, be it real or simulated. [`History::check`] then holds the
//! service's promises against it:
//!
//! - `operation`: what is recorded,
//! - `spec`: what a record is and what each call does to it, as the design has it, and `told`: what it is told,
//! - `linear`: whether the answers can be explained by that specification,
//! - `promises`: the promises, each checked by itself,
//! - `totals`: whether enough happened to show anything.
//!
//! Nothing here uses the server's code.

#![allow(clippy::unwrap_used, clippy::expect_used)] // It is all test.

pub mod linear;
pub mod operation;
pub mod promises;
pub mod spec;
pub mod told;
pub mod totals;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use linear::Verdict;
pub use operation::*;
pub use promises::{Promise, Violation};
pub use totals::Totals;

/// All that was seen. Callers share it.
#[derive(Debug, Default)]
pub struct History {
    keys: Mutex<BTreeMap<Name, Vec<Operation>>>,
}

/// Names an operation of a history.
#[derive(Clone, Debug)]
pub struct OperationId {
    key: Name,
    number: usize,
}

/// A watch of a history.
#[derive(Clone, Debug)]
pub struct Watch {
    caller: Name,
    key: Name,
    opened: Time,
    /// The number of its last update.
    last: Option<usize>,
}

/// What a history is held against.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// When it ended: what was not answered by then was not answered.
    pub ended: Time,
    /// How long after it is due an answer may come.
    pub late_max: Duration,
    /// Since when nothing failed any more, if keys are to be usable since then.
    pub healed: Option<Time>,
    /// Whether the store was made to end locks before their time, so that two claims may live. Nothing else may
    /// follow from it.
    pub locks_end_early: bool,
    /// How long a key may then take to be usable, beyond its longest lock TTL.
    pub usable_after: Duration,
    /// How many points a search may visit for one key before it is given up.
    pub points_max: usize,
}

impl Bounds {
    /// Those of a history that ended then, in which the world need not have healed.
    pub fn until(ended: Time) -> Self {
        Self {
            ended,
            late_max: Duration::from_secs(1),
            healed: None,
            locks_end_early: false,
            usable_after: Duration::from_secs(10),
            points_max: 100_000,
        }
    }
}

/// Why a history does not pass.
#[derive(Clone, Debug)]
pub struct Wrong {
    /// The promises that were broken.
    pub violations: Vec<Violation>,
    /// The keys of which nothing can be said, for a search was given up.
    pub undecided: Vec<Name>,
    /// All that was seen of these keys.
    pub histories: BTreeMap<Name, Vec<Operation>>,
    /// How much was seen.
    pub totals: Totals,
}

impl History {
    /// A caller makes a call of `key`.
    pub fn call(&self, caller: &str, key: &str, call: Call) -> OperationId {
        self.add(Operation {
            key: key.into(),
            caller: caller.into(),
            call,
            tries: Vec::new(),
            answer: None,
            after: None,
        })
    }

    /// A caller begins to watch `key`.
    pub fn watch(&self, caller: &str, key: &str, opened: Time) -> Watch {
        Watch { caller: caller.into(), key: key.into(), opened, last: None }
    }

    /// A watcher is told something.
    pub fn told(&self, watch: &mut Watch, at: Time, answer: Answer) {
        let id = self.add(Operation {
            key: watch.key.clone(),
            caller: watch.caller.clone(),
            call: Call::Watch,
            tries: vec![Try { sent: watch.opened, due: None, fate: Fate::Answered(at) }],
            answer: Some(answer),
            after: watch.last,
        });
        watch.last = Some(id.number);
    }

    fn add(&self, operation: Operation) -> OperationId {
        let key = operation.key.clone();
        let mut keys = self.keys();
        let operations = keys.entry(key.clone()).or_default();
        operations.push(operation);
        OperationId { number: operations.len() - 1, key }
    }

    /// The call is sent, for the first time or again; its answer is due after `due`.
    pub fn sent(&self, id: &OperationId, sent: Time, due: Option<Duration>) {
        self.with(id, |it| it.tries.push(Try { sent, due, fate: Fate::Open }));
    }

    /// The try that is under way failed.
    pub fn failed(&self, id: &OperationId, fate: Fate) {
        self.with(id, |it| it.tries.last_mut().expect("it was sent").fate = fate);
    }

    /// The try that is under way was answered.
    pub fn answered(&self, id: &OperationId, at: Time, answer: Answer) {
        self.with(id, |it| {
            it.tries.last_mut().expect("it was sent").fate = Fate::Answered(at);
            it.answer = Some(answer);
        });
    }

    fn with(&self, id: &OperationId, change: impl FnOnce(&mut Operation)) {
        change(&mut self.keys().get_mut(&id.key).expect("an operation of this history")[id.number]);
    }

    fn keys(&self) -> MutexGuard<'_, BTreeMap<Name, Vec<Operation>>> {
        self.keys.lock().expect("nobody panics with it")
    }

    /// The operations of each key.
    pub fn operations(&self) -> BTreeMap<Name, Vec<Operation>> {
        self.keys().clone()
    }

    /// Until when an outcome of `key` under this token is kept, at least; `None` if nobody is seen to have stored it.
    pub fn kept_until(&self, key: &str, token: u64) -> Option<Time> {
        promises::kept_until(self.keys().get(key)?, token)
    }

    /// Holds every promise against it.
    ///
    /// # Errors
    /// The promises that were broken, and the keys that it could not decide on.
    pub fn check(&self, bounds: &Bounds) -> Result<Totals, Box<Wrong>> {
        let mut found = Wrong {
            violations: Vec::new(),
            undecided: Vec::new(),
            histories: BTreeMap::new(),
            totals: Totals::default(),
        };
        for (key, operations) in &*self.keys() {
            let wrong_before = found.violations.len() + found.undecided.len();
            let mut broken = |promise, what| {
                found.violations.push(Violation { key: key.to_string(), promise, what });
            };
            for (promise, check) in promises::CHECKS {
                if let Some(what) = check(operations, bounds) {
                    broken(promise, what);
                }
            }
            match linear::search(operations, bounds) {
                Verdict::Explained => {}
                Verdict::Impossible(what) => broken(Promise::Linearizable, what),
                Verdict::Undecided(_) => found.undecided.push(key.clone()),
            }
            if found.violations.len() + found.undecided.len() > wrong_before {
                found.histories.insert(key.clone(), operations.clone());
            }
            found.totals.count(operations);
        }
        found.totals.undecided = found.undecided.len();
        if found.violations.is_empty() && found.undecided.is_empty() {
            Ok(found.totals)
        } else {
            Err(Box::new(found))
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Enough to go by: one fault shows in many places.
        const SHOWN: usize = 20;
        const HISTORIES_SHOWN: usize = 3;
        for violation in self.violations.iter().take(SHOWN) {
            writeln!(f, "{violation}")?;
        }
        if let Some(more) = self.violations.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            writeln!(f, "and {more} more")?;
        }
        if !self.undecided.is_empty() {
            writeln!(f, "undecided, so not shown to be right: {:?}", self.undecided)?;
        }
        for (key, operations) in self.histories.iter().take(HISTORIES_SHOWN) {
            writeln!(f, "all that was seen of {key}, in the order of being sent:")?;
            let mut numbered: Vec<_> = operations.iter().enumerate().collect();
            numbered.sort_by_key(|(_, operation)| operation.first_sent());
            for (number, operation) in numbered {
                writeln!(f, "{}", InFull(number, operation))?;
            }
        }
        write!(f, "{:?}", self.totals)
    }
}
