//! Bad input: each wrong field has its code, its reason and its path, over both ways, and nothing reaches the
//! store.

use onced_client::v1::session_request::Call;
use onced_client::v1::session_response::Answer;
use onced_client::v1::{Checkpoint, Outcome, SessionRequest, outcome::Result as Of};
use tonic::Code;

use super::*;
use crate::support::caller::{raw_session, rpc_status};

/// Never to be seen in an error: stands in keys and payloads.
const SECRET: &str = "SECRET";

/// What is asked, and what is wrong with it.
struct Row<T> {
    what: String,
    request: T,
    reason: &'static str,
    field: &'static str,
}

fn row<T>(what: impl Into<String>, request: T, reason: &'static str, field: &'static str) -> Row<T> {
    Row { what: what.into(), request, reason, field }
}

fn duration(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

/// Durations that are no time to wait: negative, of mixed signs, or out of any range.
const MALFORMED: [(i64, i32); 8] = [
    (-1, 0),
    (0, -1),
    (1, -1),
    (-1, 1),
    (0, 1_000_000_000),
    (5, i32::MIN),
    (315_576_000_001, 0),
    (i64::MIN, i32::MAX),
];

/// Valid requests, to be made wrong in one field each.
mod valid {
    use super::*;

    pub fn begin() -> v1::BeginRequest {
        super::begin("a")
    }
    pub fn complete() -> v1::CompleteRequest {
        super::complete("a", 1, b"SECRET")
    }
    pub fn renew() -> v1::RenewRequest {
        super::renew("a", 1)
    }
    pub fn release() -> v1::ReleaseRequest {
        super::release("a", 1, v1::Disposition::Retry)
    }
    pub fn lookup() -> v1::LookupRequest {
        super::lookup("a")
    }
    pub fn list() -> v1::ListRequest {
        v1::ListRequest { namespace: NAMESPACE.to_owned(), ..v1::ListRequest::default() }
    }
    pub fn resolve() -> v1::ResolveRequest {
        let resolution = Some(v1::resolve_request::Resolution::Retry(v1::ResolveRetry {}));
        let (namespace, key) = (NAMESPACE.to_owned(), "a".to_owned());
        v1::ResolveRequest { namespace, key, fencing_token: 1, resolution, retention: None }
    }
    pub fn delete() -> v1::DeleteRequest {
        let (namespace, key) = (NAMESPACE.to_owned(), "a".to_owned());
        v1::DeleteRequest { namespace, key, fencing_token: 1, force: false }
    }
}

fn bad_namespaces() -> [String; 8] {
    let names = ["", "Orders", "-a", ".a", "_a", "a/b", "a\u{e9}"].map(str::to_owned);
    let [a, b, c, d, e, f, g] = names;
    [a, b, c, d, e, f, g, "n".repeat(64)]
}

fn long_key() -> String {
    SECRET.repeat(100)
}

/// A key of over 512 bytes but fewer characters.
fn wide_key() -> String {
    "\u{1f980}".repeat(129)
}

fn begins() -> Vec<Row<Call>> {
    let mut rows = Vec::new();
    let mut add = |what: String, reason, field, request| {
        rows.push(row(what, Call::Begin(request), reason, field));
    };
    for namespace in bad_namespaces() {
        let what = format!("namespace {namespace:?}");
        add(what, "NAMESPACE_INVALID", "namespace", v1::BeginRequest { namespace, ..valid::begin() });
    }
    add("no key".into(), "KEY_REQUIRED", "key", v1::BeginRequest { key: String::new(), ..valid::begin() });
    for key in [long_key(), wide_key(), "k".repeat(513)] {
        let what = format!("key of {} bytes", key.len());
        add(what, "KEY_TOO_LONG", "key", v1::BeginRequest { key, ..valid::begin() });
    }
    let ids = [
        "",
        "7",
        "67e5504410b1426f9247bb680e5fe0c8",
        "{67e55044-10b1-426f-9247-bb680e5fe0c8}",
        "urn:uuid:67e55044-10b1-426f-9247-bb680e5fe0c8",
        "67e55044-10b1-426f-9247-bb680e5fe0cg",
        "67e55044-10b1-426f-9247-bb680e5fe0c8 ",
        "67e55044-10b1-426f-9247bb-680e5fe0c8",
        "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}",
    ];
    for id in ids {
        let request = v1::BeginRequest { request_id: id.to_owned(), ..valid::begin() };
        add(format!("request id {id:?}"), "REQUEST_ID_INVALID", "request_id", request);
    }
    let fingerprint = vec![b'S'; 65].into();
    let request = v1::BeginRequest { fingerprint, ..valid::begin() };
    add("fingerprint of 65 bytes".into(), "FINGERPRINT_TOO_LONG", "fingerprint", request);
    let request = v1::BeginRequest { owner: "o".repeat(257), ..valid::begin() };
    add("owner of 257 bytes".into(), "OWNER_TOO_LONG", "owner", request);
    for (seconds, nanos) in [(0, 0), (1, 999_999_999), (3_600, 1), (86_400, 0)].into_iter().chain(MALFORMED) {
        let request = v1::BeginRequest { lock_ttl: duration(seconds, nanos), ..valid::begin() };
        add(format!("lock TTL {seconds} s {nanos} ns"), "TTL_OUT_OF_RANGE", "lock_ttl", request);
    }
    for (seconds, nanos) in [(0, 0), (59, 999_999_999), (31 * 86_400, 1)].into_iter().chain(MALFORMED) {
        let request = v1::BeginRequest { retention: duration(seconds, nanos), ..valid::begin() };
        add(format!("retention {seconds} s {nanos} ns"), "RETENTION_OUT_OF_RANGE", "retention", request);
    }
    for (seconds, nanos) in MALFORMED {
        let request = v1::BeginRequest { wait: duration(seconds, nanos), ..valid::begin() };
        add(format!("wait {seconds} s {nanos} ns"), "WAIT_INVALID", "wait", request);
    }
    for on_lapse in [3, -1, i32::MAX] {
        let request = v1::BeginRequest { on_lapse, ..valid::begin() };
        add(format!("on_lapse {on_lapse}"), "ENUM_INVALID", "on_lapse", request);
    }
    rows
}

/// Outcomes that nobody may store, with the reason and the field.
fn bad_outcomes() -> Vec<(String, Option<Outcome>, &'static str, &'static str)> {
    let error = |code, details| {
        let result = Some(Of::Error(Status { code, message: String::new(), details }));
        Some(Outcome { result, ..Outcome::default() })
    };
    let mut bad = vec![
        ("no outcome".to_owned(), None, "OUTCOME_REQUIRED", "outcome"),
        ("an empty outcome".to_owned(), Some(Outcome::default()), "OUTCOME_REQUIRED", "outcome"),
        (
            "an outcome of nothing but a content type".to_owned(),
            Some(Outcome { content_type: "text/plain".to_owned(), ..Outcome::default() }),
            "OUTCOME_REQUIRED",
            "outcome",
        ),
    ];
    for code in [0, 17, -1, 404, i32::MIN] {
        bad.push((
            format!("error code {code}"),
            error(code, vec![]),
            "OUTCOME_INVALID",
            "outcome.error.code",
        ));
    }
    let much = SECRET.repeat((1 << 20) / SECRET.len() + 1);
    let metadata = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    let detail = prost_types::Any { type_url: "t".to_owned(), value: much.clone().into_bytes() };
    let response = Some(Of::Response(much.clone().into()));
    let large = [
        ("response", Some(Outcome { result: response, ..Outcome::default() })),
        ("content type", Some(Outcome { content_type: much.clone(), ..outcome(b"") })),
        ("metadata", Some(Outcome { metadata: metadata("k", &much), ..outcome(b"") })),
        ("metadata key", Some(Outcome { metadata: metadata(&much, "v"), ..outcome(b"") })),
        ("error detail", error(3, vec![detail])),
    ];
    bad.extend(
        large.map(|(part, outcome)| (format!("large {part}"), outcome, "OUTCOME_TOO_LARGE", "outcome")),
    );
    bad
}

fn holders() -> Vec<Row<Call>> {
    let mut rows = Vec::new();
    for (what, outcome, reason, field) in bad_outcomes() {
        rows.push(row(
            what,
            Call::Complete(v1::CompleteRequest { outcome, ..valid::complete() }),
            reason,
            field,
        ));
    }
    let retention = duration(1, 0);
    let request = v1::CompleteRequest { retention, ..valid::complete() };
    rows.push(row("a retention of 1 s", Call::Complete(request), "RETENTION_OUT_OF_RANGE", "retention"));
    let checkpoint = |sequence, bytes| Some(Checkpoint { sequence, data: vec![b'S'; bytes].into() });
    let request = v1::RenewRequest { checkpoint: checkpoint(0, 1), ..valid::renew() };
    let (reason, field) = ("CHECKPOINT_SEQUENCE_REQUIRED", "checkpoint.sequence");
    rows.push(row("a checkpoint without sequence", Call::Renew(request), reason, field));
    let request = v1::RenewRequest { checkpoint: checkpoint(1, (64 << 10) + 1), ..valid::renew() };
    rows.push(row("a large checkpoint", Call::Renew(request), "CHECKPOINT_TOO_LARGE", "checkpoint.data"));
    for disposition in [0, 3, -1] {
        let request = v1::ReleaseRequest { disposition, ..valid::release() };
        let what = format!("disposition {disposition}");
        rows.push(row(what, Call::Release(request), "ENUM_INVALID", "disposition"));
    }
    let request = v1::ReleaseRequest { reason: SECRET.repeat(171), ..valid::release() };
    rows.push(row("a long reason", Call::Release(request), "REASON_TOO_LONG", "reason"));
    for (seconds, nanos) in MALFORMED {
        let request = v1::LookupRequest { wait: duration(seconds, nanos), ..valid::lookup() };
        rows.push(row(format!("wait {seconds} s {nanos} ns"), Call::Lookup(request), "WAIT_INVALID", "wait"));
    }
    rows
}

/// The fields that all holders' calls and Lookup have.
fn names() -> Vec<Row<Call>> {
    let calls = |namespace: &str, key: &str, fencing_token: u64| {
        let (namespace, key) = (|| namespace.to_owned(), || key.to_owned());
        vec![
            Call::Complete(v1::CompleteRequest {
                namespace: namespace(),
                key: key(),
                fencing_token,
                ..valid::complete()
            }),
            Call::Renew(v1::RenewRequest {
                namespace: namespace(),
                key: key(),
                fencing_token,
                ..valid::renew()
            }),
            Call::Release(v1::ReleaseRequest {
                namespace: namespace(),
                key: key(),
                fencing_token,
                ..valid::release()
            }),
            Call::Lookup(v1::LookupRequest { namespace: namespace(), key: key(), ..valid::lookup() }),
        ]
    };
    let long = long_key();
    let bad = [
        ("no namespace", calls("", "a", 1), "NAMESPACE_INVALID", "namespace"),
        ("an upper-case namespace", calls("A", "a", 1), "NAMESPACE_INVALID", "namespace"),
        ("no key", calls("n", "", 1), "KEY_REQUIRED", "key"),
        ("a long key", calls("n", &long, 1), "KEY_TOO_LONG", "key"),
        ("no token", calls("n", "a", 0), "TOKEN_REQUIRED", "fencing_token"),
    ];
    let mut rows = Vec::new();
    for (what, calls, reason, field) in bad {
        // A Lookup has no token.
        let calls =
            calls.into_iter().filter(|call| field != "fencing_token" || !matches!(call, Call::Lookup(_)));
        rows.extend(calls.map(|call| row(what, call, reason, field)));
    }
    rows
}

/// What only has a unary form.
enum Admin {
    Watch(v1::WatchRequest),
    List(v1::ListRequest),
    Resolve(v1::ResolveRequest),
    Delete(v1::DeleteRequest),
}

fn admin() -> Vec<Row<Admin>> {
    use Admin::{Delete, List, Resolve, Watch};
    let mut rows = Vec::new();
    for (namespace, key, reason, field) in [
        (String::new(), "a".to_owned(), "NAMESPACE_INVALID", "namespace"),
        ("n".to_owned(), String::new(), "KEY_REQUIRED", "key"),
        ("n".to_owned(), long_key(), "KEY_TOO_LONG", "key"),
    ] {
        let (n, k) = (|| namespace.clone(), || key.clone());
        rows.push(row("watch", Watch(v1::WatchRequest { namespace: n(), key: k() }), reason, field));
        let resolve = v1::ResolveRequest { namespace: n(), key: k(), ..valid::resolve() };
        rows.push(row("resolve", Resolve(resolve), reason, field));
        let delete = v1::DeleteRequest { namespace: n(), key: k(), ..valid::delete() };
        rows.push(row("delete", Delete(delete), reason, field));
    }
    for namespace in bad_namespaces() {
        let what = format!("list of {namespace:?}");
        let request = v1::ListRequest { namespace, ..valid::list() };
        rows.push(row(what, List(request), "NAMESPACE_INVALID", "namespace"));
    }
    for state in [5, -1] {
        let request = v1::ListRequest { state, ..valid::list() };
        rows.push(row(format!("list of state {state}"), List(request), "ENUM_INVALID", "state"));
    }
    for page_size in [1_001, u32::MAX] {
        let request = v1::ListRequest { page_size, ..valid::list() };
        rows.push(row(format!("page of {page_size}"), List(request), "PAGE_SIZE_OUT_OF_RANGE", "page_size"));
    }
    for page_token in ["1", "0", "1zz", "\u{e9}", "161", "16f7264657273", &"1".repeat(5_000)] {
        let request = v1::ListRequest { page_token: page_token.to_owned(), ..valid::list() };
        rows.push(row(format!("token {page_token:.9}"), List(request), "PAGE_TOKEN_INVALID", "page_token"));
    }
    let no_token = v1::ResolveRequest { fencing_token: 0, ..valid::resolve() };
    rows.push(row("resolve without token", Resolve(no_token), "TOKEN_REQUIRED", "fencing_token"));
    let no_token = v1::DeleteRequest { fencing_token: 0, ..valid::delete() };
    rows.push(row("delete without token", Delete(no_token), "TOKEN_REQUIRED", "fencing_token"));
    let nothing = v1::ResolveRequest { resolution: None, ..valid::resolve() };
    rows.push(row("resolve to nothing", Resolve(nothing), "RESOLUTION_REQUIRED", "resolution"));
    let short = v1::ResolveRequest { retention: duration(1, 0), ..valid::resolve() };
    rows.push(row("resolve for 1 s", Resolve(short), "RETENTION_OUT_OF_RANGE", "retention"));
    for (what, outcome, reason, field) in bad_outcomes() {
        if let Some(outcome) = outcome {
            let resolution = Some(v1::resolve_request::Resolution::Outcome(outcome));
            let request = v1::ResolveRequest { resolution, ..valid::resolve() };
            rows.push(row(format!("resolve to {what}"), Resolve(request), reason, field));
        }
    }
    rows
}

/// Holds an error against what is expected of one wrong field.
#[track_caller]
fn check(what: &str, status: &Status, reason: &str, field: &str) {
    assert_eq!(Code::from(status.code), Code::InvalidArgument, "{what}: {}", status.message);
    let info = info(status);
    assert_eq!(info.reason, reason, "{what}: {}", status.message);
    assert_eq!(info.metadata["field"], field, "{what}");
    for name in ["limit", "sent"] {
        let value = &info.metadata[name];
        assert!(!value.is_empty() && value.len() < 300, "{what}: {name} is {value:?}");
        assert!(status.message.contains(value), "{what}: {name} is not in {:?}", status.message);
    }
    assert!(status.message.contains(&format!("`{field}`")), "{what}: {}", status.message);
    let bad = status.details.iter().find(|any| any.type_url == tonic_types::BadRequest::TYPE_URL);
    let bad = pb::BadRequest::decode(bad.expect("a BadRequest").value.as_slice()).unwrap();
    let violations: Vec<_> = bad
        .field_violations
        .iter()
        .map(|violation| (violation.field.as_str(), violation.reason.as_str()))
        .collect();
    assert_eq!(violations, [(field, reason)], "{what}");
    let told = status.encode_to_vec();
    assert!(!String::from_utf8_lossy(&told).contains(SECRET), "{what}: the error quotes what is secret");
    assert!(told.len() < 4_096, "{what}: the error must fit into a header");
}

async fn each_wrong_field_is_told(on: Fixture) {
    let rows: Vec<_> = begins().into_iter().chain(holders()).chain(names()).collect();
    assert!(rows.len() >= 60, "{} rows", rows.len());
    for Row { what, request, reason, field } in rows {
        let status = on.caller.call(request, None).await.expect_err(&what);
        check(&what, &status, reason, field);
    }
    assert_eq!(on.store.trips(), 0, "nothing reaches the store");
}

over_both! {
    each_wrong_field_is_told
    all_wrong_fields_are_told_at_once
}

#[tokio::test]
async fn each_wrong_field_of_admin_and_watch_is_told() {
    let on = Fixture::new(Way::Unary).await;
    for Row { what, request, reason, field } in admin() {
        let (mut admin, mut client) = (on.admin.clone(), on.client.clone());
        let result = match request {
            Admin::Watch(request) => client.watch(request).await.map(drop),
            Admin::List(request) => admin.list(request).await.map(drop),
            Admin::Resolve(request) => admin.resolve(request).await.map(drop),
            Admin::Delete(request) => admin.delete(request).await.map(drop),
        };
        check(&what, &rpc_status(&result.expect_err(&what)), reason, field);
    }
    assert_eq!(on.store.trips(), 0, "nothing reaches the store");
}

#[tokio::test]
async fn a_wrong_timeout_of_a_session_call_is_told() {
    let on = Fixture::new(Way::Session).await;
    let (calls, mut answers) = raw_session(&on.server).await;
    for (seconds, nanos) in MALFORMED {
        let call = Some(Call::Begin(valid::begin()));
        calls.send(SessionRequest { id: 1, timeout: duration(seconds, nanos), call }).unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        let Some(Answer::Error(status)) = answer.answer else { panic!("{answer:?}") };
        check(&format!("timeout {seconds} s {nanos} ns"), &status, "WAIT_INVALID", "timeout");
    }
    assert_eq!(on.store.trips(), 0, "nothing reaches the store");
}

async fn all_wrong_fields_are_told_at_once(on: Fixture) {
    let request = v1::BeginRequest {
        namespace: "N".to_owned(),
        key: String::new(),
        request_id: "7".to_owned(),
        fingerprint: vec![0; 65].into(),
        owner: "o".repeat(300),
        lock_ttl: duration(1, 0),
        wait: duration(-1, 0),
        retention: duration(1, 0),
        on_lapse: 9,
    };
    let status = on.caller.begin(request).await.unwrap_err();
    assert_eq!(info(&status).reason, "NAMESPACE_INVALID", "the first one gives the reason");
    let bad = status.details.iter().find(|any| any.type_url == tonic_types::BadRequest::TYPE_URL).unwrap();
    let bad = pb::BadRequest::decode(bad.value.as_slice()).unwrap();
    let fields: Vec<_> = bad.field_violations.into_iter().map(|violation| violation.field).collect();
    let expected = [
        "namespace",
        "key",
        "request_id",
        "fingerprint",
        "owner",
        "lock_ttl",
        "wait",
        "retention",
        "on_lapse",
    ];
    assert_eq!(fields, expected);
}
