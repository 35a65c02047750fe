//! How runs end, as events tell it.

use onced_client::{Completion, Error, Lost, OnFailure, OnceError};
use serde_json::{Value, json};

/// Why a claim was lost.
pub fn loss(lost: Lost) -> &'static str {
    match lost {
        Lost::TakenOver => "taken_over",
        Lost::LockEnded => "lock_ended",
        Lost::GivenBack => "given_back",
    }
}

/// The reason that a server gave.
pub fn reason(error: &Error) -> Option<&'static str> {
    let name = error.reason()?.as_str_name();
    Some(name.strip_prefix("ERROR_REASON_").unwrap_or(name))
}

/// An outcome, with its value as `said` has it.
pub fn completion<T>(completion: Completion<T>, said: impl FnOnce(T) -> Value) -> Value {
    json!({
        "result": "done", "ran_here": completion.ran_here, "protected": completion.protected, "owner": completion.owner,
        "attempt": completion.attempt.to_string(), "token": completion.fencing_token.to_string(),
        "value": said(completion.outcome),
    })
}

/// Why there is none.
pub fn failure(error: &OnceError) -> Value {
    let message = error.to_string();
    match error {
        OnceError::NotBegun(cause) => {
            json!({"result": "not_begun", "message": message, "reason": reason(cause)})
        }
        OnceError::InProgress(held) => json!({
            "result": "in_progress", "message": message, "owner": held.owner, "attempt": held.attempt.to_string(),
        }),
        OnceError::InDoubt(doubt) => json!({
            "result": "in_doubt", "message": message, "owner": doubt.owner, "attempt": doubt.attempt.to_string(),
            "token": doubt.fencing_token.to_string(), "reason": doubt.reason,
        }),
        OnceError::Failed { rule, released, .. } => json!({
            "result": "failed", "message": message, "released": released.is_ok(),
            "rule": match rule { OnFailure::Retry => "retry", OnFailure::InDoubt => "in_doubt" },
        }),
        OnceError::ClaimLost { lost, .. } => {
            json!({"result": "claim_lost", "message": message, "lost": loss(*lost)})
        }
        OnceError::NotStored { cause, .. } => {
            json!({"result": "not_stored", "message": message, "reason": reason(cause)})
        }
        OnceError::Final(found) => {
            let error = found.outcome.final_error().cloned().unwrap_or_default();
            let mut told = completion((**found).clone(), |_| Value::Null);
            (told["result"], told["code"], told["message"]) =
                ("final".into(), error.code.into(), error.message.into());
            told
        }
        OnceError::Unreadable { completion: found, .. } => {
            let mut told = completion((**found).clone(), |_| Value::Null);
            (told["result"], told["message"]) = ("unreadable".into(), message.into());
            told
        }
        _ => json!({"result": "not_begun", "message": message}),
    }
}
