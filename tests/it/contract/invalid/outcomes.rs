//! Outcomes that nobody may store, whether a Complete or a Resolve sends them.

pub use onced_client::v1::Outcome;
use onced_client::v1::outcome::Result as Of;

use super::*;

/// One more byte than an encoded outcome may have.
pub const TOO_MUCH: usize = (1 << 20) + 1;

pub fn of(result: Of) -> Option<Outcome> {
    Some(Outcome { result: Some(result), ..Outcome::default() })
}

pub fn error(code: i32) -> Option<Outcome> {
    of(Of::Error(Status { code, message: text(SECRET), details: Vec::new() }))
}

/// An outcome with so many bytes in it that its encoding has as many as asked for.
pub fn outcome_of(encoded: usize, fill: fn(String) -> Outcome) -> Option<Outcome> {
    let overhead = fill(long(encoded)).encoded_len() - encoded;
    let outcome = fill(long(encoded - overhead));
    assert_eq!(outcome.encoded_len(), encoded);
    Some(outcome)
}

pub fn response(bytes: String) -> Outcome {
    of(Of::Response(bytes.into())).unwrap()
}

pub fn content_type(content_type: String) -> Outcome {
    Outcome { content_type, ..response(text("")) }
}

pub fn metadata_key(key: String) -> Outcome {
    Outcome { metadata: [(key, text(""))].into(), ..response(text("")) }
}

pub fn metadata_value(value: String) -> Outcome {
    Outcome { metadata: [(text("k"), value)].into(), ..response(text("")) }
}

pub fn error_message(message: String) -> Outcome {
    of(Of::Error(Status { code: 3, message, details: Vec::new() })).unwrap()
}

pub fn error_detail(value: String) -> Outcome {
    let detail = prost_types::Any { type_url: text("t"), value: value.into_bytes() };
    of(Of::Error(Status { code: 3, message: text(""), details: vec![detail] })).unwrap()
}

/// Outcomes that nobody may store, for whatever sends one: how it is put into the request is the argument.
macro_rules! outcomes {
    ($put:expr) => {
        &[
            ("outcome", "OUTCOME_REQUIRED", "neither", |it| $put(it, Some(Outcome::default()))),
            ("outcome", "OUTCOME_REQUIRED", "neither", |it| {
                $put(it, Some(Outcome { content_type: text("text/plain"), ..Outcome::default() }))
            }),
            ("outcome", "OUTCOME_REQUIRED", "neither", |it| {
                $put(it, Some(Outcome { metadata: [(text("k"), text(SECRET))].into(), ..Outcome::default() }))
            }),
            ("outcome.error.code", "OUTCOME_INVALID", "0", |it| $put(it, error(0))),
            ("outcome.error.code", "OUTCOME_INVALID", "17", |it| $put(it, error(17))),
            ("outcome.error.code", "OUTCOME_INVALID", "-1", |it| $put(it, error(-1))),
            ("outcome.error.code", "OUTCOME_INVALID", "404", |it| $put(it, error(404))),
            ("outcome.error.code", "OUTCOME_INVALID", "-2147483648", |it| $put(it, error(i32::MIN))),
            ("outcome", "OUTCOME_TOO_LARGE", "1048577 bytes", |it| $put(it, outcome_of(TOO_MUCH, response))),
            ("outcome", "OUTCOME_TOO_LARGE", "1048577 bytes", |it| {
                $put(it, outcome_of(TOO_MUCH, content_type))
            }),
            ("outcome", "OUTCOME_TOO_LARGE", "1048577 bytes", |it| {
                $put(it, outcome_of(TOO_MUCH, metadata_key))
            }),
            ("outcome", "OUTCOME_TOO_LARGE", "1048577 bytes", |it| {
                $put(it, outcome_of(TOO_MUCH, metadata_value))
            }),
            ("outcome", "OUTCOME_TOO_LARGE", "1048577 bytes", |it| {
                $put(it, outcome_of(TOO_MUCH, error_message))
            }),
            ("outcome", "OUTCOME_TOO_LARGE", "1048577 bytes", |it| {
                $put(it, outcome_of(TOO_MUCH, error_detail))
            }),
        ]
    };
}
pub(super) use outcomes;
