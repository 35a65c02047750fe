//! The client's sessions: answered, refused, taken back, out of time, and ended.

use std::time::Duration;

use futures_util::future::join_all;
use onced_client::v1::{
    BeginRequest, CompleteRequest, Disposition, LookupRequest, ReleaseRequest, RenewRequest,
};
use onced_client::{Begun, Client, Code, ErrorReason, Outcome, Record, Refusal, Session, wire};

use super::{Server, TTL, begin};
use crate::support::server::HANGS;
use crate::support::stand_in::{Fault, StandIn};

async fn session(server: &Server) -> Session {
    Session::open(server.client().connect_to(0).await.unwrap(), HANGS).await.unwrap()
}

async fn claim(session: &Session, key: &str) -> u64 {
    let Ok(Begun::Claim(claim)) = session.begin(begin(key)).await else { panic!("{key} is not free") };
    claim.fencing_token
}

fn patient(key: &str) -> BeginRequest {
    BeginRequest { wait: Some(wire(HANGS)), ..begin(key) }
}

fn complete(key: &str, token: u64) -> CompleteRequest {
    let outcome = Some(Outcome::response("done"));
    CompleteRequest {
        namespace: "default".to_owned(),
        key: key.to_owned(),
        fencing_token: token,
        outcome,
        retention: None,
    }
}

fn renew(key: &str, token: u64) -> RenewRequest {
    RenewRequest {
        namespace: "default".to_owned(),
        key: key.to_owned(),
        fencing_token: token,
        checkpoint: None,
    }
}

fn release(key: &str, token: u64) -> ReleaseRequest {
    ReleaseRequest {
        namespace: "default".to_owned(),
        key: key.to_owned(),
        fencing_token: token,
        disposition: Disposition::Retry.into(),
        reason: String::new(),
    }
}

fn lookup(key: &str) -> LookupRequest {
    LookupRequest { namespace: "default".to_owned(), key: key.to_owned(), wait: None }
}

#[tokio::test]
async fn each_call_is_answered_with_its_type() {
    let server = Server::start().await;
    let session = session(&server).await;
    let token = claim(&session, "k").await;
    let renewed = session.renew(renew("k", token)).await.unwrap();
    assert_eq!(onced_client::duration(renewed.lock_expires_in.as_ref()), TTL);
    session.release(release("k", token)).await.unwrap();
    assert!(matches!(session.lookup(lookup("k")).await, Ok(Record::Available(_))));

    let token = claim(&session, "k").await;
    // Calls are answered as they finish: what waits holds up none.
    let (waited, completed) =
        tokio::join!(session.begin(patient("k")), session.complete(complete("k", token)));
    assert!(!completed.unwrap().repeated);
    let Ok(Begun::Completed(told)) = waited else { panic!("no replay: {waited:?}") };
    assert_eq!(told.outcome, Some(Outcome::response("done")));
}

#[tokio::test]
async fn what_is_refused_says_why_and_the_session_goes_on() {
    let server = Server::start().await;
    let session = session(&server).await;
    let refused = session.renew(renew("k", 1)).await.unwrap_err();
    assert_eq!((refused.code, refused.reason), (Code::NotFound, Some(ErrorReason::RecordNotFound)));
    let refused = session.begin(begin("")).await.unwrap_err();
    assert_eq!(refused.reason, Some(ErrorReason::KeyRequired), "{refused}");
    assert!(session.is_open());
    claim(&session, "k").await;
}

/// More than may wait to be sent, at once.
#[tokio::test]
async fn many_calls_share_the_stream() {
    let server = Server::start().await;
    let session = session(&server).await;
    let keys: Vec<_> = (0..900).map(|number| format!("k{number}")).collect();
    let begun = join_all(keys.iter().map(|key| session.begin(begin(key))));
    let begun = tokio::time::timeout(HANGS, begun).await.expect("all are answered");
    assert!(begun.iter().all(|begun| matches!(begun, Ok(Begun::Claim(_)))), "{begun:?}");
}

#[tokio::test]
async fn a_call_that_is_dropped_is_taken_back() {
    let server = Server::start().await;
    let session = session(&server).await;
    let token = claim(&session, "k").await;
    // Waits here for what will not come before the other call is answered.
    tokio::select! {
        biased;
        begun = session.begin(patient("k")) => panic!("not held: {begun:?}"),
        renewed = session.renew(renew("k", token)) => drop(renewed.unwrap()),
    }
    session.release(release("k", token)).await.unwrap();
    // Nobody is left who would get the released claim.
    assert!(matches!(session.lookup(lookup("k")).await, Ok(Record::Available(_))));
    claim(&session, "k").await;
}

#[tokio::test]
async fn a_server_that_never_answers_costs_a_call_its_time_and_no_more() {
    let server = StandIn::start(Fault::Hangs).await;
    let stub = || async { Client::connect(server.address()).unwrap().connect_to(0).await.unwrap() };
    let session = Session::open(stub().await, Duration::from_millis(100)).await.unwrap();
    let silent = tokio::time::timeout(HANGS, session.begin(begin("k"))).await.expect("it ends").unwrap_err();
    assert_eq!((silent.code, silent.reason), (Code::DeadlineExceeded, None), "{silent}");
    assert!(session.is_open());
    session.complete(complete("k", 1)).await.unwrap();

    let mut request = tonic::Request::new(begin("k"));
    request.set_timeout(Duration::from_millis(100));
    let silent = Refusal::of(&stub().await.begin(request).await.unwrap_err());
    assert_eq!((silent.code, silent.reason), (Code::DeadlineExceeded, None), "{silent}");
}

#[tokio::test]
async fn calls_of_a_session_that_ends_are_told_why() {
    let server = Server::start().await;
    let session = session(&server).await;
    claim(&session, "k").await;
    let (waited, ()) = tokio::join!(session.begin(patient("k")), async {
        // It is answered after the one before it has come.
        assert!(session.lookup(lookup("k")).await.is_ok());
        server.server.begin_stop();
    });
    assert_eq!(waited.unwrap_err().reason, Some(ErrorReason::Draining));
    let ended = async {
        while session.is_open() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(HANGS, ended).await.expect("it ends");
    let refused = session.lookup(lookup("k")).await.unwrap_err();
    assert_eq!(refused.reason, Some(ErrorReason::Draining), "{refused}");
}
