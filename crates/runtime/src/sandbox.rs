//! Sandboxes as callers want them: run, stop, remove.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::engine::{Engine, Sandbox, new_id};
use crate::handlers;
use crate::records::SandboxRecord;
use crate::shim::protocol::{Request, SandboxRequest};
use crate::shim::sys::now;
use crate::shim_client;
use crate::spec::bundle::{IdRange, Users};
use cri::v1::{ContainerEventType, DnsConfig, IdMapping, NamespaceMode, NamespaceOption, PodSandboxConfig};

/// Size of a pod's shared memory, as other engines have it.
const SHM_SIZE: &str = "mode=1777,size=65536k";
/// How long a shim may take to kill its containers and end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// The namespace wishes of a sandbox.
pub fn namespaces(config: &PodSandboxConfig) -> NamespaceOption {
    let context = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    context.and_then(|c| c.namespace_options.clone()).unwrap_or_default()
}

/// A sandbox's own users, if it is to have some.
pub fn users(options: &NamespaceOption) -> Result<Option<Users>, String> {
    let Some(wish) = options.userns_options.as_ref().filter(|u| u.mode() == NamespaceMode::Pod) else {
        return Ok(None);
    };
    if !user_namespaces() {
        return Err("user namespaces are not supported by this node's kernel".into());
    }
    if options.network() == NamespaceMode::Node {
        return Err("user namespaces are not supported with the node's network".into());
    }
    let ranges = |list: &[IdMapping]| -> Result<Vec<IdRange>, String> {
        let whole = |m: &&IdMapping| {
            let fits = |first: u32| first.checked_add(m.length).is_some();
            m.length > 0 && fits(m.host_id) && fits(m.container_id)
        };
        if list.is_empty() || !list.iter().all(|m| whole(&m)) {
            return Err("user namespace mappings must not be empty or overflow".into());
        }
        let range = |m: &IdMapping| IdRange { inside: m.container_id, node: m.host_id, length: m.length };
        Ok(list.iter().map(range).collect())
    };
    let users = Users { uids: ranges(&wish.uids)?, gids: ranges(&wish.gids)? };
    if users.on_node(0, 0).is_none() {
        return Err("user namespace mappings must have user and group 0".into());
    }
    Ok(Some(users))
}

/// Whether pods can have users of their own: since Linux 6.3 every file system that pods' volumes are made of can give
/// files other owners by mount.
pub fn user_namespaces() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (6, 3) && Path::new("/proc/self/ns/user").exists()
}

impl Engine {
    /// Runs a sandbox; on failure nothing of it is left.
    pub async fn run_sandbox(self: &Arc<Self>, config: PodSandboxConfig, handler: String) -> Result<String> {
        let id = new_id();
        let asked = config.linux.as_ref().map(|l| l.cgroup_parent.as_str()).unwrap_or_default();
        let (cgroup_parent, owns_cgroup) = cgroup_of(&self.config.cgroup_parent, asked, &id);
        let options = namespaces(&config);
        let own_users = users(&options).map_err(anyhow::Error::msg)?.is_some();
        if own_users && handlers::find(&handler)? != handlers::Handler::Own {
            anyhow::bail!("user namespaces are not supported by the runtime handler \"{handler}\"");
        }
        for name in config.linux.iter().flat_map(|l| l.sysctls.keys()) {
            check_sysctl(name, &options).map_err(anyhow::Error::msg)?;
        }
        let record = SandboxRecord {
            id: id.clone(),
            config: Some(config),
            runtime_handler: handler,
            created_at: now(),
            cgroup_parent,
            owns_cgroup,
            ..SandboxRecord::default()
        };
        let sandbox = Sandbox::new(record);
        fs::create_dir_all(self.sandbox_dir(&id)).context("creating the sandbox's directory")?;
        let made = self.make_sandbox(&sandbox).await;
        if made.is_err() {
            // Not yet known to anybody, so the usual way of removing does.
            if let Err(error) = self.remove_sandbox(&sandbox).await {
                tracing::warn!(sandbox = id, error = format!("{error:#}"), "cleaning up after a sandbox that failed");
            }
        }
        made?;
        self.announce(&id, ContainerEventType::ContainerCreatedEvent, &id);
        self.announce(&id, ContainerEventType::ContainerStartedEvent, &id);
        Ok(id)
    }

