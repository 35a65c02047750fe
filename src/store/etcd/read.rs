//! Reads of single keys, many at once: those that come while others are on their way share the next trip, and
//! those of the same key one read.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use async_trait::async_trait;
use etcd_client::{GetOptions, GetResponse, KeyValue, TxnOp};
use tokio::sync::oneshot;

use super::call_error::CallError;
use super::client::EtcdClient;
use super::queue::{Batches, Queue};
use crate::telemetry::span::{self, Span};
use crate::telemetry::trace::TraceParent;

/// The most keys that are read in one transaction.
const READS_MAX: usize = 100;
/// How many transactions are on their way at once.
const IN_FLIGHT_MAX: usize = 2;

/// What is read of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum What {
    All,
    /// All but its value.
    Presence,
}

/// The reads of a store, on their way.
pub(super) struct Reads {
    queue: Queue<Transactions>,
}

struct Transactions {
    client: EtcdClient,
}

type Outcome = Result<Option<KeyValue>, CallError>;

/// A read that somebody waits for.
struct Job {
    name: String,
    what: What,
    /// Where it stands in the trace of the call that it is for.
    place: Option<TraceParent>,
    answer: oneshot::Sender<Outcome>,
}

/// A key, and all who want to know.
struct Asked {
    name: String,
    what: What,
    answers: Vec<oneshot::Sender<Outcome>>,
}

impl Reads {
    /// No reads yet.
    pub(super) fn new(client: EtcdClient) -> Self {
        Self { queue: Queue::new(Transactions { client }, IN_FLIGHT_MAX, READS_MAX) }
    }

    /// Reads a key, linearizably: what is there after this was called.
    ///
    /// # Errors
    /// As of a transaction.
    pub(super) async fn get(&self, name: String) -> Outcome {
        self.read(name, What::All).await
    }

    /// Whether a key is there.
    ///
    /// # Errors
    /// As of a transaction.
    pub(super) async fn is_there(&self, name: String) -> Result<bool, CallError> {
        Ok(self.read(name, What::Presence).await?.is_some())
    }

    /// The revision of a key's last write; 0 if it is absent.
    ///
    /// # Errors
    /// As of a transaction.
    pub(super) async fn mod_revision(&self, name: String) -> Result<i64, CallError> {
        let read = self.read(name, What::Presence).await?;
        Ok(read.as_ref().map_or(0, KeyValue::mod_revision))
    }

    async fn read(&self, name: String, what: What) -> Outcome {
        let (answer, answered) = oneshot::channel();
        self.queue.push(Job { name, what, place: span::place(), answer });
        answered.await.unwrap_or_else(|_| Err(CallError::Unknown("the reader of the store died".to_owned())))
    }
}

#[async_trait]
impl Batches for Transactions {
    type Job = Job;

    fn is_wanted(job: &Job) -> bool {
        !job.answer.is_closed()
    }

    fn take(&self, waiting: &mut VecDeque<Job>) -> Vec<Job> {
        std::iter::from_fn(|| Self::next_wanted(waiting)).take(READS_MAX).collect()
    }

    async fn run(&self, batch: Vec<Job>) {
        let mut span = Span::within("etcd.read", batch.iter().filter_map(|job| job.place));
        span.count("onced.batch_size", batch.len());
        let asked = distinct(batch);
        let reads = match asked.as_slice() {
            [] => return,
            [one] => self.get(one).await.map(|read| vec![read]),
            many => self.client.get_all(many.iter().map(Asked::op).collect()).await,
        };
        match reads {
            Ok(reads) => {
                for (asked, mut read) in asked.into_iter().zip(reads) {
                    asked.answer(Ok(read.take_kvs().pop()));
                }
            }
            // Large records, or more of them than this etcd takes.
            Err(CallError::TooLarge | CallError::Unfit(_)) if asked.len() > 1 => self.one_by_one(asked).await,
            Err(error) => asked.into_iter().for_each(|asked| asked.answer(Err(error.clone()))),
        }
    }
}

impl Transactions {
    /// Each by itself, so that none fails another. But when etcd stops answering they do not wait for that one
    /// after the other.
    async fn one_by_one(&self, asked: Vec<Asked>) {
        let mut asked = asked.into_iter();
        while let Some(one) = asked.next() {
            let read = self.get(&one).await;
            let silence = read.as_ref().err().filter(|error| !error.is_refusal()).cloned();
            one.answer(read.map(|mut read| read.take_kvs().pop()));
            if let Some(error) = silence {
                return asked.for_each(|other| other.answer(Err(error.clone())));
            }
        }
    }

    async fn get(&self, asked: &Asked) -> Result<GetResponse, CallError> {
        self.client.get(asked.name.as_str(), asked.what.options()).await
    }
}

impl What {
    fn options(self) -> Option<GetOptions> {
        match self {
            What::All => None,
            What::Presence => Some(GetOptions::new().with_keys_only()),
        }
    }
}

impl Asked {
    fn op(&self) -> TxnOp {
        TxnOp::get(self.name.as_str(), self.what.options())
    }

    fn answer(mut self, outcome: Outcome) {
        let last = self.answers.pop();
        for answer in self.answers {
            // Whoever asked may have left.
            let _ = answer.send(outcome.clone());
        }
        let _ = last.map(|answer| answer.send(outcome));
    }
}

/// Each key once.
fn distinct(batch: Vec<Job>) -> Vec<Asked> {
    let mut places = HashMap::new();
    let mut asked: Vec<Asked> = Vec::with_capacity(batch.len());
    for Job { name, what, answer, .. } in batch {
        match places.entry((name.clone(), what)) {
            Entry::Occupied(place) => {
                let place: usize = *place.get();
                asked[place].answers.push(answer);
            }
            Entry::Vacant(place) => {
                place.insert(asked.len());
                asked.push(Asked { name, what, answers: vec![answer] });
            }
        }
    }
    asked
}
