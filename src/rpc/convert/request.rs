//! Requests: checked, and turned into what the coordinator takes.

use std::time::Duration;

use onced_client::v1::{self, ErrorReason};

use super::super::failure::Failure;
use super::check::Checks;
use super::page_token;
use crate::config::Policy;
use crate::record::limits::{PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX};
use crate::record::{Begin, Command, Disposition, Key, Namespace, OnLapse, RecordKey, Resolution};

type Checked<T> = Result<T, Failure>;

/// What a List asks for.
#[derive(Debug)]
pub struct List {
    /// The namespace.
    pub namespace: Namespace,
    /// The only state to tell of; `None`: all.
    pub state: Option<v1::RecordState>,
    /// How many records at most.
    pub page_size: usize,
    /// The key after which the page starts.
    pub after: Option<Key>,
}

/// A Begin, and how long it waits.
pub fn begin(request: v1::BeginRequest, policy: &Policy) -> Checked<(RecordKey, Begin, Duration)> {
    let mut checks = Checks::default();
    let key = checks.record_key(&request.namespace, &request.key);
    let request_id = checks.request_id(&request.request_id);
    let fingerprint = checks.fingerprint(request.fingerprint);
    let owner = checks.owner(request.owner);
    let lock_ttl = checks.lock_ttl(request.lock_ttl, policy);
    let wait = checks.wait("wait", request.wait);
    let retention = checks.retention(request.retention, policy);
    let on_lapse = checks.known("on_lapse", request.on_lapse).map(|on_lapse| match on_lapse {
        v1::OnLapse::Unspecified => policy.on_lapse,
        v1::OnLapse::TakeOver => OnLapse::TakeOver,
        v1::OnLapse::Hold => OnLapse::Hold,
    });
    let all = || {
        let begin = Begin {
            request_id: request_id?,
            owner: owner?,
            fingerprint: fingerprint?,
            lock_ttl: lock_ttl?,
            retention: retention?.unwrap_or(policy.retention),
            on_lapse: on_lapse?,
        };
        Some((key?, begin, wait?))
    };
    checks.finish(all())
}

/// A Complete.
pub fn complete(request: v1::CompleteRequest, policy: &Policy) -> Checked<(RecordKey, Command)> {
    let mut checks = Checks::default();
    let key = checks.record_key(&request.namespace, &request.key);
    let token = checks.token(request.fencing_token);
    let outcome = checks.outcome(request.outcome, policy);
    let retention = checks.retention(request.retention, policy);
    let all = || Some((key?, Command::Complete { token: token?, outcome: outcome?, retention: retention? }));
    checks.finish(all())
}

/// A Renew.
pub fn renew(request: v1::RenewRequest) -> Checked<(RecordKey, Command)> {
    let mut checks = Checks::default();
    let key = checks.record_key(&request.namespace, &request.key);
    let token = checks.token(request.fencing_token);
    let checkpoint = checks.checkpoint(request.checkpoint);
    let all = || Some((key?, Command::Renew { token: token?, checkpoint: checkpoint? }));
    checks.finish(all())
}

/// A Release.
pub fn release(request: v1::ReleaseRequest) -> Checked<(RecordKey, Command)> {
    let mut checks = Checks::default();
    let key = checks.record_key(&request.namespace, &request.key);
    let token = checks.token(request.fencing_token);
    let disposition = match checks.known("disposition", request.disposition) {
        Some(v1::Disposition::Retry) => Some(Disposition::Retry),
        Some(v1::Disposition::InDoubt) => Some(Disposition::InDoubt),
        Some(v1::Disposition::Unspecified) => {
            let limit = "must be DISPOSITION_RETRY or DISPOSITION_IN_DOUBT";
            checks.refuse(ErrorReason::EnumInvalid, "disposition", limit, "DISPOSITION_UNSPECIFIED")
        }
        None => None,
    };
    let reason = checks.reason(request.reason);
    let all = || Some((key?, Command::Release { token: token?, disposition: disposition?, reason: reason? }));
    checks.finish(all())
}

