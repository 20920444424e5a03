//! Moving a store's keys to another one, while the first is in use, and checking that both agree.
//!
//! Guarantees: what is copied is one revision of the source; nothing in the target is written over; following goes on right
//! after that revision, in its order. Keys, values and what is left of leases move; revisions do not: the target counts its
//! own, so clients of the old store must read anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use crate::embedded::Embedded;
use crate::embedded::leases::Leases;
use crate::etcd::Etcd;
use crate::{
    Backend, Change, ChangeKind, Compare, Key, KeyValue, LeaseId, Op, Revision, StoreError, Txn, TxnOutcome, WatchItem,
    prefix_end,
};

/// Keys read at a time.
const PAGE_KEYS: usize = 500;

/// Keys written in one transaction.
const BATCH_KEYS: usize = 100;

/// A transaction takes no further key once it carries so many bytes: well below what either store takes.
const BATCH_BYTES: usize = 512 << 10;

/// Differences told by name.
pub const MAX_DIFFERENCES: usize = 20;

/// How often, and how far apart, a key that differs is read again: a change may be under way to the other store.
const RECHECKS: (u32, Duration) = (20, Duration::from_millis(100));

/// One of the two stores.
#[derive(Clone)]
pub enum Side {
    /// A directory, opened here.
    Embedded(Arc<Embedded>),
    /// Whatever speaks etcd's API.
    Etcd(Arc<Etcd>),
}

impl Side {
    /// The store behind it.
    pub fn backend(&self) -> &dyn Backend {
        match self {
            Side::Embedded(store) => &**store,
            Side::Etcd(store) => &**store,
        }
    }

    /// The seconds a lease has left; none when it has ended.
    async fn lease_seconds(&self, lease: LeaseId) -> Result<Option<u64>, StoreError> {
        match self {
            Side::Embedded(store) => {
                let left = move |leases: &Leases, now: u64| Some(leases.term(lease)?.expires_ms.saturating_sub(now));
                Ok(store.look(left).await?.map(|milliseconds| milliseconds.div_ceil(1000)))
            }
            Side::Etcd(store) => store.lease_seconds(lease).await,
        }
    }
}

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Keys written.
    pub keys: u64,
    /// Their bytes, with their values.
    pub bytes: u64,
    /// Leases made.
    pub leases: u64,
    /// The revision of the source that was copied.
    pub revision: Revision,
}

/// Copies from one store to another.
pub struct Copy {
    from: Side,
    to: Side,
    prefix: String,
    /// The target's lease for each of the source's.
    leases: HashMap<LeaseId, LeaseId>,
}

impl Copy {
    /// Of all keys that start with a prefix.
    pub fn new(from: Side, to: Side, prefix: &str) -> Self {
        Copy { from, to, prefix: prefix.to_owned(), leases: HashMap::new() }
    }

    /// Copies the keys as they are now. The target must hold none of them.
    pub async fn run(&mut self) -> Result<Copied, StoreError> {
        let end = prefix_end(&self.prefix);
        let there = self.to.backend().range(&self.prefix, &end, 1, None).await?.count;
        if there > 0 {
            return Err(StoreError::Invalid(format!("the target holds {there} keys below {:?} already", self.prefix)));
        }
        let mut copied = Copied { keys: 0, bytes: 0, leases: 0, revision: 0 };
        let mut start = self.prefix.clone();
        loop {
            let at = Some(copied.revision);
            let page = self.from.backend().range(&start, &end, PAGE_KEYS, at).await?;
            copied.revision = page.revision;
            let Some(last) = page.items.last() else { break };
            start = format!("{}\0", last.key);
            let mut batch = Txn::default();
            let mut bytes = 0;
            for kv in &page.items {
                let size = kv.key.len() + kv.value.len();
                if batch.ops.len() == BATCH_KEYS || (bytes + size > BATCH_BYTES && !batch.ops.is_empty()) {
                    self.write_new(std::mem::take(&mut batch)).await?;
                    bytes = 0;
                }
                bytes += size;
                copied.keys += 1;
                copied.bytes += size as u64;
                batch.compares.push(Compare { key: kv.key.clone(), mod_revision: 0 });
                batch.ops.push(self.put(kv).await?);
            }
            self.write_new(batch).await?;
            if !page.more {
                break;
            }
        }
        copied.leases = self.leases.len() as u64;
        Ok(copied)
    }

    async fn write_new(&self, batch: Txn) -> Result<(), StoreError> {
        match self.to.backend().txn(batch).await? {
            TxnOutcome::Committed { .. } => Ok(()),
            TxnOutcome::Conflict { current, .. } => {
                let key = current.into_iter().flatten().next().map_or_else(String::new, |kv| kv.key.to_string());
                Err(StoreError::Invalid(format!("somebody else writes the target: {key:?} appeared in it")))
            }
        }
    }

    async fn put(&mut self, kv: &KeyValue) -> Result<Op, StoreError> {
        let lease = match kv.lease {
            Some(lease) => Some(self.lease(lease).await?),
            None => None,
        };
        Ok(Op::Put { key: kv.key.clone(), value: kv.value.clone(), lease })
    }

    /// The target's lease that ends when the source's does.
    async fn lease(&mut self, lease: LeaseId) -> Result<LeaseId, StoreError> {
        if let Some(made) = self.leases.get(&lease) {
            return Ok(*made);
        }
        // One that has just ended takes its keys along in a moment.
        let seconds = self.from.lease_seconds(lease).await?.unwrap_or(1).max(1);
        let made = self.to.backend().grant_lease(seconds).await?;
        self.leases.insert(lease, made);
        Ok(made)
    }

