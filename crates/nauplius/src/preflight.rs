//! What must be there before a node can start, each missing thing named with what to do about it.

use std::path::Path;

use anyhow::{Result, bail};

/// Kernel features a node needs: (a file that exists when the feature does, what it is, what to do).
const FEATURES: &[(&str, &str, &str)] = &[
    ("proc/self/ns/net", "network namespaces", "use a kernel with CONFIG_NET_NS"),
    ("proc/self/ns/mnt", "mount namespaces", "use a kernel with CONFIG_NAMESPACES"),
    ("proc/self/ns/pid", "pid namespaces", "use a kernel with CONFIG_PID_NS"),
    ("proc/self/ns/ipc", "ipc namespaces", "use a kernel with CONFIG_IPC_NS"),
    ("sys/fs/cgroup", "control groups", "mount the cgroup file system on /sys/fs/cgroup"),
];
/// Where administrators' programs are.
const NFT: [&str; 3] = ["usr/sbin/nft", "sbin/nft", "usr/bin/nft"];

/// Whether this process may run a node on this machine.
pub fn node() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "a node needs root: it makes namespaces, mounts and network rules. Run as root, or start only the control plane with --control-plane-only"
        );
    }
    machine(Path::new("/"))
}

/// Whether the machine whose files begin at `root` can carry a node.
fn machine(root: &Path) -> Result<()> {
    for (file, what, remedy) in FEATURES {
        if !root.join(file).exists() {
            bail!("this kernel lacks {what} (/{file} is missing): {remedy}");
        }
    }
    let filesystems = std::fs::read_to_string(root.join("proc/filesystems")).unwrap_or_default();
    if !filesystems.split_whitespace().any(|name| name == "overlay") && !module_exists(root, "overlay") {
        bail!("this kernel lacks overlayfs: load it with `modprobe overlay`, or use a kernel with CONFIG_OVERLAY_FS");
    }
    if !NFT.iter().any(|path| root.join(path).exists()) {
        bail!("the nft command is missing: install it with `apt-get install nftables`");
    }
    Ok(())
}

fn module_exists(root: &Path, name: &str) -> bool {
    let Ok(release) = std::fs::read_to_string(root.join("proc/sys/kernel/osrelease")) else { return false };
    let modules = root.join("lib/modules").join(release.trim()).join("modules.dep");
    std::fs::read_to_string(modules).unwrap_or_default().contains(&format!("/{name}.ko"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_thing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let lacks = |part: &str| {
            let said = machine(root).unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        };
        let write = |file: &str, text: &str| {
            let file = root.join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        for (file, what, _) in FEATURES {
            lacks(what);
            write(file, "");
        }
        lacks("modprobe overlay");
        // As a module that can be loaded, or there already.
        write("proc/sys/kernel/osrelease", "6.1.0\n");
        write("lib/modules/6.1.0/modules.dep", "kernel/fs/overlayfs/overlay.ko.xz:\n");
        lacks("apt-get install nftables");
        std::fs::remove_dir_all(root.join("lib")).unwrap();
        lacks("modprobe overlay");
        write("proc/filesystems", "nodev\toverlay\n\text4\n");
        lacks("apt-get install nftables");
        write("usr/sbin/nft", "");
        machine(root).unwrap();
    }
}
