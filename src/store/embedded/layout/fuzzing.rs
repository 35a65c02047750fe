//! What fuzzing enters here.

use super::*;

/// The row of a key is found by its namespace, and gives the key back.
pub fn row(key: &RecordKey) {
    let row = record_row(key);
    assert_eq!(key_of(&key.namespace, &row), Ok(key.key.clone()));
    let (Bound::Excluded(first), Bound::Excluded(end)) = namespace_rows(&key.namespace, None) else {
        panic!("bounds of another kind")
    };
    assert!(first < row && row < end, "it lies outside of its namespace");
}
