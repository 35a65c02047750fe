//! The layer in front of a real tonic server. The services are those of the API, since their stubs are there; what they
//! do here has nothing to do with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use onced::generated::onced_v1::admin_service_server::{AdminService, AdminServiceServer};
use onced::generated::onced_v1::idempotency_service_server::{IdempotencyService, IdempotencyServiceServer};
use onced_client::http::{Disposition, OnceLayer};
use onced_client::v1::admin_service_client::AdminServiceClient;
use onced_client::v1::idempotency_service_client::IdempotencyServiceClient;
use onced_client::v1::{self, ListRequest, ListResponse};
use onced_client::{Claim, Client, OnFailure, Record};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server as TonicServer};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{Server, TTL, dead_address, lookup};
use crate::support::server::HANGS;

/// A shop: what it does, it counts. What it is to answer stands in the namespace of its requests.
#[derive(Clone, Default)]
struct Shop {
    runs: Arc<AtomicUsize>,
    begun: Arc<Notify>,
    go_on: Arc<Notify>,
}

const LIST: &str = "/onced.v1.AdminService/List";

#[tonic::async_trait]
impl AdminService for Shop {
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let run = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
        assert_eq!(
            request.metadata().contains_key("idempotency-key"),
            request.extensions().get::<Claim>().is_some()
        );
        let asked = request.into_inner().namespace;
        let mut answer =
            Response::new(ListResponse { next_page_token: format!("run {run}"), ..Default::default() });
        match asked.as_str() {
            "slow" => {
                self.begun.notify_one();
                self.go_on.notified().await;
            }
            "retry" => drop(answer.extensions_mut().insert(Disposition::Retry)),
            "retry-error" => return Err(Disposition::Retry.of_status(Status::not_found("not yet"))),
            "store-error" => {
                return Err(Disposition::Store.of_status(Status::unavailable(format!("run {run}"))));
            }
            "panics" => panic!("the handler panics, as it is meant to"),
            "large" => answer.get_mut().next_page_token = "x".repeat(1 << 20),
            code => {
                if let Ok(code) = code.parse::<i32>() {
                    let details = ErrorDetails::with_resource_info("order", "17", "", format!("run {run}"));
                    return Err(Status::with_error_details(Code::from(code), "no", details));
                }
            }
        }
        Ok(answer)
    }

    async fn resolve(&self, _: Request<v1::ResolveRequest>) -> Result<Response<v1::ResolveResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn delete(&self, _: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        Ok(Response::new(v1::DeleteResponse {}))
    }
}

type Stream<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

#[tonic::async_trait]
impl IdempotencyService for Shop {
    type WatchStream = Stream<v1::WatchResponse>;
    type SessionStream = Stream<v1::SessionResponse>;

    async fn begin(&self, _: Request<v1::BeginRequest>) -> Result<Response<v1::BeginResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn complete(
        &self,
        _: Request<v1::CompleteRequest>,
    ) -> Result<Response<v1::CompleteResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn release(&self, _: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn lookup(&self, _: Request<v1::LookupRequest>) -> Result<Response<v1::LookupResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        let messages = vec![Ok(v1::WatchResponse::default()), Ok(v1::WatchResponse::default())];
        Ok(Response::new(tokio_stream::iter(messages)))
    }

    async fn session(
        &self,
        _: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(tokio_stream::iter(Vec::new())))
    }
}

impl Shop {
    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    /// A connection to a server of its services behind a layer.
    async fn serve(&self, layer: OnceLayer) -> Channel {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = TonicServer::builder()
            .layer(layer)
            .add_service(AdminServiceServer::new(self.clone()))
            .add_service(IdempotencyServiceServer::new(self.clone()));
        tokio::spawn(router.serve_with_incoming(TcpIncoming::from(listener)));
        Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
    }
}

fn layer(client: &Client) -> OnceLayer {
    OnceLayer::grpc(client.clone()).lock_ttl(TTL)
}

fn keyed<T>(key: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("idempotency-key", key.parse().unwrap());
    request
}

async fn list(channel: &Channel, key: &'static str, asked: &str) -> Result<Response<ListResponse>, Status> {
    let message = ListRequest { namespace: asked.to_owned(), ..Default::default() };
    let mut client = AdminServiceClient::new(channel.clone());
    tokio::time::timeout(HANGS, client.list(keyed(key, message))).await.expect("no answer")
}

fn replayed(metadata: &tonic::metadata::MetadataMap) -> bool {
    metadata.get("idempotent-replayed").is_some_and(|value| value == "true")
}

