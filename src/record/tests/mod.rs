//! The state machine against its table, and against what must hold whatever happens.

mod properties;
mod table;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;

const NOW: Timestamp = Timestamp::from_micros(1_000_000_000);
const TTL: Duration = Duration::from_secs(10);
const RETENTION: Duration = Duration::from_secs(3_600);

fn begin_of(caller: u8) -> Begin {
    Begin {
        request_id: RequestId([caller; 16]),
        owner: format!("host-{caller}"),
        fingerprint: None,
        lock_ttl: TTL,
        retention: RETENTION,
        on_lapse: OnLapse::TakeOver,
    }
}

fn fingerprint(digest: &'static str) -> Option<Fingerprint> {
    Fingerprint::new(Bytes::from_static(digest.as_bytes()))
}

fn outcome(response: &'static str) -> Arc<Outcome> {
    Arc::new(Outcome {
        result: OutcomeResult::Response(Bytes::from_static(response.as_bytes())),
        content_type: "text/plain".to_owned(),
        metadata: [("by".to_owned(), "test".to_owned())].into(),
    })
}

fn checkpoint(sequence: u64, data: &'static str) -> Checkpoint {
    Checkpoint { sequence, data: Bytes::from_static(data.as_bytes()) }
}

fn complete(token: u64, response: &'static str) -> Command {
    Command::Complete { token: FencingToken(token), outcome: outcome(response), retention: None }
}

fn renew(token: u64, checkpoint: Option<Checkpoint>) -> Command {
    Command::Renew { token: FencingToken(token), checkpoint }
}

fn release(token: u64, disposition: Disposition) -> Command {
    Command::Release { token: FencingToken(token), disposition, reason: "asked to".to_owned() }
}

fn resolve(token: u64, resolution: Resolution) -> Command {
    Command::Resolve { token: FencingToken(token), resolution }
}

fn resolve_with(token: u64, response: &'static str) -> Command {
    resolve(token, Resolution::Outcome { outcome: outcome(response), retention: None })
}

fn delete(token: u64, force: bool) -> Command {
    Command::Delete { token: FencingToken(token), force }
}
