//! Resolve and Delete.

use onced_client::v1::resolve_request::Resolution;

use super::outcomes::*;
use super::*;

mod valid {
    use super::*;

    pub fn resolve() -> v1::ResolveRequest {
        let resolution = Some(Resolution::Retry(v1::ResolveRetry {}));
        let (namespace, key) = (text(NAMESPACE), text("SECRET order"));
        v1::ResolveRequest { namespace, key, fencing_token: 1, resolution, retention: None }
    }
    pub fn delete() -> v1::DeleteRequest {
        let (namespace, key) = (text(NAMESPACE), text("SECRET order"));
        v1::DeleteRequest { namespace, key, fencing_token: 1, force: true }
    }
}

const RESOLVE: &[&[Row<v1::ResolveRequest>]] = &[
    namespaces!(),
    keys!(),
    tokens!(),
    &[("resolution", "RESOLUTION_REQUIRED", "neither", |it| it.resolution = None)],
    outcomes!(
        (|it: &mut v1::ResolveRequest, outcome: Option<Outcome>| {
            it.resolution = outcome.map(Resolution::Outcome)
        })
    ),
    // A retention is wrong even where nothing is retained.
    retentions!(),
    malformed_durations!(retention, "RETENTION_OUT_OF_RANGE"),
];

const DELETE: &[&[Row<v1::DeleteRequest>]] = &[namespaces!(), keys!(), tokens!()];

pub fn rows() -> usize {
    RESOLVE.concat().len() + DELETE.concat().len()
}

#[tokio::test]
async fn each_wrong_field_of_resolve_is_told() {
    let on = Fixture::new(Way::Unary).await;
    let call = async |request| {
        on.admin.clone().resolve(request).await.map(drop).map_err(|status| rpc_status(&status))
    };
    each_is_told(valid::resolve, RESOLVE, call).await;
    assert_nothing_written(&on).await;
}

#[tokio::test]
async fn each_wrong_field_of_delete_is_told() {
    let on = Fixture::new(Way::Unary).await;
    let call = async |request| {
        on.admin.clone().delete(request).await.map(drop).map_err(|status| rpc_status(&status))
    };
    each_is_told(valid::delete, DELETE, call).await;
    assert_nothing_written(&on).await;
}
