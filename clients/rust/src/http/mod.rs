//! The `Idempotency-Key` header: a [tower](https://docs.rs/tower) layer for HTTP services, such as axum's, and for
//! tonic's gRPC servers. It keeps to the
//! [draft](https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header).
//!
//! ```no_run
//! use onced_client::Client;
//! use onced_client::http::OnceLayer;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("127.0.0.1:7411")?;
//! let orders = axum::Router::new()
//!     .route("/orders", axum::routing::post(|body: String| async move { format!("ordered: {body}") }))
//!     .layer(OnceLayer::new(client).namespace("shop").scope_header(http::HeaderName::from_static("x-account")));
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//! axum::serve(listener, orders).await?;
//! # Ok(())
//! # }
//! ```
//!
//! A handler finds its [`Claim`](crate::Claim) in the extensions of the request, and may put a [`Disposition`] into
//! those of its answer. It does not stop when its caller hangs up: it runs to its end, and its answer is stored.
//!
//! | answer | the key |
//! |---|---|
//! | 2xx, 3xx, 4xx; of gRPC: OK, and errors that stay as they are | has its outcome: every duplicate gets the answer |
//! | 401, 408, 425, 429; UNAUTHENTICATED, RESOURCE_EXHAUSTED | is free: the request was not looked at |
//! | 5xx, other errors, a panic, an error of the inner service | as [`OnceLayer::on_failure`] says |
//! | too large, streams without end, or has a header to store that is not UTF-8 | is in doubt, since the work was done |
//!
//! An answer that is not stored holds its key until its caller has all of it. From a caller that takes nothing of it for
//! five minutes ([`OnceLayer::unread`]) it is cut off.
//!
//! Put layers that compress or that add headers for one caller alone outside of this one: what an inner layer does is
//! part of the stored answer.

mod answer;
mod body;
mod grpc;
mod plain;
mod refusal;
mod request;
mod service;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, Method};
use tonic::Status;
use tower_layer::Layer;

pub use body::Body;
pub use service::OnceService;

use crate::client::Client;
use crate::completion::OnFailure;
use crate::v1::OnLapse;

/// How long a duplicate waits for the answer unless told otherwise.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(10);
/// The largest body of a request with a key unless told otherwise.
pub const DEFAULT_MAX_REQUEST_BYTES: usize = 1 << 20;
/// How long a caller may take nothing of an answer that is not stored, unless told otherwise.
pub const DEFAULT_UNREAD: Duration = Duration::from_secs(300);

/// What a handler says is to become of its answer: put it into the extensions of the response. It outranks what the
/// status says, and the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It is the outcome: every duplicate gets it.
    Store,
    /// Nothing happened, or it is safe to do again: the key is free. The answer goes to this caller alone.
    Retry,
    /// What happened is unknown: nobody runs the key until an operator has resolved it. The answer goes to this caller
    /// alone.
    InDoubt,
}

impl Disposition {
    /// Says it of an error of a gRPC handler, which has no extensions: it takes the place of the status's source.
    pub fn of_status(self, mut status: Status) -> Status {
        status.set_source(Arc::new(Said(self)));
        status
    }
}

impl From<OnFailure> for Disposition {
    fn from(rule: OnFailure) -> Self {
        match rule {
            OnFailure::Retry => Disposition::Retry,
            OnFailure::InDoubt => Disposition::InDoubt,
        }
    }
}

/// A handler's word about an error.
#[derive(Debug, thiserror::Error)]
#[error("{0:?}")]
struct Said(Disposition);

/// Runs the requests of a service once for each `Idempotency-Key`.
///
/// The inner service takes requests with a [`Body`] of the layer, and may answer with any body. It is asked whether it
/// is ready once it is its turn, so that requests that wait for a key hold no place in it.
#[derive(Clone, Debug)]
pub struct OnceLayer(Arc<Options>);

type Scope = Arc<dyn Fn(&Parts) -> Option<String> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Options {
    client: Client,
    wire: Wire,
    namespace: String,
    key_optional: bool,
    scope: Option<Scope>,
    wait: Duration,
    lock_ttl: Option<Duration>,
    retention: Option<Duration>,
    on_lapse: OnLapse,
    rule: OnFailure,
    max_request_bytes: usize,
    max_response_bytes: usize,
    unread: Duration,
    fail_open: Option<Duration>,
}

