//! What fuzzing enters here: requests, as bytes.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use onced_client::v1;
use prost::Message;
use tokio::runtime::Runtime;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service as _;

use super::convert::request;
use super::failure::Failure;
use super::{Limits, Live, Settings, routes};
use crate::clock::Clock;
use crate::config::Policy;
use crate::coordinator::{self, Coordinator};
use crate::record::limits;
use crate::record::{Begin, Command, Key, Namespace, Record, RecordKey, Resolution, Timestamp, decide};
use crate::store::{Expected, Loaded, Page, RecordStore, Revision, StoreError, Swapped, Watch};

const SERVICE: &str = "/onced.v1.IdempotencyService";
const ADMIN: &str = "/onced.v1.AdminService";

/// One request, chosen by the first byte, of the rest: refused with every field told, or within every limit.
pub fn request(data: &[u8]) {
    let Some((&which, message)) = data.split_first() else { return };
    match which % 9 {
        0 => check(message, |it| {
            request::begin(it, &Policy::default()).map(|(key, begin, _)| begun(&key, begin))
        }),
        1 => check(message, |it| request::complete(it, &Policy::default()).map(|of| commanded(&of))),
        2 => check(message, |it| request::renew(it).map(|of| commanded(&of))),
        3 => check(message, |it| request::release(it).map(|of| commanded(&of))),
        4 => check(message, |it| request::lookup(it).map(|(key, _)| named(&key))),
        5 => check(message, |it: v1::WatchRequest| request::watch(&it).map(|key| named(&key))),
        6 => check(message, |it: v1::ListRequest| request::list(&it).map(drop)),
        7 => check(message, |it| request::resolve(it, &Policy::default()).map(|of| commanded(&of))),
        _ => check(message, |it: v1::DeleteRequest| request::delete(&it).map(|of| commanded(&of))),
    }
}

fn check<Q: Message + Default>(message: &[u8], convert: impl Fn(Q) -> Result<(), Failure>) {
    let Ok(decoded) = Q::decode(Bytes::copy_from_slice(message)) else { return };
    if let Err(failure) = convert(decoded) {
        let Failure::Invalid(violations) = &failure else { panic!("{failure:?}") };
        assert!(!violations.is_empty());
        let told = failure.to_rpc_status();
        assert_eq!(Code::from_i32(told.code), Code::InvalidArgument);
        assert!(told.encoded_len() < 4_096, "an error of {} bytes is no header", told.encoded_len());
    }
}

fn named(key: &RecordKey) {
    assert!(Namespace::new(key.namespace.as_str()).is_some() && Key::new(key.key.as_str()).is_some());
}

fn begun(key: &RecordKey, begin: Begin) {
    named(key);
    assert!((limits::LOCK_TTL_MIN..=limits::LOCK_TTL_MAX).contains(&begin.lock_ttl));
    retained(begin.retention);
    assert!(begin.owner.len() <= limits::OWNER_MAX_BYTES);
    // It can be decided on an absent key without an overflow, whatever the durations are.
    decide(&Command::Begin(begin), None, Timestamp::from_micros(i64::MAX));
}

fn retained(retention: Duration) {
    assert!((limits::RETENTION_MIN..=limits::RETENTION_MAX).contains(&retention));
}

fn commanded((key, command): &(RecordKey, Command)) {
    named(key);
    let (token, kept) = match command {
        Command::Begin(_) => panic!("a Begin from another request"),
        Command::Complete { token, retention, .. }
        | Command::Resolve { token, resolution: Resolution::Outcome { retention, .. } } => {
            (token, *retention)
        }
        Command::Renew { token, checkpoint } => {
            let fits = |bytes: usize| bytes <= limits::CHECKPOINT_MAX_BYTES;
            assert!(checkpoint.as_ref().is_none_or(|it| it.sequence > 0 && fits(it.data.len())));
            (token, None)
        }
        Command::Release { token, reason, .. } => {
            assert!(reason.len() <= limits::REASON_MAX_BYTES);
            (token, None)
        }
        Command::Resolve { token, resolution: Resolution::Retry } | Command::Delete { token, .. } => {
            (token, None)
        }
    };
    assert!(token.0 > 0);
    kept.into_iter().for_each(retained);
}

/// Requests to begin with: one valid one of each kind.
pub fn requests() -> Vec<Vec<u8>> {
    let messages = valid();
    (0..).zip(messages).map(|(which, message)| [&[which][..], &message].concat()).collect()
}

