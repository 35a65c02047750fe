//! Reflection: tells clients that have no files what there is to call.

use std::task::{Context, Poll};

use futures_util::StreamExt;
use http_body_util::{BodyStream, StreamBody};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;

use super::Closing;

/// The API, health and error details, as reflection tells them.
const DESCRIPTORS: [&[u8]; 3] = [
    include_bytes!(concat!(env!("OUT_DIR"), "/api.bin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/health.bin")),
    tonic_types::pb::FILE_DESCRIPTOR_SET,
];

/// Adds reflection v1 and v1alpha, whose streams end with their connection. Their descriptors are compiled in, so failing is
/// a fault of the build: the API is served all the same, and the log says what is wrong.
pub fn add(routes: Routes) -> Routes {
    let builder = || {
        DESCRIPTORS.iter().fold(tonic_reflection::server::Builder::configure(), |builder, descriptors| {
            builder.register_encoded_file_descriptor_set(descriptors)
        })
    };
    match (builder().build_v1(), builder().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => {
            routes.add_service(Ending { inner: v1 }).add_service(Ending { inner: v1alpha })
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "reflection is off: its descriptors cannot be read");
            routes
        }
    }
}

/// Ends the requests of a service when their connection is to end, and with them its streams. tonic's reflection answers
/// for as long as its client asks, and a client that leaves its stream open would hold its connection.
#[derive(Clone)]
struct Ending<S> {
    inner: S,
}

impl<S: NamedService> NamedService for Ending<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: tower::Service<http::Request<Body>>> tower::Service<http::Request<Body>> for Ending<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        let closing = Closing::of(request.extensions()).cancelled_owned();
        self.inner
            .call(request.map(|body| Body::new(StreamBody::new(BodyStream::new(body).take_until(closing)))))
    }
}