/// What the service speaks.
#[derive(Clone, Debug)]
pub(crate) enum Wire {
    Http {
        methods: Vec<Method>,
        /// Besides the usual ones.
        store_headers: Vec<HeaderName>,
    },
    Grpc {
        /// Those that take a key, with their full names; None: all that are unary.
        methods: Option<Vec<String>>,
        streaming: Vec<String>,
    },
}

impl OnceLayer {
    /// A layer for HTTP. POST and PATCH need a key, in the namespace `default`.
    pub fn new(client: Client) -> Self {
        Self::of(client, Wire::Http { methods: vec![Method::POST, Method::PATCH], store_headers: Vec::new() })
    }

    /// A layer for gRPC servers, such as `tonic::transport::Server::builder().layer(…)`. The key is the request metadata
    /// `idempotency-key`, and all unary methods need one, but those of `grpc.*` services (health, reflection). Name the
    /// methods that stream: see [`OnceLayer::streaming`].
    pub fn grpc(client: Client) -> Self {
        Self::of(client, Wire::Grpc { methods: None, streaming: Vec::new() })
    }

    fn of(client: Client, wire: Wire) -> Self {
        Self(Arc::new(Options {
            client,
            wire,
            namespace: "default".to_owned(),
            key_optional: false,
            scope: None,
            wait: DEFAULT_WAIT,
            lock_ttl: None,
            retention: None,
            on_lapse: OnLapse::Unspecified,
            rule: OnFailure::default(),
            max_request_bytes: DEFAULT_MAX_REQUEST_BYTES,
            max_response_bytes: usize::MAX,
            unread: DEFAULT_UNREAD,
            fail_open: None,
        }))
    }

    fn with(mut self, set: impl FnOnce(&mut Options)) -> Self {
        set(Arc::make_mut(&mut self.0));
        self
    }

    /// HTTP: the methods that take a key; others pass. POST and PATCH unless told otherwise.
    #[must_use]
    pub fn methods(self, names: impl IntoIterator<Item = Method>) -> Self {
        self.with(|options| {
            if let Wire::Http { methods, .. } = &mut options.wire {
                *methods = names.into_iter().collect();
            }
        })
    }

    /// gRPC: the methods that take a key, as `/package.Service/Method`; others pass. All unary ones unless told
    /// otherwise.
    #[must_use]
    pub fn grpc_methods(self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.with(|options| {
            if let Wire::Grpc { methods, .. } = &mut options.wire {
                *methods = Some(names.into_iter().map(Into::into).collect());
            }
        })
    }

    /// gRPC: the methods that stream requests or answers, as `/package.Service/Method`. They pass without a key, and with
    /// one they are refused. One that is not named here is found out by its messages: by those of its request before it
    /// runs, but by those of its answer only afterwards, and then its key is in doubt.
    #[must_use]
    pub fn streaming(self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.with(|options| {
            if let Wire::Grpc { streaming, .. } = &mut options.wire {
                streaming.extend(names.into_iter().map(Into::into));
            }
        })
    }