/// In the order of `request`, and of the paths of `wire` but for the session's.
fn valid() -> [Vec<u8>; 9] {
    let (namespace, key, fencing_token) = (|| "orders".to_owned(), || "order-1".to_owned(), 1);
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 1_000_000 });
    let outcome = || {
        let result = Some(v1::outcome::Result::Response(Bytes::from_static(b"done")));
        let metadata = [("by".to_owned(), "me".to_owned())].into();
        Some(v1::Outcome { result, content_type: "text/plain".to_owned(), metadata })
    };
    let checkpoint = Some(v1::Checkpoint { sequence: 3, data: Bytes::from_static(b"half") });
    [
        v1::BeginRequest {
            namespace: namespace(),
            key: key(),
            request_id: "67e55044-10b1-426f-9247-bb680e5fe0c8".to_owned(),
            fingerprint: Bytes::from_static(b"digest"),
            owner: "host-1".to_owned(),
            lock_ttl: seconds(30),
            wait: seconds(0),
            retention: seconds(3_600),
            on_lapse: 2,
        }
        .encode_to_vec(),
        v1::CompleteRequest {
            namespace: namespace(),
            key: key(),
            fencing_token,
            outcome: outcome(),
            retention: seconds(60),
        }
        .encode_to_vec(),
        v1::RenewRequest { namespace: namespace(), key: key(), fencing_token, checkpoint }.encode_to_vec(),
        v1::ReleaseRequest {
            namespace: namespace(),
            key: key(),
            fencing_token,
            disposition: 2,
            reason: "gave up".to_owned(),
        }
        .encode_to_vec(),
        v1::LookupRequest { namespace: namespace(), key: key(), wait: seconds(0) }.encode_to_vec(),
        v1::WatchRequest { namespace: namespace(), key: key() }.encode_to_vec(),
        v1::ListRequest {
            namespace: namespace(),
            state: 3,
            page_size: 10,
            page_token: "16f72646572730061".to_owned(),
        }
        .encode_to_vec(),
        v1::ResolveRequest {
            namespace: namespace(),
            key: key(),
            fencing_token,
            resolution: outcome().map(v1::resolve_request::Resolution::Outcome),
            retention: None,
        }
        .encode_to_vec(),
        v1::DeleteRequest { namespace: namespace(), key: key(), fencing_token, force: true }.encode_to_vec(),
    ]
}

/// Each method, in the order of `valid`, and the session last.
const PATHS: [(&str, &str); 10] = [
    (SERVICE, "Begin"),
    (SERVICE, "Complete"),
    (SERVICE, "Renew"),
    (SERVICE, "Release"),
    (SERVICE, "Lookup"),
    (SERVICE, "Watch"),
    (ADMIN, "List"),
    (ADMIN, "Resolve"),
    (ADMIN, "Delete"),
    (SERVICE, "Session"),
];

/// A server without a network, and a runtime to ask it on. Both last: to build them takes longer than a call.
static SERVER: LazyLock<Mutex<(Runtime, Routes)>> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { panic!("no runtime") };
    let _within = runtime.enter();
    let coordinator =
        Coordinator::new(Arc::new(Forgetful), Clock::system(), coordinator::Settings::default());
    let limits = Limits::new(&Settings::default());
    let routes = routes(coordinator, Live::default(), limits);
    drop(_within);
    Mutex::new((runtime, routes.prepare()))
});

/// A body, as it is on the wire, to the method that the first byte chooses: answered with a status that has a
/// reason unless it is OK.
pub fn wire(data: &[u8]) {
    let Some((&which, body)) = data.split_first() else { return };
    let (service, method) = PATHS[usize::from(which) % PATHS.len()];
    let request = http::Request::post(format!("{service}/{method}"))
        .header("content-type", "application/grpc")
        .body(Body::new(Full::new(Bytes::copy_from_slice(body))));
    let Ok(request) = request else { panic!("no request") };
    let mut server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    let (runtime, routes) = &mut *server;
    let answered = runtime.block_on(async {
        let answering = async {
            let Ok(response) = routes.call(request).await;
            let early = Status::from_header_map(response.headers());
            // A watch lasts, and nothing changes here.
            if method == "Watch" {
                return early;
            }
            let Ok(body) = response.into_body().collect().await else { panic!("the answer breaks off") };
            early.or_else(|| body.trailers().and_then(Status::from_header_map))
        };
        tokio::time::timeout(Duration::from_secs(20), answering).await
    });
    match answered {
        Ok(Some(status)) => assert!(status.code() == Code::Ok || !status.details().is_empty(), "{status:?}"),
        Ok(None) => assert_eq!(method, "Watch", "no status"),
        Err(_) => panic!("it hangs"),
    }
}

/// Bodies to begin with: each request alone, and all that a session takes on one.
pub fn wires() -> Vec<Vec<u8>> {
    let framed = |message: &[u8]| {
        let length = u32::try_from(message.len()).unwrap_or_default().to_be_bytes();
        [&[0], &length[..], message].concat()
    };
    let mut bodies: Vec<_> =
        (0..).zip(valid()).map(|(which, message)| [&[which], &framed(&message)[..]].concat()).collect();
    let mut session = vec![9];
    // As the calls stand in SessionRequest: the id, then the message with the number of its kind.
    for (id, message) in (1..).zip(valid()).take(5) {
        let length = u8::try_from(message.len()).unwrap_or_default();
        session.extend(framed(&[&[8, id, (id + 2) << 3 | 2, length][..], &message].concat()));
    }
    session.extend(framed(&[8, 1, 8 << 3 | 2, 0]));
    bodies.push(session);
    bodies
}

/// A store that takes everything and keeps nothing, so that no call depends on those before.
struct Forgetful;

#[async_trait]
impl RecordStore for Forgetful {
    async fn load(&self, _: &RecordKey) -> Result<Option<Loaded>, StoreError> {
        Ok(None)
    }

    async fn swap(
        &self,
        _: &RecordKey,
        expected: Expected,
        _: Option<&Record>,
    ) -> Result<Swapped, StoreError> {
        Ok(if expected == Expected::Absent { Swapped::Done(Revision(1)) } else { Swapped::Conflict(None) })
    }

    async fn watch(&self, _: &RecordKey) -> Result<Watch, StoreError> {
        Err(StoreError::NotApplied("nothing ever changes".to_owned()))
    }

    async fn scan(&self, _: &Namespace, _: Option<&Key>, _: usize) -> Result<Page, StoreError> {
        Ok(Page { records: Vec::new(), next: None })
    }
}
