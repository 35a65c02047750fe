//! A configuration as text: what is in force, and the reference of all settings.

use std::fmt::Write as _;

use super::check::PASSWORD_VARIABLE;
use super::{Config, Loaded, Origin, Reload, Setting, rules};

/// The width that comments are wrapped to.
const WIDTH: usize = 100;
/// What the reference says beside the settings; the file is put in for the line [`HERE`].
const PROSE: &str = include_str!("reference.md");
const HERE: &str = "{{settings}}";

impl Loaded {
    /// What is in force as a file that sets all of it, each value with where it comes from. The password is left
    /// out.
    pub fn print(&self) -> String {
        let mut text = String::new();
        let mut config = self.config.clone();
        let mut table = Table::default();
        for setting in config.settings() {
            table.enter(&setting, &mut text);
            let origin = self.origins.get(&setting.key).unwrap_or(&Origin::Default);
            let (_, name) = setting.path();
            match setting.show() {
                Some(value) => line(&mut text, &format!("{name} = {value}  # {origin}")),
                None => line(&mut text, &format!("# {name} is not set")),
            }
        }
        for (table, policy) in config.namespaces.tables() {
            line(&mut text, &format!("\n[{table}]"));
            for setting in policy.settings() {
                let key = format!("{table}.{}", setting.key);
                let origin = self.origins.get(&key).map_or("as in [defaults]".to_owned(), Origin::to_string);
                if let Some(value) = setting.show() {
                    line(&mut text, &format!("{} = {value}  # {origin}", setting.key));
                }
            }
        }
        for (name, rule) in &mut config.rules {
            let table = rules::table_of(name);
            line(&mut text, &format!("\n[{table}]"));
            for setting in rules::settings(rule) {
                let origin =
                    self.origins.get(&format!("{table}.{}", setting.key)).unwrap_or(&Origin::Default);
                if let Some(value) = setting.show() {
                    line(&mut text, &format!("{} = {value}  # {origin}", setting.key));
                }
            }
        }
        if self.config.etcd_password.is_some() && !self.origins.contains_key("etcd.password_file") {
            line(&mut text, &format!("\n# The password of the etcd user is that in {PASSWORD_VARIABLE}."));
        }
        text
    }
}

/// docs/configuration.md.
pub fn reference() -> String {
    PROSE.replace(HERE, defaults().trim_end())
}

/// The file that sets everything to its default, with all there is to say of each setting.
fn defaults() -> String {
    let mut text = String::new();
    let mut config = Config::default();
    let mut table = Table::default();
    for setting in config.settings() {
        table.enter(&setting, &mut text);
        if !text.ends_with("]\n") && !text.is_empty() {
            text.push('\n');
        }
        for words in wrapped(&format!("{}.", setting.help)) {
            line(&mut text, &format!("# {words}"));
        }
        let reload = match setting.reload {
            Reload::Live => ", reloaded",
            Reload::Restart => "",
        };
        line(&mut text, &format!("# --{}, {}{reload}", setting.flag(), setting.variable()));
        for words in wrapped(&format!("Expects {}.", setting.expected())) {
            line(&mut text, &format!("# {words}"));
        }
        let (_, name) = setting.path();
        match setting.show() {
            Some(value) => line(&mut text, &format!("{name} = {value}")),
            // Quoted, so that a line without its # is TOML, and told what it expects in place of this.
            None => line(&mut text, &format!("# {name} = {:?}", setting.placeholder())),
        }
    }
    text
}

/// The table that the settings printed last stand in.
#[derive(Default)]
struct Table(Option<String>);

impl Table {
    fn enter(&mut self, setting: &Setting<'_>, text: &mut String) {
        let (table, _) = setting.path();
        if self.0.as_deref() != table {
            self.0 = table.map(str::to_owned);
            line(text, &format!("\n[{}]", table.unwrap_or_default()));
        }
    }
}

fn line(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(last) if last.len() + word.len() < WIDTH => {
                last.push(' ');
                last.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
