//! The HTTP section of the contract (clients/README.md), row by row.

use http_body_util::StreamBody;
use hyper::body::Frame;
use onced_client::v1::outcome::Result as Stored;

use super::upstream::{Gate, read_request};
use super::*;

#[tokio::test]
async fn a_request_runs_once_and_its_answer_is_replayed_byte_for_byte() {
    let setup = Setup::with(&[], |seen| async move {
        let mut response = text(201, &format!("{{\"order\": {}}}", seen.number));
        let headers = response.headers_mut();
        headers.insert("content-type", "application/json; charset=utf-8".parse().unwrap());
        for (name, value) in [
            ("location", "/orders/1"),
            ("link", "</a>; rel=a"),
            ("link", "</b>; rel=b"),
            ("etag", "\"v1\""),
            ("cache-control", "no-store"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        headers.insert("x-trace", "of-this-one".parse().unwrap());
        headers.insert("set-cookie", "session=1".parse().unwrap());
        response
    })
    .await;
    let first = setup.order("k").await.is(201, "{\"order\": 1}");
    assert!(!first.is_replay());
    assert_eq!(first.header("x-trace"), "of-this-one");
    let second = setup.order("k").await;
    assert!(second.is_replay(), "{second:?}");
    assert_eq!((second.status, &second.body), (first.status, &first.body));
    for name in ["content-type", "location", "etag", "cache-control", "content-length"] {
        assert_eq!(second.header(name), first.header(name), "{name}");
    }
    let links = |reply: &Reply| reply.headers.get_all("link").iter().cloned().collect::<Vec<_>>();
    assert_eq!(links(&second), links(&first));
    assert_eq!(links(&second).len(), 2);
    for name in ["x-trace", "set-cookie"] {
        assert!(!second.headers.contains_key(name), "{second:?}");
    }
    setup.upstream.only();

    let Record::Completed(completed) = setup.lookup("k").await else { panic!("not completed") };
    let outcome = completed.outcome.unwrap();
    assert!(matches!(outcome.result, Some(Stored::Response(body)) if body == first.body));
    assert_eq!(outcome.content_type, "application/json; charset=utf-8");
    assert_eq!(outcome.metadata["http.status"], "201");
    assert_eq!(outcome.metadata["http.header.link"], "</a>; rel=a\n</b>; rel=b");
}

#[tokio::test]
async fn headers_that_are_asked_for_are_stored_too() {
    let setup = Setup::with(&["--store-header", "X-Charge,x-other"], |_| async {
        let mut response = text(200, "done");
        response.headers_mut().insert("x-charge", "ch_1".parse().unwrap());
        response
    })
    .await;
    setup.order("k").await;
    assert_eq!(setup.order("k").await.header("x-charge"), "ch_1");
}

#[tokio::test]
async fn what_the_caller_did_wrong_is_stored_and_what_was_not_looked_at_is_not() {
    let setup = Setup::with(&[], |seen| async move {
        let status = seen.target.trim_start_matches('/').parse().unwrap();
        text(status, &seen.number.to_string())
    })
    .await;
    for status in ["200", "204", "302", "400", "404", "409", "422"] {
        let target = format!("/{status}");
        let first = setup.post(&target, status, "").await;
        assert_eq!(first.status.to_string(), status);
        let second = setup.post(&target, status, "").await;
        assert!(second.is_replay(), "{second:?}");
        assert_eq!((second.status, second.body), (first.status, first.body));
    }
    for status in ["401", "408", "425", "429", "500", "502", "503", "504"] {
        let target = format!("/{status}");
        let first = setup.post(&target, status, "").await;
        assert_eq!(first.status.to_string(), status);
        setup.is_free(status).await;
        let second = setup.post(&target, status, "").await;
        assert!(!second.is_replay());
        assert_ne!(first.body, second.body);
    }
}

#[tokio::test]
async fn a_5xx_leaves_the_key_in_doubt_where_that_is_the_rule_and_a_429_does_not() {
    let setup = Setup::with(&["--on-5xx", "in-doubt"], |seen| async move {
        text(seen.target.trim_start_matches('/').parse().unwrap(), "no")
    })
    .await;
    setup.post("/500", "k", "").await.is(500, "no");
    setup.is_in_doubt("k").await;
    setup.post("/500", "k", "").await.problem(409, "IN_DOUBT");
    setup.post("/429", "other", "").await.is(429, "no");
    setup.is_free("other").await;
}

#[tokio::test]
async fn what_the_service_says_itself_outranks_its_status() {
    let setup = Setup::with(&[], |seen| async move {
        let (status, outcome) = seen.target.trim_start_matches('/').split_once('/').unwrap();
        let mut response = text(status.parse().unwrap(), "said");
        response.headers_mut().insert("onced-outcome", outcome.parse().unwrap());
        response
    })
    .await;
    let stored = setup.post("/503/store", "store", "").await.is(503, "said");
    assert!(!stored.headers.contains_key("onced-outcome"), "{stored:?}");
    assert!(setup.post("/503/store", "store", "").await.is(503, "said").is_replay());
    setup.post("/200/retry", "retry", "").await.is(200, "said");
    setup.is_free("retry").await;
    setup.post("/200/in-doubt", "in-doubt", "").await.is(200, "said");
    setup.is_in_doubt("in-doubt").await;
    // It meant something.
    setup.post("/200/unheard-of", "unheard-of", "").await.is(200, "said");
    setup.is_in_doubt("unheard-of").await;
    assert!(setup.proxy.log().contains("neither store, retry nor in-doubt"), "{}", setup.proxy.log());
}

#[tokio::test]
async fn the_key_of_another_request_is_refused() {
    let setup = Setup::start(&[]).await;
    setup.post("/orders?a=1", "k", "one").await.is(201, "answer 1");
    setup.post("/orders?a=1", "k", "two").await.problem(422, "FINGERPRINT_MISMATCH");
    setup.post("/orders?a=2", "k", "one").await.problem(422, "FINGERPRINT_MISMATCH");
    setup.post("/others?a=1", "k", "one").await.problem(422, "FINGERPRINT_MISMATCH");
    let patch = setup.request(Method::PATCH, "/orders?a=1").header("idempotency-key", "k");
    setup.caller.send(patch.body("one".into()).unwrap()).await.problem(422, "FINGERPRINT_MISMATCH");
    assert!(setup.post("/orders?a=1", "k", "one").await.is_replay());
}

#[tokio::test]
async fn a_duplicate_waits_for_the_answer() {
    let gate = Gate::new();
    let opened = gate.clone();
    let setup = Setup::with(&[], move |seen| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            text(200, &seen.number.to_string())
        }
    })
    .await;
    let both = [setup.order_meanwhile("k"), setup.order_meanwhile("k")];
    setup.until("k", |record| matches!(record, Record::InProgress(_))).await;
    opened.open();
    let mut replays = 0;
    for one in both {
        replays += usize::from(one.await.unwrap().is(200, "1").is_replay());
    }
    assert_eq!(replays, 1);
}

