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
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::Closing;
use crate::clock::{Clock, Moment};
use crate::generated::health_v1::health_check_response::ServingStatus;
use crate::generated::health_v1::health_server::{Health, HealthServer};
use crate::generated::health_v1::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use crate::generated::onced_v1::{admin_service_server, idempotency_service_server};
use crate::telemetry::Throttle;
use crate::telemetry::metrics::{FAILED_PROBES, READY};

/// The server as a whole: liveness.
pub const LIVENESS: &str = "";
/// The services whose status is readiness.
pub const READINESS: [&str; 2] =
    [idempotency_service_server::SERVICE_NAME, admin_service_server::SERVICE_NAME];

/// The time between two probes of the store.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// How long a probe may take: longer than etcd has, so that what failed there is told, and not just that time passed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long the store must have been away before the server is not ready. Leader changes of etcd are shorter:
/// were each of them to count, all servers would be unready at once, and nobody could be sent elsewhere.
const SUSTAINED: Duration = Duration::from_secs(10);
/// How many good probes in a row make an unready server ready again.
const GOOD_PROBES: u32 = 2;

/// Whether calls are welcome, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// The store is being opened.
    Opening,
    /// The store has not answered yet: what its last probe met, if there was one.
    Unanswered(Option<String>),
    /// They are.
    Ready,
    /// The store does not answer.
    Away {
        /// Since when.
        since: Moment,
        /// What its last probe met.
        failure: String,
    },
    /// The server is shutting down: for good.
    Draining,
}

impl Readiness {
    /// Whether calls are welcome.
    pub fn is_ready(&self) -> bool {
        *self == Readiness::Ready
    }

    /// Its name, for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Readiness::Opening => "store_opening",
            Readiness::Unanswered(_) => "store_unanswered",
            Readiness::Ready => "ready",
            Readiness::Away { .. } => "store_away",
            Readiness::Draining => "draining",
        }
    }

    /// Why calls are not welcome, for people; `None` if they are.
    pub fn why_not(&self, now: Moment) -> Option<String> {
        match self {
            Readiness::Opening => Some("the store is being opened".to_owned()),
            Readiness::Unanswered(None) => Some("the store has not been asked yet".to_owned()),
            Readiness::Unanswered(Some(failure)) => {
                Some(format!("the store has not answered yet: {failure}"))
            }
            Readiness::Ready => None,
            Readiness::Away { since, failure } => {
                Some(format!("the store has been away for {} s: {failure}", now.since(*since).as_secs()))
            }
            Readiness::Draining => Some("the server is shutting down".to_owned()),
        }
    }
}

/// Tells how the server is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reporter(watch::Sender<Readiness>);

/// Answers health calls.
#[derive(Debug)]
pub struct HealthService(watch::Receiver<Readiness>);

impl Default for Reporter {
    /// Of a server that is opening its store.
    fn default() -> Self {
        Self(watch::Sender::new(Readiness::Opening))
    }
}

impl Reporter {
    /// The health service of this server.
    pub fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService(self.readiness()))
    }

    /// What is reported, now and later.
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.0.subscribe()
    }

    /// Reports how the store is. Changes nothing once the server drains.
    fn report(&self, next: Readiness) {
        self.0.send_if_modified(|now| {
            let changes = *now != Readiness::Draining && *now != next;
            if changes {
                count(&next);
                *now = next;
            }
            changes
        });
    }

    /// Reports that the server shuts down: not ready from now on, and watches end.
    pub fn drain(&self) {
        count(&Readiness::Draining);
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
        let failed_probes = metrics::counter!(FAILED_PROBES);
        self.report(Readiness::Unanswered(None));
        loop {
            let asked = clock.now();
            let answer = tokio::time::timeout(PROBE_TIMEOUT, probe()).await;
            let failure = match answer {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no answer within {} s", PROBE_TIMEOUT.as_secs())),
            };
            failed_probes.increment(u64::from(failure.is_some()));
            let was = hysteresis.is_well();
            hysteresis.observe(failure.is_none(), asked, clock.now());
            match (was, hysteresis.is_well(), &failure) {
                (false, true, _) => tracing::info!("the store answers: ready"),
                (true, false, Some(failure)) => tracing::error!(failure, "the store is away: not ready"),
                (_, _, Some(failure)) if warnings.pass(clock.now()).is_some() => {
                    tracing::warn!(failure, "the store did not answer a probe");
                }
                (_, _, Some(_)) => {}
                (_, _, None) => {}
            }
            self.report(hysteresis.readiness(failure));
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
    }
}

/// Tells the metrics.
fn count(readiness: &Readiness) {
    metrics::gauge!(READY).set(f64::from(u8::from(readiness.is_ready())));
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
    /// Away since this moment, with so many good probes in a row.
    Away(Moment, u32),
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
            (Wellness::Failing(since), false) if now.since(since) >= SUSTAINED => Wellness::Away(since, 0),
            (Wellness::Failing(since), false) => Wellness::Failing(since),
            (Wellness::Away(_, in_a_row), true) if in_a_row + 1 >= GOOD_PROBES => Wellness::Well,
            (Wellness::Away(since, in_a_row), true) => Wellness::Away(since, in_a_row + 1),
            (Wellness::Away(since, _), false) => Wellness::Away(since, 0),
        };
    }

    /// What to report, after a probe that met this.
    fn readiness(&self, failure: Option<String>) -> Readiness {
        match self.state {
            Wellness::Unknown => Readiness::Unanswered(failure),
            Wellness::Well | Wellness::Failing(_) => Readiness::Ready,
            Wellness::Away(since, in_a_row) => {
                let failure = failure.unwrap_or_else(|| {
                    format!("it answers again, {in_a_row} of {GOOD_PROBES} probes in a row")
                });
                Readiness::Away { since, failure }
            }
        }
    }
}

