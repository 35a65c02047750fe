//! Locks lapse, and records expire.

use std::time::Duration;

use onced::record::limits::LOCK_TTL_MIN;
use onced::record::{Lock, OnLapse, Record};
use onced::store::{Expected, Swapped};

use crate::store::fixture::{
    Fixture, as_written, claim, completed, create, held, in_doubt, in_progress, key, lapse, load, write,
};

pub async fn a_lock_lapses_after_its_ttl_and_stays_lapsed(fixture: &impl Fixture) {
    const LOCK_TTL: Duration = Duration::from_secs(4);
    let (store, key) = (fixture.store().await, key("k"));
    let long = Record { state: in_progress(LOCK_TTL, OnLapse::TakeOver), ..claim("holder") };
    let revision = create(&store, &key, &long).await;
    fixture.pass(LOCK_TTL / 4).await;
    assert_eq!(load(&store, &key).await, as_written(&long, revision));
    let lapsed = lapse(fixture, &store, &key, LOCK_TTL - LOCK_TTL / 4).await;
    assert_eq!((lapsed.revision, lapsed.record.owner.as_str()), (revision, "holder"));
    for store in [store, fixture.store().await] {
        assert_eq!(load(&store, &key).await, lapsed);
    }
}

pub async fn a_conflict_shows_the_lapse(fixture: &impl Fixture) {
    let (store, key) = (fixture.store().await, key("k"));
    create(&store, &key, &claim("holder")).await;
    let lapsed = lapse(fixture, &store, &key, LOCK_TTL_MIN).await;
    let lost = store.swap(&key, Expected::Absent, Some(&claim("late"))).await;
    assert_eq!(lost, Ok(Swapped::Conflict(Some(lapsed))));
}

pub async fn a_renewed_lock_is_held_for_its_ttl_anew(fixture: &impl Fixture) {
    const LOCK_TTL: Duration = Duration::from_secs(4);
    const PART: Duration = Duration::from_millis(2_500);
    let (store, key) = (fixture.store().await, key("k"));
    let long = Record { state: in_progress(LOCK_TTL, OnLapse::TakeOver), ..claim("holder") };
    let mut revision = create(&store, &key, &long).await;
    for _ in 0..2 {
        fixture.pass(PART).await;
        let loaded = load(&store, &key).await;
        assert_eq!((loaded.revision, loaded.lock), (revision, Lock::Held));
        revision = write(&store, &key, Expected::At(revision), Some(&loaded.record)).await;
    }
    lapse(fixture, &store, &key, LOCK_TTL).await;
    // A lapsed lock can be armed again, by a write that nobody forestalled.
    let lapsed = load(&store, &key).await;
    write(&store, &key, Expected::At(lapsed.revision), Some(&lapsed.record)).await;
    assert_eq!(load(&store, &key).await.lock, Lock::Held);
}

pub async fn what_lapsed_can_still_be_completed(fixture: &impl Fixture) {
    let (store, key) = (fixture.store().await, key("k"));
    create(&store, &key, &claim("holder")).await;
    let lapsed = lapse(fixture, &store, &key, LOCK_TTL_MIN).await;
    let done = Record { fencing_token: lapsed.record.fencing_token, ..completed("holder", "late") };
    let revision = write(&store, &key, Expected::At(lapsed.revision), Some(&done)).await;
    assert_eq!(load(&store, &key).await, as_written(&done, revision));
}

pub async fn what_has_no_lock_never_lapses(fixture: &impl Fixture) {
    let (store, key) = (fixture.store().await, key("k"));
    let claimed = create(&store, &key, &claim("holder")).await;
    let done = completed("holder", "done");
    let revision = write(&store, &key, Expected::At(claimed), Some(&done)).await;
    fixture.pass(2 * LOCK_TTL_MIN).await;
    assert_eq!(load(&store, &key).await, as_written(&done, revision));
}

pub async fn an_expired_record_is_absent_and_reborn_with_a_larger_token(fixture: &impl Fixture) {
    let store = fixture.store().await;
    for (name, record) in [("claimed", claim("holder")), ("completed", completed("holder", "done"))] {
        let key = key(name);
        let revision = create(&store, &key, &record).await;
        let token = load(&store, &key).await.record.fencing_token;
        fixture.expire(&key).await;
        assert_eq!(store.load(&key).await, Ok(None));
        let late = store.swap(&key, Expected::At(revision), Some(&claim("late"))).await;
        assert_eq!(late, Ok(Swapped::Conflict(None)));
        let page = store.scan(&key.namespace, None, 100).await.unwrap();
        assert!(page.records.iter().all(|(listed, _)| *listed != key.key));
        create(&store, &key, &claim("heir")).await;
        let reborn = load(&store, &key).await;
        assert_eq!((reborn.record.owner.as_str(), reborn.lock), ("heir", Lock::Held));
        assert!(reborn.record.fencing_token > token);
    }
}

/// On etcd: the retention of its last write must not be that of its first.
pub async fn a_rewritten_record_outlives_its_first_retention(fixture: &impl Fixture) {
    let (store, key) = (fixture.store().await, key("k"));
    let claimed = create(&store, &key, &completed("holder", "done")).await;
    // In doubt: kept until resolved. What armed an earlier expiry must not catch up with it.
    let doubt = in_doubt("holder");
    let revision = write(&store, &key, Expected::At(claimed), Some(&doubt)).await;
    fixture.expire(&key).await;
    assert_eq!(load(&store, &key).await, as_written(&doubt, revision));
    // Resolved, it expires again.
    write(&store, &key, Expected::At(revision), Some(&completed("operator", "done"))).await;
    fixture.expire(&key).await;
    assert_eq!(store.load(&key).await, Ok(None));
}

pub async fn what_waits_for_an_operator_never_expires(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let (held_key, doubt_key) = (key("held"), key("in doubt"));
    let held_at = create(&store, &held_key, &held("holder")).await;
    let doubt_at = create(&store, &doubt_key, &in_doubt("holder")).await;
    lapse(fixture, &store, &held_key, LOCK_TTL_MIN).await;
    fixture.expire(&held_key).await;
    fixture.expire(&doubt_key).await;
    let lapsed = load(&store, &held_key).await;
    assert_eq!((lapsed.revision, lapsed.lock), (held_at, Lock::Lapsed));
    assert_eq!(load(&store, &doubt_key).await, as_written(&in_doubt("holder"), doubt_at));
}
