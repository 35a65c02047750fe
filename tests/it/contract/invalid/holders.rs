//! Complete, Renew and Release.

use onced_client::v1::Checkpoint;

use super::outcomes::*;
use super::*;

mod valid {
    use super::*;

    pub fn complete() -> v1::CompleteRequest {
        super::complete("SECRET order", 1, b"SECRET")
    }
    pub fn renew() -> v1::RenewRequest {
        let checkpoint = Some(Checkpoint { sequence: 1, data: Bytes::from_static(b"SECRET") });
        v1::RenewRequest { checkpoint, ..super::renew("SECRET order", 1) }
    }
    pub fn release() -> v1::ReleaseRequest {
        v1::ReleaseRequest {
            reason: text(SECRET),
            ..super::release("SECRET order", 1, v1::Disposition::Retry)
        }
    }
}

const COMPLETE: &[&[Row<v1::CompleteRequest>]] = &[
    namespaces!(),
    keys!(),
    tokens!(),
    &[("outcome", "OUTCOME_REQUIRED", "no outcome", |it| it.outcome = None)],
    outcomes!((|it: &mut v1::CompleteRequest, outcome| it.outcome = outcome)),
    retentions!(),
    malformed_durations!(retention, "RETENTION_OUT_OF_RANGE"),
];

fn checkpoint(sequence: u64, bytes: usize) -> Option<Checkpoint> {
    Some(Checkpoint { sequence, data: long(bytes).into() })
}

const RENEW: &[&[Row<v1::RenewRequest>]] = &[
    namespaces!(),
    keys!(),
    tokens!(),
    &[
        ("checkpoint.sequence", "CHECKPOINT_SEQUENCE_REQUIRED", "0", |it| it.checkpoint = checkpoint(0, 1)),
        ("checkpoint.sequence", "CHECKPOINT_SEQUENCE_REQUIRED", "0", |it| it.checkpoint = checkpoint(0, 0)),
        ("checkpoint.data", "CHECKPOINT_TOO_LARGE", "65537 bytes", |it| {
            it.checkpoint = checkpoint(1, 65_537)
        }),
        ("checkpoint.data", "CHECKPOINT_TOO_LARGE", "1000000 bytes", |it| {
            it.checkpoint = checkpoint(1, 1_000_000);
        }),
    ],
];

const RELEASE: &[&[Row<v1::ReleaseRequest>]] = &[
    namespaces!(),
    keys!(),
    tokens!(),
    &[
        ("disposition", "ENUM_INVALID", "DISPOSITION_UNSPECIFIED", |it| it.disposition = 0),
        ("disposition", "ENUM_INVALID", "3", |it| it.disposition = 3),
        ("disposition", "ENUM_INVALID", "-1", |it| it.disposition = -1),
        ("reason", "REASON_TOO_LONG", "1025 bytes", |it| it.reason = long(1_025)),
        ("reason", "REASON_TOO_LONG", "1026 bytes", |it| it.reason = "\u{20ac}".repeat(342)),
    ],
];

pub fn rows() -> usize {
    COMPLETE.concat().len() + RENEW.concat().len() + RELEASE.concat().len()
}

async fn each_wrong_field_of_complete_is_told(on: Fixture) {
    each_call_is_told(&on, valid::complete, Call::Complete, COMPLETE).await;
}

async fn each_wrong_field_of_renew_is_told(on: Fixture) {
    each_call_is_told(&on, valid::renew, Call::Renew, RENEW).await;
}

async fn each_wrong_field_of_release_is_told(on: Fixture) {
    each_call_is_told(&on, valid::release, Call::Release, RELEASE).await;
}

over_both! {
    each_wrong_field_of_complete_is_told
    each_wrong_field_of_renew_is_told
    each_wrong_field_of_release_is_told
}
