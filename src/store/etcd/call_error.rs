//! Why a call to etcd failed, told apart by what is known of the request.

use tonic::Code;

use super::advice::with_causes;
use super::client::DECODE_MAX_BYTES;
use crate::store::StoreError;

/// Why a call failed, by what is known of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallError {
    /// etcd refused this very request: nothing was done.
    Refused(String),
    /// etcd refused the request for what it is, its size or its number of operations: nothing was done.
    Unfit(String),
    /// It never left this process, or came to a member that serves nobody: nothing was done.
    Unreachable(String),
    /// It came to an etcd that has another store than the one that was opened: nothing was done in that.
    Foreign(String),
    /// A put names a lease that is gone: nothing was done.
    LeaseNotFound,
    /// A lease of this id exists: nothing was done.
    LeaseExists,
    /// etcd is out of space. The write that first hits the quota gets this answer and is applied all the same.
    NoSpace(String),
    /// The answer is larger than what is decoded at once.
    TooLarge,
    /// No answer, or one that does not tell.
    Unknown(String),
}

impl CallError {
    /// The error of a call that writes no record, which did not fail for what it is.
    pub(super) fn of_read(self) -> StoreError {
        StoreError::NotApplied(self.into_text())
    }

    /// Whether etcd understood the request, and said no to it.
    pub(super) fn is_refusal(&self) -> bool {
        !matches!(self, CallError::Unreachable(_) | CallError::Foreign(_) | CallError::Unknown(_))
    }

    /// The same in other words, where it has words.
    pub(super) fn retold(self, tell: impl FnOnce(String) -> String) -> Self {
        match self {
            CallError::Refused(text) => CallError::Refused(tell(text)),
            CallError::Unfit(text) => CallError::Unfit(tell(text)),
            CallError::Unreachable(text) => CallError::Unreachable(tell(text)),
            CallError::Foreign(text) => CallError::Foreign(tell(text)),
            CallError::NoSpace(text) => CallError::NoSpace(tell(text)),
            CallError::Unknown(text) => CallError::Unknown(tell(text)),
            error @ (CallError::LeaseNotFound | CallError::LeaseExists | CallError::TooLarge) => error,
        }
    }

    /// The same, met at this address.
    pub(super) fn at(self, address: &str) -> Self {
        self.retold(|text| match text.strip_prefix("etcd") {
            Some(rest) => format!("etcd at {address}{rest}"),
            None => text,
        })
    }

    /// What to tell of it.
    pub(super) fn into_text(self) -> String {
        match self {
            CallError::Refused(text)
            | CallError::Unfit(text)
            | CallError::Unreachable(text)
            | CallError::Foreign(text)
            | CallError::NoSpace(text)
            | CallError::Unknown(text) => text,
            CallError::LeaseNotFound => "etcd: the lease is gone".to_owned(),
            CallError::LeaseExists => "etcd: the lease exists already".to_owned(),
            CallError::TooLarge => format!("etcd's answer is larger than {DECODE_MAX_BYTES} bytes"),
        }
    }
}

