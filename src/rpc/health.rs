//! The standard health service, `grpc.health.v1`: Check, Watch and List.
//!
//! The empty name is liveness: SERVING as long as the process answers, whatever the store does, so that an
//! orchestrator does not restart servers because etcd is away. The names of the two services are readiness:
//! SERVING while calls are welcome here.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::clock::{Clock, Moment};
use crate::generated::health_v1::health_check_response::ServingStatus;
use crate::generated::health_v1::health_server::{Health, HealthServer};
use crate::generated::health_v1::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use crate::generated::onced_v1::{admin_service_server, idempotency_service_server};
use crate::telemetry::Throttle;

/// The server as a whole: liveness.
const LIVENESS: &str = "";
/// The services whose status is readiness.
const READINESS: [&str; 2] = [idempotency_service_server::SERVICE_NAME, admin_service_server::SERVICE_NAME];

/// The time between two probes of the store.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// How long a probe may take: longer than etcd has, so that what failed there is told, and not just that time passed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long the store must have been away before the server is not ready. Leader changes of etcd are shorter:
/// were each of them to count, all servers would be unready at once, and nobody could be sent elsewhere.
const SUSTAINED: Duration = Duration::from_secs(10);
/// How many good probes in a row make an unready server ready again.
const GOOD_PROBES: u32 = 2;

/// Whether calls are welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// They are.
    Ready,
    /// The store does not answer, or has not been asked yet.
    NotReady,
    /// The server is shutting down: for good.
    Draining,
}

/// Tells the health service how the server is.
#[derive(Clone, Debug)]
pub struct Reporter(watch::Sender<Readiness>);

/// Answers health calls.
#[derive(Debug)]
pub struct HealthService(watch::Receiver<Readiness>);

/// A reporter and the service it reports to, not ready at first.
pub fn pair() -> (Reporter, HealthServer<HealthService>) {
    let (sender, receiver) = watch::channel(Readiness::NotReady);
    (Reporter(sender), HealthServer::new(HealthService(receiver)))
}

impl Reporter {
    /// Reports whether the store is well. Changes nothing once the server drains.
    pub fn store_is_well(&self, well: bool) {
        let next = if well { Readiness::Ready } else { Readiness::NotReady };
        self.0.send_if_modified(|now| {
            let changes = *now != Readiness::Draining && *now != next;
            if changes {
                *now = next;
            }
            changes
        });
    }

    /// Reports that the server shuts down: not ready from now on, and watches end.
    pub fn drain(&self) {
        self.0.send_replace(Readiness::Draining);
    }

    /// Asks the store with `probe` every other second, and reports readiness by its answers. Never ends.
    pub async fn monitor<P, F, E>(&self, clock: Clock, probe: P)
    where
        P: Fn() -> F,
        F: Future<Output = Result<(), E>>,
        E: std::fmt::Display,
    {
        let (mut hysteresis, warnings) = (Hysteresis::default(), Throttle::default());
        loop {
            let asked = clock.now();
            let answer = tokio::time::timeout(PROBE_TIMEOUT, probe()).await;
            let failure = match answer {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no answer within {} s", PROBE_TIMEOUT.as_secs())),
            };
            let was = hysteresis.is_well();
            hysteresis.observe(failure.is_none(), asked, clock.now());
            match (was, hysteresis.is_well(), failure) {
                (false, true, _) => tracing::info!("the store answers: ready"),
                (true, false, Some(failure)) => tracing::error!(failure, "the store is away: not ready"),
                (_, _, Some(failure)) if warnings.pass(clock.now()).is_some() => {
                    tracing::warn!(failure, "the store did not answer a probe");
                }
                (_, _, Some(_)) => {}
                (_, _, None) => {}
            }
            self.store_is_well(hysteresis.is_well());
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
    }
}

/// Turns the answers of single probes into readiness that does not flap.
#[derive(Debug, Default)]
struct Hysteresis {
    state: Wellness,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Wellness {
    /// No probe has succeeded yet: the first good one is enough.
    #[default]
    Unknown,
    Well,
    /// Still well, but no probe has succeeded since this moment.
    Failing(Moment),
    /// Away, with so many good probes in a row.
    Away(u32),
}

impl Hysteresis {
    fn is_well(&self) -> bool {
        matches!(self.state, Wellness::Well | Wellness::Failing(_))
    }

    /// Takes in a probe that was sent at `asked` and came to its end at `now`.
    fn observe(&mut self, good: bool, asked: Moment, now: Moment) {
        self.state = match (self.state, good) {
            (Wellness::Unknown | Wellness::Well | Wellness::Failing(_), true) => Wellness::Well,
            (Wellness::Unknown, false) => Wellness::Unknown,
            (Wellness::Well, false) => Wellness::Failing(asked),
            (Wellness::Failing(since), false) if now.since(since) >= SUSTAINED => Wellness::Away(0),
            (Wellness::Failing(since), false) => Wellness::Failing(since),
            (Wellness::Away(in_a_row), true) if in_a_row + 1 >= GOOD_PROBES => Wellness::Well,
            (Wellness::Away(in_a_row), true) => Wellness::Away(in_a_row + 1),
            (Wellness::Away(_), false) => Wellness::Away(0),
        };
    }
}

/// What a service is told to be; `None` if there is no such service.
fn status_of(service: &str, readiness: Readiness) -> Option<ServingStatus> {
    if service == LIVENESS {
        return Some(ServingStatus::Serving);
    }
    READINESS.contains(&service).then_some(match readiness {
        Readiness::Ready => ServingStatus::Serving,
        Readiness::NotReady | Readiness::Draining => ServingStatus::NotServing,
    })
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        let status = status_of(&service, *self.0.borrow()).ok_or_else(unknown_service)?;
        Ok(Response::new(answer(status)))
    }

