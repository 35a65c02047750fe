//! What the layer itself answers.

use std::collections::HashMap;
use std::time::Duration;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::body::{boxed, full};
use super::{Body, Wire};
use crate::completion::OnceError;
use crate::error::Error;
use crate::v1::ErrorReason;

/// How soon it is worth trying again, where it is.
const RETRY: Duration = Duration::from_secs(1);

/// Why a request is not answered by the service.
#[derive(Debug)]
pub(super) enum Refusal {
    KeyMissing,
    KeyInvalid,
    ScopeMissing,
    Streams,
    RequestBroken,
    InProgress,
    ClaimLost,
    InDoubt { fencing_token: u64 },
    RequestTooLarge(usize),
    FingerprintMismatch,
    NotStorable,
    Refused,
    Unavailable,
}

impl Refusal {
    /// Why there is no answer, of a run whose handler has not run.
    pub fn of(error: &OnceError) -> Self {
        match error {
            OnceError::InProgress(_) => Refusal::InProgress,
            OnceError::InDoubt(in_doubt) => Refusal::InDoubt { fencing_token: in_doubt.fencing_token },
            OnceError::NotBegun(error) => match error {
                error if error.reason() == Some(ErrorReason::FingerprintMismatch) => {
                    Refusal::FingerprintMismatch
                }
                // Set up wrong, or no onced at all: it has refused nothing.
                Error::Refused(refusal) if refusal.reason.is_some() => {
                    tracing::error!(%error, "onced refused what an idempotency key asks for");
                    Refusal::Refused
                }
                // Who has closed the client knows it.
                Error::Closed => Refusal::Unavailable,
                _ => {
                    tracing::warn!(%error, "onced cannot be asked");
                    Refusal::Unavailable
                }
            },
            // The others are of handlers that have run.
            _ => Refusal::Refused,
        }
    }

    fn row(&self) -> (&'static str, StatusCode, Code, bool) {
        use StatusCode as S;
        match self {
            Refusal::KeyMissing => ("IDEMPOTENCY_KEY_MISSING", S::BAD_REQUEST, Code::InvalidArgument, false),
            Refusal::KeyInvalid | Refusal::Streams => {
                ("IDEMPOTENCY_KEY_INVALID", S::BAD_REQUEST, Code::InvalidArgument, false)
            }
            Refusal::ScopeMissing => ("SCOPE_MISSING", S::BAD_REQUEST, Code::InvalidArgument, false),
            Refusal::RequestBroken => ("REQUEST_BROKEN", S::BAD_REQUEST, Code::InvalidArgument, false),
            Refusal::InProgress => ("REQUEST_IN_PROGRESS", S::CONFLICT, Code::Aborted, true),
            Refusal::ClaimLost => ("CLAIM_LOST", S::CONFLICT, Code::Aborted, true),
            Refusal::InDoubt { .. } => ("IN_DOUBT", S::CONFLICT, Code::FailedPrecondition, false),
            Refusal::RequestTooLarge(_) => {
                ("REQUEST_TOO_LARGE", S::PAYLOAD_TOO_LARGE, Code::ResourceExhausted, false)
            }
            Refusal::FingerprintMismatch => {
                ("FINGERPRINT_MISMATCH", S::UNPROCESSABLE_ENTITY, Code::FailedPrecondition, false)
            }
            Refusal::NotStorable => {
                ("RESPONSE_NOT_STORABLE", S::INTERNAL_SERVER_ERROR, Code::Internal, false)
            }
            Refusal::Refused => ("REFUSED", S::INTERNAL_SERVER_ERROR, Code::Internal, false),
            Refusal::Unavailable => ("UNAVAILABLE", S::SERVICE_UNAVAILABLE, Code::Unavailable, true),
        }
    }

