//! Following a resource: list, then watch, and over again.
//!
//! A [`Follower`] lists, then watches from the list's version, resumes after interruptions, and lists again when the
//! server no longer has the version (410). What it finds it hands to a [`Sink`], which keeps it or passes it on. A sink
//! that wants lists in pieces gets them as the beginning of a watch, where the server can do that.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use meta::{EventKind, Object, Reason, Status, WatchEvent};
use rand::Rng;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::api::ListOptions;
use crate::informer::Scope;
use crate::queue::Backoff;
use crate::{Client, DynamicApi};

/// Between attempts to list or watch: soon at first, so that a cluster starts fast; then politely.
const RETRY: Backoff = Backoff { first: Duration::from_millis(50), most: Duration::from_secs(15) };
/// Seconds a watch is asked to last at least; the same again at most is added at random, so that they do not all end together.
const WATCH_SECONDS: u64 = 300;
/// How long past its own end a silent watch is believed before the connection counts as dead.
const WATCH_GRACE: Duration = Duration::from_secs(15);
/// A watch that ends sooner than this without a word is treated as a failure, lest it spin.
const SHORT_WATCH: Duration = Duration::from_secs(1);
/// Objects of one page of a list that is taken in pieces.
const PAGE: u64 = 500;

/// Takes what a follower finds. What is still under way when it waits, waits too: up to the server.
pub(crate) trait Sink: Send + Sync + 'static {
    /// Lists may come in pieces.
    const STREAMED: bool;

    /// A list begins; what came of one that broke off counts no more.
    fn begins(&self) {}

    /// A list, or a piece of it; with its version when that was the last.
    fn listed(&self, objects: Vec<Arc<Object>>, version: Option<u64>) -> impl Future<Output = ()> + Send;

    /// Changes in order, `true` for the last state of a deleted object; and the version all is known up to.
    fn changed(&self, events: Vec<(Arc<Object>, bool)>, version: u64) -> impl Future<Output = ()> + Send;

    /// The kind is gone, and its objects with it.
    fn unserved(&self) -> impl Future<Output = ()> + Send;

    /// Nothing more will come.
    fn close(&self);
}

/// Follows until the guard is dropped; must be called within a tokio runtime.
pub(crate) fn start<S: Sink>(client: &Client, scope: Scope, sink: Arc<S>) -> DropGuard {
    let stop = CancellationToken::new();
    let api = client.dynamic(scope.resource.clone()).namespaced(&scope.namespace);
    let mut follower = Follower { api, scope, sink, version: None, streams: S::STREAMED, failures: 0 };
    let stopped = stop.clone();
    tokio::spawn(async move {
        stopped.run_until_cancelled(follower.follow()).await;
        follower.sink.close();
    });
    stop.drop_guard()
}

/// Why following has to start over, or go on.
enum Ended {
    /// Watch again from the last version.
    Resume,
    /// The version is gone: list again.
    Expired,
    /// A list cannot be had as the beginning of a watch.
    Unstreamed,
    Failed(Status),
}

struct Follower<S> {
    api: DynamicApi,
    scope: Scope,
    sink: Arc<S>,
    /// Up to which everything has been handed on; `None` when it has to be listed.
    version: Option<u64>,
    /// Lists are taken as the beginning of a watch.
    streams: bool,
    /// One after the other.
    failures: u32,
}

impl<S: Sink> Follower<S> {
    fn options(&self, resource_version: Option<String>) -> ListOptions {
        ListOptions {
            label_selector: self.scope.label_selector.clone(),
            field_selector: self.scope.field_selector.clone(),
            resource_version,
            ..ListOptions::default()
        }
    }

    async fn follow(&mut self) {
        // `0`: the first list may come from any cache; after a 410 only the newest will do.
        let mut list_at = Some("0".to_string());
        let mut served = true;
        loop {
            let ended = if self.version.is_some() || self.streams {
                self.watch().await
            } else {
                match self.list(list_at.clone()).await {
                    Ok(()) => Ended::Resume,
                    Err(status) => Ended::Failed(status),
                }
            };
            if self.version.is_some() {
                served = true;
            }
            match ended {
                Ended::Resume => {}
                Ended::Expired => (self.version, list_at) = (None, None),
                // The kind itself is gone, and its objects with it. It may come back: asked for now and then, quietly.
                Ended::Failed(status) if status.is_not_found() => {
                    if std::mem::take(&mut served) {
                        tracing::debug!(resource = %self.scope.resource, "is not served");
                        self.sink.unserved().await;
                    }
                    (self.version, list_at) = (None, None);
                    self.failures = self.failures.saturating_add(1);
                    tokio::time::sleep(RETRY.after(self.failures)).await;
                }
                // A server from before lists came as watches.
                Ended::Failed(status) if self.version.is_none() && self.streams && is_refusal(&status) => {
                    self.streams = false;
                }
                Ended::Unstreamed => self.streams = false,
                Ended::Failed(status) => {
                    self.failures = self.failures.saturating_add(1);
                    // The first failures of a start are no news; after that once each doubling is enough.
                    if self.failures >= 4 && self.failures.is_power_of_two() {
                        tracing::warn!(resource = %self.scope.resource, failures = self.failures, "cannot follow: {status}");
                    }
                    if matches!(status.reason, Reason::Expired | Reason::Gone) {
                        (self.version, list_at) = (None, None);
                    }
                    tokio::time::sleep(RETRY.after(self.failures)).await;
                }
            }
        }
    }

