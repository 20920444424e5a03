//! What controllers read of a pod, parsed straight from its bytes: a twentieth of the whole.
//!
//! What a pod has of its template is shared by all pods that have the same ([`Shape`]); what is its own is kept as small
//! as it is asked for. Controllers in a process of their own hold this and the metadata, and no body (see [`informer`]).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use client::{Informer, Informers, Keep, Scope};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Affinity, EphemeralVolumeSource, Pod, PodResourceClaim, PodResourceClaimStatus, ResourceRequirements, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use meta::Object;
use meta::alike::{Alike, hash_of};
use serde::{Deserialize, Serialize};

/// The one informer of all pods.
pub fn informer(informers: &Informers) -> Arc<Informer> {
    informers.get_scope(Scope::all(client::gvr_of::<Pod>()).keeping(Keep::view::<Facts>()))
}

/// The facts of an object that is a pod; `None` when it cannot be read as one.
pub fn facts(object: &Object) -> Option<Arc<Facts>> {
    object.view::<Facts>().ok()
}

/// Words that thousands of pods say; they are not kept once each.
const WORDS: &[&str] = &[
    "Pending",
    "Running",
    "Succeeded",
    "Failed",
    "Unknown",
    "True",
    "False",
    "Ready",
    "DisruptionTarget",
    "PodScheduled",
    "Initialized",
    "ContainersReady",
    "PodReadyToStartContainers",
];

type Word = Cow<'static, str>;

fn word<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Word, D::Error> {
    let text = Option::<String>::deserialize(d)?.unwrap_or_default();
    Ok(WORDS.iter().find(|w| **w == text).map_or(Cow::Owned(text), |w| Cow::Borrowed(*w)))
}

/// Annotations controllers put on pods or are steered by.
const ANNOTATIONS: &[&str] = &[
    "controller.kubernetes.io/pod-deletion-cost",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/job-index-failure-count",
    "batch.kubernetes.io/job-index-ignored-failure-count",
];

/// A container's request for resources, the ports it names, and whether it is a sidecar.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    pub name: Box<str>,
    pub ports: Option<Vec<Port>>,
    pub resources: Option<ResourceRequirements>,
    pub restart_policy: Option<Box<str>>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Port {
    pub name: Option<Box<str>>,
    pub container_port: i32,
    pub protocol: Option<Box<str>>,
}

/// A volume that is a claim, or a Secret.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Volume {
    pub name: Box<str>,
    pub persistent_volume_claim: Option<ClaimSource>,
    pub ephemeral: Option<Box<EphemeralVolumeSource>>,
    pub secret: Option<SecretSource>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClaimSource {
    pub claim_name: Box<str>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecretSource {
    pub secret_name: Option<Box<str>>,
}

/// The group a pod is scheduled with.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SchedulingGroup {
    pub pod_group_name: Option<Box<str>>,
}

pub type Amounts = BTreeMap<String, Quantity>;

/// What pods of one template have in common.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Shape {
    pub active_deadline_seconds: Option<i64>,
    pub affinity: Option<Box<Affinity>>,
    pub containers: Option<Vec<Container>>,
    pub init_containers: Option<Vec<Container>>,
    pub overhead: Option<Amounts>,
    pub priority_class_name: Option<Box<str>>,
    pub resource_claims: Option<Vec<PodResourceClaim>>,
    pub resources: Option<ResourceRequirements>,
    pub scheduling_group: Option<SchedulingGroup>,
    pub subdomain: Option<Box<str>>,
    pub tolerations: Option<Vec<Toleration>>,
    pub volumes: Option<Vec<Volume>>,
}

impl Shape {
    pub fn containers(&self) -> &[Container] {
        self.containers.as_deref().unwrap_or_default()
    }

    /// Init containers that go on running beside the others.
    pub fn sidecars(&self) -> impl Iterator<Item = &Container> {
        self.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"))
    }

    pub fn tolerations(&self) -> &[Toleration] {
        self.tolerations.as_deref().unwrap_or_default()
    }

    pub fn resource_claims(&self) -> &[PodResourceClaim] {
        self.resource_claims.as_deref().unwrap_or_default()
    }

    /// Drops what nobody reads, so that more pods are alike.
    fn reduced(mut self) -> Self {
        for container in self.containers.iter_mut().chain(&mut self.init_containers).flatten() {
            container.ports = container.ports.take().map(|mut ports| {
                ports.retain(|p| p.name.is_some());
                ports
            });
        }
        if let Some(volumes) = &mut self.volumes {
            volumes.retain(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some() || v.secret.is_some());
        }
        self
    }