    /// Applies to the target what changes in the source after a revision, until `until` says that a revision is far enough.
    pub async fn follow(
        &mut self,
        after: Revision,
        mut until: impl FnMut(Revision) -> bool,
    ) -> Result<Revision, StoreError> {
        let mut watch = self.from.backend().watch(&self.prefix, after).await?;
        let mut reached = after;
        while !until(reached) {
            self.from.backend().request_progress().await?;
            match watch.next().await {
                None => return Err(StoreError::Unavailable("the watch of the source ended".into())),
                Some(Err(error)) => return Err(error),
                Some(Ok(WatchItem::Progress(revision))) => reached = revision,
                Some(Ok(WatchItem::Changes(changes))) => {
                    for revision in changes.chunk_by(|a, b| a.revision == b.revision) {
                        self.apply(revision).await?;
                        reached = revision[0].revision;
                    }
                }
            }
        }
        Ok(reached)
    }

    /// Applies one revision, in one transaction where it fits.
    async fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let mut ops = Vec::with_capacity(changes.len().min(BATCH_KEYS));
        let mut bytes = 0;
        for change in changes {
            let op = match &change.kind {
                ChangeKind::Put(kv) => self.put(kv).await?,
                ChangeKind::Delete => Op::Delete { key: change.key.clone() },
            };
            let size = change.key.len() + if let Op::Put { value, .. } = &op { value.len() } else { 0 };
            if ops.len() == BATCH_KEYS || (bytes + size > BATCH_BYTES && !ops.is_empty()) {
                self.to.backend().txn(Txn { compares: Vec::new(), ops: std::mem::take(&mut ops) }).await?;
                bytes = 0;
            }
            bytes += size;
            ops.push(op);
        }
        self.to.backend().txn(Txn { compares: Vec::new(), ops }).await?;
        Ok(())
    }
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Keys that both hold with the same value.
    pub same: u64,
    /// Keys that differ or are in one store only.
    pub different: u64,
    /// Some of these, with what is different, at most [`MAX_DIFFERENCES`].
    pub examples: Vec<(Key, &'static str)>,
}

impl Comparison {
    /// Whether both stores hold the same.
    pub fn agrees(&self) -> bool {
        self.different == 0
    }
}

/// One store read in order, a page at a time, all at one revision.
struct Pages<'a> {
    store: &'a dyn Backend,
    start: String,
    end: String,
    at: Revision,
    page: std::vec::IntoIter<KeyValue>,
    more: bool,
}

impl<'a> Pages<'a> {
    fn new(side: &'a Side, prefix: &str) -> Self {
        let (start, end) = (prefix.to_owned(), prefix_end(prefix));
        Pages { store: side.backend(), start, end, at: 0, page: Vec::new().into_iter(), more: true }
    }

    async fn next(&mut self) -> Result<Option<KeyValue>, StoreError> {
        if self.page.len() == 0 && self.more {
            let page = self.store.range(&self.start, &self.end, PAGE_KEYS, Some(self.at)).await?;
            (self.at, self.more) = (page.revision, page.more);
            if let Some(last) = page.items.last() {
                self.start = format!("{}\0", last.key);
            }
            self.page = page.items.into_iter();
        }
        Ok(self.page.next())
    }
}

/// What is different between two versions of a key.
fn difference(a: Option<&KeyValue>, b: Option<&KeyValue>) -> Option<&'static str> {
    match (a, b) {
        (None, None) => None,
        (Some(_), None) => Some("only in the first"),
        (None, Some(_)) => Some("only in the second"),
        (Some(a), Some(b)) if a.value != b.value => Some("the values differ"),
        (Some(a), Some(b)) if a.lease.is_some() != b.lease.is_some() => Some("one of them is on a lease"),
        (Some(_), Some(_)) => None,
    }
}

/// Compares all keys that start with a prefix. Both stores may be in use, with one following the other: a key that differs
/// is read again for a while.
pub async fn compare(a: &Side, b: &Side, prefix: &str) -> Result<Comparison, StoreError> {
    let mut found = Comparison::default();
    let (mut first, mut second) = (Pages::new(a, prefix), Pages::new(b, prefix));
    let (mut left, mut right) = (first.next().await?, second.next().await?);
    while let Some(key) = [&left, &right].into_iter().flatten().map(|kv| kv.key.clone()).min() {
        let mut of_left = left.take_if(|kv| kv.key == key);
        let mut of_right = right.take_if(|kv| kv.key == key);
        let mut what = difference(of_left.as_ref(), of_right.as_ref());
        let (took_left, took_right) = (of_left.is_some(), of_right.is_some());
        for _ in 0..RECHECKS.0 {
            if what.is_none() || found.different >= MAX_DIFFERENCES as u64 {
                break;
            }
            tokio::time::sleep(RECHECKS.1).await;
            of_left = a.backend().get(&key, None).await?.0;
            of_right = b.backend().get(&key, None).await?.0;
            what = difference(of_left.as_ref(), of_right.as_ref());
        }
        match what {
            None => found.same += 1,
            Some(what) => {
                found.different += 1;
                if found.examples.len() < MAX_DIFFERENCES {
                    found.examples.push((key, what));
                }
            }
        }
        if took_left {
            left = first.next().await?;
        }
        if took_right {
            right = second.next().await?;
        }
    }
    Ok(found)
}
