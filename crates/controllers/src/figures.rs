//! What single controllers count, under the names upstream's have; [`crate::metrics`] has what all count alike.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use meta::{Object, Status};
use serde_json::Value;

use crate::plan::{Plan, What};

/// Values of a histogram are counted up to each of these.
type Bounds = &'static [f64];

enum Kind {
    Counter,
    Gauge,
    Histogram(Bounds),
}

/// Durations in seconds: 1 ms, and each bound twice the one before, to 16 s.
const DOUBLING: Bounds =
    &[0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384];
const SKEW: Bounds = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Every family: its name, how it counts, and what upstream says of it.
const FAMILIES: &[(&str, Kind, &str)] = &[
    (
        "cronjob_controller_job_creation_skew_duration_seconds",
        Kind::Histogram(SKEW),
        "Time between when a cronjob is scheduled to be run, and when the corresponding job is created",
    ),
    (
        "device_taint_eviction_controller_pod_deletions_total",
        Kind::Counter,
        "Total number of Pods deleted by DeviceTaintEvictionController since its start.",
    ),
    ("endpoint_slice_controller_changes", Kind::Counter, "Number of EndpointSlice changes"),
    (
        "endpoint_slice_controller_desired_endpoint_slices",
        Kind::Gauge,
        "Number of EndpointSlices that would exist with perfect endpoint allocation",
    ),
    ("endpoint_slice_controller_endpoints_desired", Kind::Gauge, "Number of endpoints desired"),
    ("endpoint_slice_controller_num_endpoint_slices", Kind::Gauge, "Number of EndpointSlices"),
    ("endpoint_slice_controller_syncs", Kind::Counter, "Number of EndpointSlice syncs"),
    ("endpoint_slice_mirroring_controller_changes", Kind::Counter, "Number of EndpointSlice changes"),
    (
        "ephemeral_volume_controller_create_failures_total",
        Kind::Counter,
        "Number of PersistentVolumeClaim creation requests",
    ),
    ("ephemeral_volume_controller_create_total", Kind::Counter, "Number of PersistentVolumeClaim creation requests"),
    (
        "horizontal_pod_autoscaler_controller_reconciliations_total",
        Kind::Counter,
        "Number of reconciliations of HPA controller. The label 'action' should be either 'scale_down', 'scale_up', or 'none'. Also, the label 'error' should be either 'spec', 'internal', or 'none'.",
    ),
    ("job_controller_job_pods_finished_total", Kind::Counter, "The number of finished Pods that are fully tracked"),
    ("job_controller_job_sync_duration_seconds", Kind::Histogram(DOUBLING), "The time it took to sync a job"),
    ("job_controller_job_syncs_total", Kind::Counter, "The number of job syncs"),
    ("job_controller_jobs_finished_total", Kind::Counter, "The number of finished jobs"),
    (
        "node_collector_evictions_total",
        Kind::Counter,
        "Number of Node evictions that happened since current instance of NodeController started.",
    ),
    ("node_collector_unhealthy_nodes_in_zone", Kind::Gauge, "Gauge measuring number of not Ready Nodes per zones."),
    ("node_collector_zone_health", Kind::Gauge, "Gauge measuring percentage of healthy nodes per zone."),
    ("node_collector_zone_size", Kind::Gauge, "Gauge measuring number of registered Nodes per zones."),
    ("pv_collector_bound_pv_count", Kind::Gauge, "Gauge measuring number of persistent volume currently bound"),
    ("pv_collector_bound_pvc_count", Kind::Gauge, "Gauge measuring number of persistent volume claim currently bound"),
    ("pv_collector_unbound_pv_count", Kind::Gauge, "Gauge measuring number of persistent volume currently unbound"),
    (
        "pv_collector_unbound_pvc_count",
        Kind::Gauge,
        "Gauge measuring number of persistent volume claim currently unbound",
    ),
    (
        "root_ca_cert_publisher_sync_duration_seconds",
        Kind::Histogram(DOUBLING),
        "Number of namespace syncs happened in root ca cert publisher.",
    ),
    (
        "root_ca_cert_publisher_sync_total",
        Kind::Counter,
        "Number of namespace syncs happened in root ca cert publisher.",
    ),
    (
        "taint_eviction_controller_pod_deletions_total",
        Kind::Counter,
        "Total number of Pods deleted by TaintEvictionController since its start.",
    ),
];

