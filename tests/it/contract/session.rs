//! What is a session's own: order, ids, cancelling, and the ways it ends.

use onced_client::v1::session_request::Call;
use onced_client::v1::session_response::Answer;
use onced_client::v1::{SessionRequest, SessionResponse};
use tokio::sync::mpsc::UnboundedSender;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Streaming};

use super::*;
use crate::support::caller::{raw_session, rpc_status};

fn call(id: u64, call: Call) -> SessionRequest {
    SessionRequest { id, timeout: None, call: Some(call) }
}

fn cancel(id: u64) -> SessionRequest {
    call(id, Call::Cancel(v1::CancelCall {}))
}

async fn next(answers: &mut Streaming<SessionResponse>) -> (u64, Answer) {
    let SessionResponse { id, answer } = answers.message().await.unwrap().expect("an answer, not the end");
    (id, answer.expect("an answer that holds something"))
}

#[track_caller]
fn error((id, answer): (u64, Answer), of: u64, code: Code, reason: &str) -> pb::ErrorInfo {
    assert_eq!(id, of);
    let Answer::Error(status) = answer else { panic!("no error, but {answer:?}") };
    assert_refused::<()>(Err(status), code, reason)
}

/// A session with a call that waits for a key somebody holds: the call has the id 1.
async fn with_waiter(
    on: &Fixture,
) -> (UnboundedSender<SessionRequest>, Streaming<SessionResponse>, v1::Claim) {
    let claim = on.claim("held").await;
    let (calls, answers) = raw_session(&on.server).await;
    calls.send(call(1, Call::Begin(patient("held")))).unwrap();
    (calls, answers, claim)
}

#[tokio::test]
async fn calls_are_answered_as_they_finish() {
    let on = Fixture::new(Way::Unary).await;
    let (calls, mut answers, claim) = with_waiter(&on).await;
    calls.send(call(2, Call::Renew(renew("held", claim.fencing_token)))).unwrap();
    assert!(matches!(next(&mut answers).await, (2, Answer::Renew(_))));
    calls.send(call(3, Call::Complete(complete("held", claim.fencing_token, b"done")))).unwrap();
    let mut rest = [next(&mut answers).await, next(&mut answers).await];
    rest.sort_by_key(|(id, _)| *id);
    assert!(matches!(rest, [(1, Answer::Begin(_)), (3, Answer::Complete(_))]), "{rest:?}");
}

#[tokio::test]
async fn a_cancelled_call_is_answered_so_and_leaves_its_place_in_the_queue() {
    let on = Fixture::new(Way::Unary).await;
    let (calls, mut answers, claim) = with_waiter(&on).await;
    calls.send(cancel(99)).unwrap();
    calls.send(cancel(1)).unwrap();
    error(next(&mut answers).await, 1, Code::Cancelled, "CANCELLED");
    // The id is free again, and nobody is left who would get the released claim.
    on.caller.release(release("held", claim.fencing_token, v1::Disposition::Retry)).await.unwrap();
    calls.send(call(1, Call::Lookup(lookup("held")))).unwrap();
    let (1, Answer::Lookup(told)) = next(&mut answers).await else { panic!("not the lookup") };
    assert!(matches!(told.record, Some(v1::lookup_response::Record::Available(_))), "{told:?}");
}

#[tokio::test]
async fn an_id_in_use_is_an_error_of_the_second_call_alone() {
    let on = Fixture::new(Way::Unary).await;
    let (calls, mut answers, claim) = with_waiter(&on).await;
    calls.send(call(1, Call::Lookup(lookup("held")))).unwrap();
    let info = error(next(&mut answers).await, 1, Code::InvalidArgument, "CALL_ID_IN_USE");
    assert_eq!((info.metadata["field"].as_str(), info.metadata["sent"].as_str()), ("id", "1"));
    on.caller.complete(complete("held", claim.fencing_token, b"done")).await.unwrap();
    assert!(matches!(next(&mut answers).await, (1, Answer::Begin(_))));
}

