//! What callers may take.

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::passing::{exchange, read_to_end};
use super::upstream::{Gate, read_request};
use super::*;

#[tokio::test]
async fn requests_over_the_limit_are_refused_also_when_the_callers_of_the_others_are_gone() {
    let gate = Gate::new();
    let opened = gate.clone();
    let setup = Setup::with(&["--max-requests", "2"], move |_| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            text(200, "done")
        }
    })
    .await;
    let first = setup.order_meanwhile("1");
    let second = setup.order_meanwhile("2");
    while setup.upstream.seen().len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let told = setup.order("3").await.problem(503, "OVERLOADED");
    assert_eq!(told.header("retry-after"), "1");
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    // Long enough for the proxy to see it: the service goes on working all the same.
    tokio::time::sleep(Duration::from_millis(200)).await;
    setup.order("3").await.problem(503, "OVERLOADED");
    opened.open();
    opened.open();
    second.await.unwrap().is(200, "done");
    setup.until("1", |record| matches!(record, Record::Completed(_))).await;
    let replayed = async {
        // Until the proxy has let go of the place.
        while setup.order("1").await.status == 503 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        setup.order("1").await
    };
    assert!(tokio::time::timeout(HANGS, replayed).await.expect("the place is not free again").is_replay());
}

#[tokio::test]
async fn a_body_that_does_not_arrive_in_time_is_not_waited_for() {
    let setup = Setup::start(&["--body-timeout", "300ms"]).await;
    for key in ["idempotency-key: k\r\n", ""] {
        let method = if key.is_empty() { "PUT" } else { "POST" };
        let request = format!("{method} /orders HTTP/1.1\r\nhost: x\r\n{key}content-length: 10\r\n\r\nhalf");
        let answer = exchange(setup.proxy.address, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("REQUEST_TIMEOUT"), "{answer}");
    }
    assert!(setup.upstream.seen().is_empty());
    setup.order("k").await.is(201, "answer 1");
}

#[tokio::test]
async fn a_body_with_a_key_that_comes_in_drops_is_to_be_there_in_time_as_a_whole() {
    let setup = Setup::start(&["--body-timeout", "1s"]).await;
    let mut stream = TcpStream::connect(setup.proxy.address).await.unwrap();
    let head = "POST /orders HTTP/1.1\r\nhost: x\r\nidempotency-key: k\r\ncontent-length: 1000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let dripping = tokio::spawn(async move {
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut answer = [0; 13];
    tokio::time::timeout(HANGS, reader.read_exact(&mut answer)).await.expect("it was waited for").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408 ");
    dripping.abort();
}

