//! Histories that cannot have been: each is one that can, until something is planted in it. What is planted has
//! to be found, for the reason that it was planted for.

use onced_history::Promise::{self, *};
use onced_history::{Answer, Begin, Call, Claim, Fate};

use crate::readers::READERS;
use crate::story::*;

#[derive(Clone, Copy)]
pub struct Bad {
    name: &'static str,
    breaks: Promise,
    /// What is said of it.
    said: &'static str,
    tell: fn(&mut Story),
}

pub const fn bad(name: &'static str, breaks: Promise, said: &'static str, tell: fn(&mut Story)) -> Bad {
    Bad { name, breaks, said, tell }
}

/// a completes with token 5.
pub fn done(it: &mut Story) {
    it.op(0, 1, begin("a"), claim(5, 1));
    it.op(1, 2, complete(5, "done"), stored());
}

/// a lapses with token 5, and b takes over with token 7.
pub fn taken_over(it: &mut Story) {
    it.op(0, 1, begin("a"), claim(5, 1));
    it.op(11, 12, begin("b"), claim(7, 2));
}

/// a holds token 5, then releases it.
fn released(it: &mut Story) {
    it.op(0, 1, begin("a"), claim(5, 1));
    it.op(1, 2, release(5), Answer::Ok);
}

/// a's claim of token 5 is in doubt.
fn doubted(it: &mut Story) {
    it.op(0, 1, begin("a"), claim(5, 1));
    it.op(1, 2, doubt(5), Answer::Ok);
}

const CLAIMS: [Bad; 20] = [
    bad("two claims live", OneLiveClaim, "two claims live, the first until 10s", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.planted(|it| it.op(2, 3, begin("b"), claim(7, 2)));
    }),
    bad("two claims of one request id live", OneLiveClaim, "of one request id", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.planted(|it| it.op(2, 3, begin("a"), claim(7, 2)));
    }),
    bad("a claim is taken over although it was renewed", OneLiveClaim, "until 18s", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(8, 9, renew(5), renewed());
        it.planted(|it| it.op(11, 12, begin("b"), claim(7, 2)));
    }),
    bad("a claim is taken over although it was resumed", OneLiveClaim, "until 18s", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(8, 9, begin("a"), resumed(5, 1));
        it.planted(|it| it.op(11, 12, begin("b"), claim(7, 2)));
    }),
    bad("a claim says that it waited longer than it did", OneLiveClaim, "until 14s", |it| {
        it.planted(|it| {
            it.op(0, 4, begin("a"), Answer::Claim(Claim { waited: seconds(4), ..claim_of(5, 1) }))
        });
        it.op(11, 12, begin("b"), claim(7, if it.without_the_planted { 1 } else { 2 }));
    }),
    bad("a claim waited longer than its call took", Linearizable, "armed 6s later", |it| {
        it.planted(|it| {
            it.op(0, 4, begin("a"), Answer::Claim(Claim { waited: seconds(6), ..claim_of(5, 1) }))
        });
    }),
    bad("a lock lapses before its time", Linearizable, "held until 10s", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.planted(|it| it.op(2, 3, lookup(), available(1, "a")));
    }),
    bad("a lapse is taken back", Linearizable, "told what stands there", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(11, 12, lookup(), available(1, "a"));
        it.planted(|it| it.op(13, 14, lookup(), in_progress(1, "a")));
    }),
    bad("a token goes backward", TokensGrow, "after a higher one", |it| {
        released(it);
        it.planted(|it| it.op(2, 3, begin("b"), claim(4, 2)));
    }),
    bad("a token goes backward in the key's next life", TokensGrow, "after a higher one", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(1, 2, Call::Delete { token: 5, force: true }, Answer::Ok);
        it.planted(|it| it.op(2, 3, begin("b"), claim(4, 1)));
    }),
    bad("a token is given out twice", TokensGrow, "given out twice", |it| {
        released(it);
        it.planted(|it| it.op(2, 3, begin("b"), claim(5, 2)));
    }),
    bad("an attempt is counted twice", TokensGrow, "not one after the other", |it| {
        released(it);
        it.planted(|it| it.op(2, 3, begin("b"), claim(7, 1)));
    }),
    bad("an attempt is skipped", Linearizable, "told a claim", |it| {
        released(it);
        it.planted(|it| it.op(2, 3, begin("b"), claim(7, 3)));
    }),
    bad("a claim is resumed by another owner", Linearizable, "told what stands there", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        let other = Call::Begin(Begin { owner: "b".into(), ..begin_of("a") });
        it.planted(|it| it.op(2, 3, other, resumed(5, 1)));
    }),
    bad("a claim is given again as if it were new", TokensGrow, "given out twice", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.planted(|it| it.op(2, 3, begin("a"), claim(5, 1)));
    }),
    bad("a lost claim is not given again", Linearizable, "told its claim again", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.planted(|it| it.op(2, 3, begin("a"), in_progress(1, "a")));
    }),
    bad("a resumed claim has another lock TTL", Linearizable, "told its claim again", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        let longer = Claim { lock_ttl: seconds(60), resumed: true, ..claim_of(5, 1) };
        let asked = Call::Begin(Begin { lock_ttl: seconds(60), ..begin_of("a") });
        it.planted(|it| it.op(2, 3, asked, Answer::Claim(longer)));
    }),
    bad("a renewed claim has another lock TTL", Linearizable, "told armed again", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.planted(|it| it.op(2, 3, renew(5), Answer::Renewed { lock_ttl: seconds(60) }));
    }),
    bad("a spent request id gets a claim", Linearizable, "its request id being spent", |it| {
        released(it);
        it.planted(|it| it.op(2, 3, begin("a"), claim(7, 2)));
    }),
    bad("a fresh request id is called spent", Linearizable, "told a claim", |it| {
        released(it);
        it.planted(|it| it.op(2, 3, begin("b"), Answer::ClaimLost));
    }),
];