    async fn list(
        &self,
        _request: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        let readiness = *self.0.borrow();
        let statuses: BTreeMap<_, _> = std::iter::once(LIVENESS)
            .chain(READINESS)
            .filter_map(|service| Some((service.to_owned(), answer(status_of(service, readiness)?))))
            .collect();
        Ok(Response::new(HealthListResponse { statuses }))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watched = Watched {
            service: request.into_inner().service,
            readiness: self.0.clone(),
            told: None,
            ended: false,
        };
        Ok(Response::new(stream::unfold(watched, Watched::next).boxed()))
    }
}

/// One health watch.
struct Watched {
    service: String,
    readiness: watch::Receiver<Readiness>,
    told: Option<ServingStatus>,
    ended: bool,
}

impl Watched {
    /// The status now, then each change of it. Ends when the server drains, for an open stream would hold its
    /// connection for ever.
    async fn next(mut self) -> Option<(Result<HealthCheckResponse, Status>, Self)> {
        while !self.ended {
            let readiness = *self.readiness.borrow_and_update();
            self.ended = readiness == Readiness::Draining;
            let status = status_of(&self.service, readiness).unwrap_or(ServingStatus::ServiceUnknown);
            if self.told.replace(status) != Some(status) {
                return Some((Ok(answer(status)), self));
            }
            if !self.ended && self.readiness.changed().await.is_err() {
                self.ended = true;
            }
        }
        None
    }
}

fn unknown_service() -> Status {
    let [api, admin] = READINESS;
    Status::not_found(format!("no such service here; there are \"\" (liveness), {api} and {admin}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(seconds))
    }

    /// Each probe: when it ended (2 s after it was sent), whether it was good, and whether the server is ready then.
    #[test]
    fn readiness_follows_sustained_failure_and_repeated_success() {
        type Probes = &'static [(u64, bool, bool)];
        let tables: [(&str, Probes); 6] = [
            (
                "the first good probe makes a new server ready",
                &[(2, false, false), (60, false, false), (62, true, true)],
            ),
            (
                "short failures change nothing",
                &[(2, true, true), (4, false, true), (11, false, true), (13, true, true)],
            ),
            (
                "ten seconds of failure do",
                &[(2, true, true), (4, false, true), (11, false, true), (12, false, false)],
            ),
            (
                "failure is counted anew after a good probe",
                &[(2, true, true), (4, false, true), (10, true, true), (14, false, true), (16, false, true)],
            ),
            (
                "one good probe is not enough after that",
                &[(2, true, true), (4, false, true), (14, false, false), (16, true, false), (18, true, true)],
            ),
            (
                "two good probes must be in a row",
                &[
                    (2, true, true),
                    (4, false, true),
                    (14, false, false),
                    (16, true, false),
                    (18, false, false),
                    (20, true, false),
                    (22, true, true),
                ],
            ),
        ];
        for (rule, probes) in tables {
            let mut hysteresis = Hysteresis::default();
            for &(end, good, ready) in probes {
                hysteresis.observe(good, at(end - 2), at(end));
                assert_eq!(hysteresis.is_well(), ready, "{rule}: at {end} s");
            }
        }
    }

    #[test]
    fn only_readiness_depends_on_the_store_and_on_the_drain() {
        use ServingStatus::{NotServing, Serving};
        for (readiness, expected) in [
            (Readiness::Ready, Serving),
            (Readiness::NotReady, NotServing),
            (Readiness::Draining, NotServing),
        ] {
            assert_eq!(status_of("", readiness), Some(Serving));
            assert_eq!(status_of("onced.v1.IdempotencyService", readiness), Some(expected));
            assert_eq!(status_of("onced.v1.AdminService", readiness), Some(expected));
            assert_eq!(status_of("onced.v1", readiness), None);
        }
    }

    #[test]
    fn a_drain_is_for_good() {
        let (reporter, _service) = pair();
        reporter.store_is_well(true);
        assert_eq!(*reporter.0.borrow(), Readiness::Ready);
        reporter.drain();
        reporter.store_is_well(true);
        assert_eq!(*reporter.0.borrow(), Readiness::Draining);
    }

    async fn watched(
        service: &str,
        source: &HealthService,
    ) -> BoxStream<'static, Result<HealthCheckResponse, Status>> {
        let request = Request::new(HealthCheckRequest { service: service.to_owned() });
        source.watch(request).await.unwrap().into_inner()
    }

    #[tokio::test]
    async fn a_watch_tells_each_change_once_and_ends_with_the_drain() {
        let (sender, receiver) = watch::channel(Readiness::NotReady);
        let (reporter, service) = (Reporter(sender), HealthService(receiver));
        let mut ready = watched("onced.v1.IdempotencyService", &service).await;
        let mut live = watched("", &service).await;
        let mut unknown = watched("nobody", &service).await;
        let status =
            |message: Option<Result<HealthCheckResponse, Status>>| message.map(|m| m.unwrap().status());

        assert_eq!(status(ready.next().await), Some(ServingStatus::NotServing));
        assert_eq!(status(live.next().await), Some(ServingStatus::Serving));
        assert_eq!(status(unknown.next().await), Some(ServingStatus::ServiceUnknown));
        reporter.store_is_well(true);
        assert_eq!(status(ready.next().await), Some(ServingStatus::Serving));
        reporter.drain();
        assert_eq!(status(ready.next().await), Some(ServingStatus::NotServing));
        for mut ended in [ready, live, unknown] {
            assert_eq!(status(ended.next().await), None);
        }
    }
}
