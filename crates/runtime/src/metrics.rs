//! Numbers of pods and containers by the names that monitoring stacks know: what CRI's metric calls answer.

use std::sync::Arc;

use crate::engine::{Container, Engine, Sandbox};
use cri::metrics::{LABELS, OF_CONTAINERS, OF_NETWORKS, OF_PODS, Row};
use cri::v1::{ContainerMetrics, ContainerStats, Metric, MetricDescriptor, PodSandboxMetrics, UInt64Value};

/// Every metric there is.
pub fn descriptors() -> Vec<MetricDescriptor> {
    let mut all: Vec<MetricDescriptor> = Vec::new();
    let mut add = |name: &str, help: &str, further: Vec<&str>| {
        if !all.iter().any(|d| d.name == name) {
            let label_keys = LABELS.iter().copied().chain(further).map(str::to_string).collect();
            all.push(MetricDescriptor { name: name.into(), help: help.into(), label_keys });
        }
    };
    for row in OF_CONTAINERS {
        add(row.name, row.help, row.labels.iter().map(|(key, _)| *key).collect());
    }
    for row in OF_PODS {
        add(row.name, row.help, row.labels.iter().map(|(key, _)| *key).collect());
    }
    for row in OF_NETWORKS {
        add(row.name, row.help, vec!["interface"]);
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
            // CRI has whole numbers only.
            value: Some(UInt64Value { value: (row.pick)(stats)? as u64 }),
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
        let mut all = metrics(OF_PODS, &own, &stats, at);
        for interface in linux.network.iter().flat_map(|n| n.default_interface.iter().chain(&n.interfaces)) {
            let labels: Vec<String> = own.iter().cloned().chain([interface.name.clone()]).collect();
            all.extend(metrics(OF_NETWORKS, &labels, interface, at));
        }
        let of_container = |stats: &ContainerStats| {
            let container = self.container(&stats.attributes.as_ref()?.id)?;
            let labels = labels_of(&container, &of.namespace, &of.name);
            let at = stats.cpu.as_ref().map_or(0, |c| c.timestamp);
            let metrics = metrics(OF_CONTAINERS, &labels, stats, at);
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
        for row in OF_NETWORKS {
            assert_eq!(described(row.name), [LABELS.len() + 1], "{}", row.name);
        }
    }
}
