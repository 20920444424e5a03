//! What the proxy did, in numbers, under upstream's names and labels.
//!
//! Upstream's works on each address family by itself; here one write is for all of them, so what is told of one is told of
//! each.

use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{Family, settings};

/// Upper bounds of the duration buckets, in seconds: doubling from a millisecond.
const BUCKETS: [f64; 15] =
    [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384];

/// Of the whole way from a pod's change to rules: fine up to a minute, then coarser up to five.
fn programming_buckets() -> Vec<f64> {
    let linear = |start: f64, step: f64, count: u32| (0..count).map(move |n| start + step * f64::from(n));
    linear(0.25, 0.25, 2)
        .chain(linear(1.0, 1.0, 59))
        .chain(linear(60.0, 5.0, 12))
        .chain(linear(120.0, 30.0, 7))
        .collect()
}

#[derive(Clone, Debug)]
struct Histogram {
    bounds: Vec<f64>,
    buckets: Vec<u64>,
    count: u64,
    sum: f64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram::new(BUCKETS.to_vec())
    }
}

impl Histogram {
    fn new(bounds: Vec<f64>) -> Histogram {
        Histogram { buckets: vec![0; bounds.len()], bounds, count: 0, sum: 0.0 }
    }

    fn observe(&mut self, seconds: f64) {
        for (count, bound) in self.buckets.iter_mut().zip(&self.bounds) {
            *count += u64::from(seconds <= *bound);
        }
        self.count += 1;
        self.sum += seconds;
    }

    /// The values, once for each set of labels.
    fn write(&self, name: &str, help: &str, labels: &[String], out: &mut String) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        for labels in labels {
            for (count, bound) in self.buckets.iter().zip(&self.bounds) {
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
            }
            let (count, sum) = (self.count, self.sum);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
            let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
        }
    }
}

#[derive(Debug)]
struct Programming(Histogram);

impl Default for Programming {
    fn default() -> Programming {
        Programming(Histogram::new(programming_buckets()))
    }
}

#[derive(Debug, Default)]
struct Numbers {
    programming: Programming,
    conntrack: Histogram,
    /// Services whose local traffic policy finds no endpoint here, of each family: internal, external.
    without_local: Vec<[usize; 2]>,
    all: Histogram,
    partial: Histogram,
    full: Histogram,
    /// Answers of `/healthz` and `/livez`: 200 and 503.
    healthz: [u64; 2],
    livez: [u64; 2],
    pending: [usize; 2],
    last_queued_seconds: f64,
    failures: u64,
    put_back: u64,
    forgotten: u64,
    service_changes: u64,
    endpoint_changes: u64,
    last_sync_seconds: f64,
    services: usize,
}

fn seconds_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Shared between the loop that counts and the server that tells.
#[derive(Debug, Default)]
pub struct Metrics {
    families: Vec<Family>,
    numbers: Mutex<Numbers>,
}

impl Metrics {
    pub fn new(families: &[Family]) -> Metrics {
        Metrics { families: families.to_vec(), numbers: Mutex::default() }
    }

    // Each update leaves the numbers whole, so a poisoned lock still guards good ones.
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn synced(&self, took: Duration, full: bool, services: usize) {
        let mut numbers = self.numbers();
        let histogram = if full { &mut numbers.full } else { &mut numbers.partial };
        histogram.observe(took.as_secs_f64());
        numbers.all.observe(took.as_secs_f64());
        numbers.pending = [0, 0];
        numbers.services = services;
        numbers.last_sync_seconds = seconds_now();
    }

    /// Changes of these times are in effect.
    pub fn programmed(&self, triggers: impl IntoIterator<Item = SystemTime>) {
        let (mut numbers, now) = (self.numbers(), SystemTime::now());
        for trigger in triggers {
            numbers.programming.0.observe(now.duration_since(trigger).unwrap_or_default().as_secs_f64());
        }
    }

    /// In the order of the families.
    pub fn without_local(&self, counts: impl IntoIterator<Item = [usize; 2]>) {
        self.numbers().without_local = counts.into_iter().collect();
    }

    pub fn failed(&self) {
        self.numbers().failures += 1;
    }

    pub fn put_back(&self) {
        self.numbers().put_back += 1;
    }

    /// The kernel's connections were looked through, and so many forgotten.
    pub fn forgotten(&self, connections: usize, took: Duration) {
        let mut numbers = self.numbers();
        numbers.forgotten += connections as u64;
        numbers.conntrack.observe(took.as_secs_f64());
    }

