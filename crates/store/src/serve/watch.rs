//! The Watch service: many watches on one stream, one position in the store's history for all of them.
//!
//! Guarantees: each watch gets every change of its keys from its start on, once, in order, whole revisions; a progress
//! answer comes after all events up to its revision. A stream holds at most a few messages for its client: one that does
//! not read stops only its own stream, and is told `compact_revision` when the history has gone past it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prost::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::key::Span;
use super::{Served, convert, error, limits};
use crate::etcdserverpb::watch_create_request::FilterType;
use crate::etcdserverpb::watch_request::RequestUnion;
use crate::etcdserverpb::watch_server;
use crate::etcdserverpb::{self as pb};
use crate::{Change, ChangeKind, Revision, StoreError};

/// The watch a progress answer for the whole stream names.
const WHOLE_STREAM: i64 = -1;

struct Watch {
    span: Span,
    /// The first revision it wants.
    from: Revision,
    previous: bool,
    puts: bool,
    deletes: bool,
    fragment: bool,
    /// Whether it wants to hear from time to time how far it is.
    progress: bool,
    /// Something was sent since the last time.
    spoken: bool,
}

impl Watch {
    fn wants(&self, change: &Change) -> bool {
        let kind = match change.kind {
            ChangeKind::Put(_) => self.puts,
            ChangeKind::Delete => self.deletes,
        };
        kind && change.revision >= self.from && self.span.contains(&change.key)
    }
}

/// The client is gone or the server goes down.
struct Gone;

struct Stream {
    served: Arc<Served>,
    watches: BTreeMap<i64, Watch>,
    /// Everything up to here has been handed to the watches.
    position: Revision,
    next_id: i64,
    out: mpsc::Sender<Result<pb::WatchResponse, Status>>,
}

#[tonic::async_trait]
impl watch_server::Watch for Arc<Served> {
    type WatchStream = ReceiverStream<Result<pb::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (out, messages) = mpsc::channel(limits::WATCH_BACKLOG);
        // Subscribed before the position is taken, so that nothing is missed between.
        let published = self.store.published();
        let position = *published.borrow();
        let stream = Stream { served: self.clone(), watches: BTreeMap::new(), position, next_id: 0, out };
        tokio::spawn(stream.run(request.into_inner(), published));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.served.watches.fetch_sub(self.watches.len(), Ordering::Relaxed);
    }
}

impl Stream {
    async fn run(
        mut self,
        mut requests: Streaming<pb::WatchRequest>,
        mut published: tokio::sync::watch::Receiver<Revision>,
    ) {
        let served = self.served.clone();
        let stopped = served.stopped();
        tokio::pin!(stopped);
        let interval = self.served.progress_interval;
        let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = true;
        loop {
            let reports = self.watches.values().any(|watch| watch.progress);
            let step = tokio::select! {
                request = requests.message(), if open => match request {
                    Ok(Some(request)) => self.take(request).await,
                    // The client asks nothing more; it may still listen.
                    Ok(None) => {
                        open = false;
                        Ok(())
                    }
                    Err(_) => return,
                },
                changed = published.changed(), if !self.watches.is_empty() => match changed {
                    Ok(()) => self.deliver().await,
                    Err(_) => Err(Gone),
                },
                _ = ticks.tick(), if reports => self.report().await,
                () = self.out.closed() => return,
                () = &mut stopped => {
                    // A full backlog tells as much.
                    _ = self.out.try_send(Err(error::stopped()));
                    return;
                }
            };
            if step.is_err() || (!open && self.watches.is_empty()) {
                return;
            }
        }
    }

