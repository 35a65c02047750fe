//! The only place that turns a [`Failure`] into a status. Every match names all variants, so that a new one
//! cannot go without a code, a reason and a retry hint.

use std::collections::BTreeMap;
use std::time::Duration;

use onced_client::v1::ErrorReason;
use prost::Message;
use tonic::Code;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic_types::pb;

use super::ERROR_DOMAIN;
use super::failure::{Denied, Failure, Violation};
use crate::access::Unproven;
use crate::coordinator::Error;
use crate::record::{Refusal, View};
use crate::store::StoreError;

/// The trailer that gRPC's own retry policies obey.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Whether the same call may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    /// Repeating it changes nothing.
    Never,
    /// After about this long.
    After(Duration),
    /// After about this long, and gRPC's retry policies are told so too.
    Pushback(Duration),
}

/// `google.rpc.ErrorInfo` with its values in one order. That of the types for all has them in any: the same answer was
/// then not the same bytes.
#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    metadata: BTreeMap<String, String>,
}

impl Failure {
    /// The reason of the ErrorInfo.
    pub fn reason(&self) -> ErrorReason {
        match self {
            Failure::Invalid(violations) => {
                violations.first().map_or(ErrorReason::RequestMalformed, |first| first.reason)
            }
            Failure::Coordinator(Error::Refused { refusal, .. }) => match refusal {
                Refusal::FingerprintMismatch => ErrorReason::FingerprintMismatch,
                Refusal::OutcomeConflict => ErrorReason::OutcomeConflict,
                Refusal::ClaimLost | Refusal::RequestSpent => ErrorReason::ClaimLost,
                Refusal::ClaimHeld => ErrorReason::ClaimHeld,
                Refusal::NotFound => ErrorReason::RecordNotFound,
            },
            Failure::Coordinator(Error::Store(error)) => match error {
                StoreError::NotApplied(_) | StoreError::OutcomeUnknown(_) => ErrorReason::StoreUnavailable,
                StoreError::Full(_) => ErrorReason::StoreFull,
                StoreError::Corrupt { .. } => ErrorReason::RecordCorrupt,
            },
            Failure::Coordinator(Error::Draining) => ErrorReason::Draining,
            Failure::Overloaded(_) => ErrorReason::Overloaded,
            Failure::Quota(_) => ErrorReason::QuotaExceeded,
            Failure::Unproven(Unproven::Missing) => ErrorReason::CredentialsMissing,
            Failure::Unproven(Unproven::Invalid(_)) => ErrorReason::CredentialsInvalid,
            Failure::Unproven(Unproven::Expired) => ErrorReason::CredentialsExpired,
            Failure::Denied(_) => ErrorReason::AccessDenied,
            Failure::DeadlineExceeded | Failure::Stalled(_) => ErrorReason::DeadlineExceeded,
            Failure::Cancelled => ErrorReason::Cancelled,
            Failure::UnknownMethod(_) | Failure::UnknownEncoding(_) => ErrorReason::Unimplemented,
            Failure::Coordinator(Error::Fault) | Failure::Internal(_) => ErrorReason::Internal,
        }
    }

    /// The status as it travels inside a message.
    pub fn to_rpc_status(&self) -> pb::Status {
        let reason = self.reason();
        let info = ErrorInfo {
            reason: name(reason).to_owned(),
            domain: ERROR_DOMAIN.to_owned(),
            metadata: self.metadata().into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        };
        let mut details = vec![any(tonic_types::ErrorInfo::TYPE_URL, &info)];
        if let Failure::Invalid(violations) = self {
            let field_violations = violations.iter().map(Violation::to_field_violation).collect();
            details.push(any(tonic_types::BadRequest::TYPE_URL, &pb::BadRequest { field_violations }));
        }
        if let Retry::After(delay) | Retry::Pushback(delay) = self.retry() {
            let retry_delay = prost_types::Duration::try_from(delay).ok();
            details.push(any(tonic_types::RetryInfo::TYPE_URL, &pb::RetryInfo { retry_delay }));
        }
        pb::Status { code: code(reason) as i32, message: self.message(), details }
    }