#[derive(Clone, Debug, Default)]
struct Figure {
    /// The value, or a histogram's sum.
    value: f64,
    /// How many values lie at or below each bound and above the one before; the last has no bound.
    counts: Vec<u64>,
}

/// By family and labels as they are written.
static FIGURES: Mutex<BTreeMap<(&'static str, String), Figure>> = Mutex::new(BTreeMap::new());

type Refresh = Box<dyn Fn() + Send>;
/// What sets gauges anew before they are shown, by the controller's name.
static REFRESHED: Mutex<BTreeMap<&'static str, Refresh>> = Mutex::new(BTreeMap::new());

fn change(family: &'static str, labels: &[(&str, &str)], change: impl FnOnce(&mut Figure)) {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    let mut figures = FIGURES.lock().unwrap_or_else(PoisonError::into_inner);
    change(figures.entry((family, labels.join(","))).or_default());
}

/// Counts something that happened.
pub fn count(family: &'static str, labels: &[(&str, &str)], times: u64) {
    change(family, labels, |figure| figure.value += times as f64);
}

/// Says how much there is.
pub fn set(family: &'static str, labels: &[(&str, &str)], value: usize) {
    change(family, labels, |figure| figure.value = value as f64);
}

/// Forgets what was said of a family, which is said anew.
pub fn clear(family: &'static str) {
    FIGURES.lock().unwrap_or_else(PoisonError::into_inner).retain(|(name, _), _| *name != family);
}

fn observe(family: &'static str, labels: &[(&str, &str)], value: f64) {
    let Some((_, Kind::Histogram(bounds), _)) = FAMILIES.iter().find(|f| f.0 == family) else { return };
    change(family, labels, |figure| {
        figure.counts.resize(bounds.len() + 1, 0);
        figure.counts[bounds.partition_point(|bound| *bound < value)] += 1;
        figure.value += value;
    });
}

/// Has gauges set anew whenever they are asked for.
pub fn refreshed(controller: &'static str, set: impl Fn() + Send + 'static) {
    REFRESHED.lock().unwrap_or_else(PoisonError::into_inner).insert(controller, Box::new(set));
}

/// When the Job that is to be made was due, if a schedule asks for it.
pub fn due(controller: &str, what: &What) -> Option<Timestamp> {
    let What::Create { body } = what else { return None };
    let annotations = &body["metadata"]["annotations"];
    let at = annotations.get(crate::cronjob::SCHEDULED_AT).and_then(Value::as_str)?;
    at.parse().ok().filter(|_| controller == "cronjob-controller")
}

/// Counts a write that was tried.
pub fn wrote(controller: &str, verb: &'static str, resource: &str, due: Option<Timestamp>, is_done: bool) {
    match (controller, verb, resource) {
        ("cronjob-controller", "create", "jobs") if is_done => {
            if let Some(due) = due {
                let late = Timestamp::now().duration_since(due).as_secs_f64();
                observe("cronjob_controller_job_creation_skew_duration_seconds", &[], late);
            }
        }
        ("device-taint-eviction-controller", "delete", "pods") if is_done => {
            count("device_taint_eviction_controller_pod_deletions_total", &[], 1);
        }
        ("taint-eviction-controller", "delete", "pods") if is_done => {
            count("taint_eviction_controller_pod_deletions_total", &[], 1);
        }
        ("endpointslice-controller", _, "endpointslices") if is_done => {
            count("endpoint_slice_controller_changes", &[("operation", verb)], 1);
        }
        ("endpointslice-mirroring-controller", _, "endpointslices") if is_done => {
            count("endpoint_slice_mirroring_controller_changes", &[("operation", verb)], 1);
        }
        ("ephemeral-volume-controller", "create", "persistentvolumeclaims") => {
            count("ephemeral_volume_controller_create_total", &[], 1);
            count("ephemeral_volume_controller_create_failures_total", &[], u64::from(!is_done));
        }
        _ => {}
    }
}

/// What a look does with pods, in the words of the Jobs' figures.
pub fn action(plan: &Plan) -> &'static str {
    let of_pods = |verb: &str| {
        let nested = plan.actions.iter().flat_map(|a| match &a.what {
            What::SlowStart(group) => group.as_slice(),
            _ => std::slice::from_ref(a),
        });
        nested.into_iter().any(|a| &*a.resource.resource == "pods" && a.what.verb() == verb)
    };
    match () {
        () if of_pods("create") => "pods_created",
        () if of_pods("delete") => "pods_deleted",
        () if of_pods("patch") => "tracking",
        () => "reconciling",
    }
}

