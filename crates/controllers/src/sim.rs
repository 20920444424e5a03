//! A small world for this crate's tests: an API in memory with what controllers rely on (versions, preconditions,
//! finalizers, graceful deletion, watches, discovery), and a kubelet that runs every pod at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use client::{Client, Informers, Transport};
use futures::StreamExt;
use meta::{EventKind, Gvr, List, Object, Reply, Request, RequestBody, Status, Verb, WatchEvent};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::Options;

/// (group/version, resource, kind, namespaced)
const RESOURCES: &[(&str, &str, &str, bool)] = &[
    ("v1", "pods", "Pod", true),
    ("v1", "services", "Service", true),
    ("v1", "endpoints", "Endpoints", true),
    ("v1", "configmaps", "ConfigMap", true),
    ("v1", "serviceaccounts", "ServiceAccount", true),
    ("v1", "persistentvolumeclaims", "PersistentVolumeClaim", true),
    ("v1", "nodes", "Node", false),
    ("v1", "namespaces", "Namespace", false),
    ("apps/v1", "deployments", "Deployment", true),
    ("apps/v1", "replicasets", "ReplicaSet", true),
    ("apps/v1", "statefulsets", "StatefulSet", true),
    ("apps/v1", "daemonsets", "DaemonSet", true),
    ("apps/v1", "controllerrevisions", "ControllerRevision", true),
    ("batch/v1", "jobs", "Job", true),
    ("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", true),
];

type Watcher = (String, String, Option<String>, mpsc::UnboundedSender<Vec<WatchEvent>>);

/// How watches misbehave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chaos {
    /// A watch ends after each event.
    pub cut: bool,
    /// Each event comes twice.
    pub duplicate: bool,
    /// Milliseconds an event is late.
    pub late: u64,
}

#[derive(Default)]
struct State {
    revision: u64,
    uids: u64,
    objects: BTreeMap<(String, String), Value>,
    watchers: Vec<Watcher>,
    log: Vec<String>,
    chaos: Chaos,
    /// Every event there was: (resource, kind, object).
    history: Vec<(String, EventKind, Arc<Object>)>,
    /// Objects that were made: (resource, name).
    made: Vec<(String, String)>,
    /// Writes asked for, refused ones too.
    writes: usize,
    /// The server does not answer.
    down: bool,
    /// The answer to the next write is lost.
    deaf: bool,
}

fn merge(into: &mut Value, patch: &Value, strategic: bool) {
    let Some(patch) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(key);
        } else if key == "conditions" && strategic {
            let known = into.as_object_mut().unwrap().entry(key).or_insert(json!([])).as_array_mut().unwrap();
            for condition in value.as_array().unwrap() {
                match known.iter_mut().find(|c| c["type"] == condition["type"]) {
                    Some(known) => merge(known, condition, true),
                    None => known.push(condition.clone()),
                }
            }
        } else {
            merge(&mut into[key], value, strategic);
        }
    }
}

impl State {
    fn tell(&mut self, resource: &str, kind: EventKind, body: &Value) {
        let object = Arc::new(Object::from_value(body).unwrap());
        self.history.push((resource.into(), kind, object.clone()));
        let chaos = self.chaos;
        self.watchers.retain(|(r, namespace, name, send)| {
            let wanted = r == resource && (namespace.is_empty() || *namespace == *object.meta.namespace);
            let named = name.as_ref().is_none_or(|n| **n == *object.meta.name);
            if !(wanted && named) {
                return true;
            }
            // An object of his own for each, as from a server elsewhere.
            let event = || WatchEvent::Object { kind, object: Arc::new(Object::from_value(body).unwrap()) };
            let batch = if chaos.duplicate { vec![event(), event()] } else { vec![event()] };
            send.send(batch).is_ok() && !chaos.cut
        });
    }

