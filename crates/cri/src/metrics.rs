//! Numbers of pods and containers by the names that monitoring stacks know, cAdvisor's: which of CRI's statistics each is.
//! One table for both ends: an engine answers metric calls by it, an agent prints a page by it.

use crate::v1::{ContainerStats, MetricType, NetworkInterfaceUsage, PodSandboxStats, UInt64Value};

/// Labels of every metric, in order.
pub const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// A kind of number.
pub struct Row<T> {
    /// Its name; several rows may be series of one.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
    /// Whether it only grows.
    pub kind: MetricType,
    /// Labels beside those of every metric, and the values of one of its series.
    pub labels: &'static [(&'static str, &'static str)],
    /// Where it is among the statistics; none, where they lack it.
    pub pick: fn(&T) -> Option<f64>,
}

fn number(value: &Option<UInt64Value>) -> Option<f64> {
    value.as_ref().map(|v| v.value as f64)
}

const CPU_NAME: &str = "container_cpu_usage_seconds_total";
const CPU_HELP: &str = "Processor time used, in seconds.";
const MEMORY_NAME: &str = "container_memory_working_set_bytes";
const MEMORY_HELP: &str = "Memory that cannot be dropped easily, in bytes.";
const FAULTS_NAME: &str = "container_memory_failures_total";
const FAULTS_HELP: &str = "Page faults.";

macro_rules! rows {
    ($of:ty: $($name:expr, $help:expr, $kind:ident, [$($label:literal = $value:literal),*], $pick:expr;)*) => {
        &[$(Row::<$of> {
            name: $name,
            help: $help,
            kind: MetricType::$kind,
            labels: &[$(($label, $value)),*],
            pick: $pick,
        }),*]
    };
}

/// Of each container.
#[rustfmt::skip]
pub const OF_CONTAINERS: &[Row<ContainerStats>] = rows! { ContainerStats:
    CPU_NAME, CPU_HELP, Counter, ["cpu" = "total"], |s| number(&s.cpu.as_ref()?.usage_core_nano_seconds).map(|n| n / 1e9);
    "container_memory_usage_bytes", "Memory in use, caches included, in bytes.", Gauge, [], |s| number(&s.memory.as_ref()?.usage_bytes);
    MEMORY_NAME, MEMORY_HELP, Gauge, [], |s| number(&s.memory.as_ref()?.working_set_bytes);
    "container_memory_rss", "Anonymous memory, in bytes.", Gauge, [], |s| number(&s.memory.as_ref()?.rss_bytes);
    "container_memory_swap", "Swap in use, in bytes.", Gauge, [], |s| number(&s.swap.as_ref()?.swap_usage_bytes);
    FAULTS_NAME, FAULTS_HELP, Counter, ["failure_type" = "pgfault", "scope" = "container"], |s| number(&s.memory.as_ref()?.page_faults);
    FAULTS_NAME, FAULTS_HELP, Counter, ["failure_type" = "pgmajfault", "scope" = "container"], |s| number(&s.memory.as_ref()?.major_page_faults);
    "container_fs_usage_bytes", "What the container wrote to its own layer, in bytes.", Gauge, [], |s| number(&s.writable_layer.as_ref()?.used_bytes);
    "container_fs_inodes_total", "Inodes of the container's own layer.", Gauge, [], |s| number(&s.writable_layer.as_ref()?.inodes_used);
    "container_last_seen", "When the container was last looked at, since 1970.", Gauge, [], |s| Some(s.cpu.as_ref()?.timestamp as f64 / 1e9);
};

/// Of each pod as a whole.
#[rustfmt::skip]
pub const OF_PODS: &[Row<PodSandboxStats>] = rows! { PodSandboxStats:
    CPU_NAME, CPU_HELP, Counter, ["cpu" = "total"], |s| number(&s.linux.as_ref()?.cpu.as_ref()?.usage_core_nano_seconds).map(|n| n / 1e9);
    MEMORY_NAME, MEMORY_HELP, Gauge, [], |s| number(&s.linux.as_ref()?.memory.as_ref()?.working_set_bytes);
    "container_processes", "Processes running.", Gauge, [], |s| number(&s.linux.as_ref()?.process.as_ref()?.process_count);
};

/// Of a pod's network interface, whose name is a label more.
#[rustfmt::skip]
pub const OF_NETWORKS: &[Row<NetworkInterfaceUsage>] = rows! { NetworkInterfaceUsage:
    "container_network_receive_bytes_total", "Bytes received.", Counter, [], |n| number(&n.rx_bytes);
    "container_network_receive_errors_total", "Errors while receiving.", Counter, [], |n| number(&n.rx_errors);
    "container_network_transmit_bytes_total", "Bytes sent.", Counter, [], |n| number(&n.tx_bytes);
    "container_network_transmit_errors_total", "Errors while sending.", Counter, [], |n| number(&n.tx_errors);
};
