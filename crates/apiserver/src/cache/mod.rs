//! The watch cache: every object of one kind, and its recent history, shared by pointer with all readers.
//!
//! One [`Cache`] a storage prefix. A single dispatcher feeds all caches from one store watch in revision order
//! ([`feed`]), so "nothing below revision R is missing" is one number for the whole server. Watchers hold a position in
//! the shared history and read from it; there is no queue a watcher. One that is further back than the history reads the
//! store's, and is cut with 410 when that is compacted, without holding up anyone. The cache decides nothing about namespaces, selectors or formats.

pub mod feed;
mod handover;
pub mod watcher;

pub use handover::Announced;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, RwLock};

use meta::{EventKind, Object, Status};
use store::{ChangeKind, KeyValue, Revision};
use tokio::sync::watch;

/// History kept a kind, in events: upstream's largest watch cache.
const MAX_EVENTS: usize = 100_000;
/// History kept a kind, in bytes: for watchers that nearly keep up. Those further back read the store's, which lies on disk.
const MAX_EVENT_BYTES: usize = 12 << 20;
/// What an event takes besides its object's JSON, as measured: its metadata, parsed, and the event itself.
const EVENT_BYTES: usize = 1 << 10;
/// History always kept, whatever its size, so that short interruptions resume.
const MIN_EVENTS: usize = 256;

/// One change, as every watcher of the kind sees it.
pub struct Event {
    pub kind: EventKind,
    /// For deletions: the last state, at the revision of the deletion.
    pub object: Arc<Object>,
    pub previous: Option<Arc<Object>>,
    /// The store's key.
    pub key: Arc<str>,
}

impl Event {
    pub fn revision(&self) -> Revision {
        self.object.resource_version
    }
}

impl State {
    /// Keeps what cannot be read; says so once a key and reason.
    fn miss(&mut self, key: &Arc<str>, error: Unreadable) {
        if self.unreadable.get(key) != Some(&error) {
            tracing::error!(%key, %error, "stored object cannot be read");
            self.unreadable.insert(key.clone(), error);
        }
    }
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    /// What lies in the store and could not be read. `objects` may have its last readable state: watchers know that one.
    unreadable: BTreeMap<Arc<str>, Unreadable>,
    /// Ascending by revision.
    history: VecDeque<Arc<Event>>,
    history_bytes: usize,
    /// The history holds every change after this revision.
    complete_after: Revision,
    /// The revision of the newest change in this cache.
    newest: Revision,
}

/// All objects below one storage prefix.
pub struct Cache {
    prefix: Arc<str>,
    decode: RwLock<Box<Decode>>,
    handover: handover::Handover,
    state: RwLock<State>,
    /// Revision of the newest change: what watchers wait on.
    changed: watch::Sender<Revision>,
}

/// Makes an object of stored bytes; knows the kind's selectable fields and other encodings and versions.
pub type Decode = dyn Fn(&KeyValue) -> Result<Object, Unreadable> + Send + Sync;

/// Why stored bytes are no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Nobody can read them: a list that should have the object fails, as upstream's does, until it is removed.
    #[error("{0}")]
    Broken(String),
    /// They are in a version that is not known here and may say other things: the object is left out of lists.
    #[error("{0}")]
    Foreign(String),
}

/// What lies in a range of the cache.
pub struct Slice {
    pub items: Vec<Arc<Object>>,
    /// The newest change the cache knew of.
    pub newest: Revision,
}

/// What clients are told of an object that cannot be read.
pub fn unreadable(key: &str, error: &Unreadable) -> Status {
    Status::internal(format!("unable to decode the object stored as {key}: {error}"))
}

impl Cache {
    pub fn new(prefix: Arc<str>, decode: Box<Decode>) -> Self {
        Self {
            prefix,
            decode: RwLock::new(decode),
            handover: handover::Handover::default(),
            state: RwLock::default(),
            changed: watch::Sender::new(0),
        }
    }

    pub fn prefix(&self) -> &Arc<str> {
        &self.prefix
    }

