//! Calls to etcd: each bounded in time, and each failure told apart by what is known of the request. Nothing
//! here retries: a write sent twice could land twice.

use std::future::Future;
use std::time::Duration;

use etcd_client::{
    Client, ConnectOptions, GetOptions, GetResponse, LeaseGrantOptions, PutOptions, Txn, TxnOp,
    TxnOpResponse, TxnResponse, WatchOptions, WatchStream,
};
use tonic::Code;

use super::keyspace::PREFIX_MAX_BYTES;
use crate::record::limits::{KEY_MAX_BYTES, STORED_MAX_BYTES};
use crate::store::StoreError;

/// The most that is decoded of one answer, in bytes: four of the largest records with what surrounds them.
const DECODE_MAX_BYTES: usize = 4 * (STORED_MAX_BYTES + 4 * (KEY_MAX_BYTES + PREFIX_MAX_BYTES));
/// How often an idle connection is tried. etcd closes connections that ping it more often than every 5 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long an answer to that may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The most operations in one transaction: a limit of etcd.
pub(super) const TXN_MAX_OPS: usize = 128;

/// Why a call failed, by what is known of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallError {
    /// It never left this process, or etcd refused it: nothing was done.
    Refused(String),
    /// etcd refused the request for what it is, such as its size: nothing was done.
    Unfit(String),
    /// A put names a lease that is gone: nothing was done.
    LeaseNotFound,
    /// A lease of this id exists: nothing was done.
    LeaseExists,
    /// etcd is out of space. The write that first hits the quota gets this answer and is applied all the same.
    NoSpace(String),
    /// The answer is larger than what is decoded at once.
    TooLarge,
    /// No answer, or one that does not tell.
    Unknown(String),
}

impl CallError {
    /// The error of a call that writes no record, which did not fail for what it is.
    pub(super) fn of_read(self) -> StoreError {
        StoreError::NotApplied(self.into_text())
    }

    /// What to tell of it.
    pub(super) fn into_text(self) -> String {
        match self {
            CallError::Refused(text)
            | CallError::Unfit(text)
            | CallError::NoSpace(text)
            | CallError::Unknown(text) => text,
            CallError::LeaseNotFound => "etcd: the lease is gone".to_owned(),
            CallError::LeaseExists => "etcd: the lease exists already".to_owned(),
            CallError::TooLarge => format!("etcd's answer is larger than {DECODE_MAX_BYTES} bytes"),
        }
    }
}

/// A connection to an etcd cluster.
#[derive(Clone)]
pub(super) struct EtcdClient {
    client: Client,
    call_timeout: Duration,
}

