//! What each command does to a record, and what its caller is told: section 3 of the design, row by row.

use std::time::Duration;

use onced_client::v1::ErrorReason;

use super::commands::{Begin, Checkpoint};
use super::table::{
    LOCK_TTLS, RELEASE_REASON, RESOLVED_REASON, RETENTIONS, Record, State, Table, Token, Told,
};

impl Table {
    fn write(&mut self, key: usize, record: Record) {
        self.records[key] = Some(Record { written_at: self.now, ..record });
    }

    fn new_token(&mut self, key: usize) -> usize {
        self.tokens.push(key);
        self.tokens.len() - 1
    }

    pub(super) fn begin(&mut self, key: usize, begin: &Begin) -> Told {
        let Some(record) = self.records[key].clone() else { return self.claim(key, begin, None) };
        if record.is_for_another_request(begin.fingerprint) {
            let reason = ErrorReason::FingerprintMismatch;
            return Told::Refused { reason, standing: None, spent: false };
        }
        let own = record.caller == begin.caller;
        let fingerprint = record.fingerprint.or(begin.fingerprint);
        match record.state {
            State::InProgress { lock_ttl, hold, .. } if own => {
                let state = self.armed(lock_ttl, hold);
                let record = Record { fingerprint, state, ..record };
                self.write(key, record.clone());
                return Told::Claim { record, resumed: true };
            }
            State::InProgress { hold: false, .. } if self.is_lapsed(&record) => {
                return self.claim(key, begin, Some(&record));
            }
            State::InProgress { hold: true, .. } if self.is_lapsed(&record) => {
                let state = State::InDoubt { since: self.here(), by_lapse: true };
                self.write(key, Record { fingerprint, state, ..record });
            }
            State::Released { spent: true, .. } if own => {
                return self.refused(key, ErrorReason::ClaimLost, true);
            }
            State::Released { .. } => return self.claim(key, begin, Some(&record)),
            State::InProgress { .. } | State::InDoubt { .. } | State::Completed { .. } => {}
        }
        self.standing(key)
    }

    fn claim(&mut self, key: usize, begin: &Begin, before: Option<&Record>) -> Told {
        let record = Record {
            token: self.new_token(key),
            attempt: before.map_or(0, |record| record.attempt) + 1,
            caller: begin.caller,
            fingerprint: before.and_then(|record| record.fingerprint).or(begin.fingerprint),
            checkpoint: before.and_then(|record| record.checkpoint),
            began: self.here(),
            retention: RETENTIONS[key][begin.retention],
            written_at: self.now,
            state: self.armed(LOCK_TTLS[key][begin.lock_ttl], begin.hold),
        };
        self.write(key, record.clone());
        Told::Claim { record, resumed: false }
    }

    fn armed(&self, lock_ttl: Duration, hold: bool) -> State {
        State::InProgress { lock_ttl, hold, armed: self.here(), armed_at: self.now }
    }

    pub(super) fn complete(
        &mut self,
        key: usize,
        token: Option<Token>,
        outcome: usize,
        retention: Option<Duration>,
    ) -> Told {
        let Some(record) = self.held_by(key, token) else { return self.lost(key) };
        let repeated = match record.state {
            State::Completed { outcome: stored, .. } if stored == outcome => true,
            State::Completed { .. } => return self.refused(key, ErrorReason::OutcomeConflict, false),
            State::InProgress { .. } | State::Released { .. } | State::InDoubt { .. } => {
                self.write_outcome(key, record, outcome, retention, None);
                false
            }
        };
        match self.shown(key) {
            Some(shown) => Told::Completed { shown, repeated },
            None => not_found(),
        }
    }

    fn write_outcome(
        &mut self,
        key: usize,
        record: Record,
        outcome: usize,
        retention: Option<Duration>,
        resolved_from: Option<usize>,
    ) {
        let state = State::Completed { at: self.here(), outcome, resolved_from };
        let retention = retention.unwrap_or(record.retention);
        self.write(key, Record { checkpoint: None, retention, state, ..record });
    }

    pub(super) fn renew(&mut self, key: usize, token: Option<Token>, checkpoint: Option<Checkpoint>) -> Told {
        let Some(record) = self.held_by(key, token) else { return self.lost(key) };
        let State::InProgress { lock_ttl, hold, .. } = record.state else {
            return self.refused(key, ErrorReason::ClaimLost, false);
        };
        let stored = record.checkpoint;
        let is_newer = |sent: &Checkpoint| stored.is_none_or(|stored| sent.sequence > stored.sequence);
        let checkpoint = checkpoint.filter(is_newer).or(stored);
        let state = self.armed(lock_ttl, hold);
        self.write(key, Record { checkpoint, state, ..record });
        Told::Renewed(lock_ttl)
    }