    async fn send(&self, response: pb::WatchResponse) -> Result<(), Gone> {
        let response = match self.out.try_send(Ok(response)) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Gone),
            Err(mpsc::error::TrySendError::Full(response)) => response,
        };
        tokio::select! {
            sent = self.out.send(response) => sent.map_err(|_| Gone),
            () = self.served.stopped() => Err(Gone),
        }
    }

    fn response(&self, watch_id: i64, revision: Revision) -> pb::WatchResponse {
        pb::WatchResponse { header: Some(self.served.header(revision)), watch_id, ..Default::default() }
    }

    async fn take(&mut self, request: pb::WatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(RequestUnion::CancelRequest(cancel)) => {
                if !self.remove(cancel.watch_id) {
                    return Ok(());
                }
                let response = self.response(cancel.watch_id, self.position);
                self.send(pb::WatchResponse { canceled: true, ..response }).await
            }
            Some(RequestUnion::ProgressRequest(_)) => {
                self.deliver().await?;
                self.send(self.response(WHOLE_STREAM, self.position)).await
            }
            None => Ok(()),
        }
    }

    fn remove(&mut self, id: i64) -> bool {
        let removed = self.watches.remove(&id).is_some();
        if removed {
            self.served.watches.fetch_sub(1, Ordering::Relaxed);
        }
        removed
    }

    async fn create(&mut self, create: pb::WatchCreateRequest) -> Result<(), Gone> {
        // With nobody to tell, the position has stood still: the past is caught up with below.
        if self.watches.is_empty() {
            self.position = self.now();
        } else {
            self.deliver().await?;
        }
        // An empty key stands for the first.
        let key: &[u8] = if create.key.is_empty() { b"\0" } else { &create.key };
        let span = Span::of(key, &create.range_end);
        let refusal = if span.is_empty() {
            Some("mvcc: watcher range is empty")
        } else if create.watch_id != 0 && self.watches.contains_key(&create.watch_id) {
            Some("mvcc: duplicate watch ID provided on the WatchStream")
        } else if self.watches.len() >= limits::MAX_STREAM_WATCHES
            || self.served.watches.load(Ordering::Relaxed) >= limits::MAX_WATCHES
        {
            Some("etcdserver: too many requests")
        } else {
            None
        };
        if let Some(reason) = refusal {
            let response = self.response(-1, self.position);
            let cancel_reason = reason.to_owned();
            return self.send(pb::WatchResponse { created: true, canceled: true, cancel_reason, ..response }).await;
        }
        let id = match create.watch_id {
            0 => {
                while self.watches.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                self.next_id - 1
            }
            id => id,
        };
        let start = Revision::try_from(create.start_revision).unwrap_or(0);
        let without = |filter: FilterType| create.filters.contains(&filter.into());
        let watch = Watch {
            span,
            from: if start == 0 { self.position + 1 } else { start },
            previous: create.prev_kv,
            puts: !without(FilterType::Noput),
            deletes: !without(FilterType::Nodelete),
            fragment: create.fragment,
            progress: create.progress_notify,
            spoken: false,
        };
        let created = pb::WatchResponse { created: true, ..self.response(id, self.position) };
        self.send(created).await?;
        let from = watch.from;
        self.served.watches.fetch_add(1, Ordering::Relaxed);
        self.watches.insert(id, watch);
        if from <= self.position { self.catch_up(id, from - 1).await } else { Ok(()) }
    }

    fn now(&self) -> Revision {
        *self.served.store.published().borrow()
    }

    /// Brings one watch from a past revision to where the stream is.
    async fn catch_up(&mut self, id: i64, after: Revision) -> Result<(), Gone> {
        let (mut at, until) = (after, self.position);
        while at < until {
            let groups = match self.served.store.changes_after(at, limits::WATCH_GROUPS).await {
                Ok((groups, _)) => groups,
                Err(error) => return self.refuse(&error, &[id]).await,
            };
            let Some(last) = groups.last().and_then(|group| group.last()) else { break };
            at = last.revision;
            let changes = groups.iter().flat_map(|group| group.iter()).filter(|change| change.revision <= until);
            self.dispatch(changes.cloned().collect::<Vec<_>>().iter(), Some(id)).await?;
        }
        Ok(())
    }

    /// Hands on what has happened since the position.
    async fn deliver(&mut self) -> Result<(), Gone> {
        loop {
            let (groups, revision) = match self.served.store.changes_after(self.position, limits::WATCH_GROUPS).await {
                Ok(found) => found,
                Err(error) => {
                    let compacted = match &error {
                        StoreError::Compacted { compacted, .. } => *compacted,
                        _ => Revision::MAX,
                    };
                    let lost: Vec<i64> =
                        self.watches.iter().filter(|(_, watch)| watch.from <= compacted).map(|(id, _)| *id).collect();
                    self.refuse(&error, &lost).await?;
                    self.position = compacted;
                    continue;
                }
            };
            let Some(last) = groups.last().and_then(|group| group.last()).map(|change| change.revision) else {
                // Only now: all of it was taken.
                self.position = self.position.max(revision);
                return Ok(());
            };
            self.dispatch(groups.iter().flat_map(|group| group.iter()), None).await?;
            self.position = last;
        }
    }

    /// Ends watches that cannot go on.
    async fn refuse(&mut self, error: &StoreError, ids: &[i64]) -> Result<(), Gone> {
        let StoreError::Compacted { compacted, current } = error else {
            _ = self.out.try_send(Err(error::status(error.clone())));
            return Err(Gone);
        };
        for id in ids {
            self.remove(*id);
            let response = pb::WatchResponse {
                canceled: true,
                // The first revision that a watch can start at.
                compact_revision: *compacted as i64 + 1,
                cancel_reason: error::compacted().message().to_owned(),
                ..self.response(*id, *current)
            };
            self.send(response).await?;
        }
        Ok(())
    }

    /// Sends changes to the watches that want them, or to the one named; messages end between revisions.
    async fn dispatch<'a>(&mut self, changes: impl Iterator<Item = &'a Change>, only: Option<i64>) -> Result<(), Gone> {
        let mut gathered: BTreeMap<i64, Vec<pb::Event>> = BTreeMap::new();
        let (mut bytes, mut revision) = (0, 0);
        for change in changes {
            if change.revision != revision && bytes >= limits::WATCH_MESSAGE_BYTES {
                self.flush(&mut gathered, revision).await?;
                bytes = 0;
            }
            revision = change.revision;
            let mut gather = |id: i64, watch: &Watch| {
                if watch.wants(change) {
                    let event = convert::event(change, watch.previous);
                    bytes += event.encoded_len();
                    gathered.entry(id).or_default().push(event);
                }
            };
            match only {
                Some(id) => _ = self.watches.get(&id).map(|watch| gather(id, watch)),
                None => self.watches.iter().for_each(|(id, watch)| gather(*id, watch)),
            }
        }
        self.flush(&mut gathered, revision).await
    }

    async fn flush(&mut self, gathered: &mut BTreeMap<i64, Vec<pb::Event>>, revision: Revision) -> Result<(), Gone> {
        while let Some((id, events)) = gathered.pop_first() {
            let Some(watch) = self.watches.get_mut(&id) else { continue };
            watch.spoken = true;
            self.served.events.fetch_add(events.len() as u64, Ordering::Relaxed);
            let fragment = watch.fragment;
            let response = pb::WatchResponse { events, ..self.response(id, revision) };
            let limit = self.served.store.options().max_request_bytes + limits::MESSAGE_OVERHEAD_BYTES;
            if fragment && response.encoded_len() >= limit {
                for piece in fragments(response, limit) {
                    self.send(piece).await?;
                }
            } else {
                self.send(response).await?;
            }
        }
        Ok(())
    }

    /// Tells the watches that asked for it how far they are, unless events have told it.
    async fn report(&mut self) -> Result<(), Gone> {
        self.deliver().await?;
        let mut due = Vec::new();
        for (id, watch) in &mut self.watches {
            if watch.progress && !std::mem::take(&mut watch.spoken) {
                due.push(*id);
            }
        }
        for id in due {
            self.send(self.response(id, self.position)).await?;
        }
        Ok(())
    }
}

/// Splits a message between events; all pieces but the last say that more come.
fn fragments(mut response: pb::WatchResponse, limit: usize) -> Vec<pb::WatchResponse> {
    let events = std::mem::take(&mut response.events);
    let empty = response.encoded_len();
    let mut pieces = Vec::new();
    let (mut piece, mut bytes) = (response.clone(), empty);
    for event in events {
        let size = event.encoded_len();
        if !piece.events.is_empty() && bytes + size >= limit {
            piece.fragment = true;
            pieces.push(std::mem::replace(&mut piece, response.clone()));
            bytes = empty;
        }
        bytes += size;
        piece.events.push(event);
    }
    pieces.push(piece);
    pieces
}
