//! Control groups: one path in every hierarchy of the node, whatever their version.
//!
//! Works with version 2, with version 1, and with the hybrid of both. Paths are absolute within the hierarchies.
//! Guarantees: a new group is usable at once (nested cpusets are filled); removing is thorough and idempotent.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::spec::bundle::CgroupMount;
use cri::v1::LinuxContainerResources;

/// Tries and pause while waiting for killed processes to leave a group that is being removed.
const REMOVE_TRIES: usize = 100;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

/// One mounted hierarchy.
#[derive(Debug, Clone)]
struct Hierarchy {
    /// Empty for version 2.
    controllers: Vec<String>,
    mountpoint: PathBuf,
}

/// The node's hierarchies.
#[derive(Debug, Clone)]
pub struct Cgroups {
    v1: Vec<Hierarchy>,
    v2: Option<Hierarchy>,
    /// Hierarchies without controllers: only OCI runtimes make groups there.
    named: Vec<PathBuf>,
}

/// What a group has used.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Nanoseconds of processor time.
    pub cpu_nanos: u64,
    /// Bytes, caches included.
    pub memory: u64,
    /// Bytes that cannot be dropped easily.
    pub working_set: u64,
    /// Bytes of anonymous memory.
    pub rss: u64,
    /// The limit in bytes, if there is one.
    pub memory_limit: Option<u64>,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that read from disk.
    pub major_page_faults: u64,
    /// Bytes of swap.
    pub swap: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Pressure stall information, by resource (`cpu`, `memory`, `io`); version 2 only.
    pub pressure: BTreeMap<&'static str, String>,
}

