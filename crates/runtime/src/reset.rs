//! Taking an engine's node down: every trace of what it made, and nothing else.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::Config;
use crate::cgroup::Cgroups;
use crate::network::Network;
use crate::records::{self, ContainerRecord, SandboxRecord};
use crate::sandbox::{remove_dir, unmount};

/// Ends and removes all that an engine with this configuration has made: containers, shims, mounts, cgroups, links,
/// rules, directories. No engine may be running with it.
pub fn reset(config: &Config) -> Result<()> {
    let cgroups = Cgroups::detect()?;
    for record in read::<SandboxRecord>(&config.root.join("sandboxes"))? {
        end_shim(config, &record);
        if record.owns_cgroup {
            cgroups.remove(&record.cgroup_parent)?;
        }
    }
    for record in read::<ContainerRecord>(&config.root.join("containers"))? {
        if cgroups.exists(&record.cgroup) {
            cgroups.remove(&record.cgroup)?;
        }
    }
    if !config.cgroup_parent.trim_matches('/').is_empty() && cgroups.exists(&config.cgroup_parent) {
        cgroups.remove(&config.cgroup_parent)?;
    }
    // After the shims: with a pod's namespace its end of the link goes too; what is left goes with the bridge.
    if config.root.join("network").exists() {
        Network::open(config.network.clone(), config.root.join("network"))?.remove_pods_and_bridge(config)?;
    }
    for entry in fs::read_dir(config.state.join("sandboxes")).into_iter().flatten().flatten() {
        unmount(&entry.path().join("shm"))?;
    }
    remove_dir(&config.state)?;
    remove_dir(&config.root)?;
    match fs::remove_file(&config.socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context("removing the socket"),
        _ => Ok(()),
    }
}

fn read<M: prost::Message + Default>(dir: &Path) -> Result<Vec<M>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        // One that cannot be read belongs to something that was never started.
        found.extend(records::load(&entry?.path().join("record")));
    }
    Ok(found)
}

/// Asks a shim to end and waits for it. One that does not listen has ended.
fn end_shim(config: &Config, record: &SandboxRecord) {
    use crate::shim::protocol::{Request, SOCKET};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::{AsFd, AsRawFd};
    let dir = config.state.join("sandboxes").join(&record.id);
    let ended = || -> Result<()> {
        let dir = fs::File::open(&dir)?;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
        connect(socket.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
        crate::shim::sys::send_packet(socket.as_fd(), &serde_json::to_vec(&Request::Shutdown)?, &[])?;
        // Answered first, closed when it ends.
        while crate::shim::sys::receive_packet(socket.as_fd())?.is_some() {}
        Ok(())
    };
    if let Err(error) = ended() {
        tracing::debug!(sandbox = record.id, error = format!("{error:#}"), "no shim to end");
    }
}
