//! What must hold of how callers come, and of the files that say so.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::check::Checks;
use super::rules::table_of;
use super::{Config, Tls};
use crate::access::{ClientAuth, Gate, Issuer, TlsFiles, Tokens, Unusable, both};
use crate::clock::wall_time;

/// How callers can show who they are.
const WAYS: &str = "tls.client_ca, access.tokens or access.jwks";

impl Tls {
    /// The files to speak TLS by, if it is spoken.
    pub fn files(&self) -> Option<TlsFiles> {
        let (Some(cert), Some(key)) = (self.cert.clone(), self.key.clone()) else { return None };
        Some(TlsFiles { cert, key, client_ca: self.client_ca.clone(), client_auth: self.client_auth })
    }
}

impl Config {
    /// The files that are read again when they change.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        let of_tls = self.tls.files().into_iter();
        let of_tls = of_tls.flat_map(|files| files.paths().map(Path::to_owned).collect::<Vec<_>>());
        of_tls.chain([&self.access.tokens, &self.access.jwks].into_iter().flatten().cloned())
    }

    /// What is asked of callers, as the files have it now.
    ///
    /// # Errors
    /// Each that cannot be used.
    pub fn gate(&self) -> Result<Gate, Vec<Unusable>> {
        let (tokens, issuer) = both(self.tokens(), self.issuer())?;
        Ok(self.gate_of(tokens.map(Arc::new), issuer.map(Arc::new)))
    }

    /// What the files hold where a server runs. Of one that cannot be used, or has lost all its tokens, that counts which
    /// was there before: it comes with why, and holds up nothing else.
    pub fn renew(&self, before: &Gate) -> (Option<Arc<Tokens>>, Option<Arc<Issuer>>, Vec<Unusable>) {
        let mut unusable = Vec::new();
        let tokens = self.tokens().and_then(|tokens| match (&self.access.tokens, &tokens) {
            (Some(file), Some(now)) if now.is_empty() && before.has_tokens() => Err(Tokens::lost(file)),
            _ => Ok(tokens),
        });
        let tokens = tokens.map_or_else(
            |why| {
                unusable.push(why);
                before.tokens.clone()
            },
            |tokens| tokens.map(Arc::new),
        );
        let issuer = self.issuer().map_or_else(
            |why| {
                unusable.push(why);
                before.issuer.clone()
            },
            |issuer| issuer.map(Arc::new),
        );
        (tokens, issuer, unusable)
    }

    fn tokens(&self) -> Result<Option<Tokens>, Unusable> {
        self.access.tokens.as_deref().map(Tokens::load).transpose()
    }

    /// Its name and audience are checked to be there elsewhere.
    fn issuer(&self) -> Result<Option<Issuer>, Unusable> {
        let text = |setting: &Option<String>| setting.clone().unwrap_or_default();
        let (name, audience) = (text(&self.access.jwt_issuer), text(&self.access.jwt_audience));
        self.access.jwks.as_deref().map(|keys| Issuer::load(keys, &name, &audience)).transpose()
    }

    /// What is asked of callers by these settings, with what files hold.
    pub fn gate_of(&self, tokens: Option<Arc<Tokens>>, issuer: Option<Arc<Issuer>>) -> Gate {
        Gate {
            certificates: self.takes_certificates(),
            tokens,
            issuer,
            rules: Arc::new(self.rules.clone()),
            open_reflection: self.access.open_reflection,
            version: Gate::next_version(),
        }
    }

    fn takes_certificates(&self) -> bool {
        self.tls.files().is_some_and(|files| files.client_ca.is_some())
    }

    /// Whether callers can show who they are.
    fn knows_callers(&self) -> bool {
        self.takes_certificates() || self.access.tokens.is_some() || self.access.jwks.is_some()
    }
}

impl Checks<'_> {
    pub(super) fn tls(&mut self, config: &Config) {
        let tls = &config.tls;
        match (&tls.cert, &tls.key) {
            (Some(_), None) => self.refuse("tls.cert", "needs its key: set tls.key, too"),
            (None, Some(_)) => self.refuse("tls.key", "needs its certificate: set tls.cert, too"),
            (None, None) if tls.client_ca.is_some() => {
                self.refuse("tls.client_ca", "is for TLS: set tls.cert and tls.key, too");
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        if tls.client_auth == ClientAuth::Optional && tls.client_ca.is_none() {
            self.refuse("tls.client_auth", "is for client certificates: set tls.client_ca, too");
        }
    }

    /// What the files hold that callers are known by.
    pub(super) fn access_files(&mut self, config: &Config) {
        match config.tls.files().map(|files| files.load(wall_time())) {
            Some(Ok((_, doubts))) => self.doubts.extend(doubts),
            Some(Err(unusable)) => self.refuse_files(unusable),
            None => {}
        }
        match (config.gate(), &config.access.tokens) {
            (Ok(gate), Some(file)) if !gate.has_tokens() => {
                self.doubts.push(format!("{} holds no token, so nobody can show one", file.display()));
            }
            (Ok(_), _) => {}
            (Err(unusable), _) => self.refuse_files(unusable),
        }
    }

    pub(super) fn access(&mut self, config: &Config) {
        let access = &config.access;
        for (key, set) in
            [("access.jwt_issuer", &access.jwt_issuer), ("access.jwt_audience", &access.jwt_audience)]
        {
            match (&access.jwks, set) {
                (Some(_), None) => {
                    self.refuse(
                        "access.jwks",
                        format!("takes JWTs of one issuer, for one audience: set {key}, too"),
                    );
                }
                (None, Some(_)) => self.refuse(key, "is for JWTs: set access.jwks, too"),
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        let near = config.listen.ip().is_loopback();
        let takes = [("access.tokens", &access.tokens), ("access.jwks", &access.jwks)];
        for (key, _) in takes.into_iter().filter(|(_, file)| file.is_some()) {
            if config.tls.cert.is_none() && !near && !access.allow_tokens_in_plaintext {
                let text = format!(
                    "tokens would come to {} without TLS, for all to read: set tls.cert and tls.key, or \
                     access.allow_tokens_in_plaintext",
                    config.listen
                );
                self.refuse(key, text);
            }
        }
        let known = config.knows_callers();
        if known && config.rules.is_empty() {
            let text =
                "there are no access.rules: whoever shows who they are may do anything in every namespace";
            self.doubts.push(text.to_owned());
        }
        if !known && config.rules.is_empty() && !near {
            self.doubts.push(format!(
                "whoever reaches {} may do anything there: set {WAYS}, and access.rules",
                config.listen
            ));
        }
        if known && config.tls.cert.is_none() && !near {
            self.doubts.push(format!("tokens come to {} without TLS, for all to read", config.listen));
        }
    }

    pub(super) fn refuse_files(&mut self, unusable: Vec<Unusable>) {
        for Unusable { setting, text } in unusable {
            self.refuse(setting, text);
        }
    }

    pub(super) fn rules(&mut self, config: &Config) {
        let Config { tls, access, .. } = config;
        let known = tls.client_ca.is_some() || access.tokens.is_some() || access.jwks.is_some();
        if let (false, Some(name)) = (known, config.rules.keys().next()) {
            let key = format!("{}.identities", table_of(name));
            self.refuse(&key, format!("nobody could show who they are: set {WAYS}, too"));
        }
    }
}
