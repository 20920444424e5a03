//! ConfigMaps and Secrets that pods of this node refer to.
//!
//! Each object is read afresh when a pod first needs it (one read serves all who asked before it began), then followed by
//! name (nothing wider, so that a node sees no secret it has no pod for) until its last pod is gone. Changes wake the pods
//! that use it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use client::informer::Scope;
use client::{Batch, Client, Gvr, Informer, Object, Status};
use tokio_util::task::AbortOnDropHandle;

/// Which kinds are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Referent {
    ConfigMap,
    Secret,
}

impl Referent {
    fn resource(self) -> Gvr {
        Gvr::new(
            "",
            "v1",
            match self {
                Referent::ConfigMap => "configmaps",
                Referent::Secret => "secrets",
            },
        )
    }

    /// As messages name it.
    pub fn word(self) -> &'static str {
        match self {
            Referent::ConfigMap => "configmap",
            Referent::Secret => "secret",
        }
    }
}

type Key = (Referent, String, String);

struct Entry {
    informer: Arc<Informer>,
    /// The newest version read directly; the informer overtakes it.
    fresh: Option<Arc<Object>>,
    reads: Arc<Reads>,
    users: HashSet<String>,
    _watcher: AbortOnDropHandle<()>,
}

/// Direct reads of one object, one at a time.
#[derive(Default)]
struct Reads {
    asked: AtomicU64,
    /// What the last one found, and how many had asked before it began.
    found: tokio::sync::Mutex<(u64, Option<Arc<Object>>)>,
}

impl Reads {
    /// What a read finds that begins now or later.
    async fn next(
        &self,
        read: impl Future<Output = Result<Option<Arc<Object>>, Status>>,
    ) -> Result<Option<Arc<Object>>, Status> {
        let turn = self.asked.fetch_add(1, Ordering::AcqRel);
        let mut found = self.found.lock().await;
        if turn < found.0 {
            return Ok(found.1.clone());
        }
        let served = self.asked.load(Ordering::Acquire);
        let object = read.await?;
        *found = (served, object.clone());
        Ok(object)
    }
}

type Wake = Arc<dyn Fn(&str) + Send + Sync>;

/// The followed objects.
pub struct References {
    client: Client,
    entries: Arc<Mutex<HashMap<Key, Entry>>>,
    wake: Wake,
}

impl References {
    /// `wake` is called with the uid of each pod whose object changed.
    pub fn new(client: Client, wake: Wake) -> Self {
        Self { client, entries: Arc::default(), wake }
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Entry>> {
        // Entries are whole after every statement.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self, key: &Key) -> Entry {
        let scope = Scope {
            namespace: key.1.clone(),
            field_selector: Some(format!("metadata.name={}", key.2)),
            ..Scope::all(key.0.resource())
        };
        let informer = Informer::start(&self.client, scope);
        let mut changes = informer.subscribe();
        let (entries, wake, key) = (Arc::downgrade(&self.entries), self.wake.clone(), key.clone());
        let watcher = tokio::spawn(async move {
            while let Some(batch) = changes.next().await {
                if let Batch::Changes(list) = &batch
                    && list.is_empty()
                {
                    continue;
                }
                let Some(entries) = entries.upgrade() else { return };
                let users: Vec<String> = {
                    let entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
                    entries.get(&key).map(|e| e.users.iter().cloned().collect()).unwrap_or_default()
                };
                users.iter().for_each(|uid| wake(uid));
            }
        });
        Entry {
            informer,
            fresh: None,
            reads: Arc::default(),
            users: HashSet::new(),
            _watcher: AbortOnDropHandle::new(watcher),
        }
    }

    /// The object as of now or later than this pod's first asking; `None` when there is none.
    pub async fn get(
        &self,
        kind: Referent,
        namespace: &str,
        name: &str,
        pod_uid: &str,
    ) -> Result<Option<Arc<Object>>, Status> {
        let key: Key = (kind, namespace.into(), name.into());
        let reads = {
            let mut entries = self.entries();
            if !entries.contains_key(&key) {
                let entry = self.follow(&key);
                entries.insert(key.clone(), entry);
            }
            let entry = entries.get_mut(&key);
            entry.and_then(|e| e.users.insert(pod_uid.into()).then(|| e.reads.clone()))
        };
        if let Some(reads) = reads {
            let api = self.client.dynamic(kind.resource()).namespaced(namespace);
            let read = reads.next(api.get_opt(name)).await;
            let mut entries = self.entries();
            let entry = entries.get_mut(&key);
            match read {
                Ok(object) => {
                    if let (Some(entry), Some(object)) = (entry, &object)
                        && entry.fresh.as_ref().is_none_or(|f| f.resource_version < object.resource_version)
                    {
                        entry.fresh = Some(object.clone());
                    }
                    return Ok(object);
                }
                Err(status) => {
                    if let Some(entry) = entry {
                        entry.users.remove(pod_uid);
                    }
                    return Err(status);
                }
            }
        }
        let (informer, fresh) = match self.entries().get(&key) {
            Some(entry) => (entry.informer.clone(), entry.fresh.clone()),
            None => return Ok(None),
        };
        informer.synced().await;
        let followed = informer.get(&format!("{namespace}/{name}"));
        Ok(match (followed, fresh) {
            (Some(a), Some(b)) => Some(if a.resource_version >= b.resource_version { a } else { b }),
            (None, Some(b)) if informer.resource_version() < b.resource_version => Some(b),
            (a, _) => a,
        })
    }

    /// A pod is gone: objects nobody uses any more are no longer followed.
    pub fn release(&self, pod_uid: &str) {
        self.entries().retain(|_, entry| {
            entry.users.remove(pod_uid);
            !entry.users.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_read_serves_all_who_asked_before_it() {
        let (reads, begun) = (Reads::default(), AtomicU64::new(0));
        let ask = |fails: bool| {
            let read = async move {
                tokio::task::yield_now().await;
                if fails { Err(Status::internal("down")) } else { Ok(None) }
            };
            let begun = &begun;
            reads.next(async move {
                begun.fetch_add(1, Ordering::Relaxed);
                read.await
            })
        };
        // The first begins at once; the others ask meanwhile and share the second.
        let (a, b, c) = tokio::join!(ask(false), ask(false), ask(false));
        assert!(a.is_ok() && b.is_ok() && c.is_ok());
        assert_eq!(begun.swap(0, Ordering::Relaxed), 2);
        // A failure is nobody else's, and neither is what was found before it.
        let (a, b, c) = tokio::join!(ask(true), ask(true), ask(false));
        assert!(a.is_err() && b.is_err() && c.is_ok());
        assert_eq!(begun.swap(0, Ordering::Relaxed), 3);
        // Who gives up leaves nothing behind.
        let given_up = tokio::time::timeout(std::time::Duration::ZERO, reads.next(std::future::pending())).await;
        assert!(given_up.is_err() && ask(false).await.is_ok());
        assert_eq!(begun.load(Ordering::Relaxed), 1);
    }
}
