//! As one writes it first: who waits is in a map, and the callback takes it out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use tokio::sync::watch;

use crate::{Callback, Patience, Payment, Settled, parse, problem, settle, settled};

type Waiting = Arc<Mutex<HashMap<String, Expected>>>;

struct Expected {
    order_id: String,
    came: watch::Sender<Option<Arc<Settled>>>,
}

pub fn routes() -> Router {
    Router::new()
        .route("/payments", post(expect))
        .route("/callbacks/{id}", post(accept).get(answer))
        .with_state(Waiting::default())
}

async fn expect(State(waiting): State<Waiting>, body: Bytes) -> Response {
    let payment: Payment = match parse(&body, "{\"order_id\": \"…\"}") {
        Ok(payment) => payment,
        Err(answer) => return *answer,
    };
    let id = uuid::Uuid::new_v4().to_string();
    let expected = Expected { order_id: payment.order_id, came: watch::Sender::default() };
    waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), expected);
    let callback = serde_json::json!({ "callback": format!("/callbacks/{id}") });
    (StatusCode::CREATED, axum::Json(callback)).into_response()
}

async fn accept(State(waiting): State<Waiting>, Path(id): Path<String>, body: Bytes) -> Response {
    let callback: Callback = match parse(&body, "{\"status\": \"paid\" or \"declined\"}") {
        Ok(callback) => callback,
        Err(answer) => return *answer,
    };
    // Taken out, so that it is accepted once.
    let expected = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    let Some(expected) = expected else {
        return problem(StatusCode::NOT_FOUND, "no callback is expected under this id");
    };
    let answer = Arc::new(settle(&expected.order_id, callback.status));
    expected.came.send_replace(Some(Arc::clone(&answer)));
    settled(&answer, false)
}

async fn answer(
    State(waiting): State<Waiting>,
    Path(id): Path<String>,
    patience: Query<Patience>,
) -> Response {
    let came = waiting
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(&id)
        .map(|expected| expected.came.subscribe());
    let Some(mut came) = came else {
        return problem(StatusCode::NOT_FOUND, "no callback is expected under this id");
    };
    let settlement = tokio::time::timeout(patience.wait(), came.wait_for(Option::is_some)).await;
    match settlement {
        Ok(Ok(answer)) => match answer.as_deref() {
            Some(answer) => settled(answer, false),
            None => problem(StatusCode::ACCEPTED, "the callback has not come yet: ask again"),
        },
        _ => problem(StatusCode::ACCEPTED, "the callback has not come yet: ask again"),
    }
}
