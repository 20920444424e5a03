//! Making a sandbox and starting a container: the steps that need more than one call.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Container as Spec, Pod, Secret, Service};
use k8s_openapi::api::resource::v1::ResourceClaim;

use super::hooks;
use super::observed::{Observed, Sandbox};
use super::plan::Failed;
use super::stop;
use crate::agent::Context;
use crate::cgroups;
use crate::cri::v1;
use crate::metrics::families;
use crate::plugins::claims;
use crate::references::Referent;
use crate::spec::downward::Surroundings;
use crate::spec::environment::{self, Referenced};
use crate::spec::{
    self, Kind, container as container_spec, dns, expansion, hosts, names, sandbox as sandbox_spec, security,
};
use crate::volumes::{Volumes, mounts};

/// When to try again what failed without a reason to be quick about it; as upstream's pod workers.
const RETRY: SignedDuration = SignedDuration::from_secs(10);

fn failed(reason: &str, message: impl Into<String>) -> Failed {
    Failed { reason: reason.into(), message: message.into(), retry_at: Timestamp::now() + RETRY }
}

fn said(status: &tonic::Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

/// What the pod's fields see around it.
pub fn surroundings(context: &Context, pod: &Pod, sandbox: Option<&Sandbox>) -> Surroundings {
    let pod_ips = if spec::host_network(pod) {
        context.host_ips.iter().map(ToString::to_string).collect()
    } else {
        sandbox.map(|s| s.ips.clone()).unwrap_or_default()
    };
    Surroundings {
        pod_ips,
        host_ips: context.host_ips.clone(),
        allocatable: context.machine.allocatable(&context.config),
    }
}

/// Makes the pod's directories, cgroup and sandbox; volumes are ready by now.
pub async fn sandbox(context: &Context, pod: &Pod, attempt: u32) -> Result<(), Failed> {
    let prepare = || -> anyhow::Result<String> {
        fs::create_dir_all(context.config.pod_dir(spec::uid(pod)))?;
        fs::create_dir_all(names::pod_log_dir(&context.config.pod_logs, pod))?;
        cgroups::make_pod(
            &context.config,
            pod,
            context.processors.has_exclusive(spec::uid(pod)),
            "create",
            &context.metrics,
        )
    };
    let cgroup_parent = prepare().map_err(|e| failed("FailedCreatePodContainer", format!("{e:#}")))?;
    let host = dns::parse_resolv_conf(&fs::read_to_string(&context.config.resolv_conf).unwrap_or_default());
    let dns = dns::config(&context.config, pod, &host);
    let not_made = |why: String| failed("FailedCreatePodSandBox", why);
    let runtime_handler = context.runtime_handler(pod).await.map_err(not_made)?;
    let users = context.users.of(&context.config, pod).map_err(not_made)?;
    if users.is_some() && !context.handler_has(&runtime_handler, |f| f.user_namespaces) {
        let message = "can't set `spec.hostUsers: false`, runtime does not support user namespaces";
        context.events.warning(&context.events.about_pod(pod), "FailedCreatePodSandBox", message);
        return Err(not_made(message.into()));
    }
    let own_users = users.is_some();
    let config = sandbox_spec::config(&context.config, pod, attempt, dns, cgroup_parent, users).map_err(not_made)?;
    let (metrics, began, handler) = (&context.metrics, std::time::Instant::now(), runtime_handler.clone());
    metrics.count(&families::STARTED_PODS, &[]);
    if own_users {
        metrics.count(&families::STARTED_USER_NAMESPACES, &[]);
    }
    let made = context.engine.run_pod_sandbox(v1::RunPodSandboxRequest { config: Some(config), runtime_handler }).await;
    metrics.since(&families::RUN_SANDBOX, &[&handler], began);
    match made {
        Ok(_) => Ok(()),
        Err(status) => {
            metrics.count(&families::RUN_SANDBOX_ERRORS, &[&handler]);
            metrics.count(&families::STARTED_PODS_ERRORS, &[]);
            if own_users {
                metrics.count(&families::STARTED_USER_NAMESPACES_ERRORS, &[]);
            }
            let message = format!("Failed to create pod sandbox: {}", said(&status));
            context.events.warning(&context.events.about_pod(pod), "FailedCreatePodSandBox", &message);
            Err(Failed {
                reason: "FailedCreatePodSandBox".into(),
                message,
                retry_at: Timestamp::now() + SignedDuration::from_secs(1),
            })
        }
    }
}

/// Has the pod's claims prepared by their drivers.
pub async fn claims(context: &Context, pod: &Pod) -> Result<(), String> {
    let names = claims::claim_names(pod);
    let mut found = Vec::with_capacity(names.len());
    let api = context.client.api::<ResourceClaim>().namespaced(spec::namespace(pod));
    for (own, name) in names {
        let name = name.ok_or_else(|| format!("pod resource claim {own} is not created yet"))?;
        found.push(api.get(&name).await.map_err(|e| format!("fetch ResourceClaim {name}: {e}"))?);
    }
    if found.is_empty() {
        return Ok(());
    }
    let began = std::time::Instant::now();
    let prepared = context.claims.prepare(spec::uid(pod), &found).await;
    let failed = if prepared.is_err() { "true" } else { "false" };
    context.metrics.since(&families::DRA, &[failed, "PrepareResources"], began);
    prepared
}

async fn environment(
    context: &Context,
    pod: &Pod,
    container: &Spec,
    volumes: &Volumes,
    around: &Surroundings,
) -> Result<Vec<(String, String)>, String> {
    let (config_maps, secrets) = environment::references(container);
    let (namespace, uid) = (spec::namespace(pod), spec::uid(pod));
    let mut referenced = Referenced::default();
    for name in config_maps {
        let found =
            context.references.get(Referent::ConfigMap, namespace, &name, uid).await.map_err(|e| e.to_string())?;
        if let Some(map) = found.map(|o| o.typed::<ConfigMap>()).transpose().map_err(|e| e.to_string())? {
            referenced.config_maps.insert(name, map);
        }
    }
    for name in secrets {
        let found = context.references.get(Referent::Secret, namespace, &name, uid).await.map_err(|e| e.to_string())?;
        if let Some(secret) = found.map(|o| o.typed::<Secret>()).transpose().map_err(|e| e.to_string())? {
            referenced.secrets.insert(name, secret);
        }
    }
    referenced.volume_dirs = volumes.ready.iter().map(|(name, ready)| (name.clone(), ready.path.clone())).collect();
    context.services.synced().await;
    let typed = |o: Arc<client::Object>| o.typed::<Service>().ok();
    let mut services: Vec<Arc<Service>> = Vec::new();
    if spec::spec(pod).enable_service_links != Some(false) {
        services.extend(context.services.list(Some(namespace)).into_iter().filter_map(typed));
    }
    services.extend(context.services.get("default/kubernetes").and_then(typed));
    let links = environment::service_links(services.iter().map(|s| &**s));
    let mut skipped = Vec::new();
    let out = environment::of(pod, container, &links, &referenced, around, &mut skipped)?;
    if !skipped.is_empty() {
        skipped.sort();
        let message = format!(
            "Keys [{}] from the EnvFrom were skipped since they are considered invalid environment variable names.",
            skipped.join(", ")
        );
        context.events.warning(&context.events.about_pod(pod), "InvalidEnvironmentVariableNames", &message);
    }
    Ok(out)
}

/// What is bound into the container: its volumes, the hosts file, the termination message file.
fn mounts(
    context: &Context,
    pod: &Pod,
    container: &Spec,
    restart_count: u32,
    volumes: &Volumes,
    environment: &[(String, String)],
    ips: &[String],
) -> Result<(Vec<v1::Mount>, Vec<v1::Device>), String> {
    let pod_dir = context.config.pod_dir(spec::uid(pod));
    let (mut out, mut devices) = (Vec::new(), Vec::new());
    let text = |e: std::io::Error| e.to_string();
    for (at, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let ready = volumes.ready.get(&mount.name).ok_or_else(|| {
            format!("cannot find volume {:?} to mount into container {:?}", mount.name, container.name)
        })?;
        let lookup = |name: &str| environment.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
        let inner = match mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
            Some(expression) => {
                let expanded = expansion::expand(expression, lookup);
                if expanded.contains("$(") {
                    return Err(format!(
                        "failed to expand subPath for volume {:?}: {expression:?} refers to an unknown variable",
                        mount.name
                    ));
                }
                expanded
            }
            None => mount.sub_path.clone().unwrap_or_default(),
        };
        let container_path =
            if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => v1::MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => v1::MountPropagation::PropagationBidirectional,
            _ => v1::MountPropagation::PropagationPrivate,
        };
        let readonly = mount.read_only == Some(true) || ready.read_only;
        let recursive = match mount.recursive_read_only.as_deref() {
            Some("Enabled") if !context.recursive_read_only() => {
                return Err(format!(
                    "volume mount {:?}: recursiveReadOnly is not supported by the container engine",
                    mount.name
                ));
            }
            Some("Enabled") => true,
            Some("IfPossible") => context.recursive_read_only(),
            _ => false,
        };
        let mut bound = v1::Mount {
            container_path,
            readonly,
            recursive_read_only: readonly && recursive,
            propagation: propagation as i32,
            ..Default::default()
        };
        match &ready.image {
            Some(image) => {
                bound.image = Some(v1::ImageSpec { image: image.clone(), ..Default::default() });
                bound.image_sub_path = inner;
            }
            None if inner.is_empty() => bound.host_path = ready.path.to_string_lossy().into_owned(),
            None => {
                let target =
                    pod_dir.join("volume-subpaths").join(&mount.name).join(&container.name).join(at.to_string());
                mounts::bind_subpath(&ready.path, &inner, &target).map_err(|e| {
                    format!(
                        "failed to prepare subPath for volumeMount {:?} of container {:?}: {e}",
                        mount.name, container.name
                    )
                })?;
                bound.host_path = target.to_string_lossy().into_owned();
            }
        }
        out.push(bound);
    }
    for device in container.volume_devices.iter().flatten() {
        let ready = volumes
            .ready
            .get(&device.name)
            .filter(|r| r.block)
            .ok_or_else(|| format!("volume {:?} is not a block device", device.name))?;
        let permissions = if ready.read_only { "r" } else { "mrw" };
        devices.push(v1::Device {
            container_path: device.device_path.clone(),
            host_path: ready.path.to_string_lossy().into_owned(),
            permissions: permissions.into(),
        });
    }
    let takes = |path: &str| out.iter().any(|m: &v1::Mount| m.container_path == path);
    if !takes("/etc/hosts") && (spec::host_network(pod) || !ips.is_empty()) {
        let (hostname, domain) = sandbox_spec::hostname(&context.config, pod)?;
        let node = fs::read_to_string("/etc/hosts").unwrap_or_default();
        let file = pod_dir.join("etc-hosts");
        let content = hosts::file(pod, ips, &hostname, domain.as_deref(), &node);
        if fs::read_to_string(&file).ok().as_deref() != Some(content.as_str()) {
            // In place, so that containers already bound to it see the change.
            fs::write(&file, content).map_err(text)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).map_err(text)?;
        }
        out.push(v1::Mount {
            container_path: "/etc/hosts".into(),
            host_path: file.to_string_lossy().into_owned(),
            ..Default::default()
        });
    }
    if let Some(path) = container.termination_message_path.as_deref().filter(|p| !p.is_empty()) {
        let file = container_spec::message_file(&context.config, pod, &container.name, restart_count);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).map_err(text)?;
        }
        fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o666).open(&file).map_err(text)?;
        // The container's user may be anyone, and the umask must not have its say.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).map_err(text)?;
        out.push(v1::Mount {
            container_path: path.into(),
            host_path: file.to_string_lossy().into_owned(),
            ..Default::default()
        });
    }
    Ok((out, devices))
}

