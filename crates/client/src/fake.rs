//! A transport for this crate's tests: a few objects in memory, watches that can be cut and expired.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use meta::{EventKind, List, Object, Reason, Reply, Request, RequestBody, Status, Verb, WatchEvent};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::Transport;

#[derive(Clone, Copy)]
enum Unstreamed {
    Refused,
    Broken,
}

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<String, Arc<Object>>,
    watches: Vec<mpsc::UnboundedSender<Vec<WatchEvent>>>,
    /// Watches from before this version are refused with 410.
    oldest: u64,
    /// Why its watches cannot begin with everything there is.
    unstreamed: Option<Unstreamed>,
    log: Vec<String>,
}

#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<State>>);

impl Fake {
    fn tell(state: &mut State, kind: EventKind, object: &Arc<Object>) {
        state.watches.retain(|w| w.send(vec![WatchEvent::Object { kind, object: object.clone() }]).is_ok());
    }

    pub fn put(&self, mut body: Value) -> Arc<Object> {
        let mut state = self.0.lock().unwrap();
        state.revision += 1;
        body["metadata"]["resourceVersion"] = state.revision.to_string().into();
        let name = body["metadata"]["name"].as_str().unwrap().to_string();
        body["metadata"]["uid"] = format!("uid-{name}").into();
        let object = Arc::new(Object::from_value(&body).unwrap());
        let old = state.objects.insert(object.meta.key(), object.clone());
        let kind = if old.is_some() { EventKind::Modified } else { EventKind::Added };
        Self::tell(&mut state, kind, &object);
        object
    }

    pub fn config_map(&self, name: &str, label: &str) -> Arc<Object> {
        self.put(json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name, "namespace": "n", "labels": {"l": label}}}))
    }

    pub fn remove(&self, key: &str) {
        let mut state = self.0.lock().unwrap();
        state.revision += 1;
        let object = state.objects.remove(key).unwrap();
        let mut body = object.value().unwrap();
        body["metadata"]["resourceVersion"] = state.revision.to_string().into();
        Self::tell(&mut state, EventKind::Deleted, &Arc::new(Object::from_value(&body).unwrap()));
    }

    /// Cuts all watches; with `expire`, what happened so far can no longer be watched.
    pub fn cut(&self, expire: bool) {
        let mut state = self.0.lock().unwrap();
        state.watches.clear();
        if expire {
            state.revision += 1;
            state.oldest = state.revision;
        }
    }

    /// From now on a server of old, which refuses lists as watches.
    pub fn age(&self) {
        self.0.lock().unwrap().unstreamed = Some(Unstreamed::Refused);
    }

    /// From now on one over a store of old, which begins such a watch and then cannot.
    pub fn age_store(&self) {
        self.0.lock().unwrap().unstreamed = Some(Unstreamed::Broken);
    }

    pub fn log(&self) -> Vec<String> {
        self.0.lock().unwrap().log.clone()
    }
}

#[async_trait]
impl Transport for Fake {
    async fn call(&self, request: Request) -> Result<Reply, Status> {
        let version = request.options.resource_version.clone();
        let key = meta::object::object_key(&request.namespace, &request.name);
        let body = match &request.body {
            RequestBody::Value { value, .. } => value.clone(),
            _ => Value::Null,
        };
        {
            let mut state = self.0.lock().unwrap();
            let name = if key.is_empty() { String::new() } else { format!(" {key}") };
            state.log.push(format!("{} {}{name}", request.verb.as_str(), request.resource.resource));
        }
        match request.verb {
            Verb::List => {
                let state = self.0.lock().unwrap();
                let items = state.objects.values().cloned().collect();
                Ok(Reply::List(List { resource_version: state.revision, items, ..List::default() }))
            }
            Verb::Watch => {
                let mut state = self.0.lock().unwrap();
                let everything = request.options.send_initial_events == Some(true);
                match state.unstreamed.filter(|_| everything) {
                    Some(Unstreamed::Refused) => {
                        return Err(Status::new(Reason::Invalid, "sendInitialEvents is forbidden for watch"));
                    }
                    Some(Unstreamed::Broken) => {
                        let error = vec![WatchEvent::Error(Status::internal("RequestWatchProgress is disabled"))];
                        return Ok(Reply::Watch(futures::stream::iter([error]).boxed()));
                    }
                    None => {}
                }
                let from: u64 = if everything { 0 } else { version.unwrap().parse().unwrap() };
                if from < state.oldest && !everything {
                    return Err(Status::expired("too old resource version"));
                }
                let (send, receive) = mpsc::unbounded_channel();
                let missed: Vec<_> = state.objects.values().filter(|o| o.resource_version > from).cloned().collect();
                for object in missed {
                    let _ = send.send(vec![WatchEvent::Object { kind: EventKind::Modified, object }]);
                }
                if everything {
                    let end = WatchEvent::Bookmark { resource_version: state.revision, initial_events_end: true };
                    let _ = send.send(vec![end]);
                }
                state.watches.push(send);
                Ok(Reply::Watch(UnboundedReceiverStream::new(receive).boxed()))
            }
            Verb::Get => match self.0.lock().unwrap().objects.get(&key) {
                Some(object) => Ok(Reply::Object { object: object.clone(), created: false }),
                None => Err(Status::not_found(&request.resource.group, &request.resource.resource, &request.name)),
            },
            Verb::Create | Verb::Update => Ok(Reply::Object { object: self.put(body), created: true }),
            Verb::Patch => {
                let current = self.0.lock().unwrap().objects.get(&key).cloned();
                let mut value = current.ok_or_else(|| Status::not_found("", "events", &request.name))?.value().unwrap();
                for (field, to) in body.as_object().unwrap() {
                    value[field] = to.clone();
                }
                Ok(Reply::Object { object: self.put(value), created: false })
            }
            Verb::Delete | Verb::DeleteCollection => {
                self.remove(&key);
                Ok(Reply::Value { value: Value::Null, code: 200 })
            }
        }
    }

    async fn get_path(&self, path: &str) -> Result<Bytes, Status> {
        match path {
            "/apis" => Ok(json!({"groups": [{"name": "apps", "versions": [{"groupVersion": "apps/v1"}], "preferredVersion": {"groupVersion": "apps/v1"}},
                {"name": "down", "versions": [{"groupVersion": "down/v1"}]}]})
            .to_string()
            .into()),
            "/api/v1" => Ok(json!({"resources": [{"name": "pods", "kind": "Pod", "namespaced": true, "verbs": ["list"]}, {"name": "pods/log", "kind": "Pod"}]}).to_string().into()),
            "/apis/apps/v1" => Ok(json!({"resources": []}).to_string().into()),
            _ => Err(Status::unknown_path()),
        }
    }
}