    pub fn changed(&self, services: usize, endpoints: usize) {
        let mut numbers = self.numbers();
        numbers.service_changes += services as u64;
        numbers.endpoint_changes += endpoints as u64;
        numbers.pending[0] += services;
        numbers.pending[1] += endpoints;
        numbers.last_queued_seconds = seconds_now();
    }

    /// `/healthz` was answered, or `/livez`.
    pub fn asked(&self, livez: bool, healthy: bool) {
        let mut numbers = self.numbers();
        let counts = if livez { &mut numbers.livez } else { &mut numbers.healthz };
        counts[usize::from(!healthy)] += 1;
    }

    /// The text format Prometheus reads.
    pub fn render(&self) -> String {
        let numbers = self.numbers();
        let mut out = String::new();
        let labels: Vec<String> =
            self.families.iter().map(|family| format!("ip_family=\"{}\"", family.address_type())).collect();
        numbers.all.write(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "Seconds to bring rules into effect, whole or in part.",
            &labels,
            &mut out,
        );
        numbers.partial.write(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "Seconds to bring changed Services into effect.",
            &labels,
            &mut out,
        );
        numbers.full.write(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "Seconds to write the whole table.",
            &labels,
            &mut out,
        );
        numbers.programming.0.write(
            "kubeproxy_network_programming_duration_seconds",
            "Seconds from a pod's change to rules that know of it.",
            &labels,
            &mut out,
        );
        numbers.conntrack.write(
            "kubeproxy_conntrack_reconciler_sync_duration_seconds",
            "Seconds to look through the kernel's connections.",
            &labels,
            &mut out,
        );
        let plain: [(&str, &str, &str, bool, f64); 11] = [
            (
                "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
                "counter",
                "Transactions nft refused.",
                true,
                numbers.failures as f64,
            ),
            (
                "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
                "counter",
                "Removals of what is in use no more that nft refused: none, since they are in the transactions counted above.",
                true,
                0.0,
            ),
            (
                "kubeproxy_sync_proxy_rules_put_back_total",
                "counter",
                "Times somebody else had changed the table.",
                false,
                numbers.put_back as f64,
            ),
            (
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                "counter",
                "Connections forgotten because their endpoint left.",
                true,
                numbers.forgotten as f64,
            ),
            (
                "kubeproxy_sync_proxy_rules_service_changes_total",
                "counter",
                "Changed Services seen.",
                false,
                numbers.service_changes as f64,
            ),
            (
                "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                "counter",
                "Changed EndpointSlices seen.",
                false,
                numbers.endpoint_changes as f64,
            ),
            (
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "gauge",
                "When rules were last brought into effect.",
                true,
                numbers.last_sync_seconds,
            ),
            (
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "gauge",
                "When a change was last seen.",
                true,
                numbers.last_queued_seconds,
            ),
            (
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "gauge",
                "Changed Services not in effect yet.",
                false,
                numbers.pending[0] as f64,
            ),
            (
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "gauge",
                "Changed EndpointSlices not in effect yet.",
                false,
                numbers.pending[1] as f64,
            ),
            ("kubeproxy_services", "gauge", "Services in the table.", false, numbers.services as f64),
        ];
        for (name, kind, help, of_family, value) in plain {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            if !of_family {
                let _ = writeln!(out, "{name} {value}");
            }
            for labels in labels.iter().filter(|_| of_family) {
                let _ = writeln!(out, "{name}{{{labels}}} {value}");
            }
        }
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        let _ = writeln!(out, "# HELP {name} Services whose local policy finds no endpoint here.\n# TYPE {name} gauge");
        for (labels, counts) in labels.iter().zip(&numbers.without_local) {
            for (policy, count) in ["internal", "external"].iter().zip(counts) {
                let _ = writeln!(out, "{name}{{{labels},traffic_policy=\"{policy}\"}} {count}");
            }
        }
        let (count, most) = settings::table().unwrap_or_default();
        for (name, help, value) in [
            ("kubeproxy_conntrack_entries", "Connections the kernel remembers here.", count),
            ("kubeproxy_conntrack_entries_limit", "The most it does.", most),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        for (name, counts) in [("healthz", numbers.healthz), ("livez", numbers.livez)] {
            let name = format!("kubeproxy_proxy_{name}_total");
            let _ = writeln!(out, "# HELP {name} Answers by their HTTP status.\n# TYPE {name} counter");
            for (code, count) in [200, 503].iter().zip(counts) {
                let _ = writeln!(out, "{name}{{code=\"{code}\"}} {count}");
            }
        }
        out
    }
}