const OUTCOMES: [Bad; 18] = [
    bad("a replay has other bytes", OneOutcome, "two outcomes", |it| {
        done(it);
        it.planted(|it| it.op(2, 3, begin("b"), completed(5, 1, "a", "done!")));
    }),
    bad("a replay has another token", OneOutcome, "two outcomes", |it| {
        done(it);
        it.planted(|it| it.op(2, 3, begin("b"), completed(6, 1, "a", "done")));
    }),
    bad("a replay names another owner", Linearizable, "told what stands there", |it| {
        done(it);
        it.planted(|it| it.op(2, 3, lookup(), completed(5, 1, "b", "done")));
    }),
    bad("a replay names another attempt", Linearizable, "told what stands there", |it| {
        done(it);
        it.planted(|it| it.op(2, 3, lookup(), completed(5, 2, "a", "done")));
    }),
    bad("an outcome is overwritten by its own holder", OneOutcome, "two outcomes", |it| {
        done(it);
        it.planted(|it| it.op(2, 3, complete(5, "otherwise"), stored()));
    }),
    bad("the same outcome is called another", Linearizable, "told stored already", |it| {
        done(it);
        it.planted(|it| it.op(2, 3, complete(5, "done"), Answer::OutcomeConflict));
    }),
    bad("a repeated Complete is taken for the first", Linearizable, "told stored already", |it| {
        done(it);
        it.planted(|it| it.op(2, 3, complete(5, "done"), stored()));
    }),
    bad("a repeated Complete is refused", Linearizable, "told stored already", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(4, 5, lookup(), completed(5, 1, "a", "done"));
        let answer = if it.without_the_planted { stored_already() } else { Answer::ClaimLost };
        it.retried(&[2], 6, 7, complete(5, "done"), answer);
    }),
    bad("a late Complete is refused though nobody took over", Linearizable, "told stored", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.planted(|it| it.op(30, 31, complete(5, "done"), Answer::ClaimLost));
    }),
    bad("a stale Complete is accepted", NoStaleComplete, "after a higher one", |it| {
        taken_over(it);
        it.planted(|it| it.op(13, 14, complete(5, "stale"), stored()));
    }),
    bad("a stale Complete is accepted after an outcome", NoStaleComplete, "after a higher one", |it| {
        taken_over(it);
        it.op(12, 13, complete(7, "done"), stored());
        it.planted(|it| it.op(13, 14, complete(5, "done"), stored_already()));
    }),
    bad("a key is in progress after its outcome was acknowledged", OutcomeStays, "and then", |it| {
        done(it);
        it.planted(|it| it.op(3, 4, begin("b"), in_progress(1, "a")));
    }),
    bad("a key is claimed after its outcome was told", OutcomeStays, "and then", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.lost(1, complete(5, "done"));
        it.op(3, 4, lookup(), completed(5, 1, "a", "done"));
        it.planted(|it| it.op(20, 21, begin("b"), claim(7, 2)));
    }),
    bad("an outcome is gone before its retention is over", OutcomeStays, "NOT_FOUND", |it| {
        done(it);
        it.planted(|it| it.op(90, 91, lookup(), Answer::NotFound));
    }),
    bad("an outcome is gone before the retention that Complete asked for", OutcomeStays, "NOT_FOUND", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        let retention = Some(seconds(500));
        it.op(1, 2, Call::Complete { token: 5, outcome: "done".into(), retention }, stored());
        it.planted(|it| it.op(400, 401, lookup(), Answer::NotFound));
    }),
    bad("a fingerprint matches, and an outcome is kept from its caller", OutcomeStays, "CLAIM_LOST", |it| {
        done(it);
        it.planted(|it| it.op(3, 4, begin_for("b", "x"), Answer::ClaimLost));
    }),
    bad("a stale Renew is accepted", TokensGrow, "after a higher one", |it| {
        taken_over(it);
        it.planted(|it| it.op(13, 14, renew(5), renewed()));
    }),
    bad("a stale Release is accepted", TokensGrow, "after a higher one", |it| {
        taken_over(it);
        it.planted(|it| it.op(13, 14, release(5), Answer::Ok));
    }),
];