#[tokio::test]
async fn a_message_without_a_call_is_refused_and_the_session_goes_on() {
    let on = Fixture::new(Way::Unary).await;
    let (calls, mut answers) = raw_session(&on.server).await;
    calls.send(SessionRequest { id: 4, timeout: None, call: None }).unwrap();
    error(next(&mut answers).await, 4, Code::InvalidArgument, "CALL_REQUIRED");
    calls.send(call(5, Call::Begin(begin("a")))).unwrap();
    assert!(matches!(next(&mut answers).await, (5, Answer::Begin(_))));
}

#[tokio::test]
async fn too_many_open_calls_are_shed_and_the_open_ones_stay() {
    let settings = rpc::Settings { max_session_calls: 1, ..rpc::Settings::default() };
    let on = Fixture::with(Way::Unary, settings).await;
    let (calls, mut answers, claim) = with_waiter(&on).await;
    calls.send(call(2, Call::Lookup(lookup("held")))).unwrap();
    let info = error(next(&mut answers).await, 2, Code::Unavailable, "OVERLOADED");
    assert_eq!(info.metadata["limit"], "max_session_calls");
    on.caller.complete(complete("held", claim.fencing_token, b"done")).await.unwrap();
    assert!(matches!(next(&mut answers).await, (1, Answer::Begin(_))));
    calls.send(call(3, Call::Lookup(lookup("held")))).unwrap();
    assert!(matches!(next(&mut answers).await, (3, Answer::Lookup(_))));
}

