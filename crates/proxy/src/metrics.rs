//! What the proxy did, in numbers, under upstream's names.

use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Upper bounds of the duration buckets, in seconds: doubling from a millisecond.
const BUCKETS: [f64; 15] =
    [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384];

#[derive(Clone, Debug, Default)]
struct Histogram {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn observe(&mut self, seconds: f64) {
        for (count, bound) in self.buckets.iter_mut().zip(BUCKETS) {
            *count += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum += seconds;
    }

    fn write(&self, name: &str, help: &str, out: &mut String) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (count, bound) in self.buckets.iter().zip(BUCKETS) {
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let _ =
            writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {0}\n{name}_sum {1}\n{name}_count {0}", self.count, self.sum);
    }
}

#[derive(Debug, Default)]
struct Numbers {
    partial: Histogram,
    full: Histogram,
    failures: u64,
    put_back: u64,
    forgotten: u64,
    service_changes: u64,
    endpoint_changes: u64,
    last_sync_seconds: f64,
    services: usize,
}

/// Shared between the loop that counts and the server that tells.
#[derive(Debug, Default)]
pub struct Metrics {
    numbers: Mutex<Numbers>,
}

impl Metrics {
    // Each update leaves the numbers whole, so a poisoned lock still guards good ones.
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn synced(&self, took: Duration, full: bool, services: usize) {
        let mut numbers = self.numbers();
        let histogram = if full { &mut numbers.full } else { &mut numbers.partial };
        histogram.observe(took.as_secs_f64());
        numbers.services = services;
        numbers.last_sync_seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    }

    pub fn failed(&self) {
        self.numbers().failures += 1;
    }

    pub fn put_back(&self) {
        self.numbers().put_back += 1;
    }

    pub fn forgotten(&self, connections: usize) {
        self.numbers().forgotten += connections as u64;
    }

    pub fn changed(&self, services: usize, endpoints: usize) {
        let mut numbers = self.numbers();
        numbers.service_changes += services as u64;
        numbers.endpoint_changes += endpoints as u64;
    }

    /// The text format Prometheus reads.
    pub fn render(&self) -> String {
        let numbers = self.numbers();
        let mut out = String::new();
        numbers.partial.write(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "Seconds to bring changed Services into effect.",
            &mut out,
        );
        numbers.full.write(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "Seconds to write the whole table.",
            &mut out,
        );
        let plain: [(&str, &str, &str, f64); 7] = [
            (
                "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
                "counter",
                "Transactions nft refused.",
                numbers.failures as f64,
            ),
            (
                "kubeproxy_sync_proxy_rules_put_back_total",
                "counter",
                "Times somebody else had changed the table.",
                numbers.put_back as f64,
            ),
            (
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                "counter",
                "Connections forgotten because their endpoint left.",
                numbers.forgotten as f64,
            ),
            (
                "kubeproxy_sync_proxy_rules_service_changes_total",
                "counter",
                "Changed Services seen.",
                numbers.service_changes as f64,
            ),
            (
                "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                "counter",
                "Changed EndpointSlices seen.",
                numbers.endpoint_changes as f64,
            ),
            (
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "gauge",
                "When rules were last brought into effect.",
                numbers.last_sync_seconds,
            ),
            ("kubeproxy_services", "gauge", "Services in the table.", numbers.services as f64),
        ];
        for (name, kind, help, value) in plain {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
        out
    }
}