    // The lock is poisoned only if a reader or writer panicked in a few lines that cannot.
    fn state(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Turns a stored value into an object of this kind.
    pub fn decode(&self, stored: &KeyValue) -> Result<Object, Unreadable> {
        (self.decode.read().unwrap_or_else(std::sync::PoisonError::into_inner))(stored)
    }

    /// Says what is about to be written. With `takes_over` it is not read anew when the store tells of it.
    pub fn announce(&self, object: Object, takes_over: bool) -> Announced<'_> {
        self.handover.announce(object, takes_over)
    }

    /// An object the store tells of: the writer's own where it was announced.
    fn arrive(&self, stored: &KeyValue) -> Result<Arc<Object>, Unreadable> {
        match self.handover.take(stored) {
            Some(object) => Ok(object),
            None => self.decode(stored).map(Arc::new),
        }
    }

    /// Reads everything anew another way: a custom kind's schema, and so its defaults, changed. Readers see it at once;
    /// watchers hear nothing, since nothing was written.
    pub fn redecode(&self, decode: Box<Decode>) {
        let mut state = self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (key, object) in &mut state.objects {
            let stored = KeyValue {
                key: key.clone(),
                value: object.raw().clone(),
                create_revision: 0,
                mod_revision: object.resource_version,
                version: 0,
                lease: None,
            };
            match decode(&stored) {
                Ok(again) => *object = Arc::new(again),
                Err(error) => tracing::warn!(%key, %error, "object does not fit its kind's new schema"),
            }
        }
        drop(state);
        *self.decode.write().unwrap_or_else(std::sync::PoisonError::into_inner) = decode;
    }

    /// Fills an empty cache with a range read at `revision`. Objects that do not decode can still be deleted by key.
    pub fn load(&self, items: &[KeyValue], revision: Revision) {
        let mut state = self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        for item in items {
            match self.decode(item) {
                Ok(object) => {
                    state.objects.insert(item.key.clone(), Arc::new(object));
                }
                Err(error) => state.miss(&item.key, error),
            }
        }
        state.complete_after = revision;
        state.newest = revision;
        drop(state);
        self.changed.send_replace(revision);
    }

    /// Takes changes in, oldest first, and wakes watchers once. They do not hear of what cannot be read, but of what it was
    /// next or of its end.
    fn apply(&self, changes: &[store::Change]) {
        // Read before anybody has to wait.
        let changes: Vec<_> = changes
            .iter()
            .map(|change| match &change.kind {
                ChangeKind::Delete => (change, None),
                ChangeKind::Put(stored) => (change, Some(self.arrive(stored))),
            })
            .collect();
        if let Some((last, _)) = changes.last() {
            self.handover.reached(last.revision);
        }
        let mut state = self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (change, object) in changes {
            let (key, revision) = (change.key.clone(), change.revision);
            if revision <= state.newest && revision <= state.complete_after {
                continue; // Already in the range the cache was loaded from.
            }
            let object = match object.transpose() {
                Ok(object) => object,
                Err(error) => {
                    state.miss(&key, error);
                    continue;
                }
            };
            state.unreadable.remove(&key);
            let previous = match &object {
                Some(object) => state.objects.insert(key.clone(), object.clone()),
                None => state.objects.remove(&key),
            };
            let (kind, object) = match (object, &previous) {
                (Some(object), None) => (EventKind::Added, object),
                (Some(object), Some(_)) => (EventKind::Modified, object),
                (None, Some(previous)) => (EventKind::Deleted, Arc::new(previous.at_version(revision))),
                (None, None) => continue,
            };
            state.history_bytes += object.json_len() + EVENT_BYTES;
            state.newest = revision;
            state.history.push_back(Arc::new(Event { kind, object, previous, key }));
        }
        while state.history.len() > MAX_EVENTS
            || (state.history_bytes > MAX_EVENT_BYTES && state.history.len() > MIN_EVENTS)
        {
            let Some(event) = state.history.pop_front() else { break };
            state.history_bytes -= event.object.json_len() + EVENT_BYTES;
            state.complete_after = event.revision();
        }
        let newest = state.newest;
        drop(state);
        self.changed.send_replace(newest);
    }

