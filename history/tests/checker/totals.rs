//! A run in which nothing happened shows nothing.

use onced_history::Totals;

/// Just enough.
const ENOUGH: Totals = Totals {
    keys: 1,
    operations: 6,
    tries: 8,
    answered: 4,
    claims: 2,
    takeovers: 1,
    outcomes: 1,
    refused: 1,
    recovered: 1,
    waited: 1,
    updates: 1,
    unread: 0,
    undecided: 0,
    longest: std::time::Duration::ZERO,
};

#[test]
fn each_part_that_is_missing_is_named() {
    ENOUGH.shows_enough().unwrap();
    let lacking = [
        ("most tries failed", Totals { answered: 3, ..ENOUGH }),
        ("nothing was answered", Totals { answered: 0, tries: 0, ..ENOUGH }),
        ("nobody took over", Totals { takeovers: 0, ..ENOUGH }),
        ("no stale holder", Totals { refused: 0, ..ENOUGH }),
        ("no lost reply", Totals { recovered: 0, ..ENOUGH }),
        ("nobody asked for again", Totals { unread: 1, ..ENOUGH }),
        ("not all of it is decided", Totals { undecided: 1, ..ENOUGH }),
    ];
    for (what, totals) in lacking {
        let error = totals.shows_enough().expect_err(what);
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn totals_add_up() {
    let mut sum = ENOUGH;
    sum += ENOUGH;
    assert_eq!((sum.tries, sum.answered, sum.takeovers, sum.unread), (16, 8, 2, 0));
    assert_eq!((sum.waited, sum.updates), (2, 2));
    sum.shows_enough().unwrap();
}
