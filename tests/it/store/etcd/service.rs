//! The whole service in front of an etcd whose answers are lost: whoever repeats a call as its retry rule says
//! gets the right answer.

use std::sync::Arc;
use std::time::Duration;

use onced::store::etcd::EtcdConfig;
use onced_client::v1::session_request::Call;
use onced_client::v1::session_response::Answer;
use onced_client::v1::{self, begin_response, lookup_response};
use tonic_types::Status;

use super::open;
use crate::store::fixture::PATIENCE;
use crate::support::call_proxy::{CallProxy, Fate};
use crate::support::caller::{Caller, Unary};
use crate::support::etcd::EtcdProcess;
use crate::support::server::TestServer;

/// More calls than the scenes make.
const CALLS_MAX: usize = 60;

/// Two servers: one behind a proxy, one beside it.
struct Stage {
    proxy: CallProxy,
    callers: [Unary; 2],
    _servers: [TestServer; 2],
}

impl Stage {
    async fn new(nth: usize) -> Self {
        let etcd = EtcdProcess::shared();
        let (proxy, beside) = (CallProxy::start(etcd.endpoint()).await, etcd.config());
        let config = EtcdConfig {
            endpoints: vec![proxy.endpoint()],
            call_timeout: Duration::from_millis(500),
            ..beside.clone()
        };
        let servers =
            [TestServer::start(open(&config).await).await, TestServer::start(open(&beside).await).await];
        let callers = [Unary(servers[0].client().await), Unary(servers[1].client().await)];
        proxy.spare_probes();
        proxy.plan("", nth, Fate::LoseAnswer);
        Self { proxy, callers, _servers: servers }
    }

    /// Repeats a call with the same arguments until it is answered, at one server and the other in turn.
    async fn call(&self, call: Call) -> Answer {
        self.call_from(0, call).await
    }

    /// The same, at another server first.
    async fn call_from(&self, first: usize, call: Call) -> Answer {
        let answered = async {
            for caller in self.callers.iter().cycle().skip(first) {
                match caller.call(call.clone(), None).await {
                    Ok(answer) => return answer,
                    Err(Status { code, .. }) if code == tonic::Code::Unavailable as i32 => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
            unreachable!("the callers have no end")
        };
        tokio::time::timeout(PATIENCE, answered).await.expect("an answer")
    }

    async fn claim(&self, key: &str, request_id: &str) -> v1::Claim {
        let request = v1::BeginRequest {
            namespace: "orders".to_owned(),
            key: key.to_owned(),
            request_id: request_id.to_owned(),
            ..v1::BeginRequest::default()
        };
        match self.call(Call::Begin(request)).await {
            Answer::Begin(v1::BeginResponse { result: Some(begin_response::Result::Claim(claim)) }) => claim,
            other => panic!("{other:?}"),
        }
    }

    async fn renew(&self, key: &str, fencing_token: u64) {
        let (namespace, key) = ("orders".to_owned(), key.to_owned());
        let renewed =
            self.call(Call::Renew(v1::RenewRequest { namespace, key, fencing_token, checkpoint: None }));
        assert!(matches!(renewed.await, Answer::Renew(_)));
    }

    async fn release(&self, key: &str, fencing_token: u64) {
        let released = self.call(Call::Release(v1::ReleaseRequest {
            namespace: "orders".to_owned(),
            key: key.to_owned(),
            fencing_token,
            disposition: v1::Disposition::Retry.into(),
            reason: String::new(),
        }));
        assert!(matches!(released.await, Answer::Release(_)));
    }

    async fn complete(&self, key: &str, fencing_token: u64) {
        let result = Some(v1::outcome::Result::Response("done".into()));
        let completed = self.call(Call::Complete(v1::CompleteRequest {
            namespace: "orders".to_owned(),
            key: key.to_owned(),
            fencing_token,
            outcome: Some(v1::Outcome { result, ..v1::Outcome::default() }),
            retention: None,
        }));
        assert!(matches!(completed.await, Answer::Complete(_)));
        for at in 0..self.callers.len() {
            let lookup =
                v1::LookupRequest { namespace: "orders".to_owned(), key: key.to_owned(), wait: None };
            let Answer::Lookup(v1::LookupResponse {
                record: Some(lookup_response::Record::Completed(completed)),
            }) = self.call_from(at, Call::Lookup(lookup)).await
            else {
                panic!("{key} is not completed")
            };
            assert_eq!(completed.outcome.unwrap().result, Some(v1::outcome::Result::Response("done".into())));
            assert_eq!(completed.fencing_token, fencing_token);
        }
    }
}

#[tokio::test]
async fn a_call_repeated_by_its_rule_gets_the_right_answer() {
    let mut befallen = 0;
    for nth in 0..CALLS_MAX {
        let stage = Arc::new(Stage::new(nth).await);
        let id = uuid::Uuid::new_v4().to_string();
        let claim = stage.claim("k", &id).await;
        assert_eq!(claim.attempt, 1);
        stage.renew("k", claim.fencing_token).await;
        // The same request id is the same claim.
        let again = stage.claim("k", &id).await;
        assert_eq!((again.fencing_token, again.attempt, again.resumed), (claim.fencing_token, 1, true));
        stage.release("k", claim.fencing_token).await;
        let next = stage.claim("k", &uuid::Uuid::new_v4().to_string()).await;
        assert_eq!(next.attempt, 2);
        stage.complete("k", next.fencing_token).await;
        stage.proxy.forget_plan();
        if stage.proxy.befallen().is_none() {
            break;
        }
        befallen += 1;
    }
    // A Begin, a Renew, a resume, a Release, a Begin, a Complete and a Lookup make at least as many calls.
    assert!((7..CALLS_MAX).contains(&befallen), "{befallen}");
}
