//! How lists are written: what rules are made of.

use super::form::{Form, Raw};
use crate::access::{Action, Pattern};

/// Some of something, at least one.
pub struct Each<F>(pub F);

impl<T, F: Form<T>> Form<Vec<T>> for Each<F> {
    fn expected(&self) -> String {
        format!("a list, such as [\"…\"], each {}", self.0.expected())
    }

    fn placeholder(&self) -> &'static str {
        "LIST"
    }

    fn read(&self, raw: &Raw) -> Result<Vec<T>, String> {
        match raw {
            Raw::List(items) if !items.is_empty() => {
                items.iter().map(|item| self.0.read(&Raw::Text(item.clone()))).collect()
            }
            _ => Err(format!("expected {}, found {raw}", self.expected())),
        }
    }

    fn show(&self, value: &Vec<T>) -> Option<Raw> {
        Some(Raw::List(value.iter().filter_map(|item| self.0.show(item)).map(|item| item.bare()).collect()))
    }
}

/// A name, or with a star at its end all that begin so.
pub struct Wild;

impl Form<Pattern> for Wild {
    fn expected(&self) -> String {
        "a name, or the beginning of names and a * at its end".to_owned()
    }

    fn placeholder(&self) -> &'static str {
        "NAME"
    }

    fn read(&self, raw: &Raw) -> Result<Pattern, String> {
        let pattern = if let Raw::Text(text) = raw { Pattern::new(text) } else { None };
        pattern.ok_or_else(|| format!("expected {}, found {raw}", self.expected()))
    }

    fn show(&self, value: &Pattern) -> Option<Raw> {
        Some(Raw::Text(value.as_str().to_owned()))
    }
}

/// What can be allowed.
pub struct Act;

impl Form<Action> for Act {
    fn expected(&self) -> String {
        "\"begin\" (Begin, Complete, Renew, Release), \"lookup\" (Lookup, Watch) or \"admin\" (List, Resolve, Delete)"
            .to_owned()
    }

    fn placeholder(&self) -> &'static str {
        "ACTION"
    }

    fn read(&self, raw: &Raw) -> Result<Action, String> {
        let named = |action: &Action| *raw == Raw::Text(action.name().to_owned());
        Action::ALL
            .into_iter()
            .find(named)
            .ok_or_else(|| format!("expected {}, found {raw}", self.expected()))
    }

    fn show(&self, value: &Action) -> Option<Raw> {
        Some(Raw::Text(value.name().to_owned()))
    }
}
