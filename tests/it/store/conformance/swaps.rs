//! A swap checks and writes in one step.

use std::sync::Arc;

use bytes::Bytes;
use onced::record::limits::{CHECKPOINT_MAX_BYTES, LOCK_TTL_MIN, OUTCOME_MAX_BYTES};
use onced::record::{
    Checkpoint, DoubtCause, FencingToken, Fingerprint, Lock, Outcome, OutcomeResult, Record, State, Timestamp,
};
use onced::store::{Expected, Revision, Swapped};
use tokio::task::JoinSet;

use crate::store::fixture::{
    Fixture, as_written, claim, completed, create, held, in_doubt, key, lapse, load, recall, write,
};

pub async fn creates_only_what_is_absent(fixture: &impl Fixture) {
    let (store, key) = (fixture.store().await, key("k"));
    assert_eq!(store.load(&key).await, Ok(None));
    let revision = create(&store, &key, &claim("first")).await;
    let second = store.swap(&key, Expected::Absent, Some(&claim("second"))).await;
    let first = as_written(&claim("first"), revision);
    assert_eq!(second, Ok(Swapped::Conflict(Some(first.clone()))));
    assert_eq!(load(&store, &key).await, first);
}

pub async fn every_state_is_read_as_it_was_written(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let since = Timestamp::from_micros(-5);
    let failure = OutcomeResult::Error {
        code: 9,
        message: "no \u{0} money".to_owned(),
        details: vec![("type.example/x".to_owned(), Bytes::from_static(&[0, 255]))],
    };
    let outcome = Arc::new(Outcome { result: failure, content_type: String::new(), metadata: [].into() });
    let states = [
        held("").state,
        State::Released { since, reason: "later".to_owned(), request_spent: true },
        State::InDoubt { since, cause: DoubtCause::Lapse },
        in_doubt("").state,
        State::Completed { outcome, completed_at: since, resolved_from: Some(FencingToken(3)) },
        completed("", "").state,
    ];
    for (index, state) in states.into_iter().enumerate() {
        let key = key(&format!("k{index}"));
        let record = Record {
            attempt: u64::MAX,
            fingerprint: Fingerprint::new(vec![0; 64].into()),
            checkpoint: Some(Checkpoint { sequence: 1, data: Bytes::new() }),
            state,
            ..claim("\u{10ffff}")
        };
        let revision = create(&store, &key, &record).await;
        assert_eq!(load(&store, &key).await, as_written(&record, revision));
    }
}

pub async fn the_token_of_a_claim_is_its_revision_and_stays(fixture: &impl Fixture) {
    let (store, key) = (fixture.store().await, key("k"));
    let claimed = create(&store, &key, &claim("first")).await;
    let mine = load(&store, &key).await;
    assert_eq!((mine.revision, mine.record.fencing_token), (claimed, FencingToken(claimed.0)));
    let renewed = write(&store, &key, Expected::At(claimed), Some(&mine.record)).await;
    assert!(renewed > claimed);
    assert_eq!(load(&store, &key).await.record.fencing_token, FencingToken(claimed.0));
}

pub async fn a_stale_revision_loses(fixture: &impl Fixture) {
    let (store, key) = (fixture.store().await, key("k"));
    let first = create(&store, &key, &claim("first")).await;
    let second = write(&store, &key, Expected::At(first), Some(&claim("second"))).await;
    let there = as_written(&claim("second"), second);
    for stale in [Expected::At(first), Expected::Absent, Expected::At(Revision(second.0 + 1_000_000))] {
        let late = store.swap(&key, stale, Some(&claim("late"))).await;
        assert_eq!(late, Ok(Swapped::Conflict(Some(there.clone()))));
    }
    assert_eq!(load(&store, &key).await, there);
}

pub async fn a_conflict_brings_what_is_there(fixture: &impl Fixture) {
    let (store, key) = (fixture.store().await, key("k"));
    let nothing = store.swap(&key, Expected::At(Revision(1)), Some(&claim("late"))).await;
    assert_eq!(nothing, Ok(Swapped::Conflict(None)));
    assert_eq!(store.load(&key).await, Ok(None));
    let outcome = completed("holder", vec![9; 300_000]);
    let revision = create(&store, &key, &outcome).await;
    let lost = store.swap(&key, Expected::Absent, Some(&claim("late"))).await;
    assert_eq!(lost, Ok(Swapped::Conflict(Some(as_written(&outcome, revision)))));
}

/// What a store tells at once is the latest, or nothing.
pub async fn what_is_recalled_is_what_a_load_would_bring(fixture: &impl Fixture) {
    let (store, key) = (fixture.store().await, key("k"));
    let there = async || {
        let loaded = store.load(&key).await.unwrap();
        let recalled = recall(&store, &key).await;
        assert!(recalled.is_none() || recalled == loaded, "{recalled:?} instead of {loaded:?}");
    };
    there().await;
    let claimed = create(&store, &key, &claim("first")).await;
    there().await;
    let done = write(&store, &key, Expected::At(claimed), Some(&completed("first", "done"))).await;
    there().await;
    write(&store, &key, Expected::At(done), None).await;
    there().await;
    create(&store, &key, &completed("again", "done")).await;
    there().await;
    fixture.expire(&key).await;
    assert_eq!(recall(&store, &key).await, None);
}

