//! Counts and times each call, by what it came to.

use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use metrics::{Counter, Histogram, SharedString, counter, histogram};
use onced_client::v1::ErrorReason;
use onced_client::v1::begin_response::Result as Begun;
use tonic::Code;

use super::Answering;
use crate::clock::Clock;
use crate::rpc::call::{Answer, Call, Context, Response, Rpc};
use crate::rpc::failure::Failure;
use crate::rpc::status::{code, code_name, name};
use crate::telemetry::metrics::{BEGINS, CALL_DURATION, Times, WATCHES_ENDED};

/// Room for the reasons of errors, by their numbers; 0 is no error.
const REASONS: usize = 64;

/// What a Begin came to, in the order of its counters.
#[derive(Clone, Copy)]
enum BeginEnd {
    Claimed,
    TakenOver,
    Resumed,
    Replayed,
    InProgress,
    InDoubt,
    Mismatch,
    Failed,
}

const BEGIN_ENDS: [&str; 8] =
    ["claimed", "taken_over", "resumed", "replayed", "in_progress", "in_doubt", "mismatch", "failed"];

/// What is counted of calls. Cheap to clone.
#[derive(Clone)]
pub struct Meters(Arc<Inner>);

struct Inner {
    calls: Times,
    begins: [Counter; BEGIN_ENDS.len()],
}

/// Measures each call.
#[derive(Clone)]
pub struct Measure<S> {
    pub inner: S,
    pub clock: Clock,
    pub meters: Meters,
}

impl<S> tower::Service<Call> for Measure<S>
where
    S: tower::Service<Call, Response = Answer, Error = Failure, Future = Answering>,
{
    type Response = Answer;
    type Error = Failure;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let mut measured = Measured {
            meters: self.meters.clone(),
            clock: self.clock.clone(),
            rpc: call.request.kind(),
            context: call.context,
            done: false,
        };
        let answering = self.inner.call(call);
        Box::pin(async move {
            let result = answering.await;
            measured.done(&result);
            result
        })
    }
}

/// A call under way. Dropped before it was answered, its caller has left, or its time was up.
struct Measured {
    meters: Meters,
    clock: Clock,
    rpc: Rpc,
    context: Context,
    done: bool,
}

impl Measured {
    fn done(&mut self, result: &Result<Answer, Failure>) {
        self.done = true;
        self.meters.count(self.rpc, result, self.clock.now().since(self.context.arrived));
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        if !self.done {
            self.done(&Err(self.context.given_up(self.clock.now())));
        }
    }
}

impl Default for Meters {
    fn default() -> Self {
        let calls = Times::new(Rpc::CALLS.len() * REASONS);
        let begins = BEGIN_ENDS.map(|end| counter!(BEGINS, "result" => end));
        Self(Arc::new(Inner { calls, begins }))
    }
}

impl Meters {
    fn count(&self, rpc: Rpc, result: &Result<Answer, Failure>, took: std::time::Duration) {
        let reason = result.as_ref().err().map(Failure::reason);
        let number = reason.map_or(0, |reason| usize::try_from(reason as i32).unwrap_or(0));
        self.0.calls.record(rpc as usize * REASONS + number, took, || duration_of(rpc, reason));
        if let Rpc::Begin = rpc {
            self.0.begins[BeginEnd::of(result) as usize].increment(1);
        }
    }
}

impl BeginEnd {
    fn of(result: &Result<Answer, Failure>) -> Self {
        let response = match result {
            Ok(Answer { response: Response::Begin(response), .. }) => response,
            Err(failure) if failure.reason() == ErrorReason::FingerprintMismatch => {
                return BeginEnd::Mismatch;
            }
            Ok(_) | Err(_) => return BeginEnd::Failed,
        };
        match &response.result {
            Some(Begun::Claim(claim)) if claim.resumed => BeginEnd::Resumed,
            Some(Begun::Claim(claim)) if claim.attempt > 1 => BeginEnd::TakenOver,
            Some(Begun::Claim(_)) => BeginEnd::Claimed,
            Some(Begun::Completed(_)) => BeginEnd::Replayed,
            Some(Begun::InProgress(_)) => BeginEnd::InProgress,
            Some(Begun::InDoubt(_)) => BeginEnd::InDoubt,
            None => BeginEnd::Failed,
        }
    }
}

/// Counts a watch that has ended, by what it came to. How long it took says nothing: as long as its caller liked.
pub fn count_watch(failure: Option<&Failure>) {
    match failure {
        Some(failure) => counter!(WATCHES_ENDED, "error_type" => name(failure.reason())).increment(1),
        None => counter!(WATCHES_ENDED).increment(1),
    }
}

/// The histogram of the calls that came to this, by OpenTelemetry's names.
fn duration_of(rpc: Rpc, reason: Option<ErrorReason>) -> Histogram {
    let label = |key: &'static str, value: &'static str| {
        (SharedString::const_str(key), SharedString::const_str(value))
    };
    let code = code_name(reason.map_or(Code::Ok, code));
    let mut labels = vec![
        label("rpc_system_name", "grpc"),
        label("rpc_method", rpc.method()),
        label("rpc_response_status_code", code),
    ];
    labels.extend(reason.map(|reason| label("error_type", name(reason))));
    histogram!(CALL_DURATION, &labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_histogram() {
        let reasons = (1..).map_while(|number| ErrorReason::try_from(number).ok()).count();
        assert!((30..REASONS).contains(&reasons), "{reasons}");
        for (place, rpc) in Rpc::CALLS.iter().enumerate() {
            assert_eq!(*rpc as usize, place, "{rpc:?}");
        }
        assert_eq!(BeginEnd::Failed as usize, BEGIN_ENDS.len() - 1);
    }
}
