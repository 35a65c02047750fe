//! A configuration that is read again under a running server.

use std::collections::{BTreeMap, BTreeSet};

use super::check::check_mixed;
use super::form::Raw;
use super::problem::{Origin, Problems};
use super::{Config, Reload, Setting, namespaces, rules};
use crate::access::Rules;

/// A setting that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its key.
    pub key: String,
    /// What it was.
    pub from: String,
    /// What it is to be.
    pub to: String,
    /// Whether it is so now, or after a restart.
    pub reload: Reload,
}

impl Config {
    /// Takes over what can change under a running server. What cannot stays as it is. `origins` says where the new
    /// settings come from.
    ///
    /// # Errors
    /// If what is new does not go with what stays: then all stays as it is.
    pub fn take_over(
        &mut self,
        new: Config,
        origins: &BTreeMap<String, Origin>,
    ) -> Result<Vec<Change>, Problems> {
        let mut mixed = self.clone();
        let changes = mixed.change(new);
        let problems = check_mixed(&mut mixed, origins);
        if !problems.is_empty() {
            return Err(Problems(problems));
        }
        *self = mixed;
        Ok(changes)
    }

    fn change(&mut self, mut new: Config) -> Vec<Change> {
        let mut changes = Vec::new();
        // None where it is in a file: that is not read again.
        if new.etcd_password.is_some() && self.etcd_password != new.etcd_password {
            let hidden = || "not shown".to_owned();
            let key = "the password of etcd.user".to_owned();
            changes.push(Change { key, from: hidden(), to: hidden(), reload: Reload::Restart });
        }
        let named: BTreeSet<String> =
            self.namespaces.named.keys().chain(new.namespaces.named.keys()).cloned().collect();
        for name in named {
            let (mut old, mut new) = (self.namespaces.of(&name).clone(), new.namespaces.of(&name).clone());
            changes.extend(changed(&namespaces::table_of(&name), old.settings(), new.settings()));
        }
        self.namespaces.named = std::mem::take(&mut new.namespaces.named);
        changes.extend(self.take_over_rules(std::mem::take(&mut new.rules)));
        for (mut old, new) in self.settings().into_iter().zip(new.settings()) {
            let (from, to) = (old.show(), new.show());
            if from == to {
                continue;
            }
            let mut reload = old.reload;
            if reload == Reload::Live && to.as_ref().is_none_or(|to| old.set(to).is_err()) {
                reload = Reload::Restart;
            }
            changes.push(Change { key: new.key, from: told(from), to: told(to), reload });
        }
        changes
    }

    /// Takes over the rules, unless there are none any more: whoever shows who they are could then do anything, which
    /// nobody is to bring about by a file that was cut short.
    fn take_over_rules(&mut self, new: Rules) -> Vec<Change> {
        let named: BTreeSet<&String> = self.rules.keys().chain(new.keys()).collect();
        let mut changes = Vec::new();
        for name in named {
            let [mut old, mut new] =
                [&self.rules, &new].map(|rules| rules.get(name).cloned().unwrap_or_default());
            let (old, new) = (rules::settings(&mut old), rules::settings(&mut new));
            changes.extend(changed(&rules::table_of(name), old, new));
        }
        if new.is_empty() {
            changes.iter_mut().for_each(|change| change.reload = Reload::Restart);
        } else {
            self.rules = new;
        }
        changes
    }
}

/// What is no longer the same in a table.
fn changed(table: &str, old: Vec<Setting<'_>>, new: Vec<Setting<'_>>) -> Vec<Change> {
    let both = old.into_iter().zip(new);
    let different = both.filter(|(old, new)| old.show() != new.show());
    different
        .map(|(old, new)| Change {
            key: format!("{table}.{}", new.key),
            from: told(old.show()),
            to: told(new.show()),
            reload: new.reload,
        })
        .collect()
}

fn told(value: Option<Raw>) -> String {
    value.map_or_else(|| "not set".to_owned(), |value| value.bare())
}
