//! The program: how it starts and ends, what it logs and counts.

use std::process::Output;

use tokio::io::AsyncWriteExt as _;

use super::upstream::{Gate, read_request};
use super::*;
use crate::support::certificates::Certificates;
use crate::support::exposition::Exposition;
use crate::support::http;

/// Runs `onced proxy` to its end.
fn run(flags: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } =
        onced().arg("proxy").args(flags).stdin(Stdio::null()).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[track_caller]
fn refused(flags: &[&str], code: i32, texts: &[&str]) {
    let (ended, said) = run(flags);
    assert_eq!(ended, Some(code), "{said}");
    for text in texts {
        assert!(said.contains(text), "no {text:?} in {said}");
    }
}

#[test]
fn what_is_wrong_with_the_settings_is_told_at_the_start() {
    let up = ["--upstream", "http://127.0.0.1:1"];
    refused(&[], 2, &["--upstream"]);
    for (wrong, said) in [
        ("shop:8080", "write http://HOST:PORT"),
        ("ftp://shop", "not spoken"),
        ("http://shop?x", "neither a query"),
        ("http://me:pw@shop", "leave them out"),
    ] {
        refused(&["--upstream", wrong], 2, &[said]);
    }
    for (flag, wrong, said) in [
        ("--listen", "nowhere", "invalid"),
        ("--admin-listen", "nowhere", "or off"),
        ("--method", "PO ST", "invalid"),
        ("--path", "orders", "begins with a slash"),
        ("--scope-header", "Authorization", "would then run twice"),
        ("--scope-header", "X Y", "no name of a header"),
        ("--wait", "10", "write it as 30s"),
        ("--answer-timeout", "0s", "longer than 0s"),
        ("--max-requests", "0", "whole number from 1"),
        ("--on-lost", "maybe", "in-doubt"),
        ("--server", "no address", "HOST:PORT"),
        ("--upstream-ca", "/no/such/file", "https://"),
        ("--log", "loud=loud=loud", "log filter"),
    ] {
        refused(&[up[0], up[1], flag, wrong], 2, &[said]);
    }
    let https = ["--upstream", "https://127.0.0.1:1", "--listen", "127.0.0.1:0", "--admin-listen", "off"];
    refused(&[&https[..], &["--upstream-ca", "/no/such/file"]].concat(), 2, &["/no/such/file"]);
}

#[test]
fn an_address_that_is_taken_is_told_with_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let up = ["--upstream", "http://127.0.0.1:1"];
    refused(&[&up[..], &["--listen", &address]].concat(), 1, &[&address, "--listen"]);
    let admin = ["--listen", "127.0.0.1:0", "--admin-listen", &address];
    refused(&[&up[..], &admin].concat(), 1, &[&address, "--admin-listen off"]);
    drop(taken);
    let itself = format!("http://{address}");
    refused(
        &["--upstream", &itself, "--listen", &address, "--admin-listen", "off"],
        2,
        &["this proxy itself"],
    );
}

