//! What this server writes, on its way through the store.
//!
//! A writer knows its object: it announces it, and the change that comes back from the store is known by its bytes, which
//! are the very same memory. Whoever first knows the revision, writer or feed, makes the one object both use, with all
//! that is ever computed of it. A store that hands out copies (etcd, values at rest encrypted) is not recognized: its
//! changes are read as anybody's, and what was announced is forgotten once the feed has passed it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use meta::Object;
use store::{KeyValue, Revision};

/// Objects announced at a time; those beyond it are read again. The store commits no more at once.
const MAX_ANNOUNCED: usize = 4096;

/// An object that gets its revision once: by whoever first knows it, while nobody else holds it.
struct Draft(Mutex<Arc<Object>>);

impl Draft {
    fn at(&self, revision: Revision) -> Arc<Object> {
        let mut object = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unstored) = Arc::get_mut(&mut object).filter(|o| o.resource_version == 0) {
            unstored.resource_version = revision;
        }
        object.clone()
    }
}

struct Entry {
    draft: Arc<Draft>,
    /// Keeps the address that is its key from being used for anything else.
    raw: Bytes,
    /// Where it was committed; 0 as long as its writer does not know.
    revision: Revision,
}

#[derive(Default)]
struct Waiting {
    /// By the address of the bytes.
    entries: HashMap<usize, Entry>,
    /// The feed has been told everything up to here.
    reached: Revision,
}

/// The announced objects of one cache.
#[derive(Default)]
pub struct Handover {
    waiting: Mutex<Waiting>,
}

fn address(raw: &Bytes) -> usize {
    raw.as_ptr() as usize
}

impl Handover {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // The map is whole after every statement.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces an object without a revision, before the store is asked to keep its bytes. Without `takes_over` the feed
    /// is not told.
    pub fn announce(&self, object: Object, takes_over: bool) -> Announced<'_> {
        let raw = object.raw().clone();
        let key = address(&raw);
        let draft = Arc::new(Draft(Mutex::new(Arc::new(object))));
        let mut waiting = self.waiting();
        if takes_over && waiting.entries.len() < MAX_ANNOUNCED {
            waiting.entries.insert(key, Entry { draft: draft.clone(), raw, revision: 0 });
        }
        Announced { of: self, key, draft, committed: false }
    }

    /// The announced object a change is of.
    pub fn take(&self, stored: &KeyValue) -> Option<Arc<Object>> {
        let mut waiting = self.waiting();
        let key = address(&stored.value);
        if waiting.entries.get(&key)?.raw.len() != stored.value.len() {
            return None;
        }
        let entry = waiting.entries.remove(&key)?;
        drop(waiting);
        Some(entry.draft.at(stored.mod_revision))
    }

    /// The feed has been told everything up to `revision`: what was committed by then and was not asked for never will be.
    pub fn reached(&self, revision: Revision) {
        let mut waiting = self.waiting();
        waiting.reached = revision;
        if !waiting.entries.is_empty() {
            waiting.entries.retain(|_, entry| entry.revision == 0 || entry.revision > revision);
        }
    }
}

/// The writer's end. Dropped without [`Announced::committed`], nothing was written.
pub struct Announced<'h> {
    of: &'h Handover,
    key: usize,
    draft: Arc<Draft>,
    committed: bool,
}

impl Announced<'_> {
    /// The object, now that it is stored.
    pub fn committed(mut self, revision: Revision) -> Arc<Object> {
        self.committed = true;
        {
            let mut waiting = self.of.waiting();
            let passed = waiting.reached >= revision;
            match waiting.entries.get_mut(&self.key).filter(|entry| Arc::ptr_eq(&entry.draft, &self.draft)) {
                Some(_) if passed => drop(waiting.entries.remove(&self.key)),
                Some(entry) => entry.revision = revision,
                None => {}
            }
        }
        self.draft.at(revision)
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        if !self.committed {
            let mut waiting = self.of.waiting();
            if waiting.entries.get(&self.key).is_some_and(|entry| Arc::ptr_eq(&entry.draft, &self.draft)) {
                waiting.entries.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str) -> Object {
        let body = serde_json::json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name}});
        Object::from_stored_body(meta::object::encode_stored(&body).unwrap(), &body, 0).unwrap()
    }

    fn stored(value: Bytes, mod_revision: Revision) -> KeyValue {
        KeyValue { key: "k".into(), value, create_revision: 1, mod_revision, version: 1, lease: None }
    }

    #[test]
    fn writer_and_feed_share_one_object_whoever_comes_first() {
        let handover = Handover::default();
        for feed_first in [true, false] {
            let draft = object("a");
            let raw = draft.raw().clone();
            let announced = handover.announce(draft, true);
            let (writers, feeds) = if feed_first {
                let feeds = handover.take(&stored(raw, 7)).unwrap();
                (announced.committed(7), feeds)
            } else {
                let writers = announced.committed(7);
                (writers, handover.take(&stored(raw, 7)).unwrap())
            };
            assert!(Arc::ptr_eq(&writers, &feeds));
            assert_eq!(feeds.resource_version, 7);
            assert!(handover.waiting().entries.is_empty());
        }
    }

    #[test]
    fn what_never_comes_back_is_forgotten() {
        let handover = Handover::default();
        let left = |handover: &Handover| handover.waiting().entries.len();
        // Refused by the store.
        drop(handover.announce(object("a"), true));
        assert_eq!(left(&handover), 0);
        // A copy is not the same memory.
        let draft = object("b");
        let copy = Bytes::copy_from_slice(draft.raw());
        let announced = handover.announce(draft, true);
        assert!(handover.take(&stored(copy, 3)).is_none());
        // Known before the feed passes it, and after.
        announced.committed(3);
        assert_eq!(left(&handover), 1);
        handover.reached(3);
        assert_eq!(left(&handover), 0);
        handover.announce(object("c"), true).committed(2);
        assert_eq!(left(&handover), 0);
    }
}
