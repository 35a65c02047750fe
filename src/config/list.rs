//! How lists are written: what rules are made of.

use super::form::{Form, Raw};
use crate::access::{Action, Pattern};
use crate::record::Namespace;

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

/// A name of this kind, or with a star at its end all that begin so.
pub enum Wild {
    /// That of a caller.
    Identity,
    /// That of a namespace.
    Namespace,
}

/// How the names of callers begin.
const IDENTITIES: [&str; 4] = ["spiffe://", "dns:", "token:", "jwt:"];

impl Wild {
    /// Whether there may be anything that it stands for.
    fn may_match(&self, pattern: &Pattern) -> bool {
        let text = pattern.as_str();
        let (stem, wild) = text.strip_suffix('*').map_or((text, false), |stem| (stem, true));
        match self {
            Wild::Identity => {
                IDENTITIES.iter().any(|kind| stem.starts_with(kind) || (wild && kind.starts_with(stem)))
            }
            Wild::Namespace => (wild && stem.is_empty()) || Namespace::new(stem).is_some(),
        }
    }
}

impl Form<Pattern> for Wild {
    fn expected(&self) -> String {
        match self {
            Wild::Identity => {
                "an identity (spiffe://…, dns:…, token:… or jwt:…), or the beginning of such and a * at its end"
            }
            Wild::Namespace => {
                "a namespace (it matches [a-z0-9][a-z0-9._-]{0,62}), or the beginning of such and a * at its end"
            }
        }
        .to_owned()
    }

    fn placeholder(&self) -> &'static str {
        "NAME"
    }

    fn read(&self, raw: &Raw) -> Result<Pattern, String> {
        let pattern = if let Raw::Text(text) = raw { Pattern::new(text) } else { None };
        let pattern = pattern.filter(|pattern| self.may_match(pattern));
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
