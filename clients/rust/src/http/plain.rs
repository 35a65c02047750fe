//! Answers of HTTP as outcomes, and back.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::body::{Whole, full};
use super::{Body, Disposition};
use crate::completion::{OnFailure, WorkError};
use crate::v1::Outcome;

const STATUS: &str = "http.status";
const HEADER: &str = "http.header.";
/// The headers that are stored, besides the content type.
const STORED: [&str; 10] = [
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "etag",
    "last-modified",
    "link",
    "location",
    "retry-after",
    "vary",
];
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// What a status says is to become of the answer.
pub(super) fn disposition(status: StatusCode, rule: OnFailure) -> Disposition {
    match status {
        // The request was not looked at, so another try may well be.
        StatusCode::UNAUTHORIZED
        | StatusCode::REQUEST_TIMEOUT
        | StatusCode::TOO_EARLY
        | StatusCode::TOO_MANY_REQUESTS => Disposition::Retry,
        status if status.is_server_error() => rule.into(),
        _ => Disposition::Store,
    }
}

/// Why an answer cannot be kept, whatever its body is.
pub(super) fn endless(parts: &Parts) -> Option<&'static str> {
    let media = parts.headers.get(CONTENT_TYPE).and_then(|media| media.to_str().ok()).unwrap_or_default();
    let essence = media.split(';').next().unwrap_or_default().trim();
    if parts.status.is_informational() {
        Some("it switches to another protocol")
    } else if essence.eq_ignore_ascii_case("text/event-stream") {
        Some("it streams events")
    } else {
        None
    }
}

/// The answer as it is stored.
pub(super) fn outcome(parts: &Parts, body: &Whole, besides: &[HeaderName]) -> Result<Outcome, WorkError> {
    let mut outcome = Outcome::response(body.data.clone()).with_metadata(STATUS, parts.status.as_str());
    if let Some(media) = joined(&parts.headers, CONTENT_TYPE.as_str())? {
        outcome = outcome.with_content_type(media);
    }
    // That of the content has a place of its own.
    let besides = besides.iter().filter(|name| *name != CONTENT_TYPE);
    for name in STORED.into_iter().chain(besides.map(HeaderName::as_str)) {
        if let Some(value) = joined(&parts.headers, name)? {
            outcome = outcome.with_metadata(format!("{HEADER}{name}"), value);
        }
    }
    Ok(outcome)
}

/// The values of a header, a line each: no value has a line feed in it.
fn joined(headers: &HeaderMap, name: &str) -> Result<Option<String>, WorkError> {
    let mut values = Vec::new();
    for value in headers.get_all(name) {
        values.push(
            std::str::from_utf8(value.as_bytes()).map_err(|_| format!("its header {name} is not UTF-8"))?,
        );
    }
    Ok((!values.is_empty()).then(|| values.join("\n")))
}

/// The answer that was stored.
pub(super) fn replay(outcome: &Outcome) -> Result<Response<Body>, WorkError> {
    let body = outcome.response_bytes().ok_or("it is an error")?;
    let status = outcome.metadata.get(STATUS).ok_or("it has no status")?;
    let mut answer = Response::new(full(Bytes::clone(body)));
    *answer.status_mut() = status.parse()?;
    let headers = answer.headers_mut();
    if !outcome.content_type.is_empty() {
        append(headers, CONTENT_TYPE, &outcome.content_type)?;
    }
    for (name, values) in &outcome.metadata {
        if let Some(name) = name.strip_prefix(HEADER).filter(|name| *name != CONTENT_TYPE.as_str()) {
            append(headers, name.parse()?, values)?;
        }
    }
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(answer)
}

fn append(headers: &mut HeaderMap, name: HeaderName, values: &str) -> Result<(), WorkError> {
    for value in values.split('\n') {
        headers.append(&name, HeaderValue::from_bytes(value.as_bytes())?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn parts(status: u16, headers: &[(&'static str, &str)]) -> Parts {
        let mut answer = Response::builder().status(status);
        for (name, value) in headers {
            answer = answer.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        answer.body(()).unwrap().into_parts().0
    }

    fn body(data: &'static str) -> Whole {
        Whole { data: Bytes::from_static(data.as_bytes()), trailers: None }
    }

    #[tokio::test]
    async fn an_answer_comes_back_as_it_was() {
        let headers = [
            ("content-type", "text/plain"),
            ("link", "</a>"),
            ("link", "</b>"),
            ("etag", ""),
            ("x-mine", "grün"),
            ("x-other", "1"),
        ];
        let mine = [HeaderName::from_static("x-mine"), CONTENT_TYPE, http::header::LINK];
        let outcome = outcome(&parts(201, &headers), &body("made"), &mine).unwrap();
        assert_eq!(outcome.content_type, "text/plain");
        assert_eq!(outcome.metadata["http.status"], "201");
        assert_eq!(outcome.metadata["http.header.link"], "</a>\n</b>");
        assert!(!outcome.metadata.contains_key("http.header.content-type"));
        // One that has it all the same.
        let replayed = replay(&outcome.with_metadata("http.header.content-type", "text/plain")).unwrap();
        assert_eq!(replayed.status(), 201);
        let mut found: Vec<_> = replayed.headers().iter().map(|(k, v)| (k.as_str(), v.as_bytes())).collect();
        found.sort_unstable();
        let mut expected: Vec<_> = headers[..5].iter().map(|(k, v)| (*k, v.as_bytes())).collect();
        expected.push(("idempotent-replayed", b"true"));
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(replayed.into_body().collect().await.unwrap().to_bytes(), "made");
    }

    #[test]
    fn what_a_status_says() {
        for (status, expected) in [
            (200, Disposition::Store),
            (302, Disposition::Store),
            (404, Disposition::Store),
            (401, Disposition::Retry),
            (408, Disposition::Retry),
            (425, Disposition::Retry),
            (429, Disposition::Retry),
            (500, Disposition::InDoubt),
            (503, Disposition::InDoubt),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(disposition(status, OnFailure::InDoubt), expected, "{status}");
        }
        assert_eq!(disposition(StatusCode::BAD_GATEWAY, OnFailure::Retry), Disposition::Retry);
    }

    #[test]
    fn what_cannot_be_kept_is_found_out() {
        assert!(endless(&parts(101, &[])).is_some());
        assert!(endless(&parts(200, &[("content-type", "Text/Event-Stream; charset=utf-8")])).is_some());
        assert!(endless(&parts(200, &[("content-type", "text/plain")])).is_none());
        let mut odd = parts(200, &[]);
        odd.headers.insert("etag", HeaderValue::from_bytes(b"\xff").unwrap());
        assert!(outcome(&odd, &body(""), &[]).unwrap_err().to_string().contains("etag"));
        assert!(replay(&Outcome::response("x")).is_err());
        assert!(replay(&Outcome::error(tonic::Code::Aborted, "x")).is_err());
    }
}
