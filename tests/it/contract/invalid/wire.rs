//! Bytes that no generated client sends.

use http_body_util::Full;
use onced_client::v1::SessionResponse;
use onced_client::v1::session_response::Answer;
use tonic::body::Body;

use super::*;
use crate::contract::raw::{ask, framed, post};

const BEGIN: &str = "/onced.v1.IdempotencyService/Begin";
const COMPLETE: &str = "/onced.v1.IdempotencyService/Complete";
const RENEW: &str = "/onced.v1.IdempotencyService/Renew";
const RELEASE: &str = "/onced.v1.IdempotencyService/Release";
const LOOKUP: &str = "/onced.v1.IdempotencyService/Lookup";
const WATCH: &str = "/onced.v1.IdempotencyService/Watch";
const SESSION: &str = "/onced.v1.IdempotencyService/Session";
const LIST: &str = "/onced.v1.AdminService/List";
const RESOLVE: &str = "/onced.v1.AdminService/Resolve";
const DELETE: &str = "/onced.v1.AdminService/Delete";
const METHODS: [&str; 10] = [BEGIN, COMPLETE, RENEW, RELEASE, LOOKUP, WATCH, SESSION, LIST, RESOLVE, DELETE];

/// Messages that are of no type of ours.
const MESSAGES: &[(&str, &[u8])] = &[
    ("half a tag", b"\xff"),
    ("a tag of eleven bytes", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
    ("a field with the number 0", b"\x02\x00"),
    ("a wire type that does not exist, 6", b"\x0e"),
    ("a wire type that does not exist, 7", b"\x0f"),
    ("the end of a group that did not begin", b"\x0c"),
    ("a group without an end", b"\x9b\x06"),
    ("a string that goes on after the end", b"\x12\x05a"),
    ("a length of 2^63 bytes", b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
    ("an unknown field of 8 bytes that has 3", b"\xb9\x06abc"),
];

/// Bodies that hold no whole message.
const BODIES: &[(&str, &[u8])] = &[
    ("nothing but half a prefix", b"\x00\x00"),
    ("a message cut short", b"\x00\x00\x00\x00\x09\x01"),
    ("a compressed message, without saying how", b"\x01\x00\x00\x00\x01a"),
    ("a flag that does not exist", b"\x07\x00\x00\x00\x00"),
    ("a message of 4 GiB", b"\x00\xff\xff\xff\xff"),
];

/// Text that is not UTF-8, in every field that is text, and bytes that are no message in those that are one.
const FIELDS: &[(&str, &str, &[u8])] = &[
    (BEGIN, "namespace", b"\x0a\x02\xff\xfe"),
    (BEGIN, "key, a byte that begins nothing", b"\x12\x01\x80"),
    (BEGIN, "key, an overlong zero", b"\x12\x02\xc0\x80"),
    (BEGIN, "key, a surrogate", b"\x12\x03\xed\xa0\x80"),
    (BEGIN, "key, beyond the last character", b"\x12\x04\xf4\x90\x80\x80"),
    (BEGIN, "key, a character cut short", b"\x12\x02\xe2\x82"),
    (BEGIN, "request_id", b"\x1a\x01\xff"),
    (BEGIN, "owner", b"\x2a\x01\xff"),
    (BEGIN, "lock_ttl, which is no message", b"\x32\x01\xff"),
    (BEGIN, "lock_ttl, which is a number", b"\x30\x05"),
    (BEGIN, "on_lapse, which is a string", b"\x4a\x01a"),
    (COMPLETE, "key", b"\x12\x01\xff"),
    (COMPLETE, "outcome.content_type", b"\x22\x03\x1a\x01\xff"),
    (COMPLETE, "outcome.metadata, a key", b"\x22\x05\x22\x03\x0a\x01\xff"),
    (COMPLETE, "outcome.metadata, a value", b"\x22\x05\x22\x03\x12\x01\xff"),
    (COMPLETE, "outcome.error.message", b"\x22\x05\x12\x03\x12\x01\xff"),
    (COMPLETE, "outcome.error.details.type_url", b"\x22\x07\x12\x05\x1a\x03\x0a\x01\xff"),
    (COMPLETE, "fencing_token, of eleven bytes", b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
    (RELEASE, "reason", b"\x2a\x01\xff"),
    (LIST, "page_token", b"\x22\x01\xff"),
    (SESSION, "begin.key", b"\x1a\x03\x12\x01\xff"),
    (SESSION, "id, which is a string", b"\x0a\x01a"),
];

pub fn rows() -> usize {
    METHODS.len() * (MESSAGES.len() + BODIES.len()) + FIELDS.len()
}

/// Expects the status of a request that cannot be read.
#[track_caller]
fn malformed(what: &str, status: &tonic::Status, field: &str) -> pb::ErrorInfo {
    assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
    let status = rpc_status(status);
    let info = assert_refused::<()>(Err(status.clone()), Code::InvalidArgument, "REQUEST_MALFORMED");
    assert_eq!(info.metadata["field"], field, "{what}");
    assert_eq!(violations(&status), [(text(field), text("REQUEST_MALFORMED"))], "{what}");
    assert_discreet(what, &status);
    info
}

#[tokio::test]
async fn what_is_no_message_is_malformed_whatever_the_method() {
    let on = Fixture::new(Way::Unary).await;
    for method in METHODS {
        let messages = MESSAGES.iter().map(|(what, message)| (what, framed(message)));
        let bodies = BODIES.iter().map(|(what, body)| (what, body.to_vec()));
        for (what, body) in messages.chain(bodies) {
            let status = in_time(post(&on, method, body, &[])).await;
            malformed(&format!("{method}: {what}"), &status, "request");
        }
    }
    assert_nothing_written(&on).await;
}

#[tokio::test]
async fn a_field_that_is_not_of_its_type_makes_the_message_malformed() {
    let on = Fixture::new(Way::Unary).await;
    for (method, what, message) in FIELDS {
        let status = post(&on, method, framed(message), &[]).await;
        malformed(&format!("{method}: {what}"), &status, "request");
    }
    assert_nothing_written(&on).await;
}

#[tokio::test]
async fn no_message_is_malformed_but_for_a_session_which_it_ends() {
    let on = Fixture::new(Way::Unary).await;
    for method in METHODS.into_iter().filter(|&method| method != SESSION) {
        for body in [Vec::new(), b"\x00\x00\x00\x00\x09".to_vec()] {
            malformed(method, &post(&on, method, body, &[]).await, "request");
        }
    }
    assert_eq!(post(&on, SESSION, Vec::new(), &[]).await.code(), Code::Ok);
    assert_nothing_written(&on).await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_told_the_limit_and_one_at_it_is_read() {
    let settings = rpc::Settings { max_message_bytes: 1_000, ..rpc::Settings::default() };
    let on = Fixture::with(Way::Unary, settings).await;
    for method in METHODS {
        // An unknown field, 1 that is of 2 bytes of tag and 2 of length.
        let message = |bytes: usize| {
            let filled = bytes - 4;
            let length = [(filled & 127) as u8 | 128, (filled >> 7) as u8];
            [&[0xa2, 0x06], &length[..], &vec![b'x'; filled]].concat()
        };
        let over = post(&on, method, framed(&message(1_001)), &[]).await;
        let info = malformed(method, &over, "request");
        assert!(info.metadata["sent"].contains("1000 bytes"), "{method}: {:?}", info.metadata["sent"]);
        if method != SESSION {
            let at = rpc_status(&post(&on, method, framed(&message(1_000)), &[]).await);
            assert_refused::<()>(Err(at), Code::InvalidArgument, "NAMESPACE_INVALID");
        }
    }
    assert_nothing_written(&on).await;
}

#[tokio::test]
async fn a_call_of_a_session_that_this_server_does_not_know_is_told_so() {
    let on = Fixture::new(Way::Unary).await;
    // The id 4, and a call with the number 15.
    let body = Body::new(Full::from(framed(b"\x08\x04\x7a\x00")));
    let answered = ask(&on, "POST", SESSION, body, &[]).await;
    let response = SessionResponse::decode(&answered.body[5..]).unwrap();
    let (4, Some(Answer::Error(status))) = (response.id, response.answer) else { panic!("no error") };
    check("an unknown call", &status, "CALL_REQUIRED", "call", "none");
    assert_eq!(answered.status.unwrap().code(), Code::Ok, "the session ended well");
    assert_nothing_written(&on).await;
}

#[tokio::test]
async fn another_content_type_is_refused_before_anything_is_read() {
    let on = Fixture::new(Way::Unary).await;
    let body = || Body::new(Full::from(framed(&begin("SECRET order").encode_to_vec())));
    for content_type in ["", "application/json", "text/plain", "application/grpc-web", "application/grpcs"] {
        let answered = ask(&on, "POST", BEGIN, body(), &[("content-type", content_type)]).await;
        assert_eq!(answered.http, 415, "{content_type:?}");
        malformed(content_type, &answered.status.unwrap(), "content-type");
    }
    assert_nothing_written(&on).await;
    for content_type in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
        let answered = ask(&on, "POST", BEGIN, body(), &[("content-type", content_type)]).await;
        assert_eq!(
            (answered.http.as_u16(), answered.status.unwrap().code()),
            (200, Code::Ok),
            "{content_type}"
        );
    }
}

#[tokio::test]
async fn another_http_method_is_refused() {
    let on = Fixture::new(Way::Unary).await;
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let body = Body::new(Full::from(framed(&begin("SECRET order").encode_to_vec())));
        let answered = ask(&on, method, BEGIN, body, &[]).await;
        assert_eq!(answered.http, 405, "{method}");
        malformed(method, &answered.status.unwrap(), ":method");
    }
    assert_nothing_written(&on).await;
}

#[tokio::test]
async fn an_encoding_that_this_server_does_not_read_is_told_so_whatever_the_method() {
    let on = Fixture::new(Way::Unary).await;
    for method in METHODS {
        for encoding in ["br", "gzip", "zstd", "deflate", "snappy"] {
            let status = post(&on, method, framed(b""), &[("grpc-encoding", encoding)]).await;
            assert_refused::<()>(Err(rpc_status(&status)), Code::Unimplemented, "UNIMPLEMENTED");
        }
    }
    assert_nothing_written(&on).await;
}

/// HTTP's own answer: the headers were not kept, so nothing can be said of the call.
#[tokio::test]
async fn headers_over_the_limit_are_refused_and_the_connection_lives() {
    let on = Fixture::new(Way::Unary).await;
    let body = || Body::new(Full::from(framed(&begin("SECRET order").encode_to_vec())));
    let huge = "x".repeat(17 << 10);
    let answered = ask(&on, "POST", BEGIN, body(), &[("x-huge", &huge)]).await;
    assert_eq!(answered.http, 431);
    assert!(answered.status.is_none());
    assert_nothing_written(&on).await;
    let fits = "x".repeat(15 << 10);
    assert_eq!(ask(&on, "POST", BEGIN, body(), &[("x-huge", &fits)]).await.status.unwrap().code(), Code::Ok);

    let mut client = on.client.clone();
    let mut request = tonic::Request::new(begin("other"));
    request.metadata_mut().insert("x-huge", huge.parse().unwrap());
    client.begin(request).await.expect_err("too much");
    client.begin(begin("other")).await.expect("the same connection serves the next call");
}
