//! Events about pods, their containers and the node, worded as upstream words them.

use client::{Client, EventType, Recorder};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim, Pod};

use crate::spec::{self, Kind};

/// What an event is about.
pub type About = ObjectReference;

/// The agent's event recorder.
pub struct Events {
    recorder: Recorder,
    node: String,
}

impl Events {
    pub fn new(client: &Client, node: &str) -> Self {
        Self { recorder: Recorder::new(client, "kubelet", node), node: node.into() }
    }

    pub fn about_pod(&self, pod: &Pod) -> About {
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: None,
        }
    }

    pub fn about_container(&self, pod: &Pod, kind: Kind, name: &str) -> About {
        let list = match kind {
            Kind::Init | Kind::Sidecar => "initContainers",
            Kind::Main => "containers",
            Kind::Ephemeral => "ephemeralContainers",
        };
        ObjectReference { field_path: Some(format!("spec.{list}{{{name}}}")), ..self.about_pod(pod) }
    }

    /// The container of any kind with this name.
    pub fn about_named(&self, pod: &Pod, name: &str) -> About {
        let kind = spec::find_container(pod, name).map_or(Kind::Main, |(kind, _)| kind);
        self.about_container(pod, kind, name)
    }

    pub fn about_claim(&self, claim: &PersistentVolumeClaim) -> About {
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("PersistentVolumeClaim".into()),
            namespace: claim.metadata.namespace.clone(),
            name: claim.metadata.name.clone(),
            uid: claim.metadata.uid.clone(),
            resource_version: claim.metadata.resource_version.clone(),
            field_path: None,
        }
    }

    pub fn about_node(&self) -> About {
        ObjectReference {
            kind: Some("Node".into()),
            name: Some(self.node.clone()),
            // Upstream's agent names the node here, and `kubectl describe node` looks for it.
            uid: Some(self.node.clone()),
            ..Default::default()
        }
    }

    pub fn normal(&self, about: &About, reason: &str, message: &str) {
        self.recorder.event(about, EventType::Normal, reason, message);
    }

    pub fn warning(&self, about: &About, reason: &str, message: &str) {
        self.recorder.event(about, EventType::Warning, reason, message);
    }
}
