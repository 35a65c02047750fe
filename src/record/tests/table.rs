//! The state machine's table, row by row. The claim under test is attempt 1 of caller 1, token 7, unless
//! a row says otherwise.

use std::sync::Arc;

use super::*;

const TOKEN: u64 = 7;
const LATER: Timestamp = Timestamp::from_micros(2_000_000_000);

fn in_progress() -> Record {
    claimed(begin_of(1))
}

fn hold() -> Record {
    claimed(Begin { on_lapse: OnLapse::Hold, ..begin_of(1) })
}

fn claimed(begin: Begin) -> Record {
    written(decide(&Command::Begin(begin), None, NOW), TOKEN)
}

fn after(record: &Record, command: &Command) -> Record {
    written(decide(command, held(record), NOW), TOKEN + 1)
}

fn released() -> Record {
    after(&in_progress(), &release(TOKEN, Disposition::Retry))
}

fn doubted_by_lapse() -> Record {
    written(decide(&Command::Begin(begin_of(2)), lapsed(&hold()), NOW), TOKEN + 1)
}

fn doubted_by_release() -> Record {
    after(&in_progress(), &release(TOKEN, Disposition::InDoubt))
}

fn completed() -> Record {
    after(&in_progress(), &complete(TOKEN, "done"))
}

fn held(record: &Record) -> Option<Seen<'_>> {
    Some(Seen { record, lock: Lock::Held })
}

fn lapsed(record: &Record) -> Option<Seen<'_>> {
    Some(Seen { record, lock: Lock::Lapsed })
}

/// The record that a decision writes, at this revision.
fn written(decision: Decision, revision: u64) -> Record {
    match decision {
        Decision::Write(change) => change.into_next().expect("a record").written_at(revision),
        other => panic!("not a write: {other:?}"),
    }
}

fn claim_in(decision: Decision) -> Record {
    match decision {
        Decision::Write(Change::Claim(record)) => record,
        other => panic!("not a claim: {other:?}"),
    }
}

#[track_caller]
fn assert_refused(decision: &Decision, refusal: Refusal) {
    assert_eq!(*decision, Decision::Refuse(refusal));
}

/// Every state that a record can be in, under token 7, with how its lock may be seen.
fn all_seen() -> Vec<(Record, Lock)> {
    vec![
        (in_progress(), Lock::Held),
        (in_progress(), Lock::Lapsed),
        (hold(), Lock::Held),
        (hold(), Lock::Lapsed),
        (released(), Lock::Held),
        (doubted_by_lapse(), Lock::Held),
        (doubted_by_release(), Lock::Held),
        (completed(), Lock::Held),
    ]
}

#[test]
fn another_fingerprint_is_refused_in_every_state_before_all_else() {
    for (record, lock) in all_seen() {
        let record = Record { fingerprint: fingerprint("one"), ..record };
        for caller in [1, 2] {
            let begin = Begin { fingerprint: fingerprint("two"), ..begin_of(caller) };
            let decision = decide(&Command::Begin(begin), Some(Seen { record: &record, lock }), LATER);
            assert_refused(&decision, Refusal::FingerprintMismatch);
        }
    }
}

#[test]
fn begin_of_an_absent_key_is_claim_one() {
    let begin = Begin { fingerprint: fingerprint("one"), ..begin_of(1) };
    let record = claim_in(decide(&Command::Begin(begin), None, NOW));
    assert!(record.makes_claim());
    assert_eq!(record.attempt, 1);
    assert_eq!(record.fingerprint, fingerprint("one"));
    assert_eq!(record.checkpoint, None);
    assert_eq!(record.began_at, NOW);
    assert_eq!(record.lock_ttl(), Some(TTL));
    assert_eq!(record.written_at(TOKEN).fencing_token, FencingToken(TOKEN));
}

#[test]
fn the_same_request_id_and_owner_resume_by_a_write_lapsed_or_not() {
    for record in [in_progress(), hold()] {
        for seen in [held(&record), lapsed(&record)] {
            // The lock TTL and the policy of the claim stay, whatever the resuming Begin asks for.
            let begin = Begin { lock_ttl: TTL * 2, on_lapse: OnLapse::TakeOver, ..begin_of(1) };
            let Decision::Write(Change::Resume(next)) = decide(&Command::Begin(begin), seen, LATER) else {
                panic!("not a resume");
            };
            let State::InProgress { lock_ttl, on_lapse, .. } = record.state else { unreachable!() };
            let state = State::InProgress { lock_ttl, on_lapse, armed_at: LATER };
            assert!(next == Record { state, ..record.clone() }, "{next:?}");
            assert!(!next.makes_claim());
        }
    }
}

