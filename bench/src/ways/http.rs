//! Calls to an HTTP server on this machine, many at once on one connection.

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// A connection, by HTTP/2.
#[derive(Clone)]
pub struct Http(SendRequest<Full<Bytes>>);

impl Http {
    pub async fn connect(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// Sends a request, and reads the whole answer.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Bytes>> {
        let (head, body) = self.0.send_request(request).await?.into_parts();
        let body = body.collect().await.context("the answer breaks off")?.to_bytes();
        Ok(Response::from_parts(head, body))
    }
}

/// A POST of JSON.
pub fn post(port: u16, path: &str, body: Bytes) -> anyhow::Result<Request<Full<Bytes>>> {
    let request =
        Request::post(format!("http://127.0.0.1:{port}{path}")).header("content-type", "application/json");
    Ok(request.body(Full::new(body))?)
}
