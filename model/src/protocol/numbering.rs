//! Keeps states few: the same situation gets the same form, whatever came before it.

use super::caller::Stage;
use super::{Answer, Call, Lease, Phase, Protocol, World, Write};
use crate::fault::Fault;
use crate::record::{Record, Revision, State};

impl World {
    /// Drops what can have no effect any more, and orders and numbers the rest.
    pub(super) fn tidy(&mut self, model: &Protocol) {
        if !model.has(Fault::CheckThenWrite) {
            self.drop_lost_writes(model);
        }
        let heard: Vec<bool> = self.calls.iter().map(|call| self.matters(call)).collect();
        let mut heard = heard.into_iter();
        self.calls.retain(|_| heard.next().unwrap_or(true));
        self.calls.sort_unstable();
        self.late.sort_unstable();
        self.late.dedup();
        self.renumber();
    }

    /// A write that can never land any more is as good as answered.
    fn drop_lost_writes(&mut self, model: &Protocol) {
        let lost: Vec<bool> = self.late.iter().map(|write| self.is_lost(model, write)).collect();
        let mut lost = lost.into_iter();
        self.late.retain(|_| !lost.next().unwrap_or(false));
        for at in 0..self.calls.len() {
            if let Phase::Writing { write, .. } = self.calls[at].phase
                && self.is_lost(model, &write)
            {
                self.calls[at].phase = Phase::Deciding { unsettled: false };
            }
        }
    }

    fn is_lost(&self, model: &Protocol, write: &Write) -> bool {
        !self.fits(model, write) && !write.may_land_later()
    }

    /// Whether a call can still do something, or its answer still be heard.
    fn matters(&self, call: &Call) -> bool {
        match call.phase {
            Phase::Deciding { .. } | Phase::Writing { .. } => true,
            Phase::Answered(Answer::Claim { won, .. }) | Phase::Delivered(Answer::Claim { won, .. })
                if won != 0 =>
            {
                true
            }
            Phase::Answered(_) => self.listener(call).is_some(),
            Phase::Delivered(_) => false,
        }
    }

    /// Only the order of revisions matters: they are numbered from 1 without gaps.
    fn renumber(&mut self) {
        let mut used = 0_u64;
        self.each_revision(&mut |revision| used |= 1 << *revision);
        used &= !1;
        self.each_revision(&mut |revision| {
            let smaller = used & ((1 << *revision) - 1);
            if *revision > 0 {
                *revision = u8::try_from(smaller.count_ones()).unwrap_or(u8::MAX) + 1;
            }
        });
    }

    pub(super) fn last_revision(&mut self) -> Revision {
        let mut last = 0;
        self.each_revision(&mut |revision| last = last.max(*revision));
        last
    }

    fn each_revision(&mut self, visit: &mut impl FnMut(&mut Revision)) {
        if let Some(stored) = &mut self.record {
            visit(&mut stored.revision);
            in_record(&mut stored.record, visit);
        }
        self.late.iter_mut().for_each(|write| in_write(write, visit));
        for call in &mut self.calls {
            if let Some(token) = call.command.token_mut() {
                visit(token);
            }
            match &mut call.phase {
                Phase::Writing { write, .. } => in_write(write, visit),
                Phase::Answered(Answer::Claim { token, won, .. })
                | Phase::Delivered(Answer::Claim { token, won, .. }) => {
                    visit(token);
                    visit(won);
                }
                Phase::Deciding { .. } | Phase::Answered(_) | Phase::Delivered(_) => {}
            }
        }
        for caller in &mut self.callers {
            match &mut caller.stage {
                Stage::Working { token, .. }
                | Stage::Completing { token }
                | Stage::Releasing { token, .. } => {
                    visit(token);
                }
                Stage::Asking | Stage::Done => {}
            }
        }
        self.seen.each_token(visit);
    }

    pub(super) fn each_lease(&mut self, visit: &mut impl FnMut(&mut Lease)) {
        visit(&mut self.lease);
        if let Some(stored) = &mut self.record {
            visit(&mut stored.lease);
        }
        self.late.iter_mut().for_each(|write| visit(&mut write.lease));
        for call in &mut self.calls {
            visit(&mut call.sent);
            match &mut call.phase {
                Phase::Writing { write, until } => {
                    visit(&mut write.lease);
                    visit(until);
                }
                Phase::Answered(Answer::Claim { until, .. } | Answer::Ok { until, .. })
                | Phase::Delivered(Answer::Claim { until, .. } | Answer::Ok { until, .. }) => visit(until),
                Phase::Deciding { .. } | Phase::Answered(_) | Phase::Delivered(_) => {}
            }
        }
        for caller in &mut self.callers {
            if let Stage::Working { until, .. } = &mut caller.stage {
                visit(until);
            }
        }
    }
}

fn in_write(write: &mut Write, visit: &mut impl FnMut(&mut Revision)) {
    visit(&mut write.expected);
    visit(&mut write.named);
    if let Some(next) = &mut write.next {
        in_record(next, visit);
    }
}

fn in_record(record: &mut Record, visit: &mut impl FnMut(&mut Revision)) {
    visit(&mut record.token);
    if let State::Completed { resolved_from, .. } = &mut record.state {
        visit(resolved_from);
    }
}
