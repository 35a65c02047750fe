//! The files that a server speaks TLS by, made into what rustls takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{Error, RootCertStore, ServerConfig};
use webpki::{EndEntityCert, KeyUsage};

use super::{Unusable, both};
use crate::record::Timestamp;

/// What a connection must speak.
pub const ALPN: &[u8] = b"h2";
/// The settings of the server's certificate and of its key.
const OWN: (&str, &str) = ("tls.cert", "tls.key");
/// The setting of the CA that signs for callers.
const CLIENT_CA: &str = "tls.client_ca";
/// The settings of what TLS to etcd stands on.
const ETCD: (&str, &str) = ("etcd.cert", "etcd.key");
const ETCD_CA: &str = "etcd.ca";
/// How long before its end a certificate is warned of.
const SOON: Duration = Duration::from_secs(3 * 24 * 3_600);

/// Whether a caller must show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// There is no connection without one.
    #[default]
    Required,
    /// It may, and may show a token instead.
    Optional,
}

/// The words for it.
pub const CLIENT_AUTH: &[(&str, ClientAuth)] =
    &[("required", ClientAuth::Required), ("optional", ClientAuth::Optional)];

/// The files that TLS is spoken by, all in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of the server, those between it and its CA after it.
    pub cert: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
    /// The CA that signs the certificates of callers; none are asked for without one.
    pub client_ca: Option<PathBuf>,
    /// Whether callers must show one.
    pub client_auth: ClientAuth,
}

/// What rustls serves by.
pub type Serving = Arc<ServerConfig>;

/// What TLS is spoken by, with the certificate that callers are shown.
#[derive(Clone, Debug)]
pub struct Shown {
    /// All of it, for rustls.
    pub serving: Serving,
    file: PathBuf,
    cert: CertificateDer<'static>,
    own: CertifiedKey,
    trusted: Trusted,
}

/// Who signs the certificates of callers, and who looks at those; nobody where none are asked for.
#[derive(Clone, Debug)]
struct Trusted {
    roots: Arc<RootCertStore>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl Default for Trusted {
    fn default() -> Self {
        Self { roots: Arc::new(RootCertStore::empty()), verifier: None }
    }
}

impl Shown {
    /// When the certificate ends, in seconds since the epoch.
    pub fn ends(&self) -> Option<u64> {
        // Past any time that a certificate can name.
        const NEVER: Duration = Duration::from_secs(1 << 40);
        match complaint(&self.cert, NEVER) {
            Some(webpki::Error::CertExpired { not_after, .. }) => Some(not_after.as_secs()),
            Some(_) | None => None,
        }
    }

    /// Whether it takes the certificates of callers that the other one takes, and maybe more.
    pub fn trusts_all_of(&self, other: &Shown) -> bool {
        other.trusted.roots.roots.iter().all(|root| self.trusted.roots.roots.contains(root))
    }

    /// What to warn of at `now`.
    pub fn doubt(&self, now: Timestamp) -> Option<String> {
        let doubt = life(&self.cert, now).unwrap_or_else(Some)?;
        Some(format!("the certificate of this server, {}, {doubt}", self.file.display()))
    }
}

impl TlsFiles {
    /// Reads the files: what to serve by, and what to warn of at `now`.
    ///
    /// # Errors
    /// Each file that cannot be used.
    pub fn load(&self, now: Timestamp) -> Result<(Shown, Vec<String>), Vec<Unusable>> {
        let provider = Arc::new(ring::default_provider());
        let own = certified(OWN, &self.cert, &self.key, now, &provider);
        let (own, trusted) = both(own, self.trusted(&provider))?;
        let shown = self.shown(own, trusted, provider)?;
        let doubts = shown.doubt(now).into_iter().collect();
        Ok((shown, doubts))
    }

