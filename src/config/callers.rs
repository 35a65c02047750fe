//! What must hold of how callers come, and of the files that say so.

use std::path::{Path, PathBuf};

use super::check::Checks;
use super::{Config, Tls};
use crate::access::{ClientAuth, TlsFiles};
use crate::clock::wall_time;

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
        self.tls.files().into_iter().flat_map(|files| files.paths().map(Path::to_owned).collect::<Vec<_>>())
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
        match tls.files().map(|files| files.load(wall_time())) {
            Some(Ok((_, doubts))) => self.doubts.extend(doubts),
            Some(Err(unusable)) => self.refuse(unusable.setting, unusable.text),
            None => {}
        }
    }
}
