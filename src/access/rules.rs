//! Who may do what, where.

use std::collections::BTreeMap;

use super::Caller;

/// What can be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Begin, Complete, Renew and Release.
    Begin,
    /// Lookup and Watch.
    Lookup,
    /// List, Resolve and Delete.
    Admin,
}

impl Action {
    /// All there are.
    pub const ALL: [Action; 3] = [Action::Begin, Action::Lookup, Action::Admin];

    /// Its name in rules.
    pub fn name(self) -> &'static str {
        match self {
            Action::Begin => "begin",
            Action::Lookup => "lookup",
            Action::Admin => "admin",
        }
    }
}

/// A name, or with a `*` at its end all that begin so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Reads one; `None` if it is empty, or has a `*` in another place.
    pub fn new(text: &str) -> Option<Self> {
        let stem = text.strip_suffix('*').unwrap_or(text);
        (!text.is_empty() && !stem.contains('*')).then(|| Self(text.to_owned()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(stem) => name.starts_with(stem),
            None => self.0 == name,
        }
    }
}

/// What some may do in some namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Who.
    pub identities: Vec<Pattern>,
    /// Where.
    pub namespaces: Vec<Pattern>,
    /// What.
    pub actions: Vec<Action>,
}

/// All rules, by their names. What none allows is denied, but without any rule all is allowed.
pub type Rules = BTreeMap<String, Rule>;

/// Whether a caller may do something in a namespace.
pub fn allow(rules: &Rules, caller: &Caller, namespace: &str, action: Action) -> bool {
    let any = |patterns: &[Pattern], name: &str| patterns.iter().any(|pattern| pattern.matches(name));
    let allows = |rule: &Rule| {
        rule.actions.contains(&action)
            && any(&rule.namespaces, namespace)
            && caller.names().any(|name| any(&rule.identities, name))
    };
    rules.is_empty() || rules.values().any(allows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| Pattern::new(text).unwrap()).collect()
    }

    #[test]
    fn a_star_stands_at_the_end_alone() {
        for wrong in ["", "*x", "a*b", "a**"] {
            assert_eq!(Pattern::new(wrong), None, "{wrong}");
        }
        for (pattern, name, matches) in [
            ("orders", "orders", true),
            ("orders", "orders-eu", false),
            ("orders*", "orders", true),
            ("orders-*", "orders-eu", true),
            ("orders-*", "orders", false),
            ("*", "", true),
            ("*", "any", true),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn what_no_rule_allows_is_denied_unless_there_is_none() {
        let caller = Caller::of_token("ci");
        assert!(allow(&Rules::new(), &caller, "orders", Action::Admin));
        let rule = |identities, namespaces, actions: &[Action]| Rule {
            identities: patterns(identities),
            namespaces: patterns(namespaces),
            actions: actions.to_vec(),
        };
        let mut rules = Rules::new();
        rules.insert("a".to_owned(), rule(&["token:ci", "dns:*"], &["orders", "eu-*"], &[Action::Begin]));
        rules.insert("b".to_owned(), rule(&["token:ops"], &["*"], &Action::ALL));
        assert!(allow(&rules, &caller, "orders", Action::Begin));
        assert!(allow(&rules, &caller, "eu-1", Action::Begin));
        assert!(!allow(&rules, &caller, "orders", Action::Lookup));
        assert!(!allow(&rules, &caller, "us-1", Action::Begin));
        assert!(!allow(&rules, &Caller::of_token("ci2"), "orders", Action::Begin));
        for action in Action::ALL {
            assert!(allow(&rules, &Caller::of_token("ops"), "us-1", action));
        }
        rules.insert("none".to_owned(), Rule::default());
        assert!(!allow(&rules, &caller, "us-1", Action::Begin));
    }
}
