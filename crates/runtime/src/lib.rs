//! The container engine: a CRI v1 server on a unix socket.
//!
//! Guarantees: containers live under shims, so nothing that happens to this process touches them; what a call has
//! answered is on disk; a removed sandbox leaves nothing behind. It knows CRI, not Pods, and no other room.

mod authority;
mod cgroup;
mod container;
mod device_filter;
mod engine;
mod exec;
mod handlers;
mod image_service;
mod images;
mod metrics;
mod network;
mod records;
mod reset;
mod runtime_service;
mod sandbox;
mod server;
mod shim;
mod shim_client;
mod spec;
mod stats;
mod status;
mod streaming;
pub use streaming::frames;
mod transfer;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use network::NetworkConfig;
pub use reset::reset;
pub use server::{ImportedImage, image_import, serve};

/// The engine's name, also that of its default runtime handler.
pub const NAME: &str = "nauplius";

/// Directories with registries' mirrors and authorities, where other engines look too.
pub fn registry_dirs() -> Vec<PathBuf> {
    images::hosts::DIRECTORIES.iter().map(PathBuf::from).collect()
}

/// How an engine is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Durable data: images, containers' writable layers, records.
    pub root: PathBuf,
    /// Run-time data: shims' sockets, mount points. May be lost with the machine's start, not before.
    pub state: PathBuf,
    /// Where CRI is served.
    pub socket: PathBuf,
    /// All cgroups that this engine makes or uses lie below this path; a pod's cgroup parent that lies elsewhere is
    /// taken as relative to it. Empty: they lie where callers ask for them.
    pub cgroup_parent: String,
    /// How pods are connected.
    pub network: NetworkConfig,
    /// Where the streaming server listens; a loopback address, port 0 for any.
    pub streaming_address: SocketAddr,
    /// Where administrators say how registries are reached: `DIR/REGISTRY/hosts.toml` and `ca.crt`, containerd's way.
    pub registry_dirs: Vec<PathBuf>,
    /// The binary that is re-executed as `BINARY shim …`; it must hand that to [`shim_main`] before starting threads.
    pub shim_exe: PathBuf,
}

/// Entry of the re-executed shim; `args` are the arguments after `shim`. Must be called before any thread exists.
pub fn shim_main(args: impl IntoIterator<Item = std::ffi::OsString>) -> ! {
    shim::main(args)
}
