//! The dispatcher: one store watch, all caches.
//!
//! Reads everything once, then follows the store's single ordered stream and hands each change to the cache of its
//! prefix. `progress` is the revision up to which every cache is complete. When the stream breaks it resumes after the
//! last revision; when that is compacted the caches are beyond repair and the process says so and ends the feed.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures::StreamExt;
use store::{Backend, Revision, StoreError, WatchItem};
use tokio::sync::{Mutex, watch};

use super::Cache;

/// Everything the server stores lies below this.
pub const ROOT: &str = "/registry/";
/// Wait before the stream is opened again.
const RETRY: Duration = Duration::from_millis(200);

/// The caches by prefix, and how far they are.
pub struct Feed {
    store: Arc<dyn Backend>,
    caches: RwLock<HashMap<Arc<str>, Arc<Cache>>>,
    progress: watch::Sender<Revision>,
    /// Held while changes are applied, so that a cache added meanwhile misses none.
    applying: Mutex<()>,
}

impl Feed {
    pub fn new(store: Arc<dyn Backend>) -> Arc<Self> {
        Arc::new(Self { store, caches: RwLock::default(), progress: watch::Sender::new(0), applying: Mutex::new(()) })
    }

    /// The revision up to which every cache is complete.
    pub fn progress(&self) -> Revision {
        *self.progress.borrow()
    }

    /// What changed below a prefix after `position`, from the store itself: further back than any cache remembers.
    pub async fn history(&self, prefix: &str, position: Revision) -> Result<store::WatchStream, StoreError> {
        let stream = self.store.watch(prefix, position).await?;
        self.store.request_progress().await?;
        Ok(stream)
    }

    /// Waits until every cache is complete up to `revision`. False when `limit` passes first.
    pub async fn reach(&self, revision: Revision, limit: Duration) -> bool {
        if self.progress() >= revision {
            return true;
        }
        let mut progress = self.progress.subscribe();
        tokio::time::timeout(limit, progress.wait_for(|at| *at >= revision)).await.is_ok_and(|r| r.is_ok())
    }

    /// Adds a cache and fills it; complete when this returns.
    pub async fn add(&self, cache: Arc<Cache>) -> Result<(), StoreError> {
        let _held = self.applying.lock().await;
        let start = format!("{}/", cache.prefix());
        let range = self.store.range(&start, &store::prefix_end(&start), 0, None).await?;
        cache.load(&range.items, range.revision);
        self.caches.write().unwrap_or_else(std::sync::PoisonError::into_inner).insert(cache.prefix().clone(), cache);
        Ok(())
    }

    pub fn remove(&self, prefix: &str) {
        self.caches.write().unwrap_or_else(std::sync::PoisonError::into_inner).remove(prefix);
    }

    fn cache_of(&self, key: &str) -> Option<Arc<Cache>> {
        let caches = self.caches.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        // `/registry/pods/…` or `/registry/GROUP/PLURAL/…`.
        let mut slashes = key.match_indices('/').map(|(at, _)| at).skip(2);
        let (second, third) = (slashes.next()?, slashes.next());
        caches.get(&key[..second]).or_else(|| caches.get(&key[..third?])).cloned()
    }

    /// Reads the store's present state into the given caches; the caller then runs [`Feed::follow`].
    pub async fn load(&self, caches: Vec<Arc<Cache>>) -> Result<Revision, StoreError> {
        let _held = self.applying.lock().await;
        let range = self.store.range(ROOT, &store::prefix_end(ROOT), 0, None).await?;
        {
            let mut known = self.caches.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            known.extend(caches.iter().map(|cache| (cache.prefix().clone(), cache.clone())));
        }
        let mut rest = &range.items[..];
        let mut loaded: HashMap<Arc<str>, Vec<_>> = HashMap::new();
        while let Some(first) = rest.first() {
            let cache = self.cache_of(&first.key);
            let same = |key: &str| cache.as_ref().map_or(key == &*first.key, |c| key.starts_with(&**c.prefix()));
            let run = rest.iter().take_while(|item| same(&item.key)).count().max(1);
            if let Some(cache) = cache {
                loaded.entry(cache.prefix().clone()).or_default().extend_from_slice(&rest[..run]);
            }
            rest = &rest[run..];
        }
        for cache in caches {
            cache.load(loaded.get(cache.prefix()).map_or(&[], |items| &items[..]), range.revision);
        }
        self.progress.send_replace(range.revision);
        Ok(range.revision)
    }

    /// Follows the store until it closes or can no longer be followed.
    pub async fn follow(self: Arc<Self>) -> StoreError {
        loop {
            let error = match self.store.watch(ROOT, self.progress()).await {
                Ok(mut stream) => loop {
                    match stream.next().await {
                        Some(Ok(item)) => self.take(item).await,
                        Some(Err(error)) => break error,
                        None => break StoreError::Closed,
                    }
                },
                Err(error) => error,
            };
            match error {
                StoreError::Unavailable(_) => {
                    tracing::warn!(%error, "store watch interrupted");
                    tokio::time::sleep(RETRY).await;
                }
                fatal => return fatal,
            }
        }
    }

    async fn take(&self, item: WatchItem) {
        let _held = self.applying.lock().await;
        let reached = match item {
            WatchItem::Progress(revision) => revision,
            WatchItem::Changes(changes) => {
                let mut rest = &changes[..];
                while let Some(first) = rest.first() {
                    let cache = self.cache_of(&first.key);
                    let same = |key: &str| {
                        cache
                            .as_ref()
                            .is_some_and(|c| key.strip_prefix(&**c.prefix()).is_some_and(|k| k.starts_with('/')))
                    };
                    let run = rest.iter().take_while(|change| same(&change.key)).count().max(1);
                    if let Some(cache) = cache {
                        cache.apply(&rest[..run]);
                    }
                    rest = &rest[run..];
                }
                changes.last().map_or(0, |change| change.revision)
            }
        };
        self.progress.send_if_modified(|at| {
            let further = reached > *at;
            *at = reached.max(*at);
            further
        });
    }
}
