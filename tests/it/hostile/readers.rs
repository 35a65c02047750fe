//! Answers that nobody reads.

use onced_client::v1::session_request::Call;
use onced_client::v1::session_response::Answer;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic_types::RpcStatusExt as _;

use super::*;
use crate::support::frames::*;

/// Close to the largest outcome.
const LARGE: usize = (1 << 20) - 100;

/// Half of what one connection may make the server keep.
const KEPT_FOR_SURE: u64 = 32 * MIB;

/// Makes a thousand calls with answers of 1 MiB, and takes nothing of them but what the system buffers.
async fn unread(path: &str, message_of_call: Vec<u8>, window: u32) {
    let scene = Scene::new().await;
    store(scene.address(), "large", LARGE).await;
    let mut wire = Wire::connect(scene.address(), &[(INITIAL_WINDOW_SIZE, window)]).await;
    assert!(wire.send(&frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes())).await);
    for number in 0..1_000 {
        let stream = 2 * number + 1;
        let open = frame(HEADERS, END_HEADERS, stream, &call(path));
        assert!(wire.send(&[open, message(stream, END_STREAM, &message_of_call)].concat()).await);
    }
    scene.has_grown_by(KEPT_FOR_SURE).await;
    // Long enough for the others to have been at the store.
    tokio::time::sleep(Duration::from_secs(2)).await;
    scene.end(KEPT).await;
}

const NARROW: u32 = 1;
const WIDE: u32 = 0x7fff_ffff;

#[tokio::test]
async fn unary_answers_that_wait_for_their_window() {
    unread(LOOKUP, lookup("large").encode_to_vec(), NARROW).await;
}

#[tokio::test]
async fn unary_answers_that_wait_for_the_connection() {
    unread(LOOKUP, lookup("large").encode_to_vec(), WIDE).await;
}

#[tokio::test]
async fn watched_states_that_wait_for_their_window() {
    unread(WATCH, watch("large").encode_to_vec(), NARROW).await;
}

#[tokio::test]
async fn watched_states_that_wait_for_the_connection() {
    unread(WATCH, watch("large").encode_to_vec(), WIDE).await;
}

/// What does not fit is refused in its place, and the session goes on.
#[tokio::test]
async fn a_session_that_reads_no_answers() {
    const CALLS: u64 = 900;
    let scene = Scene::new().await;
    store(scene.address(), "large", LARGE).await;
    let mut client = server::client(scene.address()).await;
    let (calls, sent) = tokio::sync::mpsc::unbounded_channel();
    let mut answers = client.session(UnboundedReceiverStream::new(sent)).await.unwrap().into_inner();
    let ask = |id| {
        let call = Some(Call::Lookup(lookup("large")));
        calls.send(v1::SessionRequest { id, timeout: None, call }).unwrap();
    };
    for id in 0..CALLS {
        ask(id);
        // So that each is read from the store by itself: those that come together share what is read.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let (mut whole, mut refused) = (0, 0);
    for _ in 0..CALLS {
        match answers.message().await.unwrap().unwrap().answer {
            Some(Answer::Lookup(_)) => whole += 1,
            Some(Answer::Error(status)) => {
                let info = status.get_details_error_info().unwrap();
                assert_eq!(
                    (info.reason.as_str(), &*info.metadata["limit"]),
                    ("OVERLOADED", "bytes_per_connection")
                );
                refused += 1;
            }
            other => panic!("neither: {other:?}"),
        }
    }
    assert!(whole >= 60 && refused >= 500, "{whole} answers, {refused} refused");
    ask(CALLS);
    let last = answers.message().await.unwrap().unwrap();
    assert!(matches!(last.answer, Some(Answer::Lookup(_))), "there is room again");
    scene.end(KEPT).await;
}

/// Many sessions of one connection share what it may hold.
#[tokio::test]
async fn sessions_of_one_connection_that_read_no_answers() {
    let scene = Scene::new().await;
    store(scene.address(), "large", LARGE).await;
    let mut wire = Wire::connect(scene.address(), &[(INITIAL_WINDOW_SIZE, NARROW)]).await;
    for number in 0..500 {
        let stream = 2 * number + 1;
        let mut sent = frame(HEADERS, END_HEADERS, stream, &call(SESSION));
        for id in 0..3 {
            let call = Some(Call::Lookup(lookup("large")));
            let request = v1::SessionRequest { id, timeout: None, call };
            sent.extend(message(stream, 0, &request.encode_to_vec()));
        }
        assert!(wire.send(&sent).await);
    }
    scene.has_grown_by(KEPT_FOR_SURE).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    scene.end(KEPT).await;
}
