//! Containers as callers want them: create, start, stop, remove, update.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::engine::{Container, Engine, Sandbox, new_id};
use crate::images::store::Image;
use crate::records::ContainerRecord;
use crate::sandbox::{FILES, namespaces, remove_dir};
use crate::shim::protocol::{Exit, Reply, Request};
use crate::shim::sys::now;
use crate::shim_client::{Refused, ask};
use crate::spec::bundle::{Mount, PidNamespace, Rootfs};
use crate::spec::capabilities::bounding_set;
use crate::spec::cdi;
use crate::spec::container::{Inputs, build};
use crate::spec::oci;
use crate::spec::user::Accounts;
use cri::v1::{
    ContainerConfig, ContainerEventType, LinuxContainerResources, LinuxContainerSecurityContext, NamespaceMode,
    PodSandboxConfig, Signal,
};

/// Largest account file that is read, in bytes.
const MAX_ACCOUNTS: u64 = 4 << 20;
/// How long a killed container may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(120);
/// Exit code of a container that could not be started.
const START_FAILED: i32 = 128;

fn context_of(config: &ContainerConfig) -> LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default()
}

impl Engine {
    /// Makes a container of a sandbox, not running yet.
    pub fn create_container(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        config: ContainerConfig,
        pod: Option<PodSandboxConfig>,
    ) -> Result<String> {
        let sandbox_record = sandbox.record();
        if !sandbox_record.ready {
            bail!("sandbox \"{}\" is not running", sandbox.id);
        }
        let pod = pod.or(sandbox_record.config.clone()).unwrap_or_default();
        let wanted = config.image.clone().unwrap_or_default().image;
        let image = self.images.find_whole(&wanted).with_context(|| format!("image \"{wanted}\" not found"))?;
        let id = new_id();
        let dir = self.container_dir(&id);
        let made = self.write_container(&id, &dir, &sandbox_record, config, &pod, &image);
        if made.is_err() {
            self.images.release(&id);
            let _ = fs::remove_dir_all(&dir);
        }
        self.insert_container(Container::new(made?));
        self.announce(&id, ContainerEventType::ContainerCreatedEvent, &sandbox.id);
        Ok(id)
    }

