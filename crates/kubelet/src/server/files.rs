//! `/logs` (files below the log directory) and `/configz`.

use std::path::Path;

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Body, full, text};
use crate::config::Config;

/// Bytes of a file served; larger ones are cut, the end being what matters.
const MAX_FILE: u64 = 8 << 20;

/// A file, or a directory's entries.
pub fn logs(root: &Path, parts: &[&str]) -> Response<Body> {
    let mut path = root.to_path_buf();
    path.extend(parts.iter().filter(|p| !p.is_empty()));
    let (Ok(root), Ok(path)) = (root.canonicalize(), path.canonicalize()) else {
        return text(StatusCode::NOT_FOUND, "404 page not found");
    };
    if !path.starts_with(&root) {
        return text(StatusCode::FORBIDDEN, "outside the log directory");
    }
    if path.is_dir() {
        let mut names: Vec<String> = std::fs::read_dir(&path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| {
                let name = e.file_name().to_string_lossy().into_owned();
                if e.path().is_dir() { format!("{name}/") } else { name }
            })
            .collect();
        names.sort();
        let lines: String = names.iter().map(|n| format!("<a href=\"{n}\">{n}</a>\n")).collect();
        let mut response = Response::new(full(format!("<pre>\n{lines}</pre>\n")));
        response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/html; charset=utf-8"));
        return response;
    }
    use std::io::{Read, Seek, SeekFrom};
    let read = std::fs::File::open(&path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MAX_FILE)))?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    match read {
        Ok(bytes) => Response::new(full(bytes)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn thresholds(config: &Config, soft: bool) -> Value {
    let of = config.eviction.thresholds.iter().filter(|t| t.grace.is_some() == soft);
    of.map(|t| (t.signal.as_str().to_string(), Value::from(t.amount.shown()))).collect::<serde_json::Map<_, _>>().into()
}

/// The configuration in upstream's shape, as far as it has one.
pub fn configz(config: &Config) -> Value {
    let seconds = |d: std::time::Duration| format!("{}s", d.as_secs());
    json!({"kubeletconfig": {
        "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "address": config.listen.ip(), "port": config.listen.port(),
        "staticPodPath": config.static_pod_path,
        "clusterDomain": config.cluster_domain, "clusterDNS": config.cluster_dns,
        "nodeStatusUpdateFrequency": seconds(config.status_update), "nodeStatusReportFrequency": seconds(config.status_report),
        "nodeLeaseDurationSeconds": config.lease_duration.as_secs(),
        "imageGCHighThresholdPercent": config.image_gc.as_ref().map_or(100, |g| g.high_percent),
        "imageGCLowThresholdPercent": config.image_gc.as_ref().map_or(100, |g| g.low_percent),
        "cgroupRoot": config.cgroup_root, "cgroupsPerQOS": config.cgroups_per_qos, "cgroupDriver": "cgroupfs",
        "maxPods": config.max_pods, "podPidsLimit": config.pod_pids_limit.unwrap_or(-1), "podCIDR": config.pod_cidr,
        "resolvConf": config.resolv_conf, "seccompDefault": config.seccomp_default,
        "containerLogMaxSize": config.container_log_max_size.to_string(), "containerLogMaxFiles": config.container_log_max_files,
        "containerRuntimeEndpoint": config.cri_endpoint,
        "evictionHard": thresholds(config, false), "evictionSoft": thresholds(config, true),
        "evictionPressureTransitionPeriod": seconds(config.eviction.pressure_transition),
        "evictionMaxPodGracePeriod": config.eviction.max_pod_grace.as_secs(),
        "rotateCertificates": config.rotate_certificates, "serverTLSBootstrap": config.server_tls_bootstrap,
        "failSwapOn": config.fail_swap_on, "maxParallelImagePulls": config.parallel_pulls,
        "enableDebuggingHandlers": config.debugging_handlers,
        "crashLoopBackOff": {"maxContainerRestartPeriod": format!("{}s", config.max_restart_back_off.as_secs())},
        "shutdownGracePeriodByPodPriority": config.shutdown.iter().map(|s| json!({
            "priority": s.priority, "shutdownGracePeriodSeconds": s.grace.as_secs()})).collect::<Vec<_>>(),
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true}},
        "authorization": {"mode": "Webhook"},
    }})
}