#[test]
fn a_held_lock_makes_others_wait() {
    let others = [
        begin_of(2),
        Begin { owner: "host-2".to_owned(), ..begin_of(1) },
        Begin { owner: "host-1".to_owned(), ..begin_of(2) },
    ];
    for begin in others {
        assert_eq!(decide(&Command::Begin(begin), held(&in_progress()), LATER), Decision::Wait);
    }
}

#[test]
fn a_lapsed_claim_is_taken_over_with_its_fingerprint_and_checkpoint() {
    let record = claimed(Begin { fingerprint: fingerprint("one"), ..begin_of(1) });
    let record = after(&record, &renew(TOKEN, Some(checkpoint(3, "half"))));
    let begin = Begin { lock_ttl: TTL * 3, retention: RETENTION * 2, on_lapse: OnLapse::Hold, ..begin_of(2) };
    let next = claim_in(decide(&Command::Begin(begin), lapsed(&record), LATER));
    assert!(next.makes_claim());
    assert_eq!((next.attempt, next.owner.as_str()), (2, "host-2"));
    assert_eq!(next.request_id, begin_of(2).request_id);
    assert_eq!(next.fingerprint, fingerprint("one"));
    assert_eq!(next.checkpoint, Some(checkpoint(3, "half")));
    assert_eq!(next.retention, RETENTION * 2);
    let armed = State::InProgress { lock_ttl: TTL * 3, on_lapse: OnLapse::Hold, armed_at: LATER };
    assert!(next.state == armed);
}

#[test]
fn a_lapsed_hold_claim_becomes_in_doubt_and_nobody_gets_it() {
    let decision = decide(&Command::Begin(begin_of(2)), lapsed(&hold()), LATER);
    let Decision::Write(Change::Doubt(next)) = decision else { panic!("{decision:?}") };
    assert!(next.state == State::InDoubt { since: LATER, cause: DoubtCause::Lapse });
    assert_eq!(next.fencing_token, FencingToken(TOKEN));
    assert_eq!(decide(&Command::Begin(begin_of(2)), held(&next), LATER), Decision::Wait);
}

#[test]
fn the_first_write_that_has_a_fingerprint_stores_it() {
    let with = |caller| Command::Begin(Begin { fingerprint: fingerprint("one"), ..begin_of(caller) });
    for decision in [
        decide(&with(1), held(&in_progress()), LATER),
        decide(&with(2), lapsed(&in_progress()), LATER),
        decide(&with(2), lapsed(&hold()), LATER),
        decide(&with(2), held(&released()), LATER),
    ] {
        assert_eq!(written(decision, TOKEN + 2).fingerprint, fingerprint("one"));
    }
}

#[test]
fn a_released_key_is_claimed_anew_with_its_checkpoint() {
    let record = after(&in_progress(), &renew(TOKEN, Some(checkpoint(1, "half"))));
    let record = after(&record, &release(TOKEN, Disposition::Retry));
    let next = claim_in(decide(&Command::Begin(begin_of(2)), held(&record), LATER));
    assert_eq!((next.attempt, next.checkpoint.clone()), (2, Some(checkpoint(1, "half"))));
    assert!(next.makes_claim());
}

#[test]
fn a_request_id_is_spent_by_its_own_release_and_not_by_a_give_back() {
    let again = Command::Begin(begin_of(1));
    assert_refused(&decide(&again, held(&released()), LATER), Refusal::RequestSpent);
    // The same id of another owner is another caller.
    let other = Command::Begin(Begin { owner: "host-9".to_owned(), ..begin_of(1) });
    claim_in(decide(&other, held(&released()), LATER));

    let given_back = after(&in_progress(), &release(TOKEN, Disposition::Unreceived));
    assert_eq!(claim_in(decide(&again, held(&given_back), LATER)).attempt, 2);
}

#[test]
fn a_release_spends_the_id_even_after_an_operator_released_the_claim() {
    let resolved = after(&doubted_by_lapse(), &resolve(TOKEN, Resolution::Retry));
    assert_eq!(claim_in(decide(&Command::Begin(begin_of(1)), held(&resolved), LATER)).attempt, 2);

    let late = after(&resolved, &release(TOKEN, Disposition::Retry));
    assert_refused(&decide(&Command::Begin(begin_of(1)), held(&late), LATER), Refusal::RequestSpent);
    assert_eq!(decide(&release(TOKEN, Disposition::Retry), held(&late), LATER), Decision::Unchanged);
}

