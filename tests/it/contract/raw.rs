//! Requests as they are on the wire: what no generated client would send.

use http_body_util::{BodyExt, Full};
use tonic::body::Body;
use tower::{Service, ServiceExt};

use super::*;

/// A message with gRPC's prefix.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat()
}

/// What came back.
pub struct Answered {
    pub http: http::StatusCode,
    pub body: Bytes,
    /// The status, in the headers or in the trailers; an answer of HTTP's own has none.
    pub status: Option<tonic::Status>,
}

/// Sends bytes to a path and brings the status that answers them.
pub async fn post(on: &Fixture, path: &str, body: Vec<u8>, headers: &[(&str, &str)]) -> tonic::Status {
    send(on, path, Body::new(Full::from(body)), headers).await
}

/// As `post`, of any body.
pub async fn send(on: &Fixture, path: &str, body: Body, headers: &[(&str, &str)]) -> tonic::Status {
    ask(on, "POST", path, body, headers).await.status.expect("a status")
}

/// As `send`, by any method, and brings all that came back. A header that is given takes the place of a usual
/// one; an empty one is left out.
pub async fn ask(on: &Fixture, method: &str, path: &str, body: Body, headers: &[(&str, &str)]) -> Answered {
    let mut connection = on.server.connect().await;
    let uri = format!("{}{}", on.server.origin().to_string().trim_end_matches('/'), path);
    let mut request = http::Request::builder().method(method).uri(uri).body(body).unwrap();
    for (name, value) in [&[("content-type", "application/grpc"), ("te", "trailers")], headers].concat() {
        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        if value.is_empty() {
            request.headers_mut().remove(name);
        } else {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
    }
    let response = connection.ready().await.unwrap().call(request).await.unwrap();
    let http = response.status();
    let early = tonic::Status::from_header_map(response.headers());
    let body = response.into_body().collect().await.unwrap();
    let late = body.trailers().and_then(tonic::Status::from_header_map);
    Answered { http, body: body.to_bytes(), status: early.or(late) }
}