#[tokio::test]
async fn settings_may_stand_in_the_environment() {
    let (server, upstream) = (server().await, Upstream::start(|_| async { text(200, "") }).await);
    let mut child = onced()
        .arg("proxy")
        .env("ONCED_PROXY_UPSTREAM", upstream.url())
        .env("ONCED_PROXY_LISTEN", "127.0.0.1:0")
        .env("ONCED_PROXY_ADMIN_LISTEN", "off")
        .env("ONCED_SERVER", server.address().to_string())
        .env("ONCED_PROXY_METHODS", "PUT,delete")
        .env("ONCED_PROXY_PATHS", "/a,/b")
        .env("ONCED_PROXY_KEY", "required")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let first = BufReader::new(child.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    let _child = KillOnDrop(child);
    let address = first.strip_prefix("listening on ").unwrap();
    let send = |method: Method, path: &str| {
        Request::builder()
            .method(method)
            .uri(format!("http://{address}{path}"))
            .body(Full::default())
            .unwrap()
    };
    let caller = Caller::new();
    caller.send(send(Method::DELETE, "/b/1")).await.problem(400, "IDEMPOTENCY_KEY_MISSING");
    caller.send(send(Method::POST, "/b/1")).await.is(200, "");
    caller.send(send(Method::PUT, "/c")).await.is(200, "");
}

#[tokio::test]
async fn that_onced_is_away_is_only_a_warning_at_the_start() {
    let (server, upstream) = (server().await, Upstream::start(|_| async { text(200, "passed") }).await);
    let nobody = dead_address().await;
    let proxy = Proxy::start(&upstream.url(), &nobody, &[]);
    let setup = Setup { server, upstream, proxy, caller: Caller::new() };
    let get = setup.request(Method::GET, "/").body(Full::default()).unwrap();
    setup.caller.send(get).await.is(200, "passed");
    let warned = async {
        while !setup.proxy.log().contains("onced is not ready") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(HANGS, warned).await.expect("no warning");
    assert!(setup.proxy.log().contains(&nobody), "{}", setup.proxy.log());
}

#[tokio::test]
async fn no_key_and_no_body_is_logged() {
    let setup = Setup::with(&["--log", "trace"], |seen| async move {
        text(seen.target.trim_start_matches('/').parse().unwrap(), "a-secret-answer")
    })
    .await;
    for status in ["200", "404", "500", "429"] {
        let key = format!("a-secret-key-{status}");
        for _ in 0..2 {
            setup.post(&format!("/{status}"), &key, "a-secret-body").await;
        }
    }
    setup.post("/404", "a-secret-key-200", "a-secret-body").await.problem(422, "FINGERPRINT_MISMATCH");
    let log = setup.proxy.log();
    assert!(log.len() > 1_000, "{log}");
    // What libraries trace of bytes on the wire is theirs, and off by default; the proxy's own is never more.
    for line in log.lines().filter(|line| line.contains("onced::")) {
        assert!(!line.contains("a-secret"), "{line}");
    }
    let quiet = Setup::start(&[]).await;
    quiet.post("/a-secret-path?a-secret-query", "a-secret-key", "a-secret-body").await;
    quiet
        .post("/a-secret-path?another", "a-secret-key", "a-secret-body")
        .await
        .problem(422, "FINGERPRINT_MISMATCH");
    assert!(!quiet.proxy.log().contains("a-secret"), "{}", quiet.proxy.log());
}

/// The metrics of a proxy that has had a request.
pub async fn shown() -> Exposition {
    let setup = Setup::start(&[]).await;
    setup.order("k").await;
    Exposition::of(setup.proxy.admin).await
}

#[tokio::test]
async fn it_tells_of_itself_at_its_admin_port() {
    let setup = Setup::start(&[]).await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(http::get(setup.proxy.admin, path).await.status, 200, "{path}");
    }
    setup.order("k").await;
    setup.order("k").await;
    setup.post("/orders", "k", "other").await;
    let get = setup.request(Method::GET, "/").body(Full::default()).unwrap();
    setup.caller.send(get).await;
    let page = http::get(setup.proxy.admin, "/metrics").await.body;
    for line in [
        "onced_proxy_requests_total{result=\"ran\",status=\"201\"} 1",
        "onced_proxy_requests_total{result=\"replayed\",status=\"201\"} 1",
        "onced_proxy_requests_total{result=\"refused\",status=\"422\"} 1",
        "onced_proxy_requests_total{result=\"passed\",status=\"201\"} 1",
        "onced_proxy_upstream_duration_seconds_count{result=\"answered\"} 2",
    ] {
        assert!(page.contains(line), "no {line} in {page}");
    }
    let metrics = Exposition::of(setup.proxy.admin).await.metrics;
    assert!(metrics.contains_key("onced_limit_size") && metrics.contains_key("onced_build_info"));
}

#[tokio::test]
async fn at_sigterm_what_is_at_work_ends_and_nothing_new_begins() {
    let gate = Gate::new();
    let opened = gate.clone();
    let mut setup = Setup::with(&[], move |_| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            text(200, "done")
        }
    })
    .await;
    let (stays, goes) = (setup.order_meanwhile("stays"), setup.order_meanwhile("goes"));
    while setup.upstream.seen().len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Its caller is gone, and it is at work all the same.
    goes.abort();
    assert!(goes.await.unwrap_err().is_cancelled());
    setup.proxy.terminate();
    http::until(setup.proxy.admin, "/readyz", |page| page.status == 503).await;
    let connected = tokio::net::TcpStream::connect(setup.proxy.address).await;
    assert_eq!(connected.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    opened.open();
    opened.open();
    stays.await.unwrap().is(200, "done");
    assert_eq!(setup.proxy.ended().await, Some(0), "{}", setup.proxy.log());
    for key in ["stays", "goes"] {
        let record = setup.lookup(key).await;
        assert!(matches!(record, Record::Completed(_)), "{key}: {record:?}");
    }
}