#[tokio::test]
async fn a_duplicate_that_does_not_wait_is_told_to_come_again() {
    let gate = Gate::new();
    let opened = gate.clone();
    let setup = Setup::with(&["--wait", "0s"], move |_| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            text(200, "done")
        }
    })
    .await;
    let first = setup.order_meanwhile("k");
    setup.until("k", |record| matches!(record, Record::InProgress(_))).await;
    let told = setup.order("k").await.problem(409, "REQUEST_IN_PROGRESS");
    assert_eq!(told.header("retry-after"), "1");
    opened.open();
    first.await.unwrap().is(200, "done");
    assert!(setup.order("k").await.is(200, "done").is_replay());
}

#[tokio::test]
async fn the_service_runs_to_its_end_when_its_caller_hangs_up() {
    let gate = Gate::new();
    let opened = gate.clone();
    let setup = Setup::with(&[], move |seen| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            text(200, &seen.number.to_string())
        }
    })
    .await;
    let caller = setup.order_meanwhile("k");
    setup.until("k", |record| matches!(record, Record::InProgress(_))).await;
    while setup.upstream.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    opened.open();
    setup.until("k", |record| matches!(record, Record::Completed(_))).await;
    assert!(setup.order("k").await.is(200, "1").is_replay());
    setup.upstream.only();
}

