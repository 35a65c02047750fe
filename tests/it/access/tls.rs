//! TLS between servers and clients, and what each says of the other's mistakes.

use std::fs;
use std::time::Duration;

use onced::clock::wall_time;
use onced_client::v1::begin_response::Result as Begun;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use onced_client::v1::{BeginRequest, Claim, Disposition, ReleaseRequest, WatchRequest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::rustls::HandshakeKind;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_types::StatusExt as _;

use super::*;
use crate::support::log::Log;

/// That a call failed, at once, with all of `texts` in its error.
#[track_caller]
fn told(result: Result<(), Error>, texts: &[&str]) {
    let error = result.expect_err("it was served").to_string();
    for text in texts {
        assert!(error.contains(text), "no {text:?} in {error}");
    }
}

#[tokio::test]
async fn calls_are_served_by_tls_to_whoever_trusts_the_ca() {
    let certificates = Certificates::for_a_server();
    let server = start(speaking_tls(&certificates)).await;
    call(client(&server, "https://").ca_file(certificates.ca())).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_client_is_told_what_is_wrong_with_its_server_instead_of_trying_on() {
    let (certificates, others) = (Certificates::for_a_server(), Certificates::for_a_server());
    certificates.sign("elsewhere", &["elsewhere.example"]);
    let server = start(speaking_tls(&certificates)).await;
    let wrong_ca = call(client(&server, "https://").ca_file(others.ca())).await;
    told(wrong_ca, &["invalid peer certificate", "--tls-ca", &server.address().to_string()]);
    told(call(client(&server, "https://")).await, &["UnknownIssuer", "--tls-ca"]);
    told(call(client(&server, "")).await, &["it speaks TLS: write https://"]);

    let plain = start(Config::default()).await;
    let by_tls = call(client(&plain, "https://").ca_file(certificates.ca())).await;
    told(by_tls, &["does not speak TLS", "http:// in place of https://"]);

    let mut config = speaking_tls(&certificates);
    let (cert, key) = certificates.identity("elsewhere");
    (config.tls.cert, config.tls.key) = (Some(cert), Some(key));
    let elsewhere = start(config).await;
    let other_name = call(client(&elsewhere, "https://").ca_file(certificates.ca())).await;
    told(other_name, &["elsewhere.example", "for other names"]);

    let now = onced::clock::wall_time().as_micros();
    let soon = Duration::from_micros(u64::try_from(now).unwrap()) + Duration::from_secs(2);
    certificates.sign_until("old", "127.0.0.1", soon);
    let mut config = speaking_tls(&certificates);
    let (cert, key) = certificates.identity("old");
    (config.tls.cert, config.tls.key) = (Some(cert), Some(key));
    let old = start(config).await;
    let until_it_ends = async {
        loop {
            if let Err(error) = call(client(&old, "https://").ca_file(certificates.ca())).await {
                return error;
            }
        }
    };
    let ended = tokio::time::timeout(HANGS, until_it_ends).await.expect("it never expires");
    told(Err(ended), &["expired", "renew"]);
}

/// By TLS 1.3 a caller goes on to send while its certificate is looked at. Were its connection closed over unread bytes,
/// it would be reset, and most callers told of a broken pipe.
#[tokio::test]
async fn who_is_refused_for_a_certificate_is_told_so_each_time() {
    let certificates = Certificates::for_a_server();
    let mut config = speaking_tls(&certificates);
    config.tls.client_ca = Some(certificates.ca());
    let server = start(config).await;
    for _ in 0..5 {
        let mut refused = certificates.connect(server.address(), None, &["h2"]).await.unwrap();
        for _ in 0..32 {
            refused.write_all(&[0; 1 << 10]).await.expect("a connection that takes what it is sent");
            refused.flush().await.unwrap();
            // The server has a turn.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let told =
            tokio::time::timeout(HANGS, refused.read_to_end(&mut Vec::new())).await.expect("it is kept");
        let told = told.unwrap_err().to_string();
        assert!(told.contains("CertificateRequired"), "{told}");
    }
}

#[tokio::test]
async fn who_speaks_no_tls_is_told_so_and_who_does_not_ask_for_http_2_is_let_go() {
    let certificates = Certificates::for_a_server();
    let server = start(speaking_tls(&certificates)).await;
    let mut http_1 = TcpStream::connect(server.address()).await.unwrap();
    http_1.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut said = String::new();
    tokio::time::timeout(HANGS, http_1.read_to_string(&mut said)).await.unwrap().unwrap();
    assert!(said.starts_with("HTTP/1.1 400") && said.contains("https://"), "{said}");

    let other_protocol = certificates.connect(server.address(), None, &["http/1.1"]).await;
    assert!(other_protocol.is_err_and(|error| error.to_string().contains("NoApplicationProtocol")));
    let mut unnamed = certificates.connect(server.address(), None, &[]).await.unwrap();
    let mut rest = Vec::new();
    // It is closed, politely or not.
    let _ = tokio::time::timeout(HANGS, unnamed.read_to_end(&mut rest)).await.expect("it stays open");
    assert!(rest.is_empty());
    assert!(certificates.connect(server.address(), None, &["h2"]).await.is_ok());
}

#[tokio::test]
async fn with_a_client_ca_no_connection_is_served_without_a_certificate_of_it() {
    let (certificates, others) = (Certificates::for_a_server(), Certificates::new());
    certificates.sign("caller", &["caller.example"]);
    others.sign("caller", &["caller.example"]);
    let mut config = speaking_tls(&certificates);
    config.tls.client_ca = Some(certificates.ca());
    let server = start(config.clone()).await;
    let trusting = |server| client(server, "https://").ca_file(certificates.ca());
    let showing = |server, (cert, key): (PathBuf, PathBuf)| trusting(server).identity_files(cert, key);

    call(showing(&server, certificates.identity("caller"))).await.unwrap();
    told(call(trusting(&server)).await, &["CertificateRequired", "--tls-cert"]);
    told(call(showing(&server, others.identity("caller"))).await, &["tls.client_ca"]);
    told(call(showing(&server, others.identity("ca"))).await, &["tls.client_ca"]);

    config.tls.client_auth = ClientAuth::Optional;
    let server = start(config).await;
    // It may connect; its calls have to show who makes them in another way.
    told(call(trusting(&server)).await, &["CREDENTIALS_MISSING"]);
    call(showing(&server, certificates.identity("caller"))).await.unwrap();
    told(call(showing(&server, others.identity("caller"))).await, &["tls.client_ca"]);
}

fn trusting(certificates: &Certificates) -> ClientTlsConfig {
    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(fs::read(certificates.ca()).unwrap()))
}

async fn connect(server: &TestServer, tls: ClientTlsConfig) -> Channel {
    let endpoint = Endpoint::from_shared(format!("https://{}", server.address())).unwrap();
    endpoint.tls_config(tls).unwrap().connect().await.unwrap()
}

fn begin(key: &str) -> BeginRequest {
    let (namespace, key) = ("n".to_owned(), key.to_owned());
    BeginRequest {
        namespace,
        key,
        request_id: uuid::Uuid::from_u128(1).to_string(),
        ..BeginRequest::default()
    }
}

fn renew(server: &TestServer) {
    server.live().renew_tls().expect("it speaks TLS");
}

/// A session that is resumed is one whose certificate nobody looks at again.
#[tokio::test]
async fn who_shows_a_certificate_shows_it_for_each_connection() {
    let certificates = Certificates::for_a_server();
    certificates.sign("caller", &["caller.example"]);
    for (asked, version, kind) in [
        (true, &TLS13, HandshakeKind::Full),
        (true, &TLS12, HandshakeKind::Full),
        // So that it is seen where there is one.
        (false, &TLS13, HandshakeKind::Resumed),
        (false, &TLS12, HandshakeKind::Resumed),
    ] {
        let mut config = speaking_tls(&certificates);
        config.tls.client_ca = asked.then(|| certificates.ca());
        let server = start(config).await;
        let client = certificates.client(Some(certificates.identity("caller")), &["h2"], &[version]);
        let mut last = None;
        for _ in 0..2 {
            let mut stream = Certificates::connect_as(&client, server.address()).await.unwrap();
            // What it answers to comes after the tickets, if there are any.
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
            stream.read_exact(&mut [0; 9]).await.unwrap();
            last = stream.get_ref().1.handshake_kind();
        }
        assert_eq!(last, Some(kind), "{asked} {version:?}");
    }
}

/// Whoever a CA let in goes with it, also from connections that are open.
#[tokio::test]
async fn when_callers_are_trusted_by_another_ca_the_connections_that_there_are_end() {
    let (certificates, old, new) = (Certificates::for_a_server(), Certificates::new(), Certificates::new());
    old.sign("caller", &["caller.example"]);
    new.sign("caller", &["caller.example"]);
    let mut config = speaking_tls(&certificates);
    let trusted = certificates.path("callers");
    fs::copy(old.ca(), &trusted).unwrap();
    config.tls.client_ca = Some(trusted.clone());
    let server = start(config.clone()).await;
    let showing = |(cert, key)| {
        let identity = Identity::from_pem(fs::read(cert).unwrap(), fs::read(key).unwrap());
        trusting(&certificates).identity(identity)
    };
    let connection = connect(&server, showing(old.identity("caller"))).await;
    let mut api = IdempotencyServiceClient::new(connection);
    let (namespace, key) = ("n".to_owned(), "watched".to_owned());
    let claimed = api.begin(begin("watched")).await.unwrap().into_inner().result;
    let Some(Begun::Claim(Claim { fencing_token, .. })) = claimed else { panic!("{claimed:?}") };
    let mut watch = api.watch(WatchRequest { namespace, key }).await.unwrap().into_inner();
    watch.message().await.unwrap().expect("a state");

    // One that is added takes nothing from those that were there before.
    certificates.sign("server", &["localhost", "127.0.0.1"]);
    let both = [new.ca(), old.ca()].map(|ca| fs::read_to_string(ca).unwrap()).concat();
    fs::write(&trusted, both).unwrap();
    renew(&server);
    let (namespace, key) = ("n".to_owned(), "watched".to_owned());
    let disposition = Disposition::Retry.into();
    let released = ReleaseRequest { namespace, key, fencing_token, disposition, ..ReleaseRequest::default() };
    api.release(released).await.unwrap();
    watch.message().await.unwrap().expect("the watch goes on");

    // Whatever else is wrong.
    fs::write(certificates.path("server.key"), "nonsense").unwrap();
    fs::copy(new.ca(), &trusted).unwrap();
    renew(&server);
    let ended = tokio::time::timeout(HANGS, watch.message()).await.expect("the watch goes on").unwrap_err();
    assert_eq!(ended.get_details_error_info().unwrap().reason, "DRAINING");
    let client = |identity: (PathBuf, PathBuf)| {
        client(&server, "https://").ca_file(certificates.ca()).identity_files(identity.0, identity.1)
    };
    told(call(client(old.identity("caller"))).await, &["tls.client_ca"]);
    call(client(new.identity("caller"))).await.unwrap();
}

/// New certificates come while callers call: no call fails, and new connections see the new one.
#[tokio::test]
async fn new_certificates_cost_no_call_on_connections_that_are_open() {
    let certificates = Certificates::for_a_server();
    let config = speaking_tls(&certificates);
    let server = Arc::new(start(config.clone()).await);
    let api = client(&server, "https://").ca_file(certificates.ca());
    let connection = connect(&server, trusting(&certificates)).await;
    let done = tokio_util::sync::CancellationToken::new();
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (mut api, done) = (IdempotencyServiceClient::new(connection.clone()), done.clone());
            tokio::spawn(async move {
                let mut calls = 0_u32;
                while !done.is_cancelled() {
                    let lookup = LookupRequest { namespace: "n".to_owned(), key: "k".to_owned(), wait: None };
                    let status = api.lookup(lookup).await.expect_err("there is no record");
                    assert_eq!(status.code(), Code::NotFound, "{status}");
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    let mut shown = Vec::new();
    for _ in 0..20 {
        certificates.sign("server", &["localhost", "127.0.0.1"]);
        renew(&server);
        let stream = certificates.connect(server.address(), None, &["h2"]).await.unwrap();
        shown.push(stream.get_ref().1.peer_certificates().unwrap()[0].clone());
        call(api.clone()).await.unwrap();
    }
    done.cancel();
    for caller in callers {
        assert!(caller.await.expect("every call was answered") > 0);
    }
    shown.dedup();
    assert_eq!(shown.len(), 20, "each connection gets the newest certificate");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_comes_to_end_soon_is_warned_of_while_the_server_runs() {
    const DAY: Duration = Duration::from_secs(24 * 3_600);
    let (certificates, log) = (Certificates::new(), Log::start());
    let now = Duration::from_micros(wall_time().as_micros().try_into().unwrap());
    certificates.sign_until("server", "localhost", now + 2 * DAY);
    let _server = start(speaking_tls(&certificates)).await;
    let warned = || log.lines_with(&["WARN", "the certificate of this server", "expires at"]).len();
    // The first warning, at the start, is that of the settings.
    assert_eq!(warned(), 0);
    tokio::time::sleep(DAY / 24 * 5 / 2).await;
    assert_eq!(warned(), 2);
}
