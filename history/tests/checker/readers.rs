//! Histories that cannot have been, for what somebody was told who waits or watches; and how all of one is told.

use onced_history::Promise::*;
use onced_history::{Answer, Call};

use crate::bad::{Bad, bad, done, taken_over};
use crate::story::*;

pub const READERS: [Bad; 12] = [
    bad("a waiting Lookup tells what was overwritten before it came", Linearizable, "attempt 2", |it| {
        taken_over(it);
        it.op(13, 14, lookup(), in_progress(2, "b"));
        it.planted(|it| it.op(15, 25, lookup_that_waits(), in_progress(1, "a")));
    }),
    bad("a waiting Lookup tells an outcome before it is there", Linearizable, "completed by 5", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.planted(|it| it.op(1, 2, lookup_that_waits(), completed(5, 1, "a", "done")));
        it.op(3, 4, complete(5, "done"), stored());
    }),
    bad("a waiting Lookup misses an outcome that was told", OutcomeStays, "and then", |it| {
        done(it);
        it.planted(|it| it.op(3, 30, lookup_that_waits(), in_progress(1, "a")));
    }),
    bad("a watch begins with what was overwritten before it", Linearizable, "attempt 2", |it| {
        taken_over(it);
        it.planted(|it| it.watch(13, &[(14, in_progress(1, "a"))]));
    }),
    bad("a watch goes back", Linearizable, "attempt 2 of \"b\"", |it| {
        taken_over(it);
        it.watch(2, &[(14, in_progress(2, "b"))]);
        it.planted(|it| it.watch(2, &[(15, in_progress(1, "a"))]));
    }),
    bad("a watch goes back to what nobody else saw", Linearizable, "attempt 2 of \"b\"", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(2, 3, release(5), Answer::Ok);
        it.op(4, 5, begin("b"), claim(7, 2));
        it.watch(1, &[(15, in_progress(2, "b"))]);
        it.planted(|it| it.watch(1, &[(16, available(1, "a"))]));
    }),
    bad("a watch tells a state that never was", Linearizable, "in progress at \"c\"", |it| {
        taken_over(it);
        it.planted(|it| it.watch(1, &[(20, in_progress(3, "c"))]));
    }),
    bad("a watch tells a lapse before its time", Linearizable, "held until 10s", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.planted(|it| it.watch(1, &[(2, available(1, "a"))]));
    }),
    bad("a watch tells another outcome", OneOutcome, "two outcomes", |it| {
        done(it);
        it.planted(|it| it.watch(0, &[(9, completed(5, 1, "a", "done!"))]));
    }),
    bad("a watch misses an outcome that was told before it", OutcomeStays, "and then", |it| {
        done(it);
        it.planted(|it| it.watch(3, &[(9, in_progress(1, "a"))]));
    }),
    bad("a watch goes on after an outcome", WatchEnds, "after its last word", |it| {
        done(it);
        it.watch(1, &[(3, completed(5, 1, "a", "done"))]);
        it.planted(|it| it.watch(1, &[(4, completed(5, 1, "a", "done"))]));
    }),
    bad("a watch goes on in the key's next life", WatchEnds, "after its last word", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(2, 3, Call::Delete { token: 5, force: true }, Answer::Ok);
        it.op(4, 5, begin("b"), claim(7, 1));
        it.watch(1, &[(6, Answer::NotFound)]);
        it.planted(|it| it.watch(1, &[(7, in_progress(1, "b"))]));
    }),
];

/// Whoever reads a log has nothing but that.
#[test]
fn a_key_that_fails_is_told_with_all_that_was_seen_of_it() {
    let mut story = Story::default();
    story.op(0, 1, begin("a"), claim(5, 1));
    story.retried(&[2], 4, 5, renew(5), renewed());
    story.watch(3, &[(6, in_progress(1, "a")), (7, in_progress(1, "a"))]);
    story.op(8, 9, begin("b"), claim(7, 2));
    let other = story.history.call("another", "other", lookup());
    story.history.sent(&other, seconds(1), None);
    let told = story.check().unwrap_err().to_string();
    let whole = r#"all that was seen of k, in the order of being sent:
  #0 somebody: Begin a of "a"
    sent 0ns, due in 5s, told 1s: claim 5, attempt 1, armed 0ns later for 10s
  #1 somebody: Renew 5
    sent 2s, failed 3s, and it may have happened
    sent 4s, due in 5s, told 5s: armed again for 10s
  #2 somebody: Watch
    sent 3s, told 6s: in progress at "a", attempt 1
  #3 somebody: Watch, after #2
    sent 3s, told 7s: in progress at "a", attempt 1
  #4 somebody: Begin b of "b"
    sent 8s, due in 5s, told 9s: claim 7, attempt 2, armed 0ns later for 10s
"#;
    assert!(told.contains(whole), "{told}");
    // What passes is left out.
    assert!(!told.contains("another"), "{told}");
}
