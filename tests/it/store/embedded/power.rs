//! The power is cut: of what was not synced, any sectors may be on the disk. `ONCED_TEST_ROUNDS` says how often.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onced::record::Record;
use onced::store::embedded::EmbeddedStore;
use onced::store::{Expected, RecordStore, Revision, Swapped};
use tokio::task::JoinSet;

use super::ManualClock;
use super::disk::Disk;
use crate::store::fixture::{claim, completed, key};
use crate::support::rounds::rounds;

/// How often the power is cut, each time leaving an image of the disk to be read.
const IMAGES: usize = 2_000;
/// How often the power of one disk is cut.
const CUTS: usize = 3;
/// How many disks are tried at once: each mostly waits for its own threads.
const AT_ONCE: usize = 8;
const KEYS: usize = 12;
/// The most writes and syncs of the disk before its power is cut.
const STEPS_MAX: i64 = 150;
/// The same while a store is being opened, and recovers.
const OPENING_STEPS_MAX: i64 = 20;
/// On how many disks without syncs the loss is looked for, and on how many it must be found.
const LYING_DISKS: u64 = 30;
const LYING_DISKS_CAUGHT_MIN: u64 = 25;

/// What a key holds.
type Held = Option<(Record, Revision)>;

/// What was seen of power cuts.
#[derive(Debug, Default)]
struct Totals {
    images: usize,
    /// How many of them had their power cut again before they had recovered, at least once.
    cut_again: usize,
    /// In how many of them a write was lost that was not synced, and in how many one was torn.
    with_lost: usize,
    with_torn: usize,
    /// How many records that were answered were read in them, as they were answered.
    audited: usize,
    /// How many of the writes under way had landed, and how many were lost.
    landed: usize,
    lost: usize,
}

/// A disk, and what its store has answered.
struct World {
    disk: Disk,
    clock: ManualClock,
    known: [Held; KEYS],
    random: fastrand::Rng,
    totals: Arc<Mutex<Totals>>,
}

impl World {
    fn new(disk: Disk, seed: u64, totals: Arc<Mutex<Totals>>) -> Self {
        let (clock, random) = (ManualClock::default(), fastrand::Rng::with_seed(seed));
        Self { disk, clock, known: Default::default(), random, totals }
    }

    /// Cuts the power some times, and reads what is there.
    ///
    /// # Errors
    /// What is not as it was answered.
    async fn run(&mut self) -> Result<(), String> {
        for _ in 0..CUTS {
            let (index, next) = self.write_until_it_fails().await?;
            self.cut();
            // A copy: the next writes come right after a recovery, not after a proper end.
            self.audit(&open(&self.disk.copy(), &self.clock)?, index, next).await?;
        }
        Ok(())
    }

    /// Writes and removes records until the disk fails. Returns what the write under way then would have left.
    async fn write_until_it_fails(&mut self) -> Result<(usize, Option<Record>), String> {
        let random = &mut self.random;
        let store = open(&self.disk, &self.clock)?;
        self.disk.fail_after(random.i64(0..STEPS_MAX));
        loop {
            // Now and then the log is moved to the tree.
            self.clock.pass(Duration::from_millis(random.u64(0..400)));
            let index = random.usize(0..KEYS);
            let known = &mut self.known[index];
            let expected = known.as_ref().map_or(Expected::Absent, |(_, revision)| Expected::At(*revision));
            let next = match random.u8(0..8) {
                0 if known.is_some() => None,
                0..4 => Some(claim("holder")),
                _ => Some(completed("holder", vec![random.u8(..); random.usize(1..2_000)])),
            };
            match store.swap(&key(&format!("k{index}")), expected, next.as_ref()).await {
                Ok(Swapped::Done(revision)) => {
                    *known = next.map(|next| (next.written_at(revision.0), revision));
                }
                Ok(Swapped::Conflict(current)) => return Err(format!("{current:?} instead of {expected:?}")),
                Err(_) => return Ok((index, next)),
            }
        }
    }