/// Why the layer has refused.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("{status}"));
    assert_eq!(info.domain, "onced.dev");
    let again = matches!(status.code(), Code::Aborted | Code::Unavailable);
    assert_eq!(status.get_details_retry_info().is_some(), again, "{status}");
    (status.code(), info.reason)
}

#[tokio::test]
async fn an_answer_is_replayed() {
    let server = Server::start().await;
    let shop = Shop::default();
    let channel = shop.serve(layer(&server.client())).await;
    let (first, second) = (list(&channel, "k", "").await.unwrap(), list(&channel, "k", "").await.unwrap());
    assert_eq!((replayed(first.metadata()), replayed(second.metadata())), (false, true));
    assert_eq!(first.get_ref().next_page_token, "run 1");
    assert_eq!(first.into_inner(), second.into_inner());
    let record = lookup(&server.client(), "k").await.unwrap();
    let Record::Completed(completed) = record else { panic!("{record:?}") };
    let outcome = completed.outcome.unwrap();
    let message = ListResponse { next_page_token: "run 1".to_owned(), ..Default::default() };
    assert_eq!(outcome.content_type, "application/grpc");
    assert_eq!(outcome.response_bytes().unwrap(), &prost::Message::encode_to_vec(&message));
    assert_eq!(
        refused(list(&channel, "k", "other").await),
        (Code::FailedPrecondition, "FINGERPRINT_MISMATCH".to_owned())
    );
    assert_eq!(shop.runs(), 1);
}

