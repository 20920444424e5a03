//! What must be there before a node can start, each missing thing named with what to do about it.

use std::path::Path;

use anyhow::{Result, bail};

/// Kernel features a node needs: (a file that exists when the feature does, what it is, what to do).
const FEATURES: &[(&str, &str, &str)] = &[
    ("/proc/self/ns/net", "network namespaces", "use a kernel with CONFIG_NET_NS"),
    ("/proc/self/ns/mnt", "mount namespaces", "use a kernel with CONFIG_NAMESPACES"),
    ("/proc/self/ns/pid", "pid namespaces", "use a kernel with CONFIG_PID_NS"),
    ("/sys/fs/cgroup", "control groups", "mount the cgroup file system on /sys/fs/cgroup"),
];

/// Whether this process may run a node on this machine.
pub fn node() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "a node needs root: it makes namespaces, mounts and network rules. Run as root, or start only the control plane with --control-plane-only"
        );
    }
    for (file, what, remedy) in FEATURES {
        if !Path::new(file).exists() {
            bail!("this kernel lacks {what} ({file} is missing): {remedy}");
        }
    }
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !filesystems.split_whitespace().any(|name| name == "overlay") && !module_exists("overlay") {
        bail!("this kernel lacks overlayfs: load it with `modprobe overlay`, or use a kernel with CONFIG_OVERLAY_FS");
    }
    if !["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"].iter().any(|path| Path::new(path).exists()) {
        bail!("the nft command is missing: install it with `apt-get install nftables`");
    }
    Ok(())
}

fn module_exists(name: &str) -> bool {
    let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else { return false };
    let builtin = std::fs::read_to_string(format!("/lib/modules/{}/modules.dep", release.trim())).unwrap_or_default();
    builtin.contains(&format!("/{name}.ko"))
}
