//! Encryption at rest: values are changed on their way into a backend and back on their way out.
//!
//! [`Transformed`] wraps any [`Backend`], so the embedded store and etcd are served alike, and everything behind it - log,
//! snapshots, saved files, the network to etcd - holds only what the [`Transformer`] made. Keys, revisions and leases stay
//! readable. A value that cannot be read back is an error that names its key, never a gap. Where no transformer is wanted,
//! leave the wrapper away: values then stay shared between the store and its readers.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use crate::{
    Backend, Change, ChangeKind, KeyValue, LeaseId, Op, Range, Revision, StoreError, Txn, TxnOutcome, WatchItem,
    WatchStream,
};

/// Turns values into what is stored, and back. `key` is the value's key: what was stored under one key must not be
/// accepted under another.
pub trait Transformer: Send + Sync + 'static {
    /// What to store.
    fn seal(&self, key: &str, value: Bytes) -> Result<Bytes, StoreError>;

    /// What was meant; an error says why it cannot be told.
    fn open(&self, key: &str, stored: Bytes) -> Result<Bytes, StoreError>;
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
}

/// Seals with AES-256-GCM, bound to the key of the value, in upstream's form: `k8s:enc:aesgcm:v1:NAME:`, the nonce, the
/// ciphertext with its tag. Values that are not sealed yet are read as they are, so that encryption can be turned on.
pub struct AesGcm {
    prefix: Vec<u8>,
    key: LessSafeKey,
    random: SystemRandom,
}

impl std::fmt::Debug for AesGcm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AesGcm({})", String::from_utf8_lossy(&self.prefix))
    }
}

impl AesGcm {
    /// A transformer with a named key of 32 bytes.
    pub fn new(name: &str, key: &[u8]) -> Result<Self, StoreError> {
        let unbound = UnboundKey::new(&AES_256_GCM, key)
            .map_err(|_| StoreError::Invalid(format!("an encryption key has 32 bytes, not {}", key.len())))?;
        let prefix = format!("k8s:enc:aesgcm:v1:{name}:").into_bytes();
        Ok(AesGcm { prefix, key: LessSafeKey::new(unbound), random: SystemRandom::new() })
    }
}

impl Transformer for AesGcm {
    fn seal(&self, key: &str, value: Bytes) -> Result<Bytes, StoreError> {
        let failed = |_| StoreError::Unavailable(format!("cannot encrypt the value of {key}"));
        // Random nonces: safe for some four thousand million values under one key.
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(failed)?;
        let head = self.prefix.len() + NONCE_LEN;
        let mut out = Vec::with_capacity(head + value.len() + AES_256_GCM.tag_len());
        out.extend_from_slice(&self.prefix);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&value);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(key), &mut out[head..]).map_err(failed)?;
        out.extend_from_slice(tag.as_ref());
        Ok(out.into())
    }

    fn open(&self, key: &str, stored: Bytes) -> Result<Bytes, StoreError> {
        if !stored.starts_with(SEALED) {
            return Ok(stored);
        }
        let corrupt = |what: &str| StoreError::Corrupt(format!("the value of {key} cannot be decrypted: {what}"));
        let Some(sealed) = stored.strip_prefix(&*self.prefix) else {
            return Err(corrupt("it was sealed with another key"));
        };
        let Some((nonce, sealed)) = sealed.split_first_chunk::<NONCE_LEN>() else {
            return Err(corrupt("it is cut short"));
        };
        let mut out = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.key.open_in_place(nonce, Aad::from(key), &mut out);
        let len = opened.map_err(|_| corrupt("it was changed, or belongs to another key of the store"))?.len();
        out.truncate(len);
        out.shrink_to_fit();
        Ok(out.into())
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
    let WatchItem::Changes(changes) = item else { return Ok(item) };
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