#[tokio::test]
async fn an_answer_that_cannot_be_stored_leaves_the_key_in_doubt() {
    let setup = Setup::with(&["--max-response-bytes", "1000"], |seen| async move {
        let large = "x".repeat(1_001);
        match seen.target.as_str() {
            "/large" => text(200, &large),
            "/large-but-not-stored" => text(503, &large),
            "/events" => {
                // It never ends.
                let events =
                    futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"data: 1\n\n")))]);
                let events = futures_util::StreamExt::chain(events, futures_util::stream::pending());
                let mut response = Response::new(StreamBody::new(events).boxed_unsync());
                response
                    .headers_mut()
                    .insert("content-type", "text/event-stream; charset=utf-8".parse().unwrap());
                response
            }
            _ => {
                let mut response = text(200, "done");
                let latin = http::HeaderValue::from_bytes(b"/caf\xe9").unwrap();
                response.headers_mut().insert("location", latin);
                response
            }
        }
    })
    .await;
    for target in ["/large", "/events", "/latin"] {
        let key = target.trim_start_matches('/');
        setup.post(target, key, "").await.problem(500, "RESPONSE_NOT_STORABLE");
        setup.is_in_doubt(key).await;
        setup.post(target, key, "").await.problem(409, "IN_DOUBT");
    }
    let passed = setup.post("/large-but-not-stored", "passes", "").await;
    assert_eq!((passed.status, passed.body.len()), (503, 1_001));
    // What does not fit is read from the service as it is sent: the key is free a moment after its end.
    setup.until("passes", |record| matches!(record, Record::Available(_))).await;
}

#[tokio::test]
async fn an_answer_larger_than_the_server_stores_leaves_the_key_in_doubt() {
    let setup = Setup::with(&[], |seen| async move {
        text(if seen.target == "/passes" { 503 } else { 200 }, &"x".repeat(3 << 20))
    })
    .await;
    setup.order("k").await.problem(500, "RESPONSE_NOT_STORABLE");
    setup.is_in_doubt("k").await;
    // It does not fit into what is read ahead, and arrives all the same.
    assert_eq!(setup.post("/passes", "other", "").await.body.len(), 3 << 20);
}

#[tokio::test]
async fn an_answer_is_handed_out_though_nobody_knows_whether_it_is_stored() {
    let gate = Gate::new();
    let opened = gate.clone();
    let setup = Setup::with(&["--timeout", "200ms", "--ttl", TTL], move |_| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            text(200, "done")
        }
    })
    .await;
    let caller = setup.order_meanwhile("k");
    setup.until("k", |record| matches!(record, Record::InProgress(_))).await;
    setup.server.stop().await;
    opened.open();
    assert!(!caller.await.unwrap().is(200, "done").is_replay());
}

#[tokio::test]
async fn an_attempt_that_was_taken_over_does_not_count() {
    let gate = Gate::new();
    let opened = gate.clone();
    let setup = Setup::with(&["--ttl", TTL], move |_| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            text(200, "done")
        }
    })
    .await;
    let caller = setup.order_meanwhile("k");
    setup.until("k", |record| matches!(record, Record::InProgress(_))).await;
    setup.forget("k").await;
    opened.open();
    let lost = caller.await.unwrap().problem(409, "CLAIM_LOST");
    assert_eq!(lost.header("retry-after"), "1");
}

#[tokio::test]
async fn a_request_over_the_limit_is_refused() {
    let setup = Setup::start(&["--max-request-bytes", "3"]).await;
    setup.post("/orders", "k", "four").await.problem(413, "REQUEST_TOO_LARGE");
    setup.post("/orders", "k", "two").await.is(201, "answer 1");
    // It is not told beforehand how long this one is.
    let chunked = format!(
        "POST /orders HTTP/1.1\r\nhost: {}\r\nidempotency-key: c\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
         4\r\nfour\r\n0\r\n\r\n",
        setup.proxy.address
    );
    let told = super::passing::exchange(setup.proxy.address, chunked.as_bytes()).await;
    assert!(told.starts_with("HTTP/1.1 413 ") && told.contains("REQUEST_TOO_LARGE"), "{told}");
}

