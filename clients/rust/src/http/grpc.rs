//! Answers of gRPC as outcomes, and back.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Response};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::{Code, Status};

use super::body::{Whole, boxed};
use super::plain::REPLAYED;
use super::{Body, Disposition, Said};
use crate::completion::{OnFailure, WorkError};
use crate::v1::{Outcome, outcome};

/// What stands in front of each message: whether it is compressed, and its length.
pub(super) const FRAME_BYTES: usize = 5;
const CONTENT: &str = "application/grpc";

/// The message of a body that holds exactly one. As it came: it may be compressed.
pub(super) fn only_message(body: &[u8]) -> Option<&[u8]> {
    let (head, message) = body.split_first_chunk::<FRAME_BYTES>()?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    (message.len() as u64 == u64::from(length)).then_some(message)
}

/// The methods that stream requests or answers, with their full names.
pub(super) fn streaming(file_descriptor_set: &[u8]) -> Result<Vec<String>, prost::DecodeError> {
    let mut names = Vec::new();
    for file in FileDescriptorSet::decode(file_descriptor_set)?.file {
        let package = if file.package().is_empty() { String::new() } else { format!("{}.", file.package()) };
        for service in &file.service {
            let streams = service.method.iter().filter(|it| it.client_streaming() || it.server_streaming());
            names.extend(streams.map(|it| format!("/{package}{}/{}", service.name(), it.name())));
        }
    }
    Ok(names)
}

/// The status of an answer that has it at its head, since it has no message.
pub(super) fn status_of_head(parts: &Parts) -> Option<Status> {
    Status::from_header_map(&parts.headers)
}

/// The status of an answer that was read to its end.
pub(super) fn status(parts: &Parts, body: &Whole) -> Status {
    status_of_head(parts)
        .or_else(|| body.trailers.as_ref().and_then(Status::from_header_map))
        .unwrap_or_else(|| Status::unknown("the handler's answer has no status"))
}

/// What the handler has said of its error: see [`Disposition::of_status`].
pub(super) fn said(parts: &Parts) -> Option<Disposition> {
    let status = parts.extensions.get::<Status>()?;
    std::error::Error::source(status)?.downcast_ref::<Said>().map(|said| said.0)
}

/// What a status says is to become of the answer.
pub(super) fn disposition(status: &Status, rule: OnFailure) -> Disposition {
    match status.code() {
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented => Disposition::Store,
        // The request was not looked at, so another try may well be.
        Code::Unauthenticated | Code::ResourceExhausted => Disposition::Retry,
        Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => rule.into(),
    }
}

/// The answer as it is stored.
pub(super) fn outcome(status: &Status, body: &Whole) -> Result<Outcome, WorkError> {
    if status.code() != Code::Ok {
        return Ok(Outcome::error_with(error(status)));
    }
    let message = only_message(&body.data).ok_or("it is not exactly one message")?;
    if body.data[0] != 0 {
        return Err("its message is compressed, though the request did not allow that".into());
    }
    Ok(Outcome::response(body.data.slice_ref(message)).with_content_type(CONTENT))
}

/// The error of a status, details and all.
fn error(status: &Status) -> tonic_types::Status {
    let whole = tonic_types::Status::decode(status.details()).ok();
    let details =
        whole.filter(|_| !status.details().is_empty()).map(|whole| whole.details).unwrap_or_default();
    tonic_types::Status { code: status.code() as i32, message: status.message().to_owned(), details }
}

/// The answer that was stored.
pub(super) fn replay(stored: &Outcome) -> Result<Response<Body>, WorkError> {
    let mut answer = match &stored.result {
        Some(outcome::Result::Error(error)) => {
            let details = if error.details.is_empty() { Bytes::new() } else { error.encode_to_vec().into() };
            let status = Status::with_details(Code::from(error.code), &error.message, details);
            status.into_http::<tonic::body::Body>().map(boxed)
        }
        Some(outcome::Result::Response(message)) if stored.content_type == CONTENT => {
            let length = u32::try_from(message.len())?;
            let mut data = BytesMut::with_capacity(FRAME_BYTES + message.len());
            data.put_u8(0);
            data.put_u32(length);
            data.extend_from_slice(message);
            let trailers = HeaderMap::from_iter([(Status::GRPC_STATUS, HeaderValue::from_static("0"))]);
            let body = Whole { data: data.freeze(), trailers: Some(trailers) };
            let mut answer = Response::new(body.into_body());
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(CONTENT));
            answer
        }
        _ => return Err(format!("it is no answer of gRPC, but {:?}", stored.content_type).into()),
    };
    answer.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_message_is_one() {
        assert_eq!(only_message(b"\0\0\0\0\x02ab"), Some(&b"ab"[..]));
        assert_eq!(only_message(b"\0\0\0\0\0"), Some(&b""[..]));
        for other in [&b""[..], b"\0\0\0\0", b"\0\0\0\0\x02a", b"\0\0\0\0\x01a\0\0\0\0\0"] {
            assert_eq!(only_message(other), None, "{other:?}");
        }
    }

    #[test]
    fn compressed_and_several_messages_are_not_kept() {
        let whole = |data: &'static [u8]| Whole { data: Bytes::from_static(data), trailers: None };
        let ok = Status::new(Code::Ok, "");
        assert!(outcome(&ok, &whole(b"\0\0\0\0\x01a")).is_ok());
        assert!(outcome(&ok, &whole(b"\x01\0\0\0\x01a")).is_err());
        assert!(outcome(&ok, &whole(b"\0\0\0\0\x01a\0\0\0\0\x01b")).is_err());
        assert!(outcome(&ok, &whole(b"")).is_err());
    }

    #[test]
    fn the_methods_that_stream_are_found_in_descriptors() {
        use prost_types::{FileDescriptorProto, MethodDescriptorProto, ServiceDescriptorProto};
        let method = |name: &str, client, server| MethodDescriptorProto {
            name: Some(name.to_owned()),
            client_streaming: Some(client),
            server_streaming: Some(server),
            ..Default::default()
        };
        let service = ServiceDescriptorProto {
            name: Some("Orders".to_owned()),
            method: vec![
                method("Place", false, false),
                method("Load", true, false),
                method("Tail", false, true),
            ],
            ..Default::default()
        };
        let file = FileDescriptorProto {
            package: Some("shop.v1".to_owned()),
            service: vec![service],
            ..Default::default()
        };
        let set = FileDescriptorSet { file: vec![file] }.encode_to_vec();
        assert_eq!(streaming(&set).unwrap(), ["/shop.v1.Orders/Load", "/shop.v1.Orders/Tail"]);
        assert!(streaming(b"\xff").is_err());
    }
}
