//! Paths that are not resources: version, discovery, OpenAPI, token keys, and the way to those with rooms of their own.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, Response, header};
use meta::{Status, Value};
use serde::Serialize;
use serde_json::json;

use super::{Body, full, health, metrics, zpages};
use crate::discovery;
use crate::server::ApiServer;

/// The Kubernetes version this server speaks.
pub const MAJOR: &str = "1";
pub const MINOR: &str = "37";
pub const GIT_VERSION: &str = "v1.37.0";
/// Clients expect one.
pub const GO_VERSION: &str = "go1.25.0";

/// What there is besides APIs and health checks, in order.
const PLAIN: [&str; 10] = [
    "/.well-known/openid-configuration",
    "/flagz",
    "/metrics",
    "/metrics/slis",
    "/openapi/v2",
    "/openapi/v3",
    "/openapi/v3/",
    "/openid/v1/jwks",
    "/statusz",
    "/version",
];

/// The commit this was built from; zeroes where the builder did not say.
const COMMIT: &str = match option_env!("NAUPLIUS_COMMIT") {
    Some(commit) => commit,
    None => "0000000000000000000000000000000000000000",
};

/// The text exposition format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

const AGGREGATED: &str = "g=apidiscovery.k8s.io";

/// Trees and the documents served here always encode.
pub fn json_response(value: &impl Serialize) -> Response<Body> {
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    with_type(text, "application/json")
}

pub fn with_type(text: impl Into<bytes::Bytes>, content_type: &'static str) -> Response<Body> {
    let mut response = Response::new(full(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// JSON for people.
fn indented(value: &Value) -> Response<Body> {
    with_type(format!("{value:#}"), "application/json")
}

/// Keys and their whereabouts change rarely.
fn kept(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    response
}

/// Every path below which something is.
fn index(catalog: &crate::catalog::Catalog, services: &crate::aggregation::Services) -> Value {
    let mut paths: Vec<String> = ["/api", "/api/v1", "/apis", "/apis/"].map(String::from).into();
    for (group, versions) in services.groups(catalog).into_iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    paths.extend(health::paths());
    paths.extend(PLAIN.map(String::from));
    paths.sort();
    json!({"paths": paths})
}

/// Answers; `ending` once the server means to stop.
pub async fn serve(server: &Arc<ApiServer>, parts: &Parts, ending: bool) -> Result<Response<Body>, Status> {
    let accept = parts.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let path = parts.uri.path().trim_end_matches('/');
    let segments: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').collect();
    // Checks and numbers are at one path each.
    if parts.uri.path().ends_with('/') && matches!(segments[0], "healthz" | "livez" | "readyz" | "metrics") {
        return Ok(not_found());
    }
    let (catalog, services) = (server.catalog(), server.aggregation().services());
    let aggregated = |core| {
        let body = discovery::aggregated(&catalog, &services, core).map_err(Status::internal)?;
        Ok(with_type(body, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"))
    };
    let wants_aggregated = accept
        .split(',')
        .any(|clause| clause.contains(AGGREGATED) && clause.contains("v=v2") && !clause.contains("v2beta1"));
    match &segments[..] {
        [""] => Ok(indented(&index(&catalog, &services))),
        [asker @ ("healthz" | "livez" | "readyz"), check @ ..] => {
            let query = parts.uri.query().unwrap_or_default();
            Ok(health::serve(server, asker, &check.join("/"), query, ending).await.unwrap_or_else(not_found))
        }
        ["version"] => Ok(indented(&version())),
        ["api"] if wants_aggregated => aggregated(true),
        ["api"] => Ok(json_response(&discovery::core_versions(&server.config().advertise.to_string()))),
        ["apis"] if wants_aggregated => aggregated(false),
        ["apis"] => Ok(json_response(&discovery::group_list(&catalog, &services))),
        ["apis", group] => {
            Ok(discovery::group(&catalog, &services, group).map_or_else(not_found, |v| json_response(&v)))
        }
        ["api", version] => {
            discovery::resource_list(&catalog, "", version).map(|v| json_response(&v)).ok_or_else(Status::unknown_path)
        }
        ["apis", group, version] => discovery::resource_list(&catalog, group, version)
            .map(|v| json_response(&v))
            .ok_or_else(Status::unknown_path),
        [".well-known", "openid-configuration"] => Ok(kept(json_response(&server.token_keys().openid_configuration()))),
        ["openid", "v1", "jwks"] => {
            Ok(kept(with_type(server.token_keys().jwks().to_string(), "application/jwk-set+json")))
        }
        ["openapi", rest @ ..] => server.openapi().serve(&catalog, &services, rest, parts),
        ["statusz"] => zpages::statusz(server, accept, &PLAIN),
        ["flagz"] => zpages::flagz(server, accept),
        ["metrics"] => Ok(with_type(metrics::render(server), METRICS)),
        ["metrics", "slis"] => Ok(with_type(client::health::slis(), METRICS)),
        _ => Ok(not_found()),
    }
}

/// There is nothing at a path: Go's own words.
fn not_found() -> Response<Body> {
    let mut response = with_type("404 page not found\n", "text/plain; charset=utf-8");
    *response.status_mut() = http::StatusCode::NOT_FOUND;
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub fn version() -> Value {
    json!({
        "major": MAJOR, "minor": MINOR, "gitVersion": GIT_VERSION, "gitCommit": COMMIT,
        "gitTreeState": "clean", "buildDate": "2026-08-01T00:00:00Z", "goVersion": GO_VERSION, "compiler": "gc", "platform": format!("linux/{}", platform()),
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