    /// Cuts the power, perhaps more than once: sometimes while the store is opened again.
    fn cut(&mut self) {
        let (cut, mut became) = self.disk.cut(&mut self.random);
        self.disk = cut;
        let mut again = false;
        while self.random.bool() {
            self.disk.fail_after(self.random.i64(0..OPENING_STEPS_MAX));
            again |= self.disk.open(self.clock.clock()).is_err();
            let (cut, more) = self.disk.cut(&mut self.random);
            self.disk = cut;
            (became.lost, became.torn) = (became.lost + more.lost, became.torn + more.torn);
        }
        let mut totals = self.totals.lock().unwrap();
        totals.images += 1;
        totals.cut_again += usize::from(again);
        totals.with_lost += usize::from(became.lost > 0);
        totals.with_torn += usize::from(became.torn > 0);
    }

    /// Everything is there as it was answered, and the write under way is there whole or not at all.
    async fn audit(
        &mut self,
        store: &EmbeddedStore,
        under_way: usize,
        next: Option<Record>,
    ) -> Result<(), String> {
        for (index, known) in self.known.iter_mut().enumerate() {
            let found = store.load(&key(&format!("k{index}"))).await.map_err(|error| error.to_string())?;
            let found = found.map(|found| (Arc::unwrap_or_clone(found.record), found.revision));
            if found == *known {
                let mut totals = self.totals.lock().unwrap();
                totals.audited += usize::from(found.is_some());
                totals.lost += usize::from(index == under_way);
                continue;
            }
            // At a revision of its own.
            let newest = found.as_ref().map_or(Revision(0), |(_, revision)| *revision);
            let landed = next.clone().map(|next| (next.written_at(newest.0), newest));
            if index != under_way || found != landed {
                return Err(format!("key {index} is {found:?} instead of {known:?}"));
            }
            *known = found;
            self.totals.lock().unwrap().landed += 1;
        }
        Ok(())
    }
}

fn open(disk: &Disk, clock: &ManualClock) -> Result<EmbeddedStore, String> {
    disk.open(clock.clock()).map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn what_was_answered_survives_a_power_cut_at_any_moment() {
    let disks = rounds(IMAGES).div_ceil(CUTS) as u64;
    let (next, totals) = (Arc::new(AtomicU64::new(0)), Arc::<Mutex<Totals>>::default());
    let mut tries = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (next, totals) = (Arc::clone(&next), Arc::clone(&totals));
        tries.spawn(async move {
            loop {
                let seed = next.fetch_add(1, Ordering::SeqCst);
                if seed >= disks {
                    return;
                }
                let run = World::new(Disk::in_memory(), seed, Arc::clone(&totals)).run().await;
                run.unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
            }
        });
    }
    tries.join_all().await;
    let seen = totals.lock().unwrap();
    println!(
        "power cuts: {} images, {} of them cut again in recovery, {} with unsynced writes lost, {} with some torn; \
         {} acknowledged records audited, 0 lost; of the writes under way {} had landed, {} had not",
        seen.images, seen.cut_again, seen.with_lost, seen.with_torn, seen.audited, seen.landed, seen.lost
    );
    assert!(seen.with_lost * 4 > seen.images && seen.with_torn * 4 > seen.images, "{seen:?}");
    assert!(seen.landed > 0 && seen.lost > 0 && seen.audited > seen.images, "{seen:?}");
    assert!(seen.cut_again * 20 > seen.images, "{seen:?}");
}

/// The control: a disk that only says that it synced is found out.
#[tokio::test]
async fn without_syncs_a_power_cut_loses_what_was_answered() {
    let lying = [("log", Disk::with_a_lying_log as fn(Disk) -> Disk), ("tree", Disk::with_a_lying_tree)];
    for (what, lying) in lying {
        let mut caught = 0;
        for seed in 0..LYING_DISKS {
            let mut world = World::new(lying(Disk::in_memory()), seed, Arc::default());
            // On a task of its own: what is lost may lead redb to panic.
            let run = tokio::spawn(async move { world.run().await }).await;
            caught += u64::from(!matches!(run, Ok(Ok(()))));
        }
        println!("without syncs of the {what}: {caught} of {LYING_DISKS} disks lost what was answered");
        assert!(caught >= LYING_DISKS_CAUGHT_MIN, "{what}: {caught} of {LYING_DISKS}");
    }
}