    /// Changes as the store tells them, for a watcher that is further back than the history here.
    pub(crate) fn events_of(&self, changes: &[store::Change]) -> Result<Vec<Arc<Event>>, Status> {
        let event = |change: &store::Change| {
            let previous = change.previous.as_ref().and_then(|stored| self.decode(stored).ok()).map(Arc::new);
            let (kind, object) = match (&change.kind, &previous) {
                (ChangeKind::Put(stored), previous) => match self.read(stored) {
                    Ok(Some(object)) if previous.is_none() => (EventKind::Added, Arc::new(object)),
                    Ok(Some(object)) => (EventKind::Modified, Arc::new(object)),
                    Ok(None) => return None,
                    Err(status) => return Some(Err(status)),
                },
                (ChangeKind::Delete, Some(previous)) => {
                    (EventKind::Deleted, Arc::new(previous.at_version(change.revision)))
                }
                (ChangeKind::Delete, None) => return None,
            };
            Some(Ok(Arc::new(Event { kind, object, previous, key: change.key.clone() })))
        };
        changes.iter().filter_map(event).collect()
    }

    /// An object for a list: nothing where it is left out, an error where the list cannot be.
    pub fn read(&self, stored: &KeyValue) -> Result<Option<Object>, Status> {
        match self.decode(stored) {
            Ok(object) => Ok(Some(object)),
            Err(Unreadable::Foreign(_)) => Ok(None),
            Err(error) => Err(unreadable(&stored.key, &error)),
        }
    }

    /// An error where the object of this key is in the store and cannot be read.
    pub fn readable(&self, key: &str) -> Result<(), Status> {
        self.state().unreadable.get(key).map_or(Ok(()), |error| Err(unreadable(key, error)))
    }

    /// An error where a list of what starts with `prefix` would lack what nobody can read.
    pub fn all_readable(&self, prefix: &str) -> Result<(), Status> {
        let state = self.state();
        let below = state.unreadable.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let found = below
            .take_while(|(key, _)| key.starts_with(prefix))
            .find(|(_, error)| matches!(error, Unreadable::Broken(_)));
        found.map_or(Ok(()), |(key, error)| Err(unreadable(key, error)))
    }

    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.state().objects.get(key).cloned()
    }

    /// Everything whose key starts with `prefix`.
    pub fn list(&self, prefix: &str) -> Slice {
        self.slice(prefix, None, usize::MAX).0
    }

    /// As [`Cache::list`], from just after a key and at most `limit` objects; says whether more follow.
    pub fn slice(&self, prefix: &str, after: Option<&str>, limit: usize) -> (Slice, bool) {
        let state = self.state();
        let from = after.map_or(Bound::Included(prefix), Bound::Excluded);
        let mut range =
            state.objects.range::<str, _>((from, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(prefix));
        let items = range.by_ref().take(limit).map(|(_, object)| object.clone()).collect();
        let more = range.next().is_some();
        (Slice { items, newest: state.newest }, more)
    }

    pub fn is_empty(&self) -> bool {
        self.state().objects.is_empty()
    }

    /// How many objects there are, and the bytes of their JSON.
    pub fn size(&self) -> (usize, usize) {
        let state = self.state();
        (state.objects.len(), state.objects.values().map(|o| o.json_len()).sum())
    }

    /// Wakes with each change; holds the revision of the newest.
    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.changed.subscribe()
    }

    /// The revision of the newest change.
    pub fn newest(&self) -> Revision {
        self.state().newest
    }

    /// All changes after `position`, at most `limit` and the rest of the last one's transaction; `None` when the history no longer reaches back that far.
    pub(crate) fn since(&self, position: Revision, limit: usize) -> Option<Vec<Arc<Event>>> {
        let state = self.state();
        if position < state.complete_after {
            return None;
        }
        let from = state.history.partition_point(|event| event.revision() <= position);
        let mut events: Vec<_> = state.history.range(from..).take(limit).cloned().collect();
        // Changes of one transaction share a revision; a position between them would lose the rest.
        if let Some(last) = events.last().map(|event| event.revision()) {
            let rest = state.history.range(from + events.len()..).take_while(|event| event.revision() == last);
            events.extend(rest.cloned().collect::<Vec<_>>());
        }
        Some(events)
    }

    /// The revision after which the history is complete.
    pub fn oldest(&self) -> Revision {
        self.state().complete_after
    }
}
