//! Encryption at rest: values are changed on their way into a backend and back on their way out.
//!
//! [`Transformed`] wraps any [`Backend`], so the embedded store and etcd are served alike, and everything behind it - log,
//! snapshots, saved files, the network to etcd - holds only what the [`Transformer`] made. Keys, revisions and leases stay
//! readable. A value that cannot be read back is an error that names its key, never a gap. Values that are not sealed stay
//! shared between the store and its readers.

mod provider;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;

use crate::{
    Backend, Change, ChangeKind, KeyValue, LeaseId, Op, Range, Revision, StoreError, Txn, TxnOutcome, WatchItem,
    WatchStream,
};

pub use provider::{ByPrefix, Chain, Kind, Provider, Replaceable, Sealer};

/// Turns values into what is stored, and back. `key` is the value's key: what was stored under one key must not be
/// accepted under another.
pub trait Transformer: Send + Sync + 'static {
    /// What to store.
    fn seal(&self, key: &str, value: Bytes) -> Result<Bytes, StoreError>;

    /// What was meant; an error says why it cannot be told.
    fn open(&self, key: &str, stored: Bytes) -> Result<Bytes, StoreError>;

    /// Whether `open` gives what is stored as it is. May say no; then the value is looked at for itself.
    fn passes(&self, key: &str, stored: &[u8]) -> bool;

    /// Whether what is stored is as it would be stored today; otherwise writing the same value again changes it.
    fn is_current(&self, key: &str, stored: &[u8]) -> bool;
}

/// Stores values as they are; refuses what another transformer has sealed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

/// What every sealed value starts with, as upstream marks its encrypted values.
const SEALED: &[u8] = b"k8s:enc:";

impl Transformer for Plain {
    fn seal(&self, _: &str, value: Bytes) -> Result<Bytes, StoreError> {
        Ok(value)
    }

    fn open(&self, key: &str, stored: Bytes) -> Result<Bytes, StoreError> {
        if stored.starts_with(SEALED) {
            return Err(StoreError::Corrupt(format!(
                "the value of {key} is encrypted, and no key for it is configured"
            )));
        }
        Ok(stored)
    }

    fn passes(&self, _: &str, stored: &[u8]) -> bool {
        !stored.starts_with(SEALED)
    }

    fn is_current(&self, key: &str, stored: &[u8]) -> bool {
        self.passes(key, stored)
    }
}

/// A backend whose values go through a transformer.
#[derive(Clone)]
pub struct Transformed {
    inner: Arc<dyn Backend>,
    transformer: Arc<dyn Transformer>,
}

impl Transformed {
    /// Wraps a backend.
    pub fn new(inner: Arc<dyn Backend>, transformer: Arc<dyn Transformer>) -> Self {
        Transformed { inner, transformer }
    }

    fn open(&self, kv: Option<KeyValue>) -> Result<Option<KeyValue>, StoreError> {
        kv.map(|kv| open(&*self.transformer, kv)).transpose()
    }
}

fn open(transformer: &dyn Transformer, kv: KeyValue) -> Result<KeyValue, StoreError> {
    let value = transformer.open(&kv.key, kv.value)?;
    Ok(KeyValue { value, ..kv })
}

fn open_item(transformer: &dyn Transformer, item: WatchItem) -> Result<WatchItem, StoreError> {
    let WatchItem::Changes(changes) = &item else { return Ok(item) };
    let passes = |kv: &KeyValue| transformer.passes(&kv.key, &kv.value);
    let as_they_are = |change: &Change| {
        let now = if let ChangeKind::Put(kv) = &change.kind { Some(kv) } else { None };
        now.into_iter().chain(&change.previous).all(passes)
    };
    // Most values are not sealed: their changes stay shared with all others who read them.
    if changes.iter().all(as_they_are) {
        return Ok(item);
    }
    let change = |change: &Change| {
        let Change { key, revision, kind, previous } = change.clone();
        let kind = match kind {
            ChangeKind::Put(kv) => ChangeKind::Put(open(transformer, kv)?),
            ChangeKind::Delete => ChangeKind::Delete,
        };
        let previous = previous.map(|kv| open(transformer, kv)).transpose()?;
        Ok(Change { key, revision, kind, previous })
    };
    Ok(WatchItem::Changes(changes.iter().map(change).collect::<Result<_, StoreError>>()?))
}

#[async_trait]
impl Backend for Transformed {
    async fn txn(&self, mut txn: Txn) -> Result<TxnOutcome, StoreError> {
        for op in &mut txn.ops {
            if let Op::Put { key, value, .. } = op {
                *value = self.transformer.seal(key, std::mem::take(value))?;
            }
        }
        match self.inner.txn(txn).await? {
            TxnOutcome::Conflict { current, revision } => {
                let current = current.into_iter().map(|kv| self.open(kv)).collect::<Result<_, _>>()?;
                Ok(TxnOutcome::Conflict { current, revision })
            }
            committed => Ok(committed),
        }
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<KeyValue>, Revision), StoreError> {
        let (kv, revision) = self.inner.get(key, at).await?;
        Ok((self.open(kv)?, revision))
    }

    async fn is_current(&self, key: &str) -> Result<bool, StoreError> {
        let stored = self.inner.get(key, None).await?.0;
        Ok(stored.is_none_or(|kv| self.transformer.is_current(key, &kv.value)))
    }

    async fn range(&self, start: &str, end: &str, limit: usize, at: Option<Revision>) -> Result<Range, StoreError> {
        let mut range = self.inner.range(start, end, limit, at).await?;
        for kv in &mut range.items {
            kv.value = self.transformer.open(&kv.key, std::mem::take(&mut kv.value))?;
        }
        Ok(range)
    }

    async fn current_revision(&self) -> Result<Revision, StoreError> {
        self.inner.current_revision().await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, StoreError> {
        let stream = self.inner.watch(prefix, after).await?;
        let transformer = self.transformer.clone();
        // A watch ends after its first error, those of the transformer included.
        let items = futures::stream::unfold(Some(stream), move |open| {
            let transformer = transformer.clone();
            async move {
                let mut stream = open?;
                let item = stream.next().await?.and_then(|item| open_item(&*transformer, item));
                let rest = item.is_ok().then_some(stream);
                Some((item, rest))
            }
        });
        Ok(items.boxed())
    }

    fn size_bytes(&self) -> Option<u64> {
        self.inner.size_bytes()
    }

    async fn request_progress(&self) -> Result<(), StoreError> {
        self.inner.request_progress().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.inner.compact(revision).await
    }

    async fn grant_lease(&self, ttl_seconds: u64) -> Result<LeaseId, StoreError> {
        self.inner.grant_lease(ttl_seconds).await
    }

    async fn keep_alive_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.keep_alive_lease(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.revoke_lease(lease).await
    }
}
