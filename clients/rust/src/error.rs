//! What can go wrong with a call, typed: the reason that the server gave, its code and its text.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::v1::ErrorReason;

/// What an error tells of a write, and that it does not know.
const WRITE: &str = "write";
const WRITE_UNKNOWN: &str = "unknown";

/// The domain of every `ErrorInfo` that onced sends.
pub(crate) const DOMAIN: &str = "onced.dev";

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address of a server cannot be used.
    #[error("{server:?} is no address of a server: {why}")]
    ServerInvalid {
        /// The address as given.
        server: String,
        /// What is wrong with it.
        why: String,
    },
    /// What the client is to show of itself, or by what it is to know its servers, cannot be used.
    #[error("{0}")]
    CredentialsInvalid(String),
    /// A server refused the call; the same call again would be refused again.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// No server could do it before the caller's time was up. What became of the call is unknown, and the
    /// same call may be sent again.
    #[error("{}", unavailable(servers, *tried, last))]
    Unavailable {
        /// The servers that were asked.
        servers: String,
        /// How long the call was tried for: less than the caller's time, where the next attempt would have come
        /// after it.
        tried: Duration,
        /// What the last attempt ended with. It has a reason if a server answered at all.
        last: Box<Refusal>,
    },
    /// The outcome is over the limit that the claim told. It was not sent.
    #[error("the outcome takes {bytes} bytes encoded, and the server stores at most {max_bytes}")]
    OutcomeTooLarge {
        /// The size of the encoded outcome.
        bytes: u64,
        /// The largest one that Complete takes.
        max_bytes: u64,
    },
    /// The client was closed, by [`Client::close`](crate::Client::close).
    #[error("the client is closed")]
    Closed,
    /// The answer holds nothing that this client knows.
    #[error("the server's answer to {call} holds nothing known here; is the server newer than this client?")]
    AnswerUnknown {
        /// The RPC.
        call: &'static str,
    },
}

impl Error {
    /// The reason that the server gave, if one answered.
    pub fn reason(&self) -> Option<ErrorReason> {
        self.refusal().and_then(|refusal| refusal.reason)
    }

    /// The status code of the answer, if there was one.
    pub fn code(&self) -> Option<Code> {
        self.refusal().map(|refusal| refusal.code)
    }

    /// True if the claim that the call named is no longer the caller's: taken over, settled, or deleted.
    pub fn is_claim_lost(&self) -> bool {
        matches!(self.reason(), Some(ErrorReason::ClaimLost | ErrorReason::RecordNotFound))
    }

    /// True if no server answered in time: what became of the call is unknown.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Error::Unavailable { .. })
    }

    /// What the server said, or what the last attempt ended with.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Error::Refused(refusal) | Error::Unavailable { last: refusal, .. } => Some(refusal),
            Error::ServerInvalid { .. }
            | Error::CredentialsInvalid(_)
            | Error::OutcomeTooLarge { .. }
            | Error::Closed
            | Error::AnswerUnknown { .. } => None,
        }
    }

    /// The same for a call whose earlier attempts were answered, though the last one was not: what was said
    /// tells more of the server than that its time was up.
    pub(crate) fn after_answer(self, answered: Option<Refusal>) -> Self {
        match (self, answered) {
            (Error::Unavailable { servers, tried, last }, Some(answered))
                if last.reason.is_none() && last.code == Code::DeadlineExceeded =>
            {
                let message = format!("{}; before that: {}", last.message, answered.message);
                // The values were those of another attempt.
                let last = Box::new(Refusal { message, metadata: BTreeMap::new(), ..answered });
                Error::Unavailable { servers, tried, last }
            }
            (error, _) => error,
        }
    }

    /// The same for a call of which an earlier attempt may have been carried out, if `unsettled`: that the last one
    /// was not says nothing of it.
    pub(crate) fn after_unknown(mut self, unsettled: bool) -> Self {
        if let Error::Unavailable { last, .. } = &mut self
            && unsettled
            && last.reason.is_some()
            && !last.is_write_unknown()
        {
            last.metadata.insert(WRITE.to_owned(), WRITE_UNKNOWN.to_owned());
            last.message =
                format!("what became of an earlier attempt is unknown; of the last one: {}", last.message);
        }
        self
    }

    pub(crate) fn answer_unknown(call: &'static str) -> Self {
        Self::AnswerUnknown { call }
    }
}

/// An error as a server sent it, or as the transport met it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status code.
    pub code: Code,
    /// The reason; none if it is not from onced, such as a refused connection, or newer than this client.
    pub reason: Option<ErrorReason>,
    /// The text.
    pub message: String,
    /// The values that belong to the reason.
    pub metadata: BTreeMap<String, String>,
}

impl Refusal {
    /// Whether the server does not know what became of its write.
    pub(crate) fn is_write_unknown(&self) -> bool {
        self.metadata.get(WRITE).is_some_and(|write| write == WRITE_UNKNOWN)
    }