    /// The status of a unary call or a stream.
    pub fn to_status(&self) -> tonic::Status {
        let status = self.to_rpc_status();
        let mut metadata = MetadataMap::new();
        if let Retry::Pushback(delay) = self.retry() {
            metadata.insert(PUSHBACK, MetadataValue::from(u64::try_from(delay.as_millis()).unwrap_or(0)));
        }
        let details = status.encode_to_vec().into();
        tonic::Status::with_details_and_metadata(
            Code::from_i32(status.code),
            status.message,
            details,
            metadata,
        )
    }

    /// The retry hint: that of the reason, unless more is known.
    fn retry(&self) -> Retry {
        if let Failure::Quota(quota) = self { Retry::After(quota.retry) } else { retry(self.reason()) }
    }

    /// What happened, for the person who reads it. The text of a store's error stays in the log.
    fn message(&self) -> String {
        match self {
            Failure::Invalid(violations) => {
                violations.iter().map(Violation::to_string).collect::<Vec<_>>().join("; ")
            }
            Failure::Coordinator(Error::Refused { refusal, .. }) => refused(*refusal).to_owned(),
            Failure::Coordinator(Error::Store(error)) => stored(error).to_owned(),
            Failure::Coordinator(Error::Draining) => {
                "this server, or this connection to it, is shutting down; repeat the call with the same arguments on \
                 another one"
                    .to_owned()
            }
            Failure::Overloaded(limit) => {
                format!("this server is at its limit {} of {}; retry later", limit.name(), limit.size())
            }
            Failure::Quota(quota) => format!(
                "the namespace is at its quota {} of {} at this server, and nothing was written; retry later",
                quota.limit, quota.size
            ),
            Failure::Unproven(Unproven::Missing) => {
                "this server wants to know who calls: send a token (authorization: Bearer TOKEN), or show a client \
                 certificate with a SPIFFE id or a DNS name"
                    .to_owned()
            }
            Failure::Unproven(Unproven::Invalid(what)) => format!("the token {what}"),
            Failure::Unproven(Unproven::Expired) => "the token has expired: send a fresh one".to_owned(),
            Failure::Denied(denied) => {
                let Denied { caller, namespace, action } = &**denied;
                format!("no rule allows {caller} the action {} in namespace {namespace:?}", action.name())
            }
            Failure::DeadlineExceeded => {
                "the deadline of the call passed before there was an answer; what it asked \
                 for may still happen: repeat it with the same arguments"
                    .to_owned()
            }
            Failure::Stalled(time) => {
                format!("the request did not arrive whole within {time:?}; nothing was done: repeat it")
            }
            Failure::Cancelled => {
                "the caller cancelled the call; what it asked for may still happen".to_owned()
            }
            Failure::UnknownMethod(path) => format!("this server has no method {path}"),
            Failure::UnknownEncoding(what) => what.clone(),
            Failure::Coordinator(Error::Fault) => {
                "a fault of the server, told in its log: the task that had the call has died".to_owned()
            }
            Failure::Internal(what) => format!("a fault of the server, told in its log: {what}"),
        }
    }

