//! What goes through as it is: what has no key, and the way there and back of what has one.

use futures_util::{StreamExt as _, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::*;
use crate::support::certificates::Certificates;

/// Sends bytes, and reads until the proxy closes the connection.
pub async fn exchange(proxy: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    read_to_end(stream).await
}

/// Reads until the proxy closes the connection.
pub async fn read_to_end(mut stream: TcpStream) -> String {
    let mut read = Vec::new();
    match tokio::time::timeout(HANGS, stream.read_to_end(&mut read)).await.expect("it was not closed") {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    String::from_utf8_lossy(&read).into_owned()
}

/// Reads until what was read ends so.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = String::new();
    while !read.ends_with(end) {
        let mut piece = [0; 1];
        let length =
            tokio::time::timeout(HANGS, stream.read(&mut piece)).await.expect("nothing came").unwrap();
        assert!(length > 0, "closed after {read:?}");
        read.push(char::from(piece[0]));
    }
    read
}

/// An upstream that sends back each piece of a request as it comes.
async fn echo() -> Upstream {
    Upstream::streaming(|request| async move {
        let trailer = request.headers().get("trailer").cloned();
        let body = request.into_body().map_err(Into::into).boxed_unsync();
        let mut response = Response::new(body);
        if let Some(trailer) = trailer {
            response.headers_mut().insert("trailer", trailer);
        }
        Ok(response)
    })
    .await
}

#[tokio::test]
async fn what_has_no_key_streams_both_ways() {
    let setup = Setup::of(&[], echo().await).await;
    let (send, mut pieces) = mpsc::channel::<&'static str>(1);
    let pieces = stream::poll_fn(move |context| pieces.poll_recv(context));
    let body = StreamBody::new(pieces.map(|piece| Ok::<_, std::io::Error>(Frame::data(Bytes::from(piece)))));
    let client: legacy::Client<_, _> = legacy::Client::builder(TokioExecutor::new()).build_http();
    let request = setup.request(Method::PUT, "/upload").body(body.boxed_unsync()).unwrap();
    send.send("one").await.unwrap();
    let mut answer = client.request(request).await.unwrap().into_body();
    let mut sent = "one";
    for next in ["two", "three"] {
        let frame =
            tokio::time::timeout(HANGS, answer.frame()).await.expect("it is held back").unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), sent);
        send.send(next).await.unwrap();
        sent = next;
    }
    drop(send);
    assert_eq!(answer.collect().await.unwrap().to_bytes(), "three");
}

#[tokio::test]
async fn what_has_no_key_may_be_larger_than_what_has_one() {
    let setup = Setup::of(&["--max-request-bytes", "10"], echo().await).await;
    let large = Bytes::from(vec![b'x'; 20 << 20]);
    let request = setup.request(Method::PUT, "/upload").body(Full::from(large.clone())).unwrap();
    assert_eq!(setup.caller.send(request).await.body, large);
}

#[tokio::test]
async fn trailers_go_through() {
    let setup = Setup::of(&[], echo().await).await;
    let request = format!(
        "PUT /upload HTTP/1.1\r\nhost: {}\r\nte: trailers\r\nconnection: te, close\r\ntrailer: x-sum\r\n\
         transfer-encoding: chunked\r\n\r\n3\r\none\r\n0\r\nx-sum: 7\r\n\r\n",
        setup.proxy.address
    );
    let answer = exchange(setup.proxy.address, request.as_bytes()).await;
    assert!(answer.contains("3\r\none\r\n") && answer.contains("x-sum: 7"), "{answer}");
}

#[tokio::test]
async fn a_caller_that_expects_to_be_told_to_go_on_is_told() {
    let setup = Setup::start(&[]).await;
    for (method, key) in [("POST", "idempotency-key: k\r\n"), ("PUT", "")] {
        let mut stream = TcpStream::connect(setup.proxy.address).await.unwrap();
        let head = format!(
            "{method} /orders HTTP/1.1\r\nhost: x\r\n{key}content-length: 3\r\nexpect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"one").await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 201 Created\r\n"), "{answer}");
    }
    for seen in setup.upstream.seen() {
        assert_eq!(seen.body, "one");
        assert!(!seen.headers.contains_key("expect"), "{seen:?}");
    }
}

#[tokio::test]
async fn the_service_is_told_who_asked_and_for_what() {
    let setup = Setup::start(&[]).await;
    let request = setup.request(Method::GET, "/a%20b?c=d&e").header("host", "shop.example");
    setup.caller.send(request.body(Full::default()).unwrap()).await.is(201, "answer 1");
    let seen = setup.upstream.only();
    assert_eq!((seen.method, seen.target.as_str()), (Method::GET, "/a%20b?c=d&e"));
    assert_eq!(seen.headers["host"], "shop.example");
    assert_eq!(seen.headers["x-forwarded-host"], "shop.example");
    assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen.headers["x-forwarded-proto"], "http");
}