impl Cgroups {
    /// Finds the hierarchies.
    pub fn detect() -> Result<Cgroups> {
        let table = std::fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
        let known = [
            "cpu",
            "cpuacct",
            "cpuset",
            "memory",
            "pids",
            "devices",
            "freezer",
            "blkio",
            "hugetlb",
            "net_cls",
            "net_prio",
            "perf_event",
            "rdma",
            "misc",
        ];
        let mut found = Cgroups { v1: Vec::new(), v2: None, named: Vec::new() };
        for line in table.lines() {
            let mut fields = line.split(' ').skip(1);
            let (Some(at), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else { continue };
            if !at.starts_with("/sys/fs/cgroup") {
                continue;
            }
            let mountpoint = PathBuf::from(at);
            match kind {
                "cgroup2" if found.v2.is_none() => found.v2 = Some(Hierarchy { controllers: Vec::new(), mountpoint }),
                "cgroup" if options.split(',').any(|o| o.starts_with("name=")) => found.named.push(mountpoint),
                "cgroup" => {
                    let controllers: Vec<String> =
                        options.split(',').filter(|o| known.contains(o)).map(str::to_string).collect();
                    let seen = found.v1.iter().any(|h| h.controllers == controllers);
                    if !controllers.is_empty() && !seen {
                        found.v1.push(Hierarchy { controllers, mountpoint });
                    }
                }
                _ => {}
            }
        }
        if found.v1.is_empty() && found.v2.is_none() {
            anyhow::bail!("no cgroup file system is mounted under /sys/fs/cgroup");
        }
        Ok(found)
    }

    /// Whether version 2 manages the resources.
    pub fn is_v2(&self) -> bool {
        self.v1.is_empty()
    }

    fn all(&self) -> impl Iterator<Item = &Hierarchy> {
        self.v1.iter().chain(&self.v2)
    }

    fn controller(&self, name: &str, path: &str) -> Option<PathBuf> {
        let hierarchy = self.v1.iter().find(|h| h.controllers.iter().any(|c| c == name)).or(self.v2.as_ref())?;
        Some(under(&hierarchy.mountpoint, path))
    }

    /// A group's directories, whether they exist or not.
    pub fn dirs(&self, path: &str) -> Vec<PathBuf> {
        self.all().map(|h| under(&h.mountpoint, path)).collect()
    }

    /// Makes a group in every hierarchy and returns its directories.
    pub fn create(&self, path: &str) -> Result<Vec<PathBuf>> {
        let mut dirs = Vec::new();
        for hierarchy in self.all() {
            let dir = under(&hierarchy.mountpoint, path);
            if hierarchy.controllers.is_empty() && self.is_v2() {
                delegate(&hierarchy.mountpoint, path);
            }
            std::fs::create_dir_all(&dir).with_context(|| format!("creating cgroup {}", dir.display()))?;
            if hierarchy.controllers.iter().any(|c| c == "cpuset") {
                fill_cpusets(&hierarchy.mountpoint, path)?;
            }
            dirs.push(dir);
        }
        Ok(dirs)
    }

    /// Sets limits. Zero and absent values leave what is.
    pub fn apply(&self, path: &str, resources: &LinuxContainerResources) -> Result<()> {
        let set = |controller: &str, file: &str, value: String| -> Result<()> {
            let Some(dir) = self.controller(controller, path) else { return Ok(()) };
            let file = dir.join(file);
            std::fs::write(&file, &value).with_context(|| format!("writing \"{value}\" to {}", file.display()))
        };
        let r = resources;
        if self.is_v2() {
            if r.cpu_shares > 0 {
                set("cpu", "cpu.weight", weight(r.cpu_shares).to_string())?;
            }
            if r.cpu_quota != 0 || r.cpu_period > 0 {
                let quota = if r.cpu_quota > 0 { r.cpu_quota.to_string() } else { "max".into() };
                let period = if r.cpu_period > 0 { r.cpu_period } else { 100_000 };
                set("cpu", "cpu.max", format!("{quota} {period}"))?;
            }
            if r.memory_limit_in_bytes != 0 {
                set("memory", "memory.max", limit(r.memory_limit_in_bytes))?;
            }
            if r.memory_swap_limit_in_bytes != 0 {
                let swap = match r.memory_swap_limit_in_bytes {
                    total if total > 0 => (total - r.memory_limit_in_bytes).max(0).to_string(),
                    _ => "max".into(),
                };
                // Kernels without swap accounting have no such file.
                let _ = set("memory", "memory.swap.max", swap);
            }
        } else {
            if r.cpu_shares > 0 {
                set("cpu", "cpu.shares", r.cpu_shares.to_string())?;
            }
            if r.cpu_period > 0 {
                set("cpu", "cpu.cfs_period_us", r.cpu_period.to_string())?;
            }
            if r.cpu_quota != 0 {
                set("cpu", "cpu.cfs_quota_us", r.cpu_quota.to_string())?;
            }
            self.apply_memory_v1(path, r)?;
        }
        if !r.cpuset_cpus.is_empty() {
            set("cpuset", "cpuset.cpus", r.cpuset_cpus.clone())?;
        }
        if !r.cpuset_mems.is_empty() {
            set("cpuset", "cpuset.mems", r.cpuset_mems.clone())?;
        }
        for huge in &r.hugepage_limits {
            let file = if self.is_v2() { "max" } else { "limit_in_bytes" };
            // Sizes this machine does not have are not limited.
            let _ = set("hugetlb", &format!("hugetlb.{}.{file}", huge.page_size), huge.limit.to_string());
        }
        for (file, value) in &r.unified {
            if file.contains('/') || !file.contains('.') {
                anyhow::bail!("\"{file}\" is not a cgroup file");
            }
            if self.is_v2() {
                let controller = file.split('.').next().unwrap_or_default().to_string();
                set(&controller, file, value.clone())?;
            } else if file == "pids.max" {
                set("pids", file, value.clone())?;
            }
        }
        Ok(())
    }

    /// Version 1 wants the limit of memory and of memory with swap changed in an order that keeps one below the other.
    fn apply_memory_v1(&self, path: &str, r: &LinuxContainerResources) -> Result<()> {
        let Some(dir) = self.controller("memory", path) else { return Ok(()) };
        if r.memory_limit_in_bytes == 0 {
            return Ok(());
        }
        let memory = dir.join("memory.limit_in_bytes");
        let both = dir.join("memory.memsw.limit_in_bytes");
        let (m, b) = (r.memory_limit_in_bytes.to_string(), r.memory_swap_limit_in_bytes.to_string());
        let swap = r.memory_swap_limit_in_bytes != 0 && both.exists();
        let write = |file: &Path, value: &str| {
            std::fs::write(file, value).with_context(|| format!("writing \"{value}\" to {}", file.display()))
        };
        if swap && write(&both, &b).is_ok() {
            return write(&memory, &m);
        }
        write(&memory, &m)?;
        if swap { write(&both, &b) } else { Ok(()) }
    }

    /// Limits which devices may be used: `None` allows all. Rules are version 1's (`c 1:3 rwm`).
    pub fn allow_devices(&self, path: &str, rules: Option<&[String]>) -> Result<()> {
        let Some(rules) = rules else { return Ok(()) };
        let Some(hierarchy) = self.v1.iter().find(|h| h.controllers.iter().any(|c| c == "devices")) else {
            let Some(v2) = &self.v2 else { return Ok(()) };
            return crate::device_filter::attach(&under(&v2.mountpoint, path), rules)
                .context("attaching the device filter");
        };
        let dir = under(&hierarchy.mountpoint, path);
        std::fs::write(dir.join("devices.deny"), "a").context("denying devices")?;
        for rule in rules {
            std::fs::write(dir.join("devices.allow"), rule).with_context(|| format!("allowing device {rule}"))?;
        }
        Ok(())
    }

    /// The file whose `oom_kill` line counts.
    pub fn oom_file(&self, path: &str) -> Option<PathBuf> {
        let file = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        Some(self.controller("memory", path)?.join(file))
    }

    /// How the hierarchies appear in a container.
    pub fn mounts(&self) -> Vec<CgroupMount> {
        if self.is_v2() {
            return vec![CgroupMount { name: String::new(), kind: "cgroup2".into(), data: String::new() }];
        }
        let name = |h: &Hierarchy| h.mountpoint.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // In the hybrid, version 2 manages nothing, and programs that find it mounted read their limits there.
        let named = |h: &Hierarchy| CgroupMount { name: name(h), kind: "cgroup".into(), data: h.controllers.join(",") };
        self.v1.iter().map(named).collect()
    }

    /// Every process of a group and its descendants.
    pub fn processes(&self, path: &str) -> Vec<i32> {
        let Some(hierarchy) = self.all().next() else { return Vec::new() };
        let mut pids = Vec::new();
        collect_processes(&under(&hierarchy.mountpoint, path), &mut pids);
        pids
    }

    /// Kills every process of a group.
    pub fn kill(&self, path: &str) {
        if let Some(v2) = &self.v2
            && std::fs::write(under(&v2.mountpoint, path).join("cgroup.kill"), "1").is_ok()
            && self.is_v2()
        {
            return;
        }
        for pid in self.processes(path) {
            // Gone already is what is wanted.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// Kills what is left in a group and removes it everywhere, waiting a little for the dying. Blocks.
    pub fn remove(&self, path: &str) -> Result<()> {
        if path.trim_matches('/').is_empty() {
            anyhow::bail!("refusing to remove the root cgroup");
        }
        let mut left = Ok(());
        for attempt in 0..REMOVE_TRIES {
            let mut mountpoints = self.all().map(|h| &h.mountpoint).chain(&self.named);
            left = mountpoints.try_for_each(|m| remove_tree(&under(m, path)));
            match &left {
                Ok(()) => return Ok(()),
                Err(_) => {
                    if attempt % 10 == 0 {
                        self.kill(path);
                    }
                    std::thread::sleep(REMOVE_PAUSE);
                }
            }
        }
        left.with_context(|| format!("removing cgroup {path}"))
    }

    /// Whether the group exists.
    pub fn exists(&self, path: &str) -> bool {
        self.all().any(|h| under(&h.mountpoint, path).exists())
    }

    /// What a group has used; `None` if it is gone.
    pub fn usage(&self, path: &str) -> Option<Usage> {
        let number = |dir: &Path, file: &str| -> u64 {
            std::fs::read_to_string(dir.join(file)).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
        };
        let table = |dir: &Path, file: &str| -> BTreeMap<String, u64> {
            let text = std::fs::read_to_string(dir.join(file)).unwrap_or_default();
            text.lines()
                .filter_map(|l| l.split_once(' '))
                .filter_map(|(k, v)| Some((k.to_string(), v.trim().parse().ok()?)))
                .collect()
        };
        let memory = self.controller("memory", path)?;
        if !memory.exists() {
            return None;
        }
        let stat = table(&memory, "memory.stat");
        let get = |key: &str| stat.get(key).copied().unwrap_or(0);
        let mut usage = Usage::default();
        if let Some(pids) = self.controller("pids", path) {
            usage.pids = number(&pids, "pids.current");
        }
        if self.is_v2() {
            usage.cpu_nanos = table(&memory, "cpu.stat").get("usage_usec").copied().unwrap_or(0) * 1000;
            usage.memory = number(&memory, "memory.current");
            usage.working_set = usage.memory.saturating_sub(get("inactive_file"));
            usage.rss = get("anon");
            (usage.page_faults, usage.major_page_faults) = (get("pgfault"), get("pgmajfault"));
            usage.swap = number(&memory, "memory.swap.current");
            let max = std::fs::read_to_string(memory.join("memory.max")).unwrap_or_default();
            usage.memory_limit = max.trim().parse().ok();
            for resource in ["cpu", "memory", "io"] {
                if let Ok(text) = std::fs::read_to_string(memory.join(format!("{resource}.pressure"))) {
                    usage.pressure.insert(resource, text);
                }
            }
        } else {
            /// Version 1 shows no limit as the largest page-aligned number.
            const UNLIMITED: u64 = 1 << 62;
            usage.cpu_nanos = self.controller("cpuacct", path).map_or(0, |dir| number(&dir, "cpuacct.usage"));
            usage.memory = number(&memory, "memory.usage_in_bytes");
            usage.working_set = usage.memory.saturating_sub(get("total_inactive_file"));
            usage.rss = get("total_rss");
            (usage.page_faults, usage.major_page_faults) = (get("total_pgfault"), get("total_pgmajfault"));
            usage.swap = get("total_swap");
            usage.memory_limit = Some(number(&memory, "memory.limit_in_bytes")).filter(|l| (1..UNLIMITED).contains(l));
        }
        Some(usage)
    }
}

fn under(mountpoint: &Path, path: &str) -> PathBuf {
    mountpoint.join(path.trim_start_matches('/'))
}

fn limit(bytes: i64) -> String {
    if bytes < 0 { "max".into() } else { bytes.to_string() }
}

/// Version 1 shares (2–262144) as version 2 weight (1–10000).
fn weight(shares: i64) -> i64 {
    1 + ((shares.clamp(2, 262_144) - 2) * 9999) / 262_142
}

/// Lets children of every ancestor use all controllers. What the kernel refuses is not there to be limited.
fn delegate(mountpoint: &Path, path: &str) {
    let available = std::fs::read_to_string(mountpoint.join("cgroup.controllers")).unwrap_or_default();
    let mut dir = mountpoint.to_path_buf();
    for part in path.trim_matches('/').split('/') {
        for controller in available.split_whitespace() {
            let _ = std::fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        dir.push(part);
        if std::fs::create_dir_all(&dir).is_err() {
            return;
        }
    }
}

/// A version 1 cpuset starts empty, and with an empty one nothing may join.
fn fill_cpusets(mountpoint: &Path, path: &str) -> Result<()> {
    let mut dir = mountpoint.to_path_buf();
    for part in path.trim_matches('/').split('/').filter(|p| !p.is_empty()) {
        let parent = dir.clone();
        dir.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = std::fs::read_to_string(dir.join(file)).unwrap_or_default();
            if own.trim().is_empty() {
                let inherited = std::fs::read_to_string(parent.join(file))?;
                std::fs::write(dir.join(file), inherited.trim())
                    .with_context(|| format!("filling {}", dir.join(file).display()))?;
            }
        }
    }
    Ok(())
}

fn collect_processes(dir: &Path, pids: &mut Vec<i32>) {
    let list = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(list.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|&pid| pid > 0));
    for child in subgroups(dir) {
        collect_processes(&child, pids);
    }
}

fn subgroups(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => {
            for child in subgroups(dir) {
                remove_tree(&child)?;
            }
            match std::fs::remove_dir(dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            }
        }
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        for (shares, expect) in [(2, 1), (1024, 39), (262_144, 10_000), (0, 1), (i64::MAX, 10_000)] {
            assert_eq!(weight(shares), expect, "{shares}");
        }
    }
}