#[test]
fn in_doubt_makes_everybody_wait_the_last_holder_included() {
    for record in [doubted_by_lapse(), doubted_by_release()] {
        for caller in [1, 2] {
            assert_eq!(decide(&Command::Begin(begin_of(caller)), held(&record), LATER), Decision::Wait);
        }
    }
}

#[test]
fn a_completed_key_is_replayed_to_everybody() {
    for caller in [1, 2] {
        let begin = Begin { fingerprint: fingerprint("one"), ..begin_of(caller) };
        assert_eq!(decide(&Command::Begin(begin), held(&completed()), LATER), Decision::Unchanged);
    }
}

#[test]
fn late_complete_wins_if_nobody_took_over() {
    for (record, lock) in all_seen() {
        if matches!(record.state, State::Completed { .. }) {
            continue;
        }
        let record = Record { checkpoint: Some(checkpoint(1, "half")), ..record };
        let decision = decide(&complete(TOKEN, "done"), Some(Seen { record: &record, lock }), LATER);
        let next = written(decision, 99);
        let done = State::Completed { outcome: outcome("done"), completed_at: LATER, resolved_from: None };
        assert!(next.state == done, "{record:?}");
        assert_eq!(next.fencing_token, FencingToken(TOKEN));
        assert_eq!(next.checkpoint, None);
        assert_eq!(next.retention, RETENTION);
    }
}

#[test]
fn complete_may_set_another_retention() {
    let command = Command::Complete {
        token: FencingToken(TOKEN),
        outcome: outcome("done"),
        retention: Some(RETENTION * 5),
    };
    assert_eq!(written(decide(&command, held(&in_progress()), LATER), 8).retention, RETENTION * 5);
}

#[test]
fn a_repeated_complete_is_ok_and_another_outcome_is_a_conflict() {
    assert_eq!(decide(&complete(TOKEN, "done"), held(&completed()), LATER), Decision::Unchanged);
    assert_refused(&decide(&complete(TOKEN, "other"), held(&completed()), LATER), Refusal::OutcomeConflict);

    // Each part of an outcome counts.
    let same = || Outcome::clone(&outcome("done"));
    for other in [
        Outcome { content_type: String::new(), ..same() },
        Outcome { metadata: [].into(), ..same() },
        Outcome {
            result: OutcomeResult::Error { code: 3, message: String::new(), details: vec![] },
            ..same()
        },
    ] {
        let command =
            Command::Complete { token: FencingToken(TOKEN), outcome: Arc::new(other), retention: None };
        assert_refused(&decide(&command, held(&completed()), LATER), Refusal::OutcomeConflict);
    }
}

#[test]
fn renew_arms_the_lock_for_the_ttl_fixed_at_begin_lapsed_or_not() {
    for record in [in_progress(), hold()] {
        for seen in [held(&record), lapsed(&record)] {
            let next = written(decide(&renew(TOKEN, None), seen, LATER), 8);
            let State::InProgress { lock_ttl, on_lapse, .. } = record.state else { unreachable!() };
            let state = State::InProgress { lock_ttl, on_lapse, armed_at: LATER };
            assert!(next == Record { state, ..record.clone() });
        }
    }
}

#[test]
fn only_a_higher_sequence_replaces_a_checkpoint() {
    let saved = after(&in_progress(), &renew(TOKEN, Some(checkpoint(2, "two"))));
    assert_eq!(saved.checkpoint, Some(checkpoint(2, "two")));
    for (sent, kept) in [
        (Some(checkpoint(1, "one")), checkpoint(2, "two")),
        (Some(checkpoint(2, "zwei")), checkpoint(2, "two")),
        (Some(checkpoint(3, "three")), checkpoint(3, "three")),
        (None, checkpoint(2, "two")),
    ] {
        assert_eq!(after(&saved, &renew(TOKEN, sent)).checkpoint, Some(kept));
    }
}

#[test]
fn release_to_retry_leaves_the_key_free_and_may_be_repeated() {
    let command = release(TOKEN, Disposition::Retry);
    let expected = State::Released { since: LATER, reason: "asked to".to_owned(), request_spent: true };
    for (record, lock) in [
        (in_progress(), Lock::Held),
        (in_progress(), Lock::Lapsed),
        (hold(), Lock::Lapsed),
        (doubted_by_lapse(), Lock::Held),
    ] {
        let next = written(decide(&command, Some(Seen { record: &record, lock }), LATER), 8);
        assert!(next.state == expected, "{record:?}");
        assert_eq!(decide(&command, held(&next), LATER), Decision::Unchanged);
    }
}