    /// gRPC: the same of all methods in a file descriptor set, such as that which servers give to reflection.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn descriptors(self, file_descriptor_set: &[u8]) -> Result<Self, prost::DecodeError> {
        Ok(self.streaming(grpc::streaming(file_descriptor_set)?))
    }

    /// The namespace of the keys. `default` unless told otherwise.
    #[must_use]
    pub fn namespace(self, namespace: impl Into<String>) -> Self {
        self.with(|options| options.namespace = namespace.into())
    }

    /// Lets requests without a key pass, with nothing to keep them from running twice. They are refused unless told
    /// otherwise.
    #[must_use]
    pub fn key_optional(self) -> Self {
        self.with(|options| options.key_optional = true)
    }

    /// Whose key it is, so that two tenants may use the same one. It must be the same when the request is repeated: an
    /// account or a tenant, never a token. A request without a scope is refused. All share their keys unless told
    /// otherwise.
    #[must_use]
    pub fn scope(self, scope: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.with(|options| options.scope = Some(Arc::new(scope)))
    }

    /// The header that says whose key it is: see [`OnceLayer::scope`]. Whatever sets it must not let callers choose it.
    #[must_use]
    pub fn scope_header(self, name: HeaderName) -> Self {
        self.scope(move |parts| request::only(&parts.headers, &name)?.to_str().ok().map(str::to_owned))
    }

    /// How long a duplicate waits for the answer. [`DEFAULT_WAIT`] unless told otherwise; with zero it is told at once
    /// that the request is in progress.
    #[must_use]
    pub fn wait(self, wait: Duration) -> Self {
        self.with(|options| options.wait = wait)
    }

    /// How long the claim lives without a renewal, 2 s to 1 h: how soon a retry runs after a crash. The namespace's
    /// unless told otherwise.
    #[must_use]
    pub fn lock_ttl(self, ttl: Duration) -> Self {
        self.with(|options| options.lock_ttl = Some(ttl))
    }

    /// How long answers are kept, at least, 1 min to 31 d. The namespace's unless told otherwise.
    #[must_use]
    pub fn retention(self, retention: Duration) -> Self {
        self.with(|options| options.retention = Some(retention))
    }

    /// What becomes of the key if this process dies while the handler runs. The namespace's unless told otherwise.
    #[must_use]
    pub fn on_lapse(self, on_lapse: OnLapse) -> Self {
        self.with(|options| options.on_lapse = on_lapse)
    }

    /// What becomes of the key when the handler fails without saying: a 5xx, an error of gRPC that may be another one
    /// next time, a panic, an error of the inner service. Retry unless told otherwise.
    #[must_use]
    pub fn on_failure(self, rule: OnFailure) -> Self {
        self.with(|options| options.rule = rule)
    }

    /// The same by the name that it has for HTTP.
    #[must_use]
    pub fn on_5xx(self, rule: OnFailure) -> Self {
        self.on_failure(rule)
    }

    /// HTTP: headers of answers to store besides `content-type` and the usual ones (`cache-control`,
    /// `content-disposition`, `content-encoding`, `content-language`, `etag`, `last-modified`, `link`, `location`,
    /// `retry-after`, `vary`). The first caller gets all of them in any case.
    #[must_use]
    pub fn store_headers(self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.with(|options| {
            if let Wire::Http { store_headers, .. } = &mut options.wire {
                store_headers.extend(names);
            }
        })
    }

    /// The largest body of a request with a key, in bytes. [`DEFAULT_MAX_REQUEST_BYTES`] unless told otherwise.
    #[must_use]
    pub fn max_request_bytes(self, bytes: usize) -> Self {
        self.with(|options| options.max_request_bytes = bytes)
    }

    /// The largest body of an answer that is stored, in bytes. What the claim allows, 1 MiB unless the server says less,
    /// unless told otherwise.
    #[must_use]
    pub fn max_response_bytes(self, bytes: usize) -> Self {
        self.with(|options| options.max_response_bytes = bytes)
    }

    /// How long a caller may take nothing of an answer that is not stored, and whose key it holds by that: then the
    /// answer is cut off. [`DEFAULT_UNREAD`] unless told otherwise.
    #[must_use]
    pub fn unread(self, limit: Duration) -> Self {
        self.with(|options| options.unread = limit)
    }

    /// Runs handlers without a claim when no server has answered for as long as `after`: see
    /// [`Once::fail_open`](crate::Once::fail_open). Requests are refused then unless told otherwise.
    #[must_use]
    pub fn fail_open(self, after: Duration) -> Self {
        self.with(|options| options.fail_open = Some(after))
    }
}

impl<S> Layer<S> for OnceLayer {
    type Service = OnceService<S>;

    fn layer(&self, inner: S) -> OnceService<S> {
        OnceService::new(inner, Arc::clone(&self.0))
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Options");
        shown.field("wire", &self.wire).field("namespace", &self.namespace).field("rule", &self.rule);
        shown.field("scope", &self.scope.is_some()).field("wait", &self.wait).finish_non_exhaustive()
    }
}
