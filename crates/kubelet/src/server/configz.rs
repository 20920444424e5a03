//! `/configz`: the configuration in upstream's shape, as far as it has one.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::config::Config;

fn seconds(time: Duration) -> String {
    format!("{}s", time.as_secs())
}

fn thresholds(config: &Config, soft: bool) -> Value {
    let of = config.eviction.thresholds.iter().filter(|t| t.grace.is_some() == soft);
    of.map(|t| (t.signal.as_str().to_string(), Value::from(t.amount.shown()))).collect::<Map<_, _>>().into()
}

fn server(config: &Config) -> Value {
    json!({
        "address": config.listen.ip(),
        "port": config.listen.port(),
        "enableServer": config.serve,
        "readOnlyPort": config.read_only.map_or(0, |a| a.port()),
        "healthzPort": config.healthz.map_or(0, |a| a.port()),
        "rotateCertificates": config.rotate_certificates,
        "serverTLSBootstrap": config.server_tls_bootstrap,
        "enableDebuggingHandlers": config.debugging_handlers,
        "enableSystemLogHandler": config.system_logs,
        "enableSystemLogQuery": config.system_log_query,
        "authentication": {
            "anonymous": {"enabled": config.auth.anonymous},
            "webhook": {"enabled": config.auth.tokens, "cacheTTL": seconds(config.auth.token_for)},
            "x509": {"clientCAFile": config.client_ca},
        },
        "authorization": {
            "mode": if config.auth.everything { "AlwaysAllow" } else { "Webhook" },
            "webhook": {"cacheAuthorizedTTL": seconds(config.auth.allowed_for), "cacheUnauthorizedTTL": seconds(config.auth.denied_for)},
        },
    })
}

fn pods(config: &Config) -> Value {
    json!({
        "staticPodPath": config.static_pod_path,
        "podLogsDir": config.pod_logs,
        "clusterDomain": config.cluster_domain,
        "clusterDNS": config.cluster_dns,
        "resolvConf": config.resolv_conf,
        "maxPods": config.max_pods,
        "podPidsLimit": config.pod_pids_limit.unwrap_or(-1),
        "podCIDR": config.pod_cidr,
        "seccompDefault": config.seccomp_default,
        "allowedUnsafeSysctls": config.allowed_unsafe_sysctls,
        "userNamespaces": {"idsPerPod": config.ids_per_pod},
        "containerLogMaxSize": config.container_logs.max_size.to_string(),
        "containerLogMaxFiles": config.container_logs.max_files,
        "containerLogMaxWorkers": config.container_logs.workers,
        "containerLogMonitorInterval": seconds(config.container_logs.every),
        "crashLoopBackOff": {"maxContainerRestartPeriod": format!("{}s", config.max_restart_back_off.as_secs())},
    })
}

fn machine(config: &Config) -> Value {
    json!({
        "cgroupRoot": config.cgroup_root,
        "cgroupsPerQOS": config.cgroups_per_qos,
        "cgroupDriver": "cgroupfs",
        "cpuManagerPolicy": if config.exclusive_processors { "static" } else { "none" },
        "cpuCFSQuota": config.cpu_quota,
        "cpuCFSQuotaPeriod": format!("{}ms", config.cpu_period.as_millis()),
        "failSwapOn": config.fail_swap_on,
        "memorySwap": {"swapBehavior": if config.memory.swap { "LimitedSwap" } else { "NoSwap" }},
        "containerRuntimeEndpoint": config.cri_endpoint,
        "imageServiceEndpoint": config.image_endpoint,
        "evictionHard": thresholds(config, false),
        "evictionSoft": thresholds(config, true),
        "evictionPressureTransitionPeriod": seconds(config.eviction.pressure_transition),
        "evictionMaxPodGracePeriod": config.eviction.max_pod_grace.as_secs(),
        "localStorageCapacityIsolation": config.local_storage,
        "shutdownGracePeriodByPodPriority": config.shutdown.iter().map(|s| json!({
            "priority": s.priority, "shutdownGracePeriodSeconds": s.grace.as_secs()})).collect::<Vec<_>>(),
    })
}

fn node(config: &Config) -> Value {
    let images = config.image_gc.as_ref();
    json!({
        "nodeStatusUpdateFrequency": seconds(config.status_update),
        "nodeStatusReportFrequency": seconds(config.status_report),
        "nodeLeaseDurationSeconds": config.lease_duration.as_secs(),
        "nodeStatusMaxImages": config.reported_images.map_or(-1, |n| n as i64),
        "registerNode": config.register_node,
        "providerID": config.provider_id,
        "imageGCHighThresholdPercent": images.map_or(100, |g| g.high_percent),
        "imageGCLowThresholdPercent": images.map_or(100, |g| g.low_percent),
        "imageMinimumGCAge": images.map(|g| seconds(g.min_age)),
        "imageMaximumGCAge": images.map(|g| seconds(g.max_age.unwrap_or_default())),
        "imagePullCredentialsVerificationPolicy": config.image_verification.name(),
        "serializeImagePulls": config.parallel_pulls == 1,
        "maxParallelImagePulls": Some(config.parallel_pulls).filter(|n| *n < Semaphore::MAX_PERMITS),
    })
}

/// What is answered.
pub fn configz(config: &Config) -> Value {
    let mut whole: Map<String, Value> =
        [("kind", "KubeletConfiguration"), ("apiVersion", "kubelet.config.k8s.io/v1beta1")]
            .map(|(name, text)| (name.to_string(), Value::from(text)))
            .into_iter()
            .collect();
    for part in [server(config), pods(config), machine(config), node(config)] {
        if let Value::Object(part) = part {
            whole.extend(part);
        }
    }
    json!({"kubeletconfig": whole})
}
