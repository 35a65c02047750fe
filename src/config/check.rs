//! What must hold between settings, and of the files that they name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::form::time;
use super::problem::{Origin, Problem};
use super::{Config, Policy, Secret, Setting, StoreUrl};
use crate::access::tls;
use crate::clock::wall_time;

/// The variable that holds the password of the etcd user, if no file does.
pub const PASSWORD_VARIABLE: &str = "ONCED_ETCD_PASSWORD";
/// What surrounds an outcome in the largest request.
const AROUND_OUTCOME_BYTES: usize = 16 << 10;

/// Whether the files that settings name are looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// All of them.
    Read,
    /// None. A running server takes what they hold now each by itself: one that cannot be used, or hangs, is not to be in
    /// the way of anything else.
    Leave,
}

/// Notes what does not fit together, and reads the password. What looks like a mistake and need not be one comes back.
pub fn check(
    config: &mut Config,
    origins: &BTreeMap<String, Origin>,
    variable: impl Fn(&str) -> Option<String>,
    files: Files,
    problems: &mut Vec<Problem>,
) -> Vec<String> {
    let mut checks = Checks { origins, problems, doubts: Vec::new() };
    checks.tls(config);
    checks.access(config);
    if files == Files::Read {
        checks.access_files(config);
        checks.etcd_files(config);
    }
    checks.etcd_is_meant(config);
    checks.certificates(config);
    checks.ports(config);
    checks.together(config);
    config.etcd_password = checks.password(config, variable, files);
    checks.doubts
}

/// What does not fit together in a configuration of which a part is new, and the rest is in force until a restart.
pub fn check_mixed(config: &mut Config, origins: &BTreeMap<String, Origin>) -> Vec<Problem> {
    let mut problems = Vec::new();
    Checks { origins, problems: &mut problems, doubts: Vec::new() }.together(config);
    for problem in &mut problems {
        problem.text = format!("{}; what was changed there takes a restart", problem.text);
    }
    problems
}

pub(super) struct Checks<'a> {
    origins: &'a BTreeMap<String, Origin>,
    problems: &'a mut Vec<Problem>,
    pub(super) doubts: Vec<String>,
}

