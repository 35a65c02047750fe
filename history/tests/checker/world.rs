//! Callers of one key, and a service that does as the specification says, one call at a time; in between, calls
//! take their time, and some get lost. Times are milliseconds.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use fastrand::Rng;
use onced_history::spec::{Phase, Record, State};
use onced_history::told::Told;
use onced_history::{
    Answer, Begin, Call, Checkpoint, Claim, Disposition, Fate, OnLapse, Operation, Resolution, Time, Try,
};

/// How often things go wrong, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// A try is lost on its way there.
    lost: u8,
    /// It is applied, and its answer lost.
    unanswered: u8,
    /// It fails, and is applied later.
    late: u8,
    /// The server does not know what became of its write, and does it again.
    twice: u8,
}

impl Faults {
    pub const NONE: Faults = Faults { lost: 0, unanswered: 0, late: 0, twice: 0 };
    pub const SOME: Faults = Faults { lost: 3, unanswered: 5, late: 2, twice: 2 };
    pub const MANY: Faults = Faults { lost: 10, unanswered: 20, late: 10, twice: 10 };
}

const CALLERS: usize = 6;
/// When callers stop.
const END: u64 = 60_000;
/// The retention of records, the shortest that fits in twice.
const RETENTION: u64 = 20_000;

pub struct World {
    rng: Rng,
    /// For watchers, beside whom all else goes on as without them.
    watching: Rng,
    faults: Faults,
    now: u64,
    state: State,
    last_token: u64,
    operations: Vec<Operation>,
    callers: Vec<Caller>,
    events: BinaryHeap<Reverse<(u64, usize)>>,
    what: BTreeMap<usize, Event>,
}

/// What a caller knows.
#[derive(Clone, Default)]
struct Caller {
    /// Its request ids so far.
    ids: usize,
    /// Its claim.
    token: Option<u64>,
    saved: u64,
}

#[derive(Clone, Copy)]
enum Event {
    /// A caller does something.
    Act(usize),
    /// A caller tries its operation again.
    Retry(usize, usize),
    /// An operation takes effect; with when it is answered, if its caller is there to hear it.
    Effect { caller: usize, operation: usize, answered: Option<u64>, gives_back: bool },
    /// Its answer arrives.
    Answered { caller: usize, operation: usize },
    /// A try fails.
    Failed { caller: usize, operation: usize },
    /// A claim that nobody received is given back.
    GiveBack(usize),
    /// A watch looks for what it tells next.
    Look(Watch),
    /// It is time for what comes with time.
    Tick,
}

/// A watch: when it was opened, its last update, and when that was told.
#[derive(Clone, Copy)]
struct Watch {
    opened: u64,
    last: Option<usize>,
    told: u64,
}

