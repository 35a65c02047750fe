//! Callers by their tokens, and every call there is.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use onced::access::{Action, Pattern, Rule, tokens};
use onced::generated::health_v1::HealthCheckRequest;
use onced::generated::health_v1::health_client::HealthClient;
use onced_client::v1::admin_service_client::AdminServiceClient;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use onced_client::v1::session_request::Call;
use onced_client::v1::session_response::Answer;
use onced_client::v1::{self, SessionRequest};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use tonic::body::Body;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_types::Status;
use tower::util::BoxCloneSyncService;

use crate::support::caller::rpc_status;
use crate::support::server::Connection;

pub const NAMESPACE: &str = "orders";

/// Every method of the API, and in `/` those of a session; what each takes.
pub const CALLS: [(&str, Action); 14] = [
    ("Begin", Action::Begin),
    ("Complete", Action::Begin),
    ("Renew", Action::Begin),
    ("Release", Action::Begin),
    ("Lookup", Action::Lookup),
    ("Watch", Action::Lookup),
    ("List", Action::Admin),
    ("Resolve", Action::Admin),
    ("Delete", Action::Admin),
    ("Session/Begin", Action::Begin),
    ("Session/Complete", Action::Begin),
    ("Session/Renew", Action::Begin),
    ("Session/Release", Action::Begin),
    ("Session/Lookup", Action::Lookup),
];

/// A file of tokens: those of the names, in their order.
pub fn write_tokens(file: &Path, names: &[&str]) -> Vec<String> {
    let (tokens, lines): (Vec<_>, Vec<_>) = names.iter().map(|name| tokens::new(name).unwrap()).unzip();
    std::fs::write(file, lines.join("\n")).unwrap();
    tokens
}

pub fn rule(identities: &[&str], namespaces: &[&str], actions: &[Action]) -> Rule {
    let patterns = |texts: &[&str]| texts.iter().map(|text| Pattern::new(text).unwrap()).collect();
    Rule { identities: patterns(identities), namespaces: patterns(namespaces), actions: actions.to_vec() }
}

/// An issuer of JWTs.
pub struct Issuer(Ed25519KeyPair);

impl Issuer {
    /// An issuer, whose key is written to a file.
    pub fn new(file: &Path) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let key = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let x = URL_SAFE_NO_PAD.encode(key.public_key());
        let jwks = serde_json::json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "1", "x": x }] });
        std::fs::write(file, jwks.to_string()).unwrap();
        Self(key)
    }

    /// A token for somebody, until so long from now; a negative time has passed.
    pub fn token(&self, subject: &str, seconds: i64) -> String {
        let exp = onced::clock::wall_time().as_micros() as f64 / 1e6 + seconds as f64;
        let claims = serde_json::json!({ "iss": "issuer", "aud": "onced", "sub": subject, "exp": exp });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed =
            format!("{}.{}", part(&serde_json::json!({ "alg": "EdDSA", "kid": "1" })), part(&claims));
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes())))
    }
}

/// The connection, with a header on each of its requests.
pub fn authorized(connection: Connection, header: Option<String>) -> Connection {
    let map = tower::util::MapRequest::new(connection, move |mut request: http::Request<Body>| {
        if let Some(header) = &header {
            request.headers_mut().insert("authorization", header.parse().unwrap());
        }
        request
    });
    BoxCloneSyncService::new(map)
}

pub fn bearer(token: &str) -> Option<String> {
    Some(format!("Bearer {token}"))
}

