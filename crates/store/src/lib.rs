//! Ordered keys with revisions: compare-and-swap transactions, reads at a revision, watch, compaction and leases.
//!
//! Two backends stand behind [`Backend`]: [`embedded`] (one machine, one directory) and [`etcd`] (a cluster).
//! Both guarantee: an acknowledged write is durable; a revision is assigned once and never reused; a reader sees only
//! durable state; a watch delivers every change after its start exactly once, in revision order, and never splits a
//! revision; a position older than the history is refused with [`StoreError::Compacted`], never answered with a gap.
//!
//! This crate deliberately knows nothing of Kubernetes: keys are text, values are bytes.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub mod copy;
pub mod door;
pub mod embedded;
mod error;
pub mod etcd;
mod etcd_file;
#[rustfmt::skip]
#[allow(dead_code, unreachable_pub)]
mod etcdserverpb;
pub mod limits;
pub mod maintain;
pub mod serve;
pub mod transform;

pub use error::StoreError;

/// A point in the store's history. 0 means "none"; an empty store stands at 1, so no written state has revision 0.
pub type Revision = u64;

/// A key: text such as `/registry/pods/default/web-0`.
pub type Key = Arc<str>;

/// The most operations, and the most compares, one transaction may hold: etcd's default, so both backends agree.
pub const MAX_TXN_OPS: usize = 128;

/// The name of a lease: keys attached to it are deleted when it expires or is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// One stored version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Key,
    /// The value, shared with the store: cloning copies a pointer.
    pub value: Bytes,
    /// The revision that created the key (since it last did not exist).
    pub create_revision: Revision,
    /// The revision that wrote this version.
    pub mod_revision: Revision,
    /// 1 for a key just created, one more for each write since.
    pub version: u64,
    /// The lease that deletes the key when it ends.
    pub lease: Option<LeaseId>,
}

/// One effect of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a value; the key is attached to `lease`, or to none.
    Put { key: Key, value: Bytes, lease: Option<LeaseId> },
    /// Removes a key; removing an absent key changes nothing.
    Delete { key: Key },
}

impl Op {
    /// The key the operation touches.
    pub fn key(&self) -> &Key {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

/// A precondition: the key was last written at `mod_revision`; 0 means the key must not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key to look at.
    pub key: Key,
    /// The revision it must have been written at, or 0 for "absent".
    pub mod_revision: Revision,
}

/// All compares hold → all operations happen, at one revision. Otherwise nothing happens.
///
/// A key may appear in one operation only; at most [`MAX_TXN_OPS`] operations and as many compares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The preconditions; none means "always".
    pub compares: Vec<Compare>,
    /// The effects.
    pub ops: Vec<Op>,
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// It happened, at this revision. A transaction that changed nothing (no operations, or deletes of absent keys)
    /// reports the revision the store stood at.
    Committed { revision: Revision },
    /// A compare failed: nothing happened. `current` holds what each compared key is now, one for each compare.
    Conflict { current: Vec<Option<KeyValue>>, revision: Revision },
}

/// The answer to a range read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The keys in order, at most `limit`.
    pub items: Vec<KeyValue>,
    /// Whether the limit cut the answer: continue at the last key followed by `\0`, at the same revision.
    pub more: bool,
    /// How many keys the whole range holds.
    pub count: u64,
    /// The revision the range was read at.
    pub revision: Revision,
    /// The newest revision of the store.
    pub current_revision: Revision,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Key,
    /// The revision of the change; changes of one transaction share it.
    pub revision: Revision,
    /// What happened.
    pub kind: ChangeKind,
    /// What the key was before; absent when it did not exist (or, with etcd, when that version is compacted).
    pub previous: Option<KeyValue>,
}

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was written.
    Put(KeyValue),
    /// It was deleted.
    Delete,
}

/// One delivery of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// One or more whole revisions, ascending; never empty, never split inside a revision.
    Changes(Arc<[Change]>),
    /// Everything up to this revision has been delivered.
    Progress(Revision),
}

/// A watch: ends after its first error.
pub type WatchStream = BoxStream<'static, Result<WatchItem, StoreError>>;

/// The one interface to state; see the crate's page for what both implementations guarantee.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Runs a transaction; durable when it returns.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError>;

    /// Reads one key, now or as it was at a revision (`Some(0)` means now). Returns the store's newest revision too.
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<KeyValue>, Revision), StoreError>;

    /// Whether a key's value is stored in the form it would be written in now. False only after the keys of encryption
    /// have changed: then writing the same value once more is not idle.
    async fn is_current(&self, _key: &str) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// Reads the keys in `start..end` (see [`prefix_end`]); `limit` 0 means all.
    async fn range(&self, start: &str, end: &str, limit: usize, at: Option<Revision>) -> Result<Range, StoreError>;

    /// The newest revision, linearizable: no earlier than any write acknowledged before the call.
    async fn current_revision(&self) -> Result<Revision, StoreError>;

    /// All changes of keys starting with `prefix` and of a revision greater than `after`: past ones first, then as they
    /// happen. For every revision the store reaches, the stream comes to deliver a change or progress at or above it
    /// (with etcd: once [`Backend::request_progress`] was called).
    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, StoreError>;

    /// Bytes of the store's files, where they are at hand.
    fn size_bytes(&self) -> Option<u64> {
        None
    }

    /// Asks that all watches report how far they are. Nothing to do for the embedded store: it always reports.
    async fn request_progress(&self) -> Result<(), StoreError>;

    /// Forgets history before `revision`: reads at it still work, reads and watches before it get `Compacted`.
    /// Compacting what is already compacted does nothing.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// Makes a lease that ends after `ttl_seconds` unless kept alive.
    async fn grant_lease(&self, ttl_seconds: u64) -> Result<LeaseId, StoreError>;

    /// Gives a lease its whole time again.
    async fn keep_alive_lease(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease now, deleting the keys attached to it at one revision.
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError>;
}

/// The exclusive end of the range of all keys starting with `prefix`: the prefix with its last character raised by one.
/// The end of the empty prefix is the greatest character, above every key in use.
pub fn prefix_end(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        // The successor in code point order is the successor in UTF-8's byte order; surrogates are skipped.
        let next = match u32::from(last) + 1 {
            0xD800 => Some('\u{E000}'),
            n => char::from_u32(n),
        };
        if let Some(next) = next {
            end.push(next);
            return end;
        }
    }
    char::MAX.to_string()
}

#[cfg(test)]
mod tests;
