//! What one writes against PostgreSQL: a claim is an insert that nothing may stand against, and its completion an
//! update that checks who holds it.

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use onced::record::limits::{LOCK_TTL_DEFAULT, RETENTION_DEFAULT};
use tokio_postgres::NoTls;

use super::{Claim, POLL, Way, Work};
use crate::options::Options;
use crate::programs::postgres::Postgres;

const TABLE: &str = "
CREATE TABLE records (
    key text PRIMARY KEY,
    token bigint NOT NULL,
    locked_until timestamptz NOT NULL,
    expires_at timestamptz,
    outcome bytea
)";
/// Claims a key that is new, or whose claim has lapsed.
const BEGIN: &str = "
INSERT INTO records (key, token, locked_until) VALUES ($1, $2, now() + $3 * interval '1 second')
ON CONFLICT (key) DO UPDATE SET token = excluded.token, locked_until = excluded.locked_until
    WHERE records.outcome IS NULL AND records.locked_until < now()
RETURNING token";
const COMPLETE: &str = "
UPDATE records SET outcome = $3, expires_at = now() + $4 * interval '1 second'
WHERE key = $1 AND token = $2 AND outcome IS NULL";
const OUTCOME: &str = "SELECT outcome FROM records WHERE key = $1";

pub struct PostgresWay {
    pool: Pool,
}

impl PostgresWay {
    pub async fn connect(options: &Options, postgres: &Postgres) -> anyhow::Result<Self> {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(postgres.config(), NoTls, recycling);
        let pool = Pool::builder(manager).max_size(options.pool.get()).build()?;
        pool.get().await?.batch_execute(TABLE).await?;
        Ok(Self { pool })
    }

    /// Claims a key that nobody holds or has completed.
    async fn claim(&self, key: &str) -> anyhow::Result<Option<Claim>> {
        let client = self.pool.get().await?;
        let insert = client.prepare_cached(BEGIN).await?;
        let token = i64::from(fastrand::u32(..));
        let row = client.query_opt(&insert, &[&key, &token, &LOCK_TTL_DEFAULT.as_secs_f64()]).await?;
        let Some(row) = row else { return Ok(None) };
        let token: i64 = row.try_get(0)?;
        Ok(Some(Claim { token: u64::try_from(token)?, lease: 0 }))
    }

    /// The outcome of a key, if it has one.
    async fn completed(&self, key: &str) -> anyhow::Result<Option<Bytes>> {
        let client = self.pool.get().await?;
        let select = client.prepare_cached(OUTCOME).await?;
        let Some(row) = client.query_opt(&select, &[&key]).await? else { return Ok(None) };
        let outcome: Option<Vec<u8>> = row.try_get(0)?;
        Ok(outcome.map(Bytes::from))
    }
}

#[async_trait]
impl Way for PostgresWay {
    async fn begin(&self, _caller: usize, key: &str) -> anyhow::Result<Claim> {
        self.claim(key).await?.context("somebody else wrote a key of ours")
    }

    async fn complete(&self, _caller: usize, key: &str, claim: Claim, outcome: Bytes) -> anyhow::Result<()> {
        let client = self.pool.get().await?;
        let update = client.prepare_cached(COMPLETE).await?;
        let (token, retention) = (i64::try_from(claim.token)?, RETENTION_DEFAULT.as_secs_f64());
        let updated = client.execute(&update, &[&key, &token, &&outcome[..], &retention]).await?;
        anyhow::ensure!(updated == 1, "a claim of ours is not there");
        Ok(())
    }

    async fn outcome(&self, key: &str) -> anyhow::Result<Bytes> {
        self.completed(key).await?.context("the key is not completed")
    }

    async fn share(&self, caller: usize, key: &str, work: &Work) -> anyhow::Result<(bool, Bytes)> {
        loop {
            if let Some(claim) = self.claim(key).await? {
                tokio::time::sleep(work.time).await;
                self.complete(caller, key, claim, work.outcome.clone()).await?;
                return Ok((true, work.outcome.clone()));
            }
            if let Some(outcome) = self.completed(key).await? {
                return Ok((false, outcome));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
