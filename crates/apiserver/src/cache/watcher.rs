//! One client's position in a kind's history.
//!
//! A watcher sleeps on the kind's newest revision, then reads what is new from the shared history, filtered. One that starts
//! or falls further back catches up from the store, as long as that has not compacted what is missing. Selectors
//! turn modifications into additions and deletions as objects enter and leave the selection (upstream's rule).

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use meta::{EventKind, FieldSelector, LabelSelector, Object, Status, WatchEvent};
use resources::Resource;
use store::{Revision, StoreError, WatchItem};

use super::feed::Feed;
use super::{Cache, Event};

/// Events handed over at once; a reader that is slower gets the rest on its next turn.
const BATCH: usize = 512;
/// Bytes of the objects at a watch's beginning that are sent at a time: there may be any number of them, and all together
/// they would be as long as a list.
const FIRST_BYTES: usize = 64 << 10;
/// How often a quiet watch that asked for bookmarks gets one. Upstream: about a minute.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// A last bookmark comes this long before the watch's time is up, so that the client resumes close to where it ended.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// Which objects a request is about.
#[derive(Clone)]
pub struct Selection {
    /// Key prefix: the kind's, or one namespace of it.
    pub prefix: Arc<str>,
    /// One object only, when the field selector pins its name.
    pub name: Option<Box<str>>,
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    /// Names of the kind's selectable fields, in the order of `Object::fields`.
    pub names: Arc<[Arc<str>]>,
}

impl Selection {
    pub fn new(resource: &Resource, prefix: &str, labels: LabelSelector, fields: FieldSelector) -> Self {
        let name = fields.exact("metadata.name").map(Into::into);
        let names = resource.selectable.iter().map(|s| s.name.clone()).collect();
        Self { prefix: prefix.into(), name, labels, fields, names }
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// Selectors only; the prefix is the caller's to check.
    pub fn matches(&self, object: &Object) -> bool {
        (self.labels.is_everything() || self.labels.matches(&object.meta.labels))
            && (self.fields.is_everything() || self.fields.matches_by(|field| self.field(object, field)))
    }

    fn field<'a>(&self, object: &'a Object, field: &str) -> &'a str {
        match field {
            "metadata.name" => &object.meta.name,
            "metadata.namespace" => &object.meta.namespace,
            _ => self.names.iter().position(|n| &**n == field).and_then(|at| object.fields.get(at)).map_or("", |v| v),
        }
    }

    /// What the watcher of this selection sees of a change.
    pub fn see(&self, event: &Event) -> Option<EventKind> {
        if !event.key.starts_with(&*self.prefix) {
            return None;
        }
        if self.is_everything() {
            return Some(event.kind);
        }
        let now = event.kind != EventKind::Deleted && self.matches(&event.object);
        let before = event.previous.as_ref().is_some_and(|previous| self.matches(previous));
        match (before, now) {
            (false, true) => Some(EventKind::Added),
            (true, true) => Some(EventKind::Modified),
            (true, false) => Some(EventKind::Deleted),
            (false, false) => None,
        }
    }
}

/// One item of a watch over the cache.
pub enum Seen {
    /// Whole, as the shared frame has it.
    Event(Arc<Event>),
    /// The same change under another name: it entered or left the selection. The object is the one to show.
    Changed(EventKind, Arc<Object>),
    Bookmark {
        revision: Revision,
        initial_events_end: bool,
    },
    Gone(Status),
}

impl Seen {
    pub fn into_watch_event(self) -> WatchEvent {
        match self {
            Seen::Event(event) => WatchEvent::Object { kind: event.kind, object: event.object.clone() },
            Seen::Changed(kind, object) => WatchEvent::Object { kind, object },
            Seen::Bookmark { revision, initial_events_end } => {
                WatchEvent::Bookmark { resource_version: revision, initial_events_end }
            }
            Seen::Gone(status) => WatchEvent::Error(status),
        }
    }
}

/// How a watch starts and ends.
pub struct Start {
    /// Objects shown first, as additions.
    pub initial: Vec<Arc<Object>>,
    /// Changes after this revision follow.
    pub position: Revision,
    /// A bookmark closes the initial objects (streaming lists).
    pub mark_initial: bool,
    pub bookmarks: bool,
    pub timeout: Duration,
}

pub fn gone(position: Revision, oldest: Revision) -> Status {
    Status::expired(format!("too old resource version: {position} ({oldest})"))
}

