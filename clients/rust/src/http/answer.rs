//! What becomes of a handler's answer.

use std::collections::VecDeque;

use http::Response;
use http::response::Parts;

use super::body::{End, Read, Whole, passing, read};
use super::{Body, Disposition, Options, Wire, grpc, plain};
use crate::claim::Claim;
use crate::completion::{Failure, WorkError};
use crate::v1::Outcome;

/// The largest answer where the claim does not say, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// A handler's answer, and what is to become of its key.
pub(super) enum Answered {
    /// It is the outcome.
    Stored(Outcome, Response<Body>),
    /// It goes to this caller alone, and the key by this failure.
    Passed(Response<Body>, Failure),
    /// The same; and the handler is at work until the caller has it all.
    Passing(Response<Body>, Failure, End),
    /// It was to be stored and cannot be.
    NotStorable(WorkError),
}

impl Options {
    /// Decides on an answer.
    pub(super) async fn decide(&self, answer: Response<Body>, claim: &Claim) -> Answered {
        let (parts, body) = answer.into_parts();
        let max_bytes = self.max_answer_bytes(claim);
        let said = parts.extensions.get().copied().or_else(|| self.wire.said(&parts));
        let disposition = said.or_else(|| match &self.wire {
            Wire::Http { .. } => Some(plain::disposition(parts.status, self.rule)),
            // Else it is at the end.
            Wire::Grpc { .. } => {
                grpc::status_of_head(&parts).map(|status| grpc::disposition(&status, self.rule))
            }
        });
        if let Some(failure) = disposition.and_then(|it| failure(it, &parts)) {
            return pass(parts, body, max_bytes, failure).await;
        }
        if let Some(why) = plain::endless(&parts) {
            return Answered::NotStorable(why.into());
        }
        let body = match read(body, max_bytes).await {
            Read::Whole(body) => body,
            Read::TooLarge(..) => {
                return Answered::NotStorable(format!("it is over {max_bytes} bytes").into());
            }
            Read::Broken(_, error) => return Answered::NotStorable(format!("it broke off: {error}").into()),
        };
        let outcome = match &self.wire {
            Wire::Http { store_headers, .. } => plain::outcome(&parts, &body, store_headers),
            Wire::Grpc { .. } => {
                let status = grpc::status(&parts, &body);
                let disposition = said.unwrap_or_else(|| grpc::disposition(&status, self.rule));
                if let Some(failure) = failure(disposition, &parts) {
                    return Answered::Passed(whole(parts, body), failure);
                }
                grpc::outcome(&status, &body)
            }
        };
        match outcome {
            Ok(outcome) => Answered::Stored(outcome, whole(parts, body)),
            Err(error) => Answered::NotStorable(error),
        }
    }

    fn max_answer_bytes(&self, claim: &Claim) -> usize {
        let allowed = match claim.max_outcome_bytes() {
            0 => MAX_BYTES,
            allowed => usize::try_from(allowed).unwrap_or(usize::MAX),
        };
        let max_bytes = self.max_response_bytes.min(allowed);
        match self.wire {
            Wire::Http { .. } => max_bytes,
            Wire::Grpc { .. } => max_bytes.saturating_add(grpc::FRAME_BYTES),
        }
    }
}

impl Wire {
    fn said(&self, parts: &Parts) -> Option<Disposition> {
        match self {
            Wire::Http { .. } => None,
            Wire::Grpc { .. } => grpc::said(parts),
        }
    }
}

/// What an answer that is not to be stored does to the key.
fn failure(disposition: Disposition, parts: &Parts) -> Option<Failure> {
    let said = format!("the handler answered {}", parts.status);
    match disposition {
        Disposition::Store => None,
        Disposition::Retry => Some(Failure::retry(said)),
        Disposition::InDoubt => Some(Failure::in_doubt(said)),
    }
}

/// An answer for this caller alone. Its body may well be made while it is sent, so the claim is held to its end; and it
/// is read first, so that a slow caller does not hold the key for long.
async fn pass(parts: Parts, body: Body, max_bytes: usize, failure: Failure) -> Answered {
    let read = match plain::endless(&parts) {
        Some(_) => Read::TooLarge(VecDeque::new(), body),
        None => read(body, max_bytes).await,
    };
    let (frames, rest) = match read {
        Read::Whole(body) => return Answered::Passed(whole(parts, body), failure),
        Read::TooLarge(frames, rest) => (frames, Ok(rest)),
        Read::Broken(frames, error) => (frames, Err(error)),
    };
    let (body, end) = passing(frames, rest);
    Answered::Passing(Response::from_parts(parts, body), failure, end)
}

fn whole(parts: Parts, body: Whole) -> Response<Body> {
    Response::from_parts(parts, body.into_body())
}
