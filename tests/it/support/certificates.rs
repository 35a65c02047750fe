//! Certificates, made by the test that needs them, and connections that show them.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, SupportedProtocolVersion};

/// What a handshake starts with: the head of a record that never comes whole.
pub const HALF_A_HELLO: [u8; 9] = [0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc];

/// A CA of the test's own, and what it signed: `NAME.crt` and `NAME.key` in a directory.
pub struct Certificates {
    directory: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let own = Self { directory: tempfile::tempdir().unwrap(), ca };
        std::fs::write(own.path("ca.crt"), own.ca.pem()).unwrap();
        std::fs::write(own.path("ca.key"), own.ca.key().serialize_pem()).unwrap();
        own
    }

    /// A CA, and the certificate of a server on this machine.
    pub fn for_a_server() -> Self {
        let own = Self::new();
        own.sign("server", &["localhost", "127.0.0.1"]);
        own
    }

    /// Signs a certificate for hosts.
    pub fn sign(&self, name: &str, hosts: &[&str]) {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        self.write(name, CertificateParams::new(hosts).unwrap());
    }

    /// Signs a certificate for an URI and hosts.
    pub fn sign_uri(&self, name: &str, uri: &str, hosts: &[&str]) {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri).unwrap()));
        self.write(name, params);
    }

    /// Signs a certificate for a host that was valid in one year.
    pub fn sign_for_year(&self, name: &str, host: &str, year: i32) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(year, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 12, 31);
        self.write(name, params);
    }

    /// Signs a certificate for a host that ends at a time since the epoch.
    pub fn sign_until(&self, name: &str, host: &str, end: Duration) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + end;
        self.write(name, params);
    }

    fn write(&self, name: &str, params: CertificateParams) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        std::fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same, as an argument.
    pub fn arg(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn ca(&self) -> PathBuf {
        self.path("ca.crt")
    }

    pub fn identity(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")))
    }

    /// A connection by TLS to a server of this CA's, by ALPN for these protocols.
    pub async fn connect(
        &self,
        server: SocketAddr,
        identity: Option<(PathBuf, PathBuf)>,
        alpn: &[&str],
    ) -> io::Result<TlsStream<TcpStream>> {
        Self::connect_as(&self.client(identity, alpn, rustls::ALL_VERSIONS), server).await
    }

    /// Another connection as the same client, which may resume a session.
    pub async fn connect_as(
        client: &Arc<ClientConfig>,
        server: SocketAddr,
    ) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(server).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::clone(client)).connect(name, stream).await
    }

    /// A client of servers of this CA's.
    pub fn client(
        &self,
        identity: Option<(PathBuf, PathBuf)>,
        alpn: &[&str],
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let cert = CertificateDer::from_pem_file(cert).unwrap();
                builder.with_client_auth_cert(vec![cert], PrivateKeyDer::from_pem_file(key).unwrap()).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|alpn| alpn.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}
