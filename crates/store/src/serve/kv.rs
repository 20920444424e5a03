//! The KV service: reads from memory, writes through the store's writer.

use std::sync::Arc;

use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::key::{self};
use super::txn::{self, Course};
use super::{Served, convert, error, range};
use crate::etcdserverpb::kv_server::Kv;
use crate::etcdserverpb::{self as pb};
use crate::{Backend, Op, Revision, Txn, TxnOutcome};

#[tonic::async_trait]
impl Kv for Arc<Served> {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let (mut response, current) = range::read(&self.store, request.get_ref()).await?;
        response.header = Some(self.header(current));
        Ok(Response::new(response))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let put = request.into_inner();
        let size = txn::check_put(&put)?;
        self.check_size(size)?;
        let prev_kv = if put.prev_kv || put.ignore_value || put.ignore_lease {
            let (response, _) = self.decide(size, move |course| course.put(&put)).await?;
            return Ok(Response::new(self.with_header(response, |r| &mut r.header)));
        } else {
            None
        };
        let key = key::stored(&put.key);
        // A copy of its own: the request's bytes are a view into a buffer that would live as long as the value.
        let op = Op::Put { key, value: Bytes::copy_from_slice(&put.value), lease: convert::lease(put.lease) };
        let outcome = self.store.txn(Txn { compares: Vec::new(), ops: vec![op] }).await;
        let revision = committed(self.noted(outcome)?);
        Ok(Response::new(pb::PutResponse { header: Some(self.header(revision)), prev_kv }))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let delete = request.into_inner();
        let size = txn::check_delete(&delete)?;
        let (response, _) = self.decide(size, move |course| course.delete(&delete)).await?;
        Ok(Response::new(self.with_header(response, |r| &mut r.header)))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let txn = request.into_inner();
        let size = txn::check(&txn, self.store.options().max_request_bytes)?;
        let (response, _) = self.decide(size, move |course| course.txn(&txn)).await?;
        Ok(Response::new(self.with_header(response, |r| &mut r.header)))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let status = self.store.status().map_err(error::status)?;
        let revision = Revision::try_from(request.get_ref().revision).unwrap_or(0);
        if revision <= status.compacted {
            return Err(error::compacted());
        }
        self.store.compact(revision).await.map_err(error::status)?;
        Ok(Response::new(pb::CompactionResponse { header: Some(self.header_now()) }))
    }
}

fn committed(outcome: TxnOutcome) -> Revision {
    match outcome {
        TxnOutcome::Committed { revision } | TxnOutcome::Conflict { revision, .. } => revision,
    }
}

impl Served {
    fn check_size(&self, size: usize) -> Result<(), Status> {
        if size > self.store.options().max_request_bytes { Err(error::too_large()) } else { Ok(()) }
    }

    /// Completes the header an answer got with its revision.
    fn with_header<T>(&self, mut response: T, header: impl Fn(&mut T) -> &mut Option<pb::ResponseHeader>) -> T {
        let header = header(&mut response);
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = Some(self.header(revision as Revision));
        response
    }

    /// Works a request out on the writer's state, and waits until what it wrote, and what it saw, is on disk.
    async fn decide<T: Send + 'static>(
        &self,
        size: usize,
        work: impl FnOnce(&mut Course<'_>) -> Result<T, Status> + Send + 'static,
    ) -> Result<(T, Revision), Status> {
        let (answer, mut answered) = tokio::sync::oneshot::channel();
        let outcome = self
            .store
            .decide(size, move |state| {
                let mut course = Course::on(state);
                let result = work(&mut course);
                let effects = if result.is_ok() { course.effects() } else { Vec::new() };
                // A caller that no longer waits does not care for its answer.
                _ = answer.send(result);
                effects
            })
            .await;
        let revision = committed(self.noted(outcome)?);
        // The store answers after the work was done.
        let response = answered.try_recv().map_err(|_| error::stopped())??;
        Ok((response, revision))
    }
}
