//! Callers in a closed loop, or in an open one.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::CreationError;
use tokio::signal::unix::Signal;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::BenchArgs;
use super::scenario::Plan;
use super::tally::{Tally, Totals};
use crate::clock::Moment;

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(250);
/// How finely an open loop keeps its time, and how soon it ends.
const PACE: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(10));
/// How long a caller of a closed loop rests when a call of its has failed: one that is refused at once would do nothing
/// but be refused.
const REST: Duration = Duration::from_millis(50);
/// In how many steps it is counted how long those had waited that were never sent.
const UNSENT_STEPS: u64 = 10_000;

/// What came of a load.
pub struct Loaded {
    pub totals: Totals,
    /// For how long it was measured.
    pub elapsed: Duration,
    /// How many keys were done with in this time, whenever they were due.
    pub done: u64,
    /// Of an open loop: how many were due, and were not begun since no caller was free.
    pub unsent: u64,
    /// How many keys were to be asked for once more after it, and were not answered.
    pub unread: u64,
    /// How many callers were still at it when nobody wanted to wait for them any longer.
    pub abandoned: usize,
}

/// What the callers share.
struct Load {
    plan: Plan,
    tally: Tally,
    next: AtomicU64,
    pace: Option<Pace>,
    stop: CancellationToken,
}

/// The beat of an open loop.
struct Pace {
    began: Moment,
    per_second: f64,
    /// A permit for each one that is due and not begun.
    due: Semaphore,
}

/// Puts the load on until its time is up, or somebody interrupts it.
///
/// # Errors
/// As [`Tally::new`].
pub async fn load(
    plan: Plan,
    args: &BenchArgs,
    interrupts: &mut Signal,
    progress: &Progress,
) -> Result<Loaded, CreationError> {
    let (clock, began) = (plan.clock.clone(), plan.clock.now());
    let warm = began + args.warm_up;
    let tally = Tally::new(warm, plan.prepared())?;
    let pace = args.rate.map(|per_second| Pace { began, per_second, due: Semaphore::new(0) });
    let stop = CancellationToken::new();
    let load = Arc::new(Load { plan, tally, next: AtomicU64::new(0), pace, stop });
    let pacer = {
        let load = Arc::clone(&load);
        tokio::task::spawn_blocking(move || load.keep_pace())
    };
    let mut callers = JoinSet::new();
    for number in 0..args.callers {
        callers.spawn(Arc::clone(&load).call(number));
    }
    let until = warm + args.duration;
    while clock.now() < until {
        progress.show(&load.progress(warm, args.duration));
        tokio::select! {
            () = tokio::time::sleep(until.since(clock.now()).min(TICK)) => {}
            _ = interrupts.recv() => break,
        }
    }
    load.stop.cancel();
    let (end, (done, _)) = (clock.now(), load.tally.so_far());
    let last_answers = async {
        progress.show("waiting for the last answers");
        while callers.join_next().await.is_some() {}
        progress.show("asking for keys of the load once more");
        load.plan.ask_again(&load.tally).await;
    };
    tokio::select! {
        () = last_answers => {}
        _ = interrupts.recv() => {}
    }
    // It ends soon by itself, and cannot fail.
    let _ = pacer.await;
    let unsent = load.unsent(end);
    let totals = load.tally.totals();
    let unread = load.plan.to_ask_again().saturating_sub(totals.checked.asked_again);
    Ok(Loaded { totals, elapsed: end.since(warm), done, unsent, unread, abandoned: callers.len() })
}

impl Load {
    /// A caller: begins the next one until told to stop.
    async fn call(self: Arc<Self>, caller: usize) {
        while let Some((number, since)) = self.next().await {
            let failed = !self.plan.run(caller, number, since, &self.tally).await;
            if failed && self.pace.is_none() {
                tokio::time::sleep(REST).await;
            }
        }
    }

    /// The next one, and when it should have begun: in an open loop that may be long ago.
    async fn next(&self) -> Option<(u64, Moment)> {
        let Some(pace) = &self.pace else {
            let go_on = !self.stop.is_cancelled();
            return go_on.then(|| (self.next.fetch_add(1, Ordering::Relaxed), self.plan.clock.now()));
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => return None,
            permit = pace.due.acquire() => permit.ok()?.forget(),
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Some((number, pace.due_at(number)))
    }

    /// Counts those that were due and found no free caller as having waited until the end: how many they are.
    fn unsent(&self, end: Moment) -> u64 {
        let Some(pace) = &self.pace else { return 0 };
        let (mut left, mut number) = (pace.due.available_permits() as u64, self.next.load(Ordering::Relaxed));
        let (unsent, step) = (left, left.div_ceil(UNSENT_STEPS));
        while left > 0 {
            let count = step.min(left);
            self.plan.never_sent(pace.due_at(number), end, count, &self.tally);
            (left, number) = (left - count, number + count);
        }
        unsent
    }

    /// Lets callers begin what is due. A thread of its own sleeps more finely than the timers of the runtime, whose
    /// milliseconds would be told as the server's.
    fn keep_pace(&self) {
        let Some(pace) = &self.pace else { return };
        let (mut due, (finest, longest)) = (0_u64, PACE);
        while !self.stop.is_cancelled() {
            let elapsed = self.plan.clock.now().since(pace.began);
            // The first one is due at once.
            let by_now = (elapsed.as_secs_f64() * pace.per_second) as u64 + 1;
            pace.due.add_permits(usize::try_from(by_now.saturating_sub(due)).unwrap_or(0));
            due = by_now;
            let next = pace.due_at(due);
            std::thread::sleep(next.since(self.plan.clock.now()).clamp(finest, longest));
        }
    }

    fn progress(&self, warm: Moment, duration: Duration) -> String {
        let now = self.plan.clock.now();
        if now <= warm {
            return "warming up".to_owned();
        }
        let (elapsed, (done, failed)) = (now.since(warm).as_secs_f64(), self.tally.so_far());
        let waiting = self.pace.as_ref().map_or(0, |pace| pace.due.available_permits());
        let behind = if waiting > 0 { format!(", {waiting} overdue") } else { String::new() };
        let rate = done as f64 / elapsed;
        format!(
            "{elapsed:.0} s of {:.0} s: {rate:.0} keys a second, {failed} failed{behind}",
            duration.as_secs_f64()
        )
    }
}

impl Pace {
    fn due_at(&self, number: u64) -> Moment {
        self.began + Duration::from_secs_f64(number as f64 / self.per_second)
    }
}

/// One line on standard error that changes, for a person at a terminal.
pub struct Progress {
    shown: bool,
}

impl Progress {
    pub fn new() -> Self {
        Self { shown: io::stderr().is_terminal() }
    }

    /// Shows this in place of what was shown before.
    pub fn show(&self, text: &str) {
        if self.shown {
            // There is nobody to tell of a terminal that is gone.
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.show("");
    }
}
