//! What containers and pods use: processor, memory, processes, disk, network.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use crate::cgroup::Usage;
use crate::engine::{Container, Engine, Sandbox};
use crate::network::POD_INTERFACE;
use crate::network::netlink::Netlink;
use crate::shim::sys::now;
use cri::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage, IoUsage,
    LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes, PodSandboxStats,
    ProcessUsage, PsiData, PsiStats, SwapUsage, UInt64Value,
};

/// Most files looked at for one disk usage; beyond it the answer is a lower bound.
const MAX_FILES: u64 = 2_000_000;

fn number(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

/// Bytes and inodes that a directory tree takes on disk.
pub fn disk_usage(dir: &Path) -> (u64, u64) {
    let (mut bytes, mut inodes) = (0, 0);
    let mut pending = vec![dir.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            inodes += 1;
            // A file with several names counts in parts.
            bytes += meta.blocks() * 512 / if meta.is_dir() { 1 } else { meta.nlink().max(1) };
            if meta.is_dir() {
                pending.push(entry.path());
            }
            if inodes >= MAX_FILES {
                return (bytes, inodes);
            }
        }
    }
    (bytes, inodes)
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`
fn pressure(usage: &Usage, resource: &str) -> Option<PsiStats> {
    let text = usage.pressure.get(resource)?;
    let line = |kind: &str| {
        let rest = text.lines().find_map(|l| l.strip_prefix(kind))?;
        let field = |name: &str| rest.split_whitespace().find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
        Some(PsiData {
            total: field("total")?.parse().ok()?,
            avg10: field("avg10")?.parse().ok()?,
            avg60: field("avg60")?.parse().ok()?,
            avg300: field("avg300")?.parse().ok()?,
        })
    };
    Some(PsiStats { full: line("full "), some: line("some ") })
}

impl Engine {
    fn cpu(&self, id: &str, usage: &Usage, at: i64) -> CpuUsage {
        let mut seen = self.cpu_seen.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = seen.insert(id.to_string(), (at, usage.cpu_nanos)).and_then(|(before, used)| {
            let elapsed = u64::try_from(at - before).ok().filter(|e| *e > 0)?;
            let spent = usage.cpu_nanos.checked_sub(used)?;
            Some((u128::from(spent) * 1_000_000_000 / u128::from(elapsed)) as u64)
        });
        CpuUsage {
            timestamp: at,
            usage_core_nano_seconds: number(usage.cpu_nanos),
            usage_nano_cores: rate.and_then(number),
            psi: pressure(usage, "cpu"),
        }
    }

    fn memory(usage: &Usage, at: i64) -> MemoryUsage {
        MemoryUsage {
            timestamp: at,
            working_set_bytes: number(usage.working_set),
            available_bytes: usage.memory_limit.and_then(|l| number(l.saturating_sub(usage.working_set))),
            usage_bytes: number(usage.memory),
            rss_bytes: number(usage.rss),
            page_faults: number(usage.page_faults),
            major_page_faults: number(usage.major_page_faults),
            psi: pressure(usage, "memory"),
        }
    }

    /// A container's use; zero processor and memory if it does not run.
    pub async fn container_stats(self: &Arc<Self>, container: &Arc<Container>) -> Option<ContainerStats> {
        let (engine, container) = (self.clone(), container.clone());
        tokio::task::spawn_blocking(move || engine.container_stats_now(&container)).await.ok()
    }

    fn container_stats_now(&self, container: &Container) -> ContainerStats {
        let record = container.record();
        let config = record.config.clone().unwrap_or_default();
        let at = now();
        let usage = self.cgroups.usage(&record.cgroup).unwrap_or_default();
        let upper = self.container_dir(&record.id).join("upper");
        let (bytes, inodes) = disk_usage(&upper);
        ContainerStats {
            attributes: Some(ContainerAttributes {
                id: record.id.clone(),
                metadata: config.metadata,
                labels: config.labels,
                annotations: config.annotations,
            }),
            cpu: Some(self.cpu(&record.id, &usage, at)),
            memory: Some(Self::memory(&usage, at)),
            writable_layer: Some(FilesystemUsage {
                timestamp: at,
                fs_id: Some(FilesystemIdentifier {
                    mountpoint: self.config.root.join("containers").display().to_string(),
                }),
                used_bytes: number(bytes),
                inodes_used: number(inodes),
            }),
            swap: Some(SwapUsage { timestamp: at, swap_available_bytes: None, swap_usage_bytes: number(usage.swap) }),
            io: Some(IoUsage { timestamp: at, psi: pressure(&usage, "io") }),
        }
    }

    /// A pod's use.
    pub async fn sandbox_stats(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Option<PodSandboxStats> {
        let (engine, sandbox) = (self.clone(), sandbox.clone());
        tokio::task::spawn_blocking(move || engine.sandbox_stats_now(&sandbox)).await.ok()
    }

    fn sandbox_stats_now(&self, sandbox: &Sandbox) -> PodSandboxStats {
        let record = sandbox.record();
        let config = record.config.clone().unwrap_or_default();
        let at = now();
        let usage = self.cgroups.usage(&record.cgroup_parent).unwrap_or_default();
        let containers: Vec<Arc<Container>> = self.containers_of(&record.id);
        let running: Vec<ContainerStats> =
            containers.iter().filter(|c| c.record().running()).map(|c| self.container_stats_now(c)).collect();
        let processes = containers.iter().map(|c| self.cgroups.usage(&c.record().cgroup).map_or(0, |u| u.pids)).sum();
        let host_network = crate::sandbox::namespaces(&config).network() == cri::v1::NamespaceMode::Node;
        let network = (record.ready && !host_network).then(|| interfaces(record.shim_pid, at)).flatten();
        PodSandboxStats {
            attributes: Some(PodSandboxAttributes {
                id: record.id.clone(),
                metadata: config.metadata,
                labels: config.labels,
                annotations: config.annotations,
            }),
            linux: Some(LinuxPodSandboxStats {
                cpu: Some(self.cpu(&record.id, &usage, at)),
                memory: Some(Self::memory(&usage, at)),
                network,
                process: Some(ProcessUsage { timestamp: at, process_count: number(processes) }),
                containers: running,
                io: Some(IoUsage { timestamp: at, psi: pressure(&usage, "io") }),
            }),
            windows: None,
        }
    }
}

fn interfaces(shim: i32, at: i64) -> Option<NetworkUsage> {
    let namespace = std::fs::File::open(format!("/proc/{shim}/ns/net")).ok()?;
    let links = Netlink::open_in(std::os::fd::AsFd::as_fd(&namespace)).ok()?.links().ok()?;
    let mut all: Vec<NetworkInterfaceUsage> = links
        .into_iter()
        .filter(|l| l.name != "lo")
        .map(|l| NetworkInterfaceUsage {
            name: l.name,
            rx_bytes: number(l.counters[0]),
            rx_errors: number(l.counters[1]),
            tx_bytes: number(l.counters[2]),
            tx_errors: number(l.counters[3]),
        })
        .collect();
    let main = all.iter().position(|i| i.name == POD_INTERFACE).map(|at| all.remove(at));
    Some(NetworkUsage { timestamp: at, default_interface: main, interfaces: all })
}
