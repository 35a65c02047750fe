//! Calls to etcd, each bounded in time. A read may be sent to several endpoints, a write never is once it may have
//! left: sent twice, it could land twice.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Client, GetOptions, GetResponse, LeaseGrantOptions, PutOptions, StatusResponse, Txn, TxnOp,
    TxnOpResponse, TxnResponse, WatchOptions, WatchStream,
};
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::advice::Advice;
use super::attempt::{Failure, Fault, Stage};
use super::call_error::CallError;
use super::dial::Dial;
use super::endpoints::{Endpoints, Line};
use super::identity::{Answer, Identity};
use super::keyspace::{Keyspace, PREFIX_MAX_BYTES};
use crate::record::limits::{KEY_MAX_BYTES, STORED_MAX_BYTES};

/// The largest record in etcd with what surrounds it, in bytes.
pub(super) const RECORD_MAX_BYTES: usize = STORED_MAX_BYTES + 4 * (KEY_MAX_BYTES + PREFIX_MAX_BYTES);
/// The most that is decoded of the answer to a read, in bytes: four of the largest records.
pub(super) const DECODE_MAX_BYTES: usize = 4 * RECORD_MAX_BYTES;
/// The same for a write: more than it can bring, since an answer not understood leaves a write's outcome unknown.
const DECODE_WRITE_MAX_BYTES: usize = (TXN_MAX_OPS + 1) * RECORD_MAX_BYTES;
/// The most operations in one transaction: a limit of etcd.
pub(super) const TXN_MAX_OPS: usize = 128;

/// What a call is, which decides whether it may be sent again, and what its answer says of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It reads what a quorum agreed on: it may be sent again, and who answers serves.
    Read,
    /// It asks a member alone: it may be sent again. One that lost the others still answers.
    Ask,
    /// It writes: it may not be sent again, once it may have left. Who answers serves.
    Write,
}

/// Calls to an etcd cluster. Cheap to clone.
#[derive(Clone)]
pub(super) struct EtcdClient {
    endpoints: Arc<Endpoints>,
    call_timeout: Duration,
    advice: Arc<Advice>,
    /// Runs as long as there is a client.
    _prober: Arc<AbortOnDropHandle<()>>,
}