/// What a service is told to be; `None` if there is no such service.
fn status_of(service: &str, readiness: &Readiness) -> Option<ServingStatus> {
    if service == LIVENESS {
        return Some(ServingStatus::Serving);
    }
    let status = if readiness.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing };
    READINESS.contains(&service).then_some(status)
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
        let status = status_of(&service, &self.0.borrow()).ok_or_else(unknown_service)?;
        Ok(Response::new(answer(status)))
    }

    async fn list(
        &self,
        _request: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        let readiness = self.0.borrow().clone();
        let statuses: BTreeMap<_, _> = std::iter::once(LIVENESS)
            .chain(READINESS)
            .filter_map(|service| Some((service.to_owned(), answer(status_of(service, &readiness)?))))
            .collect();
        Ok(Response::new(HealthListResponse { statuses }))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watched = Watched {
            closing: Closing::of(request.extensions()),
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
    /// That of its connection.
    closing: CancellationToken,
    service: String,
    readiness: watch::Receiver<Readiness>,
    told: Option<ServingStatus>,
    ended: bool,
}

impl Watched {
    /// The status now, then each change of it. Ends when the server drains, or its connection is to end, which an open stream
    /// would hold for ever.
    async fn next(mut self) -> Option<(Result<HealthCheckResponse, Status>, Self)> {
        while !self.ended {
            let readiness = self.readiness.borrow_and_update().clone();
            self.ended = readiness == Readiness::Draining;
            let status = status_of(&self.service, &readiness).unwrap_or(ServingStatus::ServiceUnknown);
            if self.told.replace(status) != Some(status) {
                return Some((Ok(answer(status)), self));
            }
            if !self.ended {
                self.ended = tokio::select! {
                    biased;
                    changed = self.readiness.changed() => changed.is_err(),
                    () = self.closing.cancelled() => true,
                };
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
        let away = Readiness::Away { since: at(2), failure: "frozen".to_owned() };
        for (readiness, expected, told) in [
            (Readiness::Opening, NotServing, "being opened"),
            (Readiness::Unanswered(None), NotServing, "not been asked"),
            (Readiness::Unanswered(Some("frozen".to_owned())), NotServing, "not answered yet: frozen"),
            (Readiness::Ready, Serving, ""),
            (away, NotServing, "away for 5 s: frozen"),
            (Readiness::Draining, NotServing, "shutting down"),
        ] {
            assert_eq!(status_of("", &readiness), Some(Serving));
            assert_eq!(status_of("onced.v1.IdempotencyService", &readiness), Some(expected));
            assert_eq!(status_of("onced.v1.AdminService", &readiness), Some(expected));
            assert_eq!(status_of("onced.v1", &readiness), None);
            assert_eq!(readiness.why_not(at(7)).is_none(), readiness.is_ready());
            assert!(readiness.why_not(at(7)).unwrap_or_default().contains(told), "{readiness:?}");
        }
    }

    #[test]
    fn a_drain_is_for_good() {
        let reporter = Reporter::default();
        reporter.report(Readiness::Ready);
        assert_eq!(*reporter.readiness().borrow(), Readiness::Ready);
        reporter.drain();
        reporter.report(Readiness::Ready);
        assert_eq!(*reporter.readiness().borrow(), Readiness::Draining);
    }

    #[test]
    fn who_is_away_is_told_since_when_and_what_the_last_probe_met() {
        let mut hysteresis = Hysteresis::default();
        let mut after = |end: u64, failure: Option<&str>| {
            hysteresis.observe(failure.is_none(), at(end - 2), at(end));
            hysteresis.readiness(failure.map(str::to_owned))
        };
        assert_eq!(after(2, Some("refused")), Readiness::Unanswered(Some("refused".to_owned())));
        assert_eq!(after(4, None), Readiness::Ready);
        assert_eq!(after(8, Some("frozen")), Readiness::Ready);
        let away = |failure: &str| Readiness::Away { since: at(6), failure: failure.to_owned() };
        assert_eq!(after(16, Some("frozen")), away("frozen"));
        assert_eq!(after(18, None), away("it answers again, 1 of 2 probes in a row"));
        assert_eq!(after(20, None), Readiness::Ready);
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
        let reporter = Reporter::default();
        let service = HealthService(reporter.readiness());
        let mut ready = watched("onced.v1.IdempotencyService", &service).await;
        let mut live = watched("", &service).await;
        let mut unknown = watched("nobody", &service).await;
        let status =
            |message: Option<Result<HealthCheckResponse, Status>>| message.map(|m| m.unwrap().status());

        assert_eq!(status(ready.next().await), Some(ServingStatus::NotServing));
        assert_eq!(status(live.next().await), Some(ServingStatus::Serving));
        assert_eq!(status(unknown.next().await), Some(ServingStatus::ServiceUnknown));
        reporter.report(Readiness::Ready);
        assert_eq!(status(ready.next().await), Some(ServingStatus::Serving));
        reporter.drain();
        assert_eq!(status(ready.next().await), Some(ServingStatus::NotServing));
        for mut ended in [ready, live, unknown] {
            assert_eq!(status(ended.next().await), None);
        }
    }
}
