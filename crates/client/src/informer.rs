//! Informers: a resource's objects kept in memory by list and watch.
//!
//! An [`Informer`] holds what a [`Follower`] brings. Subscribers see the difference in every case, deletions too.
//! [`Informers`] shares one informer per resource and selector among the components of a process.

use std::any::TypeId;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::Resource;
use meta::{Gvr, LabelSelector, Object};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::DropGuard;

use crate::Client;
use crate::api::gvr_of;
use crate::follower::{self, Sink};
use crate::store::Store;
use crate::subscription::Subscription;

/// How much an informer keeps of an object that came over the wire; one shared with a server in this process costs
/// nothing and stays whole. `managedFields` are kept by nobody.
#[derive(Clone, Copy, Debug)]
pub enum Keep {
    Whole,
    /// What [`Object`]'s own fields say.
    Metadata,
    /// That, and one view of the body; see [`Keep::view`].
    View {
        of: TypeId,
        take: fn(&Object) -> bool,
    },
}

impl Keep {
    /// Metadata and the view that [`Object::view`] gives of this type. An object that cannot be read so stays whole.
    pub fn view<T: DeserializeOwned + Send + Sync + 'static>() -> Self {
        Self::View { of: TypeId::of::<T>(), take: |object| object.view::<T>().is_ok() }
    }

    fn identity(&self) -> (u8, Option<TypeId>) {
        match self {
            Self::Whole => (0, None),
            Self::Metadata => (1, None),
            Self::View { of, .. } => (2, Some(*of)),
        }
    }

    pub(crate) fn reduce(self, object: &mut Arc<Object>) {
        // Shared by others already: nothing is saved by a copy.
        let Some(object) = Arc::get_mut(object) else { return };
        let suffices = match self {
            Self::Whole => false,
            Self::Metadata => true,
            Self::View { take, .. } => take(object),
        };
        if suffices {
            object.forget_body();
        } else {
            object.trim();
        }
    }
}

impl PartialEq for Keep {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Keep {}

impl Hash for Keep {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

/// What an informer follows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scope {
    pub resource: Gvr,
    /// Empty for all namespaces.
    pub namespace: String,
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
    pub keep: Keep,
}

impl Scope {
    pub fn all(resource: Gvr) -> Self {
        Self { resource, namespace: String::new(), label_selector: None, field_selector: None, keep: Keep::Whole }
    }

    pub fn keeping(self, keep: Keep) -> Self {
        Self { keep, ..self }
    }
}

struct Shared {
    scope: Scope,
    store: Store,
    /// The version up to which everything is known; `None` before the first list.
    version: watch::Sender<Option<u64>>,
}

impl Sink for Shared {
    const STREAMED: bool = false;

    async fn listed(&self, objects: Vec<Arc<Object>>, version: Option<u64>) {
        self.store.replace(objects);
        self.version.send_replace(version);
    }

    /// First the objects, then the version, so that who waits for a version finds its objects.
    async fn changed(&self, events: Vec<(Arc<Object>, bool)>, version: u64) {
        if !events.is_empty() {
            self.store.apply(events.iter().map(|(o, deleted)| (o, *deleted)));
        }
        self.version.send_if_modified(|v| v.replace(version) != Some(version));
    }

    async fn unserved(&self) {
        self.store.replace(Vec::new());
    }

    fn close(&self) {
        self.store.close();
    }
}

/// A resource's objects in memory, kept current until it is dropped.
pub struct Informer {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

impl Informer {
    /// Starts following; must be called within a tokio runtime.
    pub fn start(client: &Client, scope: Scope) -> Arc<Self> {
        let shared = Arc::new(Shared { scope, store: Store::default(), version: watch::Sender::new(None) });
        let stop = follower::start(client, shared.scope.clone(), shared.clone());
        Arc::new(Self { shared, _stop: stop })
    }

    pub fn scope(&self) -> &Scope {
        &self.shared.scope
    }

    /// By `namespace/name`, or `name`.
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.shared.store.get(key)
    }

    /// All objects of a namespace, or all, in key order.
    pub fn list(&self, namespace: Option<&str>) -> Vec<Arc<Object>> {
        self.shared.store.list_where(namespace, |_| true)
    }

