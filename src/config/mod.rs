//! The configuration: defaults < file < environment < flags.
//!
//! - `table`: every setting, with its meaning, default and bounds.
//! - `setting`, `form`, `list`: what a setting is, and how its value is written.
//! - `namespaces`: what holds in each namespace; `rules`: who may do what.
//! - `file`: TOML, read.
//! - `load`: all sources brought together; `check`, `callers`: what must hold between settings, and of their files.
//! - `reload`: what changes when it is read again.
//! - `problem`: what is wrong, and where.
//! - `print`: a configuration, and the reference of all settings, as text.

mod callers;
mod check;
mod file;
mod form;
mod list;
mod load;
mod namespaces;
mod print;
mod problem;
mod reload;
mod rules;
mod setting;
mod store_url;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;

pub use load::{Loaded, Sources};
pub use namespaces::Namespaces;
pub use print::reference;
pub use problem::{Origin, Problem, Problems};
pub use reload::Change;
pub use setting::{Reload, Setting};
pub use store_url::{StoreUrl, StoreUrlError};
pub use table::{Access, Calls, Config, Coordination, Etcd, Limits, Policy, Tls};

/// What is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}
