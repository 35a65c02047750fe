//! What can be fuzzed: see `tools/fuzz`, and the test below, which does a little of it each time.

use crate::{access, record, rpc, store};

/// A way in for bytes that come from outside, which must not panic; and inputs to begin with.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
    /// Good ones, to be changed.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All there are.
pub const TARGETS: [Target; 7] = [
    Target { name: "stored_form", run: store::fuzzing::stored_form, seeds: store::fuzzing::stored_forms },
    Target { name: "log", run: store::fuzzing::log, seeds: store::fuzzing::logs },
    Target { name: "names", run: store::fuzzing::name, seeds: store::fuzzing::names },
    Target { name: "request", run: rpc::fuzzing::request, seeds: rpc::fuzzing::requests },
    Target { name: "wire", run: rpc::fuzzing::wire, seeds: rpc::fuzzing::wires },
    Target {
        name: "credentials",
        run: access::fuzzing::credentials,
        seeds: access::fuzzing::all_credentials,
    },
    Target { name: "history", run: record::fuzzing::history, seeds: record::fuzzing::histories },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// How many changed inputs each target gets.
    const INPUTS: usize = 5_000;

    /// Changes a few bytes: what libFuzzer does, without knowing what it comes to.
    fn change(input: &mut Vec<u8>, others: &[Vec<u8>], random: &mut fastrand::Rng) {
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..=input.len());
            match random.u8(..6) {
                0 if at < input.len() => input[at] ^= 1 << random.u8(..8),
                1 if at < input.len() => input[at] = random.choice([0, 1, 0x7f, 0x80, 0xff]).unwrap(),
                2 => input.truncate(at),
                3 => input.insert(at, random.u8(..)),
                4 => drop(input.drain(at..(at + random.usize(..8)).min(input.len()))),
                _ => {
                    let other = &others[random.usize(..others.len())];
                    let from = random.usize(..=other.len());
                    input.splice(at..at, other[from..].iter().copied().take(random.usize(..32)));
                }
            }
        }
    }

    #[test]
    fn no_target_panics_on_what_is_nearly_right() {
        for Target { name, run, seeds } in TARGETS {
            let seeds = seeds();
            assert!(!seeds.is_empty(), "{name}");
            let mut random = fastrand::Rng::with_seed(7);
            for seed in &seeds {
                run(seed);
            }
            for _ in 0..INPUTS {
                let mut input = seeds[random.usize(..seeds.len())].clone();
                change(&mut input, &seeds, &mut random);
                let result = std::panic::catch_unwind(|| run(&input));
                assert!(result.is_ok(), "{name} panics on {input:02x?}");
            }
        }
    }

    /// Seeds that are refused at the door would lead nowhere.
    #[test]
    fn the_seeds_are_what_they_are_said_to_be() {
        assert_eq!((store::fuzzing::stored_forms)().len(), 5);
        assert_eq!((rpc::fuzzing::requests)().len(), 9);
    }
}
