//! What came of a load: how long things took, what failed, and whether all that was promised was kept.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hdrhistogram::{CreationError, Histogram};
use onced_client::Refusal;

use super::super::output::reason_name;
use crate::clock::Moment;
use crate::rpc::code_name;

/// Times are kept to three digits, from a microsecond to a day; what takes longer counts as that.
const DIGITS: u8 = 3;
const MICROS: (u64, u64) = (1, 86_400_000_000);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Begin, work, Complete.
    Pair,
    /// A Begin that brought a claim.
    Begin,
    /// A Complete.
    Complete,
    /// A Begin of a key that somebody else was at work on, until it brought the outcome.
    Duplicate,
    /// A Begin of a key that was completed before.
    Replay,
}

impl Kind {
    /// All of them, in the order that they are told in.
    pub const ALL: [Kind; 5] = [Kind::Pair, Kind::Begin, Kind::Complete, Kind::Duplicate, Kind::Replay];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Pair => "pair",
            Kind::Begin => "begin",
            Kind::Complete => "complete",
            Kind::Duplicate => "duplicate",
            Kind::Replay => "replay",
        }
    }
}

/// Counts while the load runs. All answers are checked; measured is what was due when the load was warm, whenever it
/// ended: who leaves out what is slow to end tells of a better server than there is.
pub struct Tally {
    /// From when on it is measured.
    from: Moment,
    times: [Mutex<Times>; Kind::ALL.len()],
    failed: Mutex<BTreeMap<String, Failures>>,
    checked: Mutex<Checked>,
}

/// How long one kind took.
#[derive(Clone)]
pub struct Times {
    /// In microseconds, of all that was due while it was measured: what was never begun, too, as long as it had waited.
    pub micros: Histogram<u64>,
    /// How many of those were done.
    pub done: u64,
    /// How many ended since it is measured, also of those that were due before.
    ended: u64,
}

/// Calls that failed in one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failures {
    pub count: u64,
    /// What the first one was told.
    pub first: String,
}

/// What was promised, and what was seen of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Keys that were executed once, as they must be.
    pub once: u64,
    /// Claims of keys that somebody had a claim of, or had completed.
    pub again: u64,
    /// Keys that nobody executed, though no call failed.
    pub never: u64,
    /// Keys that nobody is known to have executed, since calls failed.
    pub unknown: u64,
    /// Outcomes that were told to those who did not store them.
    pub told: u64,
    /// Outcomes that were not, byte for byte, what was stored.
    pub mismatched: u64,
    /// Keys that were asked for once more after the load, and answered.
    pub asked_again: u64,
}

/// What came of it all.
pub struct Totals {
    /// By [`Kind`].
    pub times: Vec<(Kind, Times)>,
    /// By reason, since it was measured.
    pub failed: BTreeMap<String, Failures>,
    pub checked: Checked,
}

impl Tally {
    /// Counts of a load before which so many keys were executed. It is measured from a moment on.
    ///
    /// # Errors
    /// If times cannot be kept so.
    pub fn new(from: Moment, executed: u64) -> Result<Self, CreationError> {
        let micros = Histogram::new_with_bounds(MICROS.0, MICROS.1, DIGITS)?;
        let times = Times { micros, done: 0, ended: 0 };
        Ok(Self {
            from,
            times: Kind::ALL.map(|_| Mutex::new(times.clone())),
            failed: Mutex::default(),
            checked: Mutex::new(Checked { once: executed, ..Checked::default() }),
        })
    }

    /// Something was done by now that should have begun `since`.
    pub fn took(&self, kind: Kind, since: Moment, now: Moment) {
        let mut times = lock(&self.times[kind as usize]);
        if since >= self.from {
            times.micros.saturating_record(micros(since, now));
            times.done += 1;
        }
        times.ended += u64::from(now >= self.from);
    }

    /// So many should have begun `since`, and never did: they had waited until now, and would have taken longer.
    pub fn waited(&self, kind: Kind, since: Moment, now: Moment, count: u64) {
        if since >= self.from {
            lock(&self.times[kind as usize]).micros.saturating_record_n(micros(since, now), count);
        }
    }

    /// A call failed now.
    pub fn refused(&self, now: Moment, refusal: &Refusal) {
        let name = reason_name(refusal).unwrap_or(code_name(refusal.code));
        self.failed(now, name, &refusal.message);
    }

    /// The same for one that was answered, and not as it was to be.
    pub fn failed(&self, now: Moment, name: &str, message: &str) {
        if now >= self.from {
            let mut failed = lock(&self.failed);
            let new = || Failures { count: 0, first: message.to_owned() };
            failed.entry(name.to_owned()).or_insert_with(new).count += 1;
        }
    }