#[tokio::test]
async fn errors_that_stay_are_stored_with_their_details_and_others_go_by_the_rule() {
    let server = Server::start().await;
    let shop = Shop::default();
    let channel = shop.serve(layer(&server.client())).await;
    for (code, key, stored) in [
        (Code::InvalidArgument, "a", true),
        (Code::NotFound, "b", true),
        (Code::AlreadyExists, "c", true),
        (Code::PermissionDenied, "d", true),
        (Code::FailedPrecondition, "e", true),
        (Code::OutOfRange, "f", true),
        (Code::Unimplemented, "g", true),
        (Code::Unauthenticated, "h", false),
        (Code::ResourceExhausted, "i", false),
        (Code::Internal, "j", false),
        (Code::Aborted, "l", false),
    ] {
        let asked = (code as i32).to_string();
        let first = list(&channel, key, &asked).await.unwrap_err();
        let second = list(&channel, key, &asked).await.unwrap_err();
        assert_eq!((first.code(), second.code(), second.message()), (code, code, "no"));
        assert_eq!(replayed(second.metadata()), stored, "{code:?}");
        let described = |status: &Status| status.get_details_resource_info().unwrap().description;
        assert_eq!(described(&first) == described(&second), stored, "{code:?}");
    }
    let strict = shop.serve(layer(&server.client()).on_failure(OnFailure::InDoubt)).await;
    assert_eq!(list(&strict, "m", "13").await.unwrap_err().code(), Code::Internal);
    assert_eq!(refused(list(&strict, "m", "13").await), (Code::FailedPrecondition, "IN_DOUBT".to_owned()));
    assert_eq!(list(&strict, "n", "16").await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(list(&strict, "n", "16").await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_handlers_own_word_outranks_its_status() {
    let server = Server::start().await;
    let shop = Shop::default();
    let channel = shop.serve(layer(&server.client()).on_failure(OnFailure::InDoubt)).await;
    for (run, _) in ["first", "second"].iter().enumerate() {
        let answer = list(&channel, "a", "retry").await.unwrap().into_inner();
        assert_eq!(answer.next_page_token, format!("run {}", run + 1));
    }
    for _ in 0..2 {
        let status = list(&channel, "b", "retry-error").await.unwrap_err();
        assert_eq!((status.code(), replayed(status.metadata())), (Code::NotFound, false));
    }
    for stored in [false, true] {
        let status = list(&channel, "c", "store-error").await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "run 5"));
        assert_eq!(replayed(status.metadata()), stored);
    }
}

#[tokio::test]
async fn a_handler_runs_to_its_end_when_its_caller_hangs_up() {
    let server = Server::start().await;
    let shop = Shop::default();
    let channel = shop.serve(layer(&server.client())).await;
    let asking = channel.clone();
    let first = tokio::spawn(async move { list(&asking, "k", "slow").await });
    tokio::time::timeout(HANGS, shop.begun.notified()).await.expect("it does not begin");
    first.abort();
    let hasty = shop.serve(layer(&server.client()).wait(Duration::ZERO)).await;
    assert_eq!(refused(list(&hasty, "k", "slow").await), (Code::Aborted, "REQUEST_IN_PROGRESS".to_owned()));
    shop.go_on.notify_one();
    let second = list(&channel, "k", "slow").await.unwrap();
    assert_eq!((second.get_ref().next_page_token.as_str(), replayed(second.metadata())), ("run 1", true));
}

#[tokio::test]
async fn methods_that_stream_pass_without_a_key_and_are_refused_with_one() {
    let server = Server::start().await;
    let shop = Shop::default();
    let descriptors = protox::compile(["onced/v1/idempotency_service.proto"], ["proto"]).unwrap();
    let descriptors = prost::Message::encode_to_vec(&descriptors);
    let channel = shop.serve(layer(&server.client()).descriptors(&descriptors).unwrap()).await;
    let watch = async |channel: &Channel, request| {
        IdempotencyServiceClient::new(channel.clone()).watch(request).await
    };
    let mut messages = watch(&channel, Request::new(v1::WatchRequest::default())).await.unwrap().into_inner();
    assert!(messages.message().await.unwrap().is_some());
    let invalid = (Code::InvalidArgument, "IDEMPOTENCY_KEY_INVALID".to_owned());
    assert_eq!(refused(watch(&channel, keyed("k", v1::WatchRequest::default())).await), invalid);
    assert_eq!(shop.runs(), 1);

    // Nobody has said of these that they stream: by its requests it shows before it runs, by its answers afterwards.
    let unaware = shop.serve(layer(&server.client())).await;
    let requests = tokio_stream::iter([v1::SessionRequest::default(), v1::SessionRequest::default()]);
    let session = IdempotencyServiceClient::new(unaware.clone()).session(keyed("k1", requests)).await;
    assert_eq!(refused(session), invalid);
    assert_eq!(shop.runs(), 1);
    let answer = watch(&unaware, keyed("k2", v1::WatchRequest::default())).await;
    assert_eq!(refused(answer), (Code::Internal, "RESPONSE_NOT_STORABLE".to_owned()));
    let again = watch(&unaware, keyed("k2", v1::WatchRequest::default())).await;
    assert_eq!(refused(again), (Code::FailedPrecondition, "IN_DOUBT".to_owned()));
    assert_eq!(shop.runs(), 2);
}

#[tokio::test]
async fn what_a_call_lacks_is_told() {
    let server = Server::start().await;
    let client = server.client();
    let shop = Shop::default();
    let channel = shop.serve(layer(&client).max_request_bytes(100)).await;
    let without = AdminServiceClient::new(channel.clone()).list(ListRequest::default()).await;
    assert_eq!(refused(without), (Code::InvalidArgument, "IDEMPOTENCY_KEY_MISSING".to_owned()));
    let large = list(&channel, "k", &"x".repeat(200)).await;
    assert_eq!(refused(large), (Code::ResourceExhausted, "REQUEST_TOO_LARGE".to_owned()));
    assert_eq!(shop.runs(), 0);
    assert_eq!(
        refused(list(&channel, "large", "large").await),
        (Code::Internal, "RESPONSE_NOT_STORABLE".to_owned())
    );
    let gone = Client::builder(dead_address().await).timeout(Duration::from_millis(200)).build().unwrap();
    let closed = shop.serve(layer(&gone).wait(Duration::ZERO)).await;
    assert_eq!(refused(list(&closed, "k", "").await), (Code::Unavailable, "UNAVAILABLE".to_owned()));

    // Only some methods take keys.
    let some = shop.serve(layer(&client).grpc_methods([LIST])).await;
    AdminServiceClient::new(some.clone()).delete(v1::DeleteRequest::default()).await.unwrap();
    let without = AdminServiceClient::new(some).list(ListRequest::default()).await;
    assert_eq!(refused(without), (Code::InvalidArgument, "IDEMPOTENCY_KEY_MISSING".to_owned()));
}

#[tokio::test]
async fn a_panic_gives_the_key_back_by_the_rule() {
    let server = Server::start().await;
    let shop = Shop::default();
    let channel = shop.serve(layer(&server.client()).on_failure(OnFailure::InDoubt)).await;
    list(&channel, "k", "panics").await.unwrap_err();
    let again = shop.serve(layer(&server.client())).await;
    assert_eq!(refused(list(&again, "k", "panics").await), (Code::FailedPrecondition, "IN_DOUBT".to_owned()));
}
