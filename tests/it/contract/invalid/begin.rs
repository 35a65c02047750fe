//! Begin.

use super::*;

fn valid() -> v1::BeginRequest {
    v1::BeginRequest { fingerprint: Bytes::from_static(SECRET.as_bytes()), ..begin("SECRET order") }
}

/// 36 bytes, but 18 characters.
const WIDE: &str = "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\
                    \u{e9}\u{e9}\u{e9}";

const FIELDS: &[Row<v1::BeginRequest>] = &[
    ("request_id", "REQUEST_ID_INVALID", r#""""#, |it| it.request_id = text("")),
    ("request_id", "REQUEST_ID_INVALID", r#""7""#, |it| it.request_id = text("7")),
    ("request_id", "REQUEST_ID_INVALID", "b680e5fe0c8\"", |it| {
        it.request_id = text("67e5504410b1426f9247bb680e5fe0c8");
    }),
    ("request_id", "REQUEST_ID_INVALID", "\"{67e55044", |it| {
        it.request_id = text("{67e55044-10b1-426f-9247-bb680e5fe0c8}");
    }),
    ("request_id", "REQUEST_ID_INVALID", "\"urn:uuid:", |it| {
        it.request_id = text("urn:uuid:67e55044-10b1-426f-9247-bb680e5fe0c8");
    }),
    ("request_id", "REQUEST_ID_INVALID", "fe0cg\"", |it| {
        it.request_id = text("67e55044-10b1-426f-9247-bb680e5fe0cg");
    }),
    ("request_id", "REQUEST_ID_INVALID", "fe0c8 \"", |it| {
        it.request_id = text("67e55044-10b1-426f-9247-bb680e5fe0c8 ");
    }),
    ("request_id", "REQUEST_ID_INVALID", "9247bb-680e", |it| {
        it.request_id = text("67e55044-10b1-426f-9247bb-680e5fe0c8");
    }),
    ("request_id", "REQUEST_ID_INVALID", "\u{e9}\u{e9}\"", |it| it.request_id = text(WIDE)),
    ("request_id", "REQUEST_ID_INVALID", "100000 bytes", |it| it.request_id = "7".repeat(100_000)),
    ("fingerprint", "FINGERPRINT_TOO_LONG", "65 bytes", |it| it.fingerprint = long(65).into()),
    ("fingerprint", "FINGERPRINT_TOO_LONG", "1000000 bytes", |it| it.fingerprint = long(1_000_000).into()),
    ("owner", "OWNER_TOO_LONG", "257 bytes", |it| it.owner = long(257)),
    ("owner", "OWNER_TOO_LONG", "258 bytes", |it| it.owner = "\u{20ac}".repeat(86)),
    ("lock_ttl", "TTL_OUT_OF_RANGE", "0ns", |it| it.lock_ttl = duration(0, 0)),
    ("lock_ttl", "TTL_OUT_OF_RANGE", "1.999999999s", |it| it.lock_ttl = duration(1, 999_999_999)),
    ("lock_ttl", "TTL_OUT_OF_RANGE", "3600.000000001s", |it| it.lock_ttl = duration(3_600, 1)),
    ("lock_ttl", "TTL_OUT_OF_RANGE", "86400s", |it| it.lock_ttl = duration(86_400, 0)),
    ("lock_ttl", "TTL_OUT_OF_RANGE", "315576000000s", |it| it.lock_ttl = duration(315_576_000_000, 0)),
    ("on_lapse", "ENUM_INVALID", "3", |it| it.on_lapse = 3),
    ("on_lapse", "ENUM_INVALID", "-1", |it| it.on_lapse = -1),
    ("on_lapse", "ENUM_INVALID", "2147483647", |it| it.on_lapse = i32::MAX),
];

const TABLES: &[&[Row<v1::BeginRequest>]] = &[
    namespaces!(),
    keys!(),
    FIELDS,
    malformed_durations!(lock_ttl, "TTL_OUT_OF_RANGE"),
    retentions!(),
    malformed_durations!(retention, "RETENTION_OUT_OF_RANGE"),
    malformed_durations!(wait, "WAIT_INVALID"),
];

pub fn rows() -> usize {
    TABLES.concat().len()
}

async fn each_wrong_field_is_told(on: Fixture) {
    each_call_is_told(&on, valid, Call::Begin, TABLES).await;
}

async fn all_wrong_fields_are_told_at_once(on: Fixture) {
    let request = v1::BeginRequest {
        namespace: text("N"),
        key: text(""),
        request_id: text("7"),
        fingerprint: vec![0; 65].into(),
        owner: "o".repeat(300),
        lock_ttl: duration(1, 0),
        wait: duration(-1, 0),
        retention: duration(1, 0),
        on_lapse: 9,
    };
    let status = on.caller.begin(request).await.unwrap_err();
    assert_eq!(info(&status).reason, "NAMESPACE_INVALID", "the first one gives the reason");
    let fields: Vec<_> = violations(&status).into_iter().map(|(field, _)| field).collect();
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
    assert_nothing_written(&on).await;
}

over_both! {
    each_wrong_field_is_told
    all_wrong_fields_are_told_at_once
}
