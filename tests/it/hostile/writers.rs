//! Requests that never end.

use futures_util::stream::{self, StreamExt as _};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use onced_client::v1::session_request::Call;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service as _;

use super::*;
use crate::support::server::{Connection, HANGS};

/// The message with its prefix, but for its last byte.
fn unfinished(message: &impl prost::Message) -> Bytes {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    Bytes::from([&[0], &length[..], &message[..message.len() - 1]].concat())
}

/// A call whose request never ends: what it is told.
fn open(scene: &Scene, connection: &mut Connection, path: &str, sent: Bytes) -> JoinHandle<Status> {
    let frames = stream::iter([Ok::<_, Status>(Frame::data(sent))]);
    let request = http::Request::post(format!("http://{}{path}", scene.address()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(StreamBody::new(frames.chain(stream::pending()))))
        .unwrap();
    let answering = connection.call(request);
    tokio::spawn(async move {
        let response = answering.await.expect("an answer, not the end of the connection");
        if let Some(status) = Status::from_header_map(response.headers()) {
            return status;
        }
        let body = response.into_body().collect().await.expect("an answer");
        Status::from_header_map(body.trailers().expect("trailers")).expect("a status")
    })
}

/// Sends requests of 1 MiB that lack their last byte, on one connection: what each is told.
async fn unended(scene: &Scene, path: &str, request: impl Fn(usize) -> Bytes, count: usize) -> Vec<Status> {
    let mut connection = server::connect(scene.address()).await;
    let calls: Vec<_> =
        (0..count).map(|number| open(scene, &mut connection, path, request(number))).collect();
    tokio::time::timeout(HANGS, futures_util::future::join_all(calls))
        .await
        .expect("it hangs")
        .into_iter()
        .map(Result::unwrap)
        .collect()
}

fn with(told: &[Status], code: Code) -> usize {
    told.iter().filter(|status| status.code() == code).count()
}

#[tokio::test]
async fn unary_requests_without_end() {
    let scene = Scene::new().await;
    let request = |number| unfinished(&complete(&format!("never-{number}"), 1, 1 << 20));
    let told = unended(&scene, COMPLETE, request, 1_000).await;
    // As many as there is room for are waited for, but not for ever.
    let (waited_for, refused) = (with(&told, Code::DeadlineExceeded), with(&told, Code::Unavailable));
    assert!(waited_for >= 50 && refused >= 500, "{waited_for} and {refused}");
    assert_eq!(waited_for + refused, told.len());
    scene.end(KEPT).await;
}

/// A session may be silent for ever, so those that there is room for are told nothing: the last one is one too many.
#[tokio::test]
async fn messages_of_sessions_without_end() {
    let scene = Scene::new().await;
    let mut connection = server::connect(scene.address()).await;
    let message = |number| {
        let call = Some(Call::Complete(complete(&format!("never-{number}"), 1, 1 << 20)));
        unfinished(&v1::SessionRequest { id: 1, timeout: None, call })
    };
    let mut calls = Vec::new();
    for number in 0..300 {
        calls.push(open(&scene, &mut connection, SESSION, message(number)));
    }
    // 64 MiB are kept for them, and a little over 1 MiB is one.
    let refused = async {
        while calls.iter().filter(|call| call.is_finished()).count() < 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), refused).await.expect("most are refused");
    for call in calls {
        if call.is_finished() {
            assert_eq!(call.await.unwrap().code(), Code::Unavailable);
        }
    }
    scene.end(KEPT).await;
}
