//! How servers are spoken to by TLS, who asks, and what to do where one or the other is refused.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::clock::Moment;
use crate::error::Error;

/// How old a token that was read from a file may be when it is sent.
const TOKEN_AGE: Duration = Duration::from_secs(5);

/// What a client shows of itself, and whom it trusts.
#[derive(Clone, Default)]
pub(crate) struct Access {
    /// The CA that signed the servers' certificates; those that the system trusts without one.
    pub ca: Option<PathBuf>,
    /// A certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    pub token: Option<TokenSource>,
    /// Whether a token may go over the network for all to read.
    pub token_in_plaintext: bool,
}

/// Where a token comes from.
#[derive(Clone)]
pub(crate) enum TokenSource {
    Text(String),
    File(PathBuf),
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { ca, identity, token, token_in_plaintext } = self;
        let mut shown = f.debug_struct("Access");
        shown.field("ca", ca).field("identity", identity).field("token", &token.is_some());
        shown.field("token_in_plaintext", token_in_plaintext).finish()
    }
}

impl Access {
    /// Whether anything here is for TLS.
    pub fn is_for_tls(&self) -> bool {
        self.ca.is_some() || self.identity.is_some()
    }

    /// What to connect by TLS with. The files are read now, and not again.
    ///
    /// # Errors
    /// If one of them cannot be read, or holds something else.
    pub fn tls(&self) -> Result<ClientTlsConfig, Error> {
        let tls = match &self.ca {
            Some(file) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read_pem(
                file,
                "CERTIFICATE",
                "no certificate",
            )?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        let Some((cert, key)) = &self.identity else { return Ok(tls) };
        let cert = read_pem(cert, "CERTIFICATE", "no certificate")?;
        Ok(tls.identity(Identity::from_pem(cert, read_pem(key, "PRIVATE KEY", "no private key")?)))
    }

    /// The token to send, if there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn bearer(&self, now: Moment) -> Result<Option<Bearer>, Error> {
        let Some(source) = self.token.clone() else { return Ok(None) };
        let header = match &source {
            TokenSource::Text(token) => header(token, "the token")?,
            TokenSource::File(file) => read_token(file)?,
        };
        Ok(Some(Bearer { source, held: Mutex::new(Held { header, read: now }) }))
    }
}

/// A token, read again from its file.
pub(crate) struct Bearer {
    source: TokenSource,
    held: Mutex<Held>,
}

struct Held {
    header: MetadataValue<Ascii>,
    read: Moment,
}

impl Bearer {
    /// What to send. The file is small and local: reading it holds nobody up.
    pub fn header(&self, now: Moment) -> MetadataValue<Ascii> {
        let mut held = self.lock();
        if now.since(held.read) >= TOKEN_AGE {
            self.read(&mut held, now);
        }
        held.header.clone()
    }

    /// After `sent` was refused: whether there is another token to try.
    pub fn renew(&self, sent: &MetadataValue<Ascii>, now: Moment) -> bool {
        let mut held = self.lock();
        self.read(&mut held, now);
        held.header != sent
    }

