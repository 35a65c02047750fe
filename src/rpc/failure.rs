//! Why a call failed, before anyone thinks of status codes.

use std::time::Duration;

use onced_client::v1::ErrorReason;

use crate::access::{Action, Unproven};
use crate::coordinator;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request is wrong; nothing was done. Never empty.
    Invalid(Vec<Violation>),
    /// The coordinator refused or failed.
    Coordinator(coordinator::Error),
    /// A limit of the server is reached.
    Overloaded(Limit),
    /// A quota of the namespace is reached; nothing was written.
    Quota(Quota),
    /// It is not known who calls; nothing is told.
    Unproven(Unproven),
    /// The caller may not do this; nothing is told.
    Denied(Box<Denied>),
    /// The deadline of the call passed.
    DeadlineExceeded,
    /// The request did not arrive whole within this time; nothing was done.
    Stalled(Duration),
    /// The caller took the call back.
    Cancelled,
    /// There is no such method; the path that was asked for.
    UnknownMethod(String),
    /// The message is encoded in a way that this server does not read; how.
    UnknownEncoding(String),
    /// A fault of the server. The text is for the caller; what went wrong is in the log.
    Internal(&'static str),
}

/// What is wrong with one field of a request. It never quotes a key or a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The reason.
    pub reason: ErrorReason,
    /// The path of the field in the request message, or the name of the header.
    pub field: &'static str,
    /// What the field must be.
    pub limit: String,
    /// What was sent instead.
    pub sent: String,
}

/// A quota of a namespace that is reached at this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The namespace.
    pub namespace: String,
    /// The name of the quota, as the settings have it.
    pub limit: &'static str,
    /// Its size.
    pub size: u32,
    /// When it may help to try again.
    pub retry: Duration,
}

/// What a caller may not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Who calls.
    pub caller: String,
    /// Where; empty if that is no namespace.
    pub namespace: String,
    /// What.
    pub action: Action,
}

/// A limit of the server, with its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Calls at work.
    Active(usize),
    /// Calls of holders at work.
    Holders(usize),
    /// Calls that wait.
    Waiting(usize),
    /// Open calls of one session.
    Session(usize),
    /// Calls of one connection at work, those included that it has reset.
    Connection(usize),
    /// Calls of holders of one connection at work, those included that it has reset.
    Streams(usize),
    /// Bytes of requests that are not answered, and of answers that have not left, of one connection.
    Bytes(usize),
}

impl Failure {
    /// One wrong field.
    pub fn invalid(reason: ErrorReason, field: &'static str, limit: &str, sent: impl Into<String>) -> Self {
        Failure::Invalid(vec![Violation { reason, field, limit: limit.to_owned(), sent: sent.into() }])
    }

    /// The server shuts down.
    pub const DRAINING: Failure = Failure::Coordinator(coordinator::Error::Draining);
}

impl Limit {
    /// Its name, as the settings have it.
    pub fn name(self) -> &'static str {
        match self {
            Limit::Active(_) => "max_active_calls",
            Limit::Holders(_) => "max_holder_calls",
            Limit::Waiting(_) => "max_waiting_calls",
            Limit::Session(_) => "max_session_calls",
            Limit::Connection(_) => "active_calls_per_connection",
            Limit::Streams(_) => "streams_per_connection",
            Limit::Bytes(_) => "bytes_per_connection",
        }
    }

    /// Its size.
    pub fn size(self) -> usize {
        match self {
            Limit::Active(size)
            | Limit::Holders(size)
            | Limit::Waiting(size)
            | Limit::Session(size)
            | Limit::Connection(size)
            | Limit::Streams(size)
            | Limit::Bytes(size) => size,
        }
    }
}

impl From<coordinator::Error> for Failure {
    fn from(error: coordinator::Error) -> Self {
        Failure::Coordinator(error)
    }
}
