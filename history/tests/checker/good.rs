//! Histories that can have been.

use onced_history::{Answer, Bounds, Call, Checkpoint, Claim, Totals};

use crate::story::*;

#[track_caller]
fn passes(tell: impl FnOnce(&mut Story)) -> Totals {
    let mut story = Story::default();
    tell(&mut story);
    story.check().unwrap_or_else(|wrong| panic!("{wrong}"))
}

#[test]
fn one_works_and_the_others_wait() {
    let totals = passes(|it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(1, 4, begin("b"), completed(5, 1, "a", "done"));
        it.op(1, 2, begin("c"), in_progress(1, "a"));
        it.op(2, 3, complete(5, "done"), stored());
        it.op(9, 9, lookup(), completed(5, 1, "a", "done"));
    });
    assert_eq!((totals.operations, totals.claims, totals.outcomes, totals.unread), (5, 1, 3, 0));
}

#[test]
fn a_lapsed_claim_is_taken_over_with_its_checkpoint_and_its_holder_refused() {
    let totals = passes(|it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(1, 2, save(5, 1), renewed());
        it.op(11, 12, begin("b"), claim_at(7, 2, 1));
        it.op(12, 13, complete(5, "late"), Answer::ClaimLost);
        it.op(13, 14, complete(7, "done"), stored());
    });
    assert_eq!((totals.takeovers, totals.refused, totals.unread), (1, 1, 1));
}

#[test]
fn a_late_complete_wins_if_nobody_took_over() {
    passes(|it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(20, 21, lookup(), available(1, "a"));
        it.op(30, 31, complete(5, "done"), stored());
        it.op(32, 33, begin("b"), completed(5, 1, "a", "done"));
    });
}

#[test]
fn a_lapsed_claim_is_resumed_by_its_own_caller() {
    passes(|it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(20, 21, lookup(), available(1, "a"));
        it.op(22, 23, begin("a"), resumed(5, 1));
        it.op(24, 25, lookup(), in_progress(1, "a"));
    });
}

#[test]
fn lost_replies_are_recovered() {
    let totals = passes(|it| {
        it.retried(&[0], 2, 3, begin("a"), resumed(5, 1));
        it.retried(&[3], 5, 6, complete(5, "done"), stored_already());
        it.op(7, 8, lookup(), completed(5, 1, "a", "done"));
    });
    assert_eq!((totals.recovered, totals.tries, totals.answered), (2, 5, 3));
}

#[test]
fn a_claim_that_nobody_received_is_given_back() {
    passes(|it| {
        it.retried(&[0], 3, 4, begin("a"), claim(6, 2));
        it.op(1, 2, lookup(), in_progress(1, "a"));
    });
}

#[test]
fn an_unknown_begin_may_land_when_another_has_released() {
    passes(|it| {
        it.retried(&[0], 2, 3, begin("a"), claim(5, 1));
        it.op(3, 4, release(5), Answer::Ok);
        it.op(4, 5, begin("b"), claim(6, 2));
        it.op(5, 6, release(6), Answer::Ok);
        it.op(7, 8, begin("c"), in_progress(3, "a"));
        it.op(20, 21, begin("c"), claim(9, 4));
    });
}

#[test]
fn the_lock_of_a_claim_that_lands_late_runs_from_when_it_was_sent() {
    passes(|it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(1, 2, complete(5, "done"), stored());
        // Its write was lost on the way, and met the record when it was sent again.
        it.op(2, 3, begin("b"), completed(5, 1, "a", "done"));
        it.op(7, 8, delete(5), Answer::Ok);
        it.op(8, 9, lookup(), in_progress(1, "b"));
        it.op(13, 14, begin("c"), claim(9, 2));
    });
}

#[test]
fn an_unknown_complete_may_land_at_any_time_or_never() {
    let before = |it: &mut Story| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.lost(2, complete(5, "done"));
        it.op(5, 6, lookup(), in_progress(1, "a"));
    };
    passes(|it| {
        before(it);
        it.op(30, 31, lookup(), available(1, "a"));
        it.op(32, 33, lookup(), completed(5, 1, "a", "done"));
    });
    passes(|it| {
        before(it);
        it.op(30, 31, begin("b"), claim(6, 2));
        it.op(32, 33, complete(6, "by b"), stored());
    });
}

#[test]
fn an_unknown_renew_keeps_a_claim_and_its_checkpoint() {
    passes(|it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(11, 12, lookup(), available(1, "a"));
        it.lost(12, save(5, 3));
        it.op(13, 14, lookup(), in_progress(1, "a"));
        it.op(30, 31, begin("b"), claim_at(7, 2, 3));
    });
}