#[test]
fn release_in_doubt_leaves_it_to_an_operator_and_may_be_repeated() {
    let command = release(TOKEN, Disposition::InDoubt);
    let cause = DoubtCause::Release("asked to".to_owned());
    let expected = State::InDoubt { since: LATER, cause };
    for (record, lock) in [
        (in_progress(), Lock::Held),
        (in_progress(), Lock::Lapsed),
        (hold(), Lock::Lapsed),
        (doubted_by_lapse(), Lock::Held),
    ] {
        let next = written(decide(&command, Some(Seen { record: &record, lock }), LATER), 8);
        assert!(next.state == expected, "{record:?}");
        assert_eq!(decide(&command, held(&next), LATER), Decision::Unchanged);
    }
    assert_refused(&decide(&command, held(&released()), LATER), Refusal::ClaimLost);
    // What the holder put in doubt, it does not take back.
    let back = decide(&release(TOKEN, Disposition::Retry), held(&doubted_by_release()), LATER);
    assert_refused(&back, Refusal::ClaimLost);
}

#[test]
fn a_give_back_changes_nothing_but_a_claim_in_progress() {
    let command = release(TOKEN, Disposition::Unreceived);
    for record in [doubted_by_lapse(), doubted_by_release(), completed()] {
        assert_refused(&decide(&command, held(&record), LATER), Refusal::ClaimLost);
    }
    assert_eq!(decide(&command, held(&released()), LATER), Decision::Unchanged);
}

#[test]
fn a_stale_token_changes_nothing_in_any_state() {
    for (record, lock) in all_seen() {
        for command in [
            complete(TOKEN - 1, "done"),
            renew(TOKEN - 1, None),
            release(TOKEN - 1, Disposition::Retry),
            release(TOKEN - 1, Disposition::InDoubt),
            resolve(TOKEN - 1, Resolution::Retry),
            resolve_with(TOKEN - 1, "done"),
            delete(TOKEN - 1, true),
        ] {
            let decision = decide(&command, Some(Seen { record: &record, lock }), LATER);
            assert_refused(&decision, Refusal::ClaimLost);
        }
    }
}

#[test]
fn renew_is_lost_on_all_but_a_claim_in_progress_and_release_on_an_outcome() {
    for record in [released(), doubted_by_lapse(), doubted_by_release(), completed()] {
        assert_refused(&decide(&renew(TOKEN, None), held(&record), LATER), Refusal::ClaimLost);
    }
    for disposition in [Disposition::Retry, Disposition::InDoubt] {
        assert_refused(&decide(&release(TOKEN, disposition), held(&completed()), LATER), Refusal::ClaimLost);
    }
}

#[test]
fn holders_and_operators_find_no_record_where_there_is_none_and_deleting_it_is_ok() {
    for command in [
        complete(TOKEN, "done"),
        renew(TOKEN, None),
        release(TOKEN, Disposition::Retry),
        release(TOKEN, Disposition::InDoubt),
        resolve(TOKEN, Resolution::Retry),
        resolve_with(TOKEN, "done"),
    ] {
        assert_refused(&decide(&command, None, LATER), Refusal::NotFound);
    }
    assert_eq!(decide(&delete(TOKEN, false), None, LATER), Decision::Unchanged);
}

#[test]
fn resolve_to_retry_frees_a_record_in_doubt_written_down_or_not() {
    let command = resolve(TOKEN, Resolution::Retry);
    for (record, lock) in
        [(doubted_by_lapse(), Lock::Held), (doubted_by_release(), Lock::Held), (hold(), Lock::Lapsed)]
    {
        let next = written(decide(&command, Some(Seen { record: &record, lock }), LATER), 9);
        assert!(matches!(next.state, State::Released { since: LATER, .. }), "{next:?}");
        assert_eq!(next.fencing_token, FencingToken(TOKEN));
        assert_eq!(decide(&command, held(&next), LATER), Decision::Unchanged);
        claim_in(decide(&Command::Begin(begin_of(2)), held(&next), LATER));
    }
    // A claim that its holder put in doubt has spent its request id; one that lapsed has not.
    for (record, spent) in [(doubted_by_release(), true), (doubted_by_lapse(), false)] {
        let next = after(&record, &command);
        assert!(matches!(next.state, State::Released { request_spent, .. } if request_spent == spent));
    }
}

