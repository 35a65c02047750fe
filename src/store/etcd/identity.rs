//! Whether an endpoint still serves the store that was opened. It may have come to serve another one: it is a
//! member of another cluster, or it lost its data and began anew. A claim made there would be a second one.
//!
//! The marker of the prefix holds an id of the store. It is read when an endpoint is connected to and by every
//! probe, and every transaction that writes a record compares it. And each answer tells its cluster, and a revision
//! that never goes back.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

use etcd_client::{
    Client, GetResponse, LeaseGrantResponse, PutResponse, ResponseHeader, StatusResponse, TxnResponse,
    WatchStream,
};

use super::call_error::{CallError, classify};

/// Which store it is.
pub(super) struct Identity {
    /// The name of the marker.
    name: String,
    /// What it holds, from when the store is open.
    marker: OnceLock<Vec<u8>>,
    /// The cluster that answered first.
    cluster: OnceLock<u64>,
    /// The newest revision that was told.
    revision: AtomicI64,
}

/// What every answer of etcd tells of where it comes from.
pub(super) trait Answer {
    /// Whether a quorum agreed on it, so that it is no older than any answer before.
    const AGREED: bool = true;

    /// `None` if it does not tell.
    fn origin(&self) -> Option<Origin>;
}

/// Where an answer comes from.
pub(super) struct Origin {
    cluster: u64,
    /// The revision of all that is there.
    revision: i64,
}

impl Identity {
    /// That of the store whose marker has this name, before it is known.
    pub(super) fn new(name: String) -> Self {
        Self { name, marker: OnceLock::new(), cluster: OnceLock::new(), revision: AtomicI64::new(0) }
    }

    /// The name of the marker.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Settles what the marker holds.
    pub(super) fn settle(&self, marker: Vec<u8>) {
        // Once settled, it stays.
        let _ = self.marker.set(marker);
    }

    pub(super) fn is_settled(&self) -> bool {
        self.marker.get().is_some()
    }

    /// The newest revision that was told so far.
    pub(super) fn revision(&self) -> i64 {
        self.revision.load(Ordering::Relaxed)
    }

    /// Checks an answer to a request that was sent when `before` was the newest revision.
    ///
    /// # Errors
    /// Why it comes from somewhere else.
    pub(super) fn check<A: Answer>(&self, answer: &A, before: i64) -> Result<(), String> {
        let Some(Origin { cluster, revision }) = answer.origin() else { return Ok(()) };
        if *self.cluster.get_or_init(|| cluster) != cluster {
            return Err("it belongs to another cluster".to_owned());
        }
        if A::AGREED && revision < before {
            return Err(format!(
                "its revision went back from {before} to {revision}, so its data were lost or restored"
            ));
        }
        self.revision.fetch_max(revision, Ordering::Relaxed);
        Ok(())
    }

    /// Reads the marker.
    pub(super) async fn read(&self, client: &Client) -> Result<GetResponse, etcd_client::Error> {
        // Linearizable: a member that lost its cluster, or cannot write its disk, does not answer.
        client.kv_client().get(self.name.as_str(), None).await
    }

    /// Checks the marker as it was read.
    ///
    /// # Errors
    /// Why it is that of another store.
    pub(super) fn recognise(&self, read: &GetResponse) -> Result<(), String> {
        match (self.marker.get(), read.kvs().first()) {
            (None, _) => Ok(()),
            (Some(ours), Some(found)) if found.value() == ours => Ok(()),
            (Some(_), Some(_)) => Err(format!("{} is that of another store", self.name)),
            (Some(_), None) => Err(format!("{} is gone, so its data were removed or lost", self.name)),
        }
    }

    /// Checks whom a connection to `address` has reached.
    ///
    /// # Errors
    /// `Foreign` if that is another store; else as of a read.
    pub(super) async fn verify(&self, client: &Client, address: &str) -> Result<(), CallError> {
        let before = self.revision();
        let read = self.read(client).await.map_err(|error| classify(error).at(address))?;
        let checked = self.check(&read, before).and_then(|()| self.recognise(&read));
        checked.map_err(|why| CallError::Foreign(foreign(address, &why)))
    }
}

/// What to tell of an endpoint that serves another store.
pub(super) fn foreign(address: &str, why: &str) -> String {
    format!("etcd at {address} does not have the store that was opened: {why}")
}

impl From<&ResponseHeader> for Origin {
    fn from(header: &ResponseHeader) -> Self {
        Self { cluster: header.cluster_id(), revision: header.revision() }
    }
}

impl Answer for GetResponse {
    fn origin(&self) -> Option<Origin> {
        self.header().map(Origin::from)
    }
}

impl Answer for TxnResponse {
    fn origin(&self) -> Option<Origin> {
        self.header().map(Origin::from)
    }
}

impl Answer for PutResponse {
    fn origin(&self) -> Option<Origin> {
        self.header().map(Origin::from)
    }
}

impl Answer for LeaseGrantResponse {
    fn origin(&self) -> Option<Origin> {
        self.header().map(Origin::from)
    }
}

impl Answer for StatusResponse {
    const AGREED: bool = false;

    fn origin(&self) -> Option<Origin> {
        self.header().map(Origin::from)
    }
}

impl Answer for WatchStream {
    const AGREED: bool = false;

    fn origin(&self) -> Option<Origin> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Read(u64, i64);

    impl Answer for Read {
        fn origin(&self) -> Option<Origin> {
            Some(Origin { cluster: self.0, revision: self.1 })
        }
    }

    struct Status(u64, i64);

    impl Answer for Status {
        const AGREED: bool = false;

        fn origin(&self) -> Option<Origin> {
            Some(Origin { cluster: self.0, revision: self.1 })
        }
    }

    #[test]
    fn an_answer_of_another_cluster_or_of_the_past_is_refused() {
        let identity = Identity::new("m".to_owned());
        assert_eq!(identity.check(&Read(1, 5), identity.revision()), Ok(()));
        assert!(identity.check(&Read(2, 6), identity.revision()).unwrap_err().contains("cluster"));
        assert!(identity.check(&Status(2, 6), identity.revision()).unwrap_err().contains("cluster"));
        assert!(identity.check(&Read(1, 4), identity.revision()).unwrap_err().contains("from 5 to 4"));
        // A member that is behind.
        assert_eq!(identity.check(&Status(1, 4), identity.revision()), Ok(()));
        // Asked before the other was answered.
        let before = identity.revision();
        assert_eq!(identity.check(&Read(1, 9), before), Ok(()));
        assert_eq!(identity.check(&Read(1, 8), before), Ok(()));
        assert_eq!(identity.revision(), 9);
    }
}