    fn write_container(
        &self,
        id: &str,
        dir: &Path,
        sandbox: &crate::records::SandboxRecord,
        config: ContainerConfig,
        pod: &PodSandboxConfig,
        image: &Image,
    ) -> Result<ContainerRecord> {
        for sub in ["upper", "work"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        copy_root_attributes(&self.images.layers_dir(), &image.layers, &dir.join("upper"))?;
        self.images.hold(id, &image.layers);
        let read = |path: &str| {
            let bytes = self.images.read_file(&image.layers, path, MAX_ACCOUNTS).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let accounts = Accounts { passwd: read("/etc/passwd"), group: read("/etc/group") };
        for mount in config.mounts.iter().filter(|m| m.image.is_none()) {
            if !Path::new(&mount.host_path).exists() {
                fs::create_dir_all(&mount.host_path)
                    .with_context(|| format!("failed to mkdir \"{}\"", mount.host_path))?;
            }
        }
        let options = namespaces(pod);
        let context = context_of(&config);
        let image_config = image.parsed_config()?;
        let cgroup = format!("{}/{id}", sandbox.cgroup_parent);
        let log_path = if config.log_path.is_empty() {
            PathBuf::new()
        } else {
            Path::new(&pod.log_directory).join(&config.log_path)
        };
        let log = Some(log_path.clone()).filter(|p| p.is_absolute());
        if let Some(dir) = log.as_deref().and_then(Path::parent) {
            fs::create_dir_all(dir).with_context(|| format!("creating the log directory {}", dir.display()))?;
        }
        let hostname = if options.network() == NamespaceMode::Node {
            nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
        } else {
            pod.hostname.clone()
        };
        let sandbox_dir = self.sandbox_dir(&sandbox.id);
        let own_ipc = options.ipc() != NamespaceMode::Node;
        let mut with_devices = config.clone();
        cdi::inject(&mut with_devices, &cdi::DIRECTORIES)
            .map_err(|e| anyhow::anyhow!("CDI device injection failed: {e}"))?;
        let mut built = build(Inputs {
            id,
            config: &with_devices,
            hostname: &hostname,
            image: &image_config,
            accounts: &accounts,
            rootfs: Rootfs {
                layers: self.images.layers_dir(),
                lower: image.layers.clone(),
                upper: dir.join("upper"),
                work: dir.join("work"),
                mountpoint: self.config.state.join("rootfs"),
                readonly: context.readonly_rootfs,
            },
            sandbox_files: FILES.iter().map(|(path, name)| (*path, sandbox_dir.join(name))).collect(),
            shm: own_ipc.then(|| self.sandbox_state_dir(&sandbox.id).join("shm")),
            image_mounts: self.image_mounts(&config)?,
            users: crate::sandbox::users(&namespaces(&sandbox.config.clone().unwrap_or_default()))
                .map_err(anyhow::Error::msg)?,
            pid_namespace: self.pid_namespace(&context, sandbox.init_pid)?,
            cgroup_dirs: self.cgroups.dirs(&cgroup),
            cgroups: &self.cgroups,
            cgroup_path: &cgroup,
            bounding: bounding_set(),
            seccomp: crate::spec::seccomp::resolve(&context).map_err(anyhow::Error::msg)?,
            log,
            exit_file: dir.join("exit.json"),
        })
        .map_err(anyhow::Error::msg)?;
        built.bundle.oci = self.oci_runtime(&sandbox.runtime_handler, id)?;
        if built.bundle.oci.is_some() {
            let more = oci::More {
                cgroup: &cgroup,
                device_rules: built.device_rules.as_deref(),
                seccomp: crate::spec::seccomp::resolve_oci(&context).map_err(anyhow::Error::msg)?,
                sandbox_init: sandbox.init_pid,
            };
            let config = oci::config(&built.bundle, &more).map_err(anyhow::Error::msg)?;
            fs::write(dir.join("config.json"), config.to_string())?;
        }
        fs::write(dir.join("bundle.json"), serde_json::to_vec(&built.bundle)?)?;
        let image_stop = image_config.config.as_ref().and_then(|c| c.stop_signal.as_deref()).unwrap_or("");
        let record = ContainerRecord {
            id: id.to_string(),
            sandbox_id: sandbox.id.clone(),
            image_id: image.id.clone(),
            image_ref: image.digests.first().cloned().unwrap_or_else(|| image.id.clone()),
            layers: image.layers.clone(),
            created_at: now(),
            cgroup,
            log_path: log_path.to_string_lossy().into_owned(),
            uid: built.identity.uid,
            gid: built.identity.gid,
            groups: built.identity.groups,
            resources: config.linux.as_ref().and_then(|l| l.resources.clone()),
            stop_signal: stop_signal(config.stop_signal(), image_stop),
            all_devices: built.device_rules.is_none(),
            device_rules: built.device_rules.unwrap_or_default(),
            config: Some(config),
            ..ContainerRecord::default()
        };
        crate::records::save(&dir.join("record"), &record)?;
        Ok(record)
    }

    fn pid_namespace(&self, context: &LinuxContainerSecurityContext, init: i32) -> Result<PidNamespace> {
        let options = context.namespace_options.clone().unwrap_or_default();
        Ok(match options.pid() {
            NamespaceMode::Node => PidNamespace::Node,
            NamespaceMode::Container => PidNamespace::Private,
            NamespaceMode::Pod if init > 0 => PidNamespace::Sandbox,
            NamespaceMode::Pod => PidNamespace::Private,
            NamespaceMode::Target => {
                let target = self
                    .container(&options.target_id)
                    .with_context(|| format!("target container \"{}\" not found", options.target_id))?
                    .record();
                if !target.running() {
                    bail!("target container \"{}\" is not running", options.target_id);
                }
                PidNamespace::Target(target.pid)
            }
        })
    }

    /// Volumes that are images: read-only views of their layers.
    fn image_mounts(&self, config: &ContainerConfig) -> Result<Vec<Mount>> {
        let mut mounts = Vec::new();
        for wanted in &config.mounts {
            let Some(spec) = &wanted.image else { continue };
            let image =
                self.images.find_whole(&spec.image).with_context(|| format!("image \"{}\" not found", spec.image))?;
            let layers = self.images.layers_dir();
            let paths: Vec<String> = image.layers.iter().map(|l| layers.join(l).display().to_string()).collect();
            let inside = wanted.image_sub_path.trim_matches('/');
            if inside.split('/').any(|p| p == "..") {
                bail!("image sub path \"{inside}\" must not contain \"..\"");
            }
            let whole = match paths.as_slice() {
                [only] => Mount::new(&wanted.container_path, "bind", only, &["rbind", "ro", "rprivate"]),
                _ => Mount::new(
                    &wanted.container_path,
                    "overlay",
                    "overlay",
                    &["ro", &format!("lowerdir={}", paths.join(":"))],
                ),
            };
            mounts.push(Mount { inside: inside.into(), ..whole });
        }
        Ok(mounts)
    }

    /// Starts a container. One that cannot be started has ended by that.
    pub async fn start_container(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let _changing = container.changing.lock().await;
        let record = container.record();
        if record.started_at != 0 || record.finished_at != 0 {
            let state = if record.finished_at != 0 { "CONTAINER_EXITED" } else { "CONTAINER_RUNNING" };
            bail!("container \"{}\" is in {state} state", container.id);
        }
        if !self.is_alive(&record.sandbox_id) {
            bail!("sandbox container \"{}\" is not running", record.sandbox_id);
        }
        match self.launch(container, &record).await {
            Ok((pid, at)) => {
                self.update_container(container, |r| {
                    r.pid = pid;
                    r.started_at = at;
                })?;
                self.announce(&container.id, ContainerEventType::ContainerStartedEvent, &container.sandbox_id);
                Ok(())
            }
            Err(error) => {
                let message = format!("{error:#}");
                let at = now();
                self.container_ended(&container.id, &Exit { code: START_FAILED, at, oom: false }).await;
                self.end_container(container, |r| {
                    r.reason = "StartError".into();
                    r.message = format!("failed to start container: {message}");
                });
                Err(error.context("failed to start container"))
            }
        }
    }

    async fn launch(self: &Arc<Self>, container: &Container, record: &ContainerRecord) -> Result<(i32, i64)> {
        let engine = self.clone();
        let prepared = record.clone();
        tokio::task::spawn_blocking(move || -> Result<()> {
            engine.cgroups.create(&prepared.cgroup)?;
            let rules = (!prepared.all_devices).then_some(prepared.device_rules.as_slice());
            engine.cgroups.allow_devices(&prepared.cgroup, rules)?;
            match &prepared.resources {
                Some(resources) => engine.cgroups.apply(&prepared.cgroup, resources),
                None => Ok(()),
            }
        })
        .await??;
        let bundle = self.container_dir(&container.id).join("bundle.json");
        match ask(&self.sandbox_state_dir(&record.sandbox_id), &Request::Start { bundle }).await {
            Ok(Reply::Started { pid, at }) => Ok((pid, at)),
            Ok(other) => bail!("the shim answered {other:?}"),
            Err(error) if error.is::<Refused>() => Err(error.context("unable to start container process")),
            Err(error) => Err(error),
        }
    }

    /// Asks a container to end, and kills it after the grace period; idempotent.
    pub async fn stop_container(&self, container: &Container, grace: Duration) -> Result<()> {
        // One that is just being started is stopped after that.
        drop(container.changing.lock().await);
        if !container.record().running() {
            return Ok(());
        }
        let record = container.record();
        let state = self.sandbox_state_dir(&record.sandbox_id);
        let signal = |signal, all| Request::Signal { id: container.id.clone(), signal, all };
        if !grace.is_zero() {
            ask(&state, &signal(record.stop_signal, false)).await?;
            if tokio::time::timeout(grace, container.wait()).await.is_ok() {
                return Ok(());
            }
        }
        {
            // Not held while waiting: the end is taken in under it.
            let _changing = container.changing.lock().await;
            if !container.record().running() {
                return Ok(());
            }
            ask(&state, &signal(libc::SIGKILL, true)).await?;
        }
        tokio::time::timeout(KILL_TIMEOUT, container.wait())
            .await
            .with_context(|| format!("container \"{}\" does not end after SIGKILL", container.id))
    }

    /// Removes every trace of a container, killing it if need be; idempotent.
    pub async fn remove_container(&self, container: &Arc<Container>) -> Result<()> {
        if container.record().running() {
            self.stop_container(container, Duration::ZERO).await?;
        }
        let _changing = container.changing.lock().await;
        let record = container.record();
        if self.is_alive(&record.sandbox_id) {
            // A shim that does not know it needs not forget it.
            let _ =
                ask(&self.sandbox_state_dir(&record.sandbox_id), &Request::Forget { id: container.id.clone() }).await;
        }
        let cgroups = self.cgroups.clone();
        let dir = self.container_dir(&container.id);
        tokio::task::spawn_blocking(move || -> Result<()> {
            if cgroups.exists(&record.cgroup) {
                cgroups.remove(&record.cgroup)?;
            }
            // The record first: without it the rest is rubbish that the next start removes.
            let _ = fs::remove_file(dir.join("record"));
            remove_dir(&dir)
        })
        .await??;
        self.images.release(&container.id);
        let known = self.container(&container.id).is_some();
        self.forget_container(&container.id);
        if known {
            self.announce(&container.id, ContainerEventType::ContainerDeletedEvent, &container.sandbox_id);
        }
        Ok(())
    }

    /// Changes a container's limits.
    pub async fn update_resources(
        self: &Arc<Self>,
        container: &Container,
        change: LinuxContainerResources,
    ) -> Result<()> {
        let _changing = container.changing.lock().await;
        let record = container.record();
        if record.finished_at != 0 {
            bail!("cannot update a container in CONTAINER_EXITED state");
        }
        if record.running() {
            let (engine, cgroup, wanted) = (self.clone(), record.cgroup.clone(), change.clone());
            tokio::task::spawn_blocking(move || engine.cgroups.apply(&cgroup, &wanted)).await??;
        }
        self.update_container(container, |r| merge(r.resources.get_or_insert_default(), &change))
    }
}

/// The writable layer's root looks like the image's.
fn copy_root_attributes(layers: &Path, names: &[String], upper: &Path) -> Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let Some(top) = names.first() else { return Ok(()) };
    let meta = fs::metadata(layers.join(top)).context("looking at the image's top layer")?;
    std::os::unix::fs::chown(upper, Some(meta.uid()), Some(meta.gid()))?;
    fs::set_permissions(upper, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    Ok(())
}

/// The number of the signal that stops a container: the pod's wish, else the image's, else SIGTERM.
fn stop_signal(pod: Signal, image: &str) -> i32 {
    let number = |name: &str| -> Option<i32> {
        let name = name.to_uppercase();
        let short = name.strip_prefix("SIG").unwrap_or(&name);
        if let Ok(number) = short.parse::<i32>() {
            return (1..=64).contains(&number).then_some(number);
        }
        let offset = |rest: &str| {
            if rest.is_empty() {
                Some(0)
            } else {
                rest.replace("PLUS", "").replace(['+', '-'], "").replace("MINUS", "").parse::<i32>().ok()
            }
        };
        if let Some(rest) = short.strip_prefix("RTMIN") {
            return Some(34 + offset(rest)?).filter(|n| *n <= 64);
        }
        if let Some(rest) = short.strip_prefix("RTMAX") {
            return Some(64 - offset(rest)?).filter(|n| *n >= 34);
        }
        let alias = match short {
            "CLD" => "CHLD",
            "POLL" => "IO",
            "IOT" => "ABRT",
            other => other,
        };
        format!("SIG{alias}").parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
    };
    if pod != Signal::RuntimeDefault {
        return number(pod.as_str_name().trim_start_matches("SIGNAL_")).unwrap_or(libc::SIGTERM);
    }
    number(image).unwrap_or(libc::SIGTERM)
}

/// Puts what a change says over what is in force.
fn merge(current: &mut LinuxContainerResources, change: &LinuxContainerResources) {
    let number = |current: &mut i64, change: i64| {
        if change != 0 {
            *current = change;
        }
    };
    number(&mut current.cpu_period, change.cpu_period);
    number(&mut current.cpu_quota, change.cpu_quota);
    number(&mut current.cpu_shares, change.cpu_shares);
    number(&mut current.memory_limit_in_bytes, change.memory_limit_in_bytes);
    number(&mut current.memory_swap_limit_in_bytes, change.memory_swap_limit_in_bytes);
    number(&mut current.oom_score_adj, change.oom_score_adj);
    for (current, change) in
        [(&mut current.cpuset_cpus, &change.cpuset_cpus), (&mut current.cpuset_mems, &change.cpuset_mems)]
    {
        if !change.is_empty() {
            current.clone_from(change);
        }
    }
    if !change.hugepage_limits.is_empty() {
        current.hugepage_limits.clone_from(&change.hugepage_limits);
    }
    current.unified.extend(change.unified.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals() {
        for (pod, image, expect) in [
            (Signal::RuntimeDefault, "", 15),
            (Signal::RuntimeDefault, "SIGQUIT", 3),
            (Signal::RuntimeDefault, "quit", 3),
            (Signal::RuntimeDefault, "9", 9),
            (Signal::RuntimeDefault, "SIGRTMIN+3", 37),
            (Signal::RuntimeDefault, "nonsense", 15),
            (Signal::Sigusr1, "SIGQUIT", 10),
            (Signal::Sigrtmaxminus14, "", 50),
            (Signal::Sigcld, "", 17),
        ] {
            assert_eq!(stop_signal(pod, image), expect, "{pod:?} {image}");
        }
    }
}
