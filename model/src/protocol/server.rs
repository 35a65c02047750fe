//! What servers do with a call: decide, write, answer; and give back what nobody received.

use onced::record::Lock;

use super::{Action, Answer, Call, Phase, Protocol, World, Write};
use crate::fault::Fault;
use crate::record::{Change, Command, Decision, How, Record, Refusal, decide};

impl World {
    pub(super) fn offer_servers(&self, model: &Protocol, actions: &mut Vec<Action>) {
        for (at, call) in self.calls.iter().enumerate() {
            match call.phase {
                Phase::Deciding { .. } => {
                    actions.push(Action::Decide(at));
                    if model.guess && call.request().is_some() && self.record.is_some() {
                        actions.push(Action::Guess(at));
                    }
                    if model.has(Fault::LapseByServerClock) {
                        actions.push(Action::DecideByClock(at));
                    }
                }
                Phase::Writing { .. } => actions.extend([Action::Land(at), Action::TimeOut(at)]),
                Phase::Answered(Answer::Claim { won, .. }) | Phase::Delivered(Answer::Claim { won, .. })
                    if won != 0 =>
                {
                    actions.push(Action::GiveBack(at));
                }
                Phase::Answered(_) | Phase::Delivered(_) => {}
            }
        }
    }

    /// Reads the record and decides. Nothing is recognised: what is there says what to do.
    pub(super) fn decide(&mut self, model: &Protocol, at: usize, clock: Option<Lock>) {
        let call = self.calls[at];
        let seen = self.record.map(|stored| (stored.record, clock.unwrap_or(self.lock(&stored))));
        if let Some(answer) = self.recognised(model, &call) {
            return self.answer(at, answer);
        }
        match decide(call.command, seen, model.fault) {
            Decision::Write(Change::Resume, Some(next)) if model.has(Fault::ResumeWithoutWrite) => {
                self.answer(at, claim(&next, self.lease, true, 0));
            }
            Decision::Write(change, next) => {
                let kept = model.has(Fault::OlderLeaseKept);
                let lease = match next {
                    Some(next) if next.arms() => {
                        if kept {
                            call.sent
                        } else {
                            self.lease
                        }
                    }
                    Some(_) | None => 0,
                };
                let expected = self.record.map_or(0, |stored| stored.revision);
                let write = Write { expected, change, named: call.command.token(), next, lease };
                // A claim says how long its call had waited, so that its holder counts from here.
                let until = if call.request().is_some() { self.lease } else { call.sent };
                self.calls[at].phase = Phase::Writing { write, until };
            }
            Decision::Unchanged => {
                let answer = match (call.command, seen.and_then(|(record, _)| record.outcome())) {
                    (Command::Begin { .. }, Some(outcome)) => Answer::Replay(outcome),
                    _ => Answer::Ok { until: 0, repeated: true },
                };
                self.answer(at, answer);
            }
            // It waits until something changes, or its caller calls again.
            Decision::Wait => {}
            Decision::Refuse(
                Refusal::ClaimLost
                | Refusal::RequestSpent
                | Refusal::NotFound
                | Refusal::OutcomeConflict
                | Refusal::FingerprintMismatch
                | Refusal::ClaimHeld,
            ) => self.answer(at, Answer::Lost),
        }
    }

    /// The first call to come guesses that there is no record, and saves the read.
    pub(super) fn guess(&mut self, model: &Protocol, at: usize) {
        let call = self.calls[at];
        if let Decision::Write(change, next) = decide(call.command, None, model.fault) {
            let write = Write { expected: 0, change, named: 0, next, lease: self.lease };
            self.calls[at].phase = Phase::Writing { write, until: self.lease };
        }
    }

    /// What a server with a fault concludes, after an unknown outcome, from a record that looks like its own.
    fn recognised(&self, model: &Protocol, call: &Call) -> Option<Answer> {
        let stored = self.record.filter(|_| call.phase == Phase::Deciding { unsettled: true })?;
        let record = stored.record;
        match call.command {
            Command::Begin { request, .. } if model.has(Fault::RecognisedByRequestId) => {
                let own = record.arms() && record.request == request;
                own.then(|| claim(&record, self.lease, false, stored.revision))
            }
            Command::Renew { token, .. } if model.has(Fault::RenewRecognisedByToken) => {
                let own = record.arms() && record.token == token;
                own.then_some(Answer::Ok { until: call.sent, repeated: false })
            }
            _ => None,
        }
    }

    fn answer(&mut self, at: usize, answer: Answer) {
        let call = &mut self.calls[at];
        (call.phase, call.sent) = (Phase::Answered(answer), 0);
        if let (Command::Complete { outcome, .. } | Command::Resolve { outcome, .. }, Answer::Ok { .. }) =
            (call.command, answer)
        {
            self.saw_acknowledged(outcome);
        }
    }

    /// The write of a call lands, or loses, and is answered.
    pub(super) fn land(&mut self, model: &Protocol, at: usize) {
        let Phase::Writing { write, until } = self.calls[at].phase else { return };
        let landed = self.apply(model, write);
        let written = self.record.map_or(0, |stored| stored.revision);
        match (landed, write.change, self.record) {
            (true, Change::Claim | Change::Resume, Some(stored)) => {
                let resumed = write.change == Change::Resume;
                let guarded = !resumed || model.has(Fault::ResumedClaimGivenBack);
                let won = if guarded { written } else { 0 };
                let answer = claim(&stored.record, until, resumed, won);
                self.answer(at, answer);
                if model.has(Fault::ClaimSharedInRoom) {
                    self.share(at, claim(&stored.record, until, resumed, 0));
                }
            }
            (true, Change::Put | Change::Remove, _) => {
                self.answer(at, Answer::Ok { until, repeated: false });
            }
            // It lost, or what it wrote was not the whole of it: decide anew.
            _ => self.calls[at].phase = Phase::Deciding { unsettled: false },
        }
    }

    fn share(&mut self, with: usize, answer: Answer) {
        let request = self.calls[with].request();
        for call in &mut self.calls {
            if matches!(call.phase, Phase::Deciding { .. }) && call.request() == request {
                call.phase = Phase::Answered(answer);
            }
        }
    }

    /// What became of the write is unknown: it may land yet, and the call is decided anew.
    pub(super) fn time_out(&mut self, model: &Protocol, at: usize) {
        let Phase::Writing { write, .. } = self.calls[at].phase else { return };
        self.late.push(write);
        let unsettled = model.has(Fault::RecognisedByRequestId) || model.has(Fault::RenewRecognisedByToken);
        self.calls[at].phase = Phase::Deciding { unsettled };
    }

    /// Releases exactly the revision that made the claim, so that it loses to any resume.
    pub(super) fn give_back(&mut self, model: &Protocol, at: usize) {
        let call = self.calls.remove(at);
        let (Phase::Answered(Answer::Claim { token, won, .. })
        | Phase::Delivered(Answer::Claim { token, won, .. })) = call.phase
        else {
            return;
        };
        let release = Command::Release { token, how: How::Unreceived };
        if model.has(Fault::ReleaseWithoutRevision) {
            return self.calls.push(Call::new(release, 0));
        }
        let as_won = self.record.filter(|stored| stored.revision == won);
        if let Some(stored) = as_won
            && let Decision::Write(change, next) =
                decide(release, Some((stored.record, Lock::Held)), model.fault)
        {
            self.late.push(Write { expected: won, change, named: token, next, lease: 0 });
        }
    }
}

fn claim(record: &Record, until: u8, resumed: bool, won: u8) -> Answer {
    Answer::Claim { token: record.token, until, checkpoint: record.checkpoint, resumed, won }
}
