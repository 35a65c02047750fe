//! Many calls on one stream, for who has so many that their cost shows: less than half of that of as many unary ones.

mod automatic;
#[cfg(test)]
mod fake;
mod stream;
#[cfg(test)]
mod tests;

use std::time::Duration;

use prost::Message as _;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

pub(crate) use self::automatic::{Carried, Ended, Sessions};
use self::stream::Stream;
use crate::error::Refusal;
use crate::server::Stub;
use crate::transport::ANSWER_MARGIN;
use crate::v1::begin_response::Result as Begun;
use crate::v1::lookup_response::Record;
use crate::v1::session_request::Call;
use crate::v1::session_response::Answer;
use crate::v1::{
    BeginRequest, CompleteRequest, CompleteResponse, LookupRequest, ReleaseRequest, RenewRequest,
    RenewResponse,
};

/// How many calls wait to be sent where a connection takes none; more wait for their turn before that.
const QUEUE: usize = 256;

/// A stream that carries calls, answered as they finish. It is shared by reference: each call is a future of its own,
/// and one that is dropped is taken back, at the server too. (A claim that was on its way by then lives until it lapses.)
///
/// Each call is sent once. One that fails without a reason of the server's may have been carried out, and can be sent
/// again with the same arguments: in a session opened anew, if this one is no longer [open](Session::is_open). Sessions
/// end when their server does, when it wants its connections to move on, and when the caller's token expires.
///
/// ```no_run
/// # async fn example(request: onced_client::v1::BeginRequest) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// let client = onced_client::Client::connect("10.0.0.1:7411")?;
/// let session = onced_client::Session::open(client.connect_to(0).await?, Duration::from_secs(10)).await?;
/// let begun = session.begin(request).await?;
/// # Ok(())
/// # }
/// ```
///
/// Dropped, it ends. That releases nothing: claims live on until they lapse.
#[derive(Debug)]
pub struct Session {
    stream: Stream,
    timeout: Duration,
    reader: JoinHandle<()>,
}

impl Session {
    /// Opens a session on a connection of [`Client::connect_to`](crate::Client::connect_to). Opening it, and each call,
    /// may take as long as `timeout`, waits that calls ask for included.
    ///
    /// # Errors
    /// What the server refused, or that it does not answer.
    pub async fn open(stub: Stub, timeout: Duration) -> Result<Self, Refusal> {
        let (stream, reader) = match tokio::time::timeout(timeout, Stream::open(stub, QUEUE)).await {
            Ok(opened) => opened.map_err(|status| Refusal::of(&status))?,
            Err(_) => return Err(no_answer(timeout)),
        };
        Ok(Self { stream, timeout, reader: tokio::spawn(reader.run()) })
    }

    /// Whether it carries calls. Once it does not, it never will again.
    pub fn is_open(&self) -> bool {
        self.stream.is_open()
    }

    /// Claims a key, or tells what became of it. A server may end the wait sooner than asked for.
    ///
    /// # Errors
    /// What the server refused, or that there is no answer. Then call again with the same request id.
    pub async fn begin(&self, request: BeginRequest) -> Result<Begun, Refusal> {
        match self.call(Call::Begin(request)).await? {
            Some(Answer::Begin(answer)) => answer.result.ok_or_else(|| unknown("Begin")),
            _ => Err(unknown("Begin")),
        }
    }

    /// Stores the outcome of a claimed key.
    ///
    /// # Errors
    /// What the server refused, or that there is no answer: then the outcome may be stored or not. Call again, or let
    /// the claim lapse; never release it.
    pub async fn complete(&self, request: CompleteRequest) -> Result<CompleteResponse, Refusal> {
        match self.call(Call::Complete(request)).await? {
            Some(Answer::Complete(answer)) => Ok(answer),
            _ => Err(unknown("Complete")),
        }
    }

    /// Keeps a claim alive, and saves a checkpoint if the request has one.
    ///
    /// # Errors
    /// What the server refused, or that there is no answer.
    pub async fn renew(&self, request: RenewRequest) -> Result<RenewResponse, Refusal> {
        match self.call(Call::Renew(request)).await? {
            Some(Answer::Renew(answer)) => Ok(answer),
            _ => Err(unknown("Renew")),
        }
    }

    /// Gives a claim back without an outcome. Never after a Complete was sent.
    ///
    /// # Errors
    /// What the server refused, or that there is no answer: then call again, or let the claim lapse.
    pub async fn release(&self, request: ReleaseRequest) -> Result<(), Refusal> {
        match self.call(Call::Release(request)).await? {
            Some(Answer::Release(_)) => Ok(()),
            _ => Err(unknown("Release")),
        }
    }

    /// Reads what is known of a key. A server may end the wait sooner than asked for.
    ///
    /// # Errors
    /// What the server refused (`RecordNotFound` if there is no record), or that there is no answer.
    pub async fn lookup(&self, request: LookupRequest) -> Result<Record, Refusal> {
        match self.call(Call::Lookup(request)).await? {
            Some(Answer::Lookup(answer)) => answer.record.ok_or_else(|| unknown("Lookup")),
            _ => Err(unknown("Lookup")),
        }
    }

    async fn call(&self, call: Call) -> Result<Option<Answer>, Refusal> {
        let answer = async { self.stream.answer(call, self.timeout, self.stream.turn().await).await };
        // The server keeps the time. One that hangs does not.
        let within = self.timeout.saturating_add(ANSWER_MARGIN);
        match tokio::time::timeout(within, answer).await {
            Ok(Ok(Some(Answer::Error(status)))) => Err(Refusal::of(&from_rpc(status))),
            Ok(answer) => answer,
            Err(_) => Err(no_answer(self.timeout)),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The status that a unary call would have ended with.
fn from_rpc(status: tonic_types::pb::Status) -> Status {
    let details = status.encode_to_vec();
    Status::with_details(Code::from(status.code), status.message, details.into())
}

fn no_answer(within: Duration) -> Refusal {
    Refusal::of(&Status::deadline_exceeded(format!("no answer within {within:?}")))
}

/// What a call ends with whose answer is of another kind, or newer than this client.
fn unreadable(call: &'static str) -> Status {
    Status::internal(crate::Error::answer_unknown(call).to_string())
}

fn unknown(call: &'static str) -> Refusal {
    Refusal::of(&unreadable(call))
}
