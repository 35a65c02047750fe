//! What becomes of a request: refused, passed on, or run once.

use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use metrics::counter;
use onced_client::http::{OnceLayer, OnceService};
use tower::{Layer as _, Service};

use super::body::{Late, Paced, Sent, boxed};
use super::forward::Forward;
use super::headers;
use super::limit::{Place, Places};
use super::refusal::Refusal;
use super::rules::Rules;
use crate::telemetry::metrics::PROXY_REQUESTS;

/// What all connections share.
pub struct Front {
    /// The places for requests.
    pub places: Places,
    rules: Rules,
    forward: Forward,
    once: OnceService<Forward>,
    /// How long the body of a request may take.
    read: Duration,
}

impl Front {
    /// Runs the requests that the rules mean once, by the layer, and hands on the others.
    pub fn new(places: Places, rules: Rules, layer: &OnceLayer, forward: Forward, read: Duration) -> Self {
        Self { places, rules, once: layer.layer(forward.clone()), forward, read }
    }

    /// Answers a request from `peer`; with the place that is to be kept until the answer has been sent.
    pub async fn answer(&self, request: Request<Incoming>, peer: IpAddr) -> (Response<Sent>, Option<Place>) {
        let Some(place) = self.places.take() else {
            let detail = format!("{} requests are at work here; try again", self.places.all());
            return (own(Refusal::Overloaded, &detail), None);
        };
        let response = match refused(&request) {
            Some((refusal, detail)) => own(refusal, detail),
            None => self.admitted(request, peer, &place).await,
        };
        (response, Some(place))
    }

    async fn admitted(&self, mut request: Request<Incoming>, peer: IpAddr, place: &Place) -> Response<Sent> {
        let uri = request.uri().clone();
        headers::of_request(request.headers_mut(), &uri, peer);
        request.extensions_mut().insert(place.clone());
        let once = self.rules.apply_to(request.method(), uri.path(), request.headers());
        let late = Late::default();
        // What runs once is read to its end before anything is done. What is handed on may be without end.
        let request = request.map(|body| Paced::new(body, self.read, once, late.clone()));
        let response = match once {
            // The layer is always ready.
            true => match Service::call(&mut self.once.clone(), request).await {
                Ok(response) => response.map(boxed),
                Err(never) => match never {},
            },
            false => self.forward.pass(request).await.map(boxed),
        };
        if late.is_late() {
            let limit = humantime::format_duration(self.read);
            return own(Refusal::RequestTimeout, &format!("its body was not here within {limit}"));
        }
        let result = match once {
            false => "passed",
            true if place.has_run() => "ran",
            true if is_replay(response.headers()) => "replayed",
            true => "refused",
        };
        counted(result, response)
    }
}

/// Whether the answer was stored before.
fn is_replay(headers: &HeaderMap) -> bool {
    headers.get(headers::REPLAYED).is_some_and(|value| value == "true")
}

/// Why a request cannot be handed on, if that is so.
fn refused<B>(request: &Request<B>) -> Option<(Refusal, &'static str)> {
    if request.method() == Method::CONNECT {
        return Some((Refusal::UpgradeRefused, "CONNECT is not handed on: this is no way to other hosts"));
    }
    if headers::asks_for_upgrade(request.headers()) {
        let detail = "an upgrade, such as to a WebSocket, is not handed on: call the service itself for it";
        return Some((Refusal::UpgradeRefused, detail));
    }
    if !request.uri().path().starts_with('/') {
        return Some((Refusal::RequestInvalid, "its target is no path"));
    }
    headers::host_unclear(request.headers(), request.uri()).map(|why| (Refusal::RequestInvalid, why))
}

/// An answer of the proxy's own.
fn own(refusal: Refusal, detail: &str) -> Response<Sent> {
    counted("refused", refusal.answer(detail).map(boxed))
}

/// Counts an answer.
fn counted(result: &'static str, response: Response<Sent>) -> Response<Sent> {
    let status = response.status().as_u16().to_string();
    counter!(PROXY_REQUESTS, "result" => result, "status" => status).increment(1);
    response
}