/// Counts a key's whole look; `job` finds the Job it is of.
pub fn synced(
    controller: &str,
    action: &str,
    job: impl Fn() -> Option<Arc<Object>>,
    took: Duration,
    failure: Option<&Status>,
) {
    match controller {
        "job-controller" => {
            let Some(job) = job().and_then(|o| o.typed::<Job>().ok()) else { return };
            let mode = job.spec.as_ref().and_then(|s| s.completion_mode.as_deref()).unwrap_or("NonIndexed");
            let result = if failure.is_some() { "error" } else { "success" };
            let labels = [("action", action), ("completion_mode", mode), ("result", result)];
            count("job_controller_job_syncs_total", &labels, 1);
            observe("job_controller_job_sync_duration_seconds", &labels, took.as_secs_f64());
        }
        "endpointslice-controller" => {
            let result = if failure.is_some() { "error" } else { "success" };
            count("endpoint_slice_controller_syncs", &[("result", result)], 1);
        }
        "root-ca-certificate-publisher-controller" => {
            let code = failure.map_or(200, |status| status.code).to_string();
            count("root_ca_cert_publisher_sync_total", &[("code", &code)], 1);
            observe("root_ca_cert_publisher_sync_duration_seconds", &[("code", &code)], took.as_secs_f64());
        }
        _ => {}
    }
}

/// All of them, as `/metrics` shows them.
pub fn text() -> String {
    for set in REFRESHED.lock().unwrap_or_else(PoisonError::into_inner).values() {
        set();
    }
    let figures = FIGURES.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut out = String::new();
    for (name, kind, help) in FAMILIES {
        let mut rows = figures.iter().filter(|((family, _), _)| family == name).peekable();
        if rows.peek().is_none() {
            continue;
        }
        let word = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {word}");
        for ((_, labels), figure) in rows {
            let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let Kind::Histogram(bounds) = kind else {
                let _ = writeln!(out, "{name}{braced} {}", figure.value);
                continue;
            };
            let comma = if labels.is_empty() { "" } else { "," };
            let mut sum = 0;
            let bounds = bounds.iter().map(ToString::to_string).chain(["+Inf".to_string()]);
            for (bound, count) in bounds.zip(&figure.counts) {
                sum += count;
                let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {sum}");
            }
            let _ = writeln!(out, "{name}_sum{braced} {}\n{name}_count{braced} {sum}", figure.value);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told() {
        let family = "root_ca_cert_publisher_sync_duration_seconds";
        observe(family, &[("code", "418")], 0.003);
        observe(family, &[("code", "418")], 99.0);
        let told = text();
        for line in [
            "# TYPE root_ca_cert_publisher_sync_duration_seconds histogram",
            "root_ca_cert_publisher_sync_duration_seconds_bucket{code=\"418\",le=\"0.002\"} 0",
            "root_ca_cert_publisher_sync_duration_seconds_bucket{code=\"418\",le=\"0.004\"} 1",
            "root_ca_cert_publisher_sync_duration_seconds_bucket{code=\"418\",le=\"+Inf\"} 2",
            "root_ca_cert_publisher_sync_duration_seconds_count{code=\"418\"} 2",
        ] {
            assert!(told.lines().any(|l| l == line), "{line} in {told}");
        }
        let names: Vec<&str> = FAMILIES.iter().map(|f| f.0).collect();
        assert!(names.is_sorted());
    }

    #[test]
    fn how_late_a_job_is() {
        let body =
            serde_json::json!({"metadata": {"annotations": {crate::cronjob::SCHEDULED_AT: "2026-01-01T00:00:00Z"}}});
        let create = What::Create { body };
        assert_eq!(due("cronjob-controller", &create), "2026-01-01T00:00:00Z".parse().ok());
        assert_eq!(due("job-controller", &create), None);
    }
}
