//! What holds in each namespace: the defaults for all, and what the file says of some.

use std::collections::BTreeMap;
use std::path::Path;

use super::file::{EMPTY_TABLE, Entry, quoted};
use super::problem::{Origin, Problem, meant};
use super::{Policy, Setting};
use crate::record::Namespace;

/// The table of the file that has a table for each namespace. Neither flags nor variables can name those.
pub const TABLE: &str = "namespaces";

/// What holds in each namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// What holds in those that the file does not name.
    pub defaults: Policy,
    /// What holds in those that it names.
    pub named: BTreeMap<String, Policy>,
}

impl Namespaces {
    /// What holds in a namespace.
    pub fn of(&self, namespace: &str) -> &Policy {
        self.named.get(namespace).unwrap_or(&self.defaults)
    }

    /// The settings of the defaults.
    pub fn settings(&mut self) -> Vec<Setting<'_>> {
        self.defaults.settings()
    }

    /// The namespaces that the file says something of, with the key of each one's table.
    pub fn tables(&mut self) -> impl Iterator<Item = (String, &mut Policy)> {
        self.named.iter_mut().map(|(name, policy)| (table_of(name), policy))
    }

    /// Takes what the file says of namespaces. What it does not say of one is as in the defaults, which are to be
    /// set before.
    pub(super) fn read(
        &mut self,
        file: &Path,
        entries: &[Entry],
        origins: &mut BTreeMap<String, Origin>,
        problems: &mut Vec<Problem>,
    ) {
        for entry in entries.iter().filter(|entry| entry.path[0] == TABLE) {
            let origin = Origin::File(file.to_owned(), Some(entry.line));
            match self.take(entry) {
                Ok(true) => drop(origins.insert(entry.key(), origin)),
                Ok(false) => {}
                Err(text) => problems.push(Problem::new(origin, entry.key(), text)),
            }
        }
    }

    /// Takes one value: whether it set anything.
    fn take(&mut self, entry: &Entry) -> Result<bool, String> {
        let (name, setting) = match entry.path.as_slice() {
            [_] if entry.raw == EMPTY_TABLE => return Ok(false),
            [_] => {
                return Err(format!(
                    "expected a table for each namespace, [{TABLE}.NAME], found {}",
                    entry.raw
                ));
            }
            [_, name] if entry.raw == EMPTY_TABLE => (name, None),
            [_, name] => {
                return Err(format!("expected a table, [{}], found {}", table_of(name), entry.raw));
            }
            [_, name, setting] => (name, Some(setting)),
            [_, name, ..] => {
                let text = "there is no such setting; a namespace with a dot in its name goes in quotes";
                return Err(format!("{text}: [{TABLE}.\"{name}.…\"]"));
            }
            [] => return Ok(false),
        };
        if Namespace::new(name).is_none() {
            return Err("expected a namespace that matches [a-z0-9][a-z0-9._-]{0,62}".to_owned());
        }
        let policy = self.named.entry(name.clone()).or_insert_with(|| self.defaults.clone());
        let Some(name) = setting else { return Ok(false) };
        let mut settings = policy.settings();
        match settings.iter_mut().find(|setting| setting.key == *name) {
            Some(setting) => setting.set(&entry.raw).map(|()| true),
            None => Err(match meant(name, settings.iter().map(|setting| setting.key.as_str())) {
                Some(meant) => format!("there is no such setting: did you mean {meant}?"),
                None => "there is no such setting".to_owned(),
            }),
        }
    }
}

/// The key of the table of a namespace.
pub fn table_of(namespace: &str) -> String {
    format!("{TABLE}.{}", quoted(namespace))
}
