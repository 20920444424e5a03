//! A container's configuration, put together from its parts.

use std::collections::HashMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::expansion::expand;
use super::{Kind, memory, names, resources, security};
use crate::config::Config;
use crate::cri::v1;
use crate::cri::v1::{
    ContainerConfig, ContainerMetadata, Device, Image, ImageSpec, KeyValue, LinuxContainerConfig, Mount,
};

/// What was prepared for one start of a container.
pub struct Prepared {
    pub environment: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    /// The image by id, as the engine knows it.
    pub image_ref: String,
    pub image: Option<Image>,
    pub restart_count: u32,
    /// For an ephemeral container: the id of the container whose processes it sees.
    pub target: Option<String>,
    /// The pod's users, where they are not the node's.
    pub users: Option<v1::UserNamespace>,
    /// What device plugins add.
    pub extra_annotations: Vec<(String, String)>,
    /// Devices by their CDI names.
    pub cdi_devices: Vec<String>,
    pub node: memory::Node,
    /// The node's cgroups are of version 2 alone.
    pub unified: bool,
    /// Where it runs, in the kernel's words; empty: anywhere.
    pub processors: String,
    /// It has them for itself: nothing else bounds what it does with them.
    pub exclusive: bool,
    /// Which nodes its memory comes from, in the kernel's words; empty: any.
    pub memory_nodes: String,
}

/// The engine's word for processor time without a bound.
const NO_QUOTA: i64 = -1;

/// Where the termination message file of a container start is bound from.
pub fn message_file(config: &Config, pod: &Pod, container: &str, restart_count: u32) -> PathBuf {
    config.pod_dir(super::uid(pod)).join("containers").join(container).join(format!("{restart_count}"))
}

/// Files of version 2 of cgroups that have no field of their own.
fn unified(config: &Config, pod: &Pod, container: &Container, node: &memory::Node) -> HashMap<String, String> {
    let numbers = memory::container(&config.memory, node, pod, container).into_iter();
    let mut out: HashMap<String, String> = numbers.map(|(file, value)| (file.to_string(), value)).collect();
    if !config.single_process_oom_kill {
        out.insert("memory.oom.group".into(), "1".into());
    }
    out
}

/// What the engine is told to create.
pub fn config(config: &Config, pod: &Pod, kind: Kind, container: &Container, prepared: Prepared) -> ContainerConfig {
    let text = |t: &str| t.to_string();
    let labels: HashMap<String, String> = [
        (names::POD_NAME, super::name(pod)),
        (names::POD_NAMESPACE, super::namespace(pod)),
        (names::POD_UID, super::uid(pod)),
        (names::CONTAINER_NAME, container.name.as_str()),
    ]
    .map(|(k, v)| (text(k), text(v)))
    .into();
    let mut annotations: HashMap<String, String> = [
        (names::CONTAINER_HASH, names::container_hash(container)),
        (names::RESTART_COUNT, prepared.restart_count.to_string()),
        (names::MESSAGE_PATH, container.termination_message_path.clone().unwrap_or_default()),
        (names::MESSAGE_POLICY, container.termination_message_policy.clone().unwrap_or_default()),
    ]
    .map(|(k, v)| (text(k), v))
    .into();
    if let Some(grace) = super::spec(pod).termination_grace_period_seconds {
        annotations.insert(text(names::POD_GRACE), grace.to_string());
    }
    if let Some(grace) = pod.metadata.deletion_grace_period_seconds {
        annotations.insert(text(names::POD_DELETION_GRACE), grace.to_string());
    }
    if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) {
        annotations.insert(text(names::PRE_STOP), serde_json::to_string(hook).unwrap_or_default());
    }
    if let Some(ports) = container.ports.as_ref().filter(|p| !p.is_empty()) {
        annotations.insert(text(names::CONTAINER_PORTS), serde_json::to_string(ports).unwrap_or_default());
    }
    annotations.extend(prepared.extra_annotations);
    let environment = &prepared.environment;
    let lookup = |name: &str| environment.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
    let expanded = |list: &Option<Vec<String>>| list.iter().flatten().map(|t| expand(t, lookup)).collect();
    let security =
        security::container(pod, kind, container, prepared.image.as_ref(), prepared.target, prepared.users, config);
    let mut numbers = resources::container(pod, kind, container, prepared.node.capacity as i64);
    if !config.cpu_quota || prepared.exclusive {
        numbers.cpu_quota = NO_QUOTA;
    }
    resources::stretch(&mut numbers, config.cpu_period);
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt: prepared.restart_count }),
        image: Some(ImageSpec {
            image: prepared.image_ref,
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: environment.iter().map(|(k, v)| KeyValue { key: k.clone(), value: v.clone().into_bytes() }).collect(),
        mounts: prepared.mounts,
        devices: prepared.devices,
        labels,
        annotations,
        log_path: names::container_log(&container.name, prepared.restart_count),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(LinuxContainerConfig {
            resources: Some(v1::LinuxContainerResources {
                cpuset_cpus: prepared.processors,
                cpuset_mems: prepared.memory_nodes,
                unified: if prepared.unified {
                    unified(config, pod, container, &prepared.node)
                } else {
                    HashMap::new()
                },
                ..numbers
            }),
            security_context: Some(security),
        }),
        windows: None,
        cdi_devices: prepared.cdi_devices.into_iter().map(|name| v1::CdiDevice { name }).collect(),
        stop_signal: container
            .lifecycle
            .as_ref()
            .and_then(|l| v1::Signal::from_str_name(&format!("SIGNAL_{}", l.stop_signal.as_deref()?)))
            .unwrap_or(v1::Signal::RuntimeDefault) as i32,
    }
}