    /// What a call of a [`Stub`](crate::Stub) that ended with this status was refused for.
    pub fn of(status: &Status) -> Self {
        let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN);
        let reason =
            info.as_ref().and_then(|i| ErrorReason::from_str_name(&format!("ERROR_REASON_{}", i.reason)));
        let metadata = info.map(|info| info.metadata.into_iter().collect()).unwrap_or_default();
        let code = if is_time_out(status) { Code::DeadlineExceeded } else { status.code() };
        Self { code, reason, message: message(status), metadata }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.reason {
            Some(reason) => {
                let name = reason.as_str_name();
                write!(f, "{} ({})", self.message, name.strip_prefix("ERROR_REASON_").unwrap_or(name))
            }
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Refusal {}

/// Whether onced itself has sent this status, though the reason may be newer than this client.
pub(crate) fn is_of_onced(status: &Status) -> bool {
    status.get_details_error_info().is_some_and(|info| info.domain == DOMAIN)
}

/// Whether the connection's own timer, which keeps the deadline of each attempt, ended it.
pub(crate) fn is_time_out(status: &Status) -> bool {
    let mut causes =
        std::iter::successors(std::error::Error::source(status), |&cause| std::error::Error::source(cause));
    causes.any(|cause| cause.is::<tonic::TimeoutExpired>())
}

/// Tells the end of this client's own time from one that somebody has answered.
#[derive(Debug, thiserror::Error)]
#[error("")]
struct Silent;

/// What an attempt ends with that was not answered in time.
pub(crate) fn silence(server: &str, time: Duration) -> Status {
    let text = format!("{server} did not answer within {:?}", rounded(time));
    let mut status = Status::deadline_exceeded(text);
    status.set_source(Arc::new(Silent));
    status
}

/// A time for people, who do not count nanoseconds.
fn rounded(time: Duration) -> Duration {
    let unit_ms = if time < Duration::from_secs(1) { 1 } else { 100 };
    let units = (time.as_millis() + unit_ms / 2) / unit_ms;
    Duration::from_millis(u64::try_from(units * unit_ms).unwrap_or(u64::MAX))
}

/// Whether a server was there and could not do it, or none was.
fn unavailable(servers: &str, tried: Duration, last: &Refusal) -> String {
    let tried = rounded(tried);
    match last.reason {
        Some(_) => format!("{servers} answered, but could not do it in {tried:?}; last: {last}"),
        None => format!("no answer from {servers} in {tried:?}; last: {last}"),
    }
}

/// The text of a status. One that was made by the transport hides its cause ("Connection refused") in its
/// sources, so they are told as well.
fn message(status: &Status) -> String {
    let mut message = match status.message() {
        "" => format!("{:?}", status.code()),
        text => text.to_owned(),
    };
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let text = cause.to_string();
        if !text.is_empty() && !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        source = cause.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn status(domain: &str, reason: &str) -> Status {
        let details = ErrorDetails::with_error_info(reason, domain, [("holder".to_owned(), "h".to_owned())]);
        Status::with_error_details(Code::Aborted, "taken over", details)
    }

    #[test]
    fn the_reason_and_its_values_are_read_from_error_info() {
        let refusal = Refusal::of(&status("onced.dev", "CLAIM_LOST"));
        assert_eq!(refusal.reason, Some(ErrorReason::ClaimLost));
        assert_eq!(refusal.metadata["holder"], "h");
        assert_eq!(refusal.to_string(), "taken over (CLAIM_LOST)");
        assert!(Error::Refused(Box::new(refusal)).is_claim_lost());
    }

    #[test]
    fn a_reason_of_another_domain_or_a_newer_server_is_none() {
        assert_eq!(Refusal::of(&status("example.com", "CLAIM_LOST")).reason, None);
        assert_eq!(Refusal::of(&status("onced.dev", "NEVER_HEARD_OF")).reason, None);
    }

    fn silent() -> Error {
        let last = Box::new(Refusal::of(&silence("onced:1", Duration::from_secs(2))));
        Error::Unavailable { servers: "onced:1".to_owned(), tried: Duration::from_micros(4_449_000), last }
    }

    #[test]
    fn who_answered_is_told_from_who_did_not() {
        assert_eq!(
            silent().after_answer(None).to_string(),
            "no answer from onced:1 in 4.4s; last: onced:1 did not answer within 2s"
        );
        let answered = silent().after_answer(Some(Refusal::of(&status("onced.dev", "STORE_UNAVAILABLE"))));
        assert_eq!(
            answered.to_string(),
            "onced:1 answered, but could not do it in 4.4s; last: onced:1 did not answer within 2s; before that: \
             taken over (STORE_UNAVAILABLE)"
        );
        assert!(answered.is_unavailable());
    }

    #[test]
    fn an_attempt_that_wrote_nothing_settles_none_before_it() {
        let details = |write: &str| {
            let values = [("write".to_owned(), write.to_owned())];
            ErrorDetails::with_error_info("STORE_UNAVAILABLE", "onced.dev", values)
        };
        let status = |write| Status::with_error_details(Code::Unavailable, "nothing", details(write));
        let error = |write| {
            let last = Box::new(Refusal::of(&status(write)));
            Error::Unavailable { servers: "onced:1".to_owned(), tried: Duration::from_secs(1), last }
        };
        let told = |error: Error| error.refusal().map(|refusal| refusal.metadata["write"].clone());
        assert_eq!(told(error("not applied").after_unknown(false)).as_deref(), Some("not applied"));
        assert_eq!(told(error("not applied").after_unknown(true)).as_deref(), Some("unknown"));
        let text = error("not applied").after_unknown(true).to_string();
        assert!(text.contains("earlier attempt is unknown"), "{text}");
        assert_eq!(told(error("unknown").after_unknown(true)).as_deref(), Some("unknown"));
    }

    #[test]
    fn a_status_without_text_shows_its_code() {
        assert_eq!(Refusal::of(&Status::new(Code::Aborted, "")).to_string(), "Aborted");
    }
}
