//! `/statusz` and `/flagz`: what this agent is and how it was told to be, as text for people or, for programs that ask by
//! kind, as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use super::{Body, json_body, text};
use crate::config::Config;

const COMPONENT: &str = "kubelet";
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.";
/// The group of both kinds, and the versions of it that are told.
const GROUP: &str = "config.k8s.io";
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];
/// What else answers here, of what is asked without a name.
const PATHS: [&str; 14] = [
    "/checkpoint",
    "/configz",
    "/debug",
    "/flagz",
    "/healthz",
    "/logs",
    "/metrics",
    "/metrics/cadvisor",
    "/metrics/probes",
    "/metrics/resource",
    "/metrics/slis",
    "/pods",
    "/runningpods",
    "/stats",
];

/// The version of a kind that the client takes; none: text; an error when it takes neither.
fn wanted(accept: &str, kind: &str) -> Result<Option<&'static str>, ()> {
    let mut clauses = accept.split(',').map(str::trim).filter(|c| !c.is_empty()).peekable();
    if clauses.peek().is_none() {
        return Ok(None);
    }
    for clause in clauses {
        let mut parts = clause.split(';').map(str::trim);
        match parts.next().unwrap_or_default() {
            "*/*" | "text/*" | "text/plain" => return Ok(None),
            "application/json" => {
                let said: BTreeMap<&str, &str> = parts.filter_map(|part| part.split_once('=')).collect();
                let is = |key: &str, value: &str| said.get(key).is_some_and(|v| *v == value);
                if is("g", GROUP)
                    && is("as", kind)
                    && let Some(version) = VERSIONS.into_iter().find(|version| is("v", version))
                {
                    return Ok(Some(version));
                }
            }
            _ => {}
        }
    }
    Err(())
}

fn answer(headers: &HeaderMap, kind: &str, fields: Value, shown: impl FnOnce() -> String) -> Response<Body> {
    let accept = headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match wanted(accept, kind) {
        Ok(None) => text(StatusCode::OK, format!("\n{COMPONENT} {}\n{WARNING}\n\n{}", kind.to_lowercase(), shown())),
        Ok(Some(version)) => {
            let mut whole =
                json!({"kind": kind, "apiVersion": format!("{GROUP}/{version}"), "metadata": {"name": COMPONENT}});
            if let (Some(whole), Value::Object(fields)) = (whole.as_object_mut(), fields) {
                whole.extend(fields);
            }
            json_body(&whole)
        }
        Err(()) => text(
            StatusCode::NOT_ACCEPTABLE,
            "only the following media types are accepted: text/plain, application/json",
        ),
    }
}

/// Since when this runs, and what it is.
pub fn statusz(headers: &HeaderMap, config: &Config, up: Duration, now: jiff::Timestamp) -> Response<Body> {
    let version = config.version.trim_start_matches('v');
    let emulated = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
    let began = now.checked_sub(up).unwrap_or(now);
    let fields = json!({"startTime": began.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), "uptimeSeconds": up.as_secs(),
        "binaryVersion": version, "emulationVersion": emulated, "paths": PATHS});
    answer(headers, "Statusz", fields, || {
        let seconds = up.as_secs();
        format!(
            "Started: {}\nUp: {} hr {:02} min {:02} sec\nBinary version: {version}\nEmulation version: {emulated}\nPaths: {}\n",
            began.strftime("%a %b %e %H:%M:%S UTC %Y"),
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            PATHS.join(" ")
        )
    })
}

/// What upstream's flags would have to be for this configuration.
fn flags(config: &Config) -> BTreeMap<&'static str, String> {
    let path = |p: &Option<std::path::PathBuf>| p.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    let list = |l: &[std::net::IpAddr]| l.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let labels = config.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
    [
        ("address", config.listen.ip().to_string()),
        ("cgroup-root", config.cgroup_root.clone()),
        ("client-ca-file", path(&config.client_ca)),
        ("cluster-dns", list(&config.cluster_dns)),
        ("cluster-domain", config.cluster_domain.clone()),
        ("container-runtime-endpoint", config.cri_endpoint.clone()),
        ("fail-swap-on", config.fail_swap_on.to_string()),
        ("hostname-override", config.hostname.clone().unwrap_or_default()),
        ("image-service-endpoint", config.image_endpoint.clone().unwrap_or_default()),
        ("max-pods", config.max_pods.to_string()),
        ("node-ip", list(&config.node_ips)),
        ("node-labels", labels),
        ("pod-cidr", config.pod_cidr.clone().unwrap_or_default()),
        ("pod-manifest-path", path(&config.static_pod_path)),
        ("port", config.listen.port().to_string()),
        ("provider-id", config.provider_id.clone().unwrap_or_default()),
        ("register-node", config.register_node.to_string()),
        ("resolv-conf", config.resolv_conf.display().to_string()),
        ("root-dir", config.root_dir.display().to_string()),
        ("rotate-certificates", config.rotate_certificates.to_string()),
        ("seccomp-default", config.seccomp_default.to_string()),
    ]
    .into()
}

/// `/flagz`.
pub fn flagz(headers: &HeaderMap, config: &Config) -> Response<Body> {
    let flags = flags(config);
    answer(headers, "Flagz", json!({"flags": flags}), || {
        flags.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn shown(response: Response<Body>) -> String {
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        format!("{code} {}", String::from_utf8_lossy(&body))
    }

    #[tokio::test]
    async fn people_get_text_and_programs_a_kind() {
        let config = Config::new("n", "/r", "/s");
        let accepting = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("accept", accept.parse().unwrap());
            headers
        };
        let now = jiff::Timestamp::from_second(1_725_607_316).unwrap();
        let status = |accept: &str| shown(statusz(&accepting(accept), &config, Duration::from_secs(3725), now));
        let text = status("*/*").await;
        assert!(text.starts_with("200 \nkubelet statusz\nWarning: "), "{text}");
        assert!(text.contains("\nStarted: Fri Sep  6 06:19:51 UTC 2024\nUp: 1 hr 02 min 05 sec\n"), "{text}");
        let kind = status("application/json;v=v1beta1;g=config.k8s.io;as=Statusz").await;
        assert!(kind.contains("\"kind\":\"Statusz\"") && kind.contains("\"uptimeSeconds\":3725"), "{kind}");
        assert!(status("application/json").await.starts_with("406 "));
        let flags = shown(flagz(&HeaderMap::new(), &config)).await;
        assert!(flags.contains("\nport=10250\n") && flags.contains("\nroot-dir=/r\n"), "{flags}");
    }
}
