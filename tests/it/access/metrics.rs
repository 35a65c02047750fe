//! Who is turned away is counted, by why.

use std::time::Duration;

use onced::telemetry::metrics::{
    CERTIFICATE_EXPIRY, REFUSED_CONNECTIONS, REFUSED_REQUESTS, RELOAD_REFUSED, RELOADS,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::metadata::MetadataValue;

use super::*;
use crate::support::exposition::{Exposition, until};
use crate::support::onced::{ServerProcess, onced};
use crate::support::server::over;

#[tokio::test]
async fn who_is_turned_away_is_counted_by_why_and_no_token_is_logged() {
    let (certificates, others) = (Certificates::for_a_server(), Certificates::for_a_server());
    let path = |name| certificates.path(name);
    std::fs::write(path("tokens"), "").unwrap();
    let mut command = onced();
    command.env("ONCED_TLS_CERT", path("server.crt")).env("ONCED_TLS_KEY", path("server.key"));
    command.env("ONCED_ACCESS_TOKENS", path("tokens")).env("ONCED_LIMITS_HANDSHAKE", "1s");
    command.env("ONCED_LOG", "debug").env_remove("RUST_LOG");
    command.stderr(std::fs::File::create(path("log")).unwrap());
    let server = ServerProcess::start_as(command, "memory:");
    let refused =
        |now: &Exposition, cause: &str| now.value(REFUSED_CONNECTIONS, &[&format!("cause=\"{cause}\"")]);

    // One who is gone before it is told, with a reset: it has not read what was said.
    let mut gone = TcpStream::connect(server.address()).await.unwrap();
    gone.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    gone.readable().await.unwrap();
    drop(gone);
    // One who does not trust the server, one who speaks no TLS, one who says nothing, and one who only knocks.
    others.connect(server.address(), None, &["h2"]).await.unwrap_err();
    let mut plain = TcpStream::connect(server.address()).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    plain.shutdown().await.unwrap();
    plain.read_to_end(&mut Vec::new()).await.unwrap();
    drop(TcpStream::connect(server.address()).await.unwrap());
    let mut silent = TcpStream::connect(server.address()).await.unwrap();
    tokio::time::timeout(HANGS, silent.read_to_end(&mut Vec::new())).await.expect("it is kept").unwrap();

    let open = certificates.connect(server.address(), None, &["h2"]).await.unwrap();
    let connection = over(open).await;
    for token in [None, Some("Bearer onced_nobodys-secret")] {
        let origin = format!("https://{}", server.address()).parse().unwrap();
        let mut api = onced_client::v1::idempotency_service_client::IdempotencyServiceClient::with_origin(
            connection.clone(),
            origin,
        );
        let mut request = tonic::Request::new(LookupRequest::default());
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", MetadataValue::from_static(token));
        }
        assert_eq!(api.lookup(request).await.unwrap_err().code(), tonic::Code::Unauthenticated);
    }

    let counts = [("tls", 1.0), ("protocol", 2.0), ("silence", 1.0)];
    let all = |now: &Exposition| counts.iter().all(|(cause, count)| refused(now, cause) >= *count);
    let now = until(server.admin(), all).await;
    for (cause, count) in counts {
        assert_eq!(refused(&now, cause), count, "{cause}");
    }
    for reason in ["CREDENTIALS_MISSING", "CREDENTIALS_INVALID"] {
        assert_eq!(now.value(REFUSED_REQUESTS, &[&format!("error_type=\"{reason}\"")]), 1.0, "{reason}");
    }
    let log = std::fs::read_to_string(path("log")).unwrap();
    assert!(log.contains("it is not known who calls") && !log.contains("nobodys-secret"), "{log}");
}

#[tokio::test]
async fn the_end_of_the_certificate_that_is_shown_is_told_and_what_became_of_each_that_was_read() {
    const ENDS: [u64; 2] = [4_000_000_000, 4_100_000_000];
    let certificates = Certificates::new();
    let sign = |end| certificates.sign_until("server", "localhost", Duration::from_secs(end));
    sign(ENDS[0]);
    let mut command = onced();
    command.env("ONCED_TLS_CERT", certificates.path("server.crt"));
    command.env("ONCED_TLS_KEY", certificates.path("server.key"));
    let server = ServerProcess::start_as(command, "memory:");
    let certificate = ["part=\"certificate\""];
    let read = |now: &Exposition, result: &str| {
        now.value(RELOADS, &[certificate[0], &format!("result=\"{result}\"")])
    };
    let now = until(server.admin(), |now| {
        now.metrics.contains_key(CERTIFICATE_EXPIRY) && now.metrics.contains_key(RELOADS)
    });
    let now = now.await;
    assert_eq!(now.value(CERTIFICATE_EXPIRY, &[]), ENDS[0] as f64);
    assert_eq!((read(&now, "taken"), read(&now, "refused")), (0.0, 0.0));

    let key = std::fs::read(certificates.path("server.key")).unwrap();
    std::fs::write(certificates.path("server.key"), "nonsense").unwrap();
    let now = until(server.admin(), |now| read(now, "refused") > 0.0).await;
    assert_eq!((now.value(RELOAD_REFUSED, &certificate), now.value(RELOAD_REFUSED, &[])), (1.0, 1.0));
    assert_eq!(now.value(CERTIFICATE_EXPIRY, &[]), ENDS[0] as f64);

    std::fs::write(certificates.path("server.key"), key).unwrap();
    let now = until(server.admin(), |now| read(now, "taken") > 0.0).await;
    assert_eq!(now.value(RELOAD_REFUSED, &[]), 0.0);
    sign(ENDS[1]);
    until(server.admin(), |now| now.value(CERTIFICATE_EXPIRY, &[]) == ENDS[1] as f64).await;
}
