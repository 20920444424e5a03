//! One container's bundle from CRI's configuration, its sandbox and its image.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::cgroup::Cgroups;
use crate::images::config::{ImageConfig, RunConfig};
use crate::spec::bundle::{Bundle, Bytes, Mount, PidNamespace, Process, Rootfs, Users};
use crate::spec::user::{self, Accounts, Identity};
use crate::spec::{capabilities, devices};
use cri::v1::{ContainerConfig, LinuxContainerSecurityContext, Mount as WantedMount, MountPropagation};

/// The search path of an image that sets none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the engine knows and the configuration does not.
pub struct Inputs<'a> {
    /// Container id.
    pub id: &'a str,
    /// CRI's wish.
    pub config: &'a ContainerConfig,
    /// The sandbox's host name.
    pub hostname: &'a str,
    /// The image's configuration.
    pub image: &'a ImageConfig,
    /// The image's account files.
    pub accounts: &'a Accounts,
    /// The root file system.
    pub rootfs: Rootfs,
    /// Files of the sandbox to mount unless the pod mounts its own: (container path, node path).
    pub sandbox_files: Vec<(&'static str, PathBuf)>,
    /// The sandbox's shared memory; `None`: the node's.
    pub shm: Option<PathBuf>,
    /// Image volumes: mounts prepared by the engine.
    pub image_mounts: Vec<Mount>,
    /// The sandbox's own users.
    pub users: Option<Users>,
    /// Which processes it sees.
    pub pid_namespace: PidNamespace,
    /// Its cgroup directories.
    pub cgroup_dirs: Vec<PathBuf>,
    /// The hierarchies.
    pub cgroups: &'a Cgroups,
    /// Its cgroup path.
    pub cgroup_path: &'a str,
    /// Capabilities that can be given.
    pub bounding: u64,
    /// A compiled seccomp program.
    pub seccomp: Option<Vec<u8>>,
    /// Where output goes.
    pub log: Option<PathBuf>,
    /// Where the shim writes the exit.
    pub exit_file: PathBuf,
}

/// A bundle and what else follows from the configuration.
pub struct Built {
    /// For the shim.
    pub bundle: Bundle,
    /// Device rules for the cgroup.
    pub device_rules: Option<Vec<String>>,
    /// Who it runs as.
    pub identity: Identity,
}

/// Builds a bundle. Errors are for the person who wrote the pod.
pub fn build(inputs: Inputs<'_>) -> Result<Built, String> {
    let config = inputs.config;
    let nothing = LinuxContainerSecurityContext::default();
    let linux = config.linux.as_ref();
    let context = linux.and_then(|l| l.security_context.as_ref()).unwrap_or(&nothing);
    let defaults = RunConfig::default();
    let image = inputs.image.config.as_ref().unwrap_or(&defaults);
    let identity = user::resolve(context, image.user.as_deref().unwrap_or(""), inputs.accounts)?;
    let mut devices = devices::resolve(&config.devices, context.privileged)?;
    let mut mounts = mounts(config, context, &inputs.sandbox_files, inputs.shm, inputs.image_mounts)?;
    if let Some(users) = &inputs.users {
        for node in &mut devices.nodes {
            (node.uid, node.gid) = users.on_node(node.uid, node.gid).unwrap_or((node.uid, node.gid));
        }
        give_to(users, &mut mounts);
    }
    let process = Process {
        terminal: config.tty,
        uid: identity.uid,
        gid: identity.gid,
        groups: identity.groups.clone(),
        args: arguments(config, image)?,
        env: environment(config, image, inputs.hostname),
        cwd: working_directory(config, image),
        capabilities: capabilities::resolve(context.capabilities.as_ref(), context.privileged, inputs.bounding)?,
        rlimits: Vec::new(),
        no_new_privileges: context.no_new_privs,
        oom_score_adj: linux
            .and_then(|l| l.resources.as_ref())
            .map(|r| i32::try_from(r.oom_score_adj).unwrap_or(0).clamp(-1000, 1000)),
        seccomp: inputs.seccomp.filter(|_| !context.privileged).map(Bytes::from),
        apparmor: apparmor(context),
    };
    let bundle = Bundle {
        id: inputs.id.to_string(),
        process,
        rootfs: inputs.rootfs,
        mounts,
        devices: devices.nodes,
        masked_paths: if context.privileged { Vec::new() } else { context.masked_paths.clone() },
        readonly_paths: if context.privileged { Vec::new() } else { context.readonly_paths.clone() },
        pid_namespace: inputs.pid_namespace,
        users: inputs.users,
        cgroup_namespace: true,
        cgroups: inputs.cgroup_dirs,
        cgroup_mounts: inputs.cgroups.mounts(),
        cgroup_writable: context.privileged,
        oom_file: inputs.cgroups.oom_file(inputs.cgroup_path),
        log: inputs.log,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        exit_file: inputs.exit_file,
        oci: None,
    };
    Ok(Built { bundle, device_rules: devices.rules, identity })
}

