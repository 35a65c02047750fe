//! The states of a key, one after the other.

use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Status, Streaming};

use crate::client::Client;
use crate::error::Error;
use crate::server::Lane;
use crate::transport::Attempts;
use crate::v1::idempotency_service_client::IdempotencyServiceClient;
use crate::v1::lookup_response::Record;
use crate::v1::watch_response::Record as Watched;
use crate::v1::{WatchRequest, WatchResponse};

/// The states of a key from [`Client::watch`].
#[derive(Debug)]
pub struct Watch {
    client: Client,
    request: WatchRequest,
    stream: Option<Streaming<WatchResponse>>,
    /// The token that it was opened with.
    token: Option<MetadataValue<Ascii>>,
    completed: bool,
}

impl Watch {
    pub(crate) fn new(client: Client, request: WatchRequest) -> Self {
        Self { client, request, stream: None, token: None, completed: false }
    }

    /// The state now, then each time the latest state after changes; none after `Completed`. A stream that
    /// was opened again repeats the state.
    ///
    /// # Errors
    /// `RecordNotFound` if there is no record, any longer or at all; [`Error::Unavailable`] if the stream
    /// could not be opened again within the client's timeout. The watch can be asked again after it.
    pub async fn next(&mut self) -> Result<Option<Record>, Error> {
        if self.completed {
            return Ok(None);
        }
        let client = self.client.clone();
        let (transport, patience) = (client.transport(), client.timeout());
        // A quiet stream may break after any time, so the patience is counted from the break.
        let mut attempts = None;
        loop {
            let index = transport.current();
            match self.read(index).await {
                Ok(state) => {
                    let record = known(state.record.ok_or(Error::answer_unknown("Watch"))?);
                    self.completed = matches!(record, Record::Completed(_));
                    return Ok(Some(record));
                }
                Err(status) => {
                    self.stream = None;
                    if transport.renewed(&status, self.token.as_ref()) {
                        continue;
                    }
                    let new = || Attempts::new(transport.clock().now(), patience);
                    transport.pause(index, attempts.get_or_insert_with(new), &status).await?;
                }
            }
        }
    }

    /// The next message, of a stream from the server at `index` if none is open.
    async fn read(&mut self, index: usize) -> Result<WatchResponse, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let channel = self.client.transport().channel(index, Lane::Waiting);
                let mut service = IdempotencyServiceClient::new(channel);
                let mut request = Request::new(self.request.clone());
                self.token = self.client.transport().sign(&mut request);
                let opened = service.watch(request);
                let opened = tokio::time::timeout(self.client.timeout(), opened).await;
                let stream =
                    opened.map_err(|_| Status::deadline_exceeded("the watch was not opened in time"))??;
                self.stream.insert(stream.into_inner())
            }
        };
        // The end without an outcome is a server that went away politely.
        stream.message().await?.ok_or_else(|| Status::unavailable("the server ended the watch"))
    }
}

/// The state as Lookup has it: one type for those who read both.
fn known(record: Watched) -> Record {
    match record {
        Watched::Completed(completed) => Record::Completed(completed),
        Watched::InProgress(in_progress) => Record::InProgress(in_progress),
        Watched::InDoubt(in_doubt) => Record::InDoubt(in_doubt),
        Watched::Available(available) => Record::Available(available),
    }
}