#[tokio::test]
async fn connections_without_a_request_are_closed() {
    let setup = Setup::start(&["--idle-timeout", "300ms"]).await;
    for sent in [
        "",
        "POST /orders HT",
        "POST /orders HTTP/1.1\r\nhost: x\r\n",
        "PRI * HTTP/2",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(setup.proxy.address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        read_to_end(stream).await;
    }
    setup.order("k").await.is(201, "answer 2");
}

#[tokio::test]
async fn an_answer_that_is_not_read_is_given_up() {
    let gate = Gate::new();
    let noticed = gate.clone();
    let upstream = Upstream::raw(move |mut stream| {
        let gate = gate.clone();
        async move {
            read_request(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let piece = vec![b'x'; 1 << 20];
            // Until the proxy hangs up.
            while stream.write_all(&piece).await.is_ok() {}
            gate.open();
        }
    })
    .await;
    let setup = Setup::of(&["--body-timeout", "300ms", "--max-requests", "1"], upstream).await;
    let mut unread = TcpStream::connect(setup.proxy.address).await.unwrap();
    unread.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    tokio::time::timeout(HANGS, noticed.pass()).await.expect("it is still sent");
}

/// A caller of HTTP/2 that lets the proxy send so many bytes of each answer.
async fn with_window(setup: &Setup, bytes: u32) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(setup.proxy.address).await.unwrap();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    let (http2, connection) =
        builder.initial_stream_window_size(bytes).handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    http2
}

/// The answer to a caller that lets the proxy send no byte of it.
async fn without_window(setup: &Setup, request: Request<Full<Bytes>>) -> Response<Incoming> {
    let mut http2 = with_window(setup, 0).await;
    let answer = tokio::time::timeout(HANGS, http2.send_request(request)).await.expect("no answer").unwrap();
    // The connection lives as long as this.
    tokio::spawn(async move {
        let _http2 = http2;
        std::future::pending::<()>().await
    });
    answer
}

#[tokio::test]
async fn an_answer_that_is_not_read_is_given_up_by_http2_as_well() {
    let setup = Setup::with(&["--body-timeout", "300ms", "--max-requests", "2"], |seen| async move {
        let status = if seen.method == Method::POST { 503 } else { 200 };
        text(status, &"x".repeat(3 << 20))
    })
    .await;
    let get = setup.request(Method::GET, "/").body(Full::default()).unwrap();
    let passes = without_window(&setup, get).await;
    let post = setup.request(Method::POST, "/orders").header("idempotency-key", "k");
    // Too large to be read ahead, and not to be stored: the key is held until it has been sent.
    let holds = without_window(&setup, post.body(Full::from("one")).unwrap()).await;
    assert_eq!((passes.status().as_u16(), holds.status().as_u16()), (200, 503));
    setup.until("k", |record| matches!(record, Record::Available(_))).await;
    // Two at once: both places are free.
    let freed = async {
        let get = || setup.request(Method::GET, "/").body(Full::default()).unwrap();
        loop {
            let first = without_window(&setup, get()).await;
            let second = without_window(&setup, get()).await;
            if (first.status(), second.status()) == (StatusCode::OK, StatusCode::OK) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(HANGS, freed).await.expect("the places are still taken");
    drop((passes, holds));
}

#[tokio::test]
async fn an_http2_stream_that_is_not_read_is_reset_and_holds_up_neither_others_nor_the_end() {
    // No byte of an answer can be sent; some of it; all but the last byte, so that it is at its end already.
    for (window, length) in [(0, 2), (20_000, 40_000), (9, 10)] {
        let flags = ["--body-timeout", "2s", "--idle-timeout", "1h", "--drain-limit", "1h"];
        let mut setup = Setup::with(&flags, move |_| async move { text(200, &"x".repeat(length)) }).await;
        let mut http2 = with_window(&setup, window).await;
        let mut unread = Vec::new();
        // One more than a connection may have open.
        for _ in 0..257 {
            let get = setup.request(Method::GET, "/").body(Full::default()).unwrap();
            http2.ready().await.unwrap();
            unread.push(tokio::spawn(http2.send_request(get)));
        }
        let mut answers = Vec::new();
        for answer in unread {
            let answer = tokio::time::timeout(HANGS, answer).await.expect("the streams are still open");
            answers.push(answer.unwrap().unwrap());
        }
        setup.proxy.terminate();
        assert_eq!(setup.proxy.ended().await, Some(0), "{}", setup.proxy.log());
        drop((answers, http2));
    }
}

#[tokio::test]
async fn heads_are_of_limited_size() {
    let setup = Setup::start(&[]).await;
    let request = format!("GET / HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n", "x".repeat(100 << 10));
    let answer = exchange(setup.proxy.address, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert!(setup.upstream.seen().is_empty());
}

#[tokio::test]
async fn more_connections_than_there_may_be_wait_for_a_place() {
    let setup = Setup::start(&["--max-connections", "1"]).await;
    let idle = TcpStream::connect(setup.proxy.address).await.unwrap();
    // Accepted in order: the next one waits.
    let waiting = setup.order_meanwhile("k");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    drop(idle);
    waiting.await.unwrap().is(201, "answer 1");
}
