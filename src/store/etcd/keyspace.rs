//! Where things lie in etcd: `<prefix>/r/<namespace>/<key>` for records, `<prefix>/l/<lease>` for the
//! sentinels of lock leases, `<prefix>/meta` for the marker of the store.
//!
//! No two names share an etcd key: a namespace has no `/`, so the first one after it ends it, and all that
//! follows is the key, byte for byte. No two prefixes share one either: no segment of a prefix is `r` or
//! `l`, so what lies below a prefix never looks like the records or sentinels of a shorter one.

#[cfg(any(test, fuzzing))]
pub mod fuzzing;

use crate::record::{Key, Namespace, RecordKey};

/// The prefix of a store that names none.
pub const PREFIX_DEFAULT: &str = "onced";
/// The longest prefix, in bytes.
pub const PREFIX_MAX_BYTES: usize = 256;

/// The length of a lease in the name of its sentinel, in hexadecimal digits.
const LEASE_DIGITS: usize = 16;

/// The names of one store in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keyspace {
    prefix: String,
}

impl Keyspace {
    /// The names below `prefix`. Slashes around it do not count, and an empty one means [`PREFIX_DEFAULT`].
    ///
    /// # Errors
    /// What is wrong with the prefix.
    pub(super) fn new(prefix: &str) -> Result<Self, String> {
        let trimmed = prefix.trim_matches('/');
        let prefix = if trimmed.is_empty() { PREFIX_DEFAULT } else { trimmed };
        if prefix.len() > PREFIX_MAX_BYTES {
            return Err(format!("it is longer than {PREFIX_MAX_BYTES} bytes"));
        }
        if prefix.chars().any(|char| char.is_control() || char.is_whitespace()) {
            return Err("it contains a space or a control character".to_owned());
        }
        match prefix.split('/').find(|segment| matches!(*segment, "" | "r" | "l")) {
            Some("") => Err("it contains two slashes in a row".to_owned()),
            Some(segment) => {
                Err(format!("its segment {segment:?} is a name that onced itself uses below a prefix"))
            }
            None => Ok(Self { prefix: prefix.to_owned() }),
        }
    }

    /// The prefix, as it stands in etcd.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The marker: the version of the format, and which store it is.
    pub(super) fn meta(&self) -> String {
        format!("{}/meta", self.prefix)
    }

    /// A record.
    pub(super) fn record(&self, key: &RecordKey) -> String {
        format!("{}{}", self.records(&key.namespace), key.key.as_str())
    }

    /// What all records begin with.
    pub(super) fn all_records(&self) -> String {
        format!("{}/r/", self.prefix)
    }

    /// What the records of a namespace begin with.
    pub(super) fn records(&self, namespace: &Namespace) -> String {
        format!("{}/r/{}/", self.prefix, namespace.as_str())
    }

    /// The key of a record of `namespace`; `None` if `name` is not the name of one.
    pub(super) fn key_of(&self, namespace: &Namespace, name: &[u8]) -> Option<Key> {
        let key = name.strip_prefix(self.records(namespace).as_bytes())?;
        Key::new(std::str::from_utf8(key).ok()?)
    }

    /// What all sentinels begin with.
    pub(super) fn sentinels(&self) -> String {
        format!("{}/l/", self.prefix)
    }

    /// The sentinel of a lease.
    pub(super) fn sentinel(&self, lease: i64) -> String {
        format!("{}{lease:0LEASE_DIGITS$x}", self.sentinels())
    }