    /// The values that go with the reason.
    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Failure::Invalid(violations) => violations.first().map_or_else(Vec::new, |first| {
                vec![
                    ("field", first.field.to_owned()),
                    ("limit", first.limit.clone()),
                    ("sent", first.sent.clone()),
                ]
            }),
            Failure::Coordinator(Error::Refused { refusal, current }) => match refusal {
                // Nothing about a key is told to one who uses it for another request.
                Refusal::FingerprintMismatch | Refusal::NotFound => Vec::new(),
                Refusal::RequestSpent => {
                    [standing(current.as_deref()), vec![("request_id", "spent".to_owned())]].concat()
                }
                Refusal::OutcomeConflict | Refusal::ClaimLost | Refusal::ClaimHeld => {
                    standing(current.as_deref())
                }
            },
            Failure::Coordinator(Error::Store(error)) => match error {
                StoreError::NotApplied(_) | StoreError::Full(_) => vec![("write", "not applied".to_owned())],
                StoreError::OutcomeUnknown(_) => vec![("write", "unknown".to_owned())],
                StoreError::Corrupt { .. } => error
                    .corrupt_key()
                    .map(|key| ("key_hash", key.short_hash().to_string()))
                    .into_iter()
                    .collect(),
            },
            Failure::Overloaded(limit) => {
                vec![("limit", limit.name().to_owned()), ("size", limit.size().to_string())]
            }
            Failure::Quota(quota) => vec![
                ("namespace", quota.namespace.clone()),
                ("limit", quota.limit.to_owned()),
                ("size", quota.size.to_string()),
            ],
            Failure::Denied(denied) => vec![
                ("identity", denied.caller.clone()),
                ("namespace", denied.namespace.clone()),
                ("action", denied.action.name().to_owned()),
            ],
            Failure::UnknownMethod(path) => vec![("method", path.clone())],
            Failure::Coordinator(Error::Draining | Error::Fault)
            | Failure::Unproven(_)
            | Failure::DeadlineExceeded
            | Failure::Stalled(_)
            | Failure::Cancelled
            | Failure::UnknownEncoding(_)
            | Failure::Internal(_) => Vec::new(),
        }
    }
}

fn refused(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::FingerprintMismatch => {
            "the key was used for another request: the fingerprints differ; take another key, or send the request \
             that the key was used for"
        }
        Refusal::OutcomeConflict => {
            "the key is completed with another outcome, which stands; read it with Lookup"
        }
        Refusal::ClaimLost => {
            "the claim is no longer the caller's: another one took over, or it was released or settled; stop the \
             work and start again from Begin"
        }
        Refusal::RequestSpent => {
            "the request id is spent: its caller released the claim; begin again with a new request id"
        }
        Refusal::ClaimHeld => {
            "a claim of the key is held; wait for its end, or delete with force and accept that its holder may be \
             at work"
        }
        Refusal::NotFound => "there is no record of the key: nobody began it, or its retention is over",
    }
}

fn stored(error: &StoreError) -> &'static str {
    match error {
        StoreError::NotApplied(_) => {
            // Said of calls that write nothing, too.
            "the store did not answer, and the call changed nothing; repeat it with the same arguments"
        }
        StoreError::OutcomeUnknown(_) => {
            "the store did not answer in time, and what became of the write is unknown; repeat the call with the \
             same arguments"
        }
        StoreError::Full(_) => {
            "the store has no room, and nothing was written; claims that are held can still complete"
        }
        StoreError::Corrupt { .. } => {
            "the stored record cannot be read by this server; it may be damaged, or written by a newer version"
        }
    }
}

/// What is there now. The owner is left out: who asks may not be who should know.
fn standing(view: Option<&View>) -> Vec<(&'static str, String)> {
    let Some(view) = view else { return vec![("state", "absent".to_owned())] };
    let state = match view {
        View::InProgress { .. } => "in_progress",
        View::Available { .. } => "available",
        View::InDoubt { .. } => "in_doubt",
        View::Completed { .. } => "completed",
    };
    let record = view.record();
    vec![
        ("state", state.to_owned()),
        ("attempt", record.attempt.to_string()),
        ("fencing_token", record.fencing_token.0.to_string()),
    ]
}

