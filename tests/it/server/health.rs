//! The standard health service, as clients see it.

use onced::generated::health_v1::health_check_response::ServingStatus;
use onced::generated::health_v1::{HealthCheckRequest, HealthListRequest};
use tonic::Code;

use super::*;

const API: &str = "onced.v1.IdempotencyService";
const ADMIN: &str = "onced.v1.AdminService";

fn asked(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test]
async fn watch_tells_when_the_store_comes_back_and_check_and_list_agree() {
    let store = Controlled::in_memory();
    store.set_away(true);
    let server = start_on(store.clone(), Limits::default(), HANGS).await;
    let mut health = server.health().await;

    let mut changes = health.watch(asked(API)).await.unwrap().into_inner();
    assert_eq!(changes.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    let liveness = health.check(asked("")).await.unwrap().into_inner();
    assert_eq!(liveness.status(), ServingStatus::Serving);

    store.set_away(false);
    assert_eq!(changes.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let statuses = health.list(HealthListRequest {}).await.unwrap().into_inner().statuses;
    assert_eq!(statuses.keys().map(String::as_str).collect::<Vec<_>>(), ["", ADMIN, API]);
    for (service, listed) in statuses {
        assert_eq!(listed.status(), ServingStatus::Serving, "{service}");
        let checked = health.check(asked(&service)).await.unwrap().into_inner();
        assert_eq!(checked, listed, "{service}");
    }
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_service_is_not_found_to_check_and_service_unknown_to_watch() {
    let server = start(Limits::default(), HANGS).await;
    let mut health = server.health().await;
    let refused = health.check(asked("nobody")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains(API), "{}", refused.message());

    let mut changes = health.watch(asked("nobody")).await.unwrap().into_inner();
    assert_eq!(changes.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    server.stop().await;
}

#[tokio::test]
async fn a_watch_is_told_of_the_drain_and_ends() {
    let server = start(Limits::default(), HANGS).await;
    let mut health = server.health().await;
    let mut changes = health.watch(asked(API)).await.unwrap().into_inner();
    while changes.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}

    server.begin_stop();
    assert_eq!(changes.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(changes.message().await.unwrap(), None);
    server.stop().await;
}
