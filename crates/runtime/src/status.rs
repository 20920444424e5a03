//! Records as CRI shows them.

use crate::engine::Engine;
use crate::records::{ContainerRecord, SandboxRecord};
use cri::v1::{
    Container as CriContainer, ContainerResources, ContainerState, ContainerStatus, ContainerUser, ImageSpec,
    LinuxContainerUser, LinuxPodSandboxStatus, Namespace, PodIp, PodSandbox, PodSandboxNetworkStatus, PodSandboxState,
    PodSandboxStatus, Signal,
};

/// What becomes of a sandbox without its shim shows here.
pub fn sandbox_state(record: &SandboxRecord) -> PodSandboxState {
    if record.ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }
}

/// A sandbox in detail.
pub fn sandbox(record: &SandboxRecord) -> PodSandboxStatus {
    let config = record.config.clone().unwrap_or_default();
    let mut ips = record.addresses.iter();
    let options = crate::sandbox::namespaces(&config);
    PodSandboxStatus {
        id: record.id.clone(),
        metadata: config.metadata,
        state: sandbox_state(record).into(),
        created_at: record.created_at,
        network: Some(PodSandboxNetworkStatus {
            ip: ips.next().cloned().unwrap_or_default(),
            additional_ips: ips.map(|ip| PodIp { ip: ip.clone() }).collect(),
        }),
        linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options: Some(options) }) }),
        labels: config.labels,
        annotations: config.annotations,
        runtime_handler: record.runtime_handler.clone(),
    }
}

/// A sandbox in a list.
pub fn sandbox_item(record: &SandboxRecord) -> PodSandbox {
    let config = record.config.as_ref();
    PodSandbox {
        id: record.id.clone(),
        metadata: config.and_then(|c| c.metadata.clone()),
        state: sandbox_state(record).into(),
        created_at: record.created_at,
        labels: config.map(|c| c.labels.clone()).unwrap_or_default(),
        annotations: config.map(|c| c.annotations.clone()).unwrap_or_default(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

/// A container's state.
pub fn state(record: &ContainerRecord) -> ContainerState {
    match (record.started_at, record.finished_at) {
        (_, finished) if finished != 0 => ContainerState::ContainerExited,
        (0, _) => ContainerState::ContainerCreated,
        _ => ContainerState::ContainerRunning,
    }
}

/// A container in a list.
pub fn container_item(record: &ContainerRecord) -> CriContainer {
    let config = record.config.as_ref();
    CriContainer {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox_id.clone(),
        metadata: config.and_then(|c| c.metadata.clone()),
        image: config.and_then(|c| c.image.clone()),
        image_ref: record.image_ref.clone(),
        state: state(record).into(),
        created_at: record.created_at,
        labels: config.map(|c| c.labels.clone()).unwrap_or_default(),
        annotations: config.map(|c| c.annotations.clone()).unwrap_or_default(),
        image_id: record.image_id.clone(),
    }
}

impl Engine {
    /// A container in detail.
    pub fn container_status(&self, record: &ContainerRecord) -> ContainerStatus {
        let config = record.config.clone().unwrap_or_default();
        // The name people know, even if the pod was made with an id.
        let mut image = config.image.unwrap_or_default();
        if let Some(tag) = self.images.find(&record.image_id).and_then(|i| i.tags.first().cloned()) {
            if image.user_specified_image.is_empty() {
                image.user_specified_image = image.image.clone();
            }
            image.image = tag;
        }
        ContainerStatus {
            id: record.id.clone(),
            metadata: config.metadata,
            state: state(record).into(),
            created_at: record.created_at,
            started_at: record.started_at,
            finished_at: record.finished_at,
            exit_code: record.exit_code,
            image: Some(ImageSpec { ..image }),
            image_ref: record.image_ref.clone(),
            reason: record.reason.clone(),
            message: record.message.clone(),
            labels: config.labels,
            annotations: config.annotations,
            mounts: config.mounts,
            log_path: record.log_path.clone(),
            resources: Some(ContainerResources { linux: record.resources.clone(), windows: None }),
            image_id: record.image_id.clone(),
            user: Some(ContainerUser {
                linux: Some(LinuxContainerUser {
                    uid: record.uid.into(),
                    gid: record.gid.into(),
                    supplemental_groups: record.groups.iter().map(|&g| g.into()).collect(),
                }),
            }),
            stop_signal: signal(record.stop_signal).into(),
        }
    }
}

fn signal(number: i32) -> Signal {
    let name = match number {
        34 => "SIGNAL_SIGRTMIN".to_string(),
        64 => "SIGNAL_SIGRTMAX".to_string(),
        35..=49 => format!("SIGNAL_SIGRTMINPLUS{}", number - 34),
        50..=63 => format!("SIGNAL_SIGRTMAXMINUS{}", 64 - number),
        _ => match nix::sys::signal::Signal::try_from(number) {
            Ok(signal) => format!("SIGNAL_{}", signal.as_str()),
            Err(_) => return Signal::RuntimeDefault,
        },
    };
    Signal::from_str_name(&name).unwrap_or(Signal::RuntimeDefault)
}
