//! What several tests, benches and examples share.
#![allow(dead_code, reason = "not every user uses all")]

pub mod cells;
pub mod disks;
pub mod hardware;

use std::sync::Arc;

use client::Change;
use meta::Object;
use scheduler::Source;
use scheduler::core::Core;
use scheduler::node::Offer;
use scheduler::pod::{Pod, Specs};
use scheduler::profile::{Profile, ProfileRef};
use scheduler::selector::Selector;
use scheduler::symbol::Labels;
use scheduler::view::{NodeView, PodView};
use serde_json::Value;

/// A core fed with API objects, without an API.
pub struct Cluster {
    pub core: Core,
    pub specs: Specs,
}

pub fn object(mut body: Value) -> Object {
    let key = format!("{}/{}/{}", body["kind"], body["metadata"]["namespace"], body["metadata"]["name"]);
    if body["metadata"]["uid"].is_null() {
        body["metadata"]["uid"] = key.into();
    }
    if body["metadata"]["resourceVersion"].is_null() {
        body["metadata"]["resourceVersion"] = "1".into();
    }
    Object::from_value(&body).expect("an object")
}

impl Cluster {
    /// For pods of one scheduler's name.
    pub fn new(scheduler_name: &str) -> Self {
        let profile = Profile { scheduler_name: scheduler_name.into(), ..Profile::default() };
        Self::of(vec![ProfileRef::new(profile)])
    }

    /// For pods of several.
    pub fn of(profiles: Vec<ProfileRef>) -> Self {
        Self { core: Core::default(), specs: Specs::with_profiles(profiles) }
    }

    /// A claim, a volume, a class, or a node's drivers.
    pub fn storage(&mut self, object: Arc<Object>) {
        let source = match &*object.kind {
            "PersistentVolumeClaim" => Source::Claims,
            "PersistentVolume" => Source::Volumes,
            "StorageClass" => Source::Classes,
            _ => Source::CsiNodes,
        };
        self.core
            .snapshot
            .storage
            .take(source, &Change { key: object.meta.key().into(), old: None, new: Some(object) });
    }

    /// A claim on devices, a class or a slice of them.
    pub fn devices(&mut self, source: Source, object: Arc<Object>) {
        self.core
            .snapshot
            .devices
            .take(source, &Change { key: object.meta.key().into(), old: None, new: Some(object) });
    }

    pub fn node(&mut self, object: &Object) {
        let view: NodeView = serde_json::from_slice(object.raw()).expect("a node");
        self.core.snapshot.set_node(&object.meta.name, Offer::of(object, &view));
    }

    pub fn namespace(&mut self, object: &Object) {
        let labels = Labels::new(object.meta.labels.iter().map(|(k, v)| (&**k, &**v)));
        self.core.snapshot.set_namespace(&object.meta.name, Some(labels));
    }

    pub fn service(&mut self, object: &Object) {
        let body = object.value().expect("a service");
        let pairs: Vec<(String, String)> = body["spec"]["selector"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_string()))
            .collect();
        let selector =
            (!pairs.is_empty()).then(|| Selector::equal(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()))));
        self.core.snapshot.spread_defaults.set_service(&object.meta.namespace, &object.meta.name, selector);
    }

    pub fn pod(&mut self, object: &Object) -> Pod {
        let view: PodView = serde_json::from_slice(object.raw()).expect("a pod");
        Pod::new(object, &view, &mut self.specs)
    }
}