    fn shared(self) -> Arc<Self> {
        let text = serde_json::to_vec(&self).unwrap_or_default();
        SHAPES.one(hash_of(&text), Arc::new(self))
    }
}

/// Every shape some pod has.
static SHAPES: LazyLock<Alike<Shape>> = LazyLock::new(Alike::default);

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type", deserialize_with = "word")]
    pub kind: Word,
    #[serde(default, deserialize_with = "word")]
    pub status: Word,
    #[serde(default)]
    pub reason: Option<Box<str>>,
    #[serde(default, deserialize_with = "time")]
    pub last_transition_time: Option<Timestamp>,
}

fn time<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(Option::<Time>::deserialize(d)?.map(|t| t.0))
}

/// A container that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    pub container: Box<str>,
    pub code: i32,
    pub at: Option<Timestamp>,
}

/// See the module.
#[derive(Debug, Default, Deserialize)]
#[serde(from = "Wire")]
pub struct Facts {
    pub shape: Arc<Shape>,
    pub node: Box<str>,
    pub hostname: Option<Box<str>>,
    pub phase: Word,
    /// Of a pod that has not failed, only what it says of its readiness and of being disrupted.
    pub conditions: Box<[Condition]>,
    pub ips: Box<[Box<str>]>,
    pub start_time: Option<Timestamp>,
    /// Of the container that was restarted most.
    pub max_restarts: i32,
    /// Of all containers, init containers too.
    pub total_restarts: i64,
    pub ended: Box<[Ended]>,
    pub resource_claim_statuses: Box<[PodResourceClaimStatus]>,
    /// Some of them.
    annotations: Box<[(Box<str>, Box<str>)]>,
}