#[tokio::test]
async fn who_waits_at_sigterm_is_told_to_come_again_and_what_runs_ends() {
    let gate = Gate::new();
    let opened = gate.clone();
    let flags = ["--wait", "60s", "--drain-limit", "60s"];
    let mut setup = Setup::with(&flags, move |_| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            text(200, "done")
        }
    })
    .await;
    let runs = setup.order_meanwhile("k");
    while setup.upstream.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let waits = setup.order_meanwhile("k");
    // Until it does.
    tokio::time::sleep(Duration::from_secs(1)).await;
    setup.proxy.terminate();
    let told = tokio::time::timeout(Duration::from_secs(10), waits).await.expect("it still waits").unwrap();
    assert_eq!(told.problem(503, "UNAVAILABLE").header("retry-after"), "1");
    assert!(!runs.is_finished());
    opened.open();
    runs.await.unwrap().is(200, "done");
    assert_eq!(setup.proxy.ended().await, Some(0), "{}", setup.proxy.log());
    setup.upstream.only();
}

#[tokio::test]
async fn a_key_that_comes_free_after_sigterm_is_left_alone() {
    let mut setup = Setup::start(&["--wait", "60s", "--drain-limit", "300ms"]).await;
    let (client, name) = (setup.client(), ("default".to_owned(), "k".to_owned()));
    let request = onced_client::v1::BeginRequest {
        namespace: name.0.clone(),
        key: name.1.clone(),
        request_id: "6f1c5c66-6e0b-4b3a-9a55-0d4b4f3c8a01".to_owned(),
        ..Default::default()
    };
    let held = client.begin(request).await.unwrap();
    let onced_client::Begun::Claim(held) = held else { panic!("{held:?}") };
    let waits = setup.order_meanwhile("k");
    tokio::time::sleep(Duration::from_secs(1)).await;
    setup.proxy.terminate();
    // Later than the proxy waits for its upstream, and sooner than it gives up its callers.
    tokio::time::sleep(Duration::from_millis(800)).await;
    let release = onced_client::v1::ReleaseRequest {
        namespace: name.0,
        key: name.1,
        fencing_token: held.fencing_token,
        disposition: onced_client::v1::Disposition::Retry.into(),
        ..Default::default()
    };
    client.release(release).await.unwrap();
    waits.await.unwrap().problem(503, "UNAVAILABLE");
    assert_eq!(setup.proxy.ended().await, Some(0), "{}", setup.proxy.log());
    setup.is_free("k").await;
    assert!(setup.upstream.seen().is_empty());
}

#[tokio::test]
async fn what_does_not_end_at_sigterm_is_given_up_and_its_key_in_doubt() {
    let mut setup = Setup::with(&["--drain-limit", "200ms"], |_| std::future::pending()).await;
    let caller = setup.order_meanwhile("k");
    while setup.upstream.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    setup.proxy.terminate();
    caller.await.unwrap().problem(502, "UPSTREAM_LOST");
    assert_eq!(setup.proxy.ended().await, Some(0), "{}", setup.proxy.log());
    setup.is_in_doubt("k").await;
}