    fn read(&self, held: &mut Held, now: Moment) {
        let TokenSource::File(file) = &self.source else { return };
        held.read = now;
        match read_token(file) {
            Ok(header) => held.header = header,
            Err(error) => tracing::warn!(%error, "the token stays as it was"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_token(file: &Path) -> Result<MetadataValue<Ascii>, Error> {
    let text = fs::read_to_string(file).map_err(|error| cannot_read(file, &error))?;
    header(text.trim(), &file.display().to_string())
}

fn header(token: &str, what: &str) -> Result<MetadataValue<Ascii>, Error> {
    if token.is_empty() {
        return Err(Error::CredentialsInvalid(format!("{what} is empty, and is to be a token")));
    }
    let invalid =
        |_| Error::CredentialsInvalid(format!("{what} is to be a token: printable text on one line"));
    let mut header = MetadataValue::try_from(format!("Bearer {token}")).map_err(invalid)?;
    header.set_sensitive(true);
    Ok(header)
}

fn read_pem(file: &Path, label: &str, without: &str) -> Result<Vec<u8>, Error> {
    let text = fs::read(file).map_err(|error| cannot_read(file, &error))?;
    let end = format!("{label}-----");
    if !text.windows(end.len()).any(|part| part == end.as_bytes()) {
        return Err(Error::CredentialsInvalid(format!("{} holds {without} in PEM", file.display())));
    }
    Ok(text)
}

fn cannot_read(file: &Path, error: &std::io::Error) -> Error {
    Error::CredentialsInvalid(format!("cannot read {}: {error}", file.display()))
}

/// Whether a host is this machine, where nobody listens in between.
pub(crate) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.map_or(host == "localhost", |address| address.is_loopback())
}

/// Whether a connection failed with this text because nobody knows the name of the host.
pub(crate) fn is_unknown_host(text: &str) -> bool {
    text.contains("dns error") || text.contains("failed to lookup address")
}

/// What to do about a connection that failed with this text, where that is known and no later attempt would fare
/// better.
pub(crate) fn advice(text: &str, tls: bool) -> Option<&'static str> {
    let has = |part: &str| text.contains(part);
    if has("UnknownIssuer") || has("BadSignature") {
        Some("its certificate is signed by nobody who is trusted here: name its CA with --tls-ca (ca_file)")
    } else if has("not valid for name") || has("NotValidForName") {
        Some("its certificate is for other names: call it by one of them")
    } else if has("certificate expired") || has("not valid yet") {
        Some("renew the server's certificate, or set the clock of this machine right")
    } else if has("CaUsedAsEndEntity") {
        Some("its certificate is that of a CA: give the server one that a CA has signed for it")
    } else if has("CertificateRequired") {
        Some("it wants to see a certificate: name one with --tls-cert and --tls-key (identity_files)")
    } else if has("fatal alert: UnknownCA")
        || has("fatal alert: DecryptError")
        || has("fatal alert: BadCertificate")
        || has("fatal alert: CertificateUnknown")
    {
        Some("it does not take the certificate of this client: is that signed by the server's tls.client_ca?")
    } else if has("fatal alert: CertificateExpired") {
        Some("the certificate of this client has expired")
    } else if has("InvalidContentType") && tls {
        Some("it does not speak TLS there: write http:// in place of https://, or name the port that does")
    } else if has("speaks TLS only") || (has("FRAME_SIZE_ERROR") && !tls) {
        Some("it speaks TLS: write https:// in front of its address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(seconds))
    }

    #[test]
    fn a_token_is_read_again_when_it_is_old_or_refused() {
        let file = std::env::temp_dir().join(format!("onced-token-{}", uuid::Uuid::new_v4()));
        fs::write(&file, "one\n").unwrap();
        let access = Access { token: Some(TokenSource::File(file.clone())), ..Access::default() };
        let bearer = access.bearer(at(0)).unwrap().unwrap();
        let first = bearer.header(at(4));
        assert_eq!((first.to_str().unwrap(), first.is_sensitive()), ("Bearer one", true));
        assert!(!bearer.renew(&first, at(4)));
        fs::write(&file, "two").unwrap();
        assert_eq!(bearer.header(at(8)), "Bearer one");
        assert_eq!(bearer.header(at(9)), "Bearer two");
        assert!(bearer.renew(&first, at(9)), "another call has read it meanwhile");
        fs::write(&file, "three").unwrap();
        assert!(bearer.renew(&bearer.header(at(10)), at(10)));
        fs::remove_file(&file).unwrap();
        assert_eq!(bearer.header(at(100)), "Bearer three");
        assert!(access.bearer(at(0)).is_err_and(|error| error.to_string().contains("onced-token-")));
    }

    #[test]
    fn a_token_is_one_line_of_text_and_is_never_shown() {
        for wrong in ["", "a\nb", "\u{1}"] {
            assert!(header(wrong, "it").is_err(), "{wrong:?}");
        }
        let access = Access { token: Some(TokenSource::Text("hunter2".to_owned())), ..Access::default() };
        assert!(!format!("{access:?}").contains("hunter2"));
        assert!(!format!("{:?}", access.bearer(at(0)).unwrap().unwrap().header(at(0))).contains("hunter2"));
    }

    #[test]
    fn loopback_is_told_from_the_network() {
        for here in ["127.0.0.1", "127.9.9.9", "[::1]", "localhost"] {
            assert!(is_loopback(here), "{here}");
        }
        for there in ["10.0.0.1", "onced", "[2001:db8::1]", "0.0.0.0", "localhost.example.com"] {
            assert!(!is_loopback(there), "{there}");
        }
    }
}
