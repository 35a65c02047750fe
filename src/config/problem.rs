//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::PathBuf;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of a file; none if it is about all of it.
    File(PathBuf, Option<usize>),
    /// An environment variable.
    Variable(String),
    /// A flag, dashes included.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(file, Some(line)) => write!(f, "{}:{line}", file.display()),
            Origin::File(file, None) => write!(f, "{}", file.display()),
            Origin::Variable(name) | Origin::Flag(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it stands.
    pub origin: Origin,
    /// The key of the setting; empty if it is about none.
    pub key: String,
    /// What is wrong, and what was expected.
    pub text: String,
}

impl Problem {
    pub(super) fn new(origin: Origin, key: impl Into<String>, text: impl Into<String>) -> Self {
        Self { origin, key: key.into(), text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, key, text } = self;
        if key.is_empty() { write!(f, "{origin}: {text}") } else { write!(f, "{origin}: {key}: {text}") }
    }
}

/// All that is wrong, each on a line of its own. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Problem::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// What somebody may have meant by `name`, of `known`: what is a few strokes away, has the same last part, or begins
/// so.
pub(super) fn meant<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let strokes = |key: &str| {
        // `connections` for `limits.connections`, `etcd.password` for `etcd.password_file`.
        let similar = last(name) == last(key) || (name.len() > 3 && key.starts_with(name));
        let all = strsim::damerau_levenshtein(name, key);
        if similar { all.min(1) } else { all }
    };
    let nearest = known.map(|key| (strokes(key), key)).min()?;
    (nearest.0 <= name.len().div_ceil(4).min(3)).then_some(nearest.1)
}
