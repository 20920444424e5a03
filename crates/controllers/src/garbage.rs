//! The garbage collector: what nothing owns any more goes; what waits for its dependents is let go after them.
//!
//! Every listable resource, built in or custom, is followed through an informer indexed by owner. A key is one object;
//! reconciling it asks whether its owners still exist, and, when it is being deleted in the foreground or with orphaning, whether
//! its dependents allow it to go. An owner counts as gone only after the API server itself has said so.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use client::{ApiResource, Batch, Client, DeleteOptions, Informer, Informers, Patch, Propagation, Queue};
use futures::FutureExt;
use meta::{Gvr, Object, OwnerReference, Status};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::Context;
use crate::owners::reference_value;
use crate::plan::{Action, Note, Plan};
use crate::runner::{Ask, Controller};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// How often discovery is asked for resources that came or went, besides when a definition changes.
const REDISCOVER: Duration = Duration::from_secs(60);
/// After a definition changed: its resource is served a moment later.
const AFTER_CHANGE: Duration = Duration::from_millis(500);
/// How long a resource that cannot be listed may keep the others waiting.
const FIRST_LIST: Duration = Duration::from_secs(10);
/// Resources whose objects define others.
const DEFINITIONS: &[&str] = &["customresourcedefinitions", "apiservices"];
/// Owners known to be gone, by uid; uids never come back.
const MAX_GONE: usize = 10_000;
/// Resources whose objects own nothing and are owned by nothing, and change all the time.
const IGNORED: &[&str] = &["events"];
const OWNER: &str = "owner";

struct Source {
    api: ApiResource,
    informer: Arc<Informer>,
}

/// The followed resources and what is known of owners.
struct Graph {
    client: Client,
    sources: RwLock<BTreeMap<Gvr, Source>>,
    /// (group, kind) to resource.
    kinds: RwLock<BTreeMap<(String, String), Gvr>>,
    gone: Mutex<(HashSet<String>, VecDeque<String>)>,
    redefined: Notify,
}

/// How an owner stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Solid,
    /// Being deleted in the foreground: it waits for its dependents.
    Waiting,
    Gone,
    /// Its kind is not served, or its place cannot be known.
    Unknown,
}

fn key_of(resource: &Gvr, object_key: &str) -> String {
    format!("{}/{}/{}|{object_key}", resource.group, resource.version, resource.resource)
}

fn parse_key(key: &str) -> Option<(Gvr, &str)> {
    let (resource, object_key) = key.split_once('|')?;
    let mut parts = resource.splitn(3, '/');
    Some((Gvr::new(parts.next()?, parts.next()?, parts.next()?), object_key))
}

fn has_finalizer(object: &Object, name: &str) -> bool {
    object.meta.finalizers.iter().any(|f| &**f == name)
}

/// Waits for its dependents: deleted in the foreground.
fn is_waiting(object: &Object) -> bool {
    object.meta.deletion_timestamp.is_some() && has_finalizer(object, FOREGROUND)
}

/// Whether the object is of any interest without a change of its owners.
fn is_relevant(object: &Object) -> bool {
    !object.meta.owner_references.is_empty()
        || (object.meta.deletion_timestamp.is_some()
            && (has_finalizer(object, FOREGROUND) || has_finalizer(object, ORPHAN)))
}

fn metadata_patch(object: &Object, field: &str, value: Value) -> Patch {
    let metadata =
        json!({"uid": &*object.meta.uid, "resourceVersion": object.resource_version.to_string(), field: value});
    Patch::Merge(json!({"metadata": metadata}))
}

fn without_finalizer(resource: &Gvr, object: &Object, name: &str) -> Action {
    let rest: Vec<&str> = object.meta.finalizers.iter().map(|f| &**f).filter(|f| *f != name).collect();
    Action::patch(resource, object, "", metadata_patch(object, "finalizers", json!(rest)))
}

fn with_owners(resource: &Gvr, object: &Object, keep: impl Fn(&OwnerReference) -> bool) -> Action {
    let rest: Vec<Value> = object.meta.owner_references.iter().filter(|o| keep(o)).map(reference_value).collect();
    Action::patch(resource, object, "", metadata_patch(object, "ownerReferences", json!(rest)))
}

