//! Any name, and records by name.

use onced::record::limits::OUTCOME_MAX_BYTES;
use onced::record::{Key, Namespace, RecordKey};
use onced::store::RecordStore;

use crate::store::fixture::{
    Fixture, as_written, claim, completed, create, key, key_in, load, namespace_named,
};

/// Names that an encoding could confuse: separators, prefixes of one another, the ends of the alphabet.
fn odd_names() -> Vec<String> {
    let long = "\u{10ffff}".repeat(128);
    let (long, nearly) = (long.clone(), format!("{}abcd", &long[..508]));
    [
        "a", "b", "c", "b/c", "/", "//", "/c", "a/", "a/b", "a/b/c", "a.b", "a\0", "a\0b", "\0", "\0\0",
        "\u{1}", "\u{7f}", "\u{80}", "é", "e\u{301}", "%2F", "%00", "..", ".", " ", "\n", "🦀", "a b", "A",
        "ａ", "\u{ffff}", &long, &nearly,
    ]
    .map(str::to_owned)
    .into()
}

const ODD_NAMESPACES: [&str; 8] = ["a", "a.b", "a-b", "a_b", "ab", "a0", "0", "a.b.c"];

pub async fn odd_names_do_not_collide(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let keys: Vec<RecordKey> = ODD_NAMESPACES
        .iter()
        .flat_map(|namespace| odd_names().into_iter().map(|name| key_in(namespace, &name)))
        .collect();
    let mut written = Vec::new();
    for (index, key) in keys.iter().enumerate() {
        let record = completed(&index.to_string(), "");
        let revision = create(&store, key, &record).await;
        written.push(as_written(&record, revision));
    }
    for (key, written) in keys.iter().zip(&written) {
        assert_eq!(&load(&store, key).await, written);
    }
}

pub async fn scan_reads_one_namespace_in_order_of_key(fixture: &impl Fixture) {
    let store = fixture.store().await;
    for namespace in ODD_NAMESPACES {
        for name in odd_names() {
            create(&store, &key_in(namespace, &name), &completed(&format!("{namespace} {name}"), "")).await;
        }
    }
    let mut in_order = odd_names();
    in_order.sort();
    for limit in [1, 7, in_order.len(), 1_000] {
        for namespace in ["a", "a.b", "0"] {
            let owners: Vec<_> = in_order.iter().map(|name| format!("{namespace} {name}")).collect();
            let scanned = scan_all(&*store, &namespace_named(namespace), limit).await;
            assert_eq!(scanned, in_order.iter().cloned().zip(owners).collect::<Vec<_>>());
        }
    }
    // A page may start at a name that is not there.
    let after = Key::new("a/b0").unwrap();
    let page = store.scan(&namespace_named("a"), Some(&after), 1).await.unwrap();
    assert_eq!(page.records[0].0.as_str(), "b");
    let loaded = load(&store, &key_in("a", "b")).await;
    assert_eq!(page.records[0].1, loaded);
}

/// The keys and owners of all records of a namespace, page by page.
async fn scan_all(store: &dyn RecordStore, namespace: &Namespace, limit: usize) -> Vec<(String, String)> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = store.scan(namespace, after.as_ref(), limit).await.unwrap();
        assert!(page.records.len() <= limit);
        let read = page.records.iter();
        all.extend(read.map(|(key, loaded)| (key.as_str().to_owned(), loaded.record.owner.clone())));
        let Some(next) = page.next else { return all };
        assert!(after.is_none_or(|after| after < next), "the scan does not get on");
        after = Some(next);
    }
}

pub async fn scan_pages_large_records(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let outcome = vec![0; OUTCOME_MAX_BYTES];
    for name in ["a", "b", "c", "d", "e", "f", "g"] {
        create(&store, &key(name), &completed(name, outcome.clone())).await;
    }
    let suite = namespace_named("suite");
    let page = store.scan(&suite, None, 1_000).await.unwrap();
    assert!(page.next.is_some(), "7 MiB on one page");
    let names: Vec<_> = scan_all(&*store, &suite, 1_000).await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.concat(), "abcdefg");
}

pub async fn scan_of_nothing_is_one_empty_page(fixture: &impl Fixture) {
    let store = fixture.store().await;
    create(&store, &key_in("neighbour", "k"), &claim("holder")).await;
    for namespace in ["neighbou", "neighbour0", "suite"] {
        let page = store.scan(&namespace_named(namespace), None, 10).await.unwrap();
        assert!(page.records.is_empty() && page.next.is_none());
    }
}
