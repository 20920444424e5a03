//! Resource usage of pods and the node, from the engine and /proc, in the shape of the summary API.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use client::time::rfc3339;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::agent::Context;
use crate::cri::v1;
use crate::spec::names;

/// Usage rates need a previous reading.
#[derive(Default)]
pub struct Stats {
    node_cpu: Mutex<Option<(Instant, u64, u64)>>,
}

fn value(v: Option<v1::UInt64Value>) -> Option<u64> {
    v.map(|v| v.value)
}

/// Nanoseconds all processors have been busy since the machine started.
fn busy_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> =
        text.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; a tick is 10 ms.
    let busy: u64 = fields.iter().take(8).enumerate().filter(|(i, _)| *i != 3 && *i != 4).map(|(_, v)| v).sum();
    busy * 10_000_000
}

fn cpu(usage: Option<&v1::CpuUsage>, at: &str) -> Value {
    let Some(usage) = usage else { return Value::Null };
    let time = Timestamp::from_nanosecond(usage.timestamp.into())
        .ok()
        .filter(|_| usage.timestamp > 0)
        .map_or(at.to_string(), rfc3339);
    json!({"time": time, "usageNanoCores": value(usage.usage_nano_cores), "usageCoreNanoSeconds": value(usage.usage_core_nano_seconds)})
}

fn memory(usage: Option<&v1::MemoryUsage>, at: &str) -> Value {
    let Some(usage) = usage else { return Value::Null };
    json!({
        "time": at, "availableBytes": value(usage.available_bytes), "usageBytes": value(usage.usage_bytes),
        "workingSetBytes": value(usage.working_set_bytes), "rssBytes": value(usage.rss_bytes),
        "pageFaults": value(usage.page_faults), "majorPageFaults": value(usage.major_page_faults),
    })
}

fn filesystem(path: &std::path::Path, at: &str) -> Value {
    match nix::sys::statvfs::statvfs(path) {
        Ok(s) => {
            let unit = s.fragment_size();
            json!({"time": at, "availableBytes": s.blocks_available() * unit, "capacityBytes": s.blocks() * unit,
                "usedBytes": (s.blocks() - s.blocks_free()) * unit, "inodesFree": s.files_free(), "inodes": s.files(), "inodesUsed": s.files() - s.files_free()})
        }
        Err(_) => json!({"time": at}),
    }
}

/// Drops what is not known.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            Value::Object(map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

impl Stats {
    async fn containers(&self, context: &Context) -> Vec<v1::ContainerStats> {
        match context.engine.list_container_stats(v1::ListContainerStatsRequest::default()).await {
            Ok(answer) => answer.stats,
            Err(status) => {
                tracing::debug!("no container stats: {status}");
                Vec::new()
            }
        }
    }

    /// Working sets of pods, by uid.
    pub async fn working_sets(&self, context: &Context) -> HashMap<String, u64> {
        let mut out: HashMap<String, u64> = HashMap::new();
        for stats in self.containers(context).await {
            let uid = stats.attributes.as_ref().and_then(|a| a.labels.get(names::POD_UID)).cloned().unwrap_or_default();
            *out.entry(uid).or_default() += stats.memory.as_ref().and_then(|m| value(m.working_set_bytes)).unwrap_or(0);
        }
        out
    }

    fn node(&self, context: &Context, at: &str) -> Value {
        let busy = busy_nanos();
        let now = Instant::now();
        let rate = {
            let mut last = self.node_cpu.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let rate = match *last {
                Some((then, _, rate)) if now.duration_since(then).as_secs() < 1 => rate,
                Some((then, before, _)) => {
                    (busy.saturating_sub(before) as f64 / now.duration_since(then).as_secs_f64().max(0.001)) as u64
                }
                None => 0,
            };
            if last.is_none_or(|(then, _, _)| now.duration_since(then).as_secs() >= 1) {
                *last = Some((now, busy, rate));
            }
            rate
        };
        let total = context.machine.memory_bytes;
        let available = crate::node::machine::memory_available().unwrap_or(0);
        let used = total.saturating_sub(available);
        json!({
            "nodeName": context.config.node_name,
            "startTime": at,
            "cpu": {"time": at, "usageNanoCores": rate, "usageCoreNanoSeconds": busy},
            "memory": {"time": at, "availableBytes": available, "usageBytes": used, "workingSetBytes": used},
            "fs": filesystem(&context.config.root_dir, at),
            "runtime": {"imageFs": filesystem(&context.config.root_dir, at)},
        })
    }