/// What becomes of one object. `standing` holds one entry for each of its owners; `dependents` what it owns itself.
pub fn plan(resource: &Gvr, object: &Object, standing: &[Standing], dependents: &[(Gvr, Arc<Object>)]) -> Plan {
    let mut plan = Plan::nothing();
    if object.meta.deletion_timestamp.is_some() {
        if has_finalizer(object, ORPHAN) {
            plan.stop_at_failure = true;
            let orphan = |(r, d): &(Gvr, Arc<Object>)| with_owners(r, d, |o| *o.uid != *object.meta.uid);
            plan.act(Action::slow_start(dependents.iter().map(orphan).collect()));
            plan.act(without_finalizer(resource, object, ORPHAN));
        } else if has_finalizer(object, FOREGROUND) {
            let blocks = |d: &Object| {
                d.meta
                    .owner_references
                    .iter()
                    .any(|o| *o.uid == *object.meta.uid && o.block_owner_deletion == Some(true))
            };
            if !dependents.iter().any(|(_, d)| blocks(d)) {
                plan.act(without_finalizer(resource, object, FOREGROUND));
            }
        }
        return plan;
    }
    let any = |s: Standing| standing.contains(&s);
    if standing.is_empty() || any(Standing::Unknown) {
        return plan;
    }
    if any(Standing::Solid) {
        if any(Standing::Gone) || any(Standing::Waiting) {
            let solid: BTreeSet<&str> = object
                .meta
                .owner_references
                .iter()
                .zip(standing)
                .filter(|(_, s)| **s == Standing::Solid)
                .map(|(o, _)| o.uid.as_str())
                .collect();
            plan.act(with_owners(resource, object, |o| solid.contains(o.uid.as_str())));
        }
        return plan;
    }
    let propagation = if has_finalizer(object, ORPHAN) {
        Propagation::Orphan
    } else if has_finalizer(object, FOREGROUND) || (any(Standing::Waiting) && !dependents.is_empty()) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    if propagation == Propagation::Foreground {
        // Owners in a circle would wait for each other forever: dependents that wait themselves let this one go. That is
        // done first or not at all: once this one waits, nobody breaks the circle any more.
        plan.stop_at_failure = true;
        for (r, d) in dependents.iter().filter(|(_, d)| is_waiting(d)) {
            let unblock = |o: &OwnerReference| match *o.uid == *object.meta.uid {
                true => reference_value(&OwnerReference { block_owner_deletion: Some(false), ..o.clone() }),
                false => reference_value(o),
            };
            let references: Vec<Value> = d.meta.owner_references.iter().map(unblock).collect();
            plan.act(Action::patch(r, d, "", metadata_patch(d, "ownerReferences", json!(references))));
        }
    }
    let options =
        DeleteOptions { resource_version: Some(object.resource_version.to_string()), ..DeleteOptions::default() };
    plan.act(Action::delete_with(resource, object, options.propagation(propagation)));
    plan
}

impl Graph {
    fn dependents(&self, uid: &str) -> Vec<(Gvr, Arc<Object>)> {
        let sources = self.sources.read().unwrap_or_else(PoisonError::into_inner);
        let owning = sources.iter().filter(|(_, s)| s.informer.is_indexed(OWNER, uid));
        owning.flat_map(|(r, s)| s.informer.by_index(OWNER, uid).into_iter().map(|o| (r.clone(), o))).collect()
    }

