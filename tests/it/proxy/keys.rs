//! Whose key it is, and which requests need one.

use http::request::Builder;

use super::*;

impl Setup {
    /// Posts an order with these headers.
    async fn order_with(&self, headers: &[(&str, &[u8])]) -> Reply {
        let with = |request: Builder, (name, value): &(&str, &[u8])| request.header(*name, *value);
        let request = headers.iter().fold(self.request(Method::POST, "/orders"), with);
        self.caller.send(request.body("one".into()).unwrap()).await
    }
}

#[tokio::test]
async fn a_key_is_a_quoted_string_or_bare_text() {
    let setup = Setup::start(&[]).await;
    setup.order("order-1").await.is(201, "answer 1");
    assert!(setup.order("\"order-1\"").await.is_replay());
    assert!(setup.order("  order-1 ").await.is_replay());
    let longest = "k".repeat(512);
    setup.order(&longest).await.is(201, "answer 2");

    setup.order_with(&[]).await.problem(400, "IDEMPOTENCY_KEY_MISSING");
    for wrong in [&b""[..], b"\"\"", b"\"half", "käse".as_bytes(), &[b'k'; 513], b"\xff"] {
        setup.order_with(&[("idempotency-key", wrong)]).await.problem(400, "IDEMPOTENCY_KEY_INVALID");
    }
    let twice: [(&str, &[u8]); 2] = [("idempotency-key", b"a"), ("idempotency-key", b"a")];
    setup.order_with(&twice).await.problem(400, "IDEMPOTENCY_KEY_INVALID");
    assert_eq!(setup.upstream.seen().len(), 2);
}

#[tokio::test]
async fn a_key_that_its_caller_strikes_on_the_way_is_not_there() {
    let setup = Setup::start(&["--scope-header", "X-Account"]).await;
    let struck: [(&str, &[u8]); 3] =
        [("idempotency-key", b"k"), ("x-account", b"a"), ("connection", b"Idempotency-Key")];
    setup.order_with(&struck).await.problem(400, "IDEMPOTENCY_KEY_MISSING");
    let struck: [(&str, &[u8]); 3] =
        [("idempotency-key", b"k"), ("x-account", b"a"), ("connection", b"x-account")];
    setup.order_with(&struck).await.problem(400, "SCOPE_MISSING");
}

#[tokio::test]
async fn the_same_key_of_another_scope_is_another_one() {
    let setup = Setup::start(&["--scope-header", "X-Account"]).await;
    let of = |account: &'static str, key: &'static str| -> [(&'static str, &'static [u8]); 2] {
        [("idempotency-key", key.as_bytes()), ("x-account", account.as_bytes())]
    };
    setup.order_with(&of("a", "k")).await.is(201, "answer 1");
    setup.order_with(&of("b", "k")).await.is(201, "answer 2");
    assert!(setup.order_with(&of("a", "k")).await.is(201, "answer 1").is_replay());
    setup.order("k").await.problem(400, "SCOPE_MISSING");
    // The first half of the SHA-256 of "a".
    let Record::Completed(_) = setup.lookup("ca978112ca1bbdcafac231b39a23dc4d:k").await else {
        panic!("not there")
    };
    let longest = "k".repeat(479);
    let with_scope = |key: &str| {
        let request = setup.request(Method::POST, "/orders").header("idempotency-key", key);
        request.header("x-account", "a").body(Full::from("one")).unwrap()
    };
    setup.caller.send(with_scope(&longest)).await.is(201, "answer 3");
    setup.caller.send(with_scope(&format!("{longest}k"))).await.problem(400, "IDEMPOTENCY_KEY_INVALID");
}

#[tokio::test]
async fn only_the_methods_and_paths_that_are_named_need_a_key() {
    let setup = Setup::start(&["--method", "POST,PUT", "--path", "/orders,/accounts/*/payments"]).await;
    let send = |method: Method, target: &'static str| {
        let request = setup.request(method, target).body(Full::default()).unwrap();
        setup.caller.send(request)
    };
    for (method, target) in
        [(Method::POST, "/orders"), (Method::PUT, "/orders/7?x=1"), (Method::POST, "/accounts/9/payments")]
    {
        send(method, target).await.problem(400, "IDEMPOTENCY_KEY_MISSING");
    }
    for (method, target) in [
        (Method::GET, "/orders"),
        (Method::PATCH, "/orders"),
        (Method::POST, "/"),
        (Method::POST, "/ordersx"),
        (Method::POST, "/accounts/9/refunds"),
        (Method::DELETE, "/accounts/9/payments"),
    ] {
        let reply = send(method, target).await;
        assert_eq!(reply.status, 201, "{target}: {reply:?}");
    }
    // A key makes no difference there.
    for answer in ["answer 7", "answer 8"] {
        setup.post("/ordersx", "k", "").await.is(201, answer);
    }
}

#[tokio::test]
async fn an_optional_key_counts_where_there_is_one() {
    let setup = Setup::start(&["--key", "optional"]).await;
    setup.order_with(&[]).await.is(201, "answer 1");
    setup.order_with(&[]).await.is(201, "answer 2");
    setup.order("k").await.is(201, "answer 3");
    assert!(setup.order("k").await.is(201, "answer 3").is_replay());
    setup.order_with(&[("idempotency-key", b"")]).await.problem(400, "IDEMPOTENCY_KEY_INVALID");
}

#[tokio::test]
async fn the_service_sees_its_claim_and_not_what_callers_say_of_it() {
    let setup =
        Setup::with(&[], |seen| async move { text(if seen.number == 1 { 500 } else { 200 }, "") }).await;
    let order = || {
        setup.order_with(&[
            ("idempotency-key", b"k"),
            ("onced-fencing-token", b"999999"),
            ("onced-attempt", b"999999"),
        ])
    };
    order().await.is(500, "");
    order().await.is(200, "");
    let seen = setup.upstream.seen();
    let number = |seen: &Seen, name: &str| seen.headers[name].to_str().unwrap().parse::<u64>().unwrap();
    assert_eq!(seen[0].headers["idempotency-key"], "k");
    assert_eq!((number(&seen[0], "onced-attempt"), number(&seen[1], "onced-attempt")), (1, 2));
    let tokens = (number(&seen[0], "onced-fencing-token"), number(&seen[1], "onced-fencing-token"));
    assert!(tokens.0 < tokens.1 && tokens.1 < 999_999, "{tokens:?}");
}

#[tokio::test]
async fn retention_and_what_a_lapse_means_are_those_of_the_flags() {
    let flags = ["--ttl", "40s", "--retention", "7days", "--on-lapse", "hold", "--namespace", "default"];
    let setup = Setup::start(&flags).await;
    setup.order("k").await.is(201, "answer 1");
    let Record::Completed(completed) = setup.lookup("k").await else { panic!("not completed") };
    let (done, expires) = (completed.completed_at.unwrap().seconds, completed.expires_at.unwrap().seconds);
    assert!(expires - done >= 7 * 24 * 3_600, "{expires} {done}");
}
