//! A container's specification as handed to its shim: a file that also serves a later `exec` and adoption.
//!
//! The vocabulary is the OCI runtime specification's where it has one (process, mounts, devices), plus what the shim
//! needs that OCI leaves to the caller: the overlay's layers, the log, the exit file.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The users of a sandbox that has its own: ranges of ids inside, and what they are on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Users {
    /// User ids.
    pub uids: Vec<IdRange>,
    /// Group ids.
    pub gids: Vec<IdRange>,
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first, inside.
    pub inside: u32,
    /// The first, on the node.
    pub node: u32,
    /// How many.
    pub length: u32,
}

impl Users {
    fn node_id(ranges: &[IdRange], id: u32) -> Option<u32> {
        let range = ranges.iter().find(|r| id >= r.inside && id - r.inside < r.length)?;
        Some(range.node + (id - range.inside))
    }

    /// What a user and a group inside are on the node.
    pub fn on_node(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        Some((Self::node_id(&self.uids, uid)?, Self::node_id(&self.gids, gid)?))
    }
}

/// Everything the shim needs to start one container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bundle {
    /// Container id.
    pub id: String,
    /// The process to run.
    pub process: Process,
    /// What becomes `/`.
    pub rootfs: Rootfs,
    /// In order.
    pub mounts: Vec<Mount>,
    /// Created in `/dev`.
    pub devices: Vec<Device>,
    /// Hidden from the container.
    pub masked_paths: Vec<String>,
    /// Made read-only.
    pub readonly_paths: Vec<String>,
    /// Which processes it sees.
    pub pid_namespace: PidNamespace,
    /// The sandbox's own users; none: the node's.
    #[serde(default)]
    pub users: Option<Users>,
    /// Own cgroup namespace.
    pub cgroup_namespace: bool,
    /// Cgroup directories to join, one a hierarchy.
    pub cgroups: Vec<PathBuf>,
    /// How cgroups appear inside.
    pub cgroup_mounts: Vec<CgroupMount>,
    /// Whether the cgroup mounts may be written.
    pub cgroup_writable: bool,
    /// File with an `oom_kill` counter.
    pub oom_file: Option<PathBuf>,
    /// Where output goes in CRI's log format; none: dropped.
    pub log: Option<PathBuf>,
    /// Keep standard input open for attach.
    pub stdin: bool,
    /// Close standard input after the first attach that has it ends.
    pub stdin_once: bool,
    /// Written when the first process has ended.
    pub exit_file: PathBuf,
    /// An OCI runtime makes the container; none: the shim itself does.
    #[serde(default)]
    pub oci: Option<OciRuntime>,
}

/// A program with runc's command line, and where it works. A container's OCI bundle is the directory of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OciRuntime {
    /// The program.
    pub program: PathBuf,
    /// Where it keeps what it knows of its containers.
    pub state: PathBuf,
    /// The directory with `config.json`.
    pub bundle: PathBuf,
}

/// The root file system: an overlay mounted in the container's own mount namespace, so that nothing is left of it
/// when the last process is gone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rootfs {
    /// Directory that `lower` is relative to.
    pub layers: PathBuf,
    /// Topmost first.
    pub lower: Vec<String>,
    /// The writable layer.
    pub upper: PathBuf,
    /// Overlay's scratch directory, same file system as `upper`.
    pub work: PathBuf,
    /// An empty directory to mount on; any number of containers may share it.
    pub mountpoint: PathBuf,
    /// Read-only root.
    pub readonly: bool,
}

/// Which PID namespace a container gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PidNamespace {
    /// Its own.
    Private,
    /// The sandbox's.
    Sandbox,
    /// The node's.
    Node,
    /// That of another container's first process.
    Target(i32),
}

/// A process and its powers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Process {
    /// With a terminal, whose kind is `TERM=xterm` if `env` does not say.
    pub terminal: bool,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Command and arguments, never empty.
    pub args: Vec<Bytes>,
    /// `NAME=value`.
    pub env: Vec<Bytes>,
    /// Working directory; created if missing.
    pub cwd: String,
    /// `$HOME` is looked up in the container's passwd file if `env` does not have it.
    pub capabilities: Capabilities,
    /// `(resource, soft, hard)`.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// Set-user-id programs gain nothing.
    pub no_new_privileges: bool,
    /// Absent: inherited.
    pub oom_score_adj: Option<i32>,
    /// A compiled seccomp program, `struct sock_filter` by `struct sock_filter`.
    pub seccomp: Option<Bytes>,
    /// AppArmor profile to change to on exec.
    pub apparmor: Option<String>,
}

/// Capability sets as bit masks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The bounding set.
    pub bounding: u64,
    /// Effective and permitted for user 0; for others only what is ambient stays after exec.
    pub permitted: u64,
    /// Kept across exec by users other than 0.
    pub ambient: u64,
}

/// Bytes that are text nearly always: environment values need not be UTF-8.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Bytes {
    /// The usual case.
    Text(String),
    /// Everything else.
    Raw(Vec<u8>),
    /// Nothing.
    #[default]
    Empty,
}

impl Bytes {
    /// The bytes themselves.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Bytes::Text(text) => text.as_bytes(),
            Bytes::Raw(raw) => raw,
            Bytes::Empty => &[],
        }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(raw: Vec<u8>) -> Self {
        String::from_utf8(raw).map_or_else(|e| Bytes::Raw(e.into_bytes()), Bytes::Text)
    }
}

impl From<String> for Bytes {
    fn from(text: String) -> Self {
        Bytes::Text(text)
    }
}

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Bytes::Text(text.to_string())
    }
}

/// A mount, in OCI's words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path in the container.
    pub destination: String,
    /// File system type, or `bind`.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// As in mount(8).
    pub options: Vec<String>,
    /// Only this part of what is mounted; no link in it leads out.
    #[serde(default)]
    pub inside: String,
    /// Files of the sandbox's users appear as those of the node's users of the same number.
    #[serde(default)]
    pub own_users: bool,
}

impl Mount {
    /// A mount of a file system.
    pub fn new(destination: &str, kind: &str, source: &str, options: &[&str]) -> Self {
        Mount {
            destination: destination.into(),
            kind: kind.into(),
            source: source.into(),
            options: options.iter().map(|o| o.to_string()).collect(),
            inside: String::new(),
            own_users: false,
        }
    }
}

/// How one cgroup hierarchy appears under `/sys/fs/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupMount {
    /// Directory name below `/sys/fs/cgroup`; empty: on it.
    pub name: String,
    /// `cgroup` or `cgroup2`.
    pub kind: String,
    /// Mount data, the controllers' names.
    pub data: String,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Absolute path in the container.
    pub path: String,
    /// Type and permission bits.
    pub mode: u32,
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}