#[tokio::test]
async fn what_onced_refuses_is_told_and_its_reason_logged() {
    let setup = Setup::start(&["--namespace", "No Such Name"]).await;
    setup.order("a-secret-key").await.problem(500, "REFUSED");
    assert!(setup.upstream.seen().is_empty());
    let log = setup.proxy.log();
    assert!(log.contains("NAMESPACE_INVALID") || log.contains("namespace"), "{log}");
    assert!(!log.contains("a-secret-key"), "{log}");
}

#[tokio::test]
async fn nothing_runs_while_onced_cannot_be_asked_unless_that_is_wanted() {
    let upstream = Upstream::start(|seen| async move { text(200, &seen.number.to_string()) }).await;
    let nobody = dead_address().await;
    let setup = Setup::of(&[], upstream).await;
    let closed = Proxy::start(&setup.upstream.url(), &nobody, &["--timeout", "200ms"]);
    let post = |proxy: &Proxy| {
        let request =
            Request::post(format!("http://{}/orders", proxy.address)).header("idempotency-key", "k");
        request.body(Full::from("one")).unwrap()
    };
    let told = setup.caller.send(post(&closed)).await.problem(503, "UNAVAILABLE");
    assert_eq!(told.header("retry-after"), "1");
    assert!(setup.upstream.seen().is_empty());

    let open = Proxy::start(&setup.upstream.url(), &nobody, &["--fail-open", "200ms"]);
    setup.caller.send(post(&open)).await.is(200, "1");
    let seen = setup.upstream.only();
    assert!(!seen.headers.contains_key("onced-fencing-token"), "{seen:?}");
    setup.caller.send(post(&open)).await.is(200, "2");

    // What became of a key that nobody has claimed is nothing to tell of.
    let upstream = Upstream::raw(|mut stream| async move { drop(read_request(&mut stream).await) }).await;
    let open = Proxy::start(&upstream.url(), &nobody, &["--fail-open", "200ms"]);
    let told = setup.caller.send(post(&open)).await.problem(502, "UPSTREAM_LOST");
    let told = String::from_utf8_lossy(&told.body).into_owned();
    assert!(told.contains("not known") && !told.contains("key"), "{told}");
}

#[tokio::test]
async fn an_answer_is_a_replay_only_where_the_proxy_says_so() {
    let setup = Setup::with(&["--store-header", "content-type,x-mine"], |_| async {
        let mut response = text(200, "done");
        response.headers_mut().insert("idempotent-replayed", "true".parse().unwrap());
        response.headers_mut().insert("x-mine", "1".parse().unwrap());
        response
    })
    .await;
    assert!(!setup.order("k").await.is(200, "done").is_replay());
    let replay = setup.order("k").await.is(200, "done");
    assert!(replay.is_replay());
    assert_eq!(replay.header("x-mine"), "1");
    assert_eq!(replay.headers.get_all("content-type").iter().count(), 1, "{replay:?}");
}

#[tokio::test]
async fn two_proxies_share_the_keys_of_one_server() {
    let gate = Gate::new();
    let opened = gate.clone();
    let setup = Setup::with(&[], move |seen| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            text(StatusCode::CREATED.as_u16(), &seen.number.to_string())
        }
    })
    .await;
    let other = setup.another(&[]);
    let first = setup.order_meanwhile("k");
    setup.until("k", |record| matches!(record, Record::InProgress(_))).await;
    let caller = setup.caller.clone();
    let request = Request::post(format!("http://{}/orders", other.address)).header("idempotency-key", "k");
    let request = request.body(Full::from("one")).unwrap();
    let second = tokio::spawn(async move { caller.send(request).await });
    opened.open();
    assert!(!first.await.unwrap().is(201, "1").is_replay());
    assert!(second.await.unwrap().is(201, "1").is_replay());
    setup.upstream.only();
}
