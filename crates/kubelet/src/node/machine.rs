//! The machine underneath: processors, memory, disks, names. Read from /proc and /etc once; memory as often as asked.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use k8s_openapi::api::core::v1::NodeSystemInfo;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::cgroups;
use crate::config::Config;
use crate::config::eviction::Signal;
use crate::quantity;
use crate::spec::memory;

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Machine {
    pub cpus: u64,
    pub memory_bytes: u64,
    pub storage_bytes: u64,
    huge_pages: BTreeMap<String, u64>,
}

fn line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

fn meminfo(field: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let rest = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
    rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Memory that could be given out without swapping.
pub fn memory_available() -> Option<u64> {
    meminfo("MemAvailable")
}

/// Whether any swap is on.
pub fn swap_is_on() -> bool {
    meminfo("SwapTotal").is_some_and(|s| s > 0)
}

/// Where the kernel tells of the machine's huge pages.
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

/// Reserved huge pages by resource name, in bytes, as a directory of the kernel's tells of them.
pub fn huge_pages(dir: &Path) -> BTreeMap<String, u64> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(kib) =
            name.strip_prefix("hugepages-").and_then(|n| n.strip_suffix("kB")).and_then(|n| n.parse::<u64>().ok())
        else {
            continue;
        };
        let size = match kib {
            k if k >= 1 << 20 => format!("{}Gi", k >> 20),
            k if k >= 1 << 10 => format!("{}Mi", k >> 10),
            k => format!("{k}Ki"),
        };
        let count: u64 = line(&entry.path().join("nr_hugepages").to_string_lossy()).parse().unwrap_or(0);
        out.insert(format!("hugepages-{size}"), count * kib * 1024);
    }
    out
}

impl Machine {
    /// Looks at the machine; `root_dir` says which disk pods live on.
    pub fn look(root_dir: &Path) -> Self {
        let cpus = fs::read_to_string("/proc/cpuinfo")
            .map_or(0, |t| t.lines().filter(|l| l.starts_with("processor")).count() as u64);
        let storage = nix::sys::statvfs::statvfs(root_dir).map_or(0, |s| s.blocks() * s.fragment_size());
        Self {
            cpus: if cpus == 0 { std::thread::available_parallelism().map_or(1, |n| n.get() as u64) } else { cpus },
            memory_bytes: meminfo("MemTotal").unwrap_or(0),
            storage_bytes: storage,
            huge_pages: huge_pages(Path::new(HUGE_PAGES)),
        }
    }

    /// What containers' memory is reckoned with.
    pub fn memory(&self, config: &Config) -> memory::Node {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
        memory::Node {
            capacity: self.memory_bytes,
            allocatable: self.allocatable_amounts(config).get("memory").map_or(0, |m| *m as u64),
            // Where the kernel does not count it, nothing can be said about it.
            swap: meminfo("SwapTotal").filter(|_| cgroups::counts_swap(config)).unwrap_or(0),
            page: page.map_or(4096, |p| p as u64),
        }
    }

    pub fn capacity(&self, config: &Config) -> BTreeMap<String, Quantity> {
        let mut out: BTreeMap<String, Quantity> = [
            ("cpu", self.cpus.to_string()),
            ("memory", format!("{}Ki", self.memory_bytes / 1024)),
            ("ephemeral-storage", format!("{}Ki", self.storage_bytes / 1024)),
            ("pods", config.max_pods.to_string()),
        ]
        .map(|(k, v)| (k.to_string(), Quantity(v)))
        .into();
        if !config.local_storage {
            out.remove("ephemeral-storage");
        }
        out.extend(
            self.huge_pages
                .iter()
                .map(|(k, v)| (k.clone(), Quantity(if *v == 0 { "0".into() } else { format!("{}Ki", v / 1024) }))),
        );
        out
    }

    /// All there is, as plain numbers. `cpu` in thousandths.
    pub fn amounts(&self, config: &Config) -> BTreeMap<String, i64> {
        let number = |name: &str, q: &Quantity| if name == "cpu" { quantity::milli(q) } else { quantity::value(q) };
        self.capacity(config).into_iter().map(|(name, q)| (name.clone(), number(&name, &q))).collect()
    }

    /// What pods may have: capacity without what is reserved and what eviction keeps free. `cpu` in thousandths.
    pub fn allocatable_amounts(&self, config: &Config) -> BTreeMap<String, i64> {
        let mut out = self.amounts(config);
        for (name, reserved) in &config.reserved {
            let reserved = Quantity(reserved.clone());
            let amount = if name == "cpu" { quantity::milli(&reserved) } else { quantity::value(&reserved) };
            if let Some(have) = out.get_mut(name) {
                *have = (*have - amount).max(0);
            }
        }
        // Huge pages are of the same memory.
        let huge: i64 = out.iter().filter(|(name, _)| name.starts_with("hugepages-")).map(|(_, bytes)| bytes).sum();
        if let Some(memory) = out.get_mut("memory") {
            let kept = config.eviction.kept(Signal::Memory, self.memory_bytes) as i64;
            *memory = (*memory - huge - kept).max(0);
        }
        if let Some(storage) = out.get_mut("ephemeral-storage") {
            let kept = config.eviction.kept(Signal::NodefsBytes, self.storage_bytes) as i64;
            *storage = (*storage - kept).max(0);
        }
        out
    }

    pub fn allocatable(&self, config: &Config) -> BTreeMap<String, Quantity> {
        self.allocatable_amounts(config)
            .into_iter()
            .map(|(name, amount)| {
                let text = match name.as_str() {
                    "cpu" if amount % 1000 == 0 => (amount / 1000).to_string(),
                    "cpu" => format!("{amount}m"),
                    "memory" => format!("{}Ki", amount / 1024),
                    _ => amount.to_string(),
                };
                (name, Quantity(text))
            })
            .collect()
    }
}

/// `nodeInfo`.
pub fn system_info(config: &Config, runtime: &str) -> NodeSystemInfo {
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty =
        os.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).map_or("Linux", |v| v.trim_matches('"')).to_string();
    NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime.into(),
        kernel_version: line("/proc/sys/kernel/osrelease"),
        // Deprecated and empty, as upstream leaves it.
        kube_proxy_version: String::new(),
        kubelet_version: config.version.clone(),
        machine_id: line("/etc/machine-id"),
        operating_system: "linux".into(),
        os_image: pretty,
        running_in_user_namespace: None,
        swap: meminfo("SwapTotal")
            .filter(|s| *s > 0)
            .map(|s| k8s_openapi::api::core::v1::NodeSwapStatus { capacity: Some(s as i64) }),
        system_uuid: Some(line("/sys/class/dmi/id/product_uuid"))
            .filter(|u| !u.is_empty())
            .unwrap_or_else(|| line("/etc/machine-id")),
    }
}

/// Go's name of the architecture.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The node's addresses: the configured ones, or the first that is not the machine's own or link-local.
pub fn addresses(config: &Config) -> Vec<IpAddr> {
    if !config.node_ips.is_empty() {
        return config.node_ips.clone();
    }
    let mut found: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        // Addresses of services and the like may sit on the loopback interface.
        .filter(|i| !i.flags.contains(nix::net::if_::InterfaceFlags::IFF_LOOPBACK))
        .filter_map(|i| {
            let address = i.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
        })
        .filter(|ip| match ip {
            IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
        })
        .collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found.truncate(1);
    found
}
