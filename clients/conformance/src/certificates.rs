//! Certificates, made for each run.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};

/// `NAME.crt` and `NAME.key` in a directory: `ca` and what it signed, which is `server`, for this machine, `stranger`, for
/// another one, and `caller`; and `other-ca`, which has signed nothing.
pub struct Certificates(PathBuf);

impl Certificates {
    pub fn make(dir: &Path) -> Result<Self> {
        let own = Self(dir.to_owned());
        std::fs::create_dir(&own.0)?;
        let ca = own.ca("ca")?;
        own.ca("other-ca")?;
        own.sign(&ca, "server", &["localhost", "127.0.0.1"], None)?;
        own.sign(&ca, "stranger", &["onced.example"], None)?;
        own.sign(&ca, "caller", &[], Some("spiffe://conformance/caller"))?;
        Ok(own)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Each CA has a name of its own: some libraries take a certificate for self-signed whose issuer is called as it is.
    fn ca(&self, name: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
        let mut params = named(CertificateParams::new(Vec::new())?, &format!("onced conformance {name}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        std::fs::write(self.path(&format!("{name}.crt")), ca.pem())?;
        Ok(ca)
    }

    fn sign(
        &self,
        ca: &CertifiedIssuer<'static, KeyPair>,
        name: &str,
        hosts: &[&str],
        uri: Option<&str>,
    ) -> Result<()> {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = named(CertificateParams::new(hosts)?, name);
        if let Some(uri) = uri {
            params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri)?));
        }
        let key = KeyPair::generate()?;
        std::fs::write(self.path(&format!("{name}.crt")), params.signed_by(&key, ca)?.pem())?;
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    }
}

fn named(mut params: CertificateParams, name: &str) -> CertificateParams {
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