/// What is made for the container belongs to its own root and terminal group.
fn give_to(users: &Users, mounts: &mut [Mount]) {
    /// Group `tty`, everywhere.
    const TTY: u32 = 5;
    let (root, root_group) = users.on_node(0, 0).unwrap_or_default();
    for mount in mounts.iter_mut() {
        match mount.kind.as_str() {
            "tmpfs" => mount.options.extend([format!("uid={root}"), format!("gid={root_group}")]),
            "devpts" => {
                mount.options.retain(|o| !o.starts_with("gid="));
                mount.options.extend(users.on_node(0, TTY).map(|(_, tty)| format!("gid={tty}")));
            }
            _ => {}
        }
    }
}

fn arguments(config: &ContainerConfig, image: &RunConfig) -> Result<Vec<Bytes>, String> {
    let list = |l: &Option<Vec<String>>| l.clone().unwrap_or_default();
    let (mut command, mut args) = (config.command.clone(), config.args.clone());
    if command.is_empty() {
        // The image's arguments belong to the image's entry point.
        if args.is_empty() {
            args = list(&image.cmd);
        }
        command = list(&image.entrypoint);
    }
    command.extend(args);
    if command.is_empty() {
        return Err("no command specified".into());
    }
    Ok(command.into_iter().map(Bytes::Text).collect())
}

fn environment(config: &ContainerConfig, image: &RunConfig, hostname: &str) -> Vec<Bytes> {
    let mut order: Vec<String> = Vec::new();
    let mut values: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut set = |name: &str, value: &[u8]| {
        if values.insert(name.to_string(), value.to_vec()).is_none() {
            order.push(name.to_string());
        }
    };
    let mut text = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        set(name, value.as_bytes());
    };
    text(DEFAULT_PATH);
    if !hostname.is_empty() {
        text(&format!("HOSTNAME={hostname}"));
    }
    for pair in image.env.iter().flatten() {
        text(pair);
    }
    for pair in &config.envs {
        set(&pair.key, &pair.value);
    }
    order
        .into_iter()
        .map(|name| {
            let mut pair = name.clone().into_bytes();
            pair.push(b'=');
            pair.extend_from_slice(values.get(&name).map_or(&[], Vec::as_slice));
            Bytes::from(pair)
        })
        .collect()
}

fn working_directory(config: &ContainerConfig, image: &RunConfig) -> String {
    match (config.working_dir.as_str(), image.working_dir.as_deref()) {
        ("", None | Some("")) => "/".into(),
        ("", Some(dir)) => dir.into(),
        (dir, _) => dir.into(),
    }
}

fn apparmor(context: &LinuxContainerSecurityContext) -> Option<String> {
    use cri::v1::security_profile::ProfileType;
    let profile = context.apparmor.as_ref().filter(|_| !context.privileged)?;
    match profile.profile_type() {
        ProfileType::Localhost => Some(profile.localhost_ref.clone()),
        ProfileType::RuntimeDefault | ProfileType::Unconfined => None,
    }
}