    fn is_known_gone(&self, uid: &str) -> bool {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).0.contains(uid)
    }

    fn note_gone(&self, uid: &str) {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if gone.0.insert(uid.to_string()) {
            gone.1.push_back(uid.to_string());
            if gone.1.len() > MAX_GONE
                && let Some(oldest) = gone.1.pop_front()
            {
                gone.0.remove(&oldest);
            }
        }
    }

    async fn standing(&self, object: &Object, owner: &OwnerReference) -> Result<Standing, Status> {
        if self.is_known_gone(&owner.uid) {
            return Ok(Standing::Gone);
        }
        let group = owner.api_version.split_once('/').map_or("", |(g, _)| g).to_string();
        let resource =
            self.kinds.read().unwrap_or_else(PoisonError::into_inner).get(&(group, owner.kind.clone())).cloned();
        let Some(resource) = resource else { return Ok(Standing::Unknown) };
        let (informer, namespaced) = {
            let sources = self.sources.read().unwrap_or_else(PoisonError::into_inner);
            match sources.get(&resource) {
                Some(source) => (source.informer.clone(), source.api.namespaced),
                None => return Ok(Standing::Unknown),
            }
        };
        if namespaced && object.meta.namespace.is_empty() {
            // A cluster-scoped object cannot say which namespace its owner is in.
            return Ok(Standing::Unknown);
        }
        let namespace = if namespaced { &*object.meta.namespace } else { "" };
        let judge = |found: &Object| if is_waiting(found) { Standing::Waiting } else { Standing::Solid };
        if let Some(found) = informer.get(&meta::object::object_key(namespace, &owner.name))
            && *found.meta.uid == *owner.uid
        {
            return Ok(judge(&found));
        }
        // The cache may be late; only the server knows that something is not there.
        match self.client.dynamic(resource).namespaced(namespace).get_opt(&owner.name).await? {
            Some(found) if *found.meta.uid == *owner.uid => Ok(judge(&found)),
            _ => {
                self.note_gone(&owner.uid);
                Ok(Standing::Gone)
            }
        }
    }

    /// Whether an owner lives, but in another namespace, where it can own nothing of this one.
    fn is_elsewhere(&self, object: &Object, owner: &OwnerReference) -> bool {
        let group = owner.api_version.split_once('/').map_or("", |(g, _)| g).to_string();
        let kinds = self.kinds.read().unwrap_or_else(PoisonError::into_inner);
        let Some(resource) = kinds.get(&(group, owner.kind.clone())) else { return false };
        let sources = self.sources.read().unwrap_or_else(PoisonError::into_inner);
        let Some(source) = sources.get(resource).filter(|s| s.api.namespaced) else { return false };
        let is = |o: &Object| *o.meta.uid == *owner.uid && o.meta.namespace != object.meta.namespace;
        !source.informer.list_where(None, is).is_empty()
    }

    async fn reconcile(&self, ask: Ask) -> Result<Plan, Status> {
        let Some((resource, key)) = parse_key(&ask.key) else { return Ok(Plan::nothing()) };
        let informer = {
            let sources = self.sources.read().unwrap_or_else(PoisonError::into_inner);
            match sources.get(&resource) {
                Some(source) => source.informer.clone(),
                None => return Ok(Plan::nothing()),
            }
        };
        let Some(object) = informer.get(key).filter(|o| is_relevant(o)) else { return Ok(Plan::nothing()) };
        let (mut standing, mut elsewhere) = (Vec::with_capacity(object.meta.owner_references.len()), Vec::new());
        if object.meta.deletion_timestamp.is_none() {
            for owner in object.meta.owner_references.iter() {
                // Owners that were seen to go are not looked for.
                let was_seen = self.is_known_gone(&owner.uid);
                let found = self.standing(&object, owner).await?;
                if matches!(found, Standing::Gone | Standing::Unknown) && !was_seen && self.is_elsewhere(&object, owner)
                {
                    elsewhere.push(owner);
                }
                standing.push(found);
            }
        }
        let mut plan = plan(&resource, &object, &standing, &self.dependents(&object.meta.uid));
        for owner in elsewhere {
            let namespace = &object.meta.namespace;
            let said = format!(
                "ownerRef [{}/{}, namespace: {namespace}, name: {}, uid: {}] does not exist in namespace {namespace:?}",
                owner.api_version, owner.kind, owner.name, owner.uid
            );
            plan.note(Note::warning(&object, "OwnerRefInvalidNamespace", said));
        }
        if standing.contains(&Standing::Unknown) {
            // Its kind may be served later on.
            plan.again_after(REDISCOVER / 2);
        }
        Ok(plan)
    }

    /// Looks at changes of one resource until its informer ends.
    async fn follow(self: Arc<Self>, resource: Gvr, informer: Arc<Informer>, queue: Queue<Arc<str>>) {
        let mut subscription = informer.subscribe();
        while let Some(batch) = subscription.next().await {
            if DEFINITIONS.contains(&&*resource.resource) {
                self.redefined.notify_one();
            }
            let changes = match batch {
                Batch::Changes(changes) => changes,
                Batch::Resync => {
                    informer
                        .list(None)
                        .iter()
                        .filter(|o| is_relevant(o))
                        .for_each(|o| queue.add(key_of(&resource, &o.meta.key()).into()));
                    continue;
                }
            };
            for change in changes {
                let replaced = match (&change.old, &change.new) {
                    (Some(old), Some(new)) if old.meta.uid == new.meta.uid => {
                        if !is_relevant(new) && !is_relevant(old) {
                            continue;
                        }
                        // Most changes are of a status.
                        let (was, is) = (&old.meta, &new.meta);
                        if was.owner_references == is.owner_references
                            && was.finalizers == is.finalizers
                            && was.deletion_timestamp == is.deletion_timestamp
                        {
                            continue;
                        }
                        // Its dependents are looked at when it begins to wait for them.
                        if is_waiting(new) && !is_waiting(old) {
                            self.enqueue_dependents(&new.meta.uid, &queue);
                        }
                        self.enqueue_waiting_owners(old, &queue);
                        None
                    }
                    (old, _) => old.as_ref(),
                };
                if let Some(old) = replaced {
                    self.note_gone(&old.meta.uid);
                    self.enqueue_dependents(&old.meta.uid, &queue);
                    self.enqueue_waiting_owners(old, &queue);
                }
                if let Some(new) = change.new.as_ref().filter(|o| is_relevant(o)) {
                    if change.old.is_none() && is_waiting(new) {
                        self.enqueue_dependents(&new.meta.uid, &queue);
                    }
                    queue.add(key_of(&resource, &change.key).into());
                }
            }
        }
    }

    fn enqueue_dependents(&self, uid: &str, queue: &Queue<Arc<str>>) {
        for (resource, dependent) in self.dependents(uid) {
            queue.add(key_of(&resource, &dependent.meta.key()).into());
        }
    }

    /// Owners that wait for their dependents may be done now.
    fn enqueue_waiting_owners(&self, dependent: &Object, queue: &Queue<Arc<str>>) {
        for owner in dependent.meta.owner_references.iter() {
            let group = owner.api_version.split_once('/').map_or("", |(g, _)| g).to_string();
            let resource =
                self.kinds.read().unwrap_or_else(PoisonError::into_inner).get(&(group, owner.kind.clone())).cloned();
            let Some(resource) = resource else { continue };
            let sources = self.sources.read().unwrap_or_else(PoisonError::into_inner);
            let Some(source) = sources.get(&resource) else { continue };
            let namespace = if source.api.namespaced { &*dependent.meta.namespace } else { "" };
            let key = meta::object::object_key(namespace, &owner.name);
            if source.informer.get(&key).is_some_and(|o| is_waiting(&o)) {
                queue.add(key_of(&resource, &key).into());
            }
        }
    }

    /// Follows what discovery names, for as long as the controller runs.
    async fn discover(self: Arc<Self>, informers: Arc<Informers>, queue: Queue<Arc<str>>) {
        let mut followers = JoinSet::new();
        loop {
            match self.client.discover().await {
                Err(status) => tracing::debug!("garbage collector: {status}"),
                Ok(found) => {
                    let wanted: Vec<ApiResource> = found
                        .resources
                        .into_iter()
                        .filter(|r| r.preferred && ["list", "watch", "delete"].iter().all(|v| r.can(v)))
                        .filter(|r| !IGNORED.contains(&&*r.resource.resource))
                        .collect();
                    let mut fresh = Vec::new();
                    {
                        let mut sources = self.sources.write().unwrap_or_else(PoisonError::into_inner);
                        let mut kinds = self.kinds.write().unwrap_or_else(PoisonError::into_inner);
                        // A group whose discovery failed is kept as it was.
                        if found.failed.is_empty() {
                            sources.retain(|r, source| {
                                let stays = wanted.iter().any(|w| w.resource == *r);
                                if !stays {
                                    informers.release(source.informer.scope());
                                }
                                stays
                            });
                            kinds.retain(|_, r| sources.contains_key(r));
                        }
                        for api in wanted {
                            let resource = api.resource.clone();
                            kinds.insert((resource.group.to_string(), api.kind.clone()), resource.clone());
                            if sources.contains_key(&resource) {
                                continue;
                            }
                            let informer = informers.metadata_of(&resource);
                            informer
                                .add_index(OWNER, |o| o.meta.owner_references.iter().map(|r| r.uid.clone()).collect());
                            fresh.push((resource.clone(), informer.clone()));
                            sources.insert(resource, Source { api, informer });
                        }
                    }
                    // Dependents are known only when everything is: first all lists, then the changes.
                    for (_, informer) in &fresh {
                        let _ = tokio::time::timeout(FIRST_LIST, informer.synced()).await;
                    }
                    for (resource, informer) in fresh {
                        followers.spawn(self.clone().follow(resource, informer, queue.clone()));
                    }
                }
            }
            while followers.try_join_next().is_some() {}
            if tokio::time::timeout(REDISCOVER, self.redefined.notified()).await.is_ok() {
                tokio::time::sleep(AFTER_CHANGE).await;
            }
        }
    }
}

pub fn garbage_collector(cx: &Context) -> Controller {
    let graph = Arc::new(Graph {
        client: cx.client.clone(),
        sources: RwLock::default(),
        kinds: RwLock::default(),
        gone: Mutex::default(),
        redefined: Notify::new(),
    });
    let (discovering, informers) = (graph.clone(), cx.informers.clone());
    Controller::with_io("garbage-collector-controller", move |ask| {
        let graph = graph.clone();
        async move { graph.reconcile(ask).await }.boxed()
    })
    .feed(move |queue| discovering.discover(informers, queue).boxed())
    .workers(cx.options.concurrency * 4)
}