    pub fn list_selected(&self, namespace: Option<&str>, selector: &LabelSelector) -> Vec<Arc<Object>> {
        self.shared.store.list_selected(namespace, selector)
    }

    pub fn list_where(&self, namespace: Option<&str>, want: impl Fn(&Object) -> bool) -> Vec<Arc<Object>> {
        self.shared.store.list_where(namespace, want)
    }

    pub fn len(&self) -> usize {
        self.shared.store.len()
    }

    pub fn is_empty(&self) -> bool {
        self.shared.store.is_empty()
    }

    /// Adds an index; the same name twice keeps the first.
    pub fn add_index(&self, name: &'static str, of: impl Fn(&Object) -> Vec<String> + Send + Sync + 'static) {
        self.shared.store.add_index(name, of);
    }

    /// Indexes labels within namespaces, for [`Informer::list_selected`].
    pub fn index_labels(&self) {
        self.shared.store.index_labels();
    }

    /// Objects an index holds under a value.
    pub fn by_index(&self, name: &str, value: &str) -> Vec<Arc<Object>> {
        self.shared.store.by_index(name, value)
    }

    /// Whether an index holds anything under a value.
    pub fn is_indexed(&self, name: &str, value: &str) -> bool {
        self.shared.store.is_indexed(name, value)
    }

    /// Changed keys from now on, beginning with every object held.
    pub fn subscribe(&self) -> Subscription {
        self.shared.store.subscribe()
    }

    /// Whether the first list has been taken.
    pub fn has_synced(&self) -> bool {
        self.shared.version.borrow().is_some()
    }

    /// Waits for the first list.
    pub async fn synced(&self) {
        self.reached(0).await;
    }

    /// The version up to which everything is known; 0 before the first list.
    pub fn resource_version(&self) -> u64 {
        self.shared.version.borrow().unwrap_or(0)
    }

    /// Waits until everything up to a version is known: how to read one's own writes.
    pub async fn reached(&self, resource_version: u64) {
        let mut versions = self.shared.version.subscribe();
        if versions.wait_for(|v| v.is_some_and(|v| v >= resource_version)).await.is_err() {
            // The sender lives in `self.shared`, so this cannot be; waiting forever is what "never reached" means.
            std::future::pending::<()>().await;
        }
    }
}

/// Shares informers: one for each resource, namespace and selector, kept as long as this lives.
pub struct Informers {
    client: Client,
    running: Mutex<HashMap<Scope, Arc<Informer>>>,
}

impl Informers {
    pub fn new(client: Client) -> Arc<Self> {
        Arc::new(Self { client, running: Mutex::default() })
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// All objects of a kind.
    pub fn get<K: Resource>(&self) -> Arc<Informer> {
        self.get_scope(Scope::all(gvr_of::<K>()))
    }

    /// Objects of a resource in a namespace (empty for all) that selectors pick.
    pub fn get_gvr(&self, resource: Gvr, namespace: &str, labels: Option<&str>, fields: Option<&str>) -> Arc<Informer> {
        self.get_scope(Scope {
            resource,
            namespace: namespace.into(),
            label_selector: labels.map(Into::into),
            field_selector: fields.map(Into::into),
            keep: Keep::Whole,
        })
    }

    /// All objects of a resource, by whatever informer follows them already, however little it keeps of them; else by one
    /// that keeps their metadata.
    pub fn metadata_of(&self, resource: &Gvr) -> Arc<Informer> {
        let known = {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            let all = Scope::all(resource.clone());
            running
                .iter()
                .find(|(scope, _)| all == Scope { keep: Keep::Whole, ..(*scope).clone() })
                .map(|(_, i)| i.clone())
        };
        known.unwrap_or_else(|| self.get_scope(Scope::all(resource.clone()).keeping(Keep::Metadata)))
    }

    pub fn get_scope(&self, scope: Scope) -> Arc<Informer> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.entry(scope).or_insert_with_key(|scope| Informer::start(&self.client, scope.clone())).clone()
    }

    /// Lets go of an informer; it stops when nobody else holds it.
    pub fn release(&self, scope: &Scope) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(scope);
    }

    /// Waits until every informer asked for so far has its first list.
    pub async fn synced(&self) {
        let all: Vec<_> = self.running.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for informer in all {
            informer.synced().await;
        }
    }
}
