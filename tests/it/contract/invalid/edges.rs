//! The right side of each limit: what is just within it is taken.

use onced_client::v1::outcome::Result as Of;
use onced_client::v1::{Checkpoint, Outcome};

use super::outcomes::{metadata_value, outcome_of, response};
use super::*;

type Edge<T> = (&'static str, fn(&mut T));

const BEGINS: &[Edge<v1::BeginRequest>] = &[
    ("a namespace of one character", |it| it.namespace = text("0")),
    ("a namespace of 63", |it| it.namespace = "n".repeat(63)),
    ("a namespace of every kind of character", |it| it.namespace = text("a0._-")),
    ("a key of one byte", |it| it.key = text("\0")),
    ("a key of 512 bytes", |it| it.key = "k".repeat(512)),
    ("a key of 512 bytes in 128 characters", |it| it.key = "\u{1f980}".repeat(128)),
    ("a request id in upper case", |it| it.request_id = it.request_id.to_uppercase()),
    ("the nil UUID", |it| it.request_id = uuid::Uuid::nil().to_string()),
    ("the max UUID", |it| it.request_id = uuid::Uuid::max().to_string()),
    ("no fingerprint", |it| it.fingerprint = Bytes::new()),
    ("a fingerprint of 64 bytes", |it| it.fingerprint = vec![0; 64].into()),
    ("no owner", |it| it.owner = text("")),
    ("an owner of 256 bytes", |it| it.owner = "o".repeat(256)),
    ("a lock TTL of 2 s", |it| it.lock_ttl = duration(2, 0)),
    ("a lock TTL of 1 h", |it| it.lock_ttl = duration(3_600, 0)),
    ("a retention of 1 min", |it| it.retention = duration(60, 0)),
    ("a retention of 31 d", |it| it.retention = duration(31 * 86_400, 0)),
    ("a wait of 0", |it| it.wait = duration(0, 0)),
    ("a wait of 1 ns", |it| it.wait = duration(0, 1)),
    ("a wait of 10,000 years", |it| it.wait = duration(315_576_000_000, 999_999_999)),
    ("to take over on lapse", |it| it.on_lapse = 1),
    ("to hold on lapse", |it| it.on_lapse = 2),
];

fn error(code: i32) -> Option<Outcome> {
    let status = Status { code, message: text(""), details: Vec::new() };
    Some(Outcome { result: Some(Of::Error(status)), ..Outcome::default() })
}

const COMPLETES: &[Edge<v1::CompleteRequest>] = &[
    ("an empty response", |it| it.outcome = Some(response(text("")))),
    ("a response of 1 MiB in all", |it| it.outcome = outcome_of(1 << 20, response)),
    ("metadata of 1 MiB in all", |it| it.outcome = outcome_of(1 << 20, metadata_value)),
    ("the error code 1", |it| it.outcome = error(1)),
    ("the error code 16", |it| it.outcome = error(16)),
    ("a retention of 1 min", |it| it.retention = duration(60, 0)),
    ("a retention of 31 d", |it| it.retention = duration(31 * 86_400, 0)),
];

fn checkpoint(sequence: u64, bytes: usize) -> Option<Checkpoint> {
    Some(Checkpoint { sequence, data: vec![0; bytes].into() })
}

const RENEWS: &[Edge<v1::RenewRequest>] = &[
    ("an empty checkpoint", |it| it.checkpoint = checkpoint(1, 0)),
    ("a checkpoint of 64 KiB", |it| it.checkpoint = checkpoint(2, 65_536)),
    ("the last sequence", |it| it.checkpoint = checkpoint(u64::MAX, 1)),
];

const RELEASES: &[Edge<v1::ReleaseRequest>] = &[
    ("no reason", |it| it.reason = text("")),
    ("a reason of 1,024 bytes", |it| it.reason = "r".repeat(1_024)),
];

async fn what_is_within_each_limit_is_taken(on: Fixture) {
    let caller = &on.caller;
    for (what, edge) in BEGINS {
        let mut request = begin(what);
        edge(&mut request);
        claim_of(caller.begin(request).await.unwrap_or_else(|status| panic!("{what}: {status:?}")));
    }
    for (what, edge) in COMPLETES {
        let key = format!("complete with {what}");
        let mut request = complete(&key, on.claim(&key).await.fencing_token, b"");
        edge(&mut request);
        let (sent, retention) = (request.outcome.clone(), request.retention);
        caller.complete(request).await.unwrap_or_else(|status| panic!("{what}: {status:?}"));
        let completed = completed_of(caller.begin(begin(&key)).await.unwrap());
        assert_eq!(completed.outcome, sent, "{what}");
        if let Some(retention) = retention {
            let (from, until) = (completed.completed_at.unwrap(), completed.expires_at.unwrap());
            assert_eq!(until.seconds - from.seconds, retention.seconds, "{what}");
        }
    }
    let claim = on.claim("renewed").await;
    for (what, edge) in RENEWS {
        let mut request = renew("renewed", claim.fencing_token);
        edge(&mut request);
        caller.renew(request).await.unwrap_or_else(|status| panic!("{what}: {status:?}"));
    }
    for (what, edge) in RELEASES {
        let key = format!("release with {what}");
        let mut request = release(&key, on.claim(&key).await.fencing_token, v1::Disposition::Retry);
        edge(&mut request);
        caller.release(request).await.unwrap_or_else(|status| panic!("{what}: {status:?}"));
    }
}

over_both! {
    what_is_within_each_limit_is_taken
}

#[tokio::test]
async fn a_page_of_1000_records_is_given() {
    let on = Fixture::new(Way::Unary).await;
    on.claim("a").await;
    let request =
        v1::ListRequest { namespace: text(NAMESPACE), page_size: 1_000, ..v1::ListRequest::default() };
    assert_eq!(on.admin.clone().list(request).await.unwrap().into_inner().records.len(), 1);
}