/// A Lookup, and how long it waits.
pub fn lookup(request: v1::LookupRequest) -> Checked<(RecordKey, Duration)> {
    let mut checks = Checks::default();
    let key = checks.record_key(&request.namespace, &request.key);
    let wait = checks.wait("wait", request.wait);
    let all = || Some((key?, wait?));
    checks.finish(all())
}

/// A Watch.
pub fn watch(request: &v1::WatchRequest) -> Checked<RecordKey> {
    let mut checks = Checks::default();
    let key = checks.record_key(&request.namespace, &request.key);
    checks.finish(key)
}

/// The timeout of a session call; `None` if it has none.
pub fn timeout(timeout: Option<prost_types::Duration>) -> Checked<Option<Duration>> {
    let mut checks = Checks::default();
    let checked = checks.wait("timeout", timeout);
    checks.finish(checked.map(|checked| timeout.map(|_| checked)))
}

/// A List.
pub fn list(request: &v1::ListRequest) -> Checked<List> {
    let mut checks = Checks::default();
    let namespace = checks.namespace(&request.namespace);
    let state = checks.known("state", request.state).map(|state| match state {
        v1::RecordState::Unspecified => None,
        v1::RecordState::InProgress
        | v1::RecordState::Available
        | v1::RecordState::InDoubt
        | v1::RecordState::Completed => Some(state),
    });
    let page_size = match usize::try_from(request.page_size) {
        Ok(0) => Some(PAGE_SIZE_DEFAULT),
        Ok(size) if size <= PAGE_SIZE_MAX => Some(size),
        Ok(_) | Err(_) => {
            let limit = format!("must be at most {PAGE_SIZE_MAX} (0: {PAGE_SIZE_DEFAULT})");
            let sent = request.page_size.to_string();
            checks.refuse(ErrorReason::PageSizeOutOfRange, "page_size", limit, sent)
        }
    };
    let after = match &namespace {
        _ if request.page_token.is_empty() => Some(None),
        // Without a namespace there is nothing to hold the token against.
        None => None,
        Some(namespace) => page_token::decode(namespace, &request.page_token).map(Some).or_else(|| {
            let limit = "must be the next_page_token of a List of this namespace";
            let sent = format!("{} bytes", request.page_token.len());
            checks.refuse(ErrorReason::PageTokenInvalid, "page_token", limit, sent)
        }),
    };
    let all = || Some(List { namespace: namespace?, state: state?, page_size: page_size?, after: after? });
    checks.finish(all())
}

/// A Resolve.
pub fn resolve(request: v1::ResolveRequest, policy: &Policy) -> Checked<(RecordKey, Command)> {
    use v1::resolve_request::Resolution as Sent;
    let mut checks = Checks::default();
    let key = checks.record_key(&request.namespace, &request.key);
    let token = checks.token(request.fencing_token);
    let settled = match request.resolution {
        Some(Sent::Retry(v1::ResolveRetry {})) => Some(None),
        Some(Sent::Outcome(outcome)) => checks.outcome(Some(outcome), policy).map(Some),
        None => checks.refuse(
            ErrorReason::ResolutionRequired,
            "resolution",
            "must be retry or outcome",
            "neither",
        ),
    };
    let retention = checks.retention(request.retention, policy);
    let all = || {
        let resolution = match settled? {
            None => Resolution::Retry,
            Some(outcome) => Resolution::Outcome { outcome, retention: retention? },
        };
        Some((key?, Command::Resolve { token: token?, resolution }))
    };
    checks.finish(all())
}

/// A Delete.
pub fn delete(request: &v1::DeleteRequest) -> Checked<(RecordKey, Command)> {
    let mut checks = Checks::default();
    let key = checks.record_key(&request.namespace, &request.key);
    let token = checks.token(request.fencing_token);
    let all = || Some((key?, Command::Delete { token: token?, force: request.force }));
    checks.finish(all())
}
