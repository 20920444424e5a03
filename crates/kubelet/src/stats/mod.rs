//! Resource usage of pods and the node in the shape of the summary API, and the metrics made of the same numbers.

pub mod node;

use std::collections::HashMap;

use client::time::rfc3339;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::agent::Context;
use crate::cri::v1;
use crate::eviction::local;
use crate::spec::{self, names};
use crate::volumes::usage::{self, Counted};

/// What is remembered between readings.
#[derive(Default)]
pub struct Stats {
    node: node::Rate,
}

fn value(v: Option<v1::UInt64Value>) -> Option<u64> {
    v.map(|v| v.value)
}

/// How long something stood still for want of a resource.
fn pressure(psi: Option<&v1::PsiStats>) -> Option<Value> {
    let data = |d: Option<&v1::PsiData>| {
        d.map(|d| json!({"total": d.total, "avg10": d.avg10, "avg60": d.avg60, "avg300": d.avg300}))
    };
    psi.map(|p| json!({"full": data(p.full.as_ref()), "some": data(p.some.as_ref())}))
}

fn cpu(usage: Option<&v1::CpuUsage>, at: &str) -> Value {
    let Some(usage) = usage else { return Value::Null };
    let time = Timestamp::from_nanosecond(usage.timestamp.into())
        .ok()
        .filter(|_| usage.timestamp > 0)
        .map_or(at.to_string(), rfc3339);
    json!({"time": time, "usageNanoCores": value(usage.usage_nano_cores), "usageCoreNanoSeconds": value(usage.usage_core_nano_seconds), "psi": pressure(usage.psi.as_ref())})
}

fn memory(usage: Option<&v1::MemoryUsage>, at: &str) -> Value {
    let Some(usage) = usage else { return Value::Null };
    json!({
        "time": at, "availableBytes": value(usage.available_bytes), "usageBytes": value(usage.usage_bytes),
        "workingSetBytes": value(usage.working_set_bytes), "rssBytes": value(usage.rss_bytes),
        "pageFaults": value(usage.page_faults), "majorPageFaults": value(usage.major_page_faults),
        "psi": pressure(usage.psi.as_ref()),
    })
}

fn volume(counted: &Counted, namespace: &str) -> Value {
    let u = &counted.usage;
    json!({
        "name": counted.name, "time": rfc3339(counted.at),
        "pvcRef": counted.claim.as_ref().map(|name| json!({"name": name, "namespace": namespace})),
        "availableBytes": u.available, "capacityBytes": u.capacity, "usedBytes": u.used,
        "inodesFree": u.inodes_free, "inodes": u.inodes, "inodesUsed": u.inodes_used,
    })
}

