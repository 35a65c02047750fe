//! The watch on etcd's size. A full etcd refuses every write, so claims are refused before it comes to that:
//! those who hold one can still complete. And etcd compacts nothing by itself: growth that shows that nobody
//! does is warned of.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{GetOptions, StatusResponse};
use tokio_util::task::AbortOnDropHandle;

use super::call_error::CallError;
use super::client::{EtcdClient, RECORD_MAX_BYTES};
use crate::telemetry::metrics::{ETCD_DB_IN_USE, ETCD_DB_QUOTA, ETCD_DB_SIZE};

/// What etcd takes if it is not told a quota, in bytes.
pub const QUOTA_DEFAULT_BYTES: u64 = 2 << 30;
/// The share of the quota from which on no new claim is made, in percent. Pages that are free count as room.
const HIGH_WATER_PERCENT: u64 = 90;
/// The share below which it is made again: not at the first record that expires.
const LOW_WATER_PERCENT: u64 = 85;
/// How near the size of the file may come to the quota, in bytes, however much of it is free: etcd raises its alarm
/// on a write that could be too large for the rest, and refuses all from then on.
const FILE_RESERVE_BYTES: u64 = 2 * RECORD_MAX_BYTES as u64;
/// The share of the quota below which nobody needs to compact, in percent.
const HISTORY_PERCENT: u64 = 25;

/// How etcd's size is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeWatch {
    /// The quota of an etcd that does not tell it, in bytes: one below 3.6.
    pub quota_bytes: u64,
    /// How often to look.
    pub interval: Duration,
    /// How many revisions nobody has compacted when a warning is due.
    pub uncompacted_max: u64,
}

impl Default for SizeWatch {
    fn default() -> Self {
        Self { quota_bytes: QUOTA_DEFAULT_BYTES, interval: Duration::from_secs(5), uncompacted_max: 100_000 }
    }
}

/// Whether etcd has room. It is looked at as long as this lives.
pub(super) struct Room {
    scarce: Arc<Mutex<Option<String>>>,
    _watch: AbortOnDropHandle<()>,
}

impl Room {
    /// Starts to look. `key` is one that we may read.
    pub(super) fn watch(client: EtcdClient, key: String, settings: SizeWatch) -> Self {
        let scarce = Arc::default();
        let looks = Looks { client, key, settings, scarce: Arc::clone(&scarce), anchor: None };
        Self { scarce, _watch: AbortOnDropHandle::new(tokio::spawn(looks.go_on())) }
    }

    /// Why no new claim should be made now.
    pub(super) fn scarce(&self) -> Option<String> {
        self.scarce.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Looks {
    client: EtcdClient,
    key: String,
    settings: SizeWatch,
    scarce: Arc<Mutex<Option<String>>>,
    /// The revision whose compaction is looked for, once there is one; `i64::MAX` after the warning.
    anchor: Option<i64>,
}

impl Looks {
    async fn go_on(mut self) {
        loop {
            // Not knowing is no reason to refuse work, nor to take it again.
            if let Ok(status) = self.client.status().await {
                let size = Size::of(&status, self.settings.quota_bytes);
                size.count();
                self.note(&size);
                self.look_for_compaction(&size, status.header().map_or(0, |header| header.revision())).await;
            }
            tokio::time::sleep(self.settings.interval).await;
        }
    }

    fn note(&self, size: &Size) {
        let mut scarce = self.scarce.lock().unwrap_or_else(PoisonError::into_inner);
        let now = size.scarce(scarce.is_some());
        match (&*scarce, &now) {
            (None, Some(why)) => tracing::warn!(
                why,
                "etcd runs full: no new claims. Compact and defragment it (etcdctl compact, etcdctl defrag), \
                 switch its auto-compaction on, or raise --quota-backend-bytes; then disarm the alarm, if \
                 there is one (etcdctl alarm disarm)"
            ),
            (Some(_), None) => tracing::info!("etcd has room again: new claims are made"),
            _ => {}
        }
        *scarce = now;
    }

    /// Warns, once, when a long history is all there and takes room.
    async fn look_for_compaction(&mut self, size: &Size, revision: i64) {
        let anchor = *self.anchor.get_or_insert(revision);
        let uncompacted = revision.saturating_sub(anchor);
        if uncompacted < i64::try_from(self.settings.uncompacted_max).unwrap_or(i64::MAX)
            || !size.exceeds(HISTORY_PERCENT)
        {
            return;
        }
        let options = GetOptions::new().with_count_only().with_revision(anchor);
        match self.client.get(self.key.as_str(), Some(options)).await {
            Ok(_) => {
                tracing::warn!(
                    revisions = uncompacted,
                    in_use_bytes = size.in_use,
                    quota_bytes = size.quota,
                    "nobody compacts this etcd: it still has every revision since onced began to look, and \
                     refuses writes when it is full. Start it with --auto-compaction-mode=periodic \
                     --auto-compaction-retention=5m"
                );
                self.anchor = Some(i64::MAX);
            }
            // Compacted: go on from here, so that it is noticed when that ends.
            Err(CallError::Refused(_)) => self.anchor = Some(revision),
            Err(_) => {}
        }
    }
}

/// How large etcd is, in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Size {
    file: u64,
    in_use: u64,
    /// `None`: there is no limit.
    quota: Option<u64>,
    /// What etcd says of being full.
    alarm: Option<String>,
}

impl Size {
    fn of(status: &StatusResponse, quota_configured: u64) -> Self {
        let quota = match status.db_size_quota() {
            // Not told: a version below 3.6.
            0 => Some(quota_configured),
            quota => u64::try_from(quota).ok(),
        };
        Self {
            file: status.db_size().unsigned_abs(),
            in_use: status.raft_used_db_size().unsigned_abs(),
            quota,
            alarm: status.errors().iter().find(|error| error.contains("NOSPACE")).cloned(),
        }
    }

