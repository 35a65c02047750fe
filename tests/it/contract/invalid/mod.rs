//! Bad input: each wrong field has its code, its reason and its path, and the error says what the limit is and
//! what was sent, but nothing that is secret; over both ways where there are two. Nothing is written.
//!
//! The tables are split by RPC. A row is a valid request made wrong in one field.

mod begin;
mod edges;
mod holders;
mod operators;
mod outcomes;
mod readers;
mod session;
mod wire;

use onced::record::Namespace;
use onced::store::RecordStore as _;
use onced_client::v1::session_request::Call;
use tonic::Code;

use super::*;
use crate::support::caller::rpc_status;

/// Never to be seen in an error: stands in keys and payloads.
const SECRET: &str = "SECRET";

/// The field that is wrong, the reason, what the error says was sent, and what makes a valid request wrong.
type Row<T> = (&'static str, &'static str, &'static str, fn(&mut T));

/// What was sent instead of a name with no end.
fn long(bytes: usize) -> String {
    SECRET.chars().cycle().take(bytes).collect()
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn duration(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

/// The rows of a namespace.
macro_rules! namespaces {
    () => {
        &[
            ("namespace", "NAMESPACE_INVALID", r#""""#, |it| it.namespace = text("")),
            ("namespace", "NAMESPACE_INVALID", r#""Orders""#, |it| it.namespace = text("Orders")),
            ("namespace", "NAMESPACE_INVALID", r#""-a""#, |it| it.namespace = text("-a")),
            ("namespace", "NAMESPACE_INVALID", r#"".a""#, |it| it.namespace = text(".a")),
            ("namespace", "NAMESPACE_INVALID", r#""_a""#, |it| it.namespace = text("_a")),
            ("namespace", "NAMESPACE_INVALID", r#""a/b""#, |it| it.namespace = text("a/b")),
            ("namespace", "NAMESPACE_INVALID", r#""a b""#, |it| it.namespace = text("a b")),
            ("namespace", "NAMESPACE_INVALID", r#""a\0""#, |it| it.namespace = text("a\0")),
            ("namespace", "NAMESPACE_INVALID", "\"a\u{e9}\"", |it| it.namespace = text("a\u{e9}")),
            ("namespace", "NAMESPACE_INVALID", "nnn\"", |it| it.namespace = "n".repeat(64)),
            ("namespace", "NAMESPACE_INVALID", "5000 bytes", |it| it.namespace = "n".repeat(5_000)),
        ]
    };
}

/// The rows of a key. The second long one has fewer than 512 characters.
macro_rules! keys {
    () => {
        &[
            ("key", "KEY_REQUIRED", "0 bytes", |it| it.key = text("")),
            ("key", "KEY_TOO_LONG", "513 bytes", |it| it.key = long(513)),
            ("key", "KEY_TOO_LONG", "516 bytes", |it| it.key = "\u{1f980}".repeat(129)),
            ("key", "KEY_TOO_LONG", "1000000 bytes", |it| it.key = long(1_000_000)),
        ]
    };
}

/// The row of a fencing token.
macro_rules! tokens {
    () => {
        &[("fencing_token", "TOKEN_REQUIRED", "0", |it| it.fencing_token = 0)]
    };
}

/// The rows of a duration that is no time at all: negative, of mixed signs, or out of any range.
macro_rules! malformed_durations {
    ($field:ident, $reason:literal) => {
        &[
            (stringify!($field), $reason, "-1 s", |it| it.$field = duration(-1, 0)),
            (stringify!($field), $reason, "0 s and -1 ns", |it| it.$field = duration(0, -1)),
            (stringify!($field), $reason, "1 s and -1 ns", |it| it.$field = duration(1, -1)),
            (stringify!($field), $reason, "-1 s and 1 ns", |it| it.$field = duration(-1, 1)),
            (stringify!($field), $reason, "0 s and 1000000000 ns", |it| {
                it.$field = duration(0, 1_000_000_000)
            }),
            (stringify!($field), $reason, "5 s and -2147483648 ns", |it| it.$field = duration(5, i32::MIN)),
            (stringify!($field), $reason, "315576000001 s", |it| it.$field = duration(315_576_000_001, 0)),
            (stringify!($field), $reason, "9223372036854775807 s", |it| it.$field = duration(i64::MAX, 0)),
            (stringify!($field), $reason, "-9223372036854775808 s and 2147483647 ns", |it| {
                it.$field = duration(i64::MIN, i32::MAX)
            }),
        ]
    };
}

/// The rows of a retention.
macro_rules! retentions {
    () => {
        &[
            ("retention", "RETENTION_OUT_OF_RANGE", "0ns", |it| it.retention = duration(0, 0)),
            ("retention", "RETENTION_OUT_OF_RANGE", "59.999999999s", |it| {
                it.retention = duration(59, 999_999_999)
            }),
            ("retention", "RETENTION_OUT_OF_RANGE", "2678400.000000001s", |it| {
                it.retention = duration(31 * 86_400, 1)
            }),
            ("retention", "RETENTION_OUT_OF_RANGE", "315576000000s", |it| {
                it.retention = duration(315_576_000_000, 0)
            }),
        ]
    };
}
use {keys, malformed_durations, namespaces, retentions, tokens};

/// What an error of this reason must say of the limit.
fn limit_of(reason: &str) -> &'static str {
    match reason {
        "NAMESPACE_INVALID" => "must match [a-z0-9][a-z0-9._-]{0,62}",
        "KEY_REQUIRED" | "KEY_TOO_LONG" => "must have 1 to 512 bytes",
        "TOKEN_REQUIRED" => "must be the fencing token of the claim, 1 or more",
        "REQUEST_ID_INVALID" => "must be a UUID",
        "FINGERPRINT_TOO_LONG" => "must have at most 64 bytes",
        "OWNER_TOO_LONG" => "must have at most 256 bytes",
        "REASON_TOO_LONG" => "must have at most 1024 bytes",
        "TTL_OUT_OF_RANGE" => "must be 2 s to 1 h",
        "RETENTION_OUT_OF_RANGE" => "must be 1 min to 31 d",
        "WAIT_INVALID" => "must be a duration of 0 or more",
        "OUTCOME_REQUIRED" => "must hold a response or an error",
        "OUTCOME_INVALID" => "must be the google.rpc.Code of an error, 1 to 16",
        "OUTCOME_TOO_LARGE" => "must have at most 1048576 bytes",
        "CHECKPOINT_TOO_LARGE" => "must have at most 65536 bytes",
        "CHECKPOINT_SEQUENCE_REQUIRED" => "must be 1 or more",
        "RESOLUTION_REQUIRED" => "must be retry or outcome",
        "PAGE_SIZE_OUT_OF_RANGE" => "must be at most 1000",
        "PAGE_TOKEN_INVALID" => "must be the next_page_token of a List of this namespace",
        "ENUM_INVALID" | "CALL_REQUIRED" | "CALL_ID_IN_USE" | "REQUEST_MALFORMED" => "must ",
        other => panic!("no row may expect {other}"),
    }
}

/// Makes each row's request and holds the error that answers it against the row.
async fn each_is_told<T>(
    valid: fn() -> T,
    tables: &[&[Row<T>]],
    call: impl AsyncFn(T) -> Result<(), Status>,
) {
    let name = std::any::type_name::<T>().rsplit("::").next().unwrap();
    for (field, reason, sent, spoil) in tables.iter().copied().flatten() {
        let what = format!("{name}.{field}: {sent}");
        let mut request = valid();
        spoil(&mut request);
        let status = call(request).await.expect_err(&what);
        check(&what, &status, reason, field, sent);
    }
}

/// As `each_is_told`, of a request that has a session's form.
async fn each_call_is_told<T>(on: &Fixture, valid: fn() -> T, form: fn(T) -> Call, tables: &[&[Row<T>]]) {
    each_is_told(valid, tables, async |request| on.caller.call(form(request), None).await.map(drop)).await;
    assert_nothing_written(on).await;
}

/// Holds an error against what is expected of one wrong field.
#[track_caller]
fn check(what: &str, status: &Status, reason: &str, field: &str, sent: &str) {
    assert_eq!(Code::from(status.code), Code::InvalidArgument, "{what}: {}", status.message);
    let info = info(status);
    assert_eq!(info.reason, reason, "{what}: {}", status.message);
    assert_eq!(info.metadata["field"], field, "{what}");
    for (name, part) in [("limit", limit_of(reason)), ("sent", sent)] {
        let value = &info.metadata[name];
        assert!(value.contains(part) && value.len() < 300, "{what}: {name} is {value:?}, without {part:?}");
        assert!(status.message.contains(value), "{what}: {name} is not in {:?}", status.message);
    }
    assert!(status.message.contains(&format!("`{field}`")), "{what}: {}", status.message);
    assert_eq!(violations(status), [(field.to_owned(), reason.to_owned())], "{what}");
    assert_discreet(what, status);
}

/// The fields that an error's BadRequest names, each with its reason.
#[track_caller]
fn violations(status: &Status) -> Vec<(String, String)> {
    let bad = status.details.iter().find(|any| any.type_url == tonic_types::BadRequest::TYPE_URL);
    let bad = pb::BadRequest::decode(bad.expect("a BadRequest").value.as_slice()).unwrap();
    bad.field_violations.into_iter().map(|violation| (violation.field, violation.reason)).collect()
}

/// An error quotes nothing secret, and is no larger than a header may be.
#[track_caller]
fn assert_discreet(what: &str, status: &Status) {
    let told = status.encode_to_vec();
    assert!(!String::from_utf8_lossy(&told).contains(SECRET), "{what}: the error quotes what is secret");
    assert!(told.len() < 4_096, "{what}: the error must fit into a header");
}

/// Nobody went to the store, and there is nothing in it.
async fn assert_nothing_written(on: &Fixture) {
    assert_eq!(on.store.trips(), 0, "nothing reaches the store");
    let page = on.store.scan(&Namespace::new(NAMESPACE).unwrap(), None, 10).await.unwrap();
    assert!(page.records.is_empty(), "{} records were written", page.records.len());
}

#[test]
fn the_tables_hold_what_they_are_said_to() {
    let rows = begin::rows() + holders::rows() + readers::rows() + operators::rows();
    let all = rows + session::rows() + wire::rows();
    assert!(rows >= 120, "{rows} rows of requests");
    assert!(all >= 200, "{all} rows in all");
}