/// When a bookmark comes next: in a while, or just before the end.
fn next_bookmark(now: tokio::time::Instant, deadline: tokio::time::Instant) -> tokio::time::Instant {
    let usual = now + BOOKMARK_EVERY;
    match deadline.checked_sub(LAST_BOOKMARK) {
        Some(last) if last > now => usual.min(last),
        // The last one was sent, or there is no time for one.
        _ => usual.max(deadline + BOOKMARK_EVERY),
    }
}

struct Walk {
    cache: Arc<Cache>,
    feed: Arc<Feed>,
    selection: Selection,
    changed: tokio::sync::watch::Receiver<Revision>,
    position: Revision,
    /// The store's own history, while the cache's does not reach back to `position`.
    backlog: Option<store::WatchStream>,
    first: std::vec::IntoIter<Seen>,
    bookmarks: bool,
    deadline: tokio::time::Instant,
    bookmark_at: tokio::time::Instant,
    ended: bool,
}

impl Walk {
    /// The next of what the watch begins with.
    fn next_of_first(&mut self) -> Vec<Seen> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < FIRST_BYTES
            && let Some(seen) = self.first.next()
        {
            if let Seen::Changed(_, object) = &seen {
                bytes += object.json_len();
            }
            batch.push(seen);
        }
        batch
    }

    /// The next of what the cache no longer knows; nothing when it only got further.
    async fn catch_up(&mut self) -> Result<Vec<Arc<Event>>, Status> {
        let lost = |_| gone(self.position, self.cache.oldest());
        if self.backlog.is_none() {
            let prefix = format!("{}/", self.cache.prefix());
            self.backlog = Some(self.feed.history(&prefix, self.position).await.map_err(lost)?);
        }
        let Some(backlog) = &mut self.backlog else { return Ok(Vec::new()) };
        match backlog.next().await.transpose().map_err(lost)? {
            Some(WatchItem::Changes(changes)) => {
                let events = self.cache.events_of(&changes)?;
                self.position = changes.last().map_or(self.position, |change| change.revision);
                Ok(events)
            }
            Some(WatchItem::Progress(revision)) => {
                self.position = self.position.max(revision);
                Ok(Vec::new())
            }
            None => Err(lost(StoreError::Closed)),
        }
    }

    /// Changes as this watcher sees them.
    fn see(&self, events: Vec<Arc<Event>>) -> Vec<Seen> {
        let mut seen = Vec::new();
        for event in events {
            match self.selection.see(&event) {
                None => {}
                Some(kind) if kind == event.kind => seen.push(Seen::Event(event)),
                // It left the selection: clients get the last state they knew, at the version it left.
                Some(EventKind::Deleted) => {
                    let last = event.previous.as_ref().unwrap_or(&event.object).at_version(event.revision());
                    seen.push(Seen::Changed(EventKind::Deleted, Arc::new(last)));
                }
                Some(kind) => seen.push(Seen::Changed(kind, event.object.clone())),
            }
        }
        seen
    }
}