#[test]
fn an_unknown_release_frees_a_key() {
    passes(|it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.lost(1, release(5));
        it.op(3, 4, begin("b"), claim(6, 2));
    });
}

#[test]
fn what_is_held_back_waits_for_an_operator() {
    passes(|it| {
        it.op(0, 1, begin_hold("a"), claim(5, 1));
        it.op(11, 12, lookup(), in_doubt(5, 1, "a"));
        // Nobody has written it down yet.
        it.op(12, 13, renew(5), renewed());
        it.op(30, 31, begin("b"), in_doubt(5, 1, "a"));
        it.op(32, 33, renew(5), Answer::ClaimLost);
        it.op(900, 901, resolve(5), Answer::Ok);
        it.op(902, 903, resolve(5), Answer::Ok);
        it.op(904, 905, begin("b"), claim(6, 2));
        it.op(906, 907, doubt(6), Answer::Ok);
        it.op(908, 909, settle(6, "by hand"), Answer::Ok);
        it.op(910, 911, begin("c"), completed(8, 2, "b", "by hand"));
        it.op(912, 913, complete(6, "by hand"), Answer::ClaimLost);
        it.op(914, 915, settle(6, "otherwise"), Answer::OutcomeConflict);
    });
}

#[test]
fn a_call_that_writes_a_doubt_down_may_be_told_what_came_after() {
    // Between b's two writes the key is resolved, or completed.
    passes(|it| {
        it.op(0, 1, begin_hold("a"), claim(5, 1));
        it.op(11, 16, begin("b"), claim(6, 2));
        it.op(12, 13, renew(5), Answer::ClaimLost);
        it.op(14, 15, resolve(5), Answer::Ok);
    });
    passes(|it| {
        it.op(0, 1, begin_hold("a"), claim(5, 1));
        it.op(11, 16, begin("b"), completed(5, 1, "a", "done"));
        it.op(12, 13, renew(5), Answer::ClaimLost);
        it.op(14, 15, complete(5, "done"), stored());
    });
}

#[test]
fn a_request_id_is_spent_until_somebody_else_had_the_key() {
    passes(|it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(1, 2, release(5), Answer::Ok);
        it.op(2, 3, begin("a"), Answer::ClaimLost);
        it.op(3, 4, begin("b"), claim(6, 2));
        it.op(4, 5, release(6), Answer::Ok);
        it.op(5, 6, begin("a"), claim(7, 3));
    });
}

#[test]
fn a_deleted_key_is_born_again_with_higher_tokens() {
    passes(|it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(1, 2, delete(5), Answer::ClaimHeld);
        it.op(2, 3, Call::Delete { token: 5, force: true }, Answer::Ok);
        it.op(3, 4, delete(5), Answer::Ok);
        it.op(4, 5, complete(5, "done"), Answer::NotFound);
        it.op(5, 6, begin("a"), claim(6, 1));
        it.op(6, 7, delete(5), Answer::ClaimLost);
    });
}

#[test]
fn an_outcome_may_be_gone_when_its_retention_is_over() {
    passes(|it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(1, 2, complete(5, "done"), stored());
        it.op(90, 95, lookup(), completed(5, 1, "a", "done"));
        it.op(101, 102, lookup(), Answer::NotFound);
        it.op(102, 103, begin("b"), claim(8, 1));
        it.op(103, 104, complete(8, "anew"), stored());
    });
    // Or still be there.
    passes(|it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(1, 2, complete(5, "done"), stored());
        it.op(900, 901, lookup(), completed(5, 1, "a", "done"));
    });
}

#[test]
fn a_fingerprint_is_that_of_the_first_write_that_has_one() {
    passes(|it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(1, 2, begin_for("b", "x"), in_progress(1, "a"));
        it.op(2, 3, release(5), Answer::Ok);
        it.op(3, 4, begin_for("b", "y"), claim(6, 2));
        it.op(4, 5, begin_for("c", "x"), Answer::FingerprintMismatch);
        it.op(5, 6, begin("c"), in_progress(2, "b"));
        it.op(6, 7, complete(6, "done"), stored());
        it.op(7, 8, begin_for("c", "x"), Answer::FingerprintMismatch);
        it.op(8, 9, begin_for("c", "y"), completed(6, 2, "b", "done"));
    });
}

