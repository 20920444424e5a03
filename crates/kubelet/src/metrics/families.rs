//! The families the agent counts.

use super::Family;
use super::Kind::{Counter, Gauge, Histogram};

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
/// Of what storage does, CSI drivers included.
const OF_STORAGE: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];
const OF_PULLS: &[f64] = &[
    1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0,
    3600.0,
];
/// Of containers in a pod.
const OF_PODS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0];
/// Of judgements, in milliseconds: from a twentieth, by 2.
const OF_JUDGEMENTS: &[f64] = &[0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6, 819.2];

macro_rules! families {
    ($all:ident: $($name:ident = $wire:literal [$($label:literal),*] $kind:expr, $help:literal;)*) => {
        $(#[doc = $help] pub static $name: Family =
            Family { name: $wire, help: $help, labels: &[$($label),*], kind: $kind };)*
        /// All of them, as they are told.
        pub static $all: [&Family; [$(stringify!($name)),*].len()] = [$(&$name),*];
    };
}

families! { ALL:
    CPU_PINNING_REQUESTS = "kubelet_cpu_manager_pinning_requests_total" [] Counter, "Containers that asked for processors of their own.";
    CPU_PINNING_ERRORS = "kubelet_cpu_manager_pinning_errors_total" [] Counter, "Of these, those that could not have them.";
    EVICTIONS = "kubelet_evictions" ["eviction_signal"] Counter, "Pods evicted, by the signal that was too low.";
    HTTP_REQUESTS = "kubelet_http_requests_total" ["long_running", "method", "path", "server_type"] Counter, "Requests the node API was asked.";
    HTTP_DURATION = "kubelet_http_requests_duration_seconds" ["long_running", "method", "path", "server_type"] Histogram(USUAL), "How long the node API took to answer, streams to their end not counted.";
    POD_START = "kubelet_pod_start_duration_seconds" [] Histogram(OF_STARTS), "From the first sight of a pod to its running.";
    POD_START_TOTAL = "kubelet_pod_start_total_duration_seconds" [] Histogram(OF_STARTS), "From a pod's creation to its running, pulls and init containers included.";
    POD_STATUS_SYNC = "kubelet_pod_status_sync_duration_seconds" [] Histogram(OF_STATUSES), "From a change of a pod's status to its being written.";
    POD_WORKER = "kubelet_pod_worker_duration_seconds" ["operation_type"] Histogram(USUAL), "How long one round of a pod's worker takes, by what it is for.";
    POD_WORKER_START = "kubelet_pod_worker_start_duration_seconds" [] Histogram(USUAL), "From the sight of a pod to its worker's start.";
    PREEMPTIONS = "kubelet_preemptions" ["preemption_signal"] Counter, "Pods ended to make room for a critical one, by what was short.";
    RUN_SANDBOX = "kubelet_run_podsandbox_duration_seconds" ["runtime_handler"] Histogram(USUAL), "How long sandboxes take, by the handler of their runtime class.";
    RUN_SANDBOX_ERRORS = "kubelet_run_podsandbox_errors_total" ["runtime_handler"] Counter, "Sandboxes that could not be made, by the handler of their runtime class.";
    CALLS = "kubelet_runtime_operations_total" ["operation_type"] Counter, "Calls to the container engine.";
    CALL_DURATION = "kubelet_runtime_operations_duration_seconds" ["operation_type"] Histogram(OF_CALLS), "How long calls to the container engine take.";
    CALL_ERRORS = "kubelet_runtime_operations_errors_total" ["operation_type"] Counter, "Calls to the container engine that failed.";
    STARTED_CONTAINERS = "kubelet_started_containers_total" ["container_type"] Counter, "Containers that were to be started.";
    STARTED_CONTAINERS_ERRORS = "kubelet_started_containers_errors_total" ["code", "container_type"] Counter, "Of these, those that could not be.";
    STARTED_PODS = "kubelet_started_pods_total" [] Counter, "Pods whose sandbox was to be made.";
    STARTED_PODS_ERRORS = "kubelet_started_pods_errors_total" [] Counter, "Of these, those whose could not be.";
    TOPOLOGY_REQUESTS = "kubelet_topology_manager_admission_requests_total" [] Counter, "Pods whose resources had to lie together.";
    TOPOLOGY_ERRORS = "kubelet_topology_manager_admission_errors_total" [] Counter, "Of these, those refused because theirs do not.";
    ADMISSION_REJECTIONS = "kubelet_admission_rejections_total" ["reason"] Counter, "Pods that were not taken, by reason.";
    CGROUPS = "kubelet_cgroup_manager_duration_seconds" ["operation_type"] Histogram(USUAL), "How long pods' cgroups take, by what is done to them.";
    CONTAINERS_OF_PODS = "kubelet_containers_per_pod_count" [] Histogram(OF_PODS), "Containers of each pod that came.";
    CREDENTIALS_ERRORS = "kubelet_credential_provider_plugin_errors" ["plugin_name"] Counter, "Credential providers that failed, by name.";
    CSI_OPERATIONS = "csi_operations_seconds" ["driver_name", "grpc_status_code", "method_name", "migrated"] Histogram(OF_STORAGE), "How long drivers of volumes take, by call and answer.";
    DEVICE_PLUGINS = "kubelet_device_plugin_registration_total" ["resource_name"] Counter, "Device plugins that registered, by resource.";
    DEVICE_PLUGIN_ALLOCATIONS = "kubelet_device_plugin_alloc_duration_seconds" ["resource_name"] Histogram(USUAL), "How long device plugins take to give devices, by resource.";
    DRA = "dra_operations_duration_seconds" ["is_error", "operation_name"] Histogram(OF_STORAGE), "How long a pod's claims take, by what is done to them.";
    EVENTED_FAILED = "kubelet_evented_pleg_connection_error_count" [] Counter, "Streams of the engine's events that could not be had or broke off.";
    EVENTED_OPENED = "kubelet_evented_pleg_connection_success_count" [] Counter, "Streams of the engine's events that were had.";
    EVENTED_LATENCY = "kubelet_evented_pleg_connection_latency_seconds" [] Histogram(USUAL), "From an event in the engine to its arrival.";
    EVICTION_STATS_AGE = "kubelet_eviction_stats_age_seconds" ["eviction_signal"] Histogram(USUAL), "From a look at the node to the eviction it caused.";
    HTTP_INFLIGHT = "kubelet_http_inflight_requests" ["long_running", "method", "path", "server_type"] Gauge, "Requests the node API is answering.";
    IMAGES_COLLECTED = "kubelet_image_garbage_collected_total" ["reason"] Counter, "Unused images that were removed, for space or for age.";
    IMAGE_PULLS = "kubelet_image_pull_duration_seconds" ["image_size_in_bytes"] Histogram(OF_PULLS), "How long pulls take, by the image's size.";
    IMAGE_VOLUMES = "kubelet_image_volume_requested_total" [] Counter, "Image volumes that were asked for.";
    IMAGE_VOLUMES_MOUNTED = "kubelet_image_volume_mounted_succeed_total" [] Counter, "Of these, those that were had.";
    IMAGE_VOLUMES_ERRORS = "kubelet_image_volume_mounted_errors_total" [] Counter, "Of these, those that could not be.";
    HOOKS_ASLEEP = "kubelet_lifecycle_handler_sleep_terminated_total" [] Counter, "Hooks that slept longer than their pod's grace.";
    MEMORY_PINNING_REQUESTS = "kubelet_memory_manager_pinning_requests_total" [] Counter, "Pods that were to have memory of certain nodes.";
    MEMORY_PINNING_ERRORS = "kubelet_memory_manager_pinning_errors_total" [] Counter, "Of these, those that could not have it.";
    ORPHANED_PODS = "kubelet_orphaned_runtime_pods_total" [] Counter, "Pods in the engine that nobody here knew.";
    ORPHANED_VOLUMES = "kubelet_orphan_pod_cleaned_volumes" [] Gauge, "Directories of pods nobody knew that were removed at the last look.";
    ORPHANED_VOLUMES_ERRORS = "kubelet_orphan_pod_cleaned_volumes_errors" [] Gauge, "Of these, those that could not be.";
    PLEG_DISCARDED = "kubelet_pleg_discard_events" [] Counter, "Events of the engine that were dropped.";
    PLEG_SEEN = "kubelet_pleg_last_seen_seconds" [] Gauge, "When the engine was last heard or looked at, since 1970.";
    PLEG_RELIST = "kubelet_pleg_relist_duration_seconds" [] Histogram(USUAL), "How long a look at all of the engine's pods takes.";
    PLEG_INTERVAL = "kubelet_pleg_relist_interval_seconds" [] Histogram(USUAL), "From one such look to the next.";
    POD_RESOURCES_ALLOCATABLE = "kubelet_pod_resources_endpoint_requests_get_allocatable" ["server_api_version"] Counter, "Questions for what can be given of devices, processors and memory.";
    POD_RESOURCES_GET = "kubelet_pod_resources_endpoint_requests_get" ["server_api_version"] Counter, "Questions for one pod's devices, processors and memory.";
    POD_RESOURCES_GET_ERRORS = "kubelet_pod_resources_endpoint_errors_get" ["server_api_version"] Counter, "Of these, those about a pod that is not here.";
    POD_RESOURCES_LIST = "kubelet_pod_resources_endpoint_requests_list" ["server_api_version"] Counter, "Questions for all pods' devices, processors and memory.";
    POD_RESOURCES_REQUESTS = "kubelet_pod_resources_endpoint_requests_total" ["server_api_version"] Counter, "Questions at the pod resources endpoint.";
    POD_START_SLI = "kubelet_pod_start_sli_duration_seconds" [] Histogram(OF_STARTS), "From a pod's creation to its running, without pulls and init containers.";
    RESIZES_INFEASIBLE = "kubelet_pod_infeasible_resizes_total" ["reason_detail"] Counter, "Wishes for other resources of running pods that the node can never grant, by why.";
    SHUTDOWN_BEGAN = "kubelet_graceful_shutdown_start_time_seconds" [] Gauge, "When the node's end began, since 1970.";
    SHUTDOWN_ENDED = "kubelet_graceful_shutdown_end_time_seconds" [] Gauge, "When its pods were ended, since 1970.";
    STARTED_USER_NAMESPACES = "kubelet_started_user_namespaced_pods_total" [] Counter, "Pods with users of their own whose sandbox was to be made.";
    STARTED_USER_NAMESPACES_ERRORS = "kubelet_started_user_namespaced_pods_errors_total" [] Counter, "Of these, those whose could not be.";
    STORAGE = "storage_operation_duration_seconds" ["migrated", "operation_name", "status", "volume_plugin"] Histogram(OF_STORAGE), "How long volumes take, by what is done to them, outcome and kind.";
    TOPOLOGY_DURATION = "kubelet_topology_manager_admission_duration_ms" [] Histogram(OF_JUDGEMENTS), "How long it takes to find where a pod's resources lie, in milliseconds.";
    VOLUME_LOOKS = "kubelet_volume_metric_collection_duration_seconds" ["metric_source"] Histogram(USUAL), "How long it takes to see how full volumes are.";
}

families! { PROBES:
    PROBE_RESULTS = "prober_probe_total" ["container", "namespace", "pod", "pod_uid", "probe_type", "result"] Counter, "Answers of containers' probes, by result.";
    PROBE_DURATION = "prober_probe_duration_seconds" ["container", "namespace", "pod", "probe_type"] Histogram(USUAL), "How long containers' probes take.";
}

families! { SLIS:
    HEALTH_CHECKS = "kubernetes_healthchecks_total" ["name", "status", "type"] Counter, "[STABLE] Health checks by name, type and outcome.";
}