impl EtcdClient {
    /// A client of the cluster at `endpoints` (host:port). Connects when first used, and again when needed.
    ///
    /// # Errors
    /// An endpoint that is no address.
    pub(super) async fn new(endpoints: &[String], call_timeout: Duration) -> Result<Self, String> {
        let options = ConnectOptions::new()
            .with_keep_alive(KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_connect_timeout(call_timeout)
            // A member that lost its cluster says so, instead of hanging.
            .with_require_leader(true);
        let client = Client::connect(endpoints, Some(options)).await.map_err(|error| error.to_string())?;
        Ok(Self { client, call_timeout })
    }

    /// How long a call may take.
    pub(super) fn call_timeout(&self) -> Duration {
        self.call_timeout
    }

    /// A linearizable read.
    pub(super) async fn get(
        &self,
        key: impl Into<Vec<u8>>,
        options: Option<GetOptions>,
    ) -> Result<GetResponse, CallError> {
        let mut kv = self.kv();
        self.call(kv.get(key, options)).await
    }

    /// Several linearizable reads at once, [`TXN_MAX_OPS`] at most.
    pub(super) async fn get_all(&self, gets: Vec<TxnOp>) -> Result<Vec<GetResponse>, CallError> {
        let answer = self.txn(Txn::new().and_then(gets)).await?;
        let reads = answer.op_responses().into_iter().filter_map(|response| match response {
            TxnOpResponse::Get(read) => Some(read),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
        });
        Ok(reads.collect())
    }

    /// A transaction.
    pub(super) async fn txn(&self, txn: Txn) -> Result<TxnResponse, CallError> {
        let mut kv = self.kv();
        self.call(kv.txn(txn)).await
    }

    /// A transaction that writes. Its answer is decoded however large it is, or what became of it would not be
    /// known.
    pub(super) async fn txn_write(&self, txn: Txn) -> Result<TxnResponse, CallError> {
        let mut kv = self.client.kv_client().max_decoding_message_size(TXN_MAX_OPS * DECODE_MAX_BYTES);
        self.call(kv.txn(txn)).await
    }

    /// Puts an empty key that lives as long as `lease`. Harmless to repeat.
    pub(super) async fn put_sentinel(&self, key: String, lease: i64) -> Result<(), CallError> {
        let mut kv = self.kv();
        self.call(kv.put(key, "", Some(PutOptions::new().with_lease(lease)))).await?;
        Ok(())
    }

    /// Grants the lease `id` for `seconds`.
    pub(super) async fn grant(&self, id: i64, seconds: i64) -> Result<(), CallError> {
        let mut leases = self.client.lease_client();
        self.call(leases.grant(seconds, Some(LeaseGrantOptions::new().with_id(id)))).await?;
        Ok(())
    }

    /// Opens a stream of watches with a first one. etcd answers once that one is made.
    pub(super) async fn watch(&self, key: String, options: WatchOptions) -> Result<WatchStream, CallError> {
        let mut watches = self.client.watch_client().max_decoding_message_size(DECODE_MAX_BYTES);
        self.call(watches.watch(key, Some(options))).await
    }

    fn kv(&self) -> etcd_client::KvClient {
        self.client.kv_client().max_decoding_message_size(DECODE_MAX_BYTES)
    }

    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, CallError> {
        match tokio::time::timeout(self.call_timeout, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(classify(error)),
            Err(_) => Err(CallError::Unknown(format!("etcd did not answer within {:?}", self.call_timeout))),
        }
    }
}

/// The text of a status that the transport made, and what hides in its sources: "Connection refused".
fn with_cause(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// What an error tells of its request. Doubt counts as unknown.
pub(super) fn classify(error: etcd_client::Error) -> CallError {
    let etcd_client::Error::GRpcStatus(status) = error else {
        return CallError::Unknown(format!("etcd-client: {error}"));
    };
    let text = format!("etcd: {:?}: {}", status.code(), status.message());
    if never_sent(&status) {
        return CallError::Refused(format!("etcd cannot be reached: {}", with_cause(&status)));
    }
    // How etcd's side of the connection refuses to read a request at all: an operator has lowered its limit.
    if status.code() == Code::ResourceExhausted
        && status.message().starts_with("grpc: received message larger than max")
    {
        return CallError::Unfit(text);
    }
    // Only etcd itself speaks so: the same codes also stand for broken connections.
    let Some(said) = status.message().strip_prefix("etcdserver: ") else {
        return match status.code() {
            Code::OutOfRange => CallError::TooLarge,
            _ => CallError::Unknown(text),
        };
    };
    match status.code() {
        Code::NotFound if said == "requested lease not found" => CallError::LeaseNotFound,
        Code::FailedPrecondition if said == "lease already exists" => CallError::LeaseExists,
        Code::ResourceExhausted if said == "mvcc: database space exceeded" => CallError::NoSpace(text),
        Code::InvalidArgument => CallError::Unfit(text),
        Code::NotFound
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => CallError::Refused(text),
        // Unavailable among them: etcd says so when a proposal it sent around got no answer.
        _ => CallError::Unknown(text),
    }
}

/// Whether the connection was never made, so that nothing was sent on it.
fn never_sent(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    fn of(status: Status) -> CallError {
        classify(etcd_client::Error::GRpcStatus(status))
    }

    #[test]
    fn only_what_etcd_itself_refused_counts_as_refused() {
        let refusals = [
            Status::resource_exhausted("etcdserver: too many requests"),
            Status::permission_denied("etcdserver: permission denied"),
            Status::unauthenticated("etcdserver: invalid auth token"),
        ];
        for status in refusals {
            assert!(matches!(of(status), CallError::Refused(_)));
        }
        let unfit = [
            Status::invalid_argument("etcdserver: request is too large"),
            Status::resource_exhausted("grpc: received message larger than max (1008080 vs. 624288)"),
        ];
        for status in unfit {
            assert!(matches!(of(status), CallError::Unfit(_)));
        }
        let doubts = [
            Status::unavailable("etcdserver: request timed out"),
            Status::unavailable("etcdserver: no leader"),
            Status::resource_exhausted("h2 protocol error: ENHANCE_YOUR_CALM"),
            Status::permission_denied("h2 protocol error: INADEQUATE_SECURITY"),
            Status::cancelled("Timeout expired"),
            Status::unknown("transport error"),
            Status::internal("h2 protocol error"),
        ];
        for status in doubts {
            assert!(matches!(of(status), CallError::Unknown(_)));
        }
    }

    #[test]
    fn leases_and_space_are_told_apart() {
        let gone = Status::not_found("etcdserver: requested lease not found");
        assert_eq!(of(gone), CallError::LeaseNotFound);
        let exists = Status::failed_precondition("etcdserver: lease already exists");
        assert_eq!(of(exists), CallError::LeaseExists);
        let full = Status::resource_exhausted("etcdserver: mvcc: database space exceeded");
        assert!(matches!(of(full), CallError::NoSpace(_)));
        let large = Status::out_of_range("Error, decoded message length too large: found 9, the limit is: 8");
        assert_eq!(of(large), CallError::TooLarge);
    }
}
