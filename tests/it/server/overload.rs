//! More calls than there are places: shed with a hint, while holders are served, and over once there are places.

use futures_util::future::join_all;
use onced::rpc;
use onced_client::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::*;
use crate::support::server::Connection;

type Api = v1::idempotency_service_client::IdempotencyServiceClient<Connection>;

const PLACES: usize = 8;
const CALLERS: usize = 100;

fn begin(key: &str) -> v1::BeginRequest {
    v1::BeginRequest {
        namespace: "test".to_owned(),
        key: key.to_owned(),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..v1::BeginRequest::default()
    }
}

async fn claim(mut api: Api, key: String) -> Result<u64, Status> {
    match api.begin(begin(&key)).await?.into_inner().result {
        Some(v1::begin_response::Result::Claim(claim)) => Ok(claim.fencing_token),
        other => panic!("no claim: {other:?}"),
    }
}

async fn complete(mut api: Api, key: &str, fencing_token: u64) -> Result<(), Status> {
    let result = Some(v1::outcome::Result::Response("done".into()));
    let request = v1::CompleteRequest {
        namespace: "test".to_owned(),
        key: key.to_owned(),
        fencing_token,
        outcome: Some(v1::Outcome { result, ..v1::Outcome::default() }),
        retention: None,
    };
    api.complete(request).await.map(drop)
}

/// Expects a refusal for want of this that says when to come again, in both ways that clients understand.
fn hint(status: &Status, limit: &str) -> u64 {
    assert_eq!(status.code(), Code::Unavailable);
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.metadata["limit"].as_str()), ("OVERLOADED", limit));
    let pushback = status.metadata().get("grpc-retry-pushback-ms").expect("a pushback").to_str().unwrap();
    let delay = details.retry_info().and_then(|info| info.retry_delay).expect("a delay");
    assert!((500..2_000).contains(&delay.as_millis()), "{delay:?}");
    pushback.parse().unwrap()
}

#[tokio::test]
async fn begins_beyond_the_places_are_shed_with_hints_while_holders_complete() {
    let store = Controlled::in_memory();
    let settings = rpc::Settings { max_active_calls: PLACES, ..rpc::Settings::default() };
    let server = TestServer::start_with(store.clone(), Config { rpc: settings, ..Config::default() }).await;
    let api = server.client().await;
    let mut held = Vec::new();
    for number in 0..CALLERS {
        let key = format!("held-{number}");
        held.push((claim(api.clone(), key.clone()).await.unwrap(), key));
    }

    // The store takes no more claims: the places fill up.
    store.hold_claims(true);
    let before = store.trips();
    let stuck: Vec<_> =
        (0..PLACES).map(|number| tokio::spawn(claim(api.clone(), format!("stuck-{number}")))).collect();
    store.reached(before + PLACES).await;
    let shed = join_all((0..CALLERS).map(|number| claim(api.clone(), format!("shed-{number}")))).await;
    let hints: std::collections::BTreeSet<u64> =
        shed.iter().map(|result| hint(result.as_ref().unwrap_err(), "max_active_calls")).collect();
    assert!(hints.len() > CALLERS / 4, "they would all come again together: {hints:?}");
    for (token, key) in held {
        complete(api.clone(), &key, token).await.expect("a holder is served");
    }
    assert!(stuck.iter().all(|call| !call.is_finished()), "the places were full all the while");

    // And then it does: who waited is served, and as many as before find a place.
    store.hold_claims(false);
    for call in stuck {
        call.await.unwrap().expect("who had a place gets the claim");
    }
    for number in 0..CALLERS {
        claim(api.clone(), format!("after-{number}")).await.expect("there are places again");
    }
    store.hold_claims(true);
    let before = store.trips();
    let again: Vec<_> =
        (0..PLACES).map(|number| tokio::spawn(claim(api.clone(), format!("again-{number}")))).collect();
    store.reached(before + PLACES).await;
    store.hold_claims(false);
    for call in again {
        call.await.unwrap().expect("all places were free again");
    }
    server.stop().await;
}

/// The work of a call that was reset goes on, and the next call may take its stream: a connection that resets all that
/// it sends must not take the places of all others while the store is slow.
#[tokio::test]
async fn a_connection_that_resets_its_calls_takes_up_its_own_places_only() {
    const OWN: usize = PLACES / 2;
    let store = Controlled::in_memory();
    let limits = Limits { active_calls_per_connection: OWN, ..Limits::default() };
    let rpc = rpc::Settings { max_active_calls: PLACES, ..rpc::Settings::default() };
    let server = TestServer::start_with(store.clone(), Config { rpc, limits, ..Config::default() }).await;
    let (resets, beside) = (server.client().await, server.client().await);
    let token = claim(resets.clone(), "held".to_owned()).await.unwrap();

    store.hold_claims(true);
    for number in 0..OWN {
        let before = store.trips();
        let call = tokio::spawn(claim(resets.clone(), format!("reset-{number}")));
        store.reached(before + 1).await;
        call.abort();
    }
    for number in 0..PLACES {
        let refused = claim(resets.clone(), format!("refused-{number}")).await.unwrap_err();
        hint(&refused, "active_calls_per_connection");
    }
    complete(resets.clone(), "held", token).await.expect("its holders have places of their own");
    let before = store.trips();
    let others: Vec<_> = (0..PLACES - OWN)
        .map(|number| tokio::spawn(claim(beside.clone(), format!("beside-{number}"))))
        .collect();
    store.reached(before + PLACES - OWN).await;

    store.hold_claims(false);
    for call in others {
        call.await.unwrap().expect("others have had their places");
    }
    server.stop().await;
}
