//! An upstream that fails, and what becomes of the key.

use tokio::io::AsyncWriteExt as _;

use super::upstream::{Gate, read_request};
use super::*;

/// An upstream that reads a request, sends this of an answer, and hangs up.
async fn hangs_up_after(sent: &'static str) -> Upstream {
    Upstream::raw(move |mut stream| async move {
        read_request(&mut stream).await;
        stream.write_all(sent.as_bytes()).await.unwrap();
    })
    .await
}

#[tokio::test]
async fn an_upstream_that_dies_in_the_middle_leaves_the_key_in_doubt() {
    for sent in [
        "",
        "HTTP/1.1 200 O",
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "no HTTP at all\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: chat\r\nconnection: upgrade\r\n\r\n",
    ] {
        let setup = Setup::of(&[], hangs_up_after(sent).await).await;
        let reply = setup.order("k").await.problem(502, "UPSTREAM_LOST");
        assert!(String::from_utf8_lossy(&reply.body).contains("in doubt"), "{reply:?}");
        assert!(!reply.headers.contains_key("retry-after"), "{reply:?}");
        setup.is_in_doubt("k").await;
        setup.order("k").await.problem(409, "IN_DOUBT");
    }
}

#[tokio::test]
async fn or_leaves_it_free_where_that_is_the_rule() {
    let setup = Setup::of(&["--on-lost", "retry"], hangs_up_after("").await).await;
    for _ in 0..2 {
        let reply = setup.order("k").await.problem(502, "UPSTREAM_LOST");
        assert!(String::from_utf8_lossy(&reply.body).contains("free"), "{reply:?}");
        setup.is_free("k").await;
    }
}

#[tokio::test]
async fn an_upstream_that_is_not_there_leaves_the_key_free() {
    let server = server().await;
    let proxy = Proxy::start(&format!("http://{}", dead_address().await), &server.address().to_string(), &[]);
    let upstream = Upstream::start(|_| async { text(200, "") }).await;
    let setup = Setup { server, upstream, proxy, caller: Caller::new() };
    for _ in 0..2 {
        let reply = setup.order("k").await.problem(502, "UPSTREAM_UNREACHABLE");
        assert_eq!(reply.header("retry-after"), "1");
        setup.is_free("k").await;
    }
    let request = setup.request(Method::GET, "/").body(Full::default()).unwrap();
    setup.caller.send(request).await.problem(502, "UPSTREAM_UNREACHABLE");
    assert!(setup.proxy.log().contains("cannot be reached"), "{}", setup.proxy.log());
}

#[tokio::test]
async fn an_upstream_that_answers_late_leaves_the_key_in_doubt() {
    // A part of an answer is none.
    for sent in ["", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"] {
        let upstream = Upstream::raw(move |mut stream| async move {
            read_request(&mut stream).await;
            stream.write_all(sent.as_bytes()).await.unwrap();
            std::future::pending().await
        })
        .await;
        let setup = Setup::of(&["--answer-timeout", "200ms", "--connect-timeout", "100ms"], upstream).await;
        setup.order("k").await.problem(504, "UPSTREAM_TIMEOUT");
        setup.is_in_doubt("k").await;
    }
}

#[tokio::test]
async fn without_a_key_only_the_start_of_an_answer_has_to_come_in_time() {
    let gate = Gate::new();
    let opened = gate.clone();
    let upstream = Upstream::raw(move |mut stream| {
        let gate = gate.clone();
        async move {
            if read_request(&mut stream).await.starts_with("get /late") {
                std::future::pending().await
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf").await.unwrap();
            gate.pass().await;
            stream.write_all(b"half").await.unwrap();
        }
    })
    .await;
    let setup = Setup::of(&["--answer-timeout", "200ms"], upstream).await;
    let get = |target: &str| setup.request(Method::GET, target).body(Full::<Bytes>::default()).unwrap();
    setup.caller.send(get("/late")).await.problem(504, "UPSTREAM_TIMEOUT");
    let mut answer = setup.caller.0.request(get("/")).await.unwrap().into_body();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
    tokio::time::sleep(Duration::from_millis(400)).await;
    opened.open();
    assert_eq!(answer.collect().await.unwrap().to_bytes(), "half");
}

#[tokio::test]
async fn an_upstream_that_does_not_read_what_has_no_key_is_not_waited_for() {
    let upstream = Upstream::raw(|stream| async move {
        let _stream = stream;
        std::future::pending().await
    })
    .await;
    let setup = Setup::of(&["--answer-timeout", "300ms", "--connect-timeout", "300ms"], upstream).await;
    let stream = tokio::net::TcpStream::connect(setup.proxy.address).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    // More than all that is in between can hold.
    let sending = tokio::spawn(async move {
        let head = "PUT /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n";
        writer.write_all(head.as_bytes()).await.unwrap();
        let piece = vec![b'x'; 1 << 20];
        while writer.write_all(&piece).await.is_ok() {}
    });
    let mut answer = [0; 13];
    let read = tokio::io::AsyncReadExt::read_exact(&mut reader, &mut answer);
    tokio::time::timeout(HANGS, read).await.expect("it was waited for").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 504 ");
    sending.abort();
}

#[tokio::test]
async fn an_upstream_that_closes_each_connection_loses_nothing() {
    let upstream = Upstream::raw(|mut stream| async move {
        read_request(&mut stream).await;
        // It does not say that it will.
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone").await.unwrap();
    })
    .await;
    let setup = Setup::of(&["--upstream-idle", "0s"], upstream).await;
    for number in 0..50 {
        setup.order(&number.to_string()).await.is(200, "done");
    }
}

#[tokio::test]
async fn connections_are_used_again_and_a_stale_one_is_noticed() {
    let (gate, connections) = (Gate::new(), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let (opened, counted) = (gate.clone(), Arc::clone(&connections));
    let upstream = Upstream::raw(move |mut stream| {
        let gate = gate.clone();
        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async move {
            for _ in 0..2 {
                read_request(&mut stream).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone").await.unwrap();
            }
            gate.pass().await;
        }
    })
    .await;
    let setup = Setup::of(&["--upstream-idle", "60s"], upstream).await;
    setup.order("1").await.is(200, "done");
    setup.order("2").await.is(200, "done");
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), 1);
    opened.open();
    // Until the proxy has seen that it is closed.
    tokio::time::sleep(Duration::from_millis(300)).await;
    setup.order("3").await.is(200, "done");
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_caller_that_hangs_up_without_a_key_ends_its_request_at_the_upstream() {
    let gate = Gate::new();
    let noticed = gate.clone();
    let upstream = Upstream::raw(move |mut stream| {
        let gate = gate.clone();
        async move {
            read_request(&mut stream).await;
            // Ends when the proxy hangs up.
            let read = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 1]).await;
            assert!(matches!(read, Ok(0) | Err(_)));
            gate.open();
        }
    })
    .await;
    let setup = Setup::of(&[], upstream).await;
    let (caller, request) =
        (setup.caller.clone(), setup.request(Method::GET, "/").body(Full::default()).unwrap());
    let call = tokio::spawn(async move { caller.send(request).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    call.abort();
    tokio::time::timeout(HANGS, noticed.pass()).await.expect("the upstream was not told");
}
