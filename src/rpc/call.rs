//! One call and its answer, whichever way it came: what unary handlers and sessions both drive.

use std::net::SocketAddr;

use onced_client::v1;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::budget::Budget;
use super::failure::Failure;
use crate::access::Caller;
use crate::clock::Moment;
use crate::coordinator::{Busy, Claimed};
use crate::telemetry::trace::TraceParent;

/// A call on its way through the layers.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// When, and for how long.
    pub context: Context,
    /// Who asks; `None` where nobody is asked who they are.
    pub caller: Option<Caller>,
    /// That of the connection that it came on.
    pub budget: Budget,
    /// The places it takes up; the limit layer fills them in.
    pub places: Places,
}

/// The circumstances of a call.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// When the call arrived at the server.
    pub arrived: Moment,
    /// When nobody waits for the answer any more.
    pub deadline: Option<Moment>,
    /// Where it stands in the trace of its caller, if there is one.
    pub trace: Option<TraceParent>,
    /// The other end of its connection, if that has an address.
    pub peer: Option<SocketAddr>,
}

impl Context {
    /// How a call ended that was dropped before it was answered: its time was up, or its caller has left.
    pub fn given_up(&self, now: Moment) -> Failure {
        let late = self.deadline.is_some_and(|deadline| now >= deadline);
        if late { Failure::DeadlineExceeded } else { Failure::Cancelled }
    }
}

/// The places that a call takes up under the server's limits, free again when dropped.
#[derive(Debug, Default)]
pub struct Places {
    /// For being at work: the connection's, and the server's.
    pub busy: Option<[OwnedSemaphorePermit; 2]>,
    /// Dropped with `busy`: tells the quota layer that the call only waits.
    pub working: Option<oneshot::Sender<()>>,
    /// For waiting; without one the call does not wait.
    pub waiting: Option<OwnedSemaphorePermit>,
}

impl Places {
    /// The place for being at work, as the coordinator keeps it until the work ends.
    pub fn into_busy(self) -> Busy {
        self.busy.map(|permits| Box::new((permits, self.working)) as _)
    }
}

/// An answer on its way back.
#[derive(Debug)]
pub struct Answer {
    /// The message.
    pub response: Response,
    /// The claim that the message carries, which must be told when it leaves.
    pub claim: Option<Claimed>,
}

macro_rules! calls {
    ($($name:ident($request:ident) -> $response:ident, $service:literal;)*) => {
        /// The method that a call is of.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Rpc {
            $(
                #[doc = concat!("A ", stringify!($name), ".")]
                $name,
            )*
            /// A Watch, which is no [`Call`].
            Watch,
        }

        impl Rpc {
            /// Those of a [`Call`].
            pub const CALLS: &[Rpc] = &[$(Rpc::$name),*];

            /// Its name, without its service.
            pub fn name(self) -> &'static str {
                match self {
                    $(Rpc::$name => stringify!($name),)*
                    Rpc::Watch => "Watch",
                }
            }

            /// Its name and that of its service.
            pub fn method(self) -> &'static str {
                match self {
                    $(Rpc::$name => concat!("onced.v1.", $service, "/", stringify!($name)),)*
                    Rpc::Watch => "onced.v1.IdempotencyService/Watch",
                }
            }
        }

        /// What can be asked.
        #[derive(Debug)]
        pub enum Request {
            $(
                #[doc = concat!("A ", stringify!($name), ".")]
                $name(v1::$request),
            )*
        }

        /// What can be answered.
        #[derive(Debug)]
        pub enum Response {
            $(
                #[doc = concat!("To a ", stringify!($name), ".")]
                $name(v1::$response),
            )*
        }

        impl Response {
            /// How many bytes it takes up as a message.
            pub fn encoded_len(&self) -> usize {
                match self {
                    $(Response::$name(response) => response.encoded_len(),)*
                }
            }
        }

        impl Request {
            /// Which method it is of.
            pub fn kind(&self) -> Rpc {
                match self {
                    $(Request::$name(_) => Rpc::$name,)*
                }
            }

            /// The name of that.
            pub fn rpc(&self) -> &'static str {
                self.kind().name()
            }

            /// The namespace and the key, unchecked. A List has no key.
            pub fn name(&self) -> (&str, &str) {
                match self {
                    $(Request::$name(request) => (&request.namespace, Keyed::key(request)),)*
                }
            }
        }

        $(
            impl From<v1::$request> for Request {
                fn from(request: v1::$request) -> Self {
                    Request::$name(request)
                }
            }

            impl From<v1::$response> for Answer {
                fn from(response: v1::$response) -> Self {
                    Answer { response: Response::$name(response), claim: None }
                }
            }

            impl TryFrom<Response> for v1::$response {
                type Error = Failure;

                fn try_from(response: Response) -> Result<Self, Failure> {
                    match response {
                        Response::$name(response) => Ok(response),
                        _ => Err(Failure::Internal("an answer of another kind than the call")),
                    }
                }
            }
        )*
    };
}

