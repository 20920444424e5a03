//! Paths that are not resources: health, version, discovery, OpenAPI, metrics, token keys.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, header};
use meta::{Status, Value};
use serde_json::json;

use super::{Body, full};
use crate::discovery;
use crate::server::ApiServer;

/// The Kubernetes version this server speaks.
pub const MAJOR: &str = "1";
pub const MINOR: &str = "37";
pub const GIT_VERSION: &str = "v1.37.0";

/// The commit this was built from; zeroes where the builder did not say.
const COMMIT: &str = match option_env!("NAUPLIUS_COMMIT") {
    Some(commit) => commit,
    None => "0000000000000000000000000000000000000000",
};

const AGGREGATED: &str = "g=apidiscovery.k8s.io";

/// Paths anyone may read, whatever RBAC says: none beyond what `system:public-info-viewer` grants.
pub fn is_public(_path: &str) -> bool {
    false
}

fn json_response(value: &Value) -> Response<Body> {
    with_type(value.to_string() + "\n", "application/json")
}

fn with_type(text: impl Into<bytes::Bytes>, content_type: &'static str) -> Response<Body> {
    let mut response = Response::new(full(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

pub fn serve(server: &Arc<ApiServer>, parts: &Parts) -> Result<Response<Body>, Status> {
    let accept = parts.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let path = parts.uri.path().trim_end_matches('/');
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (catalog, services) = (server.catalog(), server.aggregation().services());
    let aggregated = |core| {
        let body = discovery::aggregated(&catalog, &services, core).to_string();
        with_type(body, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
    };
    let wants_aggregated = accept
        .split(',')
        .any(|clause| clause.contains(AGGREGATED) && clause.contains("v=v2") && !clause.contains("v2beta1"));
    match &segments[..] {
        [""] => {
            let list = json!({"paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version"]});
            Ok(json_response(&list))
        }
        ["healthz" | "livez" | "readyz", check @ ..] => {
            Ok(health(server, segments[0], check, parts.uri.query().unwrap_or_default()))
        }
        ["version"] => Ok(json_response(&version())),
        ["api"] if wants_aggregated => Ok(aggregated(true)),
        ["api"] => Ok(json_response(&discovery::core_versions(&server.config().advertise.to_string()))),
        ["apis"] if wants_aggregated => Ok(aggregated(false)),
        ["apis"] => Ok(json_response(&discovery::group_list(&catalog, &services))),
        ["apis", group] => {
            discovery::group(&catalog, &services, group).map(|v| json_response(&v)).ok_or_else(Status::unknown_path)
        }
        ["api", version] => {
            discovery::resource_list(&catalog, "", version).map(|v| json_response(&v)).ok_or_else(Status::unknown_path)
        }
        ["apis", group, version] => discovery::resource_list(&catalog, group, version)
            .map(|v| json_response(&v))
            .ok_or_else(Status::unknown_path),
        [".well-known", "openid-configuration"] => Ok(json_response(&server.token_keys().openid_configuration())),
        ["openid", "v1", "jwks"] => Ok(with_type(server.token_keys().jwks().to_string(), "application/jwk-set+json")),
        ["openapi", rest @ ..] => server.openapi().serve(&catalog, &services, rest, parts),
        ["metrics"] => {
            let stored: Vec<(String, usize)> = catalog
                .kinds()
                .iter()
                .filter_map(|served| {
                    Some((
                        meta::names::group_resource(&served.resource.group, &served.resource.plural),
                        served.cache.as_ref()?.size().0,
                    ))
                })
                .collect();
            Ok(with_type(super::metrics::render(&stored), "text/plain; version=0.0.4; charset=utf-8"))
        }
        _ => Err(Status::unknown_path()),
    }
}

pub fn version() -> Value {
    json!({
        "major": MAJOR, "minor": MINOR, "gitVersion": GIT_VERSION, "gitCommit": COMMIT,
        "gitTreeState": "clean", "buildDate": "2026-08-01T00:00:00Z", "goVersion": "go1.25.0", "compiler": "gc", "platform": format!("linux/{}", platform()),
        "emulationMajor": MAJOR, "emulationMinor": MINOR, "minCompatibilityMajor": MAJOR, "minCompatibilityMinor": "36",
    })
}

fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn health(server: &ApiServer, which: &str, check: &[&str], query: &str) -> Response<Body> {
    let query: Vec<(String, String)> = super::route::pairs(query).collect();
    let excluded: Vec<&str> = query.iter().filter(|(k, _)| k == "exclude").map(|(_, v)| &**v).collect();
    // Answering at all is the ping; the caches answer for the store; bootstrap is the one thing that takes time.
    let checks = [
        ("ping", true),
        ("log", true),
        ("etcd", true),
        ("informer-sync", true),
        ("poststarthook/rbac/bootstrap-roles", server.is_ready()),
    ];
    let checks: Vec<_> = checks
        .into_iter()
        .filter(|(name, _)| (check.is_empty() || check.join("/") == *name) && !excluded.contains(name))
        .collect();
    if checks.is_empty() {
        let mut response = with_type("404 page not found\n", "text/plain; charset=utf-8");
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let fine = checks.iter().all(|(_, fine)| *fine);
    let verbose = query.iter().any(|(k, _)| k == "verbose");
    let text = if verbose || !fine {
        let mut text: String = checks
            .iter()
            .map(|(name, fine)| {
                format!(
                    "[{}]{name} {}\n",
                    if *fine { '+' } else { '-' },
                    if *fine { "ok" } else { "failed: not finished" }
                )
            })
            .collect();
        text += &format!("{which} check {}\n", if fine { "passed" } else { "failed" });
        text
    } else {
        "ok".to_string()
    };
    let mut response = with_type(text, "text/plain; charset=utf-8");
    if !fine {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    response
}
