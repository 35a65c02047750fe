//! AdminService: finding records, settling those in doubt, removing them.

use tonic::Code;

use super::*;
use crate::support::caller::rpc_status;

fn list(state: v1::RecordState, page_size: u32, page_token: &str) -> v1::ListRequest {
    v1::ListRequest {
        namespace: NAMESPACE.to_owned(),
        state: state.into(),
        page_size,
        page_token: page_token.to_owned(),
    }
}

fn resolve(key: &str, fencing_token: u64, response: Option<&'static [u8]>) -> v1::ResolveRequest {
    use v1::resolve_request::Resolution;
    let resolution = match response {
        None => Resolution::Retry(v1::ResolveRetry {}),
        Some(response) => Resolution::Outcome(outcome(response)),
    };
    v1::ResolveRequest {
        namespace: NAMESPACE.to_owned(),
        key: key.to_owned(),
        fencing_token,
        resolution: Some(resolution),
        retention: None,
    }
}

fn delete(key: &str, fencing_token: u64, force: bool) -> v1::DeleteRequest {
    v1::DeleteRequest { namespace: NAMESPACE.to_owned(), key: key.to_owned(), fencing_token, force }
}

impl Fixture {
    async fn list(&self, request: v1::ListRequest) -> v1::ListResponse {
        self.admin.clone().list(request).await.unwrap().into_inner()
    }

    async fn resolve(&self, request: v1::ResolveRequest) -> Result<v1::RecordSummary, Status> {
        let answer = self.admin.clone().resolve(request).await.map_err(|status| rpc_status(&status))?;
        Ok(answer.into_inner().record.expect("a record"))
    }

    async fn delete(&self, request: v1::DeleteRequest) -> Result<(), Status> {
        self.admin.clone().delete(request).await.map(drop).map_err(|status| rpc_status(&status))
    }

    /// All keys in a state, page by page.
    async fn keys(&self, state: v1::RecordState, page_size: u32) -> Vec<String> {
        let (mut keys, mut token) = (Vec::new(), String::new());
        loop {
            let page = self.list(list(state, page_size, &token)).await;
            assert!(page.records.len() <= page_size as usize);
            keys.extend(page.records.into_iter().map(|record| record.key));
            token = page.next_page_token;
            if token.is_empty() {
                return keys;
            }
        }
    }
}

#[tokio::test]
async fn list_pages_through_all_keys_in_order() {
    let on = Fixture::new(Way::Unary).await;
    let keys: Vec<String> = (0..7).map(|number| format!("key {number}/\u{e9}")).collect();
    for key in keys.iter().rev() {
        on.claim(key).await;
    }
    for page_size in [1, 2, 7, 1_000] {
        assert_eq!(on.keys(v1::RecordState::Unspecified, page_size).await, keys, "by {page_size}");
    }
    let elsewhere = v1::ListRequest { namespace: "empty".to_owned(), ..v1::ListRequest::default() };
    assert_eq!(on.list(elsewhere).await, v1::ListResponse::default());
}

#[tokio::test]
async fn list_tells_each_state_and_filters_by_it() {
    use v1::RecordState as State;
    let on = Fixture::new(Way::Unary).await;
    let mut expected = Vec::new();
    for round in 0..3 {
        let held = format!("held {round}");
        on.claim(&held).await;
        on.complete(&format!("completed {round}"), b"done").await;
        on.doubt(&format!("doubted {round}")).await;
        let released = format!("released {round}");
        let token = on.claim(&released).await.fencing_token;
        on.caller.release(release(&released, token, v1::Disposition::Retry)).await.unwrap();
        expected.push(format!("doubted {round}"));
    }
    for page_size in [1, 2, 3, 100] {
        assert_eq!(on.keys(State::InDoubt, page_size).await, expected, "by {page_size}");
    }
    let all = on.list(list(State::Unspecified, 0, "")).await.records;
    assert_eq!(all.len(), 12);
    for record in all {
        let state = record.state();
        let told = (record.lock_expires_in.is_some(), !record.reason.is_empty(), record.expires_at.is_some());
        let expected = match state {
            State::InProgress => (true, false, false),
            State::Available | State::InDoubt => (false, true, false),
            State::Completed => (false, false, true),
            State::Unspecified => panic!("no state: {record:?}"),
        };
        assert_eq!(told, expected, "{record:?}");
        assert!(record.since.is_some() && record.attempt == 1 && record.fencing_token > 0);
    }
}

