//! Histories of one key, written by hand. Times are whole seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use onced_history::{
    Answer, Begin, Bounds, Call, Checkpoint, Claim, Disposition, Fate, History, OnLapse, Operation,
    Resolution, Totals, Watch, Wrong,
};

pub const KEY: &str = "k";
pub const CALLER: &str = "somebody";
/// The lock TTL of every claim, in seconds.
pub const TTL: u64 = 10;
/// The retention of every record, in seconds.
pub const RETENTION: u64 = 100;

pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A history as it is told. What is planted in it makes it one that cannot be.
#[derive(Default)]
pub struct Story {
    pub history: History,
    /// By when they were opened.
    watches: BTreeMap<u64, Watch>,
    healed: Option<u64>,
    /// Whether what is planted is left out.
    pub without_the_planted: bool,
}

impl Story {
    pub fn without_what_is_planted() -> Self {
        Self { without_the_planted: true, ..Self::default() }
    }

    /// A call that is answered at once.
    pub fn op(&mut self, sent: u64, answered: u64, call: Call, answer: Answer) {
        self.retried(&[], sent, answered, call, answer);
    }

    /// A call that fails after a second, and what it did is unknown.
    pub fn lost(&mut self, sent: u64, call: Call) {
        let id = self.history.call(CALLER, KEY, call);
        self.history.sent(&id, seconds(sent), None);
        self.history.failed(&id, Fate::Unknown(seconds(sent + 1)));
    }

    /// A call that fails at first, and is answered when it is tried for the last time.
    pub fn retried(&mut self, lost: &[u64], sent: u64, answered: u64, call: Call, answer: Answer) {
        let id = self.history.call(CALLER, KEY, call);
        for &sent in lost {
            self.history.sent(&id, seconds(sent), None);
            self.history.failed(&id, Fate::Unknown(seconds(sent + 1)));
        }
        self.history.sent(&id, seconds(sent), Some(seconds(5)));
        self.history.answered(&id, seconds(answered), answer);
    }

    /// A watch, and when it is told what. One that is there already goes on.
    pub fn watch(&mut self, opened: u64, told: &[(u64, Answer)]) {
        let watch = self.watches.entry(opened);
        let watch = watch.or_insert_with(|| self.history.watch(CALLER, KEY, seconds(opened)));
        for (at, answer) in told {
            self.history.told(watch, seconds(*at), answer.clone());
        }
    }

    /// What cannot be.
    pub fn planted(&mut self, plant: impl FnOnce(&mut Story)) {
        if !self.without_the_planted {
            plant(self);
        }
    }

    /// From then on nothing fails.
    pub fn healed(&mut self, at: u64) {
        self.healed = Some(at);
    }

    pub fn check(&self) -> Result<Totals, Box<Wrong>> {
        let healed = self.healed.map(seconds);
        self.history.check(&Bounds { healed, ..Bounds::until(seconds(1_000)) })
    }
}

/// A Begin with this request id, of an owner of the same name.
pub fn begin(caller: &str) -> Call {
    Call::Begin(begin_of(caller))
}

pub fn begin_of(caller: &str) -> Begin {
    Begin {
        request_id: caller.into(),
        owner: caller.into(),
        fingerprint: None,
        lock_ttl: seconds(TTL),
        retention: seconds(RETENTION),
        on_lapse: OnLapse::TakeOver,
    }
}

pub fn begin_for(caller: &str, fingerprint: &str) -> Call {
    Call::Begin(Begin { fingerprint: Some(fingerprint.into()), ..begin_of(caller) })
}

pub fn begin_hold(caller: &str) -> Call {
    Call::Begin(Begin { on_lapse: OnLapse::Hold, ..begin_of(caller) })
}

pub fn complete(token: u64, outcome: &str) -> Call {
    Call::Complete { token, outcome: outcome.into(), retention: None }
}

pub fn renew(token: u64) -> Call {
    Call::Renew { token, checkpoint: None }
}

pub fn save(token: u64, sequence: u64) -> Call {
    Call::Renew { token, checkpoint: Some(checkpoint(sequence)) }
}

pub fn release(token: u64) -> Call {
    Call::Release { token, disposition: Disposition::Retry }
}

pub fn doubt(token: u64) -> Call {
    Call::Release { token, disposition: Disposition::InDoubt }
}

pub fn lookup() -> Call {
    Call::Lookup { waits: false }
}

pub fn lookup_that_waits() -> Call {
    Call::Lookup { waits: true }
}

pub fn resolve(token: u64) -> Call {
    Call::Resolve { token, resolution: Resolution::Retry }
}

pub fn settle(token: u64, outcome: &str) -> Call {
    Call::Resolve { token, resolution: Resolution::Outcome(outcome.into(), None) }
}

pub fn delete(token: u64) -> Call {
    Call::Delete { token, force: false }
}

pub fn checkpoint(sequence: u64) -> Checkpoint {
    Checkpoint { sequence, data: format!("done with {sequence}").as_str().into() }
}

pub fn claim(token: u64, attempt: u64) -> Answer {
    Answer::Claim(claim_of(token, attempt))
}

pub fn claim_of(token: u64, attempt: u64) -> Claim {
    Claim { token, attempt, lock_ttl: seconds(TTL), waited: Duration::ZERO, resumed: false, checkpoint: None }
}

pub fn resumed(token: u64, attempt: u64) -> Answer {
    Answer::Claim(Claim { resumed: true, ..claim_of(token, attempt) })
}

pub fn claim_at(token: u64, attempt: u64, sequence: u64) -> Answer {
    Answer::Claim(Claim { checkpoint: Some(checkpoint(sequence)), ..claim_of(token, attempt) })
}

pub fn completed(token: u64, attempt: u64, owner: &str, outcome: &str) -> Answer {
    Answer::Completed { token, attempt, owner: owner.into(), outcome: outcome.into() }
}

pub fn in_progress(attempt: u64, owner: &str) -> Answer {
    Answer::InProgress { attempt, owner: owner.into() }
}

pub fn in_doubt(token: u64, attempt: u64, owner: &str) -> Answer {
    Answer::InDoubt { token, attempt, owner: owner.into() }
}

pub fn available(attempt: u64, owner: &str) -> Answer {
    Answer::Available { attempt, owner: owner.into() }
}

pub fn stored() -> Answer {
    Answer::Stored { repeated: false }
}

pub fn stored_already() -> Answer {
    Answer::Stored { repeated: true }
}

pub fn renewed() -> Answer {
    Answer::Renewed { lock_ttl: seconds(TTL) }
}

/// A history of operations made elsewhere.
pub fn history_of(operations: &[Operation]) -> History {
    let history = History::default();
    // By the number of their last update.
    let mut watches = BTreeMap::new();
    for (number, operation) in operations.iter().enumerate() {
        let Operation { key, caller, .. } = operation;
        if operation.call == Call::Watch {
            let before = operation.after.and_then(|before| watches.remove(&before));
            let (opened, told) = operation.span();
            let mut watch = before.unwrap_or_else(|| history.watch(caller, key, opened));
            history.told(&mut watch, told.unwrap(), operation.answer.clone().unwrap());
            watches.insert(number, watch);
            continue;
        }
        let id = history.call(caller, key, operation.call.clone());
        for tried in &operation.tries {
            history.sent(&id, tried.sent, tried.due);
            match (tried.fate, &operation.answer) {
                (Fate::Answered(at), Some(answer)) => history.answered(&id, at, answer.clone()),
                (fate, _) => history.failed(&id, fate),
            }
        }
    }
    history
}