    /// `/stats/summary`.
    pub async fn summary(&self, context: &Context) -> Value {
        let at = rfc3339(Timestamp::now());
        let mut by_pod: HashMap<String, Vec<v1::ContainerStats>> = HashMap::new();
        for stats in self.containers(context).await {
            let uid = stats.attributes.as_ref().and_then(|a| a.labels.get(names::POD_UID)).cloned().unwrap_or_default();
            by_pod.entry(uid).or_default().push(stats);
        }
        let sandboxes = context.engine.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await;
        let sandboxes: HashMap<String, v1::PodSandboxStats> = sandboxes
            .map(|a| a.stats)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|s| Some((s.attributes.as_ref()?.metadata.as_ref()?.uid.clone(), s)))
            .collect();
        let mut pods = Vec::new();
        for pod in context.workers.pods() {
            let uid = crate::spec::uid(&pod);
            let Some(list) = by_pod.get(uid) else { continue };
            let sum = |pick: fn(&v1::ContainerStats) -> Option<u64>| list.iter().filter_map(pick).sum::<u64>();
            let containers: Vec<Value> = list
                .iter()
                .map(|c| {
                    let name = c.attributes.as_ref().and_then(|a| a.metadata.as_ref()).map(|m| m.name.clone()).unwrap_or_default();
                    let rootfs = c.writable_layer.as_ref().map(|w| json!({"time": at, "usedBytes": value(w.used_bytes), "inodesUsed": value(w.inodes_used)}));
                    json!({"name": name, "startTime": at, "cpu": cpu(c.cpu.as_ref(), &at), "memory": memory(c.memory.as_ref(), &at), "rootfs": rootfs})
                })
                .collect();
            let network = sandboxes
                .get(uid)
                .and_then(|s| s.linux.as_ref())
                .and_then(|l| l.network.as_ref())
                .and_then(|n| n.default_interface.as_ref());
            pods.push(json!({
                "podRef": {"name": crate::spec::name(&pod), "namespace": crate::spec::namespace(&pod), "uid": uid},
                "startTime": pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(at.clone(), |t| rfc3339(t.0)),
                "containers": containers,
                "cpu": {"time": at,
                    "usageNanoCores": sum(|c| value(c.cpu.as_ref()?.usage_nano_cores)),
                    "usageCoreNanoSeconds": sum(|c| value(c.cpu.as_ref()?.usage_core_nano_seconds))},
                "memory": {"time": at,
                    "workingSetBytes": sum(|c| value(c.memory.as_ref()?.working_set_bytes)),
                    "usageBytes": sum(|c| value(c.memory.as_ref()?.usage_bytes)),
                    "rssBytes": sum(|c| value(c.memory.as_ref()?.rss_bytes))},
                "network": network.map(|n| json!({"time": at, "name": n.name, "rxBytes": value(n.rx_bytes), "txBytes": value(n.tx_bytes),
                    "rxErrors": value(n.rx_errors), "txErrors": value(n.tx_errors)})),
            }));
        }
        without_nulls(json!({"node": self.node(context, &at), "pods": pods}))
    }

    /// `/metrics/resource`, in the Prometheus text format.
    pub async fn resource_metrics(&self, context: &Context) -> String {
        let at = rfc3339(Timestamp::now());
        let node = self.node(context, &at);
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, lines: Vec<(String, f64)>| {
            out.push_str(&format!("# TYPE {name} {kind}\n"));
            for (labels, number) in lines {
                out.push_str(&format!("{name}{labels} {number}\n"));
            }
        };
        let number = |v: &Value| v.as_u64().unwrap_or(0) as f64;
        family(
            "node_cpu_usage_seconds_total",
            "counter",
            vec![(String::new(), number(&node["cpu"]["usageCoreNanoSeconds"]) / 1e9)],
        );
        family(
            "node_memory_working_set_bytes",
            "gauge",
            vec![(String::new(), number(&node["memory"]["workingSetBytes"]))],
        );
        let (mut cpu, mut memory) = (Vec::new(), Vec::new());
        for stats in self.containers(context).await {
            let Some(attributes) = &stats.attributes else { continue };
            let label = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
            let labels = format!(
                "{{container=\"{}\",namespace=\"{}\",pod=\"{}\"}}",
                label(names::CONTAINER_NAME),
                label(names::POD_NAMESPACE),
                label(names::POD_NAME)
            );
            cpu.push((
                labels.clone(),
                stats.cpu.as_ref().and_then(|c| value(c.usage_core_nano_seconds)).unwrap_or(0) as f64 / 1e9,
            ));
            memory.push((labels, stats.memory.as_ref().and_then(|m| value(m.working_set_bytes)).unwrap_or(0) as f64));
        }
        family("container_cpu_usage_seconds_total", "counter", cpu);
        family("container_memory_working_set_bytes", "gauge", memory);
        family("scrape_error", "gauge", vec![(String::new(), 0.0)]);
        out
    }
}
