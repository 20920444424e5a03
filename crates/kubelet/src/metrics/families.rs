//! The families the agent counts.

use super::Family;

/// Prometheus' usual bounds.
const USUAL: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Of calls to the engine: from 5 ms, by 2.5.
const OF_CALLS: &[f64] = &[
    0.005,
    0.0125,
    0.03125,
    0.078125,
    0.1953125,
    0.48828125,
    1.220703125,
    3.0517578125,
    7.62939453125,
    19.073486328125,
    47.6837158203125,
    119.20928955078125,
    298.0232238769531,
    745.0580596923828,
];
/// Of a pod's start, from a fifth of a second to an hour.
const OF_STARTS: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
const OF_STATUSES: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];

macro_rules! families {
    ($all:ident: $($name:ident = $wire:literal [$($label:literal),*] $bounds:expr, $help:literal;)*) => {
        $(#[doc = $help] pub static $name: Family =
            Family { name: $wire, help: $help, labels: &[$($label),*], bounds: $bounds };)*
        /// All of them, as they are told.
        pub static $all: [&Family; [$(stringify!($name)),*].len()] = [$(&$name),*];
    };
}

families! { ALL:
    CPU_PINNING_REQUESTS = "kubelet_cpu_manager_pinning_requests_total" [] &[], "Containers that asked for processors of their own.";
    CPU_PINNING_ERRORS = "kubelet_cpu_manager_pinning_errors_total" [] &[], "Of these, those that could not have them.";
    EVICTIONS = "kubelet_evictions" ["eviction_signal"] &[], "Pods evicted, by the signal that was too low.";
    HTTP_REQUESTS = "kubelet_http_requests_total" ["long_running", "method", "path", "server_type"] &[], "Requests the node API was asked.";
    HTTP_DURATION = "kubelet_http_requests_duration_seconds" ["long_running", "method", "path", "server_type"] USUAL, "How long the node API took to answer, streams to their end not counted.";
    POD_START = "kubelet_pod_start_duration_seconds" [] OF_STARTS, "From the first sight of a pod to its running.";
    POD_START_TOTAL = "kubelet_pod_start_total_duration_seconds" [] OF_STARTS, "From a pod's creation to its running, pulls and init containers included.";
    POD_STATUS_SYNC = "kubelet_pod_status_sync_duration_seconds" [] OF_STATUSES, "From a change of a pod's status to its being written.";
    POD_WORKER = "kubelet_pod_worker_duration_seconds" ["operation_type"] USUAL, "How long one round of a pod's worker takes, by what it is for.";
    POD_WORKER_START = "kubelet_pod_worker_start_duration_seconds" [] USUAL, "From the sight of a pod to its worker's start.";
    PREEMPTIONS = "kubelet_preemptions" ["preemption_signal"] &[], "Pods ended to make room for a critical one, by what was short.";
    RUN_SANDBOX = "kubelet_run_podsandbox_duration_seconds" ["runtime_handler"] USUAL, "How long sandboxes take, by the handler of their runtime class.";
    RUN_SANDBOX_ERRORS = "kubelet_run_podsandbox_errors_total" ["runtime_handler"] &[], "Sandboxes that could not be made, by the handler of their runtime class.";
    CALLS = "kubelet_runtime_operations_total" ["operation_type"] &[], "Calls to the container engine.";
    CALL_DURATION = "kubelet_runtime_operations_duration_seconds" ["operation_type"] OF_CALLS, "How long calls to the container engine take.";
    CALL_ERRORS = "kubelet_runtime_operations_errors_total" ["operation_type"] &[], "Calls to the container engine that failed.";
    STARTED_CONTAINERS = "kubelet_started_containers_total" ["container_type"] &[], "Containers that were to be started.";
    STARTED_CONTAINERS_ERRORS = "kubelet_started_containers_errors_total" ["code", "container_type"] &[], "Of these, those that could not be.";
    STARTED_PODS = "kubelet_started_pods_total" [] &[], "Pods whose sandbox was to be made.";
    STARTED_PODS_ERRORS = "kubelet_started_pods_errors_total" [] &[], "Of these, those whose could not be.";
    TOPOLOGY_REQUESTS = "kubelet_topology_manager_admission_requests_total" [] &[], "Pods whose resources had to lie together.";
    TOPOLOGY_ERRORS = "kubelet_topology_manager_admission_errors_total" [] &[], "Of these, those refused because theirs do not.";
}

families! { PROBES:
    PROBE_RESULTS = "prober_probe_total" ["container", "namespace", "pod", "pod_uid", "probe_type", "result"] &[], "Answers of containers' probes, by result.";
    PROBE_DURATION = "prober_probe_duration_seconds" ["container", "namespace", "pod", "probe_type"] USUAL, "How long containers' probes take.";
}

families! { SLIS:
    HEALTH_CHECKS = "kubernetes_healthchecks_total" ["name", "status", "type"] &[], "[STABLE] Health checks by name, type and outcome.";
}
