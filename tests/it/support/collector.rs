//! A collector of traces, that hands on what it is sent.

use std::collections::HashMap;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// What was sent.
pub struct Collected {
    spans: mpsc::UnboundedReceiver<Span>,
    pub endpoint: String,
}

struct Collector(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for sent in request.into_inner().resource_spans {
            let sender = sent.resource.expect("who sends it");
            assert_eq!(attributes(&sender.attributes)["service.name"], "onced");
            for span in sent.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                // The test may be over.
                let _ = self.0.send(span);
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collected {
    /// Starts a collector, which ends with the test.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (sender, spans) = mpsc::unbounded_channel();
        let collector = TraceServiceServer::new(Collector(sender));
        tokio::spawn(
            Server::builder().add_service(collector).serve_with_incoming(TcpIncoming::from(listener)),
        );
        Self { spans, endpoint }
    }

    /// All that has been sent so far.
    pub fn all(&mut self) -> Vec<Span> {
        std::iter::from_fn(|| self.spans.try_recv().ok()).collect()
    }
}

/// The attributes that are text or whole numbers, as text.
pub fn attributes(of: &[opentelemetry_proto::tonic::common::v1::KeyValue]) -> HashMap<&str, String> {
    let value = |value: &Value| match value {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    };
    of.iter()
        .filter_map(|one| Some((one.key.as_str(), value(one.value.as_ref()?.value.as_ref()?)?)))
        .collect()
}
