//! What a call is told, as the specification has it, and whether an answer is that.

use std::fmt;

use crate::operation::{Answer, Name, OnLapse};
use crate::spec::{Phase, State};

/// What a call is told. What goes with it is that of the record after the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A claim, or the same again.
    Claim { resumed: bool },
    /// What stands there.
    Standing,
    /// The outcome is stored, or was already.
    Stored { repeated: bool },
    /// The lock is armed again.
    Renewed,
    /// It is as asked.
    Ok,
    /// The key was used for another request.
    FingerprintMismatch,
    /// There is another outcome.
    OutcomeConflict,
    /// The claim is no longer the caller's.
    ClaimLost,
    /// The request id is spent.
    Spent,
    /// A claim is held.
    ClaimHeld,
    /// There is no record.
    NotFound,
}

impl State {
    /// Whether an answer is what a call was told that led to this state. A token that was not known is learned.
    pub fn agrees(&mut self, told: Told, answer: &Answer) -> bool {
        match (told, &mut self.record, answer) {
            (Told::Claim { resumed }, Some(record), Answer::Claim(claim)) => {
                let armed_for = match record.phase {
                    Phase::InProgress { lock_ttl, .. } => Some(lock_ttl),
                    _ => None,
                };
                claim.resumed == resumed
                    && claim.attempt == record.attempt
                    && claim.checkpoint == record.checkpoint
                    && Some(claim.lock_ttl) == armed_for
                    && self.is_of(claim.token)
            }
            (Told::Standing, Some(_), standing) => self.agrees_with_standing(standing),
            (Told::Stored { repeated }, _, Answer::Stored { repeated: told }) => *told == repeated,
            (Told::Renewed, Some(record), Answer::Renewed { lock_ttl: told }) => {
                matches!(record.phase, Phase::InProgress { lock_ttl, .. } if lock_ttl == *told)
            }
            (Told::Ok, _, Answer::Ok)
            | (Told::FingerprintMismatch, _, Answer::FingerprintMismatch)
            | (Told::OutcomeConflict, _, Answer::OutcomeConflict)
            | (Told::ClaimLost | Told::Spent, _, Answer::ClaimLost)
            | (Told::ClaimHeld, _, Answer::ClaimHeld)
            | (Told::NotFound, _, Answer::NotFound) => true,
            _ => false,
        }
    }

    fn agrees_with_standing(&mut self, answer: &Answer) -> bool {
        let Some(record) = &self.record else { return false };
        let same = |attempt: &u64, owner: &Name| (*attempt, owner) == (record.attempt, &record.owner);
        match (&record.phase, answer) {
            (
                Phase::Completed { outcome: stored, .. },
                Answer::Completed { token, attempt, owner, outcome },
            ) => same(attempt, owner) && stored == outcome && self.is_of(*token),
            (Phase::InProgress { held_until: Some(_), .. }, Answer::InProgress { attempt, owner })
            | (
                Phase::InProgress { held_until: None, on_lapse: OnLapse::TakeOver, .. }
                | Phase::Released { .. },
                Answer::Available { attempt, owner },
            ) => same(attempt, owner),
            (
                Phase::InProgress { held_until: None, on_lapse: OnLapse::Hold, .. } | Phase::InDoubt { .. },
                Answer::InDoubt { token, attempt, owner },
            ) => same(attempt, owner) && self.is_of(*token),
            _ => false,
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Told::Claim { resumed: false } => "a claim",
            Told::Claim { resumed: true } => "its claim again",
            Told::Standing => "what stands there",
            Told::Stored { repeated: false } => "stored",
            Told::Stored { repeated: true } => "stored already",
            Told::Renewed => "armed again",
            Told::Ok => "OK",
            Told::FingerprintMismatch => "FINGERPRINT_MISMATCH",
            Told::OutcomeConflict => "OUTCOME_CONFLICT",
            Told::ClaimLost => "CLAIM_LOST",
            Told::Spent => "CLAIM_LOST, its request id being spent",
            Told::ClaimHeld => "CLAIM_HELD",
            Told::NotFound => "NOT_FOUND",
        })
    }
}
