//! Group commit on etcd: writes that queued together ride in one transaction. Flat first, where all compares have
//! to hold or nothing is written; then nested, where each is decided for itself. A write that cannot be done takes
//! none of the others with it, and each is told what became of it and of nothing else.
//!
//! etcd refuses a transaction that writes a key twice, and one that names a lease which has ended; either way it
//! writes nothing, and does not say whose fault it was.

use stateright::{Model, Property};

use crate::check::Tell;
use crate::fault::Fault;

const KEYS: usize = 2;

/// What is looked at.
#[derive(Clone, Debug)]
pub struct Batches {
    /// The writes there are: of which key each is. All expect what stands there at first.
    pub writes: &'static [usize],
    /// How often others write a key.
    pub meddling: u8,
    pub fault: Option<Fault>,
}

/// The revision at which each key stood at first.
const FIRST: u8 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The revision of each key's last write.
    keys: [u8; KEYS],
    revision: u8,
    /// How many retention leases have ended. The next one is used.
    ended: u8,
    jobs: Vec<Job>,
    /// The transaction that is waited for.
    flying: Option<Transaction>,
    /// Transactions that were given up, and may land yet.
    late: Vec<Transaction>,
    meddling: u8,
    key_twice: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Job {
    key: usize,
    /// The lease that it hangs the record on.
    lease: u8,
    stage: Stage,
    /// At which revision it was written. 0: it was not.
    landed: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    ToCome,
    Queued,
    Riding,
    Done(u8),
    Lost,
    Unknown,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Transaction {
    nested: bool,
    jobs: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A write is queued.
    Queue(usize),
    /// What has queued leaves.
    Leave,
    /// The transaction lands and is answered.
    Land,
    /// The transaction is not answered in time.
    TimeOut,
    /// A transaction lands that nobody waits for.
    LandLate(usize),
    /// Somebody else writes a key.
    Meddle(usize),
    /// The retention lease in use ends.
    EndLease,
}

impl Model for Batches {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let job = |&key: &usize| Job { key, lease: 0, stage: Stage::ToCome, landed: 0 };
        vec![World {
            keys: [FIRST; KEYS],
            revision: FIRST,
            ended: 0,
            jobs: self.writes.iter().map(job).collect(),
            flying: None,
            late: Vec::new(),
            meddling: self.meddling,
            key_twice: false,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let at_stage = |stage| (0..world.jobs.len()).filter(move |&at| world.jobs[at].stage == stage);
        actions.extend(at_stage(Stage::ToCome).map(Action::Queue));
        match world.flying {
            None if at_stage(Stage::Queued).next().is_some() => actions.push(Action::Leave),
            None => {}
            Some(_) => actions.extend([Action::Land, Action::TimeOut]),
        }
        actions.extend((0..world.late.len()).map(Action::LandLate));
        if world.meddling > 0 {
            actions.extend((0..KEYS).map(Action::Meddle));
        }
        if world.ended == 0 {
            actions.push(Action::EndLease);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Queue(at) => next.queue(at),
            Action::Leave => {
                let jobs = next.take(self.fault == Some(Fault::KeyTwiceInBatch));
                let nested = false;
                next.flying = Some(Transaction { nested, jobs });
            }
            Action::Land => {
                let transaction = next.flying.take()?;
                let landed = next.land(&transaction);
                next.answer(self, transaction, landed);
            }
            Action::TimeOut => {
                let transaction = next.flying.take()?;
                let lost = self.fault == Some(Fault::UnknownReportedAsLost);
                next.tell(&transaction, if lost { Stage::Lost } else { Stage::Unknown });
                next.late.push(transaction);
            }
            Action::LandLate(at) => {
                let transaction = next.late.remove(at);
                let _ = next.land(&transaction);
            }
            Action::Meddle(key) => {
                next.meddling -= 1;
                next.revision += 1;
                next.keys[key] = next.revision;
            }
            Action::EndLease => next.ended += 1,
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("a transaction names no key twice", |_, world: &World| !world.key_twice),
            Property::always("a write fails for no other's sake", |_, world: &World| {
                world.jobs.iter().all(|job| job.stage != Stage::Failed)
            }),
            Property::always("what is told to be done is done", |_, world: &World| {
                world.jobs.iter().all(|job| !matches!(job.stage, Stage::Done(at) if at != job.landed))
            }),
            Property::always("what is told to have lost is not written", |_, world: &World| {
                world.jobs.iter().all(|job| job.stage != Stage::Lost || job.landed == 0)
            }),
            Property::always("who lost lost to another write", |_, world: &World| {
                world.jobs.iter().all(|job| job.stage != Stage::Lost || world.keys[job.key] != FIRST)
            }),
            Property::sometimes("a batch is written flat", |_, world: &World| {
                let done: Vec<u8> = world.jobs.iter().map(|job| job.landed).filter(|&at| at > 0).collect();
                done.len() > 1 && done.iter().all(|at| *at == done[0])
            }),
            Property::sometimes("one of a batch loses, and its neighbour is written", |_, world: &World| {
                let lost = world.jobs.iter().any(|job| job.stage == Stage::Lost && job.key == 0);
                lost && world.jobs.iter().any(|job| matches!(job.stage, Stage::Done(_)) && job.key == 1)
            }),
            Property::sometimes("what was given up is written late", |_, world: &World| {
                world.jobs.iter().any(|job| job.stage == Stage::Unknown && job.landed > 0)
            }),
            Property::sometimes("a write gets another lease", |_, world: &World| {
                world.ended > 0
                    && world.jobs.iter().any(|job| matches!(job.stage, Stage::Done(_)) && job.lease > 0)
                    && world.keys.contains(&FIRST)
            }),
        ]
    }
}

impl World {
    fn queue(&mut self, at: usize) {
        (self.jobs[at].stage, self.jobs[at].lease) = (Stage::Queued, self.ended);
    }

    /// The next batch: all that has queued, but of each key only the first.
    fn take(&mut self, key_twice: bool) -> Vec<usize> {
        let mut batch: Vec<usize> = Vec::new();
        for at in 0..self.jobs.len() {
            let has_key = batch.iter().any(|&other| self.jobs[other].key == self.jobs[at].key);
            if self.jobs[at].stage == Stage::Queued && (key_twice || !has_key) {
                self.key_twice |= has_key;
                self.jobs[at].stage = Stage::Riding;
                batch.push(at);
            }
        }
        batch
    }

    fn expected(&self, at: usize) -> bool {
        self.keys[self.jobs[at].key] == FIRST
    }

    /// What etcd makes of it: which of its writes were done, or that it was refused as a whole.
    fn land(&mut self, transaction: &Transaction) -> Result<Vec<bool>, Refused> {
        let jobs = &transaction.jobs;
        let keys = jobs.iter().map(|&at| self.jobs[at].key);
        if keys.clone().enumerate().any(|(at, key)| keys.clone().skip(at + 1).any(|other| other == key)) {
            return Err(Refused::KeyTwice);
        }
        if jobs.iter().any(|&at| self.jobs[at].lease < self.ended) {
            return Err(Refused::LeaseNotFound);
        }
        let holds: Vec<bool> = jobs.iter().map(|&at| self.expected(at)).collect();
        let all = holds.iter().all(|holds| *holds);
        let done: Vec<bool> = holds.iter().map(|holds| *holds && (all || transaction.nested)).collect();
        if done.contains(&true) {
            self.revision += 1;
        }
        for (&at, _) in jobs.iter().zip(&done).filter(|(_, done)| **done) {
            self.jobs[at].landed = self.revision;
            self.keys[self.jobs[at].key] = self.revision;
        }
        Ok(done)
    }

    fn answer(&mut self, model: &Batches, transaction: Transaction, landed: Result<Vec<bool>, Refused>) {
        match landed {
            Ok(done) if transaction.nested || done.iter().all(|done| *done) => {
                let shared = model.fault == Some(Fault::DoneIsSharedInBatch) && done.contains(&true);
                for (&at, done) in transaction.jobs.iter().zip(done) {
                    let done = done || shared;
                    self.jobs[at].stage = if done { Stage::Done(self.revision) } else { Stage::Lost };
                }
            }
            Ok(_) if model.fault == Some(Fault::LossFailsNeighbours) => self.tell(&transaction, Stage::Lost),
            // One lost, and nothing was written: again, each for itself.
            Ok(_) => self.flying = Some(Transaction { nested: true, ..transaction }),
            Err(Refused::LeaseNotFound) if model.fault == Some(Fault::EndedLeaseFailsBatch) => {
                self.tell(&transaction, Stage::Failed);
            }
            // Whose lease it was is not said: all of them take another one.
            Err(Refused::LeaseNotFound) => transaction.jobs.iter().for_each(|&at| self.queue(at)),
            Err(Refused::KeyTwice) => self.tell(&transaction, Stage::Failed),
        }
    }

    fn tell(&mut self, transaction: &Transaction, what: Stage) {
        transaction.jobs.iter().for_each(|&at| self.jobs[at].stage = what);
    }
}

#[derive(Clone, Copy, Debug)]
enum Refused {
    KeyTwice,
    LeaseNotFound,
}

impl Tell for Batches {
    fn tell(&self, world: &World, action: &Action) -> String {
        let write = |at: usize| format!("write {} (key {})", at + 1, world.jobs[at].key);
        let riding = |transaction: &Transaction| {
            let form = if transaction.nested { "nested" } else { "flat" };
            let writes: Vec<String> = transaction.jobs.iter().map(|&at| write(at)).collect();
            format!("{form}, with {}", writes.join(" and "))
        };
        match *action {
            Action::Queue(at) => format!("{} is queued", write(at)),
            Action::Leave => "a batch leaves".to_owned(),
            Action::Land => {
                format!("the transaction lands: {}", world.flying.as_ref().map_or(String::new(), riding))
            }
            Action::TimeOut => "the transaction is not answered in time".to_owned(),
            Action::LandLate(at) => format!("a late transaction lands: {}", riding(&world.late[at])),
            Action::Meddle(key) => format!("somebody else writes key {key}"),
            Action::EndLease => "the retention lease ends".to_owned(),
        }
    }
}
