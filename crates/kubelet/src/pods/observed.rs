//! What the engine says exists for one pod: its sandboxes and containers, in the terms plans are made in.

use jiff::Timestamp;

use crate::cri::v1;
use crate::spec::names;

/// One sandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created_at: i64,
    /// Known for the newest ready one.
    pub ips: Vec<String>,
    pub host_network: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Exited,
    Unknown,
}

/// One container, dead or alive.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    pub id: String,
    pub sandbox_id: String,
    pub name: String,
    /// The restart count it was created with.
    pub attempt: u32,
    pub state: State,
    pub created_at: i64,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_id: String,
    /// Hash of the specification it was made from; empty for foreign containers.
    pub hash: String,
    pub log_path: String,
    pub user: Option<v1::LinuxContainerUser>,
    /// CPU shares, quota, memory limit as the engine reports them.
    pub resources: Option<v1::LinuxContainerResources>,
    /// As CRI numbers signals; 0 where the engine does not say.
    pub stop_signal: i32,
}

/// Everything seen of one pod. Sandboxes and containers are newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<Container>,
}

/// CRI counts nanoseconds; zero means never.
fn time(nanos: i64) -> Option<Timestamp> {
    (nanos > 0).then(|| Timestamp::from_nanosecond(nanos.into()).ok()).flatten()
}

impl State {
    pub fn from_wire(state: i32) -> Self {
        match v1::ContainerState::try_from(state) {
            Ok(v1::ContainerState::ContainerCreated) => State::Created,
            Ok(v1::ContainerState::ContainerRunning) => State::Running,
            Ok(v1::ContainerState::ContainerExited) => State::Exited,
            _ => State::Unknown,
        }
    }
}

impl Container {
    pub fn from_status(sandbox_id: &str, status: &v1::ContainerStatus) -> Self {
        let metadata = status.metadata.clone().unwrap_or_default();
        let label =
            |map: &std::collections::HashMap<String, String>, key: &str| map.get(key).cloned().unwrap_or_default();
        // The annotation is what upstream's agent trusts; the attempt is the same number from engines that lose it.
        let attempt =
            status.annotations.get(names::RESTART_COUNT).and_then(|v| v.parse().ok()).unwrap_or(metadata.attempt);
        let image = status.image.clone().unwrap_or_default();
        let name = match label(&status.labels, names::CONTAINER_NAME) {
            name if name.is_empty() => metadata.name,
            name => name,
        };
        Self {
            id: status.id.clone(),
            sandbox_id: sandbox_id.into(),
            name,
            attempt,
            state: State::from_wire(status.state),
            created_at: status.created_at,
            started_at: time(status.started_at),
            finished_at: time(status.finished_at),
            exit_code: status.exit_code,
            reason: status.reason.clone(),
            message: status.message.clone(),
            image: if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image },
            image_id: if status.image_ref.is_empty() { status.image_id.clone() } else { status.image_ref.clone() },
            hash: label(&status.annotations, names::CONTAINER_HASH),
            log_path: status.log_path.clone(),
            user: status.user.as_ref().and_then(|u| u.linux.clone()),
            resources: status.resources.as_ref().and_then(|r| r.linux.clone()),
            stop_signal: status.stop_signal,
        }
    }
}

impl Sandbox {
    pub fn from_list(sandbox: &v1::PodSandbox) -> Self {
        Self {
            id: sandbox.id.clone(),
            attempt: sandbox.metadata.as_ref().map_or(0, |m| m.attempt),
            ready: sandbox.state == v1::PodSandboxState::SandboxReady as i32,
            created_at: sandbox.created_at,
            ips: Vec::new(),
            host_network: false,
        }
    }

    /// Takes over what only the status says.
    pub fn learn(&mut self, status: &v1::PodSandboxStatus) {
        if let Some(network) = &status.network {
            self.ips = std::iter::once(&network.ip)
                .chain(network.additional_ips.iter().map(|i| &i.ip))
                .filter(|i| !i.is_empty())
                .cloned()
                .collect();
        }
        let options = status.linux.as_ref().and_then(|l| l.namespaces.as_ref()).and_then(|n| n.options.as_ref());
        self.host_network = options.is_some_and(|o| o.network == v1::NamespaceMode::Node as i32);
    }
}

impl Observed {
    pub fn sort(&mut self) {
        self.sandboxes.sort_by_key(|s| std::cmp::Reverse((s.created_at, s.attempt)));
        self.containers.sort_by_key(|c| std::cmp::Reverse((c.attempt, c.created_at)));
    }

    /// The newest sandbox, if it is ready.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|s| s.ready)
    }

    /// The newest container of a name.
    pub fn latest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// All containers of a name, newest first.
    pub fn history<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.iter().filter(move |c| c.name == name)
    }

    pub fn running(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|c| matches!(c.state, State::Running | State::Unknown))
    }
}
