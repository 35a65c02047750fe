//! What the settings of a namespace do to its calls: to those that name nothing, and to those that ask for too much.

use std::time::SystemTime;

use onced::config::Policy;
use onced::record::OnLapse;
use tonic::Code;

use super::*;

over_both! {
    configured(orders_differ):
    what_a_begin_does_not_name_is_as_its_namespace_says
    what_a_begin_names_counts_more_than_its_namespace
    a_lapse_without_a_word_is_as_the_namespace_says
    more_than_the_namespace_allows_is_refused_with_its_bounds
    the_largest_outcome_is_that_of_the_namespace
}

/// Another namespace, which is as all are by default.
const OTHER: &str = "payments";

fn orders_differ() -> Config {
    let mut config = Config::default();
    let orders = Policy {
        lock_ttl: Duration::from_secs(2),
        max_lock_ttl: Duration::from_secs(10),
        retention: Duration::from_secs(120),
        max_retention: Duration::from_secs(3_600),
        on_lapse: OnLapse::Hold,
        max_outcome_bytes: 10,
        ..Policy::default()
    };
    config.namespaces.named.insert(NAMESPACE.to_owned(), orders);
    config
}

fn elsewhere(request: v1::BeginRequest) -> v1::BeginRequest {
    v1::BeginRequest { namespace: OTHER.to_owned(), ..request }
}

/// How long a record is kept after it was completed.
fn kept(completed: &v1::Completed) -> Duration {
    let time = |time: Option<prost_types::Timestamp>| SystemTime::try_from(time.unwrap()).unwrap();
    time(completed.expires_at).duration_since(time(completed.completed_at)).unwrap()
}

async fn what_a_begin_does_not_name_is_as_its_namespace_says(on: Fixture) {
    let other = claim_of(on.caller.begin(elsewhere(begin("a"))).await.unwrap());
    assert_eq!(other.lock_ttl, seconds(30));
    let claim = on.claim("a").await;
    assert_eq!(claim.lock_ttl, seconds(2));
    let completed = on.caller.complete(complete("a", claim.fencing_token, b"x")).await.unwrap();
    assert_eq!(kept(&completed.completed.unwrap()), Duration::from_secs(120));
    let complete =
        v1::CompleteRequest { namespace: OTHER.to_owned(), ..complete("a", other.fencing_token, b"x") };
    let completed = on.caller.complete(complete).await.unwrap();
    assert_eq!(kept(&completed.completed.unwrap()), Duration::from_secs(24 * 3_600));
}

async fn what_a_begin_names_counts_more_than_its_namespace(on: Fixture) {
    let take_over = v1::OnLapse::TakeOver.into();
    let request =
        v1::BeginRequest { lock_ttl: seconds(3), retention: seconds(60), on_lapse: take_over, ..begin("a") };
    let claim = claim_of(on.caller.begin(request).await.unwrap());
    assert_eq!(claim.lock_ttl, seconds(3));
    let second = claim_of(on.caller.begin(patient("a")).await.unwrap());
    assert_eq!(second.attempt, 2, "it was taken over");
    let completed = on.caller.complete(complete("a", second.fencing_token, b"x")).await.unwrap();
    // The second Begin named no retention.
    assert_eq!(kept(&completed.completed.unwrap()), Duration::from_secs(120));
}

async fn a_lapse_without_a_word_is_as_the_namespace_says(on: Fixture) {
    on.claim("a").await;
    loop {
        match on.caller.begin(begin("a")).await.unwrap().result.unwrap() {
            begin_response::Result::InProgress(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            begin_response::Result::InDoubt(_) => break,
            other => panic!("{other:?}"),
        }
    }
}

async fn more_than_the_namespace_allows_is_refused_with_its_bounds(on: Fixture) {
    let ask = |lock_ttl, retention| v1::BeginRequest { lock_ttl, retention, ..begin("a") };
    let info = assert_refused(
        on.caller.begin(ask(seconds(11), None)).await,
        Code::InvalidArgument,
        "TTL_OUT_OF_RANGE",
    );
    assert_eq!(info.metadata["limit"], "must be 2 s to 10 s (unset: 2 s)");
    let info = assert_refused(
        on.caller.begin(ask(None, seconds(3_601))).await,
        Code::InvalidArgument,
        "RETENTION_OUT_OF_RANGE",
    );
    assert_eq!(info.metadata["limit"], "must be 1 min to 1 h");
    claim_of(on.caller.begin(elsewhere(ask(seconds(11), seconds(3_601)))).await.unwrap());

    let claim = claim_of(on.caller.begin(ask(seconds(10), seconds(3_600))).await.unwrap());
    let longer =
        v1::CompleteRequest { retention: seconds(3_601), ..complete("a", claim.fencing_token, b"x") };
    assert_refused(on.caller.complete(longer).await, Code::InvalidArgument, "RETENTION_OUT_OF_RANGE");
    on.caller.complete(complete("a", claim.fencing_token, b"x")).await.unwrap();
}

async fn the_largest_outcome_is_that_of_the_namespace(on: Fixture) {
    let claim = on.claim("a").await;
    assert_eq!(claim.max_outcome_bytes, 10);
    let over = on.caller.complete(complete("a", claim.fencing_token, b"123456789")).await;
    assert_refused(over, Code::InvalidArgument, "OUTCOME_TOO_LARGE");
    on.caller.complete(complete("a", claim.fencing_token, b"12345678")).await.unwrap();
    let other = claim_of(on.caller.begin(elsewhere(begin("a"))).await.unwrap());
    assert_eq!(other.max_outcome_bytes, 1 << 20);
}
