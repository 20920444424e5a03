//! `/metrics/cadvisor`: usage of containers and pods under the names monitoring stacks know, from the engine's numbers.

use std::collections::HashMap;
use std::fmt::Write;

use http::{Response, StatusCode};
use jiff::Timestamp;

use super::{Body, text};
use crate::agent::Context;
use crate::cri::v1;
use crate::metrics::escaped;
use crate::spec::names;

/// One metric's lines.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    lines: Vec<(String, f64)>,
}

fn labels(of: &v1::ContainerAttributes, image: &str) -> String {
    let label = |key: &str| of.labels.get(key).map(|v| escaped(v)).unwrap_or_default();
    let (pod, namespace, container) =
        (label(names::POD_NAME), label(names::POD_NAMESPACE), label(names::CONTAINER_NAME));
    format!(
        "container=\"{container}\",id=\"/kubepods/pod{}/{}\",image=\"{}\",name=\"{}\",namespace=\"{namespace}\",pod=\"{pod}\"",
        label(names::POD_UID),
        of.id,
        escaped(image),
        of.id
    )
}

type Pick = fn(&v1::ContainerStats) -> Option<f64>;

fn number(v: &Option<v1::UInt64Value>) -> Option<f64> {
    v.as_ref().map(|v| v.value as f64)
}

/// Metrics that are one number of a container.
const OF_CONTAINERS: [(&str, &str, &str, Pick); 9] = [
    ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", |s| {
        number(&s.cpu.as_ref()?.usage_core_nano_seconds).map(|n| n / 1e9)
    }),
    ("container_memory_usage_bytes", "gauge", "Current memory usage in bytes.", |s| {
        number(&s.memory.as_ref()?.usage_bytes)
    }),
    ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |s| {
        number(&s.memory.as_ref()?.working_set_bytes)
    }),
    ("container_memory_rss", "gauge", "Size of RSS in bytes.", |s| number(&s.memory.as_ref()?.rss_bytes)),
    ("container_memory_failures_total", "counter", "Cumulative count of memory allocation failures.", |s| {
        number(&s.memory.as_ref()?.major_page_faults)
    }),
    ("container_memory_swap", "gauge", "Container swap usage in bytes.", |s| {
        number(&s.swap.as_ref()?.swap_usage_bytes)
    }),
    ("container_fs_usage_bytes", "gauge", "Number of bytes that are consumed by the container.", |s| {
        number(&s.writable_layer.as_ref()?.used_bytes)
    }),
    ("container_fs_inodes_total", "gauge", "Number of inodes the container uses.", |s| {
        number(&s.writable_layer.as_ref()?.inodes_used)
    }),
    ("container_last_seen", "gauge", "Last time a container was seen by the exporter.", |s| {
        Some(s.cpu.as_ref()?.timestamp as f64 / 1e9)
    }),
];

type NetworkPick = fn(&v1::NetworkInterfaceUsage) -> Option<f64>;

const OF_NETWORKS: [(&str, &str, NetworkPick); 4] = [
    ("container_network_receive_bytes_total", "Cumulative count of bytes received.", |n| number(&n.rx_bytes)),
    ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving.", |n| {
        number(&n.rx_errors)
    }),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", |n| number(&n.tx_bytes)),
    ("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting.", |n| {
        number(&n.tx_errors)
    }),
];

fn families(
    stats: &[v1::ContainerStats],
    sandboxes: &[v1::PodSandboxStats],
    images: &HashMap<String, String>,
) -> Vec<Family> {
    let mut out = Vec::new();
    for (name, kind, help, pick) in OF_CONTAINERS {
        let lines = stats.iter().filter_map(|s| {
            let of = s.attributes.as_ref()?;
            Some((labels(of, images.get(&of.id).map_or("", String::as_str)), pick(s)?))
        });
        out.push(Family { name, kind, help, lines: lines.collect() });
    }
    for (name, help, pick) in OF_NETWORKS {
        let lines = sandboxes.iter().filter_map(|s| {
            let of = s.attributes.as_ref()?.metadata.as_ref()?;
            let interface = s.linux.as_ref()?.network.as_ref()?.default_interface.as_ref()?;
            let labels = format!(
                "container=\"\",id=\"/kubepods/pod{}\",image=\"\",interface=\"{}\",name=\"\",namespace=\"{}\",pod=\"{}\"",
                of.uid, interface.name, of.namespace, of.name
            );
            Some((labels, pick(interface)?))
        });
        out.push(Family { name, kind: "counter", help, lines: lines.collect() });
    }
    out
}

fn printed(families: &[Family], at: Timestamp) -> String {
    let mut out = String::new();
    let millis = at.as_millisecond();
    for family in families.iter().filter(|f| !f.lines.is_empty()) {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# HELP {} {}\n# TYPE {} {}", family.name, family.help, family.name, family.kind);
        for (labels, value) in &family.lines {
            let _ = match labels.is_empty() {
                true => writeln!(out, "{} {value}", family.name),
                false => writeln!(out, "{}{{{labels}}} {value} {millis}", family.name),
            };
        }
    }
    out
}

/// All of it, now.
pub async fn serve(context: &Context) -> Response<Body> {
    let (stats, sandboxes, containers) = tokio::join!(
        context.engine.list_container_stats(v1::ListContainerStatsRequest::default()),
        context.engine.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()),
        context.engine.list_containers(v1::ListContainersRequest::default()),
    );
    let stats = match stats {
        Ok(answer) => answer.stats,
        Err(status) => return text(StatusCode::INTERNAL_SERVER_ERROR, status.message()),
    };
    // Not every engine counts sandboxes: then there are no numbers of networks.
    let sandboxes = sandboxes.map(|a| a.stats).unwrap_or_default();
    let images = containers.map(|a| a.containers).unwrap_or_default();
    let images = images.into_iter().map(|c| (c.id, c.image.map(|i| i.user_specified_image).unwrap_or_default()));
    let mut all = families(&stats, &sandboxes, &images.collect());
    let machine = |name, help, value| Family { name, kind: "gauge", help, lines: vec![(String::new(), value)] };
    all.push(machine("machine_cpu_cores", "Number of logical CPU cores.", context.machine.cpus as f64));
    all.push(machine(
        "machine_memory_bytes",
        "Amount of memory installed on the machine.",
        context.machine.memory_bytes as f64,
    ));
    let mut response = text(StatusCode::OK, printed(&all, Timestamp::now()));
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert("content-type", kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_names() {
        let labels = [(names::POD_NAME, "p\"q"), (names::POD_NAMESPACE, "n"), (names::CONTAINER_NAME, "c")];
        let stats = v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                id: "i".into(),
                labels: labels.map(|(k, v)| (k.to_string(), v.to_string())).into(),
                ..Default::default()
            }),
            memory: Some(v1::MemoryUsage {
                working_set_bytes: Some(v1::UInt64Value { value: 7 }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let text = printed(&families(&[stats], &[], &HashMap::new()), Timestamp::from_second(1).unwrap());
        let expect = "# HELP container_memory_working_set_bytes Current working set in bytes.\n# TYPE container_memory_working_set_bytes gauge\n\
            container_memory_working_set_bytes{container=\"c\",id=\"/kubepods/pod/i\",image=\"\",name=\"i\",namespace=\"n\",pod=\"p\\\"q\"} 7 1000\n";
        assert_eq!(text, expect);
    }
}
