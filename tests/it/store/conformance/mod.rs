//! What every store promises. Each case gets a fixture with fresh data.

pub mod faults;
pub mod keys;
pub mod swaps;
pub mod times;
pub mod watches;

/// Makes a test of each case, on the fixture that the expression makes.
macro_rules! conformance {
    ($fixture:expr) => {
        $crate::store::conformance::conformance! { $fixture;
            faults: dropped_swap_happens_whole_or_not_at_all;
            faults: acknowledged_writes_survive_a_restart;
            faults: locks_are_held_again_after_a_restart_and_lapse_again;
            faults: an_unknown_outcome_is_whole_or_nothing_after_the_restart;
            keys: odd_names_do_not_collide;
            keys: scan_reads_one_namespace_in_order_of_key;
            keys: scan_pages_large_records;
            keys: scan_of_nothing_is_one_empty_page;
            swaps: creates_only_what_is_absent;
            swaps: every_state_is_read_as_it_was_written;
            swaps: the_token_of_a_claim_is_its_revision_and_stays;
            swaps: a_stale_revision_loses;
            swaps: a_conflict_brings_what_is_there;
            swaps: what_is_recalled_is_what_a_load_would_bring;
            swaps: delete_with_a_stale_revision_loses;
            swaps: tokens_grow_over_delete_and_rebirth;
            swaps: one_of_fifty_takeovers_wins;
            swaps: no_increment_is_lost;
            swaps: swaps_of_many_keys_do_not_disturb_each_other;
            swaps: the_largest_records_fit;
            times: a_lock_lapses_after_its_ttl_and_stays_lapsed;
            times: a_conflict_shows_the_lapse;
            times: a_renewed_lock_is_held_for_its_ttl_anew;
            times: what_lapsed_can_still_be_completed;
            times: what_has_no_lock_never_lapses;
            times: an_expired_record_is_absent_and_reborn_with_a_larger_token;
            times: a_rewritten_record_outlives_its_first_retention;
            times: what_waits_for_an_operator_never_expires;
            watches: a_change_is_hinted;
            watches: a_delete_is_hinted;
            watches: a_lapse_is_hinted;
            watches: an_expiry_is_hinted;
            watches: no_change_after_registering_is_missed;
            watches: a_watch_that_ends_leaves_the_others;
        }
    };
    ($fixture:expr; $($group:ident: $case:ident;)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::store::conformance::$group::$case(&$fixture.await).await;
            }
        )+
    };
}
pub(crate) use conformance;
