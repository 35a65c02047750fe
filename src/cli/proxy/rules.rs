//! Which requests are run once.

use std::str::FromStr;

use http::{HeaderMap, HeaderName, Method};

/// The header that has the key.
const KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Which requests are run once, and which go through as they are.
#[derive(Clone, Debug)]
pub struct Rules {
    pub methods: Vec<Method>,
    /// All of them if there is none.
    pub paths: Vec<Pattern>,
    /// Whether a request of these without a key is refused; else it goes through.
    pub key_required: bool,
}

impl Rules {
    /// Whether a request is run once: or refused, if it has no key.
    pub fn apply_to(&self, method: &Method, path: &str, headers: &HeaderMap) -> bool {
        let meant = self.methods.contains(method)
            && (self.paths.is_empty() || self.paths.iter().any(|pattern| pattern.matches(path)));
        meant && (self.key_required || headers.contains_key(KEY))
    }
}

/// Paths that begin with these segments. `*` is any one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<String>);

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix('/') else {
            return Err("a path begins with a slash, such as /orders or /accounts/*/payments".to_owned());
        };
        if path.contains(['?', '#']) {
            return Err("a path has neither a query nor a fragment".to_owned());
        }
        let segments = path.trim_end_matches('/');
        let segments: Vec<_> =
            segments.split('/').filter(|_| !segments.is_empty()).map(str::to_owned).collect();
        if segments.iter().any(|segment| segment.contains('*') && segment != "*") {
            return Err("* stands for a whole segment, such as /accounts/*/payments".to_owned());
        }
        Ok(Self(segments))
    }
}

impl Pattern {
    /// Whether a path, as it was sent, begins so.
    fn matches(&self, path: &str) -> bool {
        let mut segments = path.strip_prefix('/').unwrap_or(path).split('/');
        self.0.iter().all(|wanted| segments.next().is_some_and(|found| wanted == "*" || wanted == found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().matches(path)
    }

    #[test]
    fn a_path_matches_by_whole_segments_from_its_start() {
        for (pattern, path) in [
            ("/", "/"),
            ("/", "/orders"),
            ("/orders", "/orders"),
            ("/orders/", "/orders"),
            ("/orders", "/orders/"),
            ("/orders", "/orders/17/items"),
            ("/accounts/*/payments", "/accounts/a%2Fb/payments"),
            ("/accounts/*/payments", "/accounts/7/payments/9"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("/orders", "/"),
            ("/orders", "/ordersx"),
            ("/orders", "/v1/orders"),
            ("/orders", "/Orders"),
            ("/accounts/*/payments", "/accounts/payments"),
            ("/accounts/*/payments", "/accounts/1/2/payments"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_told_so() {
        for wrong in ["", "orders", "/orders?x", "/or*"] {
            assert!(wrong.parse::<Pattern>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn without_a_key_a_request_is_meant_only_where_one_is_required() {
        let rules = |key_required| Rules { methods: vec![Method::POST], paths: Vec::new(), key_required };
        let (none, key) =
            (HeaderMap::new(), HeaderMap::from_iter([(KEY, http::HeaderValue::from_static("k"))]));
        assert!(rules(true).apply_to(&Method::POST, "/", &none));
        assert!(!rules(false).apply_to(&Method::POST, "/", &none));
        assert!(rules(false).apply_to(&Method::POST, "/", &key));
        assert!(!rules(true).apply_to(&Method::GET, "/", &key));
    }
}
