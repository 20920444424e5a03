//! Informers: a resource's objects kept in memory by list and watch.
//!
//! An [`Informer`] lists, then watches from the list's version, resumes after interruptions, and lists again when the
//! server no longer has the version (410). Subscribers see the difference in every case, deletions too. [`Informers`]
//! shares one informer per resource and selector among the components of a process.

use std::any::TypeId;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::Resource;
use meta::{EventKind, Gvr, LabelSelector, Object, Reason, Status, WatchEvent};
use rand::Rng;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::api::{ListOptions, gvr_of};
use crate::queue::Backoff;
use crate::store::Store;
use crate::subscription::Subscription;
use crate::{Client, DynamicApi};

/// Between attempts to list or watch: soon at first, so that a cluster starts fast; then politely.
const RETRY: Backoff = Backoff { first: Duration::from_millis(50), most: Duration::from_secs(15) };
/// Seconds a watch is asked to last at least; the same again at most is added at random, so that they do not all end together.
const WATCH_SECONDS: u64 = 300;
/// How long past its own end a silent watch is believed before the connection counts as dead.
const WATCH_GRACE: Duration = Duration::from_secs(15);
/// A watch that ends sooner than this without a word is treated as a failure, lest it spin.
const SHORT_WATCH: Duration = Duration::from_secs(1);

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

    fn reduce(self, object: &mut Arc<Object>) {
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

/// A resource's objects in memory, kept current until it is dropped.
pub struct Informer {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

impl Informer {
    /// Starts following; must be called within a tokio runtime.
    pub fn start(client: &Client, scope: Scope) -> Arc<Self> {
        let shared = Arc::new(Shared { scope, store: Store::default(), version: watch::Sender::new(None) });
        let stop = CancellationToken::new();
        let api = client.dynamic(shared.scope.resource.clone()).namespaced(&shared.scope.namespace);
        let follower = Follower { api, shared: shared.clone() };
        let stopped = stop.clone();
        tokio::spawn(async move {
            stopped.run_until_cancelled(follower.follow()).await;
            follower.shared.store.close();
        });
        Arc::new(Self { shared, _stop: stop.drop_guard() })
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

/// Why following has to start over, or go on.
enum Ended {
    /// Watch again from the last version.
    Resume,
    /// The version is gone: list again.
    Expired,
    Failed(Status),
}

struct Follower {
    api: DynamicApi,
    shared: Arc<Shared>,
}

impl Follower {
    fn options(&self, resource_version: Option<String>) -> ListOptions {
        ListOptions {
            label_selector: self.shared.scope.label_selector.clone(),
            field_selector: self.shared.scope.field_selector.clone(),
            resource_version,
            ..ListOptions::default()
        }
    }

    async fn follow(&self) {
        let mut failures = 0u32;
        // `0`: the first list may come from any cache; after a 410 only the newest will do.
        let mut list_at = Some("0".to_string());
        let (mut listed, mut served) = (false, true);
        loop {
            let ended = if listed {
                self.watch(&mut failures).await
            } else {
                match self.list(list_at.clone()).await {
                    Ok(()) => {
                        (listed, served, failures) = (true, true, 0);
                        continue;
                    }
                    Err(status) => Ended::Failed(status),
                }
            };
            match ended {
                Ended::Resume => {}
                Ended::Expired => (listed, list_at) = (false, None),
                // The kind itself is gone, and its objects with it. It may come back: asked for now and then, quietly.
                Ended::Failed(status) if status.is_not_found() => {
                    if std::mem::take(&mut served) {
                        tracing::debug!(resource = %self.shared.scope.resource, "is not served");
                        self.shared.store.replace(Vec::new());
                    }
                    (listed, list_at, failures) = (false, None, failures.saturating_add(1));
                    tokio::time::sleep(RETRY.after(failures)).await;
                }
                Ended::Failed(status) => {
                    failures = failures.saturating_add(1);
                    // The first failures of a start are no news; after that once each doubling is enough.
                    if failures >= 4 && failures.is_power_of_two() {
                        tracing::warn!(resource = %self.shared.scope.resource, failures, "cannot follow: {status}");
                    }
                    if matches!(status.reason, Reason::Expired | Reason::Gone) {
                        (listed, list_at) = (false, None);
                    }
                    tokio::time::sleep(RETRY.after(failures)).await;
                }
            }
        }
    }

    async fn list(&self, resource_version: Option<String>) -> Result<(), Status> {
        let mut options = self.options(resource_version);
        let mut list = self.api.list(&options).await?;
        // A server may hand out pages unasked.
        while let Some(token) = list.continue_token.take() {
            options.resource_version = None;
            options.continue_token = Some(token);
            let page = self.api.list(&options).await?;
            list.items.extend(page.items);
            list.continue_token = page.continue_token;
        }
        list.items.iter_mut().for_each(|o| self.shared.scope.keep.reduce(o));
        self.shared.store.replace(list.items);
        self.shared.version.send_replace(Some(list.resource_version));
        Ok(())
    }

    async fn watch(&self, failures: &mut u32) -> Ended {
        let from = self.shared.version.borrow().unwrap_or(0);
        let seconds = WATCH_SECONDS + rand::rng().random_range(0..WATCH_SECONDS);
        let options = ListOptions { timeout_seconds: Some(seconds), ..self.options(Some(from.to_string())) };
        let mut stream = match self.api.watch(&options).await {
            Ok(stream) => stream,
            Err(status) => return Ended::Failed(status),
        };
        let started = Instant::now();
        let deadline = started + Duration::from_secs(seconds) + WATCH_GRACE;
        let mut heard = false;
        loop {
            let batch = match tokio::time::timeout_at(deadline, stream.next()).await {
                Ok(Some(batch)) => batch,
                Ok(None) if !heard && started.elapsed() < SHORT_WATCH => {
                    return Ended::Failed(Status::new(Reason::ServiceUnavailable, "the watch ended at once"));
                }
                Ok(None) | Err(_) => return Ended::Resume,
            };
            (heard, *failures) = (true, 0);
            if let Some(ended) = self.take(batch) {
                return ended;
            }
        }
    }

    /// Takes one batch: first the objects, then the version, so that who waits for a version finds its objects.
    fn take(&self, batch: Vec<WatchEvent>) -> Option<Ended> {
        let mut version = self.shared.version.borrow().unwrap_or(0);
        let mut objects = Vec::with_capacity(batch.len());
        let mut ended = None;
        for event in batch {
            match event {
                WatchEvent::Object { kind, mut object } => {
                    self.shared.scope.keep.reduce(&mut object);
                    version = version.max(object.resource_version);
                    objects.push((object, kind == EventKind::Deleted));
                }
                WatchEvent::Bookmark { resource_version, .. } => version = version.max(resource_version),
                WatchEvent::Error(status) => {
                    let expired = status.code == 410 || matches!(status.reason, Reason::Expired | Reason::Gone);
                    ended = Some(if expired { Ended::Expired } else { Ended::Failed(status) });
                    break;
                }
            }
        }
        if !objects.is_empty() {
            self.shared.store.apply(objects.iter().map(|(o, deleted)| (o, *deleted)));
        }
        self.shared.version.send_if_modified(|v| v.replace(version) != Some(version));
        ended
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