#[tokio::test]
async fn the_service_is_called_by_its_own_name_and_below_its_path_where_so_said() {
    let upstream = Upstream::start(|_| async { text(200, "") }).await;
    let (url, name) = (format!("{}/api/v1/", upstream.url()), upstream.address().to_string());
    let setup = Setup::of(&[], upstream).await;
    let proxy = Proxy::start(&url, &setup.server.address().to_string(), &["--host", "upstream"]);
    let request =
        Request::post(format!("http://{}/orders?x=1", proxy.address)).header("idempotency-key", "k");
    let request = request.header("host", "shop.example").body(Full::default()).unwrap();
    setup.caller.send(request).await.is(200, "");
    let seen = setup.upstream.only();
    assert_eq!(seen.target, "/api/v1/orders?x=1");
    assert_eq!(seen.headers["host"], name.as_str());
    assert_eq!(seen.headers["x-forwarded-host"], "shop.example");
}

#[tokio::test]
async fn what_is_of_one_connection_goes_no_further() {
    let setup = Setup::with(&[], |_| async {
        let mut response = text(200, "done");
        for (name, value) in
            [("connection", "x-hop"), ("x-hop", "1"), ("keep-alive", "timeout=9"), ("x-end", "1")]
        {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    })
    .await;
    let request = setup.request(Method::POST, "/orders").header("idempotency-key", "k");
    let request = request.header("connection", "x-hop").header("x-hop", "1").header("x-end", "1");
    let reply = setup.caller.send(request.body(Full::from("one")).unwrap()).await.is(200, "done");
    assert!(!reply.headers.contains_key("x-hop") && !reply.headers.contains_key("keep-alive"), "{reply:?}");
    assert_eq!(reply.header("x-end"), "1");
    let seen = setup.upstream.only();
    assert!(!seen.headers.contains_key("x-hop"), "{seen:?}");
    assert_eq!((&seen.headers["x-end"], &seen.body[..]), (&http::HeaderValue::from_static("1"), &b"one"[..]));
}

#[tokio::test]
async fn http2_without_tls_is_spoken_and_so_is_http_1_0() {
    let setup = Setup::start(&[]).await;
    let stream = TcpStream::connect(setup.proxy.address).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut http2, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    for replayed in [false, true] {
        let request = Request::post("http://shop.example/orders").header("idempotency-key", "k");
        let response = http2.send_request(request.body(Full::<Bytes>::from("one")).unwrap()).await.unwrap();
        assert_eq!((response.status(), response.version()), (StatusCode::CREATED, http::Version::HTTP_2));
        assert_eq!(response.headers().contains_key("idempotent-replayed"), replayed);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "answer 1");
    }
    let seen = setup.upstream.only();
    assert_eq!(
        (&seen.headers["host"], seen.version),
        (&"shop.example".parse().unwrap(), http::Version::HTTP_11)
    );

    let old = b"POST /orders HTTP/1.0\r\nidempotency-key: k\r\ncontent-length: 3\r\n\r\none";
    let answer = exchange(setup.proxy.address, old).await;
    assert!(answer.starts_with("HTTP/1.0 201 ") && answer.contains("idempotent-replayed: true"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nanswer 1"), "{answer}");
}

#[tokio::test]
async fn upgrades_and_tunnels_are_refused() {
    let setup = Setup::start(&[]).await;
    let request =
        setup.request(Method::GET, "/chat").header("connection", "upgrade").header("upgrade", "websocket");
    setup.caller.send(request.body(Full::default()).unwrap()).await.problem(501, "UPGRADE_REFUSED");
    let connect =
        b"CONNECT elsewhere.example:443 HTTP/1.1\r\nhost: elsewhere.example:443\r\nconnection: close\r\n\r\n";
    let answer = exchange(setup.proxy.address, connect).await;
    assert!(answer.starts_with("HTTP/1.1 501 ") && answer.contains("UPGRADE_REFUSED"), "{answer}");
    let star = b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answer = exchange(setup.proxy.address, star).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("REQUEST_INVALID"), "{answer}");
    assert!(setup.upstream.seen().is_empty());

    // HTTP/2 may be offered in vain.
    let request = setup.request(Method::GET, "/").header("connection", "upgrade, http2-settings");
    let request = request.header("upgrade", "h2c").header("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA");
    setup.caller.send(request.body(Full::default()).unwrap()).await.is(201, "answer 1");
    assert!(!setup.upstream.only().headers.contains_key("http2-settings"));
}

#[tokio::test]
async fn a_request_with_two_lengths_is_not_smuggled() {
    let setup = Setup::start(&[]).await;
    let request = "PUT /orders HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\
                   connection: close\r\n\r\n3\r\none\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
    exchange(setup.proxy.address, request.as_bytes()).await;
    for seen in setup.upstream.seen() {
        assert_eq!((seen.target.as_str(), &seen.body[..]), ("/orders", &b"one"[..]));
        assert!(seen.headers.get("content-length").is_none_or(|length| length == "3"), "{seen:?}");
    }
}

#[tokio::test]
async fn a_request_for_two_hosts_is_refused() {
    let setup = Setup::start(&[]).await;
    for head in [
        "POST /orders HTTP/1.1\r\nhost: shop\r\nhost: other\r\n",
        "GET / HTTP/1.1\r\nhost: shop\r\nhost: shop\r\n",
        "GET / HTTP/1.1\r\nhost: me@shop\r\n",
        "GET http://me:pw@shop/ HTTP/1.1\r\nhost: shop\r\n",
    ] {
        let request = format!("{head}idempotency-key: k\r\nconnection: close\r\n\r\n");
        let answer = exchange(setup.proxy.address, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("REQUEST_INVALID"), "{answer}");
    }
    assert!(setup.upstream.seen().is_empty());
}

#[tokio::test]
async fn what_is_empty_says_so_where_it_matters() {
    let setup = Setup::start(&[]).await;
    for (method, said) in [
        ("POST", "idempotency-key: 1\r\ncontent-length: 0\r\n"),
        ("POST", "idempotency-key: 2\r\n"),
        ("PUT", "content-length: 0\r\n"),
        ("PUT", ""),
        ("DELETE", "content-length: 0\r\n"),
        ("DELETE", ""),
        ("GET", ""),
    ] {
        let request = format!("{method} / HTTP/1.1\r\nhost: x\r\n{said}connection: close\r\n\r\n");
        let answer = exchange(setup.proxy.address, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
        let seen = setup.upstream.seen().pop().unwrap();
        let expected = (method == "POST" || method == "PUT" || !said.is_empty()).then_some("0");
        let length = seen.headers.get("content-length").map(|length| length.to_str().unwrap());
        assert_eq!(length, expected, "{seen:?}");
        assert!(!seen.headers.contains_key("transfer-encoding"), "{seen:?}");
    }
}

#[tokio::test]
async fn a_head_request_keeps_its_length() {
    let setup = Setup::with(&[], |_| async {
        let mut response = text(200, "");
        response.headers_mut().insert("content-length", "17".parse().unwrap());
        response
    })
    .await;
    let request = setup.request(Method::HEAD, "/").body(Full::default()).unwrap();
    let reply = setup.caller.send(request).await;
    assert_eq!((reply.status, reply.header("content-length")), (200, "17"));
}

#[tokio::test]
async fn an_upstream_may_speak_tls() {
    let (certificates, others) = (Certificates::for_a_server(), Certificates::for_a_server());
    let acceptor = tls(&certificates);
    let upstream = Upstream::raw(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            super::upstream::serve(stream, |_| async { Ok(text(200, "by TLS")) }).await;
        }
    })
    .await;
    let server = server().await;
    let (server, url) =
        (server.address().to_string(), format!("https://localhost:{}", upstream.address().port()));
    let caller = Caller::new();
    let post = |proxy: &Proxy| {
        let request = Request::post(format!("http://{}/", proxy.address)).header("idempotency-key", "k");
        request.body(Full::default()).unwrap()
    };
    let distrusting = Proxy::start(&url, &server, &["--upstream-ca", &others.arg("ca.crt")]);
    caller.send(post(&distrusting)).await.problem(502, "UPSTREAM_UNREACHABLE");
    assert!(distrusting.log().contains("certificate"), "{}", distrusting.log());
    // Nothing was sent, so the key is free.
    let proxy = Proxy::start(&url, &server, &["--upstream-ca", &certificates.arg("ca.crt")]);
    caller.send(post(&proxy)).await.is(200, "by TLS");
}

fn tls(certificates: &Certificates) -> tokio_rustls::TlsAcceptor {
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let (cert, key) = certificates.identity("server");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(cert).unwrap()],
            PrivateKeyDer::from_pem_file(key).unwrap(),
        );
    tokio_rustls::TlsAcceptor::from(Arc::new(config.unwrap()))
}
