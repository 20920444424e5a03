//! What the node itself uses: the whole machine, or, where several nodes share one, what is below this node's cgroup and
//! this process.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use client::time::rfc3339;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::agent::Context;
use crate::cgroups::{self, Used};

/// Nanoseconds of one tick of the kernel's clock for people.
const TICK: u64 = 10_000_000;

/// Usage rates need a previous reading: when, nanoseconds used by then, the rate.
#[derive(Default)]
pub struct Rate(Mutex<Option<(Instant, u64, u64)>>);

impl Rate {
    /// Billionths of a processor in use now, over at least a second.
    fn of(&self, used: u64) -> u64 {
        let now = Instant::now();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = match *last {
            Some((then, _, rate)) if now.duration_since(then).as_secs() < 1 => return rate,
            Some((then, before, _)) => {
                (used.saturating_sub(before) as f64 / now.duration_since(then).as_secs_f64()) as u64
            }
            None => 0,
        };
        *last = Some((now, used, rate));
        rate
    }
}

fn stat_fields(line: &str) -> Vec<u64> {
    line.split_whitespace().filter_map(|f| f.parse().ok()).collect()
}

/// Nanoseconds all processors have been busy since the machine started.
fn busy_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat_fields(text.lines().next().unwrap_or_default().trim_start_matches("cpu"));
    // user nice system idle iowait irq softirq steal
    let busy: u64 = fields.iter().take(8).enumerate().filter(|(i, _)| *i != 3 && *i != 4).map(|(_, v)| v).sum();
    busy * TICK
}

/// Processor time and memory of this process.
fn own() -> (u64, u64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name, which may hold anything: state is field 3, user and system time are 14 and 15.
    let times = stat
        .rsplit_once(')')
        .map_or(0, |(_, rest)| rest.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum());
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|l| l.strip_prefix("RssAnon:")?.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    (times * TICK, kib.unwrap_or(0) * 1024)
}

fn started() -> Option<Timestamp> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let seconds = text.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok())?;
    Timestamp::from_second(seconds).ok()
}

/// The interfaces of the node's network but the loopback one.
fn interfaces(at: &str) -> Value {
    let text = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let row = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let n = stat_fields(rest);
        let [rx, _, rx_errors, .., _, _, _, _, _] = n.as_slice() else { return None };
        let (tx, tx_errors) = (n.get(8)?, n.get(10)?);
        Some(json!({"name": name.trim(), "rxBytes": rx, "rxErrors": rx_errors, "txBytes": tx, "txErrors": tx_errors}))
    };
    let all: Vec<Value> = text.lines().skip(2).filter_map(row).filter(|i| i["name"] != "lo").collect();
    let first = all.iter().find(|i| i["name"] == "eth0").or(all.first()).cloned().unwrap_or_default();
    let mut network = json!({"time": at, "interfaces": all});
    if let (Value::Object(into), Value::Object(from)) = (&mut network, first) {
        into.extend(from);
    }
    network
}

/// Space of the file system that a path lies on.
pub fn filesystem(path: &Path, at: &str) -> Value {
    match nix::sys::statvfs::statvfs(path) {
        Ok(s) => {
            let unit = s.fragment_size();
            json!({"time": at, "availableBytes": s.blocks_available() * unit, "capacityBytes": s.blocks() * unit,
                "usedBytes": (s.blocks() - s.blocks_free()) * unit, "inodesFree": s.files_free(), "inodes": s.files(), "inodesUsed": s.files() - s.files_free()})
        }
        Err(_) => json!({"time": at}),
    }
}

/// Lines of `/proc/meminfo`, in bytes; none when one of them is not there.
fn meminfo<const N: usize>(names: &[&str; N]) -> Option<[u64; N]> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let mut out = [0; N];
    for (place, name) in out.iter_mut().zip(names) {
        let kib =
            text.lines().find_map(|l| l.strip_prefix(name)?.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
        *place = kib? * 1024;
    }
    Some(out)
}

/// Swap in use and free, in bytes.
fn swap() -> Option<(u64, u64)> {
    let [total, free] = meminfo(&["SwapTotal:", "SwapFree:"])?;
    Some((total.saturating_sub(free), free))
}

pub fn swap_used() -> Option<u64> {
    swap().map(|(used, _)| used)
}

/// How many processes and threads there are, and may be.
fn tasks(at: &str) -> Value {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let bounds = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let now = load.split_whitespace().nth(3).and_then(|t| t.split('/').nth(1)?.parse::<u64>().ok());
    json!({"time": at, "maxpid": bounds.into_iter().flatten().min(), "curproc": now})
}

/// The node's part of the summary.
pub fn summary(context: &Context, rate: &Rate, at: &str) -> Value {
    let available = crate::node::machine::memory_available().unwrap_or(0);
    let (own_cpu, own_memory) = own();
    let own =
        Used { cpu_nanos: own_cpu, memory: own_memory, working_set: own_memory, rss: own_memory, ..Used::default() };
    let all = match cgroups::used(&context.config) {
        Some(used) => Used {
            cpu_nanos: used.cpu_nanos + own.cpu_nanos,
            memory: used.memory + own.memory,
            working_set: used.working_set + own.working_set,
            rss: used.rss + own.rss,
            ..used
        },
        None => {
            let used = context.machine.memory_bytes.saturating_sub(available);
            let kernel = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
            let counted =
                |name: &str| kernel.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0);
            Used {
                cpu_nanos: busy_nanos(),
                memory: used,
                working_set: used,
                rss: meminfo(&["AnonPages:"]).map_or(0, |[anonymous]| anonymous),
                page_faults: counted("pgfault "),
                major_page_faults: counted("pgmajfault "),
            }
        }
    };
    let memory = |used: &Used, available: Option<u64>| {
        let mut out = json!({"time": at, "usageBytes": used.memory, "workingSetBytes": used.working_set,
            "rssBytes": used.rss, "pageFaults": used.page_faults, "majorPageFaults": used.major_page_faults});
        if let Some(available) = available {
            out["availableBytes"] = available.into();
        }
        out
    };
    let began = started().map_or(at.to_string(), rfc3339);
    let part = |name: &str, used: &Used| {
        json!({"name": name, "startTime": began, "memory": memory(used, None),
            "cpu": {"time": at, "usageCoreNanoSeconds": used.cpu_nanos}})
    };
    let pods = cgroups::used_by_pods(&context.config);
    let parts: Vec<Value> =
        [Some(part("kubelet", &own)), pods.map(|used| part("pods", &used))].into_iter().flatten().collect();
    let disk = filesystem(&context.config.root_dir, at);
    json!({
        "nodeName": context.config.node_name,
        "startTime": began,
        "systemContainers": parts,
        "cpu": {"time": at, "usageNanoCores": rate.of(all.cpu_nanos), "usageCoreNanoSeconds": all.cpu_nanos},
        "memory": memory(&all, Some(available)),
        "swap": swap().map(|(used, free)| json!({"time": at, "swapUsageBytes": used, "swapAvailableBytes": free})),
        "rlimit": tasks(at),
        "network": interfaces(at),
        "fs": disk,
        "runtime": {"imageFs": disk, "containerFs": disk},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let (_, memory) = own();
        assert!(memory > 0);
        assert!(started().is_some());
        assert!(meminfo(&["AnonPages:"]).is_some_and(|[bytes]| bytes > 0) && meminfo(&["Odd:"]).is_none());
    }
}