    pub(super) fn release(&mut self, key: usize, token: Option<Token>, in_doubt: bool) -> Told {
        let Some(record) = self.held_by(key, token) else { return self.lost(key) };
        let since = self.here();
        let state = match (&record.state, in_doubt) {
            (State::InProgress { .. } | State::InDoubt { by_lapse: true, .. }, true) => {
                State::InDoubt { since, by_lapse: false }
            }
            (State::InProgress { .. } | State::InDoubt { by_lapse: true, .. }, false) => {
                State::Released { since, reason: RELEASE_REASON, spent: true }
            }
            // Again; or after an operator released it, and then its id is spent as well.
            (State::Released { since, reason, .. }, false) => {
                State::Released { since: *since, reason, spent: true }
            }
            (State::InDoubt { by_lapse: false, .. }, true) => return Told::Released,
            (State::Released { .. } | State::InDoubt { .. } | State::Completed { .. }, _) => {
                return self.refused(key, ErrorReason::ClaimLost, false);
            }
        };
        if !matches!(record.state, State::Released { spent: true, .. }) {
            self.write(key, Record { state, ..record });
        }
        Told::Released
    }

    pub(super) fn resolve(
        &mut self,
        key: usize,
        token: Option<Token>,
        outcome: Option<usize>,
        retention: Option<Duration>,
    ) -> Told {
        let Some(record) = self.records[key].clone() else { return not_found() };
        if let State::Completed { outcome: stored, resolved_from: Some(from), .. } = record.state
            && token == Some(Token::Given(from))
        {
            return match outcome {
                None => self.refused(key, ErrorReason::ClaimLost, false),
                Some(outcome) if outcome != stored => self.refused(key, ErrorReason::OutcomeConflict, false),
                Some(_) => self.resolved(key),
            };
        }
        let lapsed = self.is_lapsed(&record);
        let spent = match record.state {
            _ if token != Some(Token::Given(record.token)) => None,
            State::InDoubt { by_lapse, .. } => Some(!by_lapse),
            // In doubt already, though nobody has written it down yet.
            State::InProgress { hold: true, .. } if lapsed => Some(false),
            State::Released { .. } if outcome.is_none() => return self.resolved(key),
            State::InProgress { .. } | State::Released { .. } | State::Completed { .. } => None,
        };
        match (spent, outcome) {
            (None, _) => return self.refused(key, ErrorReason::ClaimLost, false),
            (Some(spent), None) => {
                let state = State::Released { since: self.here(), reason: RESOLVED_REASON, spent };
                self.write(key, Record { state, ..record });
            }
            (Some(_), Some(outcome)) => {
                let (doubt, token) = (record.token, self.new_token(key));
                self.write_outcome(key, Record { token, ..record }, outcome, retention, Some(doubt));
            }
        }
        self.resolved(key)
    }

    fn resolved(&self, key: usize) -> Told {
        self.shown(key).map_or_else(not_found, Told::Resolved)
    }

    pub(super) fn delete(&mut self, key: usize, token: Option<Token>, force: bool) -> Told {
        let Some(record) = &self.records[key] else { return Told::Deleted };
        if token != Some(Token::Given(record.token)) {
            return self.refused(key, ErrorReason::ClaimLost, false);
        }
        let held = matches!(record.state, State::InProgress { .. }) && !self.is_lapsed(record);
        if held && !force {
            return self.refused(key, ErrorReason::ClaimHeld, false);
        }
        self.records[key] = None;
        Told::Deleted
    }

    /// The record, if the token is the current one.
    fn held_by(&self, key: usize, token: Option<Token>) -> Option<Record> {
        self.records[key].clone().filter(|record| token == Some(Token::Given(record.token)))
    }

    /// What the holder of another token is told.
    fn lost(&self, key: usize) -> Told {
        if self.records[key].is_none() {
            return not_found();
        }
        self.refused(key, ErrorReason::ClaimLost, false)
    }

    fn refused(&self, key: usize, reason: ErrorReason, spent: bool) -> Told {
        Told::Refused { reason, standing: self.shown(key), spent }
    }

    fn standing(&self, key: usize) -> Told {
        self.shown(key).map_or_else(not_found, Told::Standing)
    }
}

pub(super) fn not_found() -> Told {
    Told::Refused { reason: ErrorReason::RecordNotFound, standing: None, spent: false }
}