fn mounts(
    config: &ContainerConfig,
    context: &LinuxContainerSecurityContext,
    sandbox_files: &[(&'static str, PathBuf)],
    shm: Option<PathBuf>,
    image_mounts: Vec<Mount>,
) -> Result<Vec<Mount>, String> {
    let common = ["nosuid", "noexec", "nodev"];
    let sys = if context.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        Mount::new("/proc", "proc", "proc", &common),
        Mount::new("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        Mount::new(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        Mount::new("/dev/mqueue", "mqueue", "mqueue", &common),
        Mount::new("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]),
    ];
    let taken = |path: &str| config.mounts.iter().any(|m| m.container_path.trim_end_matches('/') == path);
    let mut further: Vec<Mount> = Vec::new();
    if !taken("/dev/shm") {
        let shm = shm.unwrap_or_else(|| PathBuf::from("/dev/shm"));
        further.push(Mount::new("/dev/shm", "bind", &shm.to_string_lossy(), &["rbind", "nosuid", "nodev", "noexec"]));
    }
    for (path, source) in sandbox_files {
        if !taken(path) {
            let mut options = vec!["rbind", "rprivate"];
            if context.readonly_rootfs {
                options.push("ro");
            }
            let file = Mount::new(path, "bind", &source.to_string_lossy(), &options);
            further.push(Mount { own_users: true, ..file });
        }
    }
    for wanted in config.mounts.iter().filter(|m| m.image.is_none()) {
        further.push(bind(wanted)?);
    }
    further.extend(image_mounts);
    // Outer directories before what is mounted inside them; otherwise in the order given.
    further.sort_by_key(|m| m.destination.split('/').filter(|p| !p.is_empty()).count());
    mounts.retain(|m| !taken(&m.destination) || m.destination == "/proc");
    mounts.extend(further);
    Ok(mounts)
}

fn bind(wanted: &WantedMount) -> Result<Mount, String> {
    let target = &wanted.container_path;
    let target = if target.starts_with('/') { target.clone() } else { format!("/{target}") };
    if target.split('/').any(|p| p == "..") {
        return Err(format!("mount path \"{target}\" must not contain \"..\""));
    }
    let mut options = vec!["rbind"];
    options.push(match wanted.propagation() {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer => "rslave",
        MountPropagation::PropagationBidirectional => "rshared",
    });
    match (wanted.readonly, wanted.recursive_read_only) {
        (true, true) if wanted.propagation() != MountPropagation::PropagationPrivate => {
            return Err("recursive read-only mount must have private propagation".into());
        }
        (true, true) => options.push("rro"),
        (true, false) => options.push("ro"),
        (false, true) => return Err("recursive read-only mount conflicts with RW mount".into()),
        (false, false) => options.push("rw"),
    }
    let mut mount = Mount::new(&target, "bind", &wanted.host_path, &options);
    mount.own_users = !wanted.uid_mappings.is_empty();
    for option in &wanted.mount_options {
        if !["nosuid", "nodev", "noexec", "noatime", "relatime", "strictatime"].contains(&option.as_str()) {
            return Err(format!("mount option \"{option}\" is not supported"));
        }
        mount.options.push(option.clone());
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::v1::KeyValue;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| s.to_string()).collect()
    }

    #[test]
    fn commands_merge() {
        let image =
            RunConfig { entrypoint: Some(strings(&["entry"])), cmd: Some(strings(&["cmd"])), ..Default::default() };
        let cases: [(&[&str], &[&str], &[&str]); 4] = [
            (&[], &[], &["entry", "cmd"]),
            (&["c"], &[], &["c"]),
            (&[], &["a"], &["entry", "a"]),
            (&["c"], &["a"], &["c", "a"]),
        ];
        for (command, args, expect) in cases {
            let config = ContainerConfig { command: strings(command), args: strings(args), ..Default::default() };
            let expect: Vec<Bytes> = expect.iter().map(|s| Bytes::from(*s)).collect();
            assert_eq!(arguments(&config, &image).unwrap(), expect);
        }
        assert!(arguments(&ContainerConfig::default(), &RunConfig::default()).is_err());
    }

    #[test]
    fn environments_merge() {
        let image = RunConfig { env: Some(strings(&["PATH=/bin", "A=1"])), ..Default::default() };
        let pair = |key: &str, value: &[u8]| KeyValue { key: key.into(), value: value.to_vec() };
        let config = ContainerConfig { envs: vec![pair("A", b"2=3"), pair("B", b"\xff")], ..Default::default() };
        let got = environment(&config, &image, "host");
        let expect = ["PATH=/bin", "HOSTNAME=host", "A=2=3"].map(Bytes::from);
        assert_eq!(&got[..3], &expect);
        assert_eq!(got[3].as_bytes(), b"B=\xff");
    }
}
