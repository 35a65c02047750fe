//! Which watchers a lapse reaches, and what is kept of others.

use std::time::Duration;

use super::lapses::Lapses;
use crate::record::{Key, Namespace, RecordKey};
use crate::store::Revision;
use crate::store::hub::Hub;

fn key(name: &str) -> RecordKey {
    RecordKey { namespace: Namespace::new("n").unwrap(), key: Key::new(name).unwrap() }
}

async fn hinted(watch: &mut crate::store::Watch) -> bool {
    tokio::time::timeout(Duration::from_millis(20), watch.changed()).await.is_ok()
}

#[tokio::test]
async fn a_lapse_hints_the_watchers_of_the_records_that_name_the_lease() {
    let hub = Hub::default();
    let lapses = Lapses::new(hub.clone());
    let (mut moved, mut held) = (hub.watch(&key("moved"), None), hub.watch(&key("held"), None));
    lapses.note(&key("moved"), Revision(1), Some(1));
    lapses.note(&key("held"), Revision(1), Some(1));
    lapses.note(&key("moved"), Revision(2), Some(2));
    lapses.gone(1);
    assert!(hinted(&mut held).await);
    assert!(!hinted(&mut moved).await);
    assert!(lapses.is_gone(1));
    assert!(!lapses.is_gone(2));
    lapses.gone(2);
    assert!(hinted(&mut moved).await);
}

#[tokio::test]
async fn a_read_that_comes_late_hides_no_lapse_of_the_lease_that_came_after() {
    let hub = Hub::default();
    let lapses = Lapses::new(hub.clone());
    let mut watch = hub.watch(&key("k"), None);
    lapses.note(&key("k"), Revision(2), Some(2));
    lapses.note(&key("k"), Revision(1), Some(1));
    lapses.gone(2);
    assert!(hinted(&mut watch).await);
}

#[test]
fn nothing_is_kept_of_records_that_nobody_watches() {
    let hub = Hub::default();
    let lapses = Lapses::new(hub.clone());
    lapses.note(&key("never"), Revision(1), Some(1));
    let (one, other) = (hub.watch(&key("left"), None), hub.watch(&key("left"), None));
    lapses.note(&key("left"), Revision(1), Some(1));
    drop(one);
    lapses.forget(&key("left"));
    assert_eq!(lapses.noted(), 1);
    drop(other);
    lapses.forget(&key("left"));
    assert_eq!(lapses.noted(), 0);
}
