//! What can be said of one attempt of a call at an endpoint.

use super::call_error::CallError;

/// How far an attempt has come: what can be said of it at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The request has certainly not left.
    Connecting,
    /// The request may have left.
    Sent,
}

impl Stage {
    /// The error of an attempt that was ended here.
    pub(super) fn lost(self, text: String) -> CallError {
        match self {
            Stage::Connecting => CallError::Unreachable(text),
            Stage::Sent => CallError::Unknown(text),
        }
    }
}

/// Why an attempt failed.
pub(super) struct Failure {
    /// What it means for the call.
    pub(super) error: CallError,
    /// What it says of the endpoint.
    pub(super) fault: Fault,
}

/// Whether an endpoint failed, whatever it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It did not.
    None,
    /// It may have: it is bad if another one does better.
    Likely,
    /// It serves nobody.
    Certain,
}

impl Failure {
    pub(super) fn of(error: CallError) -> Self {
        let fault = match &error {
            CallError::Unreachable(_) | CallError::Foreign(_) => Fault::Certain,
            CallError::Unknown(_) => Fault::Likely,
            _ => Fault::None,
        };
        Self { error, fault }
    }

    /// That of looking whose etcd it is: nothing else was sent.
    pub(super) fn of_verify(error: CallError) -> Self {
        match Self::of(error) {
            Self { error: CallError::Unknown(text), fault } => {
                Self { error: CallError::Unreachable(text), fault }
            }
            failure => failure,
        }
    }
}