    /// The lease of a sentinel; `None` if `name` is not the name of one.
    pub(super) fn lease_of(&self, name: &[u8]) -> Option<i64> {
        let digits = name.strip_prefix(self.sentinels().as_bytes())?;
        let canonical = digits.len() == LEASE_DIGITS
            && digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        let digits = std::str::from_utf8(digits).ok().filter(|_| canonical)?;
        i64::from_str_radix(digits, 16).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record_key(namespace: &str, key: &str) -> RecordKey {
        RecordKey { namespace: Namespace::new(namespace).unwrap(), key: Key::new(key).unwrap() }
    }

    /// Names made of what could be taken for something else.
    fn names() -> impl Strategy<Value = RecordKey> {
        let namespace = "[a-z0-9][a-z0-9._-]{0,3}|r|l|meta";
        let key = "([rl/a]|meta|/l/|/r/|\\PC|\\x00){1,6}";
        (namespace, key).prop_map(|(namespace, key)| record_key(&namespace, &key))
    }

    fn prefixes() -> impl Strategy<Value = Keyspace> {
        "(/?(a|b|meta|rl)){0,3}/?".prop_filter_map("not a prefix", |prefix| Keyspace::new(&prefix).ok())
    }

    proptest! {
        #[test]
        fn no_two_names_share_an_etcd_key(
            (here, there) in (prefixes(), prefixes()),
            (one, other) in (names(), names()),
        ) {
            let same = here == there && one == other;
            prop_assert_eq!(here.record(&one) == there.record(&other), same);
        }

        #[test]
        fn where_a_namespace_ends_and_its_keys_begin_is_told_apart(
            keyspace in prefixes(), begin in "[a-z0-9]{1,3}", end in "[a-z0-9._-]{1,3}", key in "[a-z/]{1,3}",
        ) {
            let longer = record_key(&format!("{begin}{end}"), &key);
            let shorter = record_key(&begin, &format!("{end}{key}"));
            prop_assert_ne!(keyspace.record(&longer), keyspace.record(&shorter));
            prop_assert!(!keyspace.record(&longer).starts_with(&keyspace.records(&shorter.namespace)));
        }

        #[test]
        fn records_sentinels_and_marker_never_meet(
            (here, there) in (prefixes(), prefixes()), key in names(), lease in 1_i64..,
        ) {
            let record = here.record(&key);
            prop_assert_ne!(&record, &there.meta());
            prop_assert_eq!(there.lease_of(record.as_bytes()), None);
            let sentinel = here.sentinel(lease);
            prop_assert_ne!(&sentinel, &there.meta());
            prop_assert_eq!(there.key_of(&key.namespace, sentinel.as_bytes()), None);
            prop_assert_eq!(there.lease_of(sentinel.as_bytes()), (here == there).then_some(lease));
        }

        #[test]
        fn a_record_is_found_by_its_name(here in prefixes(), key in names(), other in names()) {
            let name = here.record(&key);
            prop_assert_eq!(here.key_of(&key.namespace, name.as_bytes()), Some(key.key.clone()));
            let theirs = (other.namespace == key.namespace).then_some(key.key);
            prop_assert_eq!(here.key_of(&other.namespace, name.as_bytes()), theirs);
        }
    }

    #[test]
    fn a_slash_moves_between_namespace_and_key_and_the_names_stay_apart() {
        let keyspace = Keyspace::new("p").unwrap();
        assert_ne!(keyspace.record(&record_key("a", "b/c")), keyspace.record(&record_key("a", "/b/c")));
        assert_ne!(keyspace.record(&record_key("a", "/c")), keyspace.record(&record_key("a", "c")));
    }

    #[test]
    fn slashes_around_a_prefix_do_not_count() {
        for prefix in ["a/b", "/a/b", "a/b/", "//a/b//"] {
            assert_eq!(Keyspace::new(prefix).unwrap().meta(), "a/b/meta");
        }
        for prefix in ["", "/", "//"] {
            assert_eq!(Keyspace::new(prefix).unwrap().meta(), "onced/meta");
        }
    }

    #[test]
    fn a_prefix_that_could_collide_is_refused() {
        let long = "p".repeat(PREFIX_MAX_BYTES + 1);
        for prefix in ["r", "a/r", "l/a", "a/l/b", "a//b", "a b", "a\n", "a\0", &long] {
            assert!(Keyspace::new(prefix).is_err(), "{prefix:?}");
        }
    }
}