    fn store(&mut self, resource: &str, key: &str, mut body: Value) -> Arc<Object> {
        self.revision += 1;
        body["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let at = (resource.to_string(), key.to_string());
        let finalizers = body["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        let leaving = body["metadata"].get("deletionTimestamp").is_some();
        let held = resource == "pods" && body["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) > 0;
        let namespace =
            resource == "namespaces" && body["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        if leaving && !finalizers && !held && !namespace {
            self.objects.remove(&at);
            self.tell(resource, EventKind::Deleted, &body);
        } else {
            let old = self.objects.insert(at, body.clone());
            let kind = if old.is_some() { EventKind::Modified } else { EventKind::Added };
            self.tell(resource, kind, &body);
        }
        Arc::new(Object::from_value(&body).unwrap())
    }
}

#[derive(Clone, Default)]
pub struct Sim(Arc<Mutex<State>>);

impl Sim {
    fn act(&self, request: Request) -> Result<Reply, Status> {
        let mut state = self.0.lock().unwrap();
        let Gvr { group, resource, .. } = request.resource.clone();
        let resource = &*resource;
        if resource == "events" {
            return Ok(Reply::Value {
                value: json!({"kind": "Event", "apiVersion": "v1", "metadata": {"name": "e"}}),
                code: 201,
            });
        }
        let (body, strategic) = match request.body {
            RequestBody::Value { value, content_type } => (value, content_type.contains("strategic")),
            _ => (Value::Null, false),
        };
        let key = meta::object::object_key(&request.namespace, &request.name);
        let missing = || Status::not_found(&group, resource, &request.name);
        let conflict = || Status::conflict(&group, resource, &request.name, "the object has been modified");
        let current = state.objects.get(&(resource.to_string(), key.clone())).cloned();
        if request.verb.is_write() {
            state.writes += 1;
            let sub = if request.subresource.is_empty() { String::new() } else { format!("/{}", request.subresource) };
            let name = body["metadata"]["name"]
                .as_str()
                .filter(|_| request.verb == Verb::Create)
                .unwrap_or(&request.name)
                .to_string();
            state.log.push(format!("{} {resource}{sub} {name}", request.verb.as_str()));
        }
        match request.verb {
            Verb::Get => {
                let object = Arc::new(Object::from_value(&current.ok_or_else(missing)?).unwrap());
                Ok(Reply::Object { object, created: false })
            }
            Verb::List => {
                let inside =
                    |k: &str| request.namespace.is_empty() || k.starts_with(&format!("{}/", request.namespace));
                let items = state.objects.iter().filter(|((r, k), _)| r == resource && inside(k));
                let items = items.map(|(_, v)| Arc::new(Object::from_value(v).unwrap())).collect();
                Ok(Reply::List(List { resource_version: state.revision, items, ..List::default() }))
            }
            Verb::Watch => {
                let from: u64 = request.options.resource_version.unwrap().parse().unwrap();
                let name = request
                    .options
                    .field_selector
                    .as_deref()
                    .and_then(|f| f.strip_prefix("metadata.name="))
                    .map(Into::into);
                let (send, receive) = mpsc::unbounded_channel();
                for (r, kind, object) in &state.history {
                    if r == resource && object.resource_version > from {
                        let _ = send.send(vec![WatchEvent::Object { kind: *kind, object: object.clone() }]);
                    }
                }
                state.watchers.push((resource.into(), request.namespace.clone(), name, send));
                let late = Duration::from_millis(state.chaos.late);
                let stream = UnboundedReceiverStream::new(receive).then(move |batch| async move {
                    if !late.is_zero() {
                        tokio::time::sleep(late).await;
                    }
                    batch
                });
                Ok(Reply::Watch(stream.boxed()))
            }
            Verb::Create => {
                let leaving = state.objects.get(&("namespaces".into(), request.namespace.clone()));
                if leaving.is_some_and(|n| n["metadata"].get("deletionTimestamp").is_some()) {
                    let cause = meta::Cause { reason: "NamespaceTerminating".into(), ..meta::Cause::default() };
                    return Err(
                        Status::forbidden(&group, resource, "", "it is being terminated").with_causes(vec![cause])
                    );
                }
                let mut body = body;
                let name = body["metadata"]["name"]
                    .as_str()
                    .map(Into::into)
                    .unwrap_or_else(|| format!("{}{}", body["metadata"]["generateName"].as_str().unwrap(), state.uids));
                let key = meta::object::object_key(&request.namespace, &name);
                if state.objects.contains_key(&(resource.to_string(), key.clone())) {
                    return Err(Status::already_exists(&group, resource, &name));
                }
                state.uids += 1;
                body["metadata"]["name"] = name.into();
                body["metadata"]["uid"] = format!("uid-{}", state.uids).into();
                body["metadata"]["creationTimestamp"] =
                    format!("2026-01-01T00:{:02}:{:02}Z", state.uids / 60 % 60, state.uids % 60).into();
                body["metadata"]["generation"] = 1.into();
                if !request.namespace.is_empty() {
                    body["metadata"]["namespace"] = request.namespace.into();
                }
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_string();
                state.made.push((resource.to_string(), name));
                Ok(Reply::Object { object: state.store(resource, &key, body), created: true })
            }
            Verb::Update | Verb::Patch => {
                let current = current.ok_or_else(missing)?;
                let mut next = current.clone();
                if request.verb == Verb::Patch {
                    merge(&mut next, &body, strategic);
                } else {
                    next = body.clone();
                }
                let version = &body["metadata"]["resourceVersion"];
                let uid = &body["metadata"]["uid"];
                if (version.is_string() && *version != current["metadata"]["resourceVersion"])
                    || (uid.is_string() && *uid != current["metadata"]["uid"])
                {
                    return Err(conflict());
                }
                if request.subresource == "status" {
                    // As the server's: all but status and what is noted about the object stays.
                    let (status, noted) = (next["status"].take(), next["metadata"]["annotations"].take());
                    next = current.clone();
                    next["status"] = status;
                    if !noted.is_null() {
                        next["metadata"]["annotations"] = noted;
                    }
                } else if let Some(status) = current.get("status") {
                    next["status"] = status.clone();
                }
                if next["spec"] != current["spec"] {
                    next["metadata"]["generation"] = (current["metadata"]["generation"].as_i64().unwrap() + 1).into();
                }
                if next == current {
                    return Ok(Reply::Object {
                        object: Arc::new(Object::from_value(&current).unwrap()),
                        created: false,
                    });
                }
                Ok(Reply::Object { object: state.store(resource, &key, next), created: false })
            }
            Verb::Delete => {
                let mut next = current.ok_or_else(missing)?;
                let wanted = &body["preconditions"];
                let differs =
                    |field: &str, at: &str| wanted[field].is_string() && wanted[field] != next["metadata"][at];
                if differs("uid", "uid") || differs("resourceVersion", "resourceVersion") {
                    return Err(conflict());
                }
                let mut finalizers = next["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
                match body["propagationPolicy"].as_str() {
                    Some("Foreground") => finalizers.push("foregroundDeletion".into()),
                    Some("Orphan") => finalizers.push("orphan".into()),
                    _ => {}
                }
                if !finalizers.is_empty() {
                    next["metadata"]["finalizers"] = finalizers.into();
                }
                next["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z".into();
                let graceful =
                    resource == "pods" && next["spec"].get("nodeName").is_some() && body["gracePeriodSeconds"] != 0;
                next["metadata"]["deletionGracePeriodSeconds"] = if graceful { 30 } else { 0 }.into();
                Ok(Reply::Object { object: state.store(resource, &key, next), created: false })
            }
            Verb::DeleteCollection => {
                let prefix = format!("{}/", request.namespace);
                let keys: Vec<String> = state
                    .objects
                    .keys()
                    .filter(|(r, k)| r == resource && k.starts_with(&prefix))
                    .map(|(_, k)| k.clone())
                    .collect();
                drop(state);
                for key in keys {
                    let (namespace, name) = meta::object::split_key(&key);
                    let one = Request::new(Verb::Delete, request.resource.clone(), namespace, name).json(json!({}));
                    self.act(one)?;
                }
                Ok(Reply::Value { value: Value::Null, code: 200 })
            }
        }
    }

    fn gvr(resource: &str) -> Gvr {
        let row = RESOURCES.iter().find(|r| r.1 == resource).unwrap();
        let (group, version) = row.0.split_once('/').unwrap_or(("", row.0));
        Gvr::new(group, version, resource)
    }

    /// Creates an object in namespace `n`, or cluster-wide.
    pub fn create(&self, resource: &str, mut body: Value) -> Value {
        let row = RESOURCES.iter().find(|r| r.1 == resource).unwrap();
        body["kind"] = row.2.into();
        body["apiVersion"] = row.0.into();
        let namespace = if row.3 { "n" } else { "" };
        match self
            .act(Request::new(Verb::Create, Self::gvr(resource), namespace, "").json(body))
            .unwrap_or_else(|e| panic!("{e}"))
        {
            Reply::Object { object, .. } => object.value().unwrap(),
            _ => panic!("no object"),
        }
    }

    pub fn patch(&self, resource: &str, key: &str, subresource: &str, patch: Value) {
        let (namespace, name) = meta::object::split_key(key);
        let mut request = Request::new(Verb::Patch, Self::gvr(resource), namespace, name).subresource(subresource);
        request.body = RequestBody::Value { content_type: "application/merge-patch+json", value: patch };
        self.act(request).unwrap_or_else(|e| panic!("{e}"));
    }

    pub fn delete(&self, resource: &str, key: &str, body: Value) {
        let (namespace, name) = meta::object::split_key(key);
        self.act(Request::new(Verb::Delete, Self::gvr(resource), namespace, name).json(body))
            .unwrap_or_else(|e| panic!("{e}"));
    }

    pub fn get(&self, resource: &str, key: &str) -> Value {
        self.0.lock().unwrap().objects.get(&(resource.into(), key.into())).cloned().unwrap_or(Value::Null)
    }

    pub fn all(&self, resource: &str) -> Vec<Value> {
        self.0.lock().unwrap().objects.iter().filter(|((r, _), _)| r == resource).map(|(_, v)| v.clone()).collect()
    }

    /// Makes watches misbehave from now on.
    pub fn misbehave(&self, chaos: Chaos) {
        self.0.lock().unwrap().chaos = chaos;
    }

    /// Names of all objects of a resource ever made.
    pub fn made(&self, resource: &str) -> Vec<String> {
        self.0.lock().unwrap().made.iter().filter(|(r, _)| r == resource).map(|(_, name)| name.clone()).collect()
    }

    /// The server goes, and every watch with it, or comes back.
    pub fn set_down(&self, down: bool) {
        let mut state = self.0.lock().unwrap();
        state.down = down;
        state.watchers.clear();
    }

    /// Loses the answer to the next write, which is done all the same.
    pub fn lose_an_answer(&self) {
        self.0.lock().unwrap().deaf = true;
    }

    fn is_up(&self) -> Result<(), Status> {
        match self.0.lock().unwrap().down {
            true => Err(Status::new(meta::Reason::ServiceUnavailable, "connection refused")),
            false => Ok(()),
        }
    }

    /// Writes asked for so far.
    pub fn writes(&self) -> usize {
        self.0.lock().unwrap().writes
    }

    /// Writes so far, and forgets them.
    pub fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().log)
    }

    /// What a kubelet and a scheduler would do next with each pod; `end` tells how a pod that runs shall end, if it shall.
    pub fn run_pods(&self, end: impl Fn(&Value) -> Option<&'static str>) {
        for pod in self.all("pods") {
            let key = format!("n/{}", pod["metadata"]["name"].as_str().unwrap());
            let phase = pod["status"]["phase"].as_str().unwrap_or_default();
            if pod["metadata"].get("deletionTimestamp").is_some() {
                if pod["metadata"]["deletionGracePeriodSeconds"] != 0 {
                    self.patch("pods", &key, "", json!({"metadata": {"deletionGracePeriodSeconds": 0}}));
                }
            } else if pod["spec"].get("nodeName").is_none() {
                let pinned = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
                    ["nodeSelectorTerms"][0]["matchFields"][0]["values"][0];
                let node = pinned.as_str().unwrap_or("node-1");
                self.patch("pods", &key, "", json!({"spec": {"nodeName": node}}));
            } else if phase.is_empty() {
                let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:30:00Z"}]);
                let ip = format!("10.0.0.{}", pod["metadata"]["uid"].as_str().unwrap().trim_start_matches("uid-"));
                self.patch(
                    "pods",
                    &key,
                    "status",
                    json!({"status": {"phase": "Running", "conditions": ready, "podIP": ip, "podIPs": [{"ip": ip}]}}),
                );
            } else if phase == "Running"
                && let Some(end) = end(&pod)
            {
                let ready = json!([{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:31:00Z"}]);
                self.patch("pods", &key, "status", json!({"status": {"phase": end, "conditions": ready}}));
            }
        }
    }

    /// Runs the controllers while `scenario` lasts; time is paused and flies.
    pub async fn with_controllers<F: Future<Output = ()>>(&self, names: &[&str], scenario: F) {
        let client = Client::new(self.clone());
        let cancel = CancellationToken::new();
        let options = Options { controllers: names.iter().map(ToString::to_string).collect(), ..Options::default() };
        let running = tokio::spawn(crate::run(client.clone(), Informers::new(client), options, cancel.clone()));
        scenario.await;
        cancel.cancel();
        running.await.unwrap().unwrap();
    }

    /// Lets pods run and time pass until something holds.
    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        self.until_with(what, |_| None, holds).await;
    }

    pub async fn until_with(
        &self,
        what: &str,
        end: impl Fn(&Value) -> Option<&'static str>,
        holds: impl Fn(&Self) -> bool,
    ) {
        for _ in 0..600 {
            if holds(self) {
                return;
            }
            self.run_pods(&end);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let state = self.0.lock().unwrap();
        let objects: Vec<String> = state.objects.iter().map(|((r, k), v)| format!("{r} {k} {}", v["status"])).collect();
        panic!("never: {what}\n{}\n{}", state.log.join("\n"), objects.join("\n"));
    }

    /// Lets things settle.
    pub async fn settle(&self) {
        for _ in 0..40 {
            self.run_pods(|_| None);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[async_trait]
impl Transport for Sim {
    async fn call(&self, request: Request) -> Result<Reply, Status> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.is_up()?;
        let write = request.verb.is_write();
        let reply = self.act(request);
        // An answer to a write may be lost on its way though the write was done.
        if write && std::mem::take(&mut self.0.lock().unwrap().deaf) {
            return Err(Status::new(meta::Reason::ServiceUnavailable, "connection reset by peer"));
        }
        reply
    }

    async fn get_path(&self, path: &str) -> Result<Bytes, Status> {
        self.is_up()?;
        let groups: Vec<&str> = ["apps/v1", "batch/v1", "discovery.k8s.io/v1"].into();
        if path == "/apis" {
            let version = |g: &&str| json!({"name": g, "versions": [{"groupVersion": g}], "preferredVersion": {"groupVersion": g}});
            return Ok(json!({"groups": groups.iter().map(version).collect::<Vec<_>>()}).to_string().into());
        }
        let wanted = path.trim_start_matches("/apis/").trim_start_matches("/api/");
        let verbs = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
        let rows = RESOURCES.iter().filter(|r| r.0 == wanted);
        let rows: Vec<Value> =
            rows.map(|r| json!({"name": r.1, "kind": r.2, "namespaced": r.3, "verbs": verbs})).collect();
        Ok(json!({"resources": rows}).to_string().into())
    }
}
