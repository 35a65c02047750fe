//! Who calls.

use std::fmt;
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use crate::record::Timestamp;

/// How the ids of workloads begin, as SPIFFE has them.
const SPIFFE: &str = "spiffe://";
/// The longest name.
const NAME_MAX_BYTES: usize = 512;

/// Who calls, as it was shown: by the names that rules may be about. Each tells by how it begins in what way it was
/// shown, so that none can be had in another way.
#[derive(Clone, PartialEq, Eq)]
pub struct Caller {
    names: Arc<[String]>,
    /// Until when it holds.
    pub until: Option<Timestamp>,
    /// The token that was shown, a secret, and the version of the gate that took it; nothing if it was a certificate.
    pub(super) shown: Option<(Arc<str>, u64)>,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller")
            .field("names", &self.names)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

impl Caller {
    /// Who a certificate is for, once that was verified: the SPIFFE id, else the DNS names; `None` if it has neither, or
    /// several SPIFFE ids.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = EndEntityCert::try_from(certificate).ok()?;
        let ids: Vec<&str> = certificate.valid_uri_names().filter(|uri| uri.starts_with(SPIFFE)).collect();
        let names: Vec<String> = match ids.as_slice() {
            [] => certificate
                .valid_dns_names()
                .map(|name| format!("dns:{}", name.to_ascii_lowercase()))
                .collect(),
            [id] => vec![(*id).to_owned()],
            // SPIFFE allows one.
            [_, _, ..] => return None,
        };
        let can_be_read = !names.is_empty() && names.iter().all(|name| is_readable(name));
        can_be_read.then(|| Self::named(names, None))
    }

    /// Who has a token of the server's own.
    pub fn of_token(name: &str) -> Self {
        Self::named(vec![format!("token:{name}")], None)
    }

    /// Whom a JWT is about; `None` if that is no name.
    pub fn of_jwt(subject: &str, until: Timestamp) -> Option<Self> {
        let named = !subject.is_empty() && is_readable(subject);
        named.then(|| Self::named(vec![format!("jwt:{subject}")], Some(until)))
    }

    fn named(names: Vec<String>, until: Option<Timestamp>) -> Self {
        Self { names: names.into(), until, shown: None }
    }

    /// Its names, at least one.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }
}

/// Names are shown to people and logged.
fn is_readable(name: &str) -> bool {
    name.len() <= NAME_MAX_BYTES && !name.chars().any(char::is_control)
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::string::Ia5String;
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn named(uris: &[&str], hosts: &[&str]) -> Option<String> {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        let uris = uris.iter().map(|&uri| SanType::URI(Ia5String::try_from(uri).unwrap()));
        params.subject_alt_names.extend(uris);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Caller::of_certificate(certificate.der()).map(|caller| caller.to_string())
    }

    #[test]
    fn a_certificate_names_its_spiffe_id_or_else_its_hosts() {
        let told = |name: &str| Some(name.to_owned());
        assert_eq!(named(&["spiffe://prod/orders"], &["orders.example"]), told("spiffe://prod/orders"));
        assert_eq!(
            named(&["https://x.example/"], &["A.example", "b.example"]),
            told("dns:a.example, dns:b.example")
        );
        assert_eq!(named(&[], &["*.example.com"]), told("dns:*.example.com"));
        assert_eq!(named(&["spiffe://a/x", "spiffe://b/y"], &["a.example"]), None);
        assert_eq!(named(&["spiffe://a/\u{7}"], &[]), None);
        assert_eq!(named(&[], &["127.0.0.1"]), None);
        assert_eq!(named(&[], &[]), None);
    }
}