/// Bytes and inodes that a container's logs take.
async fn logs(context: &Context, pod: &Pod, container: &str) -> (u64, u64) {
    let dir = names::pod_log_dir(&context.config.pod_logs, pod).join(container);
    tokio::task::spawn_blocking(move || local::usage(&dir)).await.unwrap_or_default()
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

/// What `?only_cpu_and_memory=true` leaves of a summary.
pub fn only_cpu_and_memory(summary: &mut Value) {
    let keep = |part: &mut Value, wanted: &[&str]| {
        if let Some(part) = part.as_object_mut() {
            part.retain(|name, _| wanted.contains(&name.as_str()));
        }
    };
    keep(&mut summary["node"], &["nodeName", "startTime", "cpu", "memory"]);
    for pod in summary["pods"].as_array_mut().into_iter().flatten() {
        keep(pod, &["podRef", "startTime", "cpu", "memory", "containers"]);
        for container in pod["containers"].as_array_mut().into_iter().flatten() {
            keep(container, &["name", "startTime", "cpu", "memory"]);
        }
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

    /// A pod's part of the summary.
    async fn pod(
        &self,
        context: &Context,
        pod: &Pod,
        list: &[v1::ContainerStats],
        sandbox: Option<&v1::PodSandboxStats>,
        began: &HashMap<String, i64>,
        at: &str,
    ) -> Value {
        let time = |nanos: i64| Timestamp::from_nanosecond(nanos.into()).map_or(at.to_string(), rfc3339);
        let disk = node::filesystem(&context.config.root_dir, at);
        let on_disk = |used: Option<u64>, inodes: Option<u64>| {
            json!({"time": at, "usedBytes": used, "inodesUsed": inodes, "availableBytes": disk["availableBytes"],
                "capacityBytes": disk["capacityBytes"], "inodesFree": disk["inodesFree"], "inodes": disk["inodes"]})
        };
        let (mut bytes, mut inodes) = (0, 0);
        let mut containers = Vec::new();
        for c in list {
            let attributes = c.attributes.clone().unwrap_or_default();
            let name = attributes.metadata.map(|m| m.name).unwrap_or_default();
            let logs = logs(context, pod, &name).await;
            let layer = c.writable_layer.as_ref().map(|w| (value(w.used_bytes), value(w.inodes_used)));
            bytes += logs.0 + layer.and_then(|l| l.0).unwrap_or(0);
            inodes += logs.1 + layer.and_then(|l| l.1).unwrap_or(0);
            containers.push(json!({
                "name": name, "startTime": began.get(&attributes.id).map_or(at.to_string(), |n| time(*n)),
                "cpu": cpu(c.cpu.as_ref(), at), "memory": memory(c.memory.as_ref(), at),
                "io": c.io.as_ref().filter(|io| io.psi.is_some()).map(|io| json!({"time": at, "psi": pressure(io.psi.as_ref())})),
                "rootfs": layer.map(|(used, inodes)| on_disk(used, inodes)), "logs": on_disk(Some(logs.0), Some(logs.1)),
                "swap": c.swap.as_ref().map(|s| json!({"time": at, "swapUsageBytes": value(s.swap_usage_bytes),
                    "swapAvailableBytes": value(s.swap_available_bytes)})),
            }));
        }
        let volumes = usage::of(context, pod).await;
        for counted in volumes.iter().filter(|v| v.local) {
            bytes += counted.usage.used.unwrap_or(0);
            inodes += counted.usage.inodes_used.unwrap_or(0);
        }
        let sum = |pick: fn(&v1::ContainerStats) -> Option<u64>| list.iter().filter_map(pick).sum::<u64>();
        let linux = sandbox.and_then(|s| s.linux.as_ref());
        let network = linux.and_then(|l| l.network.as_ref()).and_then(|n| n.default_interface.as_ref());
        let interface = |n: &v1::NetworkInterfaceUsage| {
            json!({"name": n.name, "rxBytes": value(n.rx_bytes), "txBytes": value(n.tx_bytes),
                "rxErrors": value(n.rx_errors), "txErrors": value(n.tx_errors)})
        };
        let network = network.map(|n| {
            let mut all = interface(n);
            all["time"] = at.into();
            all["interfaces"] = json!([interface(n)]);
            all
        });
        let start = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
        json!({
            "podRef": {"name": spec::name(pod), "namespace": spec::namespace(pod), "uid": spec::uid(pod)},
            "startTime": start.map_or(at.to_string(), |t| rfc3339(t.0)),
            "containers": containers,
            "cpu": {"time": at,
                "usageNanoCores": sum(|c| value(c.cpu.as_ref()?.usage_nano_cores)),
                "usageCoreNanoSeconds": sum(|c| value(c.cpu.as_ref()?.usage_core_nano_seconds))},
            "memory": {"time": at,
                "workingSetBytes": sum(|c| value(c.memory.as_ref()?.working_set_bytes)),
                "usageBytes": sum(|c| value(c.memory.as_ref()?.usage_bytes)),
                "rssBytes": sum(|c| value(c.memory.as_ref()?.rss_bytes)),
                "pageFaults": sum(|c| value(c.memory.as_ref()?.page_faults)),
                "majorPageFaults": sum(|c| value(c.memory.as_ref()?.major_page_faults))},
            "network": network,
            "volume": volumes.iter().map(|v| volume(v, spec::namespace(pod))).collect::<Vec<_>>(),
            "ephemeral-storage": on_disk(Some(bytes), Some(inodes)),
            "process_stats": linux.and_then(|l| l.process.as_ref()).map(|p| json!({"process_count": value(p.process_count)})),
            "swap": {"time": at, "swapUsageBytes": sum(|c| value(c.swap.as_ref()?.swap_usage_bytes))},
        })
    }

    /// When containers were made, by id.
    pub async fn began(&self, context: &Context) -> HashMap<String, i64> {
        let listed = context.engine.list_containers(v1::ListContainersRequest::default()).await;
        listed.map(|a| a.containers).unwrap_or_default().into_iter().map(|c| (c.id, c.created_at)).collect()
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
        let began = self.began(context).await;
        let mut pods = Vec::new();
        for pod in context.workers.pods() {
            let uid = spec::uid(&pod);
            let Some(list) = by_pod.get(uid) else { continue };
            pods.push(self.pod(context, &pod, list, sandboxes.get(uid), &began, &at).await);
        }
        without_nulls(json!({"node": node::summary(context, &self.node, &at), "pods": pods}))
    }

    /// `/metrics/resource`, in the Prometheus text format.
    pub async fn resource_metrics(&self, context: &Context) -> String {
        let at = rfc3339(Timestamp::now());
        let node = node::summary(context, &self.node, &at);
        let began = self.began(context).await;
        let number = |v: &Value| v.as_u64().unwrap_or(0) as f64;
        let of_node = |v: &Value, unit: f64| vec![(String::new(), number(v) / unit)];
        let (mut cpu, mut memory, mut swap, mut start) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut pods: HashMap<String, (f64, f64, f64)> = HashMap::new();
        for stats in self.containers(context).await {
            let Some(attributes) = &stats.attributes else { continue };
            let label = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
            let pod = format!("namespace=\"{}\",pod=\"{}\"", label(names::POD_NAMESPACE), label(names::POD_NAME));
            let labels = format!("{{container=\"{}\",{pod}}}", label(names::CONTAINER_NAME));
            let nanos = stats.cpu.as_ref().and_then(|c| value(c.usage_core_nano_seconds)).unwrap_or(0);
            let seconds = nanos as f64 / 1e9;
            let bytes = stats.memory.as_ref().and_then(|m| value(m.working_set_bytes)).unwrap_or(0) as f64;
            let swapped = stats.swap.as_ref().and_then(|s| value(s.swap_usage_bytes)).unwrap_or(0) as f64;
            let total = pods.entry(format!("{{{pod}}}")).or_default();
            *total = (total.0 + seconds, total.1 + bytes, total.2 + swapped);
            cpu.push((labels.clone(), seconds));
            memory.push((labels.clone(), bytes));
            swap.push((labels.clone(), swapped));
            if let Some(at) = began.get(&attributes.id) {
                start.push((labels, *at as f64 / 1e9));
            }
        }
        let mut pods: Vec<_> = pods.into_iter().collect();
        pods.sort_by(|a, b| a.0.cmp(&b.0));
        let of_pods = |pick: fn(&(f64, f64, f64)) -> f64| pods.iter().map(|(l, v)| (l.clone(), pick(v))).collect();
        let mut out = String::new();
        const CPU: &str = "Processor time used, in seconds.";
        const MEMORY: &str = "Memory that cannot be dropped easily, in bytes.";
        const SWAP: &str = "Swap in use, in bytes.";
        const ERRORS: &str = "1 where the numbers of containers could not be had, 0 otherwise.";
        let swapped = node::swap_used().map(|bytes| (String::new(), bytes as f64)).into_iter().collect();
        let millis = Timestamp::now().as_millisecond();
        for (name, kind, help, lines) in [
            ("container_cpu_usage_seconds_total", "counter", CPU, cpu),
            ("container_memory_working_set_bytes", "gauge", MEMORY, memory),
            ("container_start_time_seconds", "gauge", "When the container began, since 1970.", start),
            ("container_swap_usage_bytes", "gauge", SWAP, swap),
            ("node_cpu_usage_seconds_total", "counter", CPU, of_node(&node["cpu"]["usageCoreNanoSeconds"], 1e9)),
            ("node_memory_working_set_bytes", "gauge", MEMORY, of_node(&node["memory"]["workingSetBytes"], 1.0)),
            ("node_swap_usage_bytes", "gauge", SWAP, swapped),
            ("pod_cpu_usage_seconds_total", "counter", CPU, of_pods(|p| p.0)),
            ("pod_memory_working_set_bytes", "gauge", MEMORY, of_pods(|p| p.1)),
            ("pod_swap_usage_bytes", "gauge", SWAP, of_pods(|p| p.2)),
            ("resource_scrape_error", "gauge", ERRORS, vec![(String::new(), 0.0)]),
            // What that was called before, for who still asks by it.
            ("scrape_error", "gauge", ERRORS, vec![(String::new(), 0.0)]),
        ] {
            out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
            let at = if name.ends_with("scrape_error") { String::new() } else { format!(" {millis}") };
            for (labels, number) in lines {
                out.push_str(&format!("{name}{labels} {number}{at}\n"));
            }
        }
        out
    }
}
