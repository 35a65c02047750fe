//! Brings the sources together. Every value is checked, also one that another source overrides, and all that is
//! wrong is told at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::check::{Files, PASSWORD_VARIABLE, check};
use super::file::{self, EMPTY_TABLE, Entry};
use super::form::Raw;
use super::problem::{Origin, Problem, Problems, meant};
use super::{Config, Setting, namespaces, rules};

/// The variable that other programs of the kind are told by what to log: read where ours is not set.
const LOG_VARIABLE: &str = "RUST_LOG";
/// The variable that names the file, if no flag does.
const FILE_VARIABLE: &str = "ONCED_CONFIG";
/// What the names of our variables begin with.
const VARIABLES: &str = "ONCED_";

/// Where values come from, defaults aside.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file that a flag names.
    pub file: Option<PathBuf>,
    /// The environment. An empty variable counts as unset.
    pub variables: BTreeMap<String, String>,
    /// The flags, without the dashes in front.
    pub flags: BTreeMap<String, String>,
}

/// A configuration in which nothing is wrong.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// Where what is not a default comes from, by key.
    pub origins: BTreeMap<String, Origin>,
    /// What looks like a mistake, and need not be one.
    pub doubts: Vec<String>,
}

impl Sources {
    /// The flags and the environment of this process. Variables that are no text are none of ours.
    pub fn of_process(file: Option<PathBuf>, flags: BTreeMap<String, String>) -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            let name = name.into_string().ok()?;
            let ours = name.starts_with(VARIABLES) || name == LOG_VARIABLE;
            ours.then(|| Some((name, value.into_string().ok()?))).flatten()
        };
        Self { file, variables: std::env::vars_os().filter_map(text).collect(), flags }
    }

    /// The file to read, if there is one to read.
    pub fn file(&self) -> Option<PathBuf> {
        self.file.clone().or_else(|| self.variable(FILE_VARIABLE).map(PathBuf::from))
    }

    /// Reads and checks all of it, for a start.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn load(&self) -> Result<Loaded, Problems> {
        self.read(Files::Read)
    }

    /// Reads and checks all of it but what the files of certificates, tokens and keys hold, for a server that runs.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn load_again(&self) -> Result<Loaded, Problems> {
        self.read(Files::Leave)
    }

    fn read(&self, files: Files) -> Result<Loaded, Problems> {
        let mut problems = Vec::new();
        let file = self.file();
        let entries = file.as_deref().map_or_else(Vec::new, |file| read(file, &mut problems));
        let unread = problems.len();
        let mut config = Config::default();
        let mut origins = BTreeMap::new();
        let mut known = BTreeSet::new();
        for mut setting in config.settings() {
            known.insert(setting.key.clone());
            for (origin, raw) in self.given(&setting, file.as_deref(), &entries) {
                match setting.set(&raw) {
                    Ok(()) => drop(origins.insert(setting.key.clone(), origin)),
                    Err(text) => problems.push(Problem::new(origin, &setting.key, text)),
                }
            }
        }
        if let Some(file) = &file {
            config.namespaces.read(file, &entries, &mut origins, &mut problems);
            rules::read(&mut config.rules, file, &entries, &mut origins, &mut problems);
            problems.extend(unknown(file, &entries, &known));
        }
        let mut doubts = self.doubts(&mut config);
        // What cannot be read may set anything.
        if unread == 0 {
            let given = |name: &str| self.variable(name).map(str::to_owned);
            doubts.extend(check(&mut config, &origins, given, files, &mut problems));
        }
        problems.sort();
        problems.dedup();
        if problems.is_empty() {
            Ok(Loaded { config, file, origins, doubts })
        } else {
            Err(Problems(problems))
        }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|text| !text.trim().is_empty())
    }

    /// What was given for a setting, the source that counts most last.
    fn given(&self, setting: &Setting<'_>, file: Option<&Path>, entries: &[Entry]) -> Vec<(Origin, Raw)> {
        let (variable, flag) = (setting.variable(), setting.flag());
        let mut given = Vec::new();
        for entry in entries.iter().filter(|entry| entry.path.join(".") == setting.key) {
            let file = file.unwrap_or(Path::new(""));
            given.push((Origin::File(file.to_owned(), Some(entry.line)), entry.raw.clone()));
        }
        let instead = (setting.key == "log" && self.variable(&variable).is_none()).then_some(LOG_VARIABLE);
        let variable = instead.unwrap_or(&variable);
        if let Some(text) = self.variable(variable) {
            given.push((Origin::Variable(variable.to_owned()), Raw::Bare(text.to_owned())));
        }
        if let Some(text) = self.flags.get(&flag) {
            given.push((Origin::Flag(format!("--{flag}")), Raw::Bare(text.clone())));
        }
        given
    }

    /// Variables that are none of ours, but nearly so. They are no errors: others have names that begin like ours,
    /// as Kubernetes does for a service that is called onced.
    fn doubts(&self, config: &mut Config) -> Vec<String> {
        let mut known: BTreeSet<String> = config.settings().iter().map(Setting::variable).collect();
        known.extend([FILE_VARIABLE, PASSWORD_VARIABLE].map(str::to_owned));
        let near = |name: &&String| name.starts_with(VARIABLES) && !known.contains(*name);
        let names = self.variables.keys().filter(near);
        names
            .filter_map(|name| {
                let others = known.iter().map(|known| &known[VARIABLES.len()..]);
                let meant = meant(&name[VARIABLES.len()..], others)?;
                Some(format!("{name} is not a setting: did you mean {VARIABLES}{meant}?"))
            })
            .collect()
    }
}

fn read(file: &Path, problems: &mut Vec<Problem>) -> Vec<Entry> {
    match fs::read_to_string(file) {
        Ok(text) => file::parse(file, &text, problems),
        Err(error) => {
            let origin = Origin::File(file.to_owned(), None);
            problems.push(Problem::new(origin, "", format!("cannot read the file: {error}")));
            Vec::new()
        }
    }
}

/// What stands in the file and is no setting.
fn unknown(file: &Path, entries: &[Entry], known: &BTreeSet<String>) -> Vec<Problem> {
    let table_of = |key: &str| known.iter().any(|known| known.starts_with(&format!("{key}.")));
    let problem = |entry: &Entry| {
        let key = entry.path.join(".");
        if entry.path[0] == namespaces::TABLE || rules::is_of_rule(entry) {
            return None;
        }
        if known.contains(&key) || (table_of(&key) && entry.raw == EMPTY_TABLE) {
            return None;
        }
        let text = if table_of(&key) {
            format!("expected a table, [{key}], found {}", entry.raw)
        } else {
            match meant(&key, known.iter().map(String::as_str)) {
                Some(meant) => format!("there is no such setting: did you mean {meant}?"),
                None => "there is no such setting".to_owned(),
            }
        };
        Some(Problem::new(Origin::File(file.to_owned(), Some(entry.line)), entry.key(), text))
    };
    entries.iter().filter_map(problem).collect()
}
