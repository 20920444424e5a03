//! A subscription: which keys changed since the subscriber last looked.
//!
//! It coalesces: however often an object changed meanwhile, it is one [`Change`] with the version the subscriber saw
//! last and the newest one. It is bounded: when too many keys are pending they are dropped and the subscriber is told to
//! look at everything ([`Batch::Resync`]), so nothing is lost silently.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meta::Object;
use tokio::sync::Notify;

/// Keys a subscriber may be behind before it must look at everything; a key costs some 100 bytes.
pub const MAX_PENDING_KEYS: usize = 100_000;

/// What became of one key since the subscriber last looked.
#[derive(Clone, Debug)]
pub struct Change {
    /// `namespace/name`, or `name`.
    pub key: Arc<str>,
    /// The version the subscriber saw last; `None` for a new object.
    pub old: Option<Arc<Object>>,
    /// The newest version; `None` when the object is gone.
    pub new: Option<Arc<Object>>,
}

impl Change {
    /// The newest known version, the last one when the object is gone.
    pub fn object(&self) -> Option<&Arc<Object>> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

/// What a subscriber wakes up to.
#[derive(Clone, Debug)]
pub enum Batch {
    Changes(Vec<Change>),
    /// Too much happened: read the informer's list and assume that every object changed and any may be gone.
    Resync,
}

type OldNew = (Option<Arc<Object>>, Option<Arc<Object>>);

#[derive(Default)]
struct Pending {
    changes: BTreeMap<Arc<str>, OldNew>,
    resync: bool,
    closed: bool,
}

/// The informer's end.
pub(crate) struct Mailbox {
    pending: Mutex<Pending>,
    wake: Notify,
    limit: usize,
}

impl Mailbox {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { pending: Mutex::default(), wake: Notify::new(), limit })
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        // The state is whole after every statement, so a panic elsewhere leaves it usable.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes one change; [`Mailbox::wake`] tells the subscriber, once a batch.
    pub(crate) fn put(&self, key: &Arc<str>, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) {
        let mut pending = self.pending();
        if pending.resync {
            return;
        }
        if let Some(change) = pending.changes.get_mut(key) {
            change.1 = new.cloned();
            if change.0.is_none() && change.1.is_none() {
                // Came and went between two looks.
                pending.changes.remove(key);
            }
        } else if pending.changes.len() >= self.limit {
            pending.changes = BTreeMap::new();
            pending.resync = true;
        } else {
            pending.changes.insert(key.clone(), (old.cloned(), new.cloned()));
        }
    }

    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(crate) fn close(&self) {
        self.pending().closed = true;
        self.wake();
    }
}

/// The subscriber's end. It starts with every object the informer holds; dropping it ends the subscription.
pub struct Subscription {
    pub(crate) mailbox: Arc<Mailbox>,
}

impl Subscription {
    /// Waits for changes; `None` once the informer has stopped. Cancel safe.
    pub async fn next(&mut self) -> Option<Batch> {
        loop {
            if let Some(batch) = self.try_next() {
                return Some(batch);
            }
            if self.mailbox.pending().closed {
                return None;
            }
            self.mailbox.wake.notified().await;
        }
    }

    /// What is pending right now.
    pub fn try_next(&mut self) -> Option<Batch> {
        let mut pending = self.mailbox.pending();
        if std::mem::take(&mut pending.resync) {
            return Some(Batch::Resync);
        }
        if pending.changes.is_empty() {
            return None;
        }
        let changes = std::mem::take(&mut pending.changes);
        Some(Batch::Changes(changes.into_iter().map(|(key, (old, new))| Change { key, old, new }).collect()))
    }
}
