//! The Maintenance and Cluster services: what a lone member is asked about itself, and its state as one stream.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{API_VERSION, Served, error, limits};
use crate::etcdserverpb::alarm_request::AlarmAction;
use crate::etcdserverpb::cluster_server::Cluster;
use crate::etcdserverpb::maintenance_server::Maintenance;
use crate::etcdserverpb::{self as pb, AlarmType};
use crate::{Backend, Revision, prefix_end};

/// Keys hashed at a time, so that the store is not held for long.
const HASH_PAGE_KEYS: usize = 1000;

#[tonic::async_trait]
impl Maintenance for Arc<Served> {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let request = request.into_inner();
        let raised = match request.action() {
            AlarmAction::Deactivate => self.full.swap(false, Ordering::Relaxed),
            AlarmAction::Get | AlarmAction::Activate => self.full.load(Ordering::Relaxed),
        };
        let mut alarms = Vec::new();
        if raised && request.alarm() != AlarmType::Corrupt {
            alarms.push(pb::AlarmMember { member_id: self.member, alarm: AlarmType::Nospace.into() });
        }
        Ok(Response::new(pb::AlarmResponse { header: Some(self.header_now()), alarms }))
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let status = self.store.status().map_err(error::status)?;
        let errors = match self.full.load(Ordering::Relaxed) {
            true => vec!["NOSPACE".to_owned()],
            false => Vec::new(),
        };
        Ok(Response::new(pb::StatusResponse {
            header: Some(self.header(status.revision)),
            version: API_VERSION.to_owned(),
            db_size: status.log_bytes as i64,
            leader: self.member,
            raft_index: status.revision,
            raft_term: super::TERM,
            raft_applied_index: status.revision,
            errors,
            db_size_in_use: status.live_bytes as i64,
            is_learner: false,
            storage_version: API_VERSION.to_owned(),
            db_size_quota: self.store.options().max_database_bytes as i64,
            downgrade_info: None,
        }))
    }

    /// A log has no holes: what is superseded goes by itself, whole segments at a time.
    async fn defragment(&self, _: Request<pb::DefragmentRequest>) -> Result<Response<pb::DefragmentResponse>, Status> {
        Ok(Response::new(pb::DefragmentResponse { header: Some(self.header_now()) }))
    }

    async fn hash(&self, _: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        let (hash, revision, _) = self.hash_at(0).await?;
        Ok(Response::new(pb::HashResponse { header: Some(self.header(revision)), hash }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        let (hash, revision, at) = self.hash_at(request.get_ref().revision).await?;
        let compacted = self.store.status().map_err(error::status)?.compacted;
        Ok(Response::new(pb::HashKvResponse {
            header: Some(self.header(revision)),
            hash,
            compact_revision: compacted as i64,
            hash_revision: at as i64,
        }))
    }

    type SnapshotStream = ReceiverStream<Result<pb::SnapshotResponse, Status>>;

    async fn snapshot(&self, _: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let permit = self.snapshots.clone().try_acquire_owned().map_err(|_| error::too_many_requests())?;
        let (pieces, stream) = mpsc::channel(limits::SNAPSHOT_BACKLOG);
        let served = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(status) = served.send_snapshot(&pieces, permit) {
                // A client that is gone does not care.
                _ = pieces.blocking_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        if request.get_ref().target_id != self.member {
            return Err(error::bad_transferee());
        }
        Ok(Response::new(pb::MoveLeaderResponse { header: Some(self.header_now()) }))
    }
}

#[tonic::async_trait]
impl Cluster for Arc<Served> {
    async fn member_list(&self, _: Request<pb::MemberListRequest>) -> Result<Response<pb::MemberListResponse>, Status> {
        let member = pb::Member {
            id: self.member,
            name: "nauplius".to_owned(),
            // It has no peers; clients only look at the other list.
            peer_ur_ls: Vec::new(),
            client_ur_ls: self.client_urls.clone(),
            is_learner: false,
        };
        Ok(Response::new(pb::MemberListResponse { header: Some(self.header_now()), members: vec![member] }))
    }
}

impl Served {
    /// A checksum of all keys at a revision, with the newest revision and the one that was read.
    async fn hash_at(&self, revision: i64) -> Result<(u32, Revision, Revision), Status> {
        let mut hasher = crc32fast::Hasher::new();
        let end = prefix_end("");
        let (mut at, mut start) = (Revision::try_from(revision).unwrap_or(0), String::new());
        loop {
            let page = self.store.range(&start, &end, HASH_PAGE_KEYS, Some(at)).await.map_err(error::status)?;
            at = page.revision;
            for kv in &page.items {
                for word in
                    [kv.key.len() as u64, kv.value.len() as u64, kv.create_revision, kv.mod_revision, kv.version]
                {
                    hasher.update(&word.to_le_bytes());
                }
                hasher.update(kv.key.as_bytes());
                hasher.update(&kv.value);
            }
            match page.items.last() {
                Some(last) if page.more => start = format!("{}\0", last.key),
                _ => return Ok((hasher.finalize(), page.current_revision, at)),
            }
            // Other requests get their turn.
            tokio::task::yield_now().await;
        }
    }

    /// Saves the state beside the store in a file of etcd's, and sends it with its checksum.
    fn send_snapshot(
        &self,
        pieces: &mpsc::Sender<Result<pb::SnapshotResponse, Status>>,
        _permit: OwnedSemaphorePermit,
    ) -> Result<(), Status> {
        let number = self.saves.fetch_add(1, Ordering::Relaxed);
        let path = self.store.dir().join(format!("outgoing-{number}"));
        let io = |error: std::io::Error| Status::unavailable(format!("etcdserver: snapshot: {error}"));
        let (revision, size) = self.store.save_for_etcd(&path).map_err(error::status)?;
        let file = File::open(&path);
        // Open, it needs no name; nothing is left behind whatever happens.
        let removed = std::fs::remove_file(&path);
        let (mut file, ()) = (file.map_err(io)?, removed.map_err(io)?);
        // Clients know by the length that a checksum follows: whole pages, and what is no page.
        let mut remaining = size + Sha256::output_size() as u64;
        let mut digest = Sha256::new();
        let send = |blob: Bytes, remaining: u64| {
            let response = pb::SnapshotResponse {
                header: Some(self.header(revision)),
                remaining_bytes: remaining,
                blob,
                version: API_VERSION.to_owned(),
            };
            pieces.blocking_send(Ok(response)).is_ok()
        };
        let mut read = 0;
        while read < size {
            let mut piece = vec![0; limits::SNAPSHOT_PIECE_BYTES.min((size - read) as usize)];
            file.read_exact(&mut piece).map_err(io)?;
            read += piece.len() as u64;
            remaining -= piece.len() as u64;
            digest.update(&piece);
            if !send(piece.into(), remaining) {
                return Ok(());
            }
        }
        send(digest.finalize().to_vec().into(), 0);
        Ok(())
    }
}