fn time(millis: u64) -> Time {
    Duration::from_millis(millis)
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut world = Self {
            rng: Rng::with_seed(seed),
            watching: Rng::with_seed(seed),
            faults,
            now: 0,
            state: State::default(),
            last_token: 10,
            operations: Vec::new(),
            callers: vec![Caller::default(); CALLERS],
            events: BinaryHeap::new(),
            what: BTreeMap::new(),
        };
        for caller in 0..CALLERS {
            world.soon(500, Event::Act(caller));
        }
        world
    }

    /// All that happens, until nothing is left to happen.
    pub fn run(mut self) -> Vec<Operation> {
        while let Some(Reverse((at, event))) = self.events.pop() {
            self.now = at;
            let event = self.what.remove(&event).unwrap();
            self.on(event);
        }
        self.operations
    }

    fn at(&mut self, at: u64, event: Event) {
        let number = self.what.last_key_value().map_or(0, |(last, _)| last + 1);
        self.what.insert(number, event);
        self.events.push(Reverse((at, number)));
    }

    fn soon(&mut self, within: u64, event: Event) {
        let at = self.now + 1 + self.rng.u64(..within);
        self.at(at, event);
    }

    fn percent(&mut self, percent: u8) -> bool {
        self.rng.u8(..100) < percent
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Act(_) if self.now > END => {}
            Event::Act(caller) => {
                let call = self.choose(caller);
                self.operations.push(Operation {
                    key: "k".into(),
                    caller: format!("caller {caller}").into(),
                    call,
                    tries: Vec::new(),
                    answer: None,
                    after: None,
                });
                self.send(caller, self.operations.len() - 1);
            }
            Event::Look(watch) => self.look(watch),
            Event::Retry(caller, operation) => self.send(caller, operation),
            Event::Effect { caller, operation, answered, gives_back } => {
                let (told, answer) = self.apply(operation);
                if gives_back && told == (Told::Claim { resumed: false }) {
                    self.state.not_received(operation, time(self.now));
                    self.soon(100, Event::GiveBack(operation));
                }
                if let Some(at) = answered {
                    self.operations[operation].answer = Some(answer);
                    self.at(at, Event::Answered { caller, operation });
                }
            }
            Event::Answered { caller, operation } => self.answered(caller, operation),
            Event::Failed { caller, operation } => self.failed(caller, operation),
            Event::GiveBack(operation) => {
                if let Some((_, next)) = self.state.give_back().filter(|(made_by, _)| *made_by == operation) {
                    self.state = next;
                    self.date();
                }
            }
            Event::Tick => {
                let now = time(self.now);
                let due = |at: &(Time, State)| at.0 <= now;
                if let Some((_, next)) = self.state.lapse().filter(due) {
                    self.state = next;
                } else if let Some((_, next)) = self.state.expiry().filter(due) {
                    self.state = next;
                }
            }
        }
    }

    fn look_soon(&mut self, watch: Watch) {
        let at = self.now + 1 + self.watching.u64(..3_000);
        self.at(at, Event::Look(watch));
    }

    /// Tells a watch what is there: some time later, and after what it was told before.
    fn look(&mut self, watch: Watch) {
        let (told, _) = self.state.after(&Call::Watch, time(self.now));
        let answer = answer(told, self.state.record.as_ref(), Duration::ZERO);
        let is_over = matches!(answer, Answer::Completed { .. } | Answer::NotFound);
        let at = self.now.max(watch.told) + 1 + self.watching.u64(..3_000);
        self.operations.push(Operation {
            key: "k".into(),
            caller: "watcher".into(),
            call: Call::Watch,
            tries: vec![Try { sent: time(watch.opened), due: None, fate: Fate::Answered(time(at)) }],
            answer: Some(answer),
            after: watch.last,
        });
        if !is_over && self.now < END {
            let last = Some(self.operations.len() - 1);
            self.look_soon(Watch { last, told: at, ..watch });
        }
    }

    /// The next thing that a caller does.
    fn choose(&mut self, caller: usize) -> Call {
        if self.watching.u8(..100) < 5 {
            self.look_soon(Watch { opened: self.now, last: None, told: self.now });
        }
        let dice = self.rng.u8(..100);
        if dice < 10 {
            return Call::Lookup { waits: false };
        }
        let seen = self.state.record.as_ref().and_then(|it| Some((it.token?, it.phase.clone())));
        if let (10..14, Some((token, phase))) = (dice, seen) {
            match phase {
                Phase::InDoubt { .. } | Phase::InProgress { .. } => {
                    return Call::Resolve { token, resolution: self.resolution() };
                }
                Phase::Completed { .. } => return Call::Delete { token, force: self.rng.bool() },
                Phase::Released { .. } => {}
            }
        }
        let me = &mut self.callers[caller];
        let Some(token) = me.token else { return Call::Begin(self.begin(caller)) };
        match dice {
            14..50 => {
                me.saved += 1;
                let sequence = me.saved + self.rng.u64(..2);
                let data = format!("{caller} saved {}", self.now).as_str().into();
                let checkpoint = self.rng.bool().then_some(Checkpoint { sequence, data });
                Call::Renew { token, checkpoint }
            }
            50..65 => {
                let outcome = format!("{caller} did {}", self.now).as_str().into();
                let retention = self.rng.bool().then_some(time(2 * RETENTION));
                Call::Complete { token, outcome, retention }
            }
            65..85 => Call::Release { token, disposition: Disposition::Retry },
            85..90 => Call::Release { token, disposition: Disposition::InDoubt },
            90..95 => {
                // It walks away.
                me.token = None;
                me.ids += 1;
                Call::Lookup { waits: false }
            }
            _ => Call::Begin(self.begin(caller)),
        }
    }

    fn resolution(&mut self) -> Resolution {
        if self.rng.bool() {
            return Resolution::Retry;
        }
        Resolution::Outcome(format!("settled {}", self.now).as_str().into(), None)
    }

    fn begin(&mut self, caller: usize) -> Begin {
        let fingerprint = if self.percent(5) { "another" } else { "this" };
        Begin {
            request_id: format!("{caller}-{}", self.callers[caller].ids).into(),
            owner: format!("host-{}", caller % 3).into(),
            fingerprint: self.rng.bool().then(|| fingerprint.into()),
            lock_ttl: time(2_000),
            retention: time(RETENTION),
            on_lapse: if self.percent(20) { OnLapse::Hold } else { OnLapse::TakeOver },
        }
    }

    fn send(&mut self, caller: usize, operation: usize) {
        let sent = Try { sent: time(self.now), due: None, fate: Fate::Open };
        self.operations[operation].tries.push(sent);
        let effect = self.now + 1 + self.rng.u64(..200);
        let ended = effect + 1 + self.rng.u64(..100);
        let event = |answered, gives_back| Event::Effect { caller, operation, answered, gives_back };
        let failed = Event::Failed { caller, operation };
        let Faults { lost, unanswered, late, twice } = self.faults;
        match self.rng.u8(..100) {
            dice if dice < lost => self.at(ended, failed),
            dice if dice < lost + unanswered => {
                let gives_back = self.rng.bool();
                self.at(effect, event(None, gives_back));
                self.at(ended, failed);
            }
            dice if dice < lost + unanswered + late => {
                let landed = ended + self.rng.u64(..5_000);
                self.at(landed, event(None, false));
                self.at(ended, failed);
            }
            dice => {
                if dice < lost + unanswered + late + twice {
                    let before = self.now + 1 + self.rng.u64(..effect - self.now);
                    self.at(before, event(None, false));
                }
                self.at(effect, event(Some(ended), false));
            }
        }
    }

    /// Does what an operation asks for, and tells what it is answered.
    fn apply(&mut self, operation: usize) -> (Told, Answer) {
        let (told, next) = self.state.after(&self.operations[operation].call, time(self.now));
        self.state = next;
        if let Some(record) = &mut self.state.record
            && record.token.is_none()
        {
            self.last_token += 1 + self.rng.u64(1..5);
            record.token = Some(self.last_token);
            self.state.token_floor = self.last_token;
        }
        self.date();
        let tried = self.operations[operation].tries.last().unwrap();
        let waited = time(self.now).saturating_sub(tried.sent).mul_f64(self.rng.f64());
        (told, answer(told, self.state.record.as_ref(), waited))
    }

    /// Has what comes with time come some time after it may.
    fn date(&mut self) {
        for (at, _) in self.state.lapse().into_iter().chain(self.state.expiry()) {
            let late = self.rng.u64(..1_000);
            self.at(u64::try_from(at.as_millis()).unwrap().max(self.now) + late, Event::Tick);
        }
    }

    fn answered(&mut self, caller: usize, operation: usize) {
        let Operation { call, tries, answer, .. } = &mut self.operations[operation];
        tries.last_mut().unwrap().fate = Fate::Answered(time(self.now));
        let me = &mut self.callers[caller];
        match (&*call, answer.as_ref().unwrap()) {
            (Call::Begin(_), Answer::Claim(claim)) => {
                me.token = Some(claim.token);
                me.saved = claim.checkpoint.as_ref().map_or(0, |it| it.sequence);
            }
            (Call::Begin(_), _) => me.ids += 1,
            (Call::Renew { .. }, Answer::Renewed { .. }) | (Call::Lookup { .. }, _) => {}
            (call, _) if call.held_token().is_some() => {
                me.token = None;
                me.ids += 1;
            }
            _ => {}
        }
        self.soon(1_000, Event::Act(caller));
    }

    fn failed(&mut self, caller: usize, operation: usize) {
        self.operations[operation].tries.last_mut().unwrap().fate = Fate::Unknown(time(self.now));
        if self.percent(80) {
            self.soon(300, Event::Retry(caller, operation));
            return;
        }
        // It is somebody else from here on.
        self.callers[caller].token = None;
        self.callers[caller].ids += 1;
        self.soon(1_000, Event::Act(caller));
    }
}