    /// The same where a server runs. Of the certificate and its key, or of the CA, that counts which was there before, if
    /// the file cannot be used: it comes with why, and holds up nothing else.
    pub fn renew(&self, now: Timestamp, before: &Shown) -> (Shown, Vec<String>, Vec<Unusable>) {
        let provider = Arc::new(ring::default_provider());
        let mut unusable = Vec::new();
        let own = certified(OWN, &self.cert, &self.key, now, &provider).unwrap_or_else(|why| {
            unusable.extend(why);
            before.own.clone()
        });
        let trusted = self.trusted(&provider).unwrap_or_else(|why| {
            unusable.push(why);
            before.trusted.clone()
        });
        let shown = self.shown(own, trusted, provider).unwrap_or_else(|why| {
            unusable.push(why);
            before.clone()
        });
        let doubts = shown.doubt(now).into_iter().collect();
        (shown, doubts, unusable)
    }

    fn shown(
        &self,
        own: CertifiedKey,
        trusted: Trusted,
        provider: Arc<CryptoProvider>,
    ) -> Result<Shown, Unusable> {
        let cert = own.cert.first().cloned();
        let cert = cert.ok_or_else(|| Unusable::of(OWN.0, &self.cert, "holds no certificate"))?;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Unusable::of(OWN.0, &self.cert, format!("cannot be served: {error}")))?;
        let builder = match trusted.verifier.clone() {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        if self.client_ca.is_some() {
            // A session that is resumed has the certificate of the first one, which nobody looks at again.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Shown { serving: Arc::new(config), file: self.cert.clone(), cert, own, trusted })
    }

    fn trusted(&self, provider: &Arc<CryptoProvider>) -> Result<Trusted, Unusable> {
        let Some(file) = &self.client_ca else { return Ok(Trusted::default()) };
        let roots = Arc::new(roots(CLIENT_CA, file)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider));
        let verifier = match self.client_auth {
            ClientAuth::Required => verifier,
            ClientAuth::Optional => verifier.allow_unauthenticated(),
        };
        let cannot = |error| Unusable::of(CLIENT_CA, file, format!("cannot be used: {error}"));
        Ok(Trusted { roots, verifier: Some(verifier.build().map_err(cannot)?) })
    }

    /// All of them.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.cert, &self.key].into_iter().chain(&self.client_ca).map(PathBuf::as_path)
    }
}

/// Checks the files that TLS with etcd stands on, as a client's: those that cannot be used, and what to warn of at `now`.
pub fn check_for_etcd(
    ca: Option<&Path>,
    cert: Option<&Path>,
    key: Option<&Path>,
    now: Timestamp,
) -> (Vec<Unusable>, Vec<String>) {
    let (mut unusable, mut doubts) = (Vec::new(), Vec::new());
    match ca.map(|file| (file, certificates(ETCD_CA, file))) {
        Some((file, Ok(found))) => {
            // As its client takes them: those of a bundle that it cannot use are left out.
            let (taken, left) = RootCertStore::empty().add_parsable_certificates(found);
            if taken == 0 {
                unusable.push(Unusable::of(ETCD_CA, file, "holds no certificate that can be used"));
            } else if left > 0 {
                doubts.push(format!("{} holds {left} certificates that cannot be used", file.display()));
            }
        }
        Some((_, Err(why))) => unusable.push(why),
        None => {}
    }
    match (cert, key) {
        (Some(cert), Some(key)) => match certified(ETCD, cert, key, now, &ring::default_provider()) {
            Ok(own) => {
                let doubt = own.cert.first().and_then(|own| life(own, now).unwrap_or_else(Some));
                let told = |doubt| format!("the certificate for etcd, {}, {doubt}", cert.display());
                doubts.extend(doubt.map(told));
            }
            Err(more) => unusable.extend(more),
        },
        // One without the other is told of elsewhere.
        (cert, key) => {
            unusable.extend(cert.and_then(|file| certificates(ETCD.0, file).err()));
            unusable.extend(key.and_then(|file| read(ETCD.1, file).err()));
        }
    }
    (unusable, doubts)
}

