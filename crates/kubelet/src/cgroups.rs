//! The `kubepods` hierarchy: one cgroup a quality-of-service class, one a pod; v2, and the controllers of v1.
//!
//! Driver `cgroupfs`: the agent makes directories and writes numbers. What a kernel or a container host refuses is
//! logged and done without, unless it is the directory itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::config::Config;
use crate::metrics::{Metrics, families};
use crate::quantity;
use crate::spec::{self, memory, resources, resources::Qos};

const ROOT: &str = "/sys/fs/cgroup";
/// v1 controllers the agent itself writes to or must fill for its children.
const V1_WRITTEN: [&str; 4] = ["cpu", "memory", "pids", "cpuset"];

/// Whether version 2 manages all resources.
pub fn is_v2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

fn pod_path(config: &Config, qos: Qos, uid: &str) -> String {
    let base = config.cgroup_root.trim_end_matches('/');
    match qos {
        Qos::Guaranteed => format!("{base}/kubepods/pod{uid}"),
        Qos::Burstable => format!("{base}/kubepods/burstable/pod{uid}"),
        Qos::BestEffort => format!("{base}/kubepods/besteffort/pod{uid}"),
    }
}

/// The cgroup under which the engine puts the pod's containers; empty when cgroups are not kept.
pub fn parent(config: &Config, pod: &Pod) -> String {
    if config.cgroups_per_qos { pod_path(config, resources::qos(pod), spec::uid(pod)) } else { String::new() }
}

/// The hierarchies' roots that a cgroup path exists in.
fn hierarchies() -> Vec<PathBuf> {
    if is_v2() {
        return vec![PathBuf::from(ROOT)];
    }
    fs::read_dir(ROOT)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .filter(|p| p.join("cgroup.procs").exists())
        .collect()
}

fn set(dir: &Path, file: &str, value: impl std::fmt::Display) {
    if let Err(error) = fs::write(dir.join(file), value.to_string()) {
        tracing::debug!(cgroup = %dir.display(), file, "not set: {error}");
    }
}

/// Makes a directory and those above it, handing controllers (v2) and cpusets (v1) down.
fn make(root: &Path, path: &str) -> io::Result<PathBuf> {
    let cpuset = root.ends_with("cpuset");
    let mut at = root.to_path_buf();
    for part in Path::new(path.trim_start_matches('/')).components() {
        if is_v2() {
            let available = fs::read_to_string(at.join("cgroup.controllers")).unwrap_or_default();
            for controller in available.split_whitespace() {
                set(&at, "cgroup.subtree_control", format!("+{controller}"));
            }
        }
        let above = at.clone();
        at.push(part);
        match fs::create_dir(&at) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if cpuset {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let mine = fs::read_to_string(at.join(file)).unwrap_or_default();
                if mine.trim().is_empty() {
                    set(&at, file, fs::read_to_string(above.join(file)).unwrap_or_default().trim());
                }
            }
        }
    }
    Ok(at)
}

/// Makes `kubepods` and its classes, bounded by what pods may use together.
pub fn make_root(config: &Config, allocatable_memory: u64, allocatable_milli_cpu: i64) -> anyhow::Result<()> {
    if !config.cgroups_per_qos {
        return Ok(());
    }
    let base = format!("{}/kubepods", config.cgroup_root.trim_end_matches('/'));
    for root in written() {
        for class in ["", "/burstable", "/besteffort"] {
            let path = format!("{base}{class}");
            make(&root, &path).with_context(|| {
                format!("cannot make cgroup {path} in {}; run as root, or switch per-QoS cgroups off", root.display())
            })?;
        }
        let top = root.join(base.trim_start_matches('/'));
        if is_v2() {
            set(&top, "memory.max", allocatable_memory);
            set(&top, "cpu.weight", weight(resources::shares(allocatable_milli_cpu)));
            set(&top.join("besteffort"), "cpu.weight", 1);
        } else if root.ends_with("memory") {
            set(&top, "memory.limit_in_bytes", allocatable_memory);
        } else if root.ends_with("cpu") {
            set(&top, "cpu.shares", resources::shares(allocatable_milli_cpu));
            set(&top.join("besteffort"), "cpu.shares", 2);
        }
    }
    Ok(())
}

