//! Reading the signals, and what pods use of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::core::{Reading, Readings, Usage};
use super::local::{self, Parts};
use crate::agent::Context;
use crate::cgroups;
use crate::config::eviction::Signal;
use crate::cri::v1;
use crate::node::machine;
use crate::spec::{self, names};

/// Room and inodes of the file system a path is on.
fn filesystem(path: &Path) -> Option<(Reading, Reading)> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let unit = stat.fragment_size();
    Some((
        Reading { available: stat.blocks_available() * unit, capacity: stat.blocks() * unit },
        Reading { available: stat.files_available(), capacity: stat.files() },
    ))
}

/// Process ids left: the lesser of the kernel's two bounds, less the tasks there are.
fn pids() -> Option<Reading> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let bounds = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
    let capacity = bounds.into_iter().flatten().min()?;
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let tasks: u64 = load.split_whitespace().nth(3)?.split('/').nth(1)?.parse().ok()?;
    Some(Reading { available: capacity.saturating_sub(tasks), capacity })
}

/// All signals that somebody set a threshold for.
pub async fn node(context: &Context) -> Readings {
    let mut out = Readings::new();
    let wanted = |signal: Signal| context.config.eviction.thresholds.iter().any(|t| t.signal == signal);
    if let Some(available) = machine::memory_available() {
        out.insert(Signal::Memory, Reading { available, capacity: context.machine.memory_bytes });
    }
    if let Some((bytes, inodes)) = filesystem(&context.config.root_dir) {
        out.extend([(Signal::NodefsBytes, bytes), (Signal::NodefsInodes, inodes)]);
    }
    if wanted(Signal::ImagefsBytes) || wanted(Signal::ImagefsInodes) {
        let info = context.engine.image_fs_info(v1::ImageFsInfoRequest {}).await.ok();
        let path = info.and_then(|i| Some(PathBuf::from(&i.image_filesystems.first()?.fs_id.as_ref()?.mountpoint)));
        if let Some((bytes, inodes)) = path.and_then(|p| filesystem(&p)) {
            // Where both are one file system, the images' thresholds count for it as well, as upstream has it.
            out.extend([(Signal::ImagefsBytes, bytes), (Signal::ImagefsInodes, inodes)]);
        }
    }
    out.extend(pids().map(|reading| (Signal::Pids, reading)));
    out
}

/// What each part of a pod uses on disk.
pub async fn parts(context: &Context, pod: &Pod) -> Parts {
    let labels = [(names::POD_UID.to_string(), spec::uid(pod).to_string())].into();
    let filter = v1::ContainerStatsFilter { label_selector: labels, ..Default::default() };
    let stats = context.engine.list_container_stats(v1::ListContainerStatsRequest { filter: Some(filter) }).await;
    let layers: Vec<(String, u64)> = stats
        .map(|a| a.stats)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|s| {
            let name = s.attributes.as_ref()?.labels.get(names::CONTAINER_NAME)?.clone();
            Some((name, s.writable_layer?.used_bytes?.value))
        })
        .collect();
    let volumes = context.config.pod_dir(spec::uid(pod)).join("volumes").join("kubernetes.io~empty-dir");
    let logs = names::pod_log_dir(&context.config.pod_logs, pod);
    let on_disk: Vec<String> = spec::spec(pod)
        .volumes
        .iter()
        .flatten()
        .filter(|v| v.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref().unwrap_or_default().is_empty()))
        .map(|v| v.name.clone())
        .collect();
    let walk = move || {
        let volumes = on_disk.into_iter().map(|name| (local::usage(&volumes.join(&name)).0, name));
        let volumes = volumes.map(|(used, name)| (name, used)).collect();
        let containers = layers.into_iter().map(|(name, used)| (local::usage(&logs.join(&name)).0 + used, name));
        Parts { volumes, containers: containers.map(|(used, name)| (name, used)).collect() }
    };
    tokio::task::spawn_blocking(walk).await.unwrap_or_default()
}

/// What pods use of one signal.
pub async fn usage(context: &Context, pods: Vec<Arc<Pod>>, signal: Signal) -> Vec<(Arc<Pod>, Usage)> {
    let memory = match signal {
        Signal::Memory => context.stats.working_sets(context).await,
        _ => Default::default(),
    };
    let mut out = Vec::with_capacity(pods.len());
    for pod in pods {
        let uid = spec::uid(&pod);
        let mut used = Usage { memory: memory.get(uid).copied().unwrap_or(0), ..Default::default() };
        match signal {
            Signal::Memory => {}
            Signal::Pids => used.processes = cgroups::processes(&context.config, &pod),
            Signal::NodefsBytes | Signal::ImagefsBytes => {
                let parts = parts(context, &pod).await;
                used.disk = parts.volumes.iter().chain(&parts.containers).map(|(_, bytes)| bytes).sum();
            }
            Signal::NodefsInodes | Signal::ImagefsInodes => {
                let dir = context.config.pod_dir(uid);
                used.inodes = tokio::task::spawn_blocking(move || local::usage(&dir).1).await.unwrap_or(0);
            }
        }
        out.push((pod, used));
    }
    out
}
