//! Who calls: what a server shows of itself, and what it asks of its callers. Beside the layers: it names none of
//! them but `record`.
//!
//! - `tls`: the server's certificate, and whose client certificates it takes.

pub mod tls;

use std::io;
use std::path::Path;

pub use tls::{ClientAuth, Serving, TlsFiles};

/// Why a file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {text}")]
pub struct Unusable {
    /// The key of the setting that names it.
    pub setting: &'static str,
    /// What is wrong, with its name.
    pub text: String,
}

impl Unusable {
    fn unread(setting: &'static str, file: &Path, error: &io::Error) -> Self {
        Self { setting, text: format!("cannot read {}: {error}", file.display()) }
    }

    fn of(setting: &'static str, file: &Path, why: impl std::fmt::Display) -> Self {
        Self { setting, text: format!("{} {why}", file.display()) }
    }
}