impl EtcdClient {
    /// A client of the cluster at `endpoints` (host:port each, one at least), which probes them by reading
    /// the marker of the store. Connects when first used, and again when needed.
    pub(super) fn new(endpoints: &[String], dial: Dial, call_timeout: Duration, keyspace: &Keyspace) -> Self {
        let advice = Arc::new(Advice::new(keyspace, dial.login.as_ref()));
        // With a choice, a connection that is slow to be made leaves time to try another.
        let connect_timeout = if endpoints.len() > 1 { call_timeout / 3 } else { call_timeout };
        let identity = Identity::new(keyspace.meta());
        let endpoints = Arc::new(Endpoints::new(endpoints, dial, connect_timeout, identity));
        let prober = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&endpoints).probe()));
        Self { endpoints, call_timeout, advice, _prober: Arc::new(prober) }
    }

    /// From now on calls only go where the marker holds this.
    pub(super) fn settle(&self, marker: Vec<u8>) {
        self.endpoints.settle(marker);
    }

    /// Looks at each endpoint now, as it is done again and again.
    pub(super) async fn probe(&self) {
        self.endpoints.probe_once().await;
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
        let key = key.into();
        self.call(Kind::Read, |client| {
            let (mut kv, key, options) = (kv(client, DECODE_MAX_BYTES), key.clone(), options.clone());
            async move { kv.get(key, options).await }
        })
        .await
    }

    /// Several linearizable reads at once, [`TXN_MAX_OPS`] at most.
    pub(super) async fn get_all(&self, gets: Vec<TxnOp>) -> Result<Vec<GetResponse>, CallError> {
        let answer = self.send(Kind::Read, DECODE_MAX_BYTES, Txn::new().and_then(gets)).await?;
        let reads = answer.op_responses().into_iter().filter_map(|response| match response {
            TxnOpResponse::Get(read) => Some(read),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
        });
        Ok(reads.collect())
    }

    /// A transaction. It is taken to write.
    pub(super) async fn txn(&self, txn: Txn) -> Result<TxnResponse, CallError> {
        self.send(Kind::Write, DECODE_MAX_BYTES, txn).await
    }

    /// A transaction that writes, and whose answer is read however large it is.
    pub(super) async fn txn_write(&self, txn: Txn) -> Result<TxnResponse, CallError> {
        self.send(Kind::Write, DECODE_WRITE_MAX_BYTES, txn).await
    }

    async fn send(&self, kind: Kind, decode_max: usize, txn: Txn) -> Result<TxnResponse, CallError> {
        self.call(kind, |client| {
            let (mut kv, txn) = (kv(client, decode_max), txn.clone());
            async move { kv.txn(txn).await }
        })
        .await
    }

    /// Puts an empty key that lives as long as `lease`. Harmless to repeat.
    pub(super) async fn put_sentinel(&self, key: String, lease: i64) -> Result<(), CallError> {
        let put = self.call(Kind::Write, |client| {
            let (mut kv, key) = (kv(client, DECODE_MAX_BYTES), key.clone());
            async move { kv.put(key, "", Some(PutOptions::new().with_lease(lease))).await }
        });
        put.await.map(|_| ())
    }

    /// Grants the lease `id` for `seconds`.
    pub(super) async fn grant(&self, id: i64, seconds: i64) -> Result<(), CallError> {
        let grant = self.call(Kind::Write, |client| {
            let mut leases = client.lease_client();
            async move { leases.grant(seconds, Some(LeaseGrantOptions::new().with_id(id))).await }
        });
        grant.await.map(|_| ())
    }

    /// Opens a stream of watches with a first one. etcd answers once that one is made. The token ends when
    /// the stream's endpoint is given up: then it is to be opened again.
    pub(super) async fn watch(
        &self,
        key: String,
        options: WatchOptions,
    ) -> Result<(WatchStream, CancellationToken), CallError> {
        let logs_in = self.endpoints.logs_in();
        let (stream, line) = self
            .call_at(Kind::Ask, |client| {
                let mut watches = client.watch_client().max_decoding_message_size(DECODE_MAX_BYTES);
                let (mut kv, key, options) = (client.kv_client(), key.clone(), options.clone());
                async move {
                    if logs_in {
                        // A stream keeps the token it was opened with, and says too late that it had expired.
                        kv.get(key.as_str(), Some(GetOptions::new().with_count_only())).await?;
                    }
                    watches.watch(key, Some(options)).await
                }
            })
            .await?;
        Ok((stream, line.gone()))
    }

    /// How the member that calls go to is.
    pub(super) async fn status(&self) -> Result<StatusResponse, CallError> {
        self.call(Kind::Ask, ask_status).await
    }

    /// How each member is, by its address.
    pub(super) async fn statuses(&self) -> Vec<(String, Result<StatusResponse, CallError>)> {
        let ask = async |line: Line| {
            let mut stage = Stage::Connecting;
            let asked = self.endpoints.attempt(&line, &mut stage, ask_status);
            let status = match tokio::time::timeout(self.call_timeout, asked).await {
                Ok(status) => status.map_err(|failure| failure.error),
                Err(_) => Err(stage.lost(self.late(&line, self.call_timeout))),
            };
            (self.endpoints.address(&line).to_owned(), status)
        };
        join_all(self.endpoints.lines().into_iter().map(ask)).await
    }

    async fn call<T: Answer, F: Future<Output = Result<T, etcd_client::Error>>>(
        &self,
        kind: Kind,
        make: impl Fn(&Client) -> F,
    ) -> Result<T, CallError> {
        self.call_at(kind, make).await.map(|(answer, _)| answer)
    }

    /// Sends a call to the current endpoint, and to the others as far as that is harmless, until one answers
    /// or the time is up.
    async fn call_at<T: Answer, F: Future<Output = Result<T, etcd_client::Error>>>(
        &self,
        kind: Kind,
        make: impl Fn(&Client) -> F,
    ) -> Result<(T, Line), CallError> {
        let mut tries = Tries { tried: Vec::new(), stage: Stage::Connecting, failures: Vec::new() };
        let done = match tokio::time::timeout(self.call_timeout, self.try_each(kind, make, &mut tries)).await
        {
            Ok(done) => done,
            Err(_) => {
                self.endpoints.doubt();
                let late = tries.tried.last().map(|line| self.late(line, self.call_timeout));
                tries.failures.extend(late.clone());
                Err(tries.stage.lost(late.unwrap_or_default()))
            }
        };
        // One endpoint alone does not tell what is wrong with a cluster.
        let all = |last: String| if tries.failures.len() > 1 { tries.failures.join("; ") } else { last };
        done.map_err(|error| error.retold(|last| self.advice.after(all(last))))
    }

    async fn try_each<T: Answer, F: Future<Output = Result<T, etcd_client::Error>>>(
        &self,
        kind: Kind,
        make: impl Fn(&Client) -> F,
        tries: &mut Tries,
    ) -> Result<(T, Line), CallError> {
        let mut suspects = Vec::new();
        let mut last = CallError::Unreachable("there is no etcd endpoint".to_owned());
        while let Some(line) = self.endpoints.next(&tries.tried) {
            // With a choice, the first endpoint is not given all the time that a read has.
            let bounded = kind != Kind::Write && self.endpoints.several() && tries.tried.is_empty();
            tries.tried.push(line.clone());
            let bound = if bounded { self.call_timeout / 2 } else { self.call_timeout };
            let attempt = self.endpoints.attempt(&line, &mut tries.stage, &make);
            let Failure { error, fault } = match tokio::time::timeout(bound, attempt).await {
                Ok(Ok(answer)) => {
                    if kind != Kind::Ask {
                        self.endpoints.is_well(&line);
                        for suspect in &suspects {
                            let why = "another endpoint answered a read that it did not".to_owned();
                            self.endpoints.give_up(suspect, CallError::Unreachable(why));
                        }
                    }
                    return Ok((answer, line));
                }
                Ok(Err(failure)) => failure,
                Err(_) => Failure { error: tries.stage.lost(self.late(&line, bound)), fault: Fault::Likely },
            };
            tries.failures.push(error.clone().into_text());
            match fault {
                Fault::None => {}
                Fault::Likely => {
                    self.endpoints.doubt();
                    suspects.push(line);
                }
                Fault::Certain => self.endpoints.give_up(&line, error.clone()),
            }
            let again = match &error {
                CallError::Unreachable(_) | CallError::Foreign(_) => true,
                CallError::Unknown(_) => kind != Kind::Write,
                _ => false,
            };
            if !again {
                return Err(error);
            }
            // The gravest is told.
            if !matches!(last, CallError::Foreign(_)) {
                last = error;
            }
        }
        Err(last)
    }

    fn late(&self, line: &Line, bound: Duration) -> String {
        format!("etcd at {} did not answer within {bound:?}", self.endpoints.address(line))
    }
}

/// Where a call was tried, and how far it came at the last of these.
struct Tries {
    tried: Vec<Line>,
    stage: Stage,
    /// What became of those that failed.
    failures: Vec<String>,
}

fn kv(client: &Client, decode_max: usize) -> etcd_client::KvClient {
    client.kv_client().max_decoding_message_size(decode_max)
}

fn ask_status(client: &Client) -> impl Future<Output = Result<StatusResponse, etcd_client::Error>> + use<> {
    let mut maintenance = client.maintenance_client();
    async move { maintenance.status().await }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::etcd::dial::Network;

    #[tokio::test]
    async fn a_write_that_cannot_leave_is_tried_at_each_endpoint() {
        // Nothing listens there any more.
        let refusing =
            || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let addresses = [refusing(), refusing()];
        let dial = Dial { network: Network::system(), tls: None, login: None };
        let keyspace = Keyspace::new("k").unwrap();
        let client = EtcdClient::new(&addresses, dial, Duration::from_secs(60), &keyspace);
        let refused = client.txn_write(Txn::new()).await;
        let Err(CallError::Unreachable(text)) = refused else { panic!("{refused:?}") };
        assert!(addresses.iter().all(|address| text.contains(address)), "{text}");
    }
}
