//! Who may do what, as the file has it. Neither flags nor variables can name rules.

use std::collections::BTreeMap;
use std::path::Path;

use super::file::{EMPTY_TABLE, Entry, quoted};
use super::list::{Act, Each, Wild};
use super::problem::{Origin, Problem, meant};
use super::{Reload, Setting};
use crate::access::{Rule, Rules};

/// The table of the file that has a table for each rule.
pub const TABLE: [&str; 2] = ["access", "rules"];

/// Whether an entry of the file is of a rule.
pub fn is_of_rule(entry: &Entry) -> bool {
    entry.path.len() >= TABLE.len() && entry.path.iter().zip(TABLE).all(|(name, own)| name == own)
}

/// The settings of a rule.
pub fn settings(rule: &mut Rule) -> Vec<Setting<'_>> {
    vec![
        Setting::new("identities", "Who", Reload::Live, &mut rule.identities, Each(Wild::Identity)),
        Setting::new("namespaces", "Where", Reload::Live, &mut rule.namespaces, Each(Wild::Namespace)),
        Setting::new("actions", "What", Reload::Live, &mut rule.actions, Each(Act)),
    ]
}

/// The key of the table of a rule.
pub fn table_of(name: &str) -> String {
    format!("{}.{}", TABLE.join("."), quoted(name))
}

/// Takes what the file says of rules. All that a rule is made of must be there: what it leaves out would be guessed.
pub fn read(
    rules: &mut Rules,
    file: &Path,
    entries: &[Entry],
    origins: &mut BTreeMap<String, Origin>,
    problems: &mut Vec<Problem>,
) {
    let mut first = BTreeMap::new();
    for entry in entries.iter().filter(|entry| is_of_rule(entry)) {
        let origin = Origin::File(file.to_owned(), Some(entry.line));
        if let Some(name) = entry.path.get(TABLE.len()) {
            first.entry(name.clone()).or_insert_with(|| origin.clone());
        }
        match take(rules, entry) {
            Ok(true) => drop(origins.insert(entry.key(), origin)),
            Ok(false) => {}
            Err(text) => problems.push(Problem::new(origin, entry.key(), text)),
        }
    }
    for (name, rule) in rules {
        let table = table_of(name);
        for setting in settings(rule) {
            let key = format!("{table}.{}", setting.key);
            let refused = problems.iter().any(|problem| problem.key == key);
            if let (false, false, Some(origin)) = (origins.contains_key(&key), refused, first.get(name)) {
                let text = format!("is missing: expected {}", setting.expected());
                problems.push(Problem::new(origin.clone(), key, text));
            }
        }
    }
}

/// Takes one value: whether it set anything.
fn take(rules: &mut Rules, entry: &Entry) -> Result<bool, String> {
    let (name, setting) = match &entry.path[TABLE.len()..] {
        [] if entry.raw == EMPTY_TABLE => return Ok(false),
        [] => {
            return Err(format!(
                "expected a table for each rule, [{}], found {}",
                table_of("NAME"),
                entry.raw
            ));
        }
        [name] if entry.raw == EMPTY_TABLE => (name, None),
        [name] => return Err(format!("expected a table, [{}], found {}", table_of(name), entry.raw)),
        [name, setting] => (name, Some(setting)),
        [..] => return Err("there is no such setting; a name with a dot goes in quotes".to_owned()),
    };
    let rule = rules.entry(name.clone()).or_default();
    let Some(name) = setting else { return Ok(false) };
    let mut settings = settings(rule);
    match settings.iter_mut().find(|setting| setting.key == *name) {
        Some(setting) => setting.set(&entry.raw).map(|()| true),
        None => Err(match meant(name, settings.iter().map(|setting| setting.key.as_str())) {
            Some(meant) => format!("there is no such setting: did you mean {meant}?"),
            None => "there is no such setting".to_owned(),
        }),
    }
}