impl Checks<'_> {
    fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    pub(super) fn refuse(&mut self, key: &str, text: impl Into<String>) {
        let origin = self.origin(key);
        self.problems.push(Problem::new(origin, key, text));
    }

    /// What settings that can change under a running server need of others.
    fn together(&mut self, config: &mut Config) {
        self.limits(config);
        self.rules(config);
        self.policy("defaults", &config.namespaces.defaults);
        for (table, policy) in config.namespaces.tables() {
            self.policy(&table, policy);
        }
    }

    fn ports(&mut self, config: &Config) {
        if config.admin_listen == Some(config.listen) && config.listen.port() != 0 {
            self.refuse("admin_listen", format!("{} is where calls come: see listen", config.listen));
        }
    }

    /// Who says how to reach etcd means to use it.
    fn etcd_is_meant(&mut self, config: &mut Config) {
        if self.problems.iter().any(|problem| problem.key == "store") {
            // It is not known which store is meant.
            return;
        }
        let tls = match &config.store {
            StoreUrl::Etcd { tls, .. } => Some(*tls),
            StoreUrl::File(_) | StoreUrl::Memory => None,
        };
        let store = config.store.clone();
        let mut defaults = Config::default();
        let both = config.settings().into_iter().zip(defaults.settings());
        for (Setting { key, .. }, _) in both.filter(|(setting, default)| setting.show() != default.show()) {
            if !key.starts_with("etcd.") {
                continue;
            }
            let text = match tls {
                None => format!("is for a store in etcd, but the store is {store}"),
                Some(false) if ["etcd.ca", "etcd.cert", "etcd.key"].contains(&key.as_str()) => {
                    format!("is for TLS, but the store is {store}: write etcds://")
                }
                Some(_) => continue,
            };
            self.refuse(&key, text);
        }
    }

    fn certificates(&mut self, config: &Config) {
        let etcd = &config.etcd;
        match (&etcd.cert, &etcd.key) {
            (Some(_), None) => self.refuse("etcd.cert", "needs its key: set etcd.key, too"),
            (None, Some(_)) => self.refuse("etcd.key", "needs its certificate: set etcd.cert, too"),
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    /// The files to speak TLS with etcd by: it reads them itself for each connection.
    fn etcd_files(&mut self, config: &Config) {
        let etcd = &config.etcd;
        let [ca, cert, key] = [&etcd.ca, &etcd.cert, &etcd.key].map(Option::as_deref);
        let (unusable, doubts) = tls::check_for_etcd(ca, cert, key, wall_time());
        self.doubts.extend(doubts);
        self.refuse_files(unusable);
    }

    /// The password in a file, or else in the environment: command lines are there for all to see. A running server has
    /// it, and needs a restart to take another one: it does not look into the file, which may be where reading hangs.
    fn password(
        &mut self,
        config: &Config,
        variable: impl Fn(&str) -> Option<String>,
        files: Files,
    ) -> Option<Secret> {
        let Some(file) = &config.etcd.password_file else {
            config.etcd.user.as_ref()?;
            let password = variable(PASSWORD_VARIABLE);
            if password.is_none() {
                let text = format!(
                    "needs a password: name a file that holds it with etcd.password_file, or set \
                     {PASSWORD_VARIABLE}"
                );
                self.refuse("etcd.user", text);
            }
            return password.map(Secret);
        };
        if config.etcd.user.is_none() {
            self.refuse("etcd.password_file", "needs the name of the user: set etcd.user, too");
        }
        if files == Files::Leave {
            return None;
        }
        let refused = match fs::read_to_string(file) {
            Err(error) => cannot_read(file, &error),
            Ok(text) => match text.trim_end_matches(['\r', '\n']) {
                "" => format!("{} is to hold the password, and is empty", file.display()),
                password => return Some(Secret(password.to_owned())),
            },
        };
        self.refuse("etcd.password_file", refused);
        None
    }

    fn policy(&mut self, table: &str, policy: &Policy) {
        let pairs = [
            ("lock_ttl", policy.lock_ttl, "max_lock_ttl", policy.max_lock_ttl),
            ("retention", policy.retention, "max_retention", policy.max_retention),
        ];
        for (default, value, most, bound) in pairs.into_iter().filter(|(_, value, _, bound)| value > bound) {
            let [default, most] = [default, most].map(|name| format!("{table}.{name}"));
            let (value, bound) = (time(value), time(bound));
            // Told of the one that somebody set. Where a namespace has both from the defaults, those are told of.
            if self.origins.contains_key(&default) {
                self.refuse(&default, format!("is {value}, over {most}, which is {bound}"));
            } else if self.origins.contains_key(&most) {
                self.refuse(&most, format!("is {bound}, below {default}, which is {value}"));
            }
        }
    }

    fn limits(&mut self, config: &Config) {
        let policies = config.namespaces.named.values().chain([&config.namespaces.defaults]);
        let largest = policies.map(|policy| policy.max_outcome_bytes).max().unwrap_or_default();
        let least = largest + AROUND_OUTCOME_BYTES;
        if config.rpc.max_message_bytes < least {
            let text =
                format!("must be at least {least}, so that a message can hold an outcome of {largest} bytes");
            self.refuse("limits.max_message_bytes", text);
        }
        let (message, connection) = (config.rpc.max_message_bytes, config.limits.bytes_per_connection);
        if connection < message {
            let text = format!("must be at least limits.max_message_bytes, which is {message}");
            self.refuse("limits.bytes_per_connection", text);
        }
        let (call, trip) = (config.etcd.call_timeout, config.coordinator.store_timeout);
        if matches!(config.store, StoreUrl::Etcd { .. }) && call >= trip {
            let text = format!(
                "must be shorter than limits.store_timeout, which is {}: a trip to the store has a call to etcd in it",
                time(trip)
            );
            self.refuse("etcd.call_timeout", text);
        }
    }
}

fn cannot_read(file: &Path, error: &std::io::Error) -> String {
    format!("cannot read {}: {error}", file.display())
}