/// Holds those for whom something is kept back to it. Their cgroups are theirs: one that is not there is an error.
pub fn bound_reserved(config: &Config) -> anyhow::Result<()> {
    for reserved in &config.reserved_cgroups {
        let path = reserved.cgroup.trim_start_matches('/');
        let amount = |name: &str| reserved.amounts.get(name).map(|text| Quantity(text.clone()));
        let memory = amount("memory").filter(|_| reserved.memory_too).map(|q| quantity::value(&q));
        let processes = amount("pid").filter(|_| reserved.memory_too).map(|q| quantity::value(&q));
        let shares = amount("cpu").map(|q| resources::shares(quantity::milli(&q)));
        for root in written() {
            let dir = root.join(path);
            anyhow::ensure!(
                dir.is_dir(),
                "Failed to enforce limits on {:?}: cgroup {} does not exist",
                reserved.cgroup,
                dir.display()
            );
            let of = |controller: &str| is_v2() || root.ends_with(controller);
            if let Some(shares) = shares.filter(|_| of("cpu")) {
                if is_v2() { set(&dir, "cpu.weight", weight(shares)) } else { set(&dir, "cpu.shares", shares) }
            }
            if let Some(bytes) = memory.filter(|_| of("memory")) {
                set(&dir, if is_v2() { "memory.max" } else { "memory.limit_in_bytes" }, bytes);
            }
            if let Some(count) = processes.filter(|_| of("pids")) {
                set(&dir, "pids.max", count);
            }
        }
    }
    Ok(())
}

/// The hierarchies the agent writes to.
fn written() -> Vec<PathBuf> {
    if is_v2() {
        return vec![PathBuf::from(ROOT)];
    }
    V1_WRITTEN.iter().map(|c| Path::new(ROOT).join(c)).filter(|p| p.exists()).collect()
}

/// cpu.weight for v1 shares, as the OCI runtimes convert them.
fn weight(shares: i64) -> i64 {
    1 + ((shares.clamp(2, 262_144) - 2) * 9999) / 262_142
}

/// Makes the pod's cgroup, or sets what it may use anew; the path the engine is told. A pod with processors for itself
/// alone has no other bound on them.
pub fn make_pod(config: &Config, pod: &Pod, exclusive: bool, what: &str, metrics: &Metrics) -> anyhow::Result<String> {
    if !config.cgroups_per_qos {
        return Ok(String::new());
    }
    let began = Instant::now();
    let path = write_pod(config, pod, exclusive)?;
    metrics.since(&families::CGROUPS, &[what], began);
    Ok(path)
}

fn write_pod(config: &Config, pod: &Pod, exclusive: bool) -> anyhow::Result<String> {
    let path = parent(config, pod);
    let mut numbers = resources::pod_cgroup(pod);
    if !config.cpu_quota || exclusive {
        numbers.cpu_quota = 0;
    }
    resources::stretch(&mut numbers, config.cpu_period);
    for root in written() {
        let dir = make(&root, &path).with_context(|| format!("cannot make cgroup {path} in {}", root.display()))?;
        if is_v2() {
            set(&dir, "cpu.weight", weight(numbers.cpu_shares));
            if numbers.cpu_quota > 0 {
                set(&dir, "cpu.max", format!("{} {}", numbers.cpu_quota, numbers.cpu_period));
            }
            if numbers.memory_limit_in_bytes > 0 {
                set(&dir, "memory.max", numbers.memory_limit_in_bytes);
            }
            if let Some((file, bytes)) = memory::pod(&config.memory, pod) {
                set(&dir, file, bytes);
                keep_for_pods(&dir, file);
            }
        } else if root.ends_with("cpu") {
            set(&dir, "cpu.shares", numbers.cpu_shares);
            if numbers.cpu_quota > 0 {
                set(&dir, "cpu.cfs_period_us", numbers.cpu_period);
                set(&dir, "cpu.cfs_quota_us", numbers.cpu_quota);
            }
        } else if root.ends_with("memory") && numbers.memory_limit_in_bytes > 0 {
            set(&dir, "memory.limit_in_bytes", numbers.memory_limit_in_bytes);
        }
        if let Some(limit) = config.pod_pids_limit.filter(|l| *l > 0)
            && (is_v2() || root.ends_with("pids"))
        {
            set(&dir, "pids.max", limit);
        }
    }
    Ok(path)
}

