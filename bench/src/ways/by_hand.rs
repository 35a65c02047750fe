//! What one would write by hand against etcd, with the client that the etcd store uses.

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp, TxnResponse};
use onced::record::limits::{LOCK_TTL_DEFAULT, RETENTION_DEFAULT};

use super::{Claim, Way};
use crate::options::Options;

/// How a pair is done.
#[derive(Clone, Copy)]
pub enum Recipe {
    /// What one writes first: a lock that ends by its lease, an outcome that ends by another.
    LeasePerKey,
    /// Two puts: no claim is exclusive, no outcome safe, nothing ends.
    Puts,
    /// Two transactions, each checked, and nothing ends.
    Txns,
}

pub struct ByHand {
    clients: Vec<Client>,
    prefix: String,
    recipe: Recipe,
}

impl ByHand {
    pub async fn connect(
        options: &Options,
        endpoints: &str,
        prefix: &str,
        recipe: Recipe,
    ) -> anyhow::Result<Self> {
        let mut clients = Vec::new();
        for _ in 0..options.channels {
            clients.push(Client::connect(endpoints.split(',').collect::<Vec<_>>(), None).await?);
        }
        Ok(Self { clients, prefix: prefix.to_owned(), recipe })
    }

    fn client(&self, caller: usize) -> &Client {
        &self.clients[caller % self.clients.len()]
    }

    fn name(&self, key: &str) -> String {
        format!("/{}/{key}", self.prefix)
    }

    async fn grant(&self, caller: usize, time: std::time::Duration) -> anyhow::Result<i64> {
        let seconds = i64::try_from(time.as_secs())?;
        Ok(self.client(caller).lease_client().grant(seconds, None).await?.id())
    }

    /// Puts a value if `expected` holds, else reads what is there; the revision of the write.
    async fn put_if(
        &self,
        caller: usize,
        name: String,
        expected: Compare,
        value: impl Into<Vec<u8>>,
        lease: i64,
    ) -> anyhow::Result<u64> {
        let put = TxnOp::put(name.as_str(), value, Some(PutOptions::new().with_lease(lease)));
        let txn = Txn::new().when([expected]).and_then([put]).or_else([TxnOp::get(name, None)]);
        let answer = self.client(caller).kv_client().txn(txn).await?;
        anyhow::ensure!(answer.succeeded(), "somebody else wrote a key of ours");
        revision(&answer)
    }
}

fn revision(answer: &TxnResponse) -> anyhow::Result<u64> {
    let header = answer.header().context("an answer without a header")?;
    Ok(u64::try_from(header.revision())?)
}

/// What says who holds a key: about as long as what the store writes.
fn claim_value(key: &str) -> String {
    format!("owner=bench request={key}")
}

#[async_trait]
impl Way for ByHand {
    async fn begin(&self, caller: usize, key: &str) -> anyhow::Result<Claim> {
        let name = self.name(key);
        let lease = match self.recipe {
            Recipe::LeasePerKey => self.grant(caller, LOCK_TTL_DEFAULT).await?,
            Recipe::Txns => 0,
            Recipe::Puts => {
                self.client(caller).kv_client().put(name, claim_value(key), None).await?;
                return Ok(Claim::default());
            }
        };
        let absent = Compare::create_revision(name.as_str(), CompareOp::Equal, 0);
        let token = self.put_if(caller, name, absent, claim_value(key), lease).await?;
        Ok(Claim { token, lease })
    }

    async fn complete(&self, caller: usize, key: &str, claim: Claim, outcome: Bytes) -> anyhow::Result<()> {
        let name = self.name(key);
        let retention = match self.recipe {
            Recipe::LeasePerKey => self.grant(caller, RETENTION_DEFAULT).await?,
            Recipe::Txns => 0,
            Recipe::Puts => {
                self.client(caller).kv_client().put(name, outcome, None).await?;
                return Ok(());
            }
        };
        let ours = Compare::mod_revision(name.as_str(), CompareOp::Equal, i64::try_from(claim.token)?);
        self.put_if(caller, name, ours, outcome, retention).await?;
        if claim.lease != 0 {
            self.client(caller).lease_client().revoke(claim.lease).await?;
        }
        Ok(())
    }

    async fn outcome(&self, key: &str) -> anyhow::Result<Bytes> {
        let mut read = self.client(0).kv_client().get(self.name(key), None).await?;
        let kv = read.take_kvs().pop().context("the key is absent")?;
        Ok(kv.value().to_vec().into())
    }
}
