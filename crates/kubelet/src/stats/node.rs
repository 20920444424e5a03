//! What the node itself uses: the whole machine, or, where several nodes share one, what is below this node's cgroup and
//! this process.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use client::time::rfc3339;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::agent::Context;
use crate::cgroups;

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

/// Swap in use and free, in bytes.
fn swap() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let row = |name: &str| {
        let kib = text.lines().find_map(|l| l.strip_prefix(name)?.trim().trim_end_matches("kB").trim().parse().ok());
        kib.map(|kib: u64| kib * 1024)
    };
    let (total, free) = (row("SwapTotal:")?, row("SwapFree:")?);
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
    let (cpu, memory, working_set) = match cgroups::used(&context.config) {
        Some(used) => {
            let (own_cpu, own_memory) = own();
            (used.cpu_nanos + own_cpu, used.memory + own_memory, used.working_set + own_memory)
        }
        None => {
            let used = context.machine.memory_bytes.saturating_sub(available);
            (busy_nanos(), used, used)
        }
    };
    let disk = filesystem(&context.config.root_dir, at);
    json!({
        "nodeName": context.config.node_name,
        "startTime": started().map_or(at.to_string(), rfc3339),
        "cpu": {"time": at, "usageNanoCores": rate.of(cpu), "usageCoreNanoSeconds": cpu},
        "memory": {"time": at, "availableBytes": available, "usageBytes": memory, "workingSetBytes": working_set},
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
    }
}
