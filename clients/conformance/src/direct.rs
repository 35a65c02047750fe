//! What the driver asks of a server by itself: each call once, by the bare API.

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use onced_client::v1::admin_service_client::AdminServiceClient;
use onced_client::v1::begin_response::Result as Begun;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use onced_client::v1::lookup_response::Record;
use onced_client::v1::outcome::Result as Stored;
use onced_client::v1::resolve_request::Resolution;
use onced_client::v1::{
    BeginRequest, Checkpoint, CompleteRequest, Completed, DeleteRequest, Disposition, LookupRequest, Outcome,
    ReleaseRequest, RenewRequest, ResolveRequest, ResolveRetry,
};
use onced_client::wire;
use prost_types::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use crate::scenario::{At, Begin, Rule};
use crate::server::{House, Server};

/// A connection to a server.
pub struct Direct {
    channel: InterceptedService<Channel, Bearer>,
}

#[derive(Clone)]
struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// An outcome, as scenarios write it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// In base64.
    response: Option<String>,
    text: Option<String>,
    error: Option<WrittenError>,
    #[serde(default)]
    content_type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenError {
    code: i32,
    message: String,
}

impl Direct {
    pub async fn connect(server: &Server, house: &House) -> Result<Self> {
        let (address, setup) = (server.address()?, server.setup());
        let scheme = if setup.tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?;
        if let Some(shown) = &setup.tls {
            let pem = |name: &str| std::fs::read(house.certificates.path(name));
            let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem("ca.crt")?));
            if shown == "stranger" {
                tls = tls.domain_name("onced.example");
            }
            if setup.asks_for_certificates {
                tls = tls.identity(Identity::from_pem(pem("caller.crt")?, pem("caller.key")?));
            }
            endpoint = endpoint.tls_config(tls)?;
        }
        let token = house.tokens.iter().find(|token| setup.tokens.iter().any(|name| name == token.name));
        let bearer = token.map(|token| format!("Bearer {}", token.text).parse()).transpose()?;
        let channel = endpoint.connect().await.context("the driver cannot connect")?;
        Ok(Self { channel: InterceptedService::new(channel, Bearer(bearer)) })
    }

    /// What is known of a key, flat.
    pub async fn record(&self, at: &At) -> Result<Value> {
        let request = LookupRequest { namespace: at.namespace.clone(), key: at.key.clone(), wait: None };
        let record = match self.calls().lookup(request).await {
            Ok(answer) => answer.into_inner().record.context("a record")?,
            Err(status) if status.code() == Code::NotFound => return Ok(json!({"state": "absent"})),
            Err(status) => return Err(status.into()),
        };
        Ok(match record {
            Record::Completed(completed) => completed_record(&completed),
            Record::InProgress(held) => {
                json!({"state": "in_progress", "owner": held.owner, "attempt": held.attempt.to_string()})
            }
            Record::InDoubt(doubt) => json!({
                "state": "in_doubt", "owner": doubt.owner, "attempt": doubt.attempt.to_string(),
                "token": doubt.fencing_token.to_string(), "reason": doubt.reason,
            }),
            Record::Available(free) => {
                json!({"state": "available", "owner": free.owner, "attempt": free.attempt.to_string()})
            }
        })
    }

    pub async fn begin(&self, begin: &Begin) -> Result<Value> {
        let request = BeginRequest {
            namespace: begin.at.namespace.clone(),
            key: begin.at.key.clone(),
            request_id: uuid::Uuid::new_v4().to_string(),
            owner: begin.owner.clone(),
            lock_ttl: Some(wire(std::time::Duration::from_millis(begin.lock_ttl))),
            ..BeginRequest::default()
        };
        let begun = self.calls().begin(request).await?.into_inner().result.context("a result")?;
        Ok(match begun {
            Begun::Claim(claim) => json!({
                "result": "claim", "token": claim.fencing_token.to_string(), "attempt": claim.attempt.to_string(),
                "sequence": claim.checkpoint.as_ref().map(|checkpoint| checkpoint.sequence.to_string()),
                "checkpoint": claim.checkpoint.map(|checkpoint| BASE64.encode(checkpoint.data)),
            }),
            Begun::Completed(_) => json!({"result": "completed"}),
            Begun::InProgress(held) => json!({"result": "in_progress", "owner": held.owner}),
            Begun::InDoubt(_) => json!({"result": "in_doubt"}),
        })
    }

    pub async fn complete(&self, at: &At, token: &str, outcome: Value) -> Result<()> {
        let (namespace, key, fencing_token) = (at.namespace.clone(), at.key.clone(), token.parse()?);
        let outcome = Some(written(outcome)?);
        let request = CompleteRequest { namespace, key, fencing_token, outcome, retention: None };
        self.calls().complete(request).await?;
        Ok(())
    }

    pub async fn renew(&self, at: &At, token: &str, sequence: u64, data: &str) -> Result<()> {
        let (namespace, key, fencing_token) = (at.namespace.clone(), at.key.clone(), token.parse()?);
        let checkpoint = Some(Checkpoint { sequence, data: BASE64.decode(data)?.into() });
        self.calls().renew(RenewRequest { namespace, key, fencing_token, checkpoint }).await?;
        Ok(())
    }

    pub async fn release(&self, at: &At, token: &str, rule: Rule) -> Result<()> {
        let disposition = match rule {
            Rule::Retry => Disposition::Retry,
            Rule::InDoubt => Disposition::InDoubt,
        };
        let (namespace, key, fencing_token) = (at.namespace.clone(), at.key.clone(), token.parse()?);
        let (disposition, reason) = (disposition.into(), "the driver says so".to_owned());
        let request = ReleaseRequest { namespace, key, fencing_token, disposition, reason };
        self.calls().release(request).await?;
        Ok(())
    }

    pub async fn resolve(&self, at: &At, token: &str, outcome: Option<Value>) -> Result<()> {
        let (namespace, key, fencing_token) = (at.namespace.clone(), at.key.clone(), token.parse()?);
        let resolution = Some(match outcome {
            Some(outcome) => Resolution::Outcome(written(outcome)?),
            None => Resolution::Retry(ResolveRetry {}),
        });
        let request = ResolveRequest { namespace, key, fencing_token, resolution, retention: None };
        AdminServiceClient::new(self.channel.clone()).resolve(request).await?;
        Ok(())
    }

    pub async fn delete(&self, at: &At, token: &str) -> Result<()> {
        let (namespace, key, fencing_token) = (at.namespace.clone(), at.key.clone(), token.parse()?);
        let request = DeleteRequest { namespace, key, fencing_token, force: true };
        AdminServiceClient::new(self.channel.clone()).delete(request).await?;
        Ok(())
    }

    /// Its answers may be as large as an outcome, and a bit.
    fn calls(&self) -> IdempotencyServiceClient<InterceptedService<Channel, Bearer>> {
        IdempotencyServiceClient::new(self.channel.clone())
    }
}

