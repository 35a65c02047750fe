//! Retention counts the time that the store was open.

use std::sync::Arc;
use std::time::Duration;

use onced::record::limits::{RETENTION_MARGIN, RETENTION_MIN};
use onced::record::{OnLapse, Record};
use onced::store::{Expected, RecordStore};

use super::ManualClock;
use super::disk::Disk;
use crate::store::fixture::{as_written, claim, completed, create, in_progress, key, load, recall, write};

const LIFETIME: Duration = RETENTION_MIN.checked_add(RETENTION_MARGIN).unwrap();
const MOMENT: Duration = Duration::from_millis(1);

fn open(disk: &Disk, clock: &ManualClock) -> Arc<dyn RecordStore> {
    Arc::new(disk.open(clock.clock()).unwrap())
}

#[tokio::test]
async fn a_record_is_kept_for_its_retention_and_margin_and_no_longer() {
    let (disk, clock) = (Disk::in_memory(), ManualClock::default());
    let store = open(&disk, &clock);
    create(&store, &key("k"), &completed("holder", "done")).await;
    clock.pass(LIFETIME);
    load(&store, &key("k")).await;
    clock.pass(MOMENT);
    assert_eq!(store.load(&key("k")).await, Ok(None));
}

#[tokio::test]
async fn every_write_counts_anew() {
    let (disk, clock) = (Disk::in_memory(), ManualClock::default());
    let store = open(&disk, &clock);
    let first = create(&store, &key("k"), &completed("holder", "done")).await;
    clock.pass(LIFETIME);
    write(&store, &key("k"), Expected::At(first), Some(&completed("holder", "done"))).await;
    clock.pass(LIFETIME);
    load(&store, &key("k")).await;
}

#[tokio::test]
async fn a_claim_is_kept_beyond_its_lock() {
    const LOCK_TTL: Duration = Duration::from_secs(3_600);
    let (disk, clock) = (Disk::in_memory(), ManualClock::default());
    let store = open(&disk, &clock);
    let long = Record { state: in_progress(LOCK_TTL, OnLapse::TakeOver), ..claim("holder") };
    create(&store, &key("k"), &long).await;
    clock.pass(LOCK_TTL + LIFETIME);
    load(&store, &key("k")).await;
}

/// Less than the store waits before it writes its running time down for its own sake.
const SHORT: Duration = Duration::from_secs(9);

#[tokio::test]
async fn running_time_goes_on_over_a_restart_and_stands_still_while_closed() {
    let (disk, clock) = (Disk::in_memory(), ManualClock::default());
    let store = open(&disk, &clock);
    create(&store, &key("k"), &completed("holder", "done")).await;
    clock.pass(SHORT);
    drop(store);
    clock.pass(10 * LIFETIME);

    let store = open(&disk, &clock);
    clock.pass(LIFETIME - SHORT);
    load(&store, &key("k")).await;
    clock.pass(MOMENT);
    assert_eq!(store.load(&key("k")).await, Ok(None));
}

#[tokio::test]
async fn a_crash_loses_no_running_time_before_the_last_commit() {
    let (disk, clock) = (Disk::in_memory(), ManualClock::default());
    let store = open(&disk, &clock);
    create(&store, &key("early"), &completed("holder", "done")).await;
    clock.pass(SHORT);
    create(&store, &key("late"), &completed("holder", "done")).await;
    let crashed = disk.copy();

    let store = open(&crashed, &clock);
    clock.pass(LIFETIME - SHORT);
    load(&store, &key("early")).await;
    clock.pass(MOMENT);
    assert_eq!(store.load(&key("early")).await, Ok(None));
    load(&store, &key("late")).await;
}

#[tokio::test]
async fn small_records_that_were_written_lately_are_told_at_once() {
    let store = open(&Disk::in_memory(), &ManualClock::default());
    let (small, large) = (completed("holder", vec![9; 10_000]), completed("holder", vec![9; 20_000]));
    let revision = create(&store, &key("small"), &small).await;
    assert_eq!(recall(&store, &key("small")).await, Some(as_written(&small, revision)));
    create(&store, &key("large"), &large).await;
    assert_eq!(recall(&store, &key("large")).await, None);
}