const STATES: [Bad; 23] = [
    bad("another fingerprint is not told", Linearizable, "told FINGERPRINT_MISMATCH", |it| {
        it.op(0, 1, begin_for("a", "x"), claim(5, 1));
        it.planted(|it| it.op(2, 3, begin_for("b", "y"), in_progress(1, "a")));
    }),
    bad("another fingerprint gets the outcome", Linearizable, "told FINGERPRINT_MISMATCH", |it| {
        it.op(0, 1, begin_for("a", "x"), claim(5, 1));
        it.op(1, 2, complete(5, "done"), stored());
        it.planted(|it| it.op(2, 3, begin_for("b", "y"), completed(5, 1, "a", "done")));
    }),
    bad("the same fingerprint is called another", Linearizable, "for \"x\"", |it| {
        it.op(0, 1, begin_for("a", "x"), claim(5, 1));
        it.planted(|it| it.op(2, 3, begin_for("b", "x"), Answer::FingerprintMismatch));
    }),
    bad("a takeover clears the fingerprint", Linearizable, "told FINGERPRINT_MISMATCH", |it| {
        it.op(0, 1, begin_for("a", "x"), claim(5, 1));
        it.op(1, 2, release(5), Answer::Ok);
        it.op(2, 3, begin("b"), claim(7, 2));
        it.planted(|it| it.op(4, 5, begin_for("c", "y"), in_progress(2, "b")));
    }),
    bad("an older checkpoint comes back", Linearizable, "at checkpoint 2", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(1, 2, save(5, 2), renewed());
        it.op(3, 4, save(5, 1), renewed());
        it.planted(|it| it.op(20, 21, begin("b"), claim_at(7, 2, 1)));
    }),
    bad("a checkpoint is lost by a takeover", Linearizable, "at checkpoint 2", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(1, 2, save(5, 2), renewed());
        it.planted(|it| it.op(20, 21, begin("b"), claim(7, 2)));
    }),
    bad("a lookup goes backward", Linearizable, "attempt 2", |it| {
        taken_over(it);
        it.op(13, 14, lookup(), in_progress(2, "b"));
        it.planted(|it| it.op(15, 16, lookup(), in_progress(1, "a")));
    }),
    bad("a released key is in progress", Linearizable, "The record is then: released", |it| {
        released(it);
        it.planted(|it| it.op(3, 4, lookup(), in_progress(1, "a")));
    }),
    bad("a key is in progress that nobody began", Linearizable, "told NOT_FOUND", |it| {
        it.op(0, 1, lookup(), Answer::NotFound);
        it.planted(|it| it.op(1, 2, lookup(), in_progress(1, "a")));
    }),
    bad("a holder is refused though nobody took over", Linearizable, "told armed again", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.planted(|it| it.op(2, 3, renew(5), Answer::ClaimLost));
    }),
    bad(
        "a record expires before its retention is over",
        Linearizable,
        "The record is then: released",
        |it| {
            released(it);
            it.planted(|it| it.op(90, 91, lookup(), Answer::NotFound));
        },
    ),
    bad("a held record expires with its lock", Linearizable, "The record is then: lapsed", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.op(80, 81, lookup(), available(1, "a"));
        // Its lock was to live for 10 s, and only then retention counts.
        it.planted(|it| it.op(105, 106, lookup(), Answer::NotFound));
    }),
    bad("what is held back expires", Linearizable, "lapsed, and held back", |it| {
        it.op(0, 1, begin_hold("a"), claim(5, 1));
        it.op(80, 81, lookup(), in_doubt(5, 1, "a"));
        it.planted(|it| it.op(900, 901, lookup(), Answer::NotFound));
    }),
    bad("what is held back is run again", Linearizable, "lapsed, and held back", |it| {
        it.op(0, 1, begin_hold("a"), claim(5, 1));
        it.op(80, 81, lookup(), in_doubt(5, 1, "a"));
        it.planted(|it| it.op(82, 83, begin("b"), claim(7, 2)));
    }),
    bad("what is in doubt is run again", Linearizable, "The record is then: in doubt", |it| {
        doubted(it);
        it.planted(|it| it.op(3, 4, begin("b"), claim(7, 2)));
    }),
    bad("a doubt is taken back by its holder", Linearizable, "told CLAIM_LOST", |it| {
        doubted(it);
        it.planted(|it| it.op(3, 4, release(5), Answer::Ok));
    }),
    bad("a doubt is renewed", Linearizable, "told CLAIM_LOST", |it| {
        doubted(it);
        it.planted(|it| it.op(3, 4, renew(5), renewed()));
    }),
    bad("what is not in doubt is resolved", Linearizable, "told CLAIM_LOST", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.planted(|it| it.op(3, 4, resolve(5), Answer::Ok));
    }),
    bad("a holder overwrites what an operator settled", Linearizable, "told CLAIM_LOST", |it| {
        doubted(it);
        it.op(3, 4, settle(5, "by hand"), Answer::Ok);
        it.planted(|it| it.op(5, 6, complete(5, "done"), stored()));
    }),
    bad("an operator's outcome keeps the token of the doubt", Linearizable, "token above 5", |it| {
        doubted(it);
        it.op(3, 4, settle(5, "by hand"), Answer::Ok);
        it.planted(|it| it.op(5, 6, lookup(), completed(5, 1, "a", "by hand")));
    }),
    bad("a held claim is deleted without force", Linearizable, "told CLAIM_HELD", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.planted(|it| it.op(3, 4, delete(5), Answer::Ok));
    }),
    bad("a repeated Delete hits the key's next life", Linearizable, "told CLAIM_LOST", |it| {
        done(it);
        it.op(3, 4, delete(5), Answer::Ok);
        it.op(5, 6, begin("b"), claim(7, 1));
        it.planted(|it| it.op(7, 8, delete(5), Answer::Ok));
    }),
    bad("what was deleted is still told", Linearizable, "told NOT_FOUND", |it| {
        done(it);
        it.op(3, 4, delete(5), Answer::Ok);
        it.planted(|it| it.op(5, 6, lookup(), completed(5, 1, "a", "done")));
    }),
];