impl Facts {
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.iter().find(|(known, _)| **known == *name).map(|(_, value)| &**value)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Wire {
    metadata: WireMeta,
    spec: Option<WireSpec>,
    status: Option<WireStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireMeta {
    annotations: Option<BTreeMap<Box<str>, Box<str>>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireSpec {
    node_name: Option<Box<str>>,
    hostname: Option<Box<str>>,
    active_deadline_seconds: Option<i64>,
    affinity: Option<Box<Affinity>>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
    overhead: Option<Amounts>,
    priority_class_name: Option<Box<str>>,
    resource_claims: Option<Vec<PodResourceClaim>>,
    resources: Option<ResourceRequirements>,
    scheduling_group: Option<SchedulingGroup>,
    subdomain: Option<Box<str>>,
    tolerations: Option<Vec<Toleration>>,
    volumes: Option<Vec<Volume>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireStatus {
    #[serde(deserialize_with = "word")]
    phase: Word,
    conditions: Option<Vec<Condition>>,
    #[serde(rename = "podIP")]
    pod_ip: Option<Box<str>>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<Ip>>,
    #[serde(deserialize_with = "time")]
    start_time: Option<Timestamp>,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    resource_claim_statuses: Option<Vec<PodResourceClaimStatus>>,
}

#[derive(Deserialize)]
struct Ip {
    #[serde(default)]
    ip: Box<str>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerStatus {
    name: Box<str>,
    restart_count: i32,
    state: Option<ContainerState>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    terminated: Option<Terminated>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Terminated {
    exit_code: i32,
    #[serde(deserialize_with = "time")]
    finished_at: Option<Timestamp>,
}

impl From<Wire> for Facts {
    fn from(wire: Wire) -> Self {
        let (spec, status) = (wire.spec.unwrap_or_default(), wire.status.unwrap_or_default());
        let shape = Shape {
            active_deadline_seconds: spec.active_deadline_seconds,
            affinity: spec.affinity,
            containers: spec.containers,
            init_containers: spec.init_containers,
            overhead: spec.overhead,
            priority_class_name: spec.priority_class_name,
            resource_claims: spec.resource_claims,
            resources: spec.resources,
            scheduling_group: spec.scheduling_group,
            subdomain: spec.subdomain,
            tolerations: spec.tolerations,
            volumes: spec.volumes,
        };
        let mut conditions = status.conditions.unwrap_or_default();
        // A Job's policy may ask for any condition of a failed pod.
        if status.phase != "Failed" {
            conditions.retain(|c| matches!(&*c.kind, "Ready" | "DisruptionTarget"));
        }
        let own = status.container_statuses.unwrap_or_default();
        let all = own.iter().chain(status.init_container_statuses.iter().flatten());
        let ended = all.clone().filter_map(|c| {
            let terminated = c.state.as_ref()?.terminated.as_ref()?;
            Some(Ended { container: c.name.clone(), code: terminated.exit_code, at: terminated.finished_at })
        });
        let ended = ended.collect();
        let total_restarts = all.map(|c| i64::from(c.restart_count)).sum();
        let many: Box<[Box<str>]> = status.pod_ips.into_iter().flatten().map(|i| i.ip).collect();
        let annotations = wire.metadata.annotations.into_iter().flatten();
        Self {
            shape: shape.reduced().shared(),
            node: spec.node_name.unwrap_or_default(),
            hostname: spec.hostname,
            phase: status.phase,
            conditions: conditions.into(),
            ips: if many.is_empty() { status.pod_ip.into_iter().filter(|ip| !ip.is_empty()).collect() } else { many },
            start_time: status.start_time,
            max_restarts: own.iter().map(|c| c.restart_count).max().unwrap_or(0),
            total_restarts,
            ended,
            resource_claim_statuses: status.resource_claim_statuses.unwrap_or_default().into(),
            annotations: annotations.filter(|(name, _)| ANNOTATIONS.contains(&&**name)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, token: &str) -> Object {
        Object::from_value(&json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": name, "namespace": "n", "uid": name, "annotations": {"a": "b", "batch.kubernetes.io/job-completion-index": "3"}},
            "spec": {
                "nodeName": "node-1", "tolerations": [{"key": "k", "operator": "Exists"}],
                "containers": [{"name": "c", "image": "i", "command": ["x"], "ports": [{"containerPort": 80}, {"name": "web", "containerPort": 81}],
                    "volumeMounts": [{"name": token, "mountPath": "/x"}], "resources": {"requests": {"cpu": "1"}}}],
                "volumes": [{"name": token, "projected": {}}, {"name": "d", "persistentVolumeClaim": {"claimName": "data"}}],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "startTime": "2026-01-01T00:00:00Z",
                "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True", "lastTransitionTime": null}],
                "containerStatuses": [{"name": "c", "restartCount": 2, "state": {"terminated": {"exitCode": 3, "finishedAt": "2026-01-01T00:01:00Z"}}}],
                "initContainerStatuses": [{"name": "i", "restartCount": 5, "state": {"running": {}}}],
            },
        }))
        .unwrap()
    }

    #[test]
    fn pods_of_a_template_share_its_shape() {
        let (a, b) = (facts(&pod("a", "token-x")).unwrap(), facts(&pod("b", "token-y")).unwrap());
        assert!(Arc::ptr_eq(&a.shape, &b.shape));
        let (container, volumes) = (&a.shape.containers()[0], a.shape.volumes.as_ref().unwrap());
        assert_eq!(container.ports.as_ref().unwrap().len(), 1);
        assert_eq!((volumes.len(), &*volumes[0].name), (1, "d"));
        assert_eq!((&*a.node, &*a.phase, a.max_restarts, a.total_restarts), ("node-1", "Running", 2, 7));
        assert_eq!(a.ips.iter().map(|ip| &**ip).collect::<Vec<_>>(), ["10.0.0.1", "fd00::1"]);
        assert_eq!(a.conditions.len(), 1);
        assert_eq!((a.ended.len(), a.ended[0].code), (1, 3));
        assert_eq!(a.annotation("batch.kubernetes.io/job-completion-index"), Some("3"));
        assert_eq!(a.annotation("a"), None);
    }

    #[test]
    fn facts_outlive_the_body() {
        let mut object = pod("a", "t");
        let before = facts(&object).unwrap();
        object.forget_body();
        assert!(Arc::ptr_eq(&facts(&object).unwrap(), &before));
        assert!(object.value().is_err() && object.typed::<Pod>().is_err());
    }

    #[test]
    fn bare_pods_are_pods() {
        let object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "annotations": null}, "spec": null, "status": {"podIP": ""}});
        let facts = facts(&Object::from_value(&object).unwrap()).unwrap();
        assert!(facts.ips.is_empty() && facts.phase.is_empty() && facts.shape.containers().is_empty());
    }
}
