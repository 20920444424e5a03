//! What the engine remembers on disk of sandboxes and containers: one protobuf message a file, renamed into place.

use std::path::Path;

use anyhow::{Context, Result};
use prost::Message;

use cri::v1::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};

/// A sandbox.
#[derive(Clone, PartialEq, Message)]
pub struct SandboxRecord {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// As asked for.
    #[prost(message, optional, tag = "2")]
    pub config: Option<PodSandboxConfig>,
    /// As asked for.
    #[prost(string, tag = "3")]
    pub runtime_handler: String,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "4")]
    pub created_at: i64,
    /// Its addresses.
    #[prost(string, repeated, tag = "5")]
    pub addresses: Vec<String>,
    /// It was set up completely and has not been stopped.
    #[prost(bool, tag = "6")]
    pub ready: bool,
    /// The shim.
    #[prost(int32, tag = "7")]
    pub shim_pid: i32,
    /// The init of the shared PID namespace, else 0.
    #[prost(int32, tag = "8")]
    pub init_pid: i32,
    /// Parent of its containers' cgroups.
    #[prost(string, tag = "9")]
    pub cgroup_parent: String,
    /// The parent was made for it alone, by us.
    #[prost(bool, tag = "10")]
    pub owns_cgroup: bool,
}

/// A container.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerRecord {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its sandbox.
    #[prost(string, tag = "2")]
    pub sandbox_id: String,
    /// As asked for.
    #[prost(message, optional, tag = "3")]
    pub config: Option<ContainerConfig>,
    /// `sha256:…`.
    #[prost(string, tag = "4")]
    pub image_id: String,
    /// A name with digest, or the id.
    #[prost(string, tag = "5")]
    pub image_ref: String,
    /// Layer directories, topmost first.
    #[prost(string, repeated, tag = "6")]
    pub layers: Vec<String>,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "7")]
    pub created_at: i64,
    /// 0: not started.
    #[prost(int64, tag = "8")]
    pub started_at: i64,
    /// 0: not ended.
    #[prost(int64, tag = "9")]
    pub finished_at: i64,
    /// 128 + signal if killed.
    #[prost(int32, tag = "10")]
    pub exit_code: i32,
    /// Why it ended, in one word.
    #[prost(string, tag = "11")]
    pub reason: String,
    /// Why it ended, for people.
    #[prost(string, tag = "12")]
    pub message: String,
    /// Its first process.
    #[prost(int32, tag = "13")]
    pub pid: i32,
    /// Its cgroup.
    #[prost(string, tag = "14")]
    pub cgroup: String,
    /// Absolute path of its log.
    #[prost(string, tag = "15")]
    pub log_path: String,
    /// Who it runs as.
    #[prost(uint32, tag = "16")]
    pub uid: u32,
    /// Its primary group.
    #[prost(uint32, tag = "17")]
    pub gid: u32,
    /// Its groups.
    #[prost(uint32, repeated, tag = "18")]
    pub groups: Vec<u32>,
    /// In force now.
    #[prost(message, optional, tag = "19")]
    pub resources: Option<LinuxContainerResources>,
    /// Number of the signal that asks it to stop.
    #[prost(int32, tag = "20")]
    pub stop_signal: i32,
    /// Device rules of its cgroup; meaningful unless `all_devices`.
    #[prost(string, repeated, tag = "21")]
    pub device_rules: Vec<String>,
    /// It may use every device.
    #[prost(bool, tag = "22")]
    pub all_devices: bool,
}

impl ContainerRecord {
    /// Whether it was started and has not ended.
    pub fn running(&self) -> bool {
        self.started_at != 0 && self.finished_at == 0
    }
}

/// Writes a record so that a reader sees the old one or the new one.
pub fn save(path: &Path, record: &impl Message) -> Result<()> {
    let partial = path.with_extension("part");
    std::fs::write(&partial, record.encode_to_vec()).with_context(|| format!("writing {}", partial.display()))?;
    std::fs::rename(&partial, path).with_context(|| format!("writing {}", path.display()))
}

/// Reads a record.
pub fn load<M: Message + Default>(path: &Path) -> Result<M> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    M::decode(bytes.as_slice()).with_context(|| format!("reading {}", path.display()))
}
