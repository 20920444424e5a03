//! From a pod's specification to what CRI is told: sandbox and container configurations. Pure functions of the pod,
//! the node's configuration and what was read beforehand; nothing here does IO except where a module says so.

pub mod container;
pub mod dns;
pub mod downward;
pub mod environment;
pub mod expansion;
pub mod hosts;
pub mod memory;
pub mod names;
pub mod resources;
pub mod sandbox;
pub mod security;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

/// Where a container stands in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Runs to completion before the main ones.
    Init,
    /// An init container with `restartPolicy: Always`: starts in init order and then stays.
    Sidecar,
    Main,
    Ephemeral,
}

/// A pod's spec; an empty one for a pod without (the API server refuses those).
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
    pod.spec.as_ref().unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// `name_namespace(uid)`, as messages name a pod.
pub fn described(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network == Some(true)
}

pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Init containers in order, each told apart from sidecars.
pub fn init_containers(pod: &Pod) -> impl Iterator<Item = (Kind, &Container)> {
    spec(pod).init_containers.iter().flatten().map(|c| (if is_sidecar(c) { Kind::Sidecar } else { Kind::Init }, c))
}

/// Init containers, sidecars and main ones, in order.
pub fn all_containers(pod: &Pod) -> impl Iterator<Item = (Kind, &Container)> {
    init_containers(pod).chain(spec(pod).containers.iter().map(|c| (Kind::Main, c)))
}

/// A container of any kind by name; ephemeral ones in the shape of ordinary ones.
pub fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<(Kind, std::borrow::Cow<'a, Container>)> {
    use std::borrow::Cow;
    all_containers(pod).find(|(_, c)| c.name == name).map(|(kind, c)| (kind, Cow::Borrowed(c))).or_else(|| {
        let c = spec(pod).ephemeral_containers.iter().flatten().find(|c| c.name == name)?;
        Some((Kind::Ephemeral, Cow::Owned(as_container(c))))
    })
}

/// An ephemeral container in the shape of an ordinary one.
pub fn as_container(c: &EphemeralContainer) -> Container {
    Container {
        args: c.args.clone(),
        command: c.command.clone(),
        env: c.env.clone(),
        env_from: c.env_from.clone(),
        image: c.image.clone(),
        image_pull_policy: c.image_pull_policy.clone(),
        name: c.name.clone(),
        resources: c.resources.clone(),
        security_context: c.security_context.clone(),
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        termination_message_path: c.termination_message_path.clone(),
        termination_message_policy: c.termination_message_policy.clone(),
        tty: c.tty,
        volume_devices: c.volume_devices.clone(),
        volume_mounts: c.volume_mounts.clone(),
        working_dir: c.working_dir.clone(),
        ..Default::default()
    }
}

/// The pod's restart policy; `Always` unless it says otherwise.
pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().filter(|p| !p.is_empty()).unwrap_or("Always")
}
