//! A call that lasts as long as its caller wants, and holds up a shutdown meanwhile.

use std::net::SocketAddr;

use futures_util::stream;
use onced::generated::health_v1::health_client::HealthClient;
use onced::generated::health_v1::{HealthCheckRequest, HealthCheckResponse};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Response, Status};
use tonic_prost::ProstCodec;

/// A call whose request has not come to its end.
pub struct OpenCall {
    end: oneshot::Sender<()>,
    call: JoinHandle<Result<Response<HealthCheckResponse>, Status>>,
}

impl OpenCall {
    /// Starts one. The server has it when this returns.
    pub async fn start(address: SocketAddr) -> Self {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let (end, ended) = oneshot::channel();
        let (begin, begun) = oneshot::channel();
        let mut grpc = Grpc::new(channel.clone());
        let call = tokio::spawn(async move {
            grpc.ready().await.unwrap();
            let request = stream::once(async {
                // Its head has left.
                begin.send(()).unwrap();
                let _ = ended.await;
                HealthCheckRequest::default()
            });
            let path = "/grpc.health.v1.Health/Check".parse().unwrap();
            grpc.client_streaming(tonic::Request::new(request), path, ProstCodec::default()).await
        });
        begun.await.unwrap();
        // What came later on its connection is answered.
        HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
        Self { end, call }
    }

    /// Ends it, which must succeed.
    pub async fn finish(self) {
        self.end.send(()).unwrap();
        self.call.await.unwrap().expect("an answer");
    }
}
