//! The file: TOML, as a list of values with their lines.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::form::Raw;
use super::problem::{Origin, Problem};

/// A value in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The tables that it stands in, and its name.
    pub path: Vec<String>,
    /// The value; [`EMPTY_TABLE`] for a table that holds nothing.
    pub raw: Raw,
    /// The line.
    pub line: usize,
}

/// What a table without values is, as a value.
pub const EMPTY_TABLE: Raw = Raw::Other("a table");

impl Entry {
    /// Its path as the file has it.
    pub fn key(&self) -> String {
        self.path.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(".")
    }
}

/// A name as a key of TOML: quoted where it must be.
pub fn quoted(name: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !name.is_empty() && name.bytes().all(bare) {
        return name.to_owned();
    }
    Raw::Text(name.to_owned()).to_string()
}

/// Reads a file's text, or notes what is no TOML: then nothing in it is what it seems.
pub fn parse(file: &Path, text: &str, problems: &mut Vec<Problem>) -> Vec<Entry> {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let line = error.span().map(|span| line_of(text, span.start));
        problems.push(Problem::new(Origin::File(file.to_owned(), line), "", error.message()));
    }
    if !errors.is_empty() {
        return Vec::new();
    }
    let mut entries = Vec::new();
    walk(text, table.get_ref(), &mut Vec::new(), &mut entries);
    // A table's values come sorted by name.
    entries.sort_by_key(|entry: &Entry| entry.line);
    entries
}

fn walk(text: &str, table: &DeTable<'_>, path: &mut Vec<String>, entries: &mut Vec<Entry>) {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        match value.get_ref() {
            DeValue::Table(inner) if !inner.is_empty() => walk(text, inner, path, entries),
            _ => {
                let line = line_of(text, key.span().start);
                entries.push(Entry { path: path.clone(), raw: raw(value), line });
            }
        }
        path.pop();
    }
}

fn raw(value: &Spanned<DeValue<'_>>) -> Raw {
    match value.get_ref() {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(number) => {
            let digits = number.as_str().replace('_', "");
            i128::from_str_radix(&digits, number.radix()).map_or(Raw::Other("a number"), Raw::Number)
        }
        DeValue::Float(_) => Raw::Other("a number with a fraction"),
        DeValue::Boolean(true) => Raw::Other("true"),
        DeValue::Boolean(false) => Raw::Other("false"),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Array(items) => {
            let text = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
                DeValue::String(text) => Some(text.to_string()),
                _ => None,
            };
            items.iter().map(text).collect::<Option<_>>().map_or(Raw::Other("a list"), Raw::List)
        }
        DeValue::Table(_) => EMPTY_TABLE,
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|&&b| b == b'\n').count() + 1
}
