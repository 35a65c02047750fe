//! Streams without end, and resets.

use super::*;
use crate::support::frames::{
    END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, Wire, call, frame, message,
};

/// How many streams of a connection may be open at once.
const STREAMS_AT_ONCE: usize = 2_048;

/// The streams of a connection, in order.
fn streams() -> impl Iterator<Item = u32> {
    (0..).map(|number| 2 * number + 1)
}

/// A call with its message and its end.
fn whole(path: &str, stream: u32, sent: &impl prost::Message) -> Vec<u8> {
    let headers = frame(HEADERS, END_HEADERS, stream, &call(path));
    [headers, message(stream, END_STREAM, &sent.encode_to_vec())].concat()
}

fn reset(stream: u32) -> Vec<u8> {
    const CANCEL: u32 = 8;
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

#[tokio::test]
async fn fifty_thousand_streams_at_once_end_the_connection() {
    let scene = Scene::new().await;
    let mut wire = Wire::connect(scene.address(), &[]).await;
    let headers = call(LOOKUP);
    let mut taken = 0;
    for stream in streams().take(50_000) {
        if !wire.send(&frame(HEADERS, END_HEADERS, stream, &headers)).await {
            break;
        }
        taken += 1;
    }
    assert!(wire.is_closed().await);
    assert!(taken >= STREAMS_AT_ONCE, "closed after {taken}");
    scene.end(LITTLE).await;
}

#[tokio::test]
async fn fifty_thousand_streams_one_after_the_other_leave_nothing_behind() {
    const AT_ONCE: usize = 500;
    let scene = Scene::new().await;
    let mut wire = Wire::connect(scene.address(), &[]).await;
    let all: Vec<u32> = streams().take(50_000).collect();
    for some in all.chunks(AT_ONCE) {
        let calls: Vec<u8> =
            some.iter().flat_map(|&stream| whole(LOOKUP, stream, &lookup("absent"))).collect();
        assert!(wire.send(&calls).await);
        // That there is no such record is told in the headers of the answer.
        wire.read_frames(HEADERS, AT_ONCE).await;
    }
    scene.end(LITTLE).await;
}

/// The server may end the connection, or refuse what it cannot do, and has its hands free either way.
#[tokio::test]
async fn streams_that_are_reset_at_once_leave_nothing_behind() {
    let scene = Scene::new().await;
    for connection in 0..10 {
        let mut wire = Wire::connect(scene.address(), &[]).await;
        for stream in streams().take(5_000) {
            let call = whole(BEGIN, stream, &begin(&format!("reset-{connection}-{}", stream % 100)));
            if !wire.send(&[call, reset(stream)].concat()).await {
                break;
            }
        }
    }
    scene.end(LITTLE).await;
}

/// When a server is behind, the deadlines of many calls pass at once, before it has taken them: who is left on the
/// connection does not pay for it.
#[tokio::test]
async fn calls_given_up_before_they_are_taken_cost_others_of_their_connection_nothing() {
    let scene = Scene::new().await;
    let mut wire = Wire::connect(scene.address(), &[]).await;
    let all: Vec<u32> = streams().take(10 * STREAMS_AT_ONCE).collect();
    for some in all.chunks(STREAMS_AT_ONCE / 2) {
        let (last, given_up) = some.split_last().unwrap();
        let given_up = given_up
            .iter()
            .flat_map(|&stream| [whole(LOOKUP, stream, &lookup("absent")), reset(stream)].concat());
        let kept = whole(LOOKUP, *last, &lookup("absent"));
        // In one write, so that the server sees the call and its end at once.
        assert!(wire.send(&given_up.chain(kept).collect::<Vec<u8>>()).await);
        wire.read_headers_of(*last).await;
    }
    scene.end(LITTLE).await;
}

/// Slow enough that the server has taken each call before it is reset, so that HTTP/2 sees nothing wrong. The keys
/// are the same again and again, since each leaves a record.
#[tokio::test]
async fn calls_that_are_reset_once_they_are_taken_leave_nothing_behind() {
    const AT_ONCE: usize = 200;
    let scene = Scene::new().await;
    let mut wire = Wire::connect(scene.address(), &[]).await;
    let all: Vec<u32> = streams().take(10_000).collect();
    for some in all.chunks(AT_ONCE) {
        for (number, &stream) in some.iter().enumerate() {
            assert!(wire.send(&whole(BEGIN, stream, &begin(&format!("reset-{number}")))).await);
        }
        assert!(wire.send(&frame(PING, 0, 0, &[0; 8])).await);
        wire.read_frames(PING, 1).await;
        let resets: Vec<u8> = some.iter().flat_map(|&stream| reset(stream)).collect();
        assert!(wire.send(&resets).await);
    }
    // The work goes on without its callers, and where it is not done as fast as they come they alone are shed.
    scene.end(LITTLE).await;
}
