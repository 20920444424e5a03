//! Numbers of pods and containers by the names that monitoring stacks know: what CRI's metric calls answer.

use std::sync::Arc;

use crate::engine::{Container, Engine, Sandbox};
use cri::v1::{
    ContainerMetrics, ContainerStats, Metric, MetricDescriptor, MetricType, NetworkInterfaceUsage, PodSandboxMetrics,
    PodSandboxStats, UInt64Value,
};

/// Labels of every metric, in order.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];
/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// A kind of number.
struct Row<T> {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    /// Labels beside those of every metric, and the values of one of its series.
    labels: &'static [(&'static str, &'static str)],
    pick: fn(&T) -> Option<u64>,
}

fn number(value: &Option<UInt64Value>) -> Option<u64> {
    value.as_ref().map(|v| v.value)
}

const OF_CONTAINERS: [Row<ContainerStats>; 10] = [
    Row {
        name: "container_cpu_usage_seconds_total",
        help: "Cumulative cpu time consumed in seconds.",
        kind: MetricType::Counter,
        labels: &[("cpu", "total")],
        pick: |s| number(&s.cpu.as_ref()?.usage_core_nano_seconds).map(|n| n / SECOND),
    },
    Row {
        name: "container_memory_usage_bytes",
        help: "Current memory usage in bytes, including all memory regardless of when it was accessed.",
        kind: MetricType::Gauge,
        labels: &[],
        pick: |s| number(&s.memory.as_ref()?.usage_bytes),
    },
    Row {
        name: "container_memory_working_set_bytes",
        help: "Current working set in bytes.",
        kind: MetricType::Gauge,
        labels: &[],
        pick: |s| number(&s.memory.as_ref()?.working_set_bytes),
    },
    Row {
        name: "container_memory_rss",
        help: "Size of RSS in bytes.",
        kind: MetricType::Gauge,
        labels: &[],
        pick: |s| number(&s.memory.as_ref()?.rss_bytes),
    },
    Row {
        name: "container_memory_swap",
        help: "Container swap usage in bytes.",
        kind: MetricType::Gauge,
        labels: &[],
        pick: |s| number(&s.swap.as_ref()?.swap_usage_bytes),
    },
    Row {
        name: "container_memory_failures_total",
        help: "Cumulative count of memory allocation failures.",
        kind: MetricType::Counter,
        labels: &[("failure_type", "pgfault"), ("scope", "container")],
        pick: |s| number(&s.memory.as_ref()?.page_faults),
    },
    Row {
        name: "container_memory_failures_total",
        help: "Cumulative count of memory allocation failures.",
        kind: MetricType::Counter,
        labels: &[("failure_type", "pgmajfault"), ("scope", "container")],
        pick: |s| number(&s.memory.as_ref()?.major_page_faults),
    },
    Row {
        name: "container_fs_usage_bytes",
        help: "Number of bytes that are consumed by the container on this filesystem.",
        kind: MetricType::Gauge,
        labels: &[],
        pick: |s| number(&s.writable_layer.as_ref()?.used_bytes),
    },
    Row {
        name: "container_fs_inodes_total",
        help: "Number of inodes that the container uses.",
        kind: MetricType::Gauge,
        labels: &[],
        pick: |s| number(&s.writable_layer.as_ref()?.inodes_used),
    },
    Row {
        name: "container_last_seen",
        help: "Last time a container was seen by the exporter.",
        kind: MetricType::Gauge,
        labels: &[],
        pick: |s| u64::try_from(s.cpu.as_ref()?.timestamp).ok().map(|n| n / SECOND),
    },
];

const OF_PODS: [Row<PodSandboxStats>; 3] = [
    Row {
        name: "container_cpu_usage_seconds_total",
        help: "Cumulative cpu time consumed in seconds.",
        kind: MetricType::Counter,
        labels: &[("cpu", "total")],
        pick: |s| number(&s.linux.as_ref()?.cpu.as_ref()?.usage_core_nano_seconds).map(|n| n / SECOND),
    },
    Row {
        name: "container_memory_working_set_bytes",
        help: "Current working set in bytes.",
        kind: MetricType::Gauge,
        labels: &[],
        pick: |s| number(&s.linux.as_ref()?.memory.as_ref()?.working_set_bytes),
    },
    Row {
        name: "container_processes",
        help: "Number of processes running inside the container.",
        kind: MetricType::Gauge,
        labels: &[],
        pick: |s| number(&s.linux.as_ref()?.process.as_ref()?.process_count),
    },
];

