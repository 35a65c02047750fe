//! The power is cut: of what was not synced, any sectors may be on the disk. `ONCED_TEST_IMAGES` says on how many
//! disks.

use std::sync::Arc;
use std::time::Duration;

use onced::record::Record;
use onced::store::{Expected, RecordStore, Revision, Swapped};

use super::ManualClock;
use super::disk::Disk;
use crate::store::fixture::{claim, completed, key};

const IMAGES: u64 = 20;
/// How often the power of one disk is cut.
const CUTS: usize = 3;
const KEYS: usize = 12;
/// The most writes and syncs of the disk before its power is cut.
const STEPS_MAX: i64 = 150;
/// The same while a store is being opened, and recovers.
const OPENING_STEPS_MAX: i64 = 20;

/// What a key holds.
type Held = Option<(Record, Revision)>;

/// Writes and removes records until the disk fails. Returns what the write under way then would have left.
async fn write_until_it_fails(
    disk: &Disk,
    clock: &ManualClock,
    known: &mut [Held; KEYS],
    random: &mut fastrand::Rng,
) -> (usize, Option<Record>) {
    let store = disk.open(clock.clock()).unwrap();
    disk.fail_after(random.i64(0..STEPS_MAX));
    loop {
        // Now and then the log is moved to the tree.
        clock.pass(Duration::from_millis(random.u64(0..400)));
        let index = random.usize(0..KEYS);
        let expected =
            known[index].as_ref().map_or(Expected::Absent, |(_, revision)| Expected::At(*revision));
        let next = match random.u8(0..8) {
            0 if known[index].is_some() => None,
            0..4 => Some(claim("holder")),
            _ => Some(completed("holder", vec![random.u8(..); random.usize(1..2_000)])),
        };
        match store.swap(&key(&format!("k{index}")), expected, next.as_ref()).await {
            Ok(Swapped::Done(revision)) => {
                known[index] = next.map(|next| (next.written_at(revision.0), revision));
            }
            Ok(Swapped::Conflict(current)) => panic!("{current:?} instead of {expected:?}"),
            Err(_) => return (index, next),
        }
    }
}

/// The disk after its power was cut, perhaps more than once: sometimes while the store is opened again.
fn cut(disk: &Disk, clock: &ManualClock, random: &mut fastrand::Rng) -> Disk {
    let mut cut = disk.cut(random);
    while random.bool() {
        cut.fail_after(random.i64(0..OPENING_STEPS_MAX));
        drop(cut.open(clock.clock()));
        cut = cut.cut(random);
    }
    cut
}

#[tokio::test]
async fn what_was_answered_survives_a_power_cut_at_any_moment() {
    let images =
        std::env::var("ONCED_TEST_IMAGES").map_or(IMAGES, |images| images.parse().expect("a number"));
    let (mut landed, mut lost) = (0, 0);
    for seed in 0..images {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut disk, clock, mut known) = (Disk::in_memory(), ManualClock::default(), Default::default());
        for _ in 0..CUTS {
            let (under_way, next) = write_until_it_fails(&disk, &clock, &mut known, &mut random).await;
            disk = cut(&disk, &clock, &mut random);
            // A copy: the next writes come right after a recovery, not after a proper end.
            let store = disk.copy().open(clock.clock()).unwrap();
            for (index, known) in known.iter_mut().enumerate() {
                let found = store.load(&key(&format!("k{index}"))).await.unwrap();
                let found = found.map(|found| (Arc::unwrap_or_clone(found.record), found.revision));
                if index == under_way && found != *known {
                    // It is there whole, at a revision of its own.
                    let newest = found.as_ref().map_or(Revision(0), |(_, revision)| *revision);
                    assert_eq!(found, next.clone().map(|next| (next.written_at(newest.0), newest)), "{seed}");
                    *known = found;
                    landed += 1;
                } else {
                    assert_eq!(found, *known, "seed {seed}, key {index}");
                    lost += u64::from(index == under_way);
                }
            }
        }
    }
    assert!(landed > 0 && lost > 0, "writes under way: {landed} landed, {lost} were lost");
}
