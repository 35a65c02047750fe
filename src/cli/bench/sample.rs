//! Which keys of a load are asked for once more when it is over.

use std::sync::Mutex;

use super::tally::lock;
use crate::clock::Moment;

/// How many keys a sample holds at most.
pub const SAMPLE_MAX: usize = 1_000;

/// A key that its callers are done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub number: u64,
    /// When it was begun, or before.
    pub began: Moment,
    /// That of its claim, if a caller got one.
    pub token: Option<u64>,
    /// Whether its Complete was acknowledged.
    pub completed: bool,
}

/// All keys while they are few, and later some of them, spread evenly over the whole load.
pub struct Sample(Mutex<Kept>);

struct Kept {
    /// The places up to here are taken.
    up_to: u64,
    keys: Vec<Ended>,
}

impl Sample {
    pub fn new() -> Self {
        Self(Mutex::new(Kept { up_to: u64::MAX, keys: Vec::new() }))
    }

    /// Whether a key may come into it: one that is to be there at the end must be kept for so long. What it does not
    /// take now, it never takes.
    pub fn takes(&self, number: u64) -> bool {
        place(number) <= lock(&self.0).up_to
    }

    /// Takes a key, if it is one of those.
    pub fn offer(&self, key: Ended) {
        let Kept { up_to, keys } = &mut *lock(&self.0);
        if place(key.number) <= *up_to {
            keys.push(key);
        }
        while keys.len() > SAMPLE_MAX {
            *up_to /= 2;
            keys.retain(|key| place(key.number) <= *up_to);
        }
    }

    /// The keys in it.
    pub fn keys(&self) -> Vec<Ended> {
        lock(&self.0).keys.clone()
    }
}

/// Numbers in a row are far from each other here, by the golden ratio. With every n-th number, what goes wrong with
/// each second key might never be met.
fn place(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(number: u64) -> Ended {
        Ended { number, began: Moment::default(), token: None, completed: false }
    }

    fn of(count: u64) -> Vec<u64> {
        let sample = Sample::new();
        (0..count).for_each(|number| sample.offer(ended(number)));
        sample.keys().iter().map(|key| key.number).collect()
    }

    #[test]
    fn few_keys_are_all_in_it_and_many_are_spread_evenly() {
        assert_eq!(of(1_000), (0..1_000).collect::<Vec<_>>());
        for count in [1_001, 30_000, 1_000_000] {
            let keys = of(count);
            assert!((450..=SAMPLE_MAX).contains(&keys.len()), "{} of {count}", keys.len());
            let tenths = (0..10).map(|tenth| keys.iter().filter(|&key| key * 10 / count == tenth).count());
            let odd = keys.iter().filter(|&key| key % 2 == 1).count();
            for part in tenths.map(|part| part * 10).chain([odd * 2]) {
                assert!(part.abs_diff(keys.len()) < 100, "{part} of {} of {count}", keys.len());
            }
        }
    }

    #[test]
    fn whatever_is_in_it_at_the_end_was_to_be_taken_at_its_beginning() {
        let sample = Sample::new();
        let mut kept_for_long = Vec::new();
        // Each begins a hundred keys before it ends.
        for number in 0..10_000_u64 {
            kept_for_long.push(sample.takes(number));
            if let Some(ends) = number.checked_sub(100) {
                sample.offer(ended(ends));
            }
        }
        assert!(sample.keys().iter().all(|key| kept_for_long[usize::try_from(key.number).unwrap()]));
        let long = kept_for_long.iter().filter(|&&long| long).count();
        assert!(long < 5 * SAMPLE_MAX, "{long} of 10000 are kept for long");
    }
}