/// Of a network interface, whose name is a label.
type NetworkRow = (&'static str, &'static str, fn(&NetworkInterfaceUsage) -> Option<u64>);
const OF_NETWORKS: [NetworkRow; 4] = [
    ("container_network_receive_bytes_total", "Cumulative count of bytes received.", |n| number(&n.rx_bytes)),
    ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving.", |n| {
        number(&n.rx_errors)
    }),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", |n| number(&n.tx_bytes)),
    ("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting.", |n| {
        number(&n.tx_errors)
    }),
];

/// Every metric there is.
pub fn descriptors() -> Vec<MetricDescriptor> {
    let mut all: Vec<MetricDescriptor> = Vec::new();
    let mut add = |name: &str, help: &str, further: Vec<&str>| {
        if !all.iter().any(|d| d.name == name) {
            let label_keys = LABELS.iter().copied().chain(further).map(str::to_string).collect();
            all.push(MetricDescriptor { name: name.into(), help: help.into(), label_keys });
        }
    };
    for row in &OF_CONTAINERS {
        add(row.name, row.help, row.labels.iter().map(|(key, _)| *key).collect());
    }
    for row in &OF_PODS {
        add(row.name, row.help, row.labels.iter().map(|(key, _)| *key).collect());
    }
    for (name, help, _) in OF_NETWORKS {
        add(name, help, vec!["interface"]);
    }
    all
}

fn metrics<T>(rows: &[Row<T>], labels: &[String], stats: &T, timestamp: i64) -> Vec<Metric> {
    let metric = |row: &Row<T>| {
        let further = row.labels.iter().map(|(_, value)| value.to_string());
        Some(Metric {
            name: row.name.into(),
            timestamp,
            metric_type: row.kind.into(),
            label_values: labels.iter().cloned().chain(further).collect(),
            value: Some(UInt64Value { value: (row.pick)(stats)? }),
        })
    };
    rows.iter().filter_map(metric).collect()
}

impl Engine {
    /// A pod's numbers and those of its running containers.
    pub async fn sandbox_metrics(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Option<PodSandboxMetrics> {
        let stats = self.sandbox_stats(sandbox).await?;
        let of = sandbox.record().config.unwrap_or_default().metadata.unwrap_or_default();
        let own = ["", &sandbox.record().cgroup_parent, "", &sandbox.id, &of.namespace, &of.name].map(String::from);
        let linux = stats.linux.as_ref()?;
        let at = linux.cpu.as_ref().map_or(0, |c| c.timestamp);
        let mut all = metrics(&OF_PODS, &own, &stats, at);
        for interface in linux.network.iter().flat_map(|n| n.default_interface.iter().chain(&n.interfaces)) {
            all.extend(OF_NETWORKS.iter().filter_map(|(name, _, pick)| {
                Some(Metric {
                    name: name.to_string(),
                    timestamp: at,
                    metric_type: MetricType::Counter.into(),
                    label_values: own.iter().cloned().chain([interface.name.clone()]).collect(),
                    value: Some(UInt64Value { value: pick(interface)? }),
                })
            }));
        }
        let of_container = |stats: &ContainerStats| {
            let container = self.container(&stats.attributes.as_ref()?.id)?;
            let labels = labels_of(&container, &of.namespace, &of.name);
            let at = stats.cpu.as_ref().map_or(0, |c| c.timestamp);
            let metrics = metrics(&OF_CONTAINERS, &labels, stats, at);
            Some(ContainerMetrics { container_id: container.id.clone(), metrics })
        };
        Some(PodSandboxMetrics {
            pod_sandbox_id: sandbox.id.clone(),
            metrics: all,
            container_metrics: linux.containers.iter().filter_map(of_container).collect(),
        })
    }
}

fn labels_of(container: &Container, namespace: &str, pod: &str) -> Vec<String> {
    container.read(|record| {
        let config = record.config.as_ref();
        let name = config.and_then(|c| c.metadata.as_ref()).map_or("", |m| m.name.as_str());
        let image = config.and_then(|c| c.image.as_ref()).map_or("", |i| match i.user_specified_image.as_str() {
            "" => i.image.as_str(),
            wanted => wanted,
        });
        [name, &record.cgroup, image, &record.id, namespace, pod].map(String::from).to_vec()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_have_the_labels_that_are_described() {
        let all = descriptors();
        let described =
            |name: &str| all.iter().filter(|d| d.name == name).map(|d| d.label_keys.len()).collect::<Vec<_>>();
        for (name, further) in OF_CONTAINERS.iter().map(|r| (r.name, r.labels.len())) {
            assert_eq!(described(name), [LABELS.len() + further], "{name}");
        }
        for (name, further) in OF_PODS.iter().map(|r| (r.name, r.labels.len())) {
            assert_eq!(described(name), [LABELS.len() + further], "{name}");
        }
        for (name, ..) in OF_NETWORKS {
            assert_eq!(described(name), [LABELS.len() + 1], "{name}");
        }
    }
}