pub async fn delete_with_a_stale_revision_loses(fixture: &impl Fixture) {
    let (store, key) = (fixture.store().await, key("k"));
    let first = create(&store, &key, &claim("first")).await;
    let second = write(&store, &key, Expected::At(first), Some(&claim("second"))).await;
    let there = as_written(&claim("second"), second);
    let stale = store.swap(&key, Expected::At(first), None).await;
    assert_eq!(stale, Ok(Swapped::Conflict(Some(there.clone()))));
    assert_eq!(load(&store, &key).await, there);
    write(&store, &key, Expected::At(second), None).await;
    assert_eq!(store.load(&key).await, Ok(None));
    assert_eq!(store.swap(&key, Expected::At(second), None).await, Ok(Swapped::Conflict(None)));
}

pub async fn tokens_grow_over_delete_and_rebirth(fixture: &impl Fixture) {
    let (store, key) = (fixture.store().await, key("k"));
    let mut last = FencingToken(0);
    for _ in 0..5 {
        let revision = create(&store, &key, &claim("holder")).await;
        let token = load(&store, &key).await.record.fencing_token;
        assert!(token > last, "{token:?} after {last:?}");
        last = token;
        write(&store, &key, Expected::At(revision), None).await;
    }
}

pub async fn one_of_fifty_takeovers_wins(fixture: &impl Fixture) {
    let (store, key) = (fixture.store().await, key("k"));
    create(&store, &key, &claim("crashed")).await;
    let lapsed = lapse(fixture, &store, &key, LOCK_TTL_MIN).await;
    let mut handles = Vec::new();
    for _ in 0..3 {
        handles.push(fixture.store().await);
    }
    let mut race = JoinSet::new();
    for racer in 0..50 {
        let (store, key) = (Arc::clone(&handles[racer % handles.len()]), key.clone());
        let next = Record { attempt: 2, ..claim(&format!("racer {racer}")) };
        race.spawn(async move {
            let result = store.swap(&key, Expected::At(lapsed.revision), Some(&next)).await;
            (next, result.unwrap())
        });
    }
    let (mut won, mut lost) = (Vec::new(), Vec::new());
    for (next, swapped) in race.join_all().await {
        match swapped {
            Swapped::Done(revision) => won.push(as_written(&next, revision)),
            Swapped::Conflict(current) => lost.push(current),
        }
    }
    assert_eq!(won.len(), 1);
    let winner = won.remove(0);
    assert_eq!(load(&store, &key).await, winner);
    assert_eq!(lost, vec![Some(winner); 49]);
}

pub async fn no_increment_is_lost(fixture: &impl Fixture) {
    const TASKS: u64 = 10;
    const EACH: u64 = 10;
    let (store, key) = (fixture.store().await, key("counter"));
    create(&store, &key, &Record { attempt: 0, ..completed("counter", "") }).await;
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (store, key) = (fixture.store().await, key.clone());
        tasks.spawn(async move {
            let mut current = load(&store, &key).await;
            for _ in 0..EACH {
                loop {
                    let next = Record { attempt: current.record.attempt + 1, ..(*current.record).clone() };
                    match store.swap(&key, Expected::At(current.revision), Some(&next)).await.unwrap() {
                        Swapped::Done(revision) => {
                            current = as_written(&next, revision);
                            break;
                        }
                        Swapped::Conflict(newer) => current = newer.unwrap(),
                    }
                }
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(load(&store, &key).await.record.attempt, TASKS * EACH);
}

pub async fn swaps_of_many_keys_do_not_disturb_each_other(fixture: &impl Fixture) {
    const KEYS: usize = 300;
    let store = fixture.store().await;
    create(&store, &key("k0"), &claim("earlier")).await;
    let mut tasks = JoinSet::new();
    for index in 0..KEYS {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let (key, record) = (key(&format!("k{index}")), claim(&format!("holder {index}")));
            let swapped = store.swap(&key, Expected::Absent, Some(&record)).await.unwrap();
            let loaded = load(&store, &key).await;
            match swapped {
                Swapped::Done(revision) => assert_eq!(loaded, as_written(&record, revision)),
                Swapped::Conflict(current) => assert_eq!(Some(&loaded), current.as_ref()),
            }
            (index, loaded.record.owner.clone())
        });
    }
    let all = tasks.join_all().await;
    let lost = all.iter().filter(|(_, owner)| owner == "earlier").map(|(index, _)| *index);
    assert_eq!(lost.collect::<Vec<_>>(), [0]);
}

pub async fn the_largest_records_fit(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let checkpoint = Checkpoint { sequence: 1, data: vec![0xff; CHECKPOINT_MAX_BYTES].into() };
    let with_checkpoint = Record { checkpoint: Some(checkpoint), ..claim("holder") };
    let mut tasks = JoinSet::new();
    for index in 0..6_u8 {
        let (store, key) = (Arc::clone(&store), key(&format!("k{index}")));
        let (begun, done) = (with_checkpoint.clone(), completed("holder", vec![index; OUTCOME_MAX_BYTES]));
        tasks.spawn(async move {
            let revision = create(&store, &key, &begun).await;
            assert_eq!(load(&store, &key).await.record.checkpoint, begun.checkpoint);
            let revision = write(&store, &key, Expected::At(revision), Some(&done)).await;
            let loaded = load(&store, &key).await;
            assert_eq!(loaded, as_written(&done, revision));
            assert_eq!(loaded.lock, Lock::Held);
        });
    }
    tasks.join_all().await;
}