    async fn list(&mut self, resource_version: Option<String>) -> Result<(), Status> {
        let mut options = self.options(resource_version);
        options.limit = S::STREAMED.then_some(PAGE);
        self.sink.begins();
        let mut found = Vec::new();
        loop {
            let mut page = self.api.list(&options).await?;
            page.items.iter_mut().for_each(|o| self.scope.keep.reduce(o));
            found.append(&mut page.items);
            // A server may hand out pages unasked.
            options.resource_version = None;
            options.continue_token = page.continue_token;
            if options.continue_token.is_none() {
                self.sink.listed(found, Some(page.resource_version)).await;
                (self.version, self.failures) = (Some(page.resource_version), 0);
                return Ok(());
            }
            if S::STREAMED {
                self.sink.listed(std::mem::take(&mut found), None).await;
            }
        }
    }

    async fn watch(&mut self) -> Ended {
        let seconds = WATCH_SECONDS + rand::rng().random_range(0..WATCH_SECONDS);
        let options = ListOptions {
            timeout_seconds: Some(seconds),
            everything_first: self.version.is_none(),
            ..self.options(self.version.map(|version| version.to_string()))
        };
        if self.version.is_none() {
            self.sink.begins();
        }
        let mut stream = match self.api.watch(&options).await {
            Ok(stream) => stream,
            Err(status) => return Ended::Failed(status),
        };
        let started = Instant::now();
        let deadline = started + Duration::from_secs(seconds) + WATCH_GRACE;
        let mut heard = false;
        loop {
            let batch = match tokio::time::timeout_at(deadline, stream.next()).await {
                Ok(Some(batch)) => batch,
                Ok(None) if !heard && started.elapsed() < SHORT_WATCH => {
                    return Ended::Failed(Status::new(Reason::ServiceUnavailable, "the watch ended at once"));
                }
                Ok(None) | Err(_) => return Ended::Resume,
            };
            heard = true;
            if let Some(ended) = self.take(batch).await {
                return ended;
            }
            self.failures = 0;
        }
    }

    /// Takes one batch. Until everything there is has come, all of it belongs to the list.
    async fn take(&mut self, batch: Vec<WatchEvent>) -> Option<Ended> {
        let mut version = self.version.unwrap_or(0);
        let mut events = Vec::with_capacity(batch.len());
        let mut ended = None;
        for event in batch {
            match event {
                WatchEvent::Object { kind, mut object } => {
                    self.scope.keep.reduce(&mut object);
                    version = version.max(object.resource_version);
                    events.push((object, kind == EventKind::Deleted));
                }
                WatchEvent::Bookmark { resource_version, initial_events_end } => {
                    version = version.max(resource_version);
                    if initial_events_end && self.version.is_none() {
                        let list = std::mem::take(&mut events).into_iter().map(|(object, _)| object);
                        self.sink.listed(list.collect(), Some(version)).await;
                        self.version = Some(version);
                    }
                }
                WatchEvent::Error(status) => {
                    let expired = status.code == 410 || matches!(status.reason, Reason::Expired | Reason::Gone);
                    // Whatever is the matter with that, a list may yet be had.
                    let unstreamed = self.version.is_none();
                    ended = Some(match (expired, unstreamed) {
                        (true, _) => Ended::Expired,
                        (false, true) => Ended::Unstreamed,
                        (false, false) => Ended::Failed(status),
                    });
                    break;
                }
            }
        }
        if self.version.is_some() {
            self.sink.changed(events, version).await;
            self.version = Some(version);
        } else {
            self.sink.listed(events.into_iter().map(|(object, _)| object).collect(), None).await;
        }
        ended
    }
}

/// Whether a server does not know, or not like, what it is asked for; rather than who asks, or when.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code, 400 | 405 | 406 | 422)
}