const UNKNOWN: [Bad; 9] = [
    bad("one lost Begin makes two attempts", Linearizable, "told a claim", |it| {
        it.lost(0, begin("a"));
        it.planted(|it| it.op(2, 3, begin("b"), claim(7, 3)));
    }),
    bad("a lost Begin is taken over before its lock can have lapsed", Linearizable, "in progress", |it| {
        it.lost(0, begin("a"));
        it.op(2, 3, lookup(), in_progress(1, "a"));
        it.op(4, 5, begin("a"), resumed(5, 1));
        it.planted(|it| it.op(9, 10, lookup(), available(1, "a")));
    }),
    bad("a lost Begin is undone after it was resumed", OneLiveClaim, "two claims live", |it| {
        it.retried(&[0], 2, 3, begin("a"), resumed(5, 1));
        it.planted(|it| it.op(4, 5, begin("b"), claim(7, 2)));
    }),
    bad("a claim that was received is given back", Linearizable, "in progress, held until 10s", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.planted(|it| it.op(2, 3, lookup(), available(1, "a")));
    }),
    bad("a Complete of unknown outcome comes and goes", OutcomeStays, "and then", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.lost(1, complete(5, "done"));
        it.op(3, 4, lookup(), completed(5, 1, "a", "done"));
        it.planted(|it| it.op(5, 6, lookup(), in_progress(1, "a")));
    }),
    bad("a Begin is claimed before it was sent", Linearizable, "told NOT_FOUND", |it| {
        it.planted(|it| it.op(0, 1, lookup(), in_progress(1, "a")));
        it.lost(2, begin("a"));
    }),
    bad("what was not applied is there", Linearizable, "told NOT_FOUND", |it| {
        let id = it.history.call(CALLER, KEY, begin("a"));
        it.history.sent(&id, seconds(0), None);
        it.history.failed(&id, Fate::NotApplied(seconds(1)));
        it.planted(|it| it.op(2, 3, lookup(), in_progress(1, "a")));
    }),
    bad("a release that was answered lands again", Linearizable, "The record is then: in progress", |it| {
        released(it);
        it.op(2, 3, begin("b"), claim(7, 2));
        it.planted(|it| it.op(4, 5, lookup(), available(2, "b")));
    }),
    bad(
        "a stale Complete of unknown outcome overwrites a takeover",
        Linearizable,
        "attempt 2 of \"b\"",
        |it| {
            taken_over(it);
            it.lost(13, complete(5, "stale"));
            it.planted(|it| it.op(15, 16, lookup(), completed(5, 1, "a", "stale")));
        },
    ),
];