/// A certificate, with those between it and its CA, and its key; the settings name the one and the other.
fn certified(
    (of_cert, of_key): (&'static str, &'static str),
    cert: &Path,
    key: &Path,
    now: Timestamp,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Vec<Unusable>> {
    let refuse_cert = |why: String| Unusable::of(of_cert, cert, why);
    let refuse_key = |why: String| Unusable::of(of_key, key, why);
    let chain = certificates(of_cert, cert).and_then(|chain| match chain.first().map(|own| life(own, now)) {
        Some(Err(why)) => Err(refuse_cert(format!("holds a certificate that {why}"))),
        Some(Ok(_)) | None => Ok(chain),
    });
    let private = read(of_key, key).and_then(|text| {
        PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
            PemError::NoItemsFound => {
                refuse_key("holds no private key in PEM, or an encrypted one".to_owned())
            }
            error => refuse_key(no_pem(&error)),
        })
    });
    let (chain, private) = both(chain, private)?;
    let own = CertifiedKey::from_der(chain, private, provider).map_err(|error| match error {
        Error::InconsistentKeys(_) => {
            refuse_key(format!("is not the key of the certificate in {}", cert.display()))
        }
        Error::InvalidCertificate(error) => {
            refuse_cert(format!("holds a certificate that is none: {error}"))
        }
        error => refuse_key(format!(
            "holds a key that cannot be used: it may be RSA of 2048 bits or more, P-256, P-384 or Ed25519: {error}"
        )),
    })?;
    Ok(own)
}

fn read(setting: &'static str, file: &Path) -> Result<Vec<u8>, Unusable> {
    fs::read(file).map_err(|error| Unusable::unread(setting, file, &error))
}

/// The certificates of a file, at least one.
fn certificates(setting: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let text = read(setting, file)?;
    let found = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| Unusable::of(setting, file, no_pem(&error)))?;
    if found.is_empty() {
        return Err(Unusable::of(setting, file, "holds no certificate in PEM"));
    }
    Ok(found)
}

/// In words of ours: those of the error may quote the file, which may be a key.
fn no_pem(error: &PemError) -> String {
    match error {
        PemError::MissingSectionEnd { .. } => "is cut off: a part of it has no end",
        PemError::IllegalSectionStart { .. } => {
            "is no PEM: the line that begins a part has no end of its own"
        }
        PemError::Base64Decode(_) => "is no PEM: a part of it is no base64",
        _ => "is no PEM",
    }
    .to_owned()
}

fn roots(setting: &'static str, file: &Path) -> Result<RootCertStore, Unusable> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(setting, file)? {
        let why = |error| Unusable::of(setting, file, format!("holds a certificate that is none: {error}"));
        roots.add(cert).map_err(why)?;
    }
    Ok(roots)
}

/// What to say of the time of a certificate. One that is not valid yet comes to be by itself, and it may be this machine's
/// clock that is wrong, so it is served.
///
/// # Errors
/// If it is over: then it is worth nothing to anybody.
fn life(cert: &CertificateDer<'_>, now: Timestamp) -> Result<Option<String>, String> {
    let day = |time: UnixTime| {
        let at = std::time::UNIX_EPOCH + Duration::from_secs(time.as_secs());
        humantime::format_rfc3339_seconds(at).to_string()
    };
    let now = Duration::from_micros(u64::try_from(now.as_micros()).unwrap_or(0));
    match complaint(cert, now) {
        Some(webpki::Error::CertExpired { not_after, .. }) => {
            return Err(format!("has expired at {}", day(not_after)));
        }
        Some(webpki::Error::InvalidCertValidity) => {
            return Err("ends before it begins".to_owned());
        }
        Some(webpki::Error::CertNotValidYet { not_before, .. }) => {
            let from = day(not_before);
            return Ok(Some(format!("is not valid before {from}: callers will refuse it until then")));
        }
        Some(_) | None => {}
    }
    match complaint(cert, now + SOON) {
        Some(webpki::Error::CertExpired { not_after, .. }) => {
            Ok(Some(format!("expires at {}", day(not_after))))
        }
        Some(_) | None => Ok(None),
    }
}

/// What is wrong with a certificate at a time since the epoch. webpki looks at the time before anything else; whether there
/// is anybody to trust is not asked here.
fn complaint(cert: &CertificateDer<'_>, at: Duration) -> Option<webpki::Error> {
    let cert = EndEntityCert::try_from(cert).ok()?;
    let at = UnixTime::since_unix_epoch(at);
    cert.verify_for_usage(&[], &[], &[], at, KeyUsage::server_auth(), None, None).err()
}
