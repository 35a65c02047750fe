//! What the store does: compare and write in one step, end leases, forget what has expired.

use super::{Action, Protocol, Stored, World, Write};
use crate::fault::Fault;
use crate::record::State;

impl World {
    pub(super) fn offer_store(&self, model: &Protocol, actions: &mut Vec<Action>) {
        actions.extend((0..self.late.len()).map(Action::LandLate));
        if self.lease < model.leases {
            actions.push(Action::NextLease);
        }
        // The newest has not been given out for the last time.
        if self.lease > 1 {
            actions.push(Action::EndLease);
        }
        let expires = |stored: &Stored| {
            let held_goes = model.has(Fault::HeldRecordExpires)
                && stored.record.state == State::InProgress { hold: false };
            let doubt_goes = model.has(Fault::HoldExpires) && stored.lease == 0;
            stored.record.may_expire(self.lock(stored)) || held_goes || doubt_goes
        };
        if model.expiry && self.record.as_ref().is_some_and(expires) {
            actions.push(Action::Expire);
        }
    }

    /// Whether a write would go through now.
    pub(super) fn fits(&self, model: &Protocol, write: &Write) -> bool {
        let revision = self.record.map_or(0, |stored| stored.revision);
        let lock_is_there = write.lease > 0 || !write.next.is_some_and(|next| next.arms());
        (write.expected == revision || model.has(Fault::CheckThenWrite)) && lock_is_there
    }

    /// Compares and writes. Says whether it did.
    pub(super) fn apply(&mut self, model: &Protocol, write: Write) -> bool {
        if !self.fits(model, &write) {
            return false;
        }
        let before = self.record;
        let revision = self.last_revision() + 1;
        self.record = write.next.map(|next| {
            let token = match (next.token, before) {
                (0, Some(before)) if model.has(Fault::TokenPerKey) => before.record.token + 1,
                (0, None) if model.has(Fault::TokenPerKey) => 1,
                (0, _) => revision,
                (token, _) => token,
            };
            let mut record = next;
            record.token = token;
            Stored { record, revision, lease: write.lease }
        });
        self.saw_written(&write);
        true
    }

    /// The oldest lease ends: what hung on it has lapsed, and who counted on it has stopped before.
    pub(super) fn end_lease(&mut self) {
        self.each_lease(&mut |lease| *lease = lease.saturating_sub(1));
    }

    pub(super) fn expire(&mut self) {
        if self.record.take().is_some() {
            self.saw_expired();
        }
    }
}

impl Write {
    /// Whether what it expects can come back: no record can, a revision cannot.
    pub(super) fn may_land_later(&self) -> bool {
        self.expected == 0 && self.lease > 0
    }
}
