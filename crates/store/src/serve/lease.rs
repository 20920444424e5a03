//! The Lease service.

use std::sync::Arc;

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Served, error, key, limits};
use crate::embedded::leases::MAX_TTL_SECONDS;
use crate::etcdserverpb::lease_server::Lease;
use crate::etcdserverpb::{self as pb};
use crate::{Backend, LeaseId, StoreError};

/// Lifetimes go by whole seconds, rounded up: a lease with half a second left is not shown as ended.
fn seconds(milliseconds: u64) -> i64 {
    milliseconds.div_ceil(1000) as i64
}

#[tonic::async_trait]
impl Lease for Arc<Served> {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let request = request.into_inner();
        // A lease lasts a second at least.
        let ttl = u64::try_from(request.ttl).unwrap_or(0).max(1);
        if ttl > MAX_TTL_SECONDS {
            return Err(error::lease_too_long());
        }
        let granted = match request.id {
            0 => self.store.grant_lease(ttl).await,
            id => self.store.grant_lease_as(LeaseId(id), ttl).await,
        };
        let id = match granted {
            Err(StoreError::Invalid(_)) => return Err(error::lease_exists()),
            other => self.noted(other)?.0,
        };
        Ok(Response::new(pb::LeaseGrantResponse {
            header: Some(self.header_now()),
            id,
            ttl: ttl as i64,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        self.store.revoke_lease(LeaseId(request.get_ref().id)).await.map_err(error::status)?;
        Ok(Response::new(pb::LeaseRevokeResponse { header: Some(self.header_now()) }))
    }

    type LeaseKeepAliveStream = ReceiverStream<Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let mut requests = request.into_inner();
        let (answers, stream) = mpsc::channel(limits::KEEP_ALIVE_BACKLOG);
        let served = self.clone();
        tokio::spawn(async move {
            loop {
                let request = tokio::select! {
                    request = requests.next() => request,
                    () = served.stopped() => return,
                };
                let Some(Ok(request)) = request else { return };
                let answer = served.keep_alive(LeaseId(request.id)).await;
                let failed = answer.is_err();
                if answers.send(answer).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let pb::LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let lease = LeaseId(id);
        let look = move |leases: &crate::embedded::leases::Leases, now: u64| {
            let term = leases.term(lease)?;
            let keys = if keys { leases.keys(lease).map(|key| key::to_bytes(key)).collect() } else { Vec::new() };
            Some((seconds(term.expires_ms.saturating_sub(now)), seconds(term.ttl_ms), keys))
        };
        let found = self.store.look(look).await.map_err(error::status)?;
        // A lease that is not there has -1 seconds left, and is no error.
        let (ttl, granted_ttl, keys) = found.unwrap_or((-1, 0, Vec::new()));
        Ok(Response::new(pb::LeaseTimeToLiveResponse { header: Some(self.header_now()), id, ttl, granted_ttl, keys }))
    }

    async fn lease_leases(
        &self,
        _: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let terms = self.store.look(|leases, _| leases.terms()).await.map_err(error::status)?;
        let mut ids: Vec<i64> = terms.into_iter().map(|term| term.id.0).collect();
        ids.sort_unstable();
        let leases = ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        Ok(Response::new(pb::LeaseLeasesResponse { header: Some(self.header_now()), leases }))
    }
}

impl Served {
    async fn keep_alive(&self, lease: LeaseId) -> Result<pb::LeaseKeepAliveResponse, Status> {
        let term = self.store.look(move |leases, _| leases.term(lease)).await.map_err(error::status)?;
        let ttl = match self.store.keep_alive_lease(lease).await {
            Ok(()) => term.map_or(0, |term| seconds(term.ttl_ms)),
            // A lease that has ended is told by a time of 0.
            Err(StoreError::LeaseNotFound(_)) => 0,
            Err(other) => return Err(error::status(other)),
        };
        Ok(pb::LeaseKeepAliveResponse { header: Some(self.header_now()), id: lease.0, ttl })
    }
}