#[tokio::test]
async fn far_more_calls_than_there_are_turns_are_all_answered() {
    let settings = rpc::Settings { max_session_calls: 2, ..rpc::Settings::default() };
    let on = Fixture::with(Way::Unary, settings).await;
    let (calls, mut answers) = raw_session(&on.server).await;
    for id in 0..500 {
        calls.send(call(id, Call::Lookup(lookup("absent")))).unwrap();
    }
    let mut ids: Vec<u64> = Vec::new();
    for _ in 0..500 {
        ids.push(next(&mut answers).await.0);
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..500).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_client_that_has_no_more_calls_still_gets_its_answers() {
    let on = Fixture::new(Way::Unary).await;
    let (calls, mut answers, claim) = with_waiter(&on).await;
    drop(calls);
    on.caller.complete(complete("held", claim.fencing_token, b"done")).await.unwrap();
    assert!(matches!(next(&mut answers).await, (1, Answer::Begin(_))));
    assert!(answers.message().await.unwrap().is_none(), "then the stream ends well");
}

#[tokio::test]
async fn a_drain_answers_open_calls_and_then_closes() {
    let on = Fixture::new(Way::Unary).await;
    let (calls, mut answers, _) = with_waiter(&on).await;
    // The waiter is in its place once a later call has been answered.
    calls.send(call(2, Call::Lookup(lookup("held")))).unwrap();
    assert_eq!(next(&mut answers).await.0, 2);
    on.server.begin_stop();
    error(next(&mut answers).await, 1, Code::Unavailable, "DRAINING");
    let end = rpc_status(&answers.message().await.unwrap_err());
    assert_refused::<()>(Err(end), Code::Unavailable, "DRAINING");
    on.server.stop().await;
}

#[tokio::test]
async fn a_message_that_cannot_be_decoded_ends_the_session_after_its_answers() {
    let on = Fixture::new(Way::Unary).await;
    let claim = on.claim("held").await;
    // A Begin is no SessionRequest: its first field is of another type.
    let (calls, sent) = tokio::sync::mpsc::unbounded_channel();
    let mut grpc = tonic::client::Grpc::with_origin(on.server.connect().await, on.server.origin());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<Raw, SessionResponse>::default();
    let path = "/onced.v1.IdempotencyService/Session".parse().unwrap();
    let request = tonic::Request::new(UnboundedReceiverStream::new(sent));
    let mut answers = grpc.streaming(request, path, codec).await.unwrap().into_inner();
    let open = call(1, Call::Begin(patient("held"))).encode_to_vec();
    calls.send(Raw(open)).unwrap();
    calls.send(Raw(begin("x").encode_to_vec())).unwrap();
    on.caller.complete(complete("held", claim.fencing_token, b"done")).await.unwrap();
    assert!(matches!(next(&mut answers).await, (1, Answer::Begin(_))));
    let end = rpc_status(&answers.message().await.unwrap_err());
    assert_refused::<()>(Err(end), Code::InvalidArgument, "REQUEST_MALFORMED");
}

/// Any message at all: its encoding, kept as it is.
#[derive(Clone, Debug, Default, PartialEq)]
struct Raw(Vec<u8>);

impl Message for Raw {
    fn encode_raw(&self, buffer: &mut impl bytes::BufMut) {
        buffer.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: prost::encoding::WireType,
        buffer: &mut impl bytes::Buf,
        context: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        let _ = (tag, wire_type, buffer, context);
        unreachable!("it is only sent")
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

#[tokio::test]
async fn a_session_ends_at_its_own_deadline() {
    let on = Fixture::new(Way::Unary).await;
    let (_calls, sent) = tokio::sync::mpsc::unbounded_channel();
    let mut request = tonic::Request::new(UnboundedReceiverStream::new(sent));
    request.set_timeout(Duration::from_millis(300));
    let mut answers = on.client.clone().session(request).await.unwrap().into_inner();
    let end = rpc_status(&answers.message().await.unwrap_err());
    assert_refused::<()>(Err(end), Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
}

/// How a caller goes away while its Begin is at the store.
enum Leave {
    Cancel,
    EndSession,
    DropUnary,
}

/// A claim that is won when nobody is there any more is given back: long before its lock would lapse.
async fn given_back(leave: Leave) {
    let on = Fixture::new(Way::Unary).await;
    let request = v1::BeginRequest { lock_ttl: seconds(3_600), ..begin("a") };
    on.store.hold_writes(true);
    let before = on.store.trips();
    match leave {
        Leave::DropUnary => {
            let mut client = on.client.clone();
            let calling = tokio::spawn(async move { client.begin(request).await });
            on.store.reached(before + 1).await;
            calling.abort();
            let _ = calling.await;
        }
        Leave::Cancel => {
            let (calls, mut answers) = raw_session(&on.server).await;
            calls.send(call(1, Call::Begin(request))).unwrap();
            on.store.reached(before + 1).await;
            calls.send(cancel(1)).unwrap();
            error(next(&mut answers).await, 1, Code::Cancelled, "CANCELLED");
        }
        Leave::EndSession => {
            let (calls, answers) = raw_session(&on.server).await;
            calls.send(call(1, Call::Begin(request))).unwrap();
            on.store.reached(before + 1).await;
            drop((calls, answers));
        }
    }
    // Time for the server to notice that its caller has left.
    tokio::time::sleep(Duration::from_millis(200)).await;
    on.store.hold_writes(false);
    let next = tokio::time::timeout(Duration::from_secs(30), on.caller.begin(patient("a")));
    let next = claim_of(next.await.expect("the claim is not given back").unwrap());
    assert!(!next.resumed);
}

#[tokio::test]
async fn a_claim_won_after_its_unary_caller_left_is_given_back() {
    given_back(Leave::DropUnary).await;
}

#[tokio::test]
async fn a_claim_won_after_its_call_was_cancelled_is_given_back() {
    given_back(Leave::Cancel).await;
}

#[tokio::test]
async fn a_claim_won_after_its_session_broke_is_given_back() {
    given_back(Leave::EndSession).await;
}

#[tokio::test]
async fn a_session_that_ends_releases_nothing() {
    let on = Fixture::new(Way::Unary).await;
    let (calls, mut answers) = raw_session(&on.server).await;
    calls.send(call(1, Call::Begin(begin("a")))).unwrap();
    let (1, Answer::Begin(answer)) = next(&mut answers).await else { panic!("not the begin") };
    let claim = claim_of(answer);
    drop((calls, answers));
    tokio::time::sleep(Duration::from_millis(100)).await;
    in_progress_of(on.caller.begin(begin("a")).await.unwrap());
    on.caller.complete(complete("a", claim.fencing_token, b"done")).await.unwrap();
}