/// Whether the kernel bounds what is swapped.
pub fn counts_swap(config: &Config) -> bool {
    let base = format!("{}/kubepods", config.cgroup_root.trim_matches('/'));
    is_v2() && Path::new(ROOT).join(base.trim_start_matches('/')).join("memory.swap.max").exists()
}

/// What pods keep, those above them have to keep for them: the sum of it, up to `kubepods`.
fn keep_for_pods(pod: &Path, file: &str) {
    for dir in pod.ancestors().skip(1).take_while(|d| d.components().any(|c| c.as_os_str() == "kubepods")) {
        let below = fs::read_dir(dir).into_iter().flatten().flatten();
        let kept = below.filter_map(|e| fs::read_to_string(e.path().join(file)).ok()?.trim().parse::<u64>().ok());
        set(dir, file, kept.sum::<u64>());
    }
}

/// How many processes and threads a pod has; none where nobody counts.
pub fn processes(config: &Config, pod: &Pod) -> u64 {
    let path = parent(config, pod);
    let counted = hierarchies().into_iter().find_map(|root| {
        fs::read_to_string(root.join(path.trim_start_matches('/')).join("pids.current")).ok()?.trim().parse().ok()
    });
    counted.unwrap_or(0)
}

/// What everything below the node's own cgroup has used; none for a node that is the whole machine.
pub fn used(config: &Config) -> Option<Used> {
    let path = config.cgroup_root.trim_matches('/');
    if path.is_empty() { None } else { used_below(path) }
}

/// What all pods have used.
pub fn used_by_pods(config: &Config) -> Option<Used> {
    used_below(format!("{}/kubepods", config.cgroup_root.trim_matches('/')).trim_start_matches('/'))
}

fn used_below(path: &str) -> Option<Used> {
    let read = |controller: &str, file: &str| {
        let root = if is_v2() { PathBuf::from(ROOT) } else { Path::new(ROOT).join(controller) };
        fs::read_to_string(root.join(path).join(file)).ok()
    };
    let number = |text: Option<String>| text.and_then(|t| t.trim().parse::<u64>().ok());
    let row = |text: &str, name: &str| {
        text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok())
    };
    let stat = read("memory", "memory.stat").unwrap_or_default();
    let of = |v2: &str, v1: &str| row(&stat, if is_v2() { v2 } else { v1 }).unwrap_or(0);
    let (cpu_nanos, memory) = if is_v2() {
        let micros = read("", "cpu.stat").and_then(|text| row(&text, "usage_usec"));
        (micros.map(|micros| micros * 1000), number(read("", "memory.current")))
    } else {
        (number(read("cpuacct", "cpuacct.usage")), number(read("memory", "memory.usage_in_bytes")))
    };
    let memory = memory?;
    Some(Used {
        cpu_nanos: cpu_nanos?,
        memory,
        working_set: memory.saturating_sub(of("inactive_file", "total_inactive_file")),
        rss: of("anon", "total_rss"),
        page_faults: of("pgfault", "total_pgfault"),
        major_page_faults: of("pgmajfault", "total_pgmajfault"),
    })
}

/// What a cgroup has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    pub cpu_nanos: u64,
    pub memory: u64,
    /// Without what can be dropped easily.
    pub working_set: u64,
    /// Memory that is of no file.
    pub rss: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
}

/// Removes a cgroup and those below it; processes still in it are a reason to fail.
fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

/// Removes a pod's cgroup everywhere, whatever its class was.
pub fn remove_uid(config: &Config, uid: &str, metrics: &Metrics) -> anyhow::Result<()> {
    if !config.cgroups_per_qos || uid.is_empty() {
        return Ok(());
    }
    let began = Instant::now();
    for root in hierarchies() {
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let dir = root.join(pod_path(config, qos, uid).trim_start_matches('/'));
            match remove_tree(&dir) {
                Ok(()) if config.memory.tiered && is_v2() => {
                    ["memory.min", "memory.low"].iter().for_each(|file| keep_for_pods(&dir, file));
                }
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("cannot remove cgroup {}", dir.display())),
            }
        }
    }
    metrics.since(&families::CGROUPS, &["destroy"], began);
    Ok(())
}