/// Makes a call about a key: whether it was served.
pub async fn make(connection: &Connection, origin: &http::Uri, call: &str, key: &str) -> Result<(), Status> {
    let (connection, origin) = (connection.clone(), origin.clone());
    let mut api = IdempotencyServiceClient::with_origin(connection.clone(), origin.clone());
    let mut admin = AdminServiceClient::with_origin(connection, origin);
    let (namespace, key) = (NAMESPACE.to_owned(), key.to_owned());
    let request_id = uuid::Uuid::new_v4().to_string();
    let begin =
        v1::BeginRequest { namespace: namespace.clone(), key: key.clone(), request_id, ..Default::default() };
    let outcome = Some(v1::Outcome {
        result: Some(v1::outcome::Result::Response("x".into())),
        ..v1::Outcome::default()
    });
    let (n, k, fencing_token) = (|| namespace.clone(), || key.clone(), 1);
    let complete = v1::CompleteRequest { namespace: n(), key: k(), fencing_token, outcome, retention: None };
    let renew = v1::RenewRequest { namespace: n(), key: k(), fencing_token, checkpoint: None };
    let disposition = v1::Disposition::InDoubt.into();
    let release =
        v1::ReleaseRequest { namespace: n(), key: k(), fencing_token, disposition, reason: String::new() };
    let lookup = v1::LookupRequest { namespace: n(), key: k(), wait: None };
    let answered = match call {
        "Begin" => api.begin(begin).await.map(drop),
        "Complete" => api.complete(complete).await.map(drop),
        "Renew" => api.renew(renew).await.map(drop),
        "Release" => api.release(release).await.map(drop),
        "Lookup" => api.lookup(lookup).await.map(drop),
        "Watch" => match api.watch(v1::WatchRequest { namespace: n(), key: k() }).await {
            Ok(states) => states.into_inner().message().await.map(drop),
            Err(status) => Err(status),
        },
        "List" => admin.list(v1::ListRequest { namespace: n(), ..Default::default() }).await.map(drop),
        "Resolve" => {
            let resolution = Some(v1::resolve_request::Resolution::Retry(v1::ResolveRetry {}));
            let request = v1::ResolveRequest {
                namespace: n(),
                key: k(),
                fencing_token,
                resolution,
                ..Default::default()
            };
            admin.resolve(request).await.map(drop)
        }
        "Delete" => {
            let request = v1::DeleteRequest { namespace: n(), key: k(), fencing_token, ..Default::default() };
            admin.delete(request).await.map(drop)
        }
        of_session => {
            let call = match of_session {
                "Session/Begin" => Call::Begin(begin),
                "Session/Complete" => Call::Complete(complete),
                "Session/Renew" => Call::Renew(renew),
                "Session/Release" => Call::Release(release),
                "Session/Lookup" => Call::Lookup(lookup),
                other => panic!("no call {other}"),
            };
            let sent = SessionRequest { id: 1, timeout: None, call: Some(call) };
            match api.session(tokio_stream::once(sent)).await {
                Ok(answers) => {
                    match answers.into_inner().message().await.expect("an answer").expect("one").answer {
                        Some(Answer::Error(status)) => return Err(status),
                        _ => Ok(()),
                    }
                }
                Err(status) => Err(status),
            }
        }
    };
    answered.map_err(|status| rpc_status(&status))
}

/// Asks each of the services that ask nobody who they are.
pub async fn health(connection: &Connection, origin: &http::Uri) -> Result<(), tonic::Status> {
    let mut health = HealthClient::with_origin(connection.clone(), origin.clone());
    health.check(HealthCheckRequest::default()).await?;
    health.list(onced::generated::health_v1::HealthListRequest::default()).await?;
    health.watch(HealthCheckRequest::default()).await?.into_inner().message().await?.expect("a state");
    Ok(())
}

/// Asks what there is to call.
pub async fn reflection(connection: &Connection, origin: &http::Uri) -> Result<(), tonic::Status> {
    let mut reflection = ServerReflectionClient::with_origin(connection.clone(), origin.clone());
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let asked = ServerReflectionRequest { host: String::new(), message_request };
    let answers = reflection.server_reflection_info(tokio_stream::once(asked)).await?;
    answers.into_inner().message().await?.expect("an answer");
    Ok(())
}