#[tokio::test]
async fn a_key_whose_request_has_no_connection_yet_at_sigterm_is_free() {
    let gate = Gate::new();
    let connects = gate.clone();
    // It accepts, and says nothing of TLS.
    let upstream = Upstream::raw(move |stream| {
        connects.open();
        async move {
            let _stream = stream;
            std::future::pending().await
        }
    })
    .await;
    let (server, certificates) = (server().await, Certificates::for_a_server());
    let url = format!("https://localhost:{}", upstream.address().port());
    let flags =
        ["--upstream-ca", &certificates.arg("ca.crt"), "--connect-timeout", "1h", "--drain-limit", "200ms"];
    let proxy = Proxy::start(&url, &server.address().to_string(), &flags);
    let mut setup = Setup { server, upstream, proxy, caller: Caller::new() };
    let order = setup.order_meanwhile("k");
    gate.pass().await;
    setup.proxy.terminate();
    order.await.unwrap().problem(502, "UPSTREAM_UNREACHABLE");
    assert_eq!(setup.proxy.ended().await, Some(0), "{}", setup.proxy.log());
    setup.is_free("k").await;
}

#[tokio::test]
async fn a_stream_without_end_is_cut_off_at_the_end_and_so_is_what_is_not_answered() {
    let upstream = Upstream::raw(|mut stream| async move {
        if read_request(&mut stream).await.starts_with("get /events") {
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(format!("{head}5\r\ndata:\r\n").as_bytes()).await.unwrap();
        }
        std::future::pending().await
    })
    .await;
    let mut setup = Setup::of(&["--drain-limit", "200ms"], upstream).await;
    let get = |target: &str| setup.request(Method::GET, target).body(Full::<Bytes>::default()).unwrap();
    let mut events = setup.caller.0.request(get("/events")).await.unwrap().into_body();
    assert_eq!(events.frame().await.unwrap().unwrap().into_data().unwrap(), "data:");
    let (caller, late) = (setup.caller.clone(), get("/late"));
    let late = tokio::spawn(async move { caller.send(late).await });
    // Until it is there.
    tokio::time::sleep(Duration::from_millis(200)).await;
    setup.proxy.terminate();
    late.await.unwrap().problem(502, "UPSTREAM_LOST");
    let cut = tokio::time::timeout(HANGS, events.frame()).await.expect("it goes on");
    assert!(cut.is_some_and(|frame| frame.is_err()), "it seems to be at its end");
    assert_eq!(setup.proxy.ended().await, Some(0), "{}", setup.proxy.log());
}

#[tokio::test]
async fn a_request_that_does_not_arrive_does_not_hold_up_the_end() {
    let mut setup = Setup::with(&["--drain-limit", "200ms"], |_| async { text(200, "never") }).await;
    let mut halves = Vec::new();
    for half in [
        "POST / HTTP/1.1\r\nhost: x\r\nidempotency-key: k\r\ncontent-length: 3\r\n\r\no",
        "POST / HTTP/1.1\r\nhost: x\r\nidempo",
    ] {
        let mut stream = tokio::net::TcpStream::connect(setup.proxy.address).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
        halves.push(stream);
    }
    // Until they are there.
    tokio::time::sleep(Duration::from_millis(200)).await;
    setup.proxy.terminate();
    assert_eq!(setup.proxy.ended().await, Some(0), "{}", setup.proxy.log());
    assert!(setup.upstream.seen().is_empty());
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once_and_another_proxy_takes_over() {
    let mut setup = Setup::with(&["--ttl", TTL], |seen| async move {
        if seen.number == 1 {
            std::future::pending::<()>().await;
        }
        text(200, &seen.number.to_string())
    })
    .await;
    let caller = setup.order_meanwhile("k");
    while setup.upstream.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    setup.proxy.terminate();
    http::until(setup.proxy.admin, "/readyz", |page| page.status == 503).await;
    setup.proxy.terminate();
    assert_eq!(setup.proxy.ended().await, Some(1), "{}", setup.proxy.log());
    caller.abort();
    setup.proxy = setup.another(&["--ttl", TTL]);
    let taken_over = setup.order("k").await.is(200, "2");
    assert!(!taken_over.is_replay());
    assert_eq!(setup.upstream.seen()[1].headers["onced-attempt"], "2");
}
