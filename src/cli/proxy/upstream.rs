//! The service behind: its address, and the connections to it.

use std::fmt;
use std::io::{self, IoSlice};
use std::path::Path;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tower::{BoxError, Service};

use super::body::Sent;
use super::writing::Writing;

/// What is spoken by TLS.
const ALPN: &[u8] = b"http/1.1";

/// How often the system asks whether a silent connection is still there.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

/// A client of the service behind.
pub type Pool = Client<Connector, Sent>;

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    scheme: Scheme,
    authority: Authority,
    /// What goes before the path of each request: empty, or with a slash at its start and none at its end.
    base: String,
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "write http://HOST:PORT or https://HOST:PORT";
        let uri: Uri = text.parse().map_err(|error| format!("{error}; {FORM}"))?;
        let parts = uri.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(FORM.to_owned());
        };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err(format!("{scheme} is not spoken; {FORM}"));
        }
        if authority.as_str().contains('@') {
            return Err(
                "it holds a user or a password, which would be sent nowhere; leave them out".to_owned()
            );
        }
        if authority.host().is_empty() {
            return Err(FORM.to_owned());
        }
        let path = parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        if path.query().is_some() || text.contains('#') {
            return Err("it may have a path, and neither a query nor a fragment".to_owned());
        }
        let base = path.path().trim_end_matches('/').to_owned();
        Ok(Self { scheme, authority, base })
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.base)
    }
}

impl Upstream {
    /// Where a request for `path` goes.
    ///
    /// # Errors
    /// If both together are too long.
    pub fn uri(&self, path: &PathAndQuery) -> Result<Uri, http::Error> {
        let builder = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone());
        if self.base.is_empty() {
            return builder.path_and_query(path.clone()).build();
        }
        builder.path_and_query(format!("{}{path}", self.base)).build()
    }

    /// What the service behind is called by, for its Host header.
    pub fn host(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(self.authority.as_str()).ok()
    }

    /// Whether it is reached by this address, as far as that can be told without asking anybody.
    pub fn is_at(&self, address: std::net::SocketAddr) -> bool {
        self.authority.as_str().parse() == Ok(address)
    }
}

/// How connections are made and kept.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    /// How long one may take to be made, TLS included.
    pub connect: Duration,
    /// How long the upstream may read nothing of what it gets.
    pub write: Duration,
    /// How long one is kept that nothing uses; zero: none is used twice.
    pub idle: Duration,
}

/// A client of `upstream`. It connects when it is first used.
///
/// # Errors
/// If there is nothing to know the upstream's certificate by.
pub fn pool(upstream: &Upstream, ca: Option<&Path>, connections: Connections) -> Result<Pool, String> {
    let tls = match upstream.scheme == Scheme::HTTPS {
        true => Some(Tls::new(upstream, ca)?),
        false if ca.is_some() => return Err("--upstream-ca is for an upstream with https://".to_owned()),
        false => None,
    };
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(TCP_KEEPALIVE));
    let mut builder = Client::builder(TokioExecutor::new());
    builder.timer(TokioTimer::new()).pool_timer(TokioTimer::new()).set_host(false);
    match connections.idle.is_zero() {
        true => builder.pool_max_idle_per_host(0),
        false => builder.pool_idle_timeout(connections.idle),
    };
    Ok(builder.build(Connector { tcp, tls, limits: connections }))
}

/// What it takes to speak TLS with the upstream.
#[derive(Clone)]
struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    fn new(upstream: &Upstream, ca: Option<&Path>) -> Result<Self, String> {
        let roots = match ca {
            Some(file) => roots_of(file)?,
            None => system_roots()?,
        };
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be spoken: {error}"))?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let host = upstream.authority.host().trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| format!("{host} is no name that a certificate can be for"))?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }
}

fn roots_of(file: &Path) -> Result<RootCertStore, String> {
    let wrong = |error: &dyn fmt::Display| format!("{} cannot be used as a CA: {error}", file.display());
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))? {
        roots.add(cert.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
    }
    if roots.is_empty() {
        return Err(wrong(&"it holds no certificate in PEM"));
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    // Some that every system has are of no use to rustls.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(
            "this system trusts no CA that can be used; name that of the upstream with --upstream-ca"
                .to_owned(),
        );
    }
    Ok(roots)
}

/// Makes connections to the upstream, by TLS if it has to be.
#[derive(Clone)]
pub struct Connector {
    tcp: HttpConnector,
    tls: Option<Tls>,
    limits: Connections,
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Stream, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, tls) = (self.tcp.call(uri), self.tls.clone());
        let Connections { connect: limit, write, .. } = self.limits;
        let connected = async move {
            let tcp = Writing::new(connecting.await?.into_inner(), write);
            let Some(Tls { connector, name }) = tls else { return Ok(Stream(Box::new(TokioIo::new(tcp)))) };
            let stream = connector.connect(name, tcp).await?;
            Ok::<_, BoxError>(Stream(Box::new(TokioIo::new(stream))))
        };
        async move {
            let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {limit:?}"));
            tokio::time::timeout(limit, connected).await.unwrap_or_else(|_| Err(late().into()))
        }
        .boxed()
    }
}

/// The bytes of a connection, TLS taken off.
trait Bytes: Read + Write + Send + Unpin {}

impl<S: Read + Write + Send + Unpin> Bytes for S {}

/// A connection to the upstream.
pub struct Stream(Box<dyn Bytes>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(context, into)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write_vectored(context, pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(upstream: &str, path: &str) -> String {
        let upstream: Upstream = upstream.parse().unwrap();
        upstream.uri(&path.parse().unwrap()).unwrap().to_string()
    }

    #[test]
    fn paths_and_queries_arrive_as_they_came_behind_the_path_of_the_upstream() {
        assert_eq!(uri("http://shop:8080", "/orders?a=%20b&c"), "http://shop:8080/orders?a=%20b&c");
        assert_eq!(uri("https://shop/", "/a//b/../c"), "https://shop/a//b/../c");
        assert_eq!(uri("http://[::1]:80/api/", "/orders/"), "http://[::1]:80/api/orders/");
    }

    #[test]
    fn what_is_no_upstream_is_told_so_with_the_form() {
        for wrong in [
            "",
            "shop",
            "shop:8080",
            "/orders",
            "ftp://shop",
            "http://",
            "http://me:pw@shop",
            "http://shop?x",
            "http://shop/#x",
        ] {
            let told = wrong.parse::<Upstream>().expect_err(wrong);
            assert!(
                told.contains("write http") || told.contains("leave") || told.contains("neither"),
                "{told}"
            );
        }
    }
}