    async fn make_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<()> {
        let record = sandbox.record();
        let config = record.config.clone().unwrap_or_default();
        let options = namespaces(&config);
        let users = users(&options).map_err(anyhow::Error::msg)?;
        self.update_sandbox(sandbox, |_| {})?;
        let state = self.sandbox_state_dir(&sandbox.id);
        fs::create_dir_all(&state).context("creating the sandbox's run-time directory")?;
        let host_network = options.network() == NamespaceMode::Node;
        write_files(&self.sandbox_dir(&sandbox.id), &config, host_network)?;
        if options.ipc() != NamespaceMode::Node {
            let shm = state.join("shm");
            fs::create_dir_all(&shm)?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            let owner = users.as_ref().and_then(|u| u.on_node(0, 0)).unwrap_or_default();
            let data = format!("{SHM_SIZE},uid={},gid={}", owner.0, owner.1);
            mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(data.as_str()))
                .context("mounting the pod's shared memory")?;
        }
        let request = SandboxRequest {
            dir: state,
            id: sandbox.id.clone(),
            hostname: config.hostname.clone(),
            net: !host_network,
            ipc: options.ipc() != NamespaceMode::Node,
            uts: !host_network,
            users,
            shared_pid: options.pid() == NamespaceMode::Pod,
            sysctls: config.linux.as_ref().map(|l| l.sysctls.clone().into_iter().collect()).unwrap_or_default(),
        };
        let (connection, pid, init) = self.zygote.spawn(&request).await.context("starting the sandbox")?;
        self.update_sandbox(sandbox, |r| (r.shim_pid, r.init_pid) = (pid, init))?;
        self.follow(sandbox.clone(), connection);
        let mut addresses = Vec::new();
        if !host_network {
            let engine = self.clone();
            let id = sandbox.id.clone();
            addresses = tokio::task::spawn_blocking(move || -> Result<_> {
                let namespace = OwnedFd::from(fs::File::open(format!("/proc/{pid}/ns/net"))?);
                engine.network.attach(&id, &config, &namespace, pid)
            })
            .await?
            .with_context(|| format!("failed to setup network for sandbox \"{}\"", sandbox.id))?;
        }
        self.update_sandbox(sandbox, |r| {
            r.addresses = addresses.iter().map(ToString::to_string).collect();
            r.ready = true;
        })?;
        self.insert_sandbox(sandbox.clone());
        Ok(())
    }

    /// Ends everything of a sandbox but its records; idempotent.
    pub async fn stop_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<()> {
        let _changing = sandbox.changing.lock().await;
        let was_ready = sandbox.record().ready;
        let state = self.sandbox_state_dir(&sandbox.id);
        // Recorded first: an engine that dies here goes on stopping it after its restart.
        if was_ready {
            self.end_sandbox(sandbox, |r| r.ready = false);
        }
        let record = sandbox.record();
        let engine = self.clone();
        let config = record.config.clone().unwrap_or_default();
        if namespaces(&config).network() != NamespaceMode::Node {
            let (id, shim) = (sandbox.id.clone(), Some(record.shim_pid).filter(|_| *sandbox.alive.borrow()));
            tokio::task::spawn_blocking(move || engine.network.detach(&id, &config, shim))
                .await?
                .context("disconnecting the sandbox")?;
        }
        if *sandbox.alive.borrow() {
            // Whether it answers or dies doing it: what counts is that it ends.
            let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, shim_client::ask(&state, &Request::Shutdown)).await;
            let mut alive = sandbox.alive.subscribe();
            if tokio::time::timeout(SHUTDOWN_TIMEOUT, alive.wait_for(|alive| !alive)).await.is_err() {
                kill_process(record.shim_pid);
                tokio::time::timeout(SHUTDOWN_TIMEOUT, alive.wait_for(|alive| !alive))
                    .await
                    .context("the sandbox's shim does not end")??;
            }
        }
        // Whatever a lost shim has left.
        for container in self.containers_of(&sandbox.id) {
            let cgroup = container.record().cgroup;
            if self.cgroups.exists(&cgroup) {
                let cgroups = self.cgroups.clone();
                tokio::task::spawn_blocking(move || cgroups.remove(&cgroup)).await??;
            }
        }
        unmount(&state.join("shm"))?;
        remove_dir(&state)?;
        if was_ready {
            self.announce(&sandbox.id, ContainerEventType::ContainerStoppedEvent, &sandbox.id);
        }
        Ok(())
    }

    /// Removes every trace of a sandbox; idempotent.
    pub async fn remove_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<()> {
        self.stop_sandbox(sandbox).await?;
        for container in self.containers_of(&sandbox.id) {
            self.remove_container(&container).await?;
        }
        let record = sandbox.record();
        if record.owns_cgroup {
            let cgroups = self.cgroups.clone();
            tokio::task::spawn_blocking(move || cgroups.remove(&record.cgroup_parent)).await??;
        }
        remove_dir(&self.sandbox_dir(&sandbox.id))?;
        let known = self.sandbox(&sandbox.id).is_some();
        self.forget_sandbox(&sandbox.id);
        if known {
            self.announce(&sandbox.id, ContainerEventType::ContainerDeletedEvent, &sandbox.id);
        }
        Ok(())
    }
}

/// Where sandboxes lie whose caller says nothing, for an engine that is not bound to a place.
const UNASKED: &str = "nauplius";

