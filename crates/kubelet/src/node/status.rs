//! What the node says of itself.

use std::collections::BTreeMap;

use client::Patch;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use super::machine;
use crate::agent::Context;
use crate::cri::v1;
use crate::eviction::core::Pressure;
use crate::plugins::devices::Amounts;

/// As many images as upstream lists, the largest first; and names of each.
const MAX_NAMES: usize = 5;

/// What the control plane has to know of this agent before it sends pods that ask for it; sorted.
const DECLARED: [&str; 3] = [
    "InPlacePodLevelResourcesVerticalScaling",
    "InPlacePodVerticalScalingInitContainers",
    "RestartAllContainersOnContainerExits",
];

/// The object to register.
pub fn object(context: &Context, status: &NodeStatus) -> Node {
    let config = &context.config;
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", config.hostname()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", machine::architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", machine::architecture()),
    ]
    .map(|(k, v)| (k.to_string(), v.to_string()))
    .into();
    labels.extend(config.labels.clone());
    let annotations = [("volumes.kubernetes.io/controller-managed-attach-detach".to_string(), "true".to_string())];
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels),
            annotations: Some(annotations.into()),
            ..Default::default()
        },
        spec: Some(NodeSpec {
            taints: Some(config.taints.clone()).filter(|t| !t.is_empty()),
            provider_id: config.provider_id.clone(),
            ..Default::default()
        }),
        status: Some(status.clone()),
    }
}

fn condition(
    type_: &str,
    status: bool,
    reason: &str,
    message: &str,
    before: &NodeStatus,
    now: Timestamp,
) -> NodeCondition {
    let status = if status { "True" } else { "False" };
    let same = before.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == status);
    NodeCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
    }
}

/// What keeps the node from being ready.
async fn not_ready(context: &Context) -> Option<String> {
    if context.shutting_down.load(std::sync::atomic::Ordering::Relaxed) {
        return Some("node is shutting down".into());
    }
    let status = match context.engine.status(v1::StatusRequest { verbose: false }).await {
        Ok(answer) => {
            context.learn_handlers(&answer);
            answer.status.unwrap_or_default()
        }
        Err(status) => return Some(format!("container runtime is down: {}", status.message())),
    };
    let mut why = Vec::new();
    for (name, what) in
        [("RuntimeReady", "container runtime not ready"), ("NetworkReady", "container runtime network not ready")]
    {
        match status.conditions.iter().find(|c| c.r#type == name) {
            Some(c) if c.status => {}
            Some(c) => why.push(format!("{what}: {name}=false reason:{} message:{}", c.reason, c.message)),
            None => why.push(format!("{what}: the engine does not report {name}")),
        }
    }
    (!why.is_empty()).then(|| why.join(", "))
}

async fn images(context: &Context) -> Vec<ContainerImage> {
    let Ok(answer) = context.engine.list_images(v1::ListImagesRequest::default()).await else { return Vec::new() };
    let mut images = answer.images;
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    images.truncate(context.config.reported_images.unwrap_or(usize::MAX));
    images
        .into_iter()
        .map(|i| ContainerImage {
            names: Some(i.repo_digests.into_iter().chain(i.repo_tags).take(MAX_NAMES).collect()),
            size_bytes: Some(i.size as i64),
        })
        .collect()
}

/// The status now; `before` carries transition times.
pub async fn compute(context: &Context, before: &NodeStatus) -> NodeStatus {
    let config = &context.config;
    let now = Timestamp::now();
    let (why, images) = tokio::join!(not_ready(context), images(context));
    let ready = match &why {
        None => condition("Ready", true, "KubeletReady", "kubelet is posting ready status", before, now),
        Some(why) => condition("Ready", false, "KubeletNotReady", why, before, now),
    };
    let pressed = |type_: &str, on: bool, bad: (&str, &str), good: (&str, &str)| {
        let (reason, message) = if on { bad } else { good };
        condition(type_, on, reason, message, before, now)
    };
    let conditions = vec![
        pressed(
            "MemoryPressure",
            context.evictions.under(Pressure::Memory),
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        pressed(
            "DiskPressure",
            context.evictions.under(Pressure::Disk),
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressed(
            "PIDPressure",
            context.evictions.under(Pressure::Pid),
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
        ready,
    ];
    let mut addresses: Vec<NodeAddress> =
        context.host_ips.iter().map(|ip| NodeAddress { type_: "InternalIP".into(), address: ip.to_string() }).collect();
    addresses.push(NodeAddress { type_: "Hostname".into(), address: config.hostname().into() });
    let handlers = context.handlers();
    let (capacity, allocatable) = context.devices.amounts();
    let with = |mut amounts: BTreeMap<String, Quantity>, devices: Amounts| {
        amounts.extend(devices.into_iter().map(|(name, count)| (name, Quantity(count.to_string()))));
        amounts
    };
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(with(context.machine.capacity(config), capacity)),
        allocatable: Some(with(context.machine.allocatable(config), allocatable)),
        conditions: Some(conditions),
        declared_features: Some(DECLARED.map(String::from).into()),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: config.listen.port().into() }),
        }),
        features: Some(NodeFeatures { supplemental_groups_policy: Some(context.supplemental_groups_policy()) }),
        images: Some(images),
        volumes_in_use: Some(context.csi.in_use()).filter(|v| !v.is_empty()),
        node_info: Some(machine::system_info(config, &context.runtime_version())),
        runtime_handlers: Some(
            handlers
                .iter()
                .map(|h| NodeRuntimeHandler {
                    name: Some(h.name.clone()),
                    features: h.features.as_ref().map(|f| NodeRuntimeHandlerFeatures {
                        recursive_read_only_mounts: Some(f.recursive_read_only_mounts),
                        user_namespaces: Some(f.user_namespaces),
                    }),
                })
                .collect(),
        )
        .filter(|h: &Vec<_>| !h.is_empty()),
        ..Default::default()
    }
}

/// Whether anything but heartbeats differs.
pub fn differs(a: &NodeStatus, b: &NodeStatus) -> bool {
    let quiet = |s: &NodeStatus| {
        let mut s = s.clone();
        for condition in s.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        s
    };
    quiet(a) != quiet(b)
}

/// Writes the status. Conditions and addresses are merged by type; the rest replaces what was there.
pub async fn write(context: &Context, status: &NodeStatus) -> Result<(), client::Status> {
    let mut tree: Value = serde_json::to_value(status).map_err(client::Status::internal)?;
    if status.volumes_in_use.is_none() {
        // What is not said stays, and would be attached for ever.
        tree["volumesInUse"] = Value::Null;
    }
    if let Some(list) = tree["addresses"].as_array_mut() {
        // Addresses of an earlier life under the same types must not linger.
        list.push(json!({"$patch": "replace"}));
    }
    let api = context.client.api::<Node>();
    api.patch_status(&context.config.node_name, Patch::Strategic(json!({"status": tree}))).await.map(drop)
}