    fn title(&self) -> &'static str {
        match self {
            Refusal::KeyMissing => "The idempotency key is missing",
            Refusal::KeyInvalid => "The idempotency key is invalid",
            Refusal::ScopeMissing => "It is not known whose idempotency key this is",
            Refusal::Streams => "Methods that stream take no idempotency key",
            Refusal::RequestBroken => "The request broke off",
            Refusal::InProgress => "A request with this idempotency key is in progress",
            Refusal::ClaimLost => "Another attempt has taken over",
            Refusal::InDoubt { .. } => "What an earlier attempt did is unknown",
            Refusal::RequestTooLarge(_) => "The request is too large",
            Refusal::FingerprintMismatch => "The idempotency key was used for another request",
            Refusal::NotStorable => "The answer cannot be stored",
            Refusal::Refused => "The idempotency service refused",
            Refusal::Unavailable => "The idempotency service cannot be reached",
        }
    }

    fn detail(&self) -> String {
        match self {
            Refusal::KeyMissing => {
                "Send one key for each operation in Idempotency-Key, and the same one with each retry of it."
            }
            Refusal::KeyInvalid => {
                "Idempotency-Key is to be there once, with 1 to 512 printable ASCII characters (479 where \
                                    keys are kept by account), quoted or not."
            }
            Refusal::ScopeMissing => {
                "Keys are kept by account or tenant here, and the request does not say whose it is."
            }
            Refusal::Streams => "An idempotency key is for calls with one request and one answer.",
            Refusal::RequestBroken => "Its body ended before it was complete. Nothing ran.",
            Refusal::InProgress => "Try again with the same key, to get its answer.",
            Refusal::ClaimLost => "Its answer is what counts. Try again with the same key, to get it.",
            Refusal::InDoubt { fencing_token } => {
                return format!(
                    "An operator must look, and resolve the key (fencing token {fencing_token})."
                );
            }
            Refusal::RequestTooLarge(max_bytes) => {
                return format!("With an idempotency key its body may have {max_bytes} bytes at most.");
            }
            Refusal::FingerprintMismatch => {
                "Method, path, query and body are to be the same with the same key."
            }
            Refusal::NotStorable => {
                "The request was carried out, but its answer cannot be kept for retries: an operator \
                                     must look."
            }
            Refusal::Refused => "The log of the server says why.",
            Refusal::Unavailable => "Nothing ran. Try again with the same key.",
        }
        .to_owned()
    }

    /// The answer.
    pub fn answer(&self, wire: &Wire) -> Response<Body> {
        let (code, status, grpc, again) = self.row();
        match wire {
            Wire::Http { .. } => {
                // No text here has anything to escape.
                let problem = format!(
                    "{{\"title\":\"{}\",\"status\":{},\"detail\":\"{}\",\"code\":\"{code}\"}}",
                    self.title(),
                    status.as_u16(),
                    self.detail()
                );
                let mut answer = Response::new(full(problem));
                *answer.status_mut() = status;
                let headers = answer.headers_mut();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
                if again {
                    headers.insert(RETRY_AFTER, RETRY.as_secs().into());
                }
                answer
            }
            Wire::Grpc { .. } => {
                let mut details = ErrorDetails::with_error_info(code, "onced.dev", HashMap::new());
                if again {
                    details.set_retry_info(Some(RETRY));
                }
                let message = format!("{}. {}", self.title(), self.detail());
                let status = Status::with_error_details(grpc, message, details);
                status.into_http::<tonic::body::Body>().map(boxed)
            }
        }
    }
}

#[cfg(test)]
#[cfg(feature = "json")]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_json() {
        let every = [
            Refusal::KeyMissing,
            Refusal::KeyInvalid,
            Refusal::ScopeMissing,
            Refusal::Streams,
            Refusal::RequestBroken,
            Refusal::InProgress,
            Refusal::ClaimLost,
            Refusal::InDoubt { fencing_token: 7 },
            Refusal::RequestTooLarge(1),
            Refusal::FingerprintMismatch,
            Refusal::NotStorable,
            Refusal::Refused,
            Refusal::Unavailable,
        ];
        for refusal in every {
            let text = format!("\"{}{}\"", refusal.title(), refusal.detail());
            assert_eq!(serde_json::from_str::<String>(&text).unwrap().len() + 2, text.len(), "{refusal:?}");
        }
    }
}
