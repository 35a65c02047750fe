//! libFuzzer around one target of `onced::fuzzing`, named by ONCED_FUZZ_TARGET. Its seeds are written to the
//! directory ONCED_FUZZ_SEEDS first.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use onced::fuzzing::{TARGETS, Target};

static TARGET: OnceLock<&Target> = OnceLock::new();

fn start() {
    let name = std::env::var("ONCED_FUZZ_TARGET").expect("tools/fuzz names a target");
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of onced::fuzzing");
    let directory = std::path::PathBuf::from(std::env::var("ONCED_FUZZ_SEEDS").expect("tools/fuzz names one"));
    for (number, seed) in (target.seeds)().into_iter().enumerate() {
        std::fs::write(directory.join(format!("seed-{number}")), seed).expect("a directory for the seeds");
    }
    TARGET.set(target).ok().expect("once");
}

fuzz_target!(init: start(), |data: &[u8]| (TARGET.get().expect("started").run)(data));