/// The code of each reason.
pub fn code(reason: ErrorReason) -> Code {
    use ErrorReason as R;
    match reason {
        R::KeyRequired
        | R::KeyTooLong
        | R::NamespaceInvalid
        | R::FingerprintTooLong
        | R::RequestIdInvalid
        | R::OwnerTooLong
        | R::TtlOutOfRange
        | R::RetentionOutOfRange
        | R::WaitInvalid
        | R::OutcomeRequired
        | R::OutcomeInvalid
        | R::OutcomeTooLarge
        | R::CheckpointTooLarge
        | R::CheckpointSequenceRequired
        | R::TokenRequired
        | R::ReasonTooLong
        | R::ResolutionRequired
        | R::PageSizeOutOfRange
        | R::PageTokenInvalid
        | R::EnumInvalid
        | R::CallRequired
        | R::CallIdInUse
        | R::RequestMalformed => Code::InvalidArgument,
        R::FingerprintMismatch | R::OutcomeConflict | R::ClaimHeld => Code::FailedPrecondition,
        R::ClaimLost => Code::Aborted,
        R::RecordNotFound => Code::NotFound,
        R::StoreUnavailable | R::Overloaded | R::Draining => Code::Unavailable,
        R::StoreFull | R::QuotaExceeded => Code::ResourceExhausted,
        R::CredentialsMissing | R::CredentialsInvalid | R::CredentialsExpired => Code::Unauthenticated,
        R::AccessDenied => Code::PermissionDenied,
        R::DeadlineExceeded => Code::DeadlineExceeded,
        R::Cancelled => Code::Cancelled,
        R::RecordCorrupt => Code::DataLoss,
        R::Unimplemented => Code::Unimplemented,
        R::Internal | R::Unspecified => Code::Internal,
    }
}

/// The name of a status code as gRPC spells it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// The retry hint of each reason.
fn retry(reason: ErrorReason) -> Retry {
    use ErrorReason as R;
    match reason {
        R::StoreUnavailable => Retry::After(Duration::from_secs(1)),
        // gRPC's policies wait exactly as long as they are told, so callers shed together must not be told the
        // same.
        R::Overloaded => Retry::Pushback(Duration::from_millis(fastrand::u64(500..1_500))),
        // Another server can take the call at once; the pause is for a client that must first connect to it.
        R::Draining => Retry::Pushback(Duration::from_millis(100)),
        // Room comes back when an operator makes some or records expire: not soon.
        R::StoreFull | R::QuotaExceeded => Retry::After(Duration::from_secs(30)),
        R::Unspecified
        | R::KeyRequired
        | R::KeyTooLong
        | R::NamespaceInvalid
        | R::FingerprintTooLong
        | R::RequestIdInvalid
        | R::OwnerTooLong
        | R::TtlOutOfRange
        | R::RetentionOutOfRange
        | R::WaitInvalid
        | R::OutcomeRequired
        | R::OutcomeInvalid
        | R::OutcomeTooLarge
        | R::CheckpointTooLarge
        | R::CheckpointSequenceRequired
        | R::TokenRequired
        | R::ReasonTooLong
        | R::ResolutionRequired
        | R::PageSizeOutOfRange
        | R::PageTokenInvalid
        | R::EnumInvalid
        | R::CallRequired
        | R::CallIdInUse
        | R::RequestMalformed
        | R::FingerprintMismatch
        | R::OutcomeConflict
        | R::ClaimHeld
        | R::ClaimLost
        | R::RecordNotFound
        | R::CredentialsMissing
        | R::CredentialsInvalid
        | R::CredentialsExpired
        | R::AccessDenied
        // How much longer its caller can wait is not the server's to say.
        | R::DeadlineExceeded
        | R::Cancelled
        | R::RecordCorrupt
        | R::Unimplemented
        | R::Internal => Retry::Never,
    }
}

/// A reason as ErrorInfo spells it.
pub fn name(reason: ErrorReason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("ERROR_REASON_").unwrap_or(name)
}

fn any(type_url: &str, message: &impl Message) -> prost_types::Any {
    prost_types::Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

impl Violation {
    fn to_field_violation(&self) -> pb::bad_request::FieldViolation {
        pb::bad_request::FieldViolation {
            field: self.field.to_owned(),
            description: format!("{}; sent: {}", self.limit, self.sent),
            reason: name(self.reason).to_owned(),
            localized_message: None,
        }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}`: {}; sent: {}", self.field, self.limit, self.sent)
    }
}

#[cfg(test)]
mod tests;
