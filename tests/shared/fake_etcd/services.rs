//! etcd's services, at a member.

use std::pin::Pin;

use etcd_client::proto::*;
use futures_util::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::data::Space;
use super::txn::{check_size, check_space};
use super::{Effect, Member};

type Answer<T> = Result<Response<T>, Status>;
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What it says it is.
const VERSION: &str = "3.7.2";
const QUOTA_BYTES: i64 = 2 << 30;

/// The store does not call this.
fn absent<T>(what: &str) -> Answer<T> {
    panic!("{what} is not in this etcd")
}

#[tonic::async_trait]
impl PbKvService for Member {
    async fn range(&self, request: Request<PbRangeRequest>) -> Answer<PbRangeResponse> {
        let (request, member) = (request.into_inner(), self.clone());
        let answer = self.call(Effect::Read, move |data, _| {
            data.check_revision(request.revision)?;
            let header = member.header(data);
            Ok(PbRangeResponse { header, ..data.range(&request, data.revision()) })
        });
        answer.await.map(Response::new)
    }

    type RangeStreamStream = Answers<PbRangeStreamResponse>;

    async fn range_stream(&self, _: Request<PbRangeRequest>) -> Answer<Self::RangeStreamStream> {
        absent("RangeStream")
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Answer<PbPutResponse> {
        let (request, member) = (request.into_inner(), self.clone());
        let answer = self.call(Effect::Write, move |data, _| {
            check_size(&request)?;
            let nearly_full = check_space(data)?;
            data.check_lease(request.lease)?;
            let mut writing = data.write();
            writing.put(&request);
            writing.done();
            nearly_full.map_or(Ok(PbPutResponse { header: member.header(data), prev_kv: None }), Err)
        });
        answer.await.map(Response::new)
    }

    async fn delete_range(&self, _: Request<PbDeleteRequest>) -> Answer<PbDeleteResponse> {
        absent("DeleteRange outside of a transaction")
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Answer<PbTxnResponse> {
        let (request, member) = (request.into_inner(), self.clone());
        let effect = if only_reads(&request) { Effect::Read } else { Effect::Transaction(&request) };
        let txn = request.clone();
        let answer = self.call(effect, move |data, _| {
            let answer = data.txn(&txn)?;
            Ok(PbTxnResponse { header: member.header(data), ..answer })
        });
        answer.await.map(Response::new)
    }

    async fn compact(&self, request: Request<PbCompactionRequest>) -> Answer<PbCompactionResponse> {
        let (revision, member) = (request.into_inner().revision, self.clone());
        let answer = self.call(Effect::Write, move |data, _| {
            data.check_compaction(revision)?;
            data.compact(revision);
            Ok(PbCompactionResponse { header: member.header(data) })
        });
        answer.await.map(Response::new)
    }
}

fn only_reads(txn: &PbTxnRequest) -> bool {
    txn.success
        .iter()
        .chain(&txn.failure)
        .all(|op| matches!(op.request, Some(PbTxnOpRequest::RequestRange(_))))
}

#[tonic::async_trait]
impl PbLeaseService for Member {
    async fn lease_grant(&self, request: Request<PbLeaseGrantRequest>) -> Answer<PbLeaseGrantResponse> {
        let (request, member) = (request.into_inner(), self.clone());
        let answer = self.call(Effect::Write, move |data, now| {
            let ttl = data.grant(&request, now)?;
            let header = member.header(data);
            Ok(PbLeaseGrantResponse { header, id: request.id, ttl, error: String::new() })
        });
        answer.await.map(Response::new)
    }

    async fn lease_revoke(&self, request: Request<PbLeaseRevokeRequest>) -> Answer<PbLeaseRevokeResponse> {
        let (request, member) = (request.into_inner(), self.clone());
        let answer = self.call(Effect::Write, move |data, _| {
            data.revoke(request.id)?;
            Ok(PbLeaseRevokeResponse { header: member.header(data) })
        });
        answer.await.map(Response::new)
    }

    type LeaseKeepAliveStream = Answers<PbLeaseKeepAliveResponse>;

    async fn lease_keep_alive(
        &self,
        _: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Answer<Self::LeaseKeepAliveStream> {
        absent("LeaseKeepAlive")
    }

    async fn lease_time_to_live(
        &self,
        _: Request<PbLeaseTimeToLiveRequest>,
    ) -> Answer<PbLeaseTimeToLiveResponse> {
        absent("LeaseTimeToLive")
    }

    async fn lease_leases(&self, _: Request<PbLeaseLeasesRequest>) -> Answer<PbLeaseLeasesResponse> {
        absent("LeaseLeases")
    }
}

#[tonic::async_trait]
impl PbMaintenanceService for Member {
    async fn status(&self, _: Request<PbStatusRequest>) -> Answer<PbStatusResponse> {
        let member = self.clone();
        let answer = self.call(Effect::Read, move |data, _| {
            let errors = match data.space {
                Space::Full => vec!["memberID:1 alarm:NOSPACE ".to_owned()],
                Space::Enough | Space::NearlyFull => Vec::new(),
            };
            Ok(PbStatusResponse {
                header: member.header(data),
                version: VERSION.to_owned(),
                db_size_quota: QUOTA_BYTES,
                errors,
                ..PbStatusResponse::default()
            })
        });
        answer.await.map(Response::new)
    }

    async fn alarm(&self, _: Request<PbAlarmRequest>) -> Answer<PbAlarmResponse> {
        absent("Alarm")
    }

    async fn defragment(&self, _: Request<PbDefragmentRequest>) -> Answer<PbDefragmentResponse> {
        absent("Defragment")
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Answer<PbHashResponse> {
        absent("Hash")
    }

    async fn hash_kv(&self, _: Request<PbHashKvRequest>) -> Answer<PbHashKvResponse> {
        absent("HashKV")
    }

    type SnapshotStream = Answers<PbSnapshotResponse>;

    async fn snapshot(&self, _: Request<PbSnapshotRequest>) -> Answer<Self::SnapshotStream> {
        absent("Snapshot")
    }

    async fn move_leader(&self, _: Request<PbMoveLeaderRequest>) -> Answer<PbMoveLeaderResponse> {
        absent("MoveLeader")
    }

    async fn downgrade(&self, _: Request<PbDowngradeRequest>) -> Answer<PbDowngradeResponse> {
        absent("Downgrade")
    }
}