    /// A key is done with, having been claimed so often; and whether a call for it failed.
    pub fn settled(&self, claims: u64, failed: bool) {
        let mut checked = lock(&self.checked);
        match claims {
            0 if failed => checked.unknown += 1,
            0 => checked.never += 1,
            1 => checked.once += 1,
            more => checked.again += more - 1,
        }
    }

    /// A key was claimed that had been executed before.
    pub fn executed_again(&self) {
        lock(&self.checked).again += 1;
    }

    /// An outcome was told.
    pub fn told(&self, matches: bool) {
        let mut checked = lock(&self.checked);
        checked.told += 1;
        checked.mismatched += u64::from(!matches);
    }

    /// A key was asked for once more, and answered.
    pub fn asked_again(&self) {
        lock(&self.checked).asked_again += 1;
    }

    /// How many keys were done with since it is measured, whenever they were due, and how many calls failed.
    pub fn so_far(&self) -> (u64, u64) {
        let ended = [Kind::Pair, Kind::Replay].map(|kind| lock(&self.times[kind as usize]).ended);
        (ended.iter().sum(), lock(&self.failed).values().map(|failures| failures.count).sum())
    }

    /// What came of it all.
    pub fn totals(&self) -> Totals {
        let times = Kind::ALL.into_iter().zip(self.times.iter().map(|times| lock(times).clone())).collect();
        Totals { times, failed: lock(&self.failed).clone(), checked: *lock(&self.checked) }
    }
}

impl Checked {
    /// Whether all that was seen is as it must be.
    pub fn holds(&self) -> bool {
        self.again == 0 && self.never == 0 && self.mismatched == 0
    }
}

fn micros(since: Moment, now: Moment) -> u64 {
    u64::try_from(now.since(since).as_micros()).unwrap_or(u64::MAX)
}

/// Nothing that holds one panics.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_start(Duration::from_millis(millis))
    }

    #[test]
    fn measured_is_what_was_due_when_the_load_was_warm() {
        let tally = Tally::new(at(1_000), 0).unwrap();
        tally.took(Kind::Replay, at(500), at(999));
        tally.failed(at(999), "OVERLOADED", "");
        assert_eq!(tally.so_far(), (0, 0));
        tally.took(Kind::Replay, at(1_000), at(9_000));
        tally.failed(at(1_000), "OVERLOADED", "first");
        tally.failed(at(1_001), "OVERLOADED", "second");
        assert_eq!(tally.so_far(), (1, 2));
        let totals = tally.totals();
        assert_eq!(totals.failed["OVERLOADED"], Failures { count: 2, first: "first".to_owned() });
        let (_, replays) = &totals.times[Kind::Replay as usize];
        assert_eq!(replays.done, 1);
        assert!((7_990_000..8_010_000).contains(&replays.micros.max()), "{}", replays.micros.max());
    }

    #[test]
    fn what_was_due_before_is_seen_to_go_on_and_is_not_measured() {
        let tally = Tally::new(at(1_000), 0).unwrap();
        tally.took(Kind::Pair, at(999), at(1_000));
        assert_eq!(tally.so_far(), (1, 0));
        let (_, pairs) = &tally.totals().times[Kind::Pair as usize];
        assert_eq!((pairs.done, pairs.micros.len()), (0, 0));
    }

    #[test]
    fn what_never_began_has_waited_and_is_not_done() {
        let tally = Tally::new(at(1_000), 0).unwrap();
        tally.waited(Kind::Pair, at(999), at(5_000), 10);
        tally.waited(Kind::Pair, at(2_000), at(5_000), 3);
        tally.took(Kind::Pair, at(2_000), at(2_001));
        let (_, pairs) = &tally.totals().times[Kind::Pair as usize];
        assert_eq!((pairs.done, pairs.micros.len()), (1, 4));
        assert!((2_990_000..3_010_000).contains(&pairs.micros.value_at_percentile(50.0)));
        assert_eq!(tally.so_far(), (1, 0));
    }

    #[test]
    fn what_was_promised_is_one_execution_and_its_outcome() {
        let checked = |see: fn(&Tally)| {
            let tally = Tally::new(at(0), 3).unwrap();
            see(&tally);
            tally.totals().checked
        };
        let kept = checked(|tally| {
            tally.settled(1, false);
            tally.settled(1, true);
            tally.settled(0, true);
            tally.told(true);
        });
        assert_eq!(kept, Checked { once: 5, unknown: 1, told: 1, ..Checked::default() });
        assert!(kept.holds());
        let broken: [fn(&Tally); 4] = [
            |tally| tally.settled(2, true),
            |tally| tally.settled(0, false),
            Tally::executed_again,
            |tally| tally.told(false),
        ];
        for see in broken {
            assert!(!checked(see).holds(), "{:?}", checked(see));
        }
    }
}
