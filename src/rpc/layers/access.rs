//! Lets callers do what they may, and nothing else. It stands before anything that looks at the store: one who is turned
//! away learns nothing of the key.

use std::task::{Context, Poll};

use super::Answering;
use crate::access::{Action, Caller};
use crate::clock::wall_time;
use crate::record::Namespace;
use crate::rpc::Live;
use crate::rpc::call::{Answer, Call, Request};
use crate::rpc::failure::{Denied, Failure};

/// Turns away who may not make a call.
#[derive(Clone)]
pub struct Access<S> {
    pub inner: S,
    pub rules: Live,
}

/// Whether a caller is still known, and may do something, as the rules are now.
///
/// # Errors
/// `Unproven` or `Denied` if not.
pub fn check(rules: &Live, caller: Option<&Caller>, namespace: &str, action: Action) -> Result<(), Failure> {
    let rules = rules.load();
    let caller = caller.map(|caller| rules.gate.identify_again(caller, wall_time()));
    let caller = caller.transpose().map_err(Failure::Unproven)?;
    let caller = caller.as_deref();
    if rules.gate.allows(caller, namespace, action) {
        return Ok(());
    }
    let caller = caller.map(Caller::to_string).unwrap_or_default();
    // What is none may be anything, and of any length.
    let namespace =
        Namespace::new(namespace).map(|namespace| namespace.as_str().to_owned()).unwrap_or_default();
    Err(Failure::Denied(Box::new(Denied { caller, namespace, action })))
}

fn action_of(request: &Request) -> Action {
    match request {
        Request::Begin(_) | Request::Complete(_) | Request::Renew(_) | Request::Release(_) => Action::Begin,
        Request::Lookup(_) => Action::Lookup,
        Request::List(_) | Request::Resolve(_) | Request::Delete(_) => Action::Admin,
    }
}

impl<S> tower::Service<Call> for Access<S>
where
    S: tower::Service<Call, Response = Answer, Error = Failure, Future = Answering>,
{
    type Response = Answer;
    type Error = Failure;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let ((namespace, _), action) = (call.request.name(), action_of(&call.request));
        if let Err(failure) = check(&self.rules, call.caller.as_ref(), namespace, action) {
            return Box::pin(async { Err(failure) });
        }
        if !call.request.asks_to_wait() {
            return self.inner.call(call);
        }
        // It may be otherwise once it has waited. A claim that came of that is then given back, as it is dropped.
        let (rules, caller, namespace) =
            (Live::clone(&self.rules), call.caller.clone(), namespace.to_owned());
        let answering = self.inner.call(call);
        Box::pin(async move {
            let answered = answering.await;
            check(&rules, caller.as_ref(), &namespace, action)?;
            answered
        })
    }
}