calls! {
    Begin(BeginRequest) -> BeginResponse, "IdempotencyService";
    Complete(CompleteRequest) -> CompleteResponse, "IdempotencyService";
    Renew(RenewRequest) -> RenewResponse, "IdempotencyService";
    Release(ReleaseRequest) -> ReleaseResponse, "IdempotencyService";
    Lookup(LookupRequest) -> LookupResponse, "IdempotencyService";
    List(ListRequest) -> ListResponse, "AdminService";
    Resolve(ResolveRequest) -> ResolveResponse, "AdminService";
    Delete(DeleteRequest) -> DeleteResponse, "AdminService";
}

/// A request that may name a key.
trait Keyed {
    fn key(&self) -> &str;
}

macro_rules! keyed {
    ($($request:ident)*) => {
        $(impl Keyed for v1::$request {
            fn key(&self) -> &str {
                &self.key
            }
        })*
    };
}

keyed!(BeginRequest CompleteRequest RenewRequest ReleaseRequest LookupRequest ResolveRequest DeleteRequest);

impl Keyed for v1::ListRequest {
    fn key(&self) -> &str {
        ""
    }
}

impl Request {
    /// Whether a holder sends it: such calls keep a claim alive or end it, and have capacity of their own.
    pub fn is_of_holder(&self) -> bool {
        match self {
            Request::Complete(_) | Request::Renew(_) | Request::Release(_) => true,
            Request::Begin(_)
            | Request::Lookup(_)
            | Request::List(_)
            | Request::Resolve(_)
            | Request::Delete(_) => false,
        }
    }

    /// Whether it asks to wait.
    pub fn asks_to_wait(&self) -> bool {
        match self {
            Request::Begin(v1::BeginRequest { wait, .. })
            | Request::Lookup(v1::LookupRequest { wait, .. }) => {
                wait.is_some_and(|wait| wait != prost_types::Duration::default())
            }
            Request::Complete(_)
            | Request::Renew(_)
            | Request::Release(_)
            | Request::List(_)
            | Request::Resolve(_)
            | Request::Delete(_) => false,
        }
    }
}

impl Answer {
    /// The answer in a session's form, with the claim that it carries.
    pub fn into_session(self) -> (v1::session_response::Answer, Option<Claimed>) {
        use v1::session_response::Answer as Session;
        let answer = match self.response {
            Response::Begin(response) => Session::Begin(response),
            Response::Complete(response) => Session::Complete(response),
            Response::Renew(response) => Session::Renew(response),
            Response::Release(response) => Session::Release(response),
            Response::Lookup(response) => Session::Lookup(response),
            Response::List(_) | Response::Resolve(_) | Response::Delete(_) => {
                Session::Error(Failure::Internal("an answer that no session call has").to_rpc_status())
            }
        };
        (answer, self.claim)
    }
}
