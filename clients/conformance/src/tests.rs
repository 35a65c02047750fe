//! The driver's own parts, without a server of onced.

use std::path::Path;

use anyhow::Result;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::proxy::Proxy;
use crate::scenario::{Plan, Scenario, Step, Store};

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn parse(steps: &str) -> Result<Scenario> {
    Scenario::parse("test", &format!(r#"{{"shows": "it", "steps": [{steps}]}}"#))
}

#[test]
fn every_scenario_can_be_read_and_says_what_it_shows() {
    let scenarios = Scenario::read_all(&Path::new(CLIENTS).join("scenarios")).unwrap();
    assert!(scenarios.len() >= 40);
    for scenario in &scenarios {
        assert!(scenario.shows.ends_with('.'), "{}: {}", scenario.name, scenario.shows);
        assert!(!scenario.steps.is_empty() && !scenario.stores.is_empty(), "{}", scenario.name);
        assert_eq!(scenario.steps.len(), scenario.texts.len());
    }
    crate::fingerprints::Vectors::read(&Path::new(CLIENTS).join("vectors/fingerprints.json")).unwrap();
}

#[test]
fn what_a_scenario_may_hold_is_read_strictly() {
    let scenario =
        parse(r#"{"do": "run", "run": "r", "wait": null}, {"do": "record", "expect": {"state": "absent"}}"#);
    let scenario = scenario.unwrap();
    assert_eq!(scenario.stores, [Store::Embedded, Store::Etcd]);
    assert_eq!(scenario.servers.keys().collect::<Vec<_>>(), ["s"]);
    let Step::Run(run) = &scenario.steps[0] else { panic!("a run") };
    assert_eq!(serde_json::to_string(run).unwrap(), r#"{"run":"r","client":"c","key":"k","wait":null}"#);
    for wrong in [
        r#"{"do": "run", "run": "r", "waits": 1}"#,
        r#"{"do": "record", "expect": {}, "at": {"kye": "k"}}"#,
        r#"{"do": "record", "expect": {}, "untl": true}"#,
        r#"{"do": "plan", "call": "Begin", "fate": "lost"}"#,
        r#"{"do": "plan", "call": "Begin", "fate": {"refuse": {"code": 14, "why": "x"}}}"#,
        r#"{"do": "plan", "call": "Begin", "fate": "lose", "time": 1}"#,
        r#"{"do": "rest"}"#,
        r#"{"run": "r"}"#,
    ] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
    assert!(Scenario::parse("test", r#"{"shows": "it", "steps": [], "step": []}"#).is_err());
    assert!(Scenario::parse("test", r#"{"shows": "it", "steps": [], "proxies": {"p": "t"}}"#).is_err());
    assert!(
        Scenario::parse("test", r#"{"shows": "it", "steps": [], "servers": {"s": {"tsl": "server"}}}"#)
            .is_err()
    );
}

/// A server that answers every call with OK and no message, and tells how many it was sent.
async fn server() -> (String, tokio::sync::watch::Receiver<u32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (count, counted) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = count.clone();
            let service = hyper::service::service_fn(move |_: Request<Incoming>| {
                count.send_modify(|count| *count += 1);
                let ok = Status::new(Code::Ok, "").into_http::<Body>();
                async move { Ok::<Response<Body>, std::convert::Infallible>(ok) }
            });
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, counted)
}

/// Calls a method through a proxy, on a connection of its own, and tells how that ended.
async fn call(proxy: &Proxy, method: &str) -> Result<Status> {
    let stream = TokioIo::new(TcpStream::connect(proxy.address()).await?);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
    tokio::spawn(connection);
    let message = Body::new(Full::from(&[0; 5][..]));
    let request = Request::post(format!("http://{}/onced.v1.X/{method}", proxy.address())).body(message)?;
    let answer = sender.send_request(request).await?;
    Ok(Status::from_header_map(answer.headers()).unwrap_or_else(|| Status::unknown("no status")))
}

fn plan(text: &str) -> Plan {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn a_proxy_loses_refuses_and_holds_what_it_is_told_to() {
    let (server, count) = server().await;
    let proxy = Proxy::start(server).await.unwrap();
    assert_eq!(call(&proxy, "Begin").await.unwrap().code(), Code::Ok);

    // The second one from here is lost: it is carried out, and the connection goes.
    proxy.plan(plan(r#"{"call": "Begin", "fate": "lose", "after": 1}"#));
    assert!(call(&proxy, "Begin").await.is_ok() && call(&proxy, "Renew").await.is_ok());
    assert!(call(&proxy, "Begin").await.is_err());
    assert_eq!((*count.borrow(), proxy.seen("Begin"), proxy.begins().len()), (4, 3, 3));
    assert!(call(&proxy, "Begin").await.is_ok());

    // These are not carried out.
    proxy.plan(plan(r#"{"call": "Begin", "times": 2, "fate": {"refuse": {"code": 14, "reason": "OVERLOADED", "pushback": "250"}}}"#));
    let refused = call(&proxy, "Begin").await.unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(refused.metadata().get("grpc-retry-pushback-ms").unwrap(), "250");
    proxy.plan(plan(r#"{"fate": "cut"}"#));
    assert!(call(&proxy, "Begin").await.is_err());
    assert_eq!(*count.borrow(), 5);

    // Cleared, it counts anew, and lets all through.
    proxy.clear();
    assert_eq!((proxy.seen("Begin"), proxy.begins().len()), (0, 0));
    assert_eq!(call(&proxy, "Begin").await.unwrap().code(), Code::Ok);
}

#[tokio::test]
async fn a_proxy_lets_what_it_holds_go_when_it_is_cleared() {
    let (server, mut count) = server().await;
    let proxy = Proxy::start(server).await.unwrap();
    proxy.plan(plan(r#"{"call": "Begin", "fate": "hold"}"#));
    let mut held = Box::pin(call(&proxy, "Begin"));
    tokio::select! {
        _ = &mut held => panic!("it is held"),
        carried_out = count.wait_for(|count| *count == 1) => { carried_out.unwrap(); }
    }
    proxy.clear();
    assert_eq!(held.await.unwrap().code(), Code::Ok);
}
