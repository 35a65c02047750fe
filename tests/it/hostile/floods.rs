//! Frames that cost their sender next to nothing.

use super::*;
use crate::support::frames::*;

/// Sends `first`, then `again` over and over: how often the server took it.
async fn flood(scene: &Scene, first: &[u8], again: &[u8], times: usize) -> (Wire, usize) {
    let mut wire = Wire::connect(scene.address(), &[]).await;
    assert!(wire.send(first).await);
    let mut taken = 0;
    while taken < times && wire.send(again).await {
        taken += 1;
    }
    (wire, taken)
}

/// What a server answers or takes in as it comes: it may go on, or end the connection, as it likes.
#[tokio::test]
async fn floods_of_frames_about_the_connection() {
    let scene = Scene::new().await;
    let unread: [(&str, Vec<u8>); 7] = [
        ("pings", frame(PING, 0, 0, &[0; 8])),
        ("empty settings", frame(SETTINGS, 0, 0, &[])),
        ("settings of the window", frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])),
        ("settings of the header table", frame(SETTINGS, 0, 0, &[0, 1, 0xff, 0xff, 0xff, 0xff])),
        ("priorities", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("window updates", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("frames of an unknown kind", frame(77, 0, 0, &[0; 1_000])),
    ];
    for (what, one) in unread {
        let (_wire, taken) = flood(&scene, &[], &one.repeat(1_000), 200).await;
        println!("{what}: {taken} thousand");
        assert!(taken > 0, "{what}: it took none");
    }
    scene.end(LITTLE).await;
}

#[tokio::test]
async fn headers_without_end_end_the_connection() {
    let scene = Scene::new().await;
    let open = frame(HEADERS, 0, 1, &call(BEGIN));
    let filled = frame(CONTINUATION, 0, 1, &header_list(&[("x", &"y".repeat(1_000))]));
    for (more, times) in [(filled.repeat(100), 1_000), (frame(CONTINUATION, 0, 1, &[]).repeat(1_000), 1_000)]
    {
        let (mut wire, taken) = flood(&scene, &open, &more, times).await;
        assert!(taken < times && wire.is_closed().await, "{taken}");
    }
    scene.end(LITTLE).await;
}

#[tokio::test]
async fn data_without_bytes_ends_the_connection() {
    let scene = Scene::new().await;
    let open = frame(HEADERS, END_HEADERS, 1, &call(BEGIN));
    let (mut wire, taken) = flood(&scene, &open, &frame(DATA, 0, 1, &[]).repeat(1_000), 1_000).await;
    assert!(taken < 1_000 && wire.is_closed().await, "{taken}");
    scene.end(LITTLE).await;
}

/// As many as there may be, each with as many headers as it may have, and none ever ends.
#[tokio::test]
async fn streams_that_are_all_header() {
    let scene = Scene::new().await;
    let mut headers = call(BEGIN);
    headers.extend(header_list(&[("x", &"y".repeat(15 << 10))]));
    let mut wire = Wire::connect(scene.address(), &[]).await;
    for number in 0..2_000 {
        assert!(wire.send(&frame(HEADERS, END_HEADERS, 2 * number + 1, &headers)).await);
    }
    // The headers themselves are 32 MiB.
    scene.end(2 * 32 * MIB + LITTLE).await;
}
