//! What a namespace may take up at a server.

use std::time::Instant;

use onced::config::Policy;
use tonic::Code;

use super::*;

/// A configuration in which the namespace of these tests has quotas, and others have none.
fn with(policy: Policy) -> Config {
    let mut config = Config::default();
    config.namespaces.named.insert(NAMESPACE.to_owned(), policy);
    config
}

/// Checks that a call was refused for a quota: the time after which to try again.
#[track_caller]
fn over<T: std::fmt::Debug>(result: Result<T, Status>, limit: &str, size: u32) -> Duration {
    let status = result.unwrap_err();
    let hint = status.details.iter().find(|detail| detail.type_url.ends_with("google.rpc.RetryInfo"));
    let hint = pb::RetryInfo::decode(hint.expect("a hint").value.as_slice()).unwrap();
    let info = assert_refused(Err::<(), _>(status), Code::ResourceExhausted, "QUOTA_EXCEEDED");
    let told = [("namespace", NAMESPACE), ("limit", limit), ("size", &size.to_string())];
    assert_eq!(info.metadata, told.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    let after = std_duration(hint.retry_delay);
    assert!(!after.is_zero());
    after
}

mod claims {
    use super::*;

    over_both! {
        configured(two_claims):
        a_begin_over_the_quota_is_refused_and_room_comes_back_with_the_end_of_a_claim
        what_makes_no_claim_is_answered_at_the_quota
        what_holders_call_passes_at_the_quota
        a_lapsed_claim_counts_no_more
        a_crowd_gets_no_more_claims_than_there_may_be
        a_waiter_gets_its_turn_at_the_quota
    }

    fn two_claims() -> Config {
        with(Policy { max_claims: Some(2), ..Policy::default() })
    }

    async fn a_begin_over_the_quota_is_refused_and_room_comes_back_with_the_end_of_a_claim(on: Fixture) {
        let (a, b) = (on.claim("a").await, on.claim("b").await);
        over(on.caller.begin(begin("c")).await, "max_claims", 2);
        on.caller.complete(complete("a", a.fencing_token, b"x")).await.unwrap();
        on.claim("c").await;
        over(on.caller.begin(begin("d")).await, "max_claims", 2);
        on.caller.release(release("b", b.fencing_token, v1::Disposition::Retry)).await.unwrap();
        on.claim("d").await;
        over(on.caller.begin(begin("b")).await, "max_claims", 2);
        // Other namespaces have quotas of their own, or none.
        for key in ["a", "b", "c"] {
            claim_of(
                on.caller
                    .begin(v1::BeginRequest { namespace: "payments".to_owned(), ..begin(key) })
                    .await
                    .unwrap(),
            );
        }
    }

    async fn what_makes_no_claim_is_answered_at_the_quota(on: Fixture) {
        on.complete("done", b"x").await;
        on.doubt("doubt").await;
        let mine = begin("mine");
        let first = claim_of(on.caller.begin(mine.clone()).await.unwrap());
        on.claim("other").await;
        over(on.caller.begin(begin("new")).await, "max_claims", 2);
        completed_of(on.caller.begin(begin("done")).await.unwrap());
        in_progress_of(on.caller.begin(begin("other")).await.unwrap());
        in_doubt_of(on.caller.begin(begin("doubt")).await.unwrap());
        let again = claim_of(on.caller.begin(mine).await.unwrap());
        assert_eq!((again.fencing_token, again.resumed), (first.fencing_token, true));
    }

    async fn what_holders_call_passes_at_the_quota(on: Fixture) {
        let (a, b) = (on.claim("a").await, on.claim("b").await);
        on.caller.renew(renew("a", a.fencing_token)).await.unwrap();
        over(on.caller.begin(begin("c")).await, "max_claims", 2);
        on.caller.complete(complete("a", a.fencing_token, b"x")).await.unwrap();
        on.caller.release(release("b", b.fencing_token, v1::Disposition::Retry)).await.unwrap();
    }

    async fn a_lapsed_claim_counts_no_more(on: Fixture) {
        for key in ["a", "b"] {
            let request = v1::BeginRequest { lock_ttl: seconds(2), ..begin(key) };
            claim_of(on.caller.begin(request).await.unwrap());
        }
        over(on.caller.begin(begin("c")).await, "max_claims", 2);
        while on.caller.begin(begin("c")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn a_crowd_gets_no_more_claims_than_there_may_be(on: Fixture) {
        let crowd: Vec<_> = (0..50)
            .map(|caller| {
                let on = Arc::clone(&on.caller);
                tokio::spawn(async move { on.begin(patient(&format!("key {caller}"))).await })
            })
            .collect();
        let mut claims = 0;
        for caller in crowd {
            match caller.await.unwrap() {
                Ok(response) => {
                    claim_of(response);
                    claims += 1;
                }
                refused => drop(over(refused, "max_claims", 2)),
            }
        }
        assert_eq!(claims, 2);
    }

    async fn a_waiter_gets_its_turn_at_the_quota(on: Fixture) {
        let (a, _b) = (on.claim("a").await, on.claim("b").await);
        let caller = Arc::clone(&on.caller);
        let waiter = tokio::spawn(async move { caller.begin(patient("a")).await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!waiter.is_finished());
        on.caller.release(release("a", a.fencing_token, v1::Disposition::Retry)).await.unwrap();
        assert_eq!(claim_of(waiter.await.unwrap().unwrap()).attempt, 2);
        over(on.caller.begin(begin("c")).await, "max_claims", 2);
    }
}

mod begins {
    use super::*;

    over_both! {
        configured(one_a_second):
        records_are_begun_at_the_rate_of_the_namespace_and_no_faster
        what_makes_no_claim_costs_nothing
    }

    fn one_a_second() -> Config {
        with(Policy { begins_per_second: Some(1), ..Policy::default() })
    }

    /// Tries until there is room.
    async fn soon(on: &Fixture, key: &str) -> v1::BeginResponse {
        loop {
            match on.caller.begin(begin(key)).await {
                Ok(response) => return response,
                refused => tokio::time::sleep(over(refused, "begins_per_second", 1)).await,
            }
        }
    }

    async fn records_are_begun_at_the_rate_of_the_namespace_and_no_faster(on: Fixture) {
        #[allow(clippy::disallowed_methods)] // Only to know how many there may be at the most.
        let started = Instant::now();
        let (mut claims, mut refused, mut key) = (0, 0, 0);
        while refused < 20 {
            key += 1;
            match on.caller.begin(begin(&key.to_string())).await {
                Ok(response) => {
                    claim_of(response);
                    claims += 1;
                }
                over_quota => {
                    let after = over(over_quota, "begins_per_second", 1);
                    assert!(after <= Duration::from_secs(2), "{after:?}");
                    refused += 1;
                }
            }
        }
        let most = 1 + started.elapsed().as_secs();
        assert!((1..=most).contains(&claims), "{claims} claims, {most} at the most");
        claim_of(soon(&on, "later").await);
        let other = v1::BeginRequest { namespace: "payments".to_owned(), ..begin("a") };
        claim_of(on.caller.begin(other).await.unwrap());
    }

    async fn what_makes_no_claim_costs_nothing(on: Fixture) {
        let claim = claim_of(soon(&on, "a").await);
        // It passes although there is room for no Begin.
        on.caller.complete(complete("a", claim.fencing_token, b"x")).await.unwrap();
        completed_of(soon(&on, "a").await);
        for _ in 0..100 {
            completed_of(on.caller.begin(begin("a")).await.unwrap());
        }
    }
}

mod waiters {
    use super::*;

    over_both! {
        configured(one_waiter):
        who_finds_no_place_to_wait_is_answered_and_a_watch_refused
        places_are_free_again_when_waiters_go
    }

    fn one_waiter() -> Config {
        with(Policy { max_waiters: Some(1), ..Policy::default() })
    }

    fn watch(key: &str) -> v1::WatchRequest {
        v1::WatchRequest { namespace: NAMESPACE.to_owned(), key: key.to_owned() }
    }

    /// A call that waits for a key, and has its place.
    async fn waiter(
        on: &Fixture,
        key: &'static str,
    ) -> tokio::task::JoinHandle<Result<v1::BeginResponse, Status>> {
        let caller = Arc::clone(&on.caller);
        let waiting = tokio::spawn(async move { caller.begin(patient(key)).await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!waiting.is_finished());
        waiting
    }

    async fn who_finds_no_place_to_wait_is_answered_and_a_watch_refused(on: Fixture) {
        let claim = on.claim("a").await;
        let waiting = waiter(&on, "a").await;
        in_progress_of(on.caller.begin(patient("a")).await.unwrap());
        let lookup = v1::LookupRequest { wait: seconds(60), ..lookup("a") };
        on.caller.lookup(lookup.clone()).await.unwrap();
        let refused = on.client.clone().watch(watch("a")).await.map(drop).unwrap_err();
        over(Err::<(), _>(crate::support::caller::rpc_status(&refused)), "max_waiters", 1);

        let elsewhere = v1::WatchRequest { namespace: "payments".to_owned(), ..watch("a") };
        on.client.clone().watch(elsewhere).await.unwrap();
        on.caller.complete(complete("a", claim.fencing_token, b"x")).await.unwrap();
        completed_of(waiting.await.unwrap().unwrap());
    }

    async fn places_are_free_again_when_waiters_go(on: Fixture) {
        let claim = on.claim("a").await;
        let mut watched = on.client.clone().watch(watch("a")).await.unwrap().into_inner();
        watched.message().await.unwrap().unwrap();
        in_progress_of(on.caller.begin(patient("a")).await.unwrap());
        drop(watched);
        let waiting = loop {
            // Until the server has noticed.
            let caller = Arc::clone(&on.caller);
            let waiting = tokio::spawn(async move { caller.begin(patient("a")).await });
            tokio::time::sleep(Duration::from_millis(200)).await;
            if !waiting.is_finished() {
                break waiting;
            }
        };
        on.caller.complete(complete("a", claim.fencing_token, b"x")).await.unwrap();
        completed_of(waiting.await.unwrap().unwrap());
        on.client.clone().watch(watch("a")).await.unwrap();
    }
}