/// The parent of a sandbox's container cgroups, and whether it is ours to remove: what the caller asks for, below the
/// engine's own where it has one.
fn cgroup_of(root: &str, asked: &str, id: &str) -> (String, bool) {
    let root = root.trim_matches('/');
    let asked: Vec<&str> = asked.split('/').filter(|p| !p.is_empty() && *p != "." && *p != "..").collect();
    let asked = match asked.as_slice() {
        [slice] if slice.ends_with(".slice") => slices(slice),
        parts => parts.join("/"),
    };
    let inside = root.is_empty() || asked == root || asked.starts_with(&format!("{root}/"));
    match asked.as_str() {
        "" => (format!("/{}/{id}", if root.is_empty() { UNASKED } else { root }), true),
        path if inside => (format!("/{path}"), false),
        path => (format!("/{root}/{path}"), false),
    }
}

/// Where systemd keeps a slice that is called by its name alone: below those its name begins with.
fn slices(name: &str) -> String {
    let Some(stem) = name.strip_suffix(".slice").filter(|stem| *stem != "-") else { return String::new() };
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    ends.map(|end| format!("{}.slice", &stem[..end])).collect::<Vec<_>>().join("/")
}

/// Only parameters of a namespace that is the pod's own may be set: others are the node's.
fn check_sysctl(name: &str, options: &NamespaceOption) -> Result<(), String> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b)) && !name.contains("..");
    let own_net = options.network() != NamespaceMode::Node;
    let own_ipc = options.ipc() != NamespaceMode::Node;
    let dotted = name.replace('/', ".");
    let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|p| dotted.starts_with(p));
    let uts = dotted == "kernel.domainname";
    match (plain, dotted.starts_with("net."), ipc || uts) {
        (false, ..) => Err(format!("sysctl \"{name}\" is not a name")),
        (true, true, _) if own_net => Ok(()),
        (true, _, true) if own_ipc => Ok(()),
        (true, true, _) | (true, _, true) => Err(format!("sysctl \"{name}\" is not allowed with the node's namespace")),
        _ => Err(format!("sysctl \"{name}\" is not in a separate kernel namespace")),
    }
}

/// Kills a process that is known to be ours and unreaped.
fn kill_process(pid: i32) {
    if pid > 1 {
        // Gone already is what is wanted.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Unmounts; not being mounted is fine.
pub fn unmount(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(e) => Err(e).with_context(|| format!("unmounting {}", path.display())),
    }
}

/// Removes a directory tree; absence is fine.
pub fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The files that containers find in `/etc`: (container path, file name).
pub const FILES: [(&str, &str); 3] =
    [("/etc/hostname", "hostname"), ("/etc/hosts", "hosts"), ("/etc/resolv.conf", "resolv.conf")];

fn write_files(dir: &Path, config: &PodSandboxConfig, host_network: bool) -> Result<()> {
    let node = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let hostname = if host_network || config.hostname.is_empty() {
        nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    } else {
        config.hostname.clone()
    };
    let resolv = match &config.dns_config {
        Some(dns) => resolv_conf(dns),
        None => node("/etc/resolv.conf"),
    };
    let contents = [format!("{hostname}\n"), node("/etc/hosts"), resolv];
    for ((_, name), content) in FILES.iter().zip(contents) {
        let path: PathBuf = dir.join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_are_checked() {
        let own = NamespaceOption::default();
        let host =
            NamespaceOption { network: NamespaceMode::Node.into(), ipc: NamespaceMode::Node.into(), ..own.clone() };
        for (name, mine, nodes) in [
            ("net.core.somaxconn", true, false),
            ("kernel.shm_rmid_forced", true, false),
            ("fs.mqueue.msg_max", true, false),
            ("kernel.panic", false, false),
            ("vm.swappiness", false, false),
            ("net.../../etc/passwd", false, false),
            ("net.a b", false, false),
        ] {
            assert_eq!(check_sysctl(name, &own).is_ok(), mine, "{name}");
            assert_eq!(check_sysctl(name, &host).is_ok(), nodes, "{name}");
        }
    }

    #[test]
    fn cgroups_lie_where_they_are_asked_for() {
        for (root, asked, expect, own) in [
            ("", "", "/nauplius/i", true),
            ("", "/kubepods/burstable/pod1", "/kubepods/burstable/pod1", false),
            ("", "/../a/./b", "/a/b", false),
            ("/n", "", "/n/i", true),
            ("/n", "/n/kubepods/pod1", "/n/kubepods/pod1", false),
            ("/n", "/kubepods/pod1", "/n/kubepods/pod1", false),
            ("", "system.slice", "/system.slice", false),
            (
                "",
                "kubepods-burstable-pod12_34.slice",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12_34.slice",
                false,
            ),
            ("", "/kubepods.slice/kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice", false),
            ("/n", "a-b.slice", "/n/a.slice/a-b.slice", false),
            ("", "-.slice", "/nauplius/i", true),
        ] {
            assert_eq!(cgroup_of(root, asked, "i"), (expect.to_string(), own), "{asked} in {root}");
        }
    }

    #[test]
    fn resolv_conf_lines() {
        let dns = DnsConfig {
            servers: vec!["10.0.0.10".into()],
            searches: vec!["a.svc".into(), "b".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(resolv_conf(&dns), "search a.svc b\nnameserver 10.0.0.10\noptions ndots:5\n");
        assert_eq!(resolv_conf(&DnsConfig::default()), "");
    }
}