/// One start of a container, from its image to its postStart hook.
pub struct Start<'a> {
    pub context: &'a Context,
    pub pod: &'a Pod,
    pub seen: &'a Observed,
    pub volumes: &'a Volumes,
    pub name: &'a str,
    pub restart_count: u32,
}

impl Start<'_> {
    /// Runs it; what went wrong becomes the container's waiting reason.
    pub async fn run(&self) -> Result<(), Failed> {
        let Some((kind, container)) = spec::find_container(self.pod, self.name) else { return Ok(()) };
        let about = self.context.events.about_container(self.pod, kind, self.name);
        let metrics = &self.context.metrics;
        let kind_of = match kind {
            Kind::Main => "container",
            Kind::Init | Kind::Sidecar => "init_container",
            Kind::Ephemeral => "ephemeral_container",
        };
        metrics.count(&families::STARTED_CONTAINERS, &[kind_of]);
        let result = self.go(kind, &container, &about).await;
        if let Err(failed) = &result {
            metrics.count(&families::STARTED_CONTAINERS_ERRORS, &[&failed.reason, kind_of]);
        }
        if let Err(failed) = &result
            && matches!(
                failed.reason.as_str(),
                "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError"
            )
        {
            self.context.events.warning(&about, "Failed", &format!("Error: {}", failed.message));
        }
        result
    }

    async fn go(&self, kind: Kind, container: &Spec, about: &crate::events::About) -> Result<(), Failed> {
        let Self { context, pod, seen, .. } = *self;
        let Some(sandbox) = seen.ready_sandbox() else { return Ok(()) };
        let image = context.images.ensure(context, pod, container, about).await?;
        let around = surroundings(context, pod, Some(sandbox));
        let wrong = |message: String| failed("CreateContainerConfigError", message);
        let mut environment = environment(context, pod, container, self.volumes, &around).await.map_err(wrong)?;
        security::verify_non_root(pod, container, Some(&image)).map_err(wrong)?;
        let users = context.users.of(&context.config, pod).map_err(wrong)?;
        let (mut mounts, mut devices) =
            mounts(context, pod, container, self.restart_count, self.volumes, &environment, &around.pod_ips)
                .map_err(wrong)?;
        if let Some(users) = &users {
            for mount in &mut mounts {
                (mount.uid_mappings, mount.gid_mappings) = (users.uids.clone(), users.gids.clone());
            }
        }
        let mut cdi_devices = context.claims.cdi_ids(pod, self.name);
        let mut extra_annotations = Vec::new();
        for (_, grant) in context.devices.granted(spec::uid(pod), self.name) {
            let given = grant.response;
            // What the pod says itself goes before what its devices need.
            let own = |name: &String| environment.iter().any(|(k, _)| k == name);
            let added: Vec<(String, String)> = given.envs.into_iter().filter(|(k, _)| !own(k)).collect();
            environment.extend(added);
            mounts.extend(given.mounts.into_iter().map(|m| v1::Mount {
                container_path: m.container_path,
                host_path: m.host_path,
                readonly: m.read_only,
                ..Default::default()
            }));
            devices.extend(given.devices.into_iter().map(|d| v1::Device {
                container_path: d.container_path,
                host_path: d.host_path,
                permissions: d.permissions,
            }));
            extra_annotations.extend(given.annotations);
            cdi_devices.extend(given.cdi_devices.into_iter().map(|d| d.name));
        }
        let target = spec::spec(pod)
            .ephemeral_containers
            .iter()
            .flatten()
            .find(|e| e.name == container.name)
            .and_then(|e| e.target_container_name.as_deref())
            .and_then(|t| seen.running().find(|c| c.name == t))
            .map(|c| c.id.clone());
        let prepared = container_spec::Prepared {
            environment,
            mounts,
            devices,
            image_ref: image.id.clone(),
            image: Some(image),
            restart_count: self.restart_count,
            target,
            users: users.clone(),
            extra_annotations,
            cdi_devices,
            node: context.machine.memory(&context.config),
            unified: cgroups::is_v2(),
            exclusive: !context.processors.exclusive(spec::uid(pod), &container.name).is_empty(),
            processors: context.processors.of(spec::uid(pod), self.name),
            memory_nodes: context.alignment.memory_nodes(spec::uid(pod), self.name),
        };
        let config = container_spec::config(&context.config, pod, kind, container, prepared);
        let log_dir = names::pod_log_dir(&context.config.pod_logs, pod);
        let log = log_dir.join(&config.log_path);
        if let Some(parent) = log.parent() {
            fs::create_dir_all(parent).map_err(|e| wrong(e.to_string()))?;
        }
        let host = dns::parse_resolv_conf(&fs::read_to_string(&context.config.resolv_conf).unwrap_or_default());
        let dns = dns::config(&context.config, pod, &host);
        let parent = cgroups::parent(&context.config, pod);
        let sandbox_config =
            sandbox_spec::config(&context.config, pod, sandbox.attempt, dns, parent, users).map_err(wrong)?;
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let id = match context.engine.create_container(request).await {
            Ok(answer) => answer.container_id,
            Err(status) => return Err(failed("CreateContainerError", status.message())),
        };
        context.devices.before_start(spec::uid(pod), self.name).await.map_err(|e| failed("RunContainerError", e))?;
        context.events.normal(about, "Created", &format!("Created container: {}", self.name));
        if let Err(status) =
            context.engine.start_container(v1::StartContainerRequest { container_id: id.clone() }).await
        {
            return Err(failed("RunContainerError", status.message()));
        }
        context.events.normal(about, "Started", &format!("Started container {}", self.name));
        let link =
            names::container_log_link(&context.config.log_dir, spec::name(pod), spec::namespace(pod), self.name, &id);
        if let Some(parent) = link.parent() {
            // A shipper's convenience: its absence stops nothing.
            let _ = fs::create_dir_all(parent);
            let _ = symlink(&log, &link);
        }
        if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref())
            && let Err(why) = hooks::run(context, hook, container, &id, &around.pod_ips).await
        {
            tracing::info!(pod = %spec::described(pod), container = self.name, "postStart hook failed: {why}");
            context.events.warning(about, "FailedPostStartHook", "PostStartHook failed");
            if let Ok(answer) =
                context.engine.container_status(v1::ContainerStatusRequest { container_id: id, verbose: false }).await
            {
                let started = super::observed::Container::from_status(&sandbox.id, &answer.status.unwrap_or_default());
                let deadline = tokio::time::Instant::now() + stop::grace(pod);
                stop::container(
                    context,
                    pod,
                    &started,
                    &around.pod_ips,
                    deadline,
                    "FailedPostStartHook",
                    std::future::ready(()),
                )
                .await;
            }
            return Err(Failed { reason: "PostStartHookError".into(), message: why, retry_at: Timestamp::now() });
        }
        Ok(())
    }
}

/// Removes the links of a pod's containers.
pub fn unlink_logs(context: &Context, pod: &Pod, ids: &HashMap<String, String>) {
    for (id, name) in ids {
        // Already gone is what is wanted.
        let _ = fs::remove_file(names::container_log_link(
            &context.config.log_dir,
            spec::name(pod),
            spec::namespace(pod),
            name,
            id,
        ));
    }
}