/// What is told, with what goes with it.
fn answer(told: Told, record: Option<&Record>, waited: Duration) -> Answer {
    let standing = |record: &Record| {
        let (token, attempt, owner) = (record.token.unwrap(), record.attempt, record.owner.clone());
        match &record.phase {
            Phase::Completed { outcome, .. } => {
                Answer::Completed { token, attempt, owner, outcome: outcome.clone() }
            }
            Phase::InProgress { held_until: Some(_), .. } => Answer::InProgress { attempt, owner },
            Phase::InProgress { on_lapse: OnLapse::TakeOver, .. } | Phase::Released { .. } => {
                Answer::Available { attempt, owner }
            }
            Phase::InProgress { on_lapse: OnLapse::Hold, .. } | Phase::InDoubt { .. } => {
                Answer::InDoubt { token, attempt, owner }
            }
        }
    };
    let lock_ttl = |record: &Record| match record.phase {
        Phase::InProgress { lock_ttl, .. } => lock_ttl,
        _ => panic!("not armed"),
    };
    match (told, record) {
        (Told::Claim { resumed }, Some(record)) => Answer::Claim(Claim {
            token: record.token.unwrap(),
            attempt: record.attempt,
            lock_ttl: lock_ttl(record),
            waited,
            resumed,
            checkpoint: record.checkpoint.clone(),
        }),
        (Told::Standing, Some(record)) => standing(record),
        (Told::Renewed, Some(record)) => Answer::Renewed { lock_ttl: lock_ttl(record) },
        (Told::Claim { .. } | Told::Standing | Told::Renewed, None) => panic!("told of no record"),
        (Told::Stored { repeated }, _) => Answer::Stored { repeated },
        (Told::Ok, _) => Answer::Ok,
        (Told::FingerprintMismatch, _) => Answer::FingerprintMismatch,
        (Told::OutcomeConflict, _) => Answer::OutcomeConflict,
        (Told::ClaimLost | Told::Spent, _) => Answer::ClaimLost,
        (Told::ClaimHeld, _) => Answer::ClaimHeld,
        (Told::NotFound, _) => Answer::NotFound,
    }
}