const TIMES: [Bad; 5] = [
    bad("a waiter is answered late", AnsweredInTime, "due in 5s ended Answered(7s)", |it| {
        it.planted(|it| it.op(0, 7, begin("a"), claim(5, 1)));
    }),
    bad("a waiter is never answered", AnsweredInTime, "due in 5s ended Open", |it| {
        it.planted(|it| {
            let id = it.history.call(CALLER, KEY, begin("a"));
            it.history.sent(&id, seconds(0), Some(seconds(5)));
        });
    }),
    bad("a failure comes late", AnsweredInTime, "ended Unknown(9s)", |it| {
        it.planted(|it| {
            let id = it.history.call(CALLER, KEY, begin("a"));
            it.history.sent(&id, seconds(0), Some(seconds(5)));
            it.history.failed(&id, Fate::Unknown(seconds(9)));
        });
    }),
    bad("a key stays unusable when all is well", UsableAgain, "nobody has used it since", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.healed(if it.without_the_planted { 0 } else { 50 });
        it.op(60, 61, lookup(), available(1, "a"));
    }),
    bad("a key is usable too late after all is well", UsableAgain, "not usable before 91s", |it| {
        it.op(0, 1, begin("a"), claim(5, 1));
        it.healed(if it.without_the_planted { 80 } else { 50 });
        it.op(90, 91, begin("b"), claim(7, 2));
    }),
];

#[test]
fn each_is_found_for_the_reason_that_it_was_planted_for() {
    let all = [&CLAIMS[..], &OUTCOMES, &STATES, &UNKNOWN, &TIMES, &READERS].concat();
    let missed: Vec<String> = all.iter().filter_map(missed).collect();
    assert!(missed.is_empty(), "{}", missed.join("\n\n"));
    println!("{} histories that cannot have been", all.len());
}

/// What is wrong with how it is found.
fn missed(Bad { name, breaks, said, tell }: &Bad) -> Option<String> {
    let mut without = Story::without_what_is_planted();
    tell(&mut without);
    if let Err(wrong) = without.check() {
        return Some(format!("{name}: without it there is still {wrong}"));
    }
    let mut story = Story::default();
    tell(&mut story);
    let Err(wrong) = story.check() else { return Some(format!("{name}: not found")) };
    let finds = |promise| wrong.violations.iter().find(|it| it.promise == promise);
    if finds(Linearizable).is_none() && ![AnsweredInTime, UsableAgain, WatchEnds].contains(breaks) {
        return Some(format!("{name}: the specification explains it:\n{wrong}"));
    }
    match finds(*breaks) {
        Some(found) if found.what.contains(said) => None,
        Some(found) => Some(format!("{name}: nobody said {said:?}:\n{found}")),
        None => Some(format!("{name}: found, but not as {breaks:?}:\n{wrong}")),
    }
}