#[test]
fn resolve_with_an_outcome_completes_under_a_new_token_and_may_be_repeated() {
    for (record, lock) in
        [(doubted_by_lapse(), Lock::Held), (doubted_by_release(), Lock::Held), (hold(), Lock::Lapsed)]
    {
        let seen = Some(Seen { record: &record, lock });
        let next = written(decide(&resolve_with(TOKEN, "settled"), seen, LATER), 9);
        let resolved_from = Some(FencingToken(TOKEN));
        let done = State::Completed { outcome: outcome("settled"), completed_at: LATER, resolved_from };
        assert!(next.state == done);
        assert_eq!((next.fencing_token, next.attempt), (FencingToken(9), 1));
        assert!(!next.makes_claim());

        assert_eq!(decide(&resolve_with(TOKEN, "settled"), held(&next), LATER), Decision::Unchanged);
        assert_refused(&decide(&resolve_with(TOKEN, "other"), held(&next), LATER), Refusal::OutcomeConflict);
        assert_refused(&decide(&resolve(TOKEN, Resolution::Retry), held(&next), LATER), Refusal::ClaimLost);
        // The holder's own token is stale now, even for the same outcome.
        assert_refused(&decide(&complete(TOKEN, "settled"), held(&next), LATER), Refusal::ClaimLost);
    }
}

#[test]
fn what_is_not_in_doubt_cannot_be_resolved() {
    for (record, lock) in [
        (in_progress(), Lock::Held),
        (in_progress(), Lock::Lapsed),
        (hold(), Lock::Held),
        (released(), Lock::Held),
        (completed(), Lock::Held),
    ] {
        let seen = || Some(Seen { record: &record, lock });
        assert_refused(&decide(&resolve_with(TOKEN, "settled"), seen(), LATER), Refusal::ClaimLost);
        if !matches!(record.state, State::Released { .. }) {
            assert_refused(&decide(&resolve(TOKEN, Resolution::Retry), seen(), LATER), Refusal::ClaimLost);
        }
    }
}

#[test]
fn delete_removes_all_but_a_held_claim_and_that_with_force() {
    for (record, lock) in all_seen() {
        let seen = || Some(Seen { record: &record, lock });
        assert_eq!(decide(&delete(TOKEN, true), seen(), LATER), Decision::Write(Change::Remove));
        let held = lock == Lock::Held && record.lock_ttl().is_some();
        let expected =
            if held { Decision::Refuse(Refusal::ClaimHeld) } else { Decision::Write(Change::Remove) };
        assert_eq!(decide(&delete(TOKEN, false), seen(), LATER), expected, "{record:?}");
    }
}

#[test]
fn what_an_operator_must_see_is_kept_and_the_rest_outlives_its_lock() {
    let retained = Lifetime::AtLeast(RETENTION + limits::RETENTION_MARGIN);
    for (record, expected) in [
        (in_progress(), Lifetime::AtLeast(TTL + RETENTION + limits::RETENTION_MARGIN)),
        (hold(), Lifetime::Forever),
        (doubted_by_lapse(), Lifetime::Forever),
        (doubted_by_release(), Lifetime::Forever),
        (released(), retained),
        (completed(), retained),
    ] {
        assert_eq!(record.lifetime(), expected, "{record:?}");
    }
}

#[test]
fn a_reader_sees_a_lapse_before_anybody_wrote_it_down() {
    let now = NOW.plus(TTL / 2);
    let view = |record: Record, lock| View::of(&Arc::new(record), lock, now);
    let View::InProgress { lock_expires_in, .. } = view(in_progress(), Lock::Held) else { panic!() };
    assert_eq!(lock_expires_in, TTL / 2);
    let View::Available { since, reason, .. } = view(in_progress(), Lock::Lapsed) else { panic!() };
    assert_eq!((since, reason.as_str()), (NOW.plus(TTL), ""));
    let View::InDoubt { since, .. } = view(hold(), Lock::Lapsed) else { panic!() };
    assert_eq!(since, NOW.plus(TTL));
    let View::Available { reason, .. } = view(released(), Lock::Held) else { panic!() };
    assert_eq!(reason, "asked to");
    let View::InDoubt { reason, .. } = view(doubted_by_release(), Lock::Held) else { panic!() };
    assert_eq!(reason, "asked to");
    let View::Completed { expires_at, .. } = view(completed(), Lock::Held) else { panic!() };
    assert_eq!(expires_at, NOW.plus(RETENTION));
}
