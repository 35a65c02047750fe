//! What is sent again, and when. Every RPC of onced may be repeated with the same arguments, so the only
//! questions are whether it would help, and how long to wait.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::error::is_of_onced;

/// The wait before the second round over the servers, before jitter.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest wait between rounds, before jitter.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// What a failed attempt says about the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    /// The same call would fail again.
    Stop,
    /// Try again; the server asked for this much time, if it is asked again at all.
    Again { pushback: Duration },
}

/// Reads the advice of `status`: its code, and the server's `grpc-retry-pushback-ms` or `RetryInfo`.
pub(crate) fn advice(status: &Status) -> Advice {
    if !worth_repeating(status) {
        return Advice::Stop;
    }
    match status.metadata().get("grpc-retry-pushback-ms").and_then(|value| value.to_str().ok()) {
        // By gRPC's retry design, a pushback that is no number of milliseconds forbids the retry.
        Some(pushback) => match pushback.parse() {
            Ok(millis) => Advice::Again { pushback: Duration::from_millis(millis) },
            Err(_) => Advice::Stop,
        },
        None => {
            let info = status.get_details_retry_info().and_then(|info| info.retry_delay);
            Advice::Again { pushback: info.unwrap_or_default() }
        }
    }
}

fn worth_repeating(status: &Status) -> bool {
    let by_the_server = is_of_onced(status);
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => true,
        // Broken connections come as these codes, without a reason of the server's.
        Code::Cancelled | Code::Unknown => !by_the_server,
        _ => !by_the_server && std::error::Error::source(status).is_some(),
    }
}

/// How long to wait after round number `round` (the first is 1) over the servers, where one of them asked for
/// `pushback`.
pub(crate) fn wait(round: u32, pushback: Duration) -> Duration {
    let doublings = round.saturating_sub(1).min(16);
    let backoff = jittered(FIRST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT));
    // Jitter goes on top of a pushback: less than it would be refused again.
    if pushback.is_zero() { backoff } else { backoff.max(pushback + jittered(pushback / 8)) }
}

/// Between half of `time` and all of it.
pub(crate) fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn refusal(code: Code, reason: &str) -> Status {
        let details = ErrorDetails::with_error_info(reason, "onced.dev", HashMap::new());
        Status::with_error_details(code, "no", details)
    }

    #[test]
    fn only_what_may_pass_is_repeated() {
        let again = Advice::Again { pushback: Duration::ZERO };
        assert_eq!(advice(&refusal(Code::Unavailable, "STORE_UNAVAILABLE")), again);
        assert_eq!(advice(&refusal(Code::DeadlineExceeded, "DEADLINE_EXCEEDED")), again);
        assert_eq!(advice(&Status::cancelled("the connection went away")), again);
        assert_eq!(advice(&Status::unknown("transport error")), again);
        for (code, reason) in [
            (Code::Aborted, "CLAIM_LOST"),
            (Code::Internal, "INTERNAL"),
            (Code::Cancelled, "CANCELLED"),
            (Code::Unknown, "NEWER_THAN_THIS_CLIENT"),
            (Code::ResourceExhausted, "STORE_FULL"),
            (Code::InvalidArgument, "KEY_REQUIRED"),
        ] {
            assert_eq!(advice(&refusal(code, reason)), Advice::Stop, "{reason}");
        }
    }

    #[test]
    fn pushback_is_read_from_metadata_or_retry_info() {
        let mut status = refusal(Code::Unavailable, "OVERLOADED");
        status.metadata_mut().insert("grpc-retry-pushback-ms", 250.into());
        assert_eq!(advice(&status), Advice::Again { pushback: Duration::from_millis(250) });
        status.metadata_mut().insert("grpc-retry-pushback-ms", (-1).into());
        assert_eq!(advice(&status), Advice::Stop);

        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(3)));
        let status = Status::with_error_details(Code::Unavailable, "later", details);
        assert_eq!(advice(&status), Advice::Again { pushback: Duration::from_secs(3) });
    }

    #[test]
    fn rounds_wait_longer_up_to_a_cap_and_as_long_as_was_asked_for() {
        let pushback = Duration::from_secs(5);
        assert!(wait(1, pushback) >= pushback);
        for round in 1..100 {
            let wait = wait(round, Duration::ZERO);
            assert!(wait >= FIRST_WAIT / 2 && wait <= LONGEST_WAIT, "{round}: {wait:?}");
        }
        assert!(wait(90, Duration::ZERO) >= LONGEST_WAIT / 2);
    }
}