    fn exceeds(&self, percent: u64) -> bool {
        self.quota.is_some_and(|quota| self.in_use.saturating_mul(100) >= quota.saturating_mul(percent))
    }

    /// Why there is too little room, if it `was` scarce before, or was not.
    fn scarce(&self, was: bool) -> Option<String> {
        if let Some(alarm) = &self.alarm {
            return Some(format!("etcd raised an alarm for want of room: {}", alarm.trim()));
        }
        let quota = self.quota? >> 20;
        let percent = if was { LOW_WATER_PERCENT } else { HIGH_WATER_PERCENT };
        if self.exceeds(percent) {
            return Some(format!(
                "etcd uses {} of the {quota} MiB of its quota, and from {HIGH_WATER_PERCENT} % on no new claim \
                 is made until it is below {LOW_WATER_PERCENT} %, so that the claims under way can complete",
                self.in_use >> 20,
            ));
        }
        self.quota.is_some_and(|quota| self.file.saturating_add(FILE_RESERVE_BYTES) >= quota).then(|| {
            format!(
                "etcd's file has {} of the {quota} MiB of its quota, though {} MiB of it are free: defragment \
                 it, or it will refuse all writes",
                self.file >> 20,
                self.file.saturating_sub(self.in_use) >> 20
            )
        })
    }

    fn count(&self) {
        let bytes = |bytes: u64| bytes as f64;
        metrics::gauge!(ETCD_DB_SIZE).set(bytes(self.file));
        metrics::gauge!(ETCD_DB_IN_USE).set(bytes(self.in_use));
        metrics::gauge!(ETCD_DB_QUOTA).set(self.quota.map_or(f64::INFINITY, bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_scarce_from_nine_tenths_on_or_by_alarm() {
        const GIB: u64 = 1 << 30;
        let size = |in_use, quota| Size { file: in_use, in_use, quota, alarm: None };
        assert_eq!(size(90 * GIB - 1, Some(100 * GIB)).scarce(false), None);
        assert!(size(90 * GIB, Some(100 * GIB)).scarce(false).is_some());
        assert!(size(85 * GIB, Some(100 * GIB)).scarce(true).is_some());
        assert_eq!(size(85 * GIB - 1, Some(100 * GIB)).scarce(true), None);
        assert!(size(u64::MAX, Some(u64::MAX)).scarce(false).is_some());
        assert_eq!(size(u64::MAX, None).scarce(false), None);
        let alarm = Some("memberID:1 alarm:NOSPACE ".to_owned());
        assert!(Size { alarm, ..size(0, Some(GIB)) }.scarce(false).unwrap().contains("NOSPACE"));
        let file = |file| Size { file, ..size(0, Some(GIB)) }.scarce(false);
        assert_eq!(file(GIB - FILE_RESERVE_BYTES - 1), None);
        assert!(file(GIB - FILE_RESERVE_BYTES).unwrap().contains("defragment"));
    }
}