#[tokio::test]
async fn a_page_token_holds_for_its_namespace_alone() {
    let on = Fixture::new(Way::Unary).await;
    on.claim("a").await;
    on.claim("b").await;
    let token = on.list(list(v1::RecordState::Unspecified, 1, "")).await.next_page_token;
    let elsewhere =
        v1::ListRequest { namespace: "other".to_owned(), page_token: token, ..v1::ListRequest::default() };
    let refused = on.admin.clone().list(elsewhere).await.map_err(|status| rpc_status(&status));
    assert_refused(refused, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
}

#[tokio::test]
async fn a_doubt_resolved_to_retry_runs_again() {
    let on = Fixture::new(Way::Unary).await;
    let doubted = on.doubt("a").await;
    let request = resolve("a", doubted.fencing_token, None);
    for _ in 0..2 {
        let record = on.resolve(request.clone()).await.unwrap();
        assert_eq!((record.key.as_str(), record.state()), ("a", v1::RecordState::Available));
    }
    assert_eq!(on.claim("a").await.attempt, 2);
    // The key's next life is not touched by a late repetition.
    assert_refused(on.resolve(request).await, Code::Aborted, "CLAIM_LOST");
}

#[tokio::test]
async fn a_doubt_resolved_to_an_outcome_is_replayed_under_a_new_token() {
    let on = Fixture::new(Way::Unary).await;
    let doubted = on.doubt("a").await;
    for _ in 0..2 {
        let record = on.resolve(resolve("a", doubted.fencing_token, Some(b"settled"))).await.unwrap();
        assert_eq!(record.state(), v1::RecordState::Completed);
        assert!(record.fencing_token > doubted.fencing_token);
    }
    let told = completed_of(on.caller.begin(begin("a")).await.unwrap());
    assert_eq!(told.outcome, Some(outcome(b"settled")));
    let other = on.resolve(resolve("a", doubted.fencing_token, Some(b"other"))).await;
    assert_refused(other, Code::FailedPrecondition, "OUTCOME_CONFLICT");
    let holder = on.caller.complete(complete("a", doubted.fencing_token, b"late")).await;
    assert_refused(holder, Code::Aborted, "CLAIM_LOST");
}

#[tokio::test]
async fn only_a_doubt_can_be_resolved() {
    let on = Fixture::new(Way::Unary).await;
    let held = on.claim("held").await;
    assert_refused(on.resolve(resolve("held", held.fencing_token, None)).await, Code::Aborted, "CLAIM_LOST");
    let absent = on.resolve(resolve("absent", 1, None)).await;
    assert_refused(absent, Code::NotFound, "RECORD_NOT_FOUND");
}

#[tokio::test]
async fn delete_needs_force_while_a_claim_is_held() {
    let on = Fixture::new(Way::Unary).await;
    let held = on.claim("a").await;
    let refused = on.delete(delete("a", held.fencing_token, false)).await;
    let info = assert_refused(refused, Code::FailedPrecondition, "CLAIM_HELD");
    assert_eq!(info.metadata["state"], "in_progress");
    on.delete(delete("a", held.fencing_token, true)).await.unwrap();
    assert_refused(on.caller.lookup(lookup("a")).await, Code::NotFound, "RECORD_NOT_FOUND");
}

#[tokio::test]
async fn a_deleted_key_begins_anew_with_a_larger_token_and_delete_is_repeatable() {
    let on = Fixture::new(Way::Unary).await;
    let first = on.complete("a", b"done").await;
    for _ in 0..2 {
        on.delete(delete("a", first.fencing_token, false)).await.unwrap();
    }
    let second = on.claim("a").await;
    assert_eq!(second.attempt, 1);
    assert!(second.fencing_token > first.fencing_token);
    // A late repetition names the token of the life before.
    assert_refused(on.delete(delete("a", first.fencing_token, true)).await, Code::Aborted, "CLAIM_LOST");
}