/// What an error tells of its request. Doubt counts as unknown.
pub(super) fn classify(error: etcd_client::Error) -> CallError {
    let etcd_client::Error::GRpcStatus(status) = error else {
        return CallError::Unknown(format!("etcd: {error}"));
    };
    if never_sent(&status) {
        return CallError::Unreachable(format!("etcd cannot be reached: {}", with_causes(&status)));
    }
    // How etcd's side of the connection refuses to read a request at all: an operator has lowered its limit.
    if status.code() == Code::ResourceExhausted
        && status.message().starts_with("grpc: received message larger than max")
    {
        return CallError::Unfit(format!("etcd: {}", status.message()));
    }
    // Only etcd itself speaks so: the same codes also stand for broken connections.
    let Some(said) = status.message().strip_prefix("etcdserver: ") else {
        return match status.code() {
            Code::OutOfRange => CallError::TooLarge,
            _ => CallError::Unknown(format!("etcd: {}", with_causes(&status))),
        };
    };
    let text = format!("etcd: {:?}: {}", status.code(), status.message());
    match status.code() {
        // Said before the request is looked at.
        Code::Unavailable if said == "no leader" => CallError::Unreachable(text),
        _ if said == "rpc not supported for learner" => CallError::Unreachable(text),
        // Users were changed since the login, which the next connection repeats.
        Code::InvalidArgument if said == "revision of auth store is old" => CallError::Unreachable(text),
        Code::NotFound if said == "requested lease not found" => CallError::LeaseNotFound,
        Code::FailedPrecondition if said == "lease already exists" => CallError::LeaseExists,
        Code::ResourceExhausted if said == "mvcc: database space exceeded" => CallError::NoSpace(text),
        // The second: its limit on operations was lowered.
        Code::InvalidArgument
            if matches!(said, "request is too large" | "too many operations in txn request") =>
        {
            CallError::Unfit(text)
        }
        Code::NotFound
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented
        // A revision that was compacted.
        | Code::OutOfRange => CallError::Refused(text),
        // Unavailable among them: etcd says so when a proposal it sent around got no answer.
        _ => CallError::Unknown(text),
    }
}

/// Whether the connection was never made, so that nothing was sent on it.
fn never_sent(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    fn of(status: Status) -> CallError {
        classify(etcd_client::Error::GRpcStatus(status))
    }

    #[test]
    fn only_what_etcd_itself_refused_counts_as_refused() {
        let refusals = [
            Status::resource_exhausted("etcdserver: too many requests"),
            Status::permission_denied("etcdserver: permission denied"),
            Status::unauthenticated("etcdserver: invalid auth token"),
            Status::out_of_range("etcdserver: mvcc: required revision has been compacted"),
        ];
        for status in refusals {
            assert!(matches!(of(status), CallError::Refused(_)));
        }
        let unfit = [
            Status::invalid_argument("etcdserver: request is too large"),
            Status::invalid_argument("etcdserver: too many operations in txn request"),
            Status::resource_exhausted("grpc: received message larger than max (1008080 vs. 624288)"),
        ];
        for status in unfit {
            assert!(matches!(of(status), CallError::Unfit(_)));
        }
        let doubts = [
            Status::unavailable("etcdserver: request timed out"),
            Status::resource_exhausted("h2 protocol error: ENHANCE_YOUR_CALM"),
            Status::permission_denied("h2 protocol error: INADEQUATE_SECURITY"),
            Status::cancelled("Timeout expired"),
            Status::unknown("transport error"),
            Status::internal("h2 protocol error"),
        ];
        for status in doubts {
            assert!(matches!(of(status), CallError::Unknown(_)));
        }
    }

    #[test]
    fn what_a_member_or_a_login_cannot_serve_may_be_tried_elsewhere() {
        let nothing_done = [
            Status::unavailable("etcdserver: no leader"),
            Status::unavailable("etcdserver: rpc not supported for learner"),
            Status::invalid_argument("etcdserver: revision of auth store is old"),
        ];
        for status in nothing_done {
            assert!(matches!(of(status), CallError::Unreachable(_)));
        }
    }

    #[test]
    fn leases_and_space_are_told_apart() {
        let gone = Status::not_found("etcdserver: requested lease not found");
        assert_eq!(of(gone), CallError::LeaseNotFound);
        let exists = Status::failed_precondition("etcdserver: lease already exists");
        assert_eq!(of(exists), CallError::LeaseExists);
        let full = Status::resource_exhausted("etcdserver: mvcc: database space exceeded");
        assert!(matches!(of(full), CallError::NoSpace(_)));
        let large = Status::out_of_range("Error, decoded message length too large: found 9, the limit is: 8");
        assert_eq!(of(large), CallError::TooLarge);
    }
}
