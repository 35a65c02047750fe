//! Which models there are, at which sizes, and which of them is to find which fault.

use crate::batches::Batches;
use crate::check::{self, Figures, check};
use crate::fault::Fault;
use crate::protocol::Protocol;
use crate::record::How;
use crate::restarts::Restarts;
use crate::rooms::Rooms;

/// How far to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A million states in the largest: for every test run.
    Small,
    /// Ten million states in the largest, thirty in all.
    Large,
    /// A hundred million, for machines with the memory.
    Huge,
}

/// A model at a size.
#[derive(Clone, Debug)]
pub struct Subject {
    pub name: &'static str,
    kind: Kind,
    /// The promise that its fault breaks, if it has one.
    sought: Option<&'static str>,
}

#[derive(Clone, Debug)]
enum Kind {
    Protocol(Protocol),
    Rooms(Rooms),
    Batches(Batches),
    Restarts(Restarts),
}

/// The main model with the moves that all have: each caller begins, completes, and does so again.
const PROTOCOL: Protocol = Protocol {
    calls: &[2, 2],
    hold: false,
    renew: false,
    checkpoints: false,
    guess: false,
    release: &[],
    expiry: false,
    operators: 0,
    leases: 2,
    fault: None,
};

const RELEASE: &[How] = &[How::Retry, How::InDoubt];

/// All models at a size.
pub fn subjects(size: Size) -> Vec<Subject> {
    let pick = |sizes: [&'static [u8]; 3]| sizes[size as usize];
    let subject = |name, kind| Subject { name, kind, sought: None };
    let protocol = |name, model| subject(name, Kind::Protocol(model));
    let [calls, ticks] = [3 + size as u8, 5 + size as u8];
    vec![
        // Nothing lapses, so whatever breaks here breaks while every lock is held.
        protocol("unlapsed", Protocol { calls: pick([&[2, 2], &[3, 2], &[3, 3]]), leases: 1, ..PROTOCOL }),
        protocol(
            "claims",
            Protocol {
                calls: pick([&[2, 2], &[3, 2], &[3, 3]]),
                renew: true,
                release: RELEASE,
                expiry: true,
                ..PROTOCOL
            },
        ),
        protocol(
            "guesses",
            Protocol { calls: pick([&[2, 1], &[2, 2], &[3, 2]]), guess: true, expiry: true, ..PROTOCOL },
        ),
        protocol(
            "releases",
            Protocol { calls: pick([&[3, 1], &[4, 1], &[4, 2]]), release: RELEASE, ..PROTOCOL },
        ),
        protocol(
            "hold",
            Protocol {
                calls: pick([&[2, 2], &[3, 2], &[3, 3]]),
                hold: true,
                release: RELEASE,
                expiry: true,
                ..PROTOCOL
            },
        ),
        protocol(
            "checkpoints",
            Protocol { calls: pick([&[3, 1], &[3, 2], &[3, 3]]), renew: true, checkpoints: true, ..PROTOCOL },
        ),
        protocol(
            "operators",
            Protocol {
                calls: pick([&[1, 1], &[2, 1], &[2, 2]]),
                hold: true,
                expiry: size != Size::Small,
                operators: 2,
                ..PROTOCOL
            },
        ),
        subject("rooms", Kind::Rooms(Rooms { calls, changes: calls, fault: None })),
        subject(
            "batches",
            Kind::Batches(Batches {
                writes: [&[0, 0, 1][..], &[0, 0, 1, 1], &[0, 0, 0, 1, 1]][size as usize],
                meddling: 1,
                fault: None,
            }),
        ),
        subject("restarts", Kind::Restarts(Restarts { end: ticks, deaths: 1 + size as u8, fault: None })),
    ]
}

impl Subject {
    /// Looks at all of it, on so many threads. `progress` hears of states and depth now and then.
    pub fn check(self, threads: usize, progress: impl Fn(usize, usize)) -> Figures {
        match self.kind {
            Kind::Protocol(model) => check(model, self.sought, threads, progress),
            Kind::Rooms(model) => check(model, self.sought, threads, progress),
            Kind::Batches(model) => check(model, self.sought, threads, progress),
            Kind::Restarts(model) => check(model, self.sought, threads, progress),
        }
    }

    /// What it promises.
    pub fn promises(&self) -> Vec<&'static str> {
        match &self.kind {
            Kind::Protocol(model) => check::promises(model),
            Kind::Rooms(model) => check::promises(model),
            Kind::Batches(model) => check::promises(model),
            Kind::Restarts(model) => check::promises(model),
        }
    }

    /// The same with a fault in it, to look for the promise that it breaks.
    pub fn with(mut self, fault: Fault) -> Self {
        let planted = match &mut self.kind {
            Kind::Protocol(model) => &mut model.fault,
            Kind::Rooms(model) => &mut model.fault,
            Kind::Batches(model) => &mut model.fault,
            Kind::Restarts(model) => &mut model.fault,
        };
        *planted = Some(fault);
        self.sought = Some(fault.breaks());
        self
    }
}