/// The watch itself: batches, never empty, until the timeout or until the history is lost.
pub fn watch(
    cache: Arc<Cache>,
    feed: Arc<Feed>,
    selection: Selection,
    start: Start,
) -> impl Stream<Item = Vec<Seen>> + Send {
    let now = tokio::time::Instant::now();
    let mut first: Vec<Seen> =
        start.initial.into_iter().map(|object| Seen::Changed(EventKind::Added, object)).collect();
    if start.mark_initial {
        first.push(Seen::Bookmark { revision: start.position, initial_events_end: true });
    }
    let walk = Walk {
        changed: cache.changed.subscribe(),
        cache,
        feed,
        selection,
        position: start.position,
        backlog: None,
        first: first.into_iter(),
        bookmarks: start.bookmarks,
        deadline: now + start.timeout,
        bookmark_at: next_bookmark(now, now + start.timeout),
        ended: false,
    };
    futures::stream::unfold(walk, |mut walk| async move {
        let first = walk.next_of_first();
        if !first.is_empty() {
            return Some((first, walk));
        }
        while !walk.ended {
            walk.changed.mark_unchanged();
            let (events, behind) = match walk.cache.since(walk.position, BATCH) {
                Some(events) => {
                    walk.backlog = None;
                    walk.position = events.last().map_or(walk.position, |event| event.revision());
                    (events, false)
                }
                None => match tokio::time::timeout_at(walk.deadline, walk.catch_up()).await {
                    Ok(Ok(events)) => (events, true),
                    Ok(Err(status)) => {
                        walk.ended = true;
                        return Some((vec![Seen::Gone(status)], walk));
                    }
                    Err(_) => return None,
                },
            };
            let seen = walk.see(events);
            if !seen.is_empty() {
                return Some((seen, walk));
            }
            if behind {
                continue;
            }
            tokio::select! {
                changed = walk.changed.changed() => walk.ended = changed.is_err(),
                () = tokio::time::sleep_until(walk.deadline) => walk.ended = true,
                () = tokio::time::sleep_until(walk.bookmark_at), if walk.bookmarks => {
                    walk.bookmark_at = next_bookmark(tokio::time::Instant::now(), walk.deadline);
                    // Progress first, then the history: a bookmark must never overtake a change.
                    let revision = walk.feed.progress();
                    if walk.cache.since(walk.position, 1).is_some_and(|rest| rest.is_empty()) && revision > walk.position {
                        walk.position = revision;
                        return Some((vec![Seen::Bookmark { revision, initial_events_end: false }], walk));
                    }
                }
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::StreamExt;
    use meta::Object;
    use serde_json::json;
    use store::{Backend, Op, Txn, TxnOutcome};

    use super::*;

    async fn write(store: &dyn Backend, name: &str, value: Option<&str>) -> Revision {
        let key: store::Key = format!("/registry/configmaps/n/{name}").into();
        let op = match value {
            None => Op::Delete { key },
            Some(value) => {
                let body = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name, "namespace": "n"}, "data": {"k": value}});
                Op::Put { key, value: meta::object::encode_stored(&body).unwrap(), lease: None }
            }
        };
        match store.txn(Txn { compares: Vec::new(), ops: vec![op] }).await.unwrap() {
            TxnOutcome::Committed { revision } => revision,
            TxnOutcome::Conflict { .. } => unreachable!("no compares"),
        }
    }

    /// The first `count` events after a position, or what ended the watch sooner.
    async fn seen(cache: &Arc<Cache>, feed: &Arc<Feed>, position: Revision, count: usize) -> Vec<String> {
        let selection = Selection {
            prefix: "/registry/configmaps/".into(),
            name: None,
            labels: LabelSelector::default(),
            fields: FieldSelector::default(),
            names: Arc::new([]),
        };
        let timeout = Duration::from_secs(60);
        let start = Start { initial: Vec::new(), position, mark_initial: false, bookmarks: false, timeout };
        let mut watch = Box::pin(watch(cache.clone(), feed.clone(), selection, start));
        let mut out = Vec::new();
        while out.len() < count {
            let Some(batch) = watch.next().await else { break };
            out.extend(batch.into_iter().map(|seen| match seen.into_watch_event() {
                WatchEvent::Object { kind, object } => {
                    let value = object.value().unwrap();
                    format!("{kind:?} {} {}", object.meta.name, value["data"]["k"].as_str().unwrap())
                }
                WatchEvent::Bookmark { .. } => "bookmark".into(),
                WatchEvent::Error(status) => format!("{} {}", status.code, status.reason.as_str()),
            }));
        }
        out
    }

    #[tokio::test]
    async fn what_memory_forgot_is_read_from_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(store::embedded::open(dir.path(), store::embedded::Options::default()).unwrap());
        let first = write(&*store, "a", Some("1")).await;
        write(&*store, "a", Some("2")).await;
        write(&*store, "b", Some("1")).await;
        let gone = write(&*store, "a", None).await;

        // A cache that is filled now remembers nothing of what was before.
        let decode = |stored: &store::KeyValue| {
            Object::from_stored(stored.value.clone(), stored.mod_revision)
                .map_err(|error| crate::cache::Unreadable::Broken(error.to_string()))
        };
        let cache = Arc::new(Cache::new("/registry/configmaps".into(), Box::new(decode)));
        let feed = Feed::new(store.clone());
        feed.load(vec![cache.clone()]).await.unwrap();
        let following = tokio::spawn(feed.clone().follow());
        write(&*store, "c", Some("1")).await;

        let all = ["Added a 1", "Modified a 2", "Added b 1", "Deleted a 2", "Added c 1"];
        assert_eq!(seen(&cache, &feed, first - 1, 5).await, all);
        assert_eq!(seen(&cache, &feed, first, 4).await, all[1..]);
        assert_eq!(seen(&cache, &feed, gone, 1).await, all[4..]);
        store.compact(gone).await.unwrap();
        assert_eq!(seen(&cache, &feed, first, 1).await, ["410 Expired"]);
        following.abort();
    }
}
