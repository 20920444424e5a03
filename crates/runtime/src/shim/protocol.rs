//! What engine and shim say to each other: one JSON value a packet on a sequenced-packet unix socket, descriptors beside
//! it. Packets are small; whatever is large (a container's specification) travels as a file whose path is named.
//!
//! The protocol is additive: a shim outlives the engine that started it, so a newer engine must understand an older
//! shim. Fields are never renamed and new ones have defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::spec::bundle::Users;

/// Largest packet, in bytes. Below the default socket buffer, far above any message of ours except huge exec commands.
pub const MAX_PACKET: usize = 128 * 1024;
/// Most descriptors beside one packet: stdin, stdout, stderr.
pub const MAX_FDS: usize = 3;
/// Name of a shim's listening socket in its sandbox's run-time directory.
pub const SOCKET: &str = "shim.sock";

/// Asks the zygote to fork a shim. One descriptor comes along: the shim's first connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRequest {
    /// The sandbox's run-time directory; the shim listens in it.
    pub dir: PathBuf,
    /// Sandbox id, shown in the process title.
    pub id: String,
    /// Empty: keep the node's.
    pub hostname: String,
    /// Own network namespace.
    pub net: bool,
    /// Own IPC namespace.
    pub ipc: bool,
    /// Own UTS namespace.
    pub uts: bool,
    /// One PID namespace for all containers, with a reaping init.
    pub shared_pid: bool,
    /// Users of its own.
    #[serde(default)]
    pub users: Option<Users>,
    /// Namespaced kernel parameters, dotted names.
    pub sysctls: BTreeMap<String, String>,
}

/// A request on a connection to a shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Report the state now and every exit from now on.
    Watch,
    /// Start the container whose bundle lies at this path.
    Start {
        /// The bundle file.
        bundle: PathBuf,
    },
    /// Send a signal to a container's first process, or to all of its processes.
    Signal {
        /// Container id.
        id: String,
        /// Signal number.
        signal: i32,
        /// Every process in the container's cgroup.
        #[serde(default)]
        all: bool,
    },
    /// Run a command in a container. Descriptors for those of stdin, stdout, stderr that are named come along.
    Exec {
        /// Container id.
        id: String,
        /// Command and arguments.
        args: Vec<String>,
        /// Allocate a terminal; its master comes back with the reply.
        tty: bool,
        /// Which of stdin, stdout, stderr came along.
        stdio: [bool; 3],
        /// Kill the command when its connection closes: nobody waits for it any more.
        #[serde(default)]
        tied: bool,
    },
    /// On an exec's connection: kill that process.
    KillExec,
    /// Copy a container's streams to the descriptors that came along, until it exits.
    Attach {
        /// Container id.
        id: String,
        /// Which of stdin, stdout, stderr came along.
        stdio: [bool; 3],
    },
    /// Set the size of a container's terminal.
    Resize {
        /// Container id.
        id: String,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Close and open the log file again after rotation.
    ReopenLog {
        /// Container id.
        id: String,
    },
    /// Forget a container that has exited.
    Forget {
        /// Container id.
        id: String,
    },
    /// Kill everything and end.
    Shutdown,
}

/// A shim's packet: a reply, or an event on a watching connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Ok,
    /// Not done, and why.
    Error {
        /// For people.
        message: String,
    },
    /// The sandbox is up.
    Ready {
        /// The shim, which holds the namespaces.
        pid: i32,
        /// The init of a shared PID namespace, else 0.
        init: i32,
    },
    /// A process runs.
    Started {
        /// Its number in the engine's PID namespace.
        pid: i32,
        /// Nanoseconds since 1970.
        at: i64,
    },
    /// An exec's process ended.
    ExecExited {
        /// 128 + signal if killed.
        code: i32,
    },
    /// A container's first process ended.
    Exited {
        /// Container id.
        id: String,
        /// How.
        exit: Exit,
    },
    /// First packet to a watcher.
    State {
        /// The shim.
        pid: i32,
        /// The init of a shared PID namespace, else 0.
        init: i32,
        /// Every container not forgotten.
        containers: Vec<ContainerState>,
    },
}

/// One container as its shim sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerState {
    /// Container id.
    pub id: String,
    /// First process.
    pub pid: i32,
    /// Nanoseconds since 1970.
    pub started_at: i64,
    /// Absent while it runs.
    pub exit: Option<Exit>,
}

/// How a container ended. Also the content of its exit file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, 128 + signal if killed.
    pub code: i32,
    /// Nanoseconds since 1970.
    pub at: i64,
    /// The kernel killed something in it for want of memory.
    #[serde(default)]
    pub oom: bool,
}