fn written(outcome: Value) -> Result<Outcome> {
    let written: Written = serde_json::from_value(outcome)?;
    let outcome = match (written.response, written.text, written.error) {
        (Some(response), None, None) => Outcome::response(BASE64.decode(response)?),
        (None, Some(text), None) => Outcome::response(text),
        (None, None, Some(error)) => Outcome::error(Code::from_i32(error.code), error.message),
        _ => bail!("an outcome is one of response, text and error"),
    };
    Ok(outcome.with_content_type(written.content_type))
}

fn completed_record(completed: &Completed) -> Value {
    let outcome = completed.outcome.clone().unwrap_or_default();
    let (response, error) = match &outcome.result {
        Some(Stored::Response(response)) => (Some(response), None),
        Some(Stored::Error(error)) => (None, Some(json!({"code": error.code, "message": error.message}))),
        None => (None, None),
    };
    json!({
        "state": "completed", "owner": completed.owner, "attempt": completed.attempt.to_string(),
        "token": completed.fencing_token.to_string(),
        "response": response.map(|response| BASE64.encode(response)),
        "text": response.and_then(|response| std::str::from_utf8(response).ok()),
        "json": response.and_then(|response| serde_json::from_slice::<Value>(response).ok()),
        "error": error, "content_type": outcome.content_type, "metadata": outcome.metadata,
        "kept": kept(completed.completed_at.as_ref(), completed.expires_at.as_ref()),
    })
}

/// How long a record is kept after it was completed, in milliseconds.
fn kept(from: Option<&Timestamp>, until: Option<&Timestamp>) -> Option<i64> {
    let millis = |time: &Timestamp| time.seconds * 1_000 + i64::from(time.nanos / 1_000_000);
    Some(millis(until?) - millis(from?))
}
