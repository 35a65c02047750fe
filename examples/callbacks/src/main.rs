//! A service of which each payment is settled by one callback. Any number of replicas may run.
//!
//!   POST /payments             {"order_id": "…"}                  201 {"callback": "/callbacks/ID"}
//!   POST /callbacks/ID         {"status": "paid" | "declined"}    200 {"receipt": "…", …}: sent by the payment provider
//!   GET  /callbacks/ID?wait=10                                    the same answer, as soon as there is one; 202 until then
//!
//! Started as `callbacks ADDRESS`, it keeps its state in onced, whose servers ONCED_SERVER names. With `--naive` it is the
//! service that one writes first.

mod callbacks;
mod naive;

use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::HeaderName;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

/// A payment that is to be settled.
#[derive(Deserialize)]
struct Payment {
    order_id: String,
}

/// What the provider tells. Its body has more, which is not looked at.
#[derive(Deserialize, Serialize)]
struct Callback {
    status: Status,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Paid,
    Declined,
}

/// What the first callback of a payment brought about.
#[derive(Deserialize, Serialize)]
struct Settled {
    order_id: String,
    status: Status,
    /// Made anew whenever a callback is accepted, so a second acceptance would show.
    receipt: String,
}

/// Until when the one who asks for the answer is kept waiting.
#[derive(Deserialize)]
struct Patience {
    /// In seconds.
    #[serde(default)]
    wait: u64,
}

impl Patience {
    fn wait(&self) -> Duration {
        Duration::from_secs(self.wait.min(60))
    }
}

/// What becomes of a payment. Where the order is marked as paid in a database, its row remembers the fencing token and
/// refuses a lower one.
fn settle(order_id: &str, status: Status) -> Settled {
    // The story's crash: no destructor runs, no connection is closed in order, as with `kill -9`.
    if std::env::var_os("DIE_WHILE_SETTLING").is_some() {
        std::process::abort();
    }
    Settled { order_id: order_id.to_owned(), status, receipt: uuid::Uuid::new_v4().to_string() }
}

fn settled(settled: &Settled, replayed: bool) -> Response {
    let replayed = replayed.then_some((HeaderName::from_static("idempotent-replayed"), "true"));
    (replayed.map(|header| [header]), Json(settled)).into_response()
}

fn problem(status: StatusCode, detail: &str) -> Response {
    (status, Json(serde_json::json!({ "status": status.as_u16(), "detail": detail }))).into_response()
}

/// A body that is JSON of this form, or what to answer to it.
fn parse<'a, T: Deserialize<'a>>(body: &'a [u8], form: &str) -> Result<T, Box<Response>> {
    serde_json::from_slice(body).map_err(|error| {
        Box::new(problem(StatusCode::BAD_REQUEST, &format!("the body is not {form}: {error}")))
    })
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let address = args.next().ok_or_else(|| anyhow::anyhow!("usage: callbacks ADDRESS [--naive]"))?;
    let routes = match args.next().as_deref() {
        None => callbacks::routes(onced_client::Client::connect("")?),
        Some("--naive") => naive::routes(),
        Some(other) => anyhow::bail!("no such option: {other}"),
    };
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, routes).await?;
    Ok(())
}
