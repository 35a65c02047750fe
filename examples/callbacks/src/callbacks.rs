//! The state of a payment is the state of its record in onced, under the callback's id:
//!
//! | the record | the payment |
//! |---|---|
//! | is not there | unknown, or finished so long ago that its retention is over |
//! | is free, with a checkpoint | expects its callback; the checkpoint has the order |
//! | is claimed | a replica is accepting the callback |
//! | has its outcome | settled: every further callback, and whoever waits, gets that |

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use onced_client::v1::{LookupRequest, Outcome};
use onced_client::{Claim, Client, Code, ErrorReason, Failure, OnceError, Record, codec, fingerprint, wire};

use crate::{Callback, Patience, Payment, Settled, Status, parse, problem, settle, settled};

const NAMESPACE: &str = "callbacks";
/// How long a callback is awaited, and how long it is answered after it came.
const RETENTION: Duration = Duration::from_secs(24 * 3600);
/// How soon another replica takes over from one that died.
const LOCK_TTL: Duration = Duration::from_secs(5);
/// The provider gives up after ten seconds, and repeats its call.
const PATIENCE: Duration = Duration::from_secs(8);

pub fn routes(client: Client) -> Router {
    Router::new()
        .route("/payments", post(expect))
        .route("/callbacks/{id}", post(accept).get(answer))
        .with_state(client)
}

/// Begins to expect a callback.
async fn expect(State(client): State<Client>, body: Bytes) -> Response {
    let payment: Payment = match parse(&body, "{\"order_id\": \"…\"}") {
        Ok(payment) => payment,
        Err(answer) => return *answer,
    };
    let id = uuid::Uuid::new_v4().to_string();
    // A claim that saves what is expected, and is given back: the record is there from now on, and free.
    let work = |claim: Claim| async move {
        claim.save_checkpoint(payment.order_id).await?;
        Err::<Outcome, _>(Failure::retry("the callback is yet to come"))
    };
    match client.once(&id).namespace(NAMESPACE).retention(RETENTION).lock_ttl(LOCK_TTL).run(work).await {
        // A checkpoint that could not be saved ends here, too: nobody was told the id, so it harms nobody.
        Err(OnceError::Failed { error, released: Ok(()), .. }) if !error.is::<onced_client::Error>() => {
            let callback = serde_json::json!({ "callback": format!("/callbacks/{id}") });
            (StatusCode::CREATED, axum::Json(callback)).into_response()
        }
        Err(error) => unavailable(&error),
        Ok(_) => unavailable(&"a record of this id was there already"),
    }
}

/// Takes the callback: the first is accepted, every other one gets the same answer.
async fn accept(State(client): State<Client>, Path(id): Path<String>, body: Bytes) -> Response {
    let callback: Callback = match parse(&body, "{\"status\": \"paid\" or \"declined\"}") {
        Ok(callback) => callback,
        Err(answer) => return *answer,
    };
    // To begin would make a record of any id that somebody thinks up.
    if let Err(answer) = look(&client, &id, Duration::ZERO).await {
        return answer;
    }
    // Of what was understood, and not of the bytes: the provider counts its attempts in them.
    let Ok(fingerprint) = fingerprint::json(&callback) else { return unavailable(&"no fingerprint") };
    let once = client
        .once(&id)
        .namespace(NAMESPACE)
        .retention(RETENTION)
        .lock_ttl(LOCK_TTL)
        .wait(PATIENCE)
        // Who says something else under the same id does not repeat it.
        .fingerprint(fingerprint);
    // On a task of its own: a provider that hangs up stops nothing.
    let run = tokio::spawn(once.run_as(codec::Json, move |claim: Claim| accepted(claim, callback.status)));
    match run.await {
        Ok(Ok(done)) => settled(&done.outcome, !done.ran_here),
        Ok(Err(OnceError::NotBegun(error))) if error.reason() == Some(ErrorReason::FingerprintMismatch) => {
            problem(
                StatusCode::UNPROCESSABLE_ENTITY,
                "an earlier callback of this payment said something else",
            )
        }
        Ok(Err(OnceError::Final(_))) => unknown(),
        Ok(Err(error)) => unavailable(&error),
        Err(error) => unavailable(&error),
    }
}

/// The work that is done once.
async fn accepted(claim: Claim, status: Status) -> Result<Settled, Failure> {
    // Its retention ended between the look and the claim.
    let order =
        claim.checkpoint().ok_or_else(|| Failure::permanent(Code::NotFound, "not expected any longer"))?;
    Ok(settle(std::str::from_utf8(order)?, status))
}

/// Tells what the callback brought about, as soon as it has come.
async fn answer(State(client): State<Client>, Path(id): Path<String>, patience: Query<Patience>) -> Response {
    match look(&client, &id, patience.wait()).await {
        Ok(Record::Completed(completed)) => {
            let response = completed.outcome.as_ref().and_then(Outcome::response_bytes);
            match response.map(|response| serde_json::from_slice::<Settled>(response)) {
                Some(Ok(answer)) => settled(&answer, true),
                _ => unknown(),
            }
        }
        Ok(_) => problem(StatusCode::ACCEPTED, "the callback has not come yet: ask again"),
        Err(answer) => answer,
    }
}

/// The record of a payment, or what to answer.
async fn look(client: &Client, id: &str, wait: Duration) -> Result<Record, Response> {
    let (namespace, key) = (NAMESPACE.to_owned(), id.to_owned());
    let request = LookupRequest { namespace, key, wait: Some(wire(wait)) };
    client.lookup(request).await.map_err(|error| match error.reason() {
        Some(ErrorReason::RecordNotFound) => unknown(),
        _ => unavailable(&error),
    })
}

fn unknown() -> Response {
    problem(StatusCode::NOT_FOUND, "no callback is expected under this id, and none has come lately")
}

/// Nothing was decided: the provider repeats its callback.
fn unavailable(why: &dyn std::fmt::Display) -> Response {
    eprintln!("not decided: {why}");
    problem(StatusCode::SERVICE_UNAVAILABLE, "not decided: send it again")
}
