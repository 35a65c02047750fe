//! How long the tests that repeat go on.

/// How often a test repeats what it does: `ONCED_TEST_ROUNDS` says so for long runs, else as `usual`.
pub fn rounds(usual: usize) -> usize {
    std::env::var("ONCED_TEST_ROUNDS").map_or(usual, |rounds| rounds.parse().expect("a number"))
}
