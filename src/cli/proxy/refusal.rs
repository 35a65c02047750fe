//! What the proxy itself answers: problems, as RFC 9457 has them.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde_json::json;

use super::body::Answer;

/// Why a request was not answered by the upstream. What the rules of keys refuse is not among these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is no request that can be handed on.
    RequestInvalid,
    /// It asks to speak another protocol.
    UpgradeRefused,
    /// It did not arrive in time.
    RequestTimeout,
    /// As many as may be are at work.
    Overloaded,
    /// No connection to the upstream came about.
    UpstreamUnreachable,
    /// The connection broke after something may have been sent.
    UpstreamLost,
    /// The upstream has not answered in time.
    UpstreamTimeout,
}

impl Refusal {
    /// Its name, for programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::RequestInvalid => "REQUEST_INVALID",
            Self::UpgradeRefused => "UPGRADE_REFUSED",
            Self::RequestTimeout => "REQUEST_TIMEOUT",
            Self::Overloaded => "OVERLOADED",
            Self::UpstreamUnreachable => "UPSTREAM_UNREACHABLE",
            Self::UpstreamLost => "UPSTREAM_LOST",
            Self::UpstreamTimeout => "UPSTREAM_TIMEOUT",
        }
    }

    /// Its status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::RequestInvalid => StatusCode::BAD_REQUEST,
            Self::UpgradeRefused => StatusCode::NOT_IMPLEMENTED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamUnreachable | Self::UpstreamLost => StatusCode::BAD_GATEWAY,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::RequestInvalid => "The request cannot be handed on",
            Self::UpgradeRefused => "Upgrades are not handed on",
            Self::RequestTimeout => "The request did not arrive in time",
            Self::Overloaded => "Too many requests are at work",
            Self::UpstreamUnreachable => "The service cannot be reached",
            Self::UpstreamLost => "The service did not answer to the end",
            Self::UpstreamTimeout => "The service did not answer in time",
        }
    }

    /// Whether the caller may do the same again soon: nothing was done.
    fn may_be_repeated(self) -> bool {
        matches!(self, Self::Overloaded | Self::UpstreamUnreachable)
    }

    /// The answer, for people with `detail`.
    pub fn answer(self, detail: &str) -> Response<Answer> {
        let (status, code) = (self.status(), self.code());
        let problem =
            json!({ "title": self.title(), "status": status.as_u16(), "detail": detail, "code": code });
        let mut response = Response::new(Answer::from(Bytes::from(problem.to_string())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.may_be_repeated() {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_on_the_proxy_has_all_of_them() {
        let page = include_str!("../../../docs/proxy.md");
        use Refusal::*;
        let all = [
            RequestInvalid,
            UpgradeRefused,
            RequestTimeout,
            Overloaded,
            UpstreamUnreachable,
            UpstreamLost,
            UpstreamTimeout,
        ];
        for refusal in all {
            let row = format!("| `{}` | {} |", refusal.code(), refusal.status().as_u16());
            assert!(page.contains(&row), "docs/proxy.md has no {row}");
        }
    }
}