#[test]
fn an_older_checkpoint_that_comes_late_is_passed_over() {
    passes(|it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.retried(&[1], 5, 6, save(5, 1), renewed());
        it.op(3, 4, save(5, 2), renewed());
        it.op(
            6,
            7,
            begin("a"),
            Answer::Claim(Claim {
                resumed: true,
                checkpoint: Some(Checkpoint { ..checkpoint(2) }),
                ..claim_of(5, 1)
            }),
        );
    });
}

#[test]
fn two_of_a_kind_at_once_may_go_either_way() {
    passes(|it| {
        it.op(0, 5, begin("a"), in_progress(1, "b"));
        it.op(0, 5, begin("b"), claim(5, 1));
        it.op(0, 5, begin("c"), in_progress(1, "b"));
        it.op(1, 4, lookup(), Answer::NotFound);
    });
}

#[test]
fn a_lookup_waits_and_is_told_what_was_there_at_some_time_since_it_came() {
    let totals = passes(|it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(1, 6, lookup_that_waits(), completed(5, 1, "a", "done"));
        it.op(2, 5, lookup_that_waits(), in_progress(1, "a"));
        it.op(3, 4, complete(5, "done"), stored());
        it.op(5, 6, lookup_that_waits(), completed(5, 1, "a", "done"));
    });
    // The last one had nothing to wait for.
    assert_eq!((totals.waited, totals.outcomes), (1, 3));
}

#[test]
fn a_watch_is_told_states_in_their_order_late_and_not_all_of_them() {
    let totals = passes(|it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(2, 3, release(5), Answer::Ok);
        it.op(4, 5, begin("b"), claim(7, 2));
        it.op(6, 7, complete(7, "done"), stored());
        let (first, second) = (in_progress(1, "a"), in_progress(2, "b"));
        let done = || completed(7, 2, "b", "done");
        it.watch(1, &[(8, first), (9, available(1, "a")), (10, second.clone()), (11, done())]);
        it.watch(5, &[(20, second), (21, done())]);
        it.watch(6, &[(30, done())]);
    });
    assert_eq!((totals.updates, totals.operations, totals.outcomes), (4, 4, 4));
}

#[test]
fn a_watch_of_a_key_that_is_deleted_ends_with_that() {
    passes(|it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(2, 3, Call::Delete { token: 5, force: true }, Answer::Ok);
        it.op(4, 5, begin("b"), claim(7, 1));
        it.watch(0, &[(6, in_progress(1, "a")), (7, Answer::NotFound)]);
        it.watch(5, &[(6, in_progress(1, "b"))]);
    });
}

#[test]
fn keys_are_independent() {
    let story = Story::default();
    for (key, token) in [("one", 7), ("other", 5)] {
        let id = story.history.call(CALLER, key, begin("a"));
        story.history.sent(&id, seconds(token), None);
        story.history.answered(&id, seconds(token + 1), claim(token, 1));
    }
    let totals = story.history.check(&Bounds::until(seconds(100))).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert_eq!((totals.keys, totals.claims), (2, 2));
}

#[test]
fn a_lock_ends_early_only_where_the_store_was_made_to_end_it() {
    let mut story = Story::default();
    story.op(0, 1, begin("a"), claim(5, 1));
    story.op(2, 3, begin("b"), claim(7, 2));
    story.op(4, 5, complete(5, "late"), Answer::ClaimLost);
    let checked = |locks_end_early| {
        story.history.check(&Bounds { locks_end_early, ..Bounds::until(seconds(100)) }).is_ok()
    };
    assert_eq!((checked(true), checked(false)), (true, false));
    // A stale holder completes nothing, even so.
    story.op(6, 7, complete(5, "later"), stored());
    let early = Bounds { locks_end_early: true, ..Bounds::until(seconds(100)) };
    story.history.check(&early).expect_err("a stale holder");
}

#[test]
fn a_search_that_is_given_up_is_no_success() {
    let mut story = Story::default();
    story.op(0, 1, begin("a"), claim(5, 1));
    story.op(1, 2, release(5), Answer::Ok);
    let bounds = Bounds { points_max: 2, ..Bounds::until(seconds(10)) };
    let wrong = story.history.check(&bounds).expect_err("it is given up");
    assert!(wrong.violations.is_empty(), "{wrong}");
    assert_eq!((wrong.undecided.len(), wrong.totals.undecided), (1, 1));
    assert!(wrong.to_string().contains("undecided"), "{wrong}");
    assert!(wrong.totals.shows_enough().is_err());
}
