//! Device nodes of a container and the rules that allow their use.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::spec::bundle::Device;
use cri::v1::Device as WantedDevice;

/// Deepest directory below a device path that is searched.
const MAX_DEPTH: usize = 8;
/// Most device nodes of one container.
const MAX_DEVICES: usize = 4096;

/// Nodes to create and rules (`None`: every device).
pub struct Devices {
    /// In `/dev`.
    pub nodes: Vec<Device>,
    /// In version 1's words.
    pub rules: Option<Vec<String>>,
}

/// The devices of a container. A privileged one gets all of the node's.
pub fn resolve(wanted: &[WantedDevice], privileged: bool) -> Result<Devices, String> {
    let character = |path: &str, major, minor| Device {
        path: path.into(),
        mode: libc::S_IFCHR | 0o666,
        major,
        minor,
        uid: 0,
        gid: 0,
    };
    let mut nodes = vec![
        character("/dev/null", 1, 3),
        character("/dev/zero", 1, 5),
        character("/dev/full", 1, 7),
        character("/dev/random", 1, 8),
        character("/dev/urandom", 1, 9),
        character("/dev/tty", 5, 0),
    ];
    if privileged {
        let mut found = Vec::new();
        walk(Path::new("/dev"), "/dev", 0, &mut found);
        let own = |d: &Device| {
            ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console"].iter().any(|p| Path::new(&d.path).starts_with(p))
                || nodes.iter().any(|n| n.path == d.path)
        };
        found.retain(|d| !own(d));
        nodes.extend(found);
        return Ok(Devices { nodes, rules: None });
    }
    let mut rules: Vec<String> =
        ["c *:* m", "b *:* m", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm"].iter().map(|r| r.to_string()).collect();
    rules.extend(nodes.iter().map(|d| format!("c {}:{} rwm", d.major, d.minor)));
    for device in wanted {
        let mut found = Vec::new();
        let path = std::fs::canonicalize(&device.host_path).map_err(|e| format!("device {}: {e}", device.host_path))?;
        walk(&path, &device.container_path, 0, &mut found);
        if found.is_empty() {
            return Err(format!("{} is not a device", device.host_path));
        }
        let access = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        if !access.chars().all(|c| "rwm".contains(c)) {
            return Err(format!("device {}: permissions \"{access}\" are not of r, w, m", device.host_path));
        }
        for node in found {
            let kind = if node.mode & libc::S_IFMT == libc::S_IFBLK { 'b' } else { 'c' };
            rules.push(format!("{kind} {}:{} {access}", node.major, node.minor));
            nodes.push(node);
        }
    }
    Ok(Devices { nodes, rules: Some(rules) })
}

fn walk(host: &Path, inside: &str, depth: usize, found: &mut Vec<Device>) {
    let Ok(meta) = std::fs::symlink_metadata(host) else { return };
    let kind = meta.file_type();
    if kind.is_dir() && depth < MAX_DEPTH {
        for entry in std::fs::read_dir(host).into_iter().flatten().flatten() {
            walk(&entry.path(), &format!("{inside}/{}", entry.file_name().to_string_lossy()), depth + 1, found);
        }
    } else if (kind.is_char_device() || kind.is_block_device()) && found.len() < MAX_DEVICES {
        let device = meta.rdev();
        found.push(Device {
            path: inside.to_string(),
            mode: meta.mode(),
            major: nix::sys::stat::major(device),
            minor: nix::sys::stat::minor(device),
            uid: meta.uid(),
            gid: meta.gid(),
        });
    }
}
