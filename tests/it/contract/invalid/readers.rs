//! Lookup, Watch and List.

use super::*;

mod valid {
    use super::*;

    pub fn lookup() -> v1::LookupRequest {
        super::lookup("SECRET order")
    }
    pub fn watch() -> v1::WatchRequest {
        v1::WatchRequest { namespace: text(NAMESPACE), key: text("SECRET order") }
    }
    pub fn list() -> v1::ListRequest {
        v1::ListRequest { namespace: text(NAMESPACE), ..v1::ListRequest::default() }
    }
}

const LOOKUP: &[&[Row<v1::LookupRequest>]] =
    &[namespaces!(), keys!(), malformed_durations!(wait, "WAIT_INVALID")];

const WATCH: &[&[Row<v1::WatchRequest>]] = &[namespaces!(), keys!()];

/// A token is `1` and the hexadecimal digits of the namespace, a zero, and the key.
const LIST: &[&[Row<v1::ListRequest>]] = &[
    namespaces!(),
    &[
        ("state", "ENUM_INVALID", "5", |it| it.state = 5),
        ("state", "ENUM_INVALID", "-1", |it| it.state = -1),
        ("state", "ENUM_INVALID", "-2147483648", |it| it.state = i32::MIN),
        ("page_size", "PAGE_SIZE_OUT_OF_RANGE", "1001", |it| it.page_size = 1_001),
        ("page_size", "PAGE_SIZE_OUT_OF_RANGE", "4294967295", |it| it.page_size = u32::MAX),
        ("page_token", "PAGE_TOKEN_INVALID", "1 bytes", |it| it.page_token = text("1")),
        ("page_token", "PAGE_TOKEN_INVALID", "1 bytes", |it| it.page_token = text("0")),
        ("page_token", "PAGE_TOKEN_INVALID", "3 bytes", |it| it.page_token = text("1zz")),
        ("page_token", "PAGE_TOKEN_INVALID", "2 bytes", |it| it.page_token = text("\u{e9}")),
        ("page_token", "PAGE_TOKEN_INVALID", "3 bytes", |it| it.page_token = text("161")),
        // Of orders, but without a key; with an empty one; with one that is not UTF-8; and of another namespace.
        ("page_token", "PAGE_TOKEN_INVALID", "13 bytes", |it| it.page_token = text("16f7264657273")),
        ("page_token", "PAGE_TOKEN_INVALID", "15 bytes", |it| it.page_token = text("16f726465727300")),
        ("page_token", "PAGE_TOKEN_INVALID", "17 bytes", |it| it.page_token = text("16f726465727300ff")),
        ("page_token", "PAGE_TOKEN_INVALID", "7 bytes", |it| it.page_token = text("1610061")),
        ("page_token", "PAGE_TOKEN_INVALID", "1200015 bytes", |it| {
            it.page_token = text("16f726465727300") + &"61".repeat(600_000);
        }),
        ("page_token", "PAGE_TOKEN_INVALID", "12 bytes", |it| it.page_token = long(12)),
    ],
];

pub fn rows() -> usize {
    LOOKUP.concat().len() + WATCH.concat().len() + LIST.concat().len()
}

async fn each_wrong_field_of_lookup_is_told(on: Fixture) {
    each_call_is_told(&on, valid::lookup, Call::Lookup, LOOKUP).await;
}

over_both! {
    each_wrong_field_of_lookup_is_told
}

#[tokio::test]
async fn each_wrong_field_of_watch_is_told() {
    let on = Fixture::new(Way::Unary).await;
    let call = async |request| {
        on.client.clone().watch(request).await.map(drop).map_err(|status| rpc_status(&status))
    };
    each_is_told(valid::watch, WATCH, call).await;
    assert_nothing_written(&on).await;
}

#[tokio::test]
async fn each_wrong_field_of_list_is_told() {
    let on = Fixture::new(Way::Unary).await;
    let call =
        async |request| on.admin.clone().list(request).await.map(drop).map_err(|status| rpc_status(&status));
    each_is_told(valid::list, LIST, call).await;
    assert_nothing_written(&on).await;
}
