//! Client for `onced`, the idempotency coordination service: run a function once for a key, wherever and
//! however often it is called.
//!
//! ```no_run
//! # async fn charge(_token: u64) -> Result<String, std::io::Error> { Ok(String::new()) }
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! let client = onced_client::Client::connect("10.0.0.1:7411,10.0.0.2:7411")?;
//! let done = client
//!     .once("order-17")
//!     .namespace("shop")
//!     .lock_ttl(Duration::from_secs(10))
//!     .run_as(onced_client::codec::Text, |claim| async move {
//!         let receipt = charge(claim.fencing_token()).await?;
//!         Ok(receipt)
//!     })
//!     .await?;
//! match done.ran_here {
//!     true => println!("charged: {}", done.outcome),
//!     false => println!("was charged before, by {}: {}", done.owner, done.outcome),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What this does not do: stop the side effects of a holder that was paused past its lock TTL. Pass
//! [`Claim::fencing_token`] to the resource and let it refuse lower ones than it has seen, or write the
//! outcome in the resource's own transaction.

mod access;
mod begin;
mod builder;
mod claim;
mod client;
pub mod clock;
pub mod codec;
mod completion;
mod error;
pub mod fingerprint;
#[cfg(feature = "http")]
pub mod http;
mod once;
mod outcome;
mod owner;
mod retry;
mod server;
mod session;
mod transport;
mod watch;
mod work;

pub use builder::ClientBuilder;
pub use claim::{Claim, Lost};
pub use client::{Client, DEFAULT_TIMEOUT, duration, wire};
pub use completion::{Completion, Failure, OnFailure, OnceError, WorkError};
pub use error::{Error, Refusal};
pub use once::{DEFAULT_WAIT, Once};
pub use owner::{default_owner, lasting_owner};
pub use server::{Credentials, Stub};
pub use session::Session;
pub use tonic::Code;
pub use v1::begin_response::Result as Begun;
pub use v1::lookup_response::Record;
pub use v1::{ErrorReason, Outcome};
pub use watch::Watch;

/// The messages and client stubs of the API, package `onced.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("onced.v1");
}

/// The examples of the README compile.
#[cfg(all(doctest, feature = "http", feature = "json"))]
#[doc = include_str!("../README.md")]
struct Readme;
