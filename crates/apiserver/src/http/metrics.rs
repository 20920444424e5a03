//! `/metrics`: requests counted and timed, and what this process is, under upstream's names.

use std::collections::HashMap;
use std::fmt::Write;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use http::{Method, Request, StatusCode, Uri, header};

use super::paths;
use crate::instruments::{self, LongRunning, SECONDS as BUCKETS};
use crate::server::ApiServer;

/// Most kinds of requests that are told apart; more than all resources, verbs and scopes of a large cluster.
const MAX_SERIES: usize = 20_000;

/// Requests being answered: those that write, and those that only read.
static IN_FLIGHT: [AtomicI64; 2] = [AtomicI64::new(0), AtomicI64::new(0)];
static HANDSHAKE_ERRORS: AtomicU64 = AtomicU64::new(0);

/// Requests alike: what is asked of what.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Asked<'p> {
    verb: &'static str,
    group: &'p str,
    version: &'p str,
    resource: &'p str,
    subresource: &'p str,
    scope: &'static str,
    dry_run: bool,
}

impl<'p> Asked<'p> {
    /// `None` for paths that are no resources.
    fn of(method: &Method, uri: &'p Uri, apply: bool) -> Option<Self> {
        let mut parts = uri.path().trim_matches('/').split('/').peekable();
        let (group, version) = match parts.next()? {
            "api" => ("", parts.next()?),
            "apis" => (parts.next()?, parts.next()?),
            _ => return None,
        };
        let old_watch = parts.next_if_eq(&"watch").is_some();
        let mut first = parts.next()?;
        let mut namespaced = false;
        let mut name = parts.next();
        let mut subresource = parts.next();
        if first == "namespaces" && subresource.is_some_and(|s| !matches!(s, "status" | "finalize")) {
            (namespaced, first) = (true, subresource?);
            (name, subresource) = (parts.next(), parts.next());
        }
        let subresource = subresource.unwrap_or_default();
        let query = uri.query().unwrap_or_default();
        let watch =
            old_watch || (query.contains("watch=") && !query.contains("watch=false") && !query.contains("watch=0"));
        let connects = matches!(subresource, "exec" | "attach" | "portforward" | "proxy") || subresource == "log";
        let verb = match (method.as_str(), name) {
            _ if connects => "CONNECT",
            ("GET" | "HEAD", None) if watch => "WATCH",
            ("GET" | "HEAD", Some(_)) if old_watch => "WATCH",
            ("GET" | "HEAD", None) => "LIST",
            ("GET" | "HEAD", Some(_)) => "GET",
            ("POST", _) => "POST",
            ("PUT", _) => "PUT",
            ("PATCH", _) => {
                if apply {
                    "APPLY"
                } else {
                    "PATCH"
                }
            }
            ("DELETE", None) => "DELETECOLLECTION",
            ("DELETE", Some(_)) => "DELETE",
            _ => "OTHER",
        };
        let scope = match (name.is_some() || verb == "POST", namespaced) {
            (true, _) => "resource",
            (false, true) => "namespace",
            (false, false) => "cluster",
        };
        let dry_run = query.contains("dryRun=All");
        Some(Self { verb, group, version, resource: first, subresource, scope, dry_run })
    }
}

struct Series {
    labels: String,
    /// Where the row is found that may be deprecated.
    group: String,
    version: String,
    resource: String,
    subresource: String,
    /// By status code.
    counts: Vec<(u16, u64)>,
    seconds: f64,
    buckets: [u64; BUCKETS.len()],
}

impl Asked<'_> {
    /// Before this stands what else a family tells apart.
    fn labels(&self, before: &str) -> String {
        let Asked { verb, group, version, resource, subresource, scope, .. } = self;
        format!(
            "component=\"apiserver\",{before}group=\"{group}\",resource=\"{resource}\",scope=\"{scope}\",subresource=\"{subresource}\",verb=\"{verb}\",version=\"{version}\""
        )
    }
}

impl Series {
    fn of(asked: &Asked<'_>) -> Self {
        let Asked { group, version, resource, subresource, dry_run, .. } = asked;
        let dry_run = if *dry_run { "All" } else { "" };
        Self {
            labels: asked.labels(&format!("dry_run=\"{dry_run}\",")),
            group: group.to_string(),
            version: version.to_string(),
            resource: resource.to_string(),
            subresource: subresource.to_string(),
            counts: Vec::new(),
            seconds: 0.0,
            buckets: [0; BUCKETS.len()],
        }
    }

    fn count(&self) -> u64 {
        self.counts.iter().map(|(_, n)| n).sum()
    }
}

/// By a hash of what was asked, so that a request that is known costs no memory.
static REQUESTS: LazyLock<(RandomState, Mutex<HashMap<u64, Series>>)> = LazyLock::new(Default::default);

/// A request on its way; counted when it is answered.
pub struct Observed {
    method: Method,
    uri: Uri,
    apply: bool,
    began: std::time::Instant,
}

impl Observed {
    pub fn begin<B>(request: &Request<B>) -> Self {
        let content_type = request.headers().get(header::CONTENT_TYPE).map(|v| v.as_bytes());
        let observed = Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            apply: content_type.is_some_and(|t| t.starts_with(b"application/apply-patch")),
            began: std::time::Instant::now(),
        };
        observed.in_flight().fetch_add(1, Ordering::Relaxed);
        observed
    }

    fn in_flight(&self) -> &'static AtomicI64 {
        &IN_FLIGHT[usize::from(matches!(self.method, Method::GET | Method::HEAD))]
    }

    /// Counts the request until its answer ends, if that goes on.
    pub fn long_running(&self) -> Option<Arc<LongRunning>> {
        let (path, query) = (self.uri.path(), self.uri.query().unwrap_or_default());
        // A glance that spares most requests a closer look.
        let connects = ["/log", "/exec", "/attach", "/portforward"].iter().any(|end| path.ends_with(end));
        if !connects && !query.contains("watch=") && !path.contains("/watch/") && !path.contains("/proxy") {
            return None;
        }
        let asked = Asked::of(&self.method, &self.uri, self.apply)?;
        matches!(asked.verb, "WATCH" | "CONNECT").then(|| Arc::new(LongRunning::begin(asked.labels(""))))
    }

    pub fn method(&self) -> &Method {
        &self.method
    }

    pub fn path(&self) -> &str {
        self.uri.path()
    }

    pub fn took(&self) -> Duration {
        self.began.elapsed()
    }

    pub fn end(&self, code: StatusCode) {
        // A path that named nothing must not grow the table.
        if code == StatusCode::NOT_FOUND || code == StatusCode::FORBIDDEN {
            return;
        }
        let Some(asked) = Asked::of(&self.method, &self.uri, self.apply) else { return };
        let (hasher, requests) = &*REQUESTS;
        let key = hasher.hash_one(asked);
        let mut requests = requests.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if requests.len() >= MAX_SERIES && !requests.contains_key(&key) {
            return;
        }
        let series = requests.entry(key).or_insert_with(|| Series::of(&asked));
        let seconds = self.took().as_secs_f64();
        series.seconds += seconds;
        if let Some(at) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            series.buckets[at] += 1;
        }
        match series.counts.iter_mut().find(|(known, _)| *known == code.as_u16()) {
            Some((_, count)) => *count += 1,
            None => series.counts.push((code.as_u16(), 1)),
        }
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        self.in_flight().fetch_sub(1, Ordering::Relaxed);
    }
}

pub fn handshake_failed() {
    HANDSHAKE_ERRORS.fetch_add(1, Ordering::Relaxed);
}

/// The text exposition format, being written.
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = self.0.write_fmt(text);
        self.0.push('\n');
    }

    fn requests(&mut self, server: &ApiServer) {
        let requests = REQUESTS.1.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut all: Vec<&Series> = requests.values().collect();
        all.sort_by(|a, b| a.labels.cmp(&b.labels));
        self.head(
            "apiserver_request_total",
            "counter",
            "[STABLE] Requests by what was asked of what, and how it was answered.",
        );
        for series in &all {
            for (code, count) in &series.counts {
                self.line(format_args!("apiserver_request_total{{code=\"{code}\",{}}} {count}", series.labels));
            }
        }
        let name = "apiserver_request_duration_seconds";
        self.head(name, "histogram", "[STABLE] Seconds until the answer began.");
        for series in &all {
            let (labels, count) = (&series.labels, series.count());
            let mut total = 0;
            for (bound, within) in BUCKETS.iter().zip(series.buckets) {
                total += within;
                self.line(format_args!("{name}_bucket{{{labels},le=\"{bound}\"}} {total}"));
            }
            self.line(format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {count}"));
            self.line(format_args!("{name}_sum{{{labels}}} {}", series.seconds));
            self.line(format_args!("{name}_count{{{labels}}} {count}"));
        }
        let name = "apiserver_requested_deprecated_apis";
        self.head(name, "gauge", "[STABLE] Deprecated APIs that were asked for, and the release that lacks them.");
        let catalog = server.catalog();
        let mut told: Vec<String> = Vec::new();
        for Series { group, version, resource, subresource, .. } in &all {
            let Some((served, at)) = catalog.get(&meta::Gvr::new(group, version, resource)) else { continue };
            let of = &served.resource.versions[at];
            if of.deprecation.is_none() {
                continue;
            }
            let removed = of.removed_release().unwrap_or_default();
            told.push(format!(
                "{name}{{group=\"{group}\",removed_release=\"{removed}\",resource=\"{resource}\",subresource=\"{subresource}\",version=\"{version}\"}} 1"
            ));
        }
        told.sort();
        told.dedup();
        told.iter().for_each(|line| self.line(format_args!("{line}")));
    }

    fn server(&mut self, server: &ApiServer) {
        let name = "apiserver_current_inflight_requests";
        self.head(name, "gauge", "[STABLE] Requests being answered.");
        for (kind, count) in ["mutating", "readOnly"].iter().zip(&IN_FLIGHT) {
            self.line(format_args!("{name}{{request_kind=\"{kind}\"}} {}", count.load(Ordering::Relaxed)));
        }
        self.head("apiserver_tls_handshake_errors_total", "counter", "[ALPHA] Connections that never got to speak.");
        let failed = HANDSHAKE_ERRORS.load(Ordering::Relaxed);
        self.line(format_args!("apiserver_tls_handshake_errors_total {failed}"));
        let mut stored: Vec<(String, String, usize)> = Vec::new();
        for served in server.catalog().kinds() {
            if let Some(cache) = &served.cache {
                stored.push((served.resource.group.to_string(), served.resource.plural.to_string(), cache.size().0));
            }
        }
        stored.sort();
        self.head("apiserver_storage_objects", "gauge", "[STABLE] Objects stored.");
        for (group, plural, count) in &stored {
            let resource = meta::names::group_resource(group, plural);
            self.line(format_args!("apiserver_storage_objects{{resource=\"{resource}\"}} {count}"));
        }
        self.head("apiserver_resource_objects", "gauge", "[ALPHA] Objects stored.");
        for (group, resource, count) in &stored {
            self.line(format_args!("apiserver_resource_objects{{group=\"{group}\",resource=\"{resource}\"}} {count}"));
        }
        self.head("kubernetes_feature_enabled", "gauge", "[BETA] Feature gates, and whether they are open.");
        for (gate, open) in server.config().enabled.gates.all() {
            let (name, stage) = (gate.name, gate.stage.as_str());
            self.line(format_args!(
                "kubernetes_feature_enabled{{name=\"{name}\",stage=\"{stage}\"}} {}",
                u8::from(open)
            ));
        }
        self.head("kubernetes_build_info", "gauge", "[ALPHA] What this was built from.");
        let version = paths::version();
        let labels: Vec<String> = [
            ("build_date", "buildDate"),
            ("compiler", "compiler"),
            ("git_commit", "gitCommit"),
            ("git_tree_state", "gitTreeState"),
            ("git_version", "gitVersion"),
            ("go_version", "goVersion"),
            ("major", "major"),
            ("minor", "minor"),
            ("platform", "platform"),
        ]
        .iter()
        .map(|(label, field)| format!("{label}={}", version[*field]))
        .collect();
        self.line(format_args!("kubernetes_build_info{{{}}} 1", labels.join(",")));
    }

    fn audit(&mut self, audit: &crate::audit::Audit) {
        self.head("apiserver_audit_event_total", "counter", "[ALPHA] Audit events told.");
        self.line(format_args!("apiserver_audit_event_total {}", audit.events()));
        self.head("apiserver_audit_level_total", "counter", "[ALPHA] Requests by what the audit policy tells of them.");
        for (level, count) in audit.levels() {
            self.line(format_args!("apiserver_audit_level_total{{level=\"{}\"}} {count}", level.as_str()));
        }
        self.head("apiserver_audit_error_total", "counter", "[ALPHA] Audit events that were lost.");
        for (plugin, count) in audit.errors() {
            self.line(format_args!("apiserver_audit_error_total{{plugin=\"{plugin}\"}} {count}"));
        }
    }
}

pub fn render(server: &ApiServer) -> String {
    let mut text = Text(String::new());
    text.requests(server);
    text.server(server);
    if let Some(audit) = &server.config().audit {
        text.audit(audit);
    }
    instruments::write_page(&mut text.0, server);
    text.0 + &client::process::text() + &client::exposition::text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart_as_upstream_does() {
        let check = |method: &str, uri: &str, expect: &str| {
            let uri: Uri = uri.parse().unwrap();
            let said = Asked::of(&method.parse().unwrap(), &uri, false).map_or(String::new(), |a| {
                format!(
                    "{} {}/{} {}/{} {} {}",
                    a.verb, a.group, a.version, a.resource, a.subresource, a.scope, a.dry_run
                )
            });
            assert_eq!(said, expect, "{method} {uri}");
        };
        check("GET", "/api/v1/pods", "LIST /v1 pods/ cluster false");
        check("GET", "/api/v1/pods?watch=true", "WATCH /v1 pods/ cluster false");
        check("GET", "/api/v1/namespaces/a/pods", "LIST /v1 pods/ namespace false");
        check("GET", "/api/v1/namespaces/a", "GET /v1 namespaces/ resource false");
        check("PUT", "/api/v1/namespaces/a/status", "PUT /v1 namespaces/status resource false");
        check("POST", "/apis/apps/v1/namespaces/a/deployments?dryRun=All", "POST apps/v1 deployments/ resource true");
        check("GET", "/api/v1/namespaces/a/pods/b/log", "CONNECT /v1 pods/log resource false");
        check("DELETE", "/api/v1/namespaces/a/pods", "DELETECOLLECTION /v1 pods/ namespace false");
        check("GET", "/apis/apps/v1", "");
        check("GET", "/healthz", "");
    }

    #[tokio::test]
    async fn upstreams_names_are_there_and_tell_what_was_done() {
        let f = crate::testing::Fixture::start().await;
        f.namespace("n", serde_json::json!({})).await;
        client::exposition::register("test", || "another_component 1\n".into());
        let page = render(&f.server);
        for start in [
            "apiserver_admission_step_admission_duration_seconds_count{operation=\"CREATE\",rejected=\"false\",type=\"admit\"}",
            "apiserver_admission_controller_admission_duration_seconds_count{name=\"NamespaceLifecycle\",operation=\"CREATE\"",
            "authorization_attempts_total{result=\"allowed\"}",
            "etcd_requests_total{group=\"\",operation=\"create\",resource=\"serviceaccounts\"} 1",
            "etcd_request_duration_seconds_bucket{group=\"\",operation=\"create\",resource=\"namespaces\",le=\"+Inf\"}",
            "apiserver_storage_size_bytes{storage_cluster_id=\"etcd-0\"}",
            "apiserver_storage_objects{resource=\"namespaces\"}",
            "apiserver_flowcontrol_dispatched_requests_total{flow_schema=\"exempt\",priority_level=\"exempt\"}",
            "another_component 1",
        ] {
            // Families of statics count what other tests do, too.
            let line = page.lines().find(|line| line.starts_with(start));
            assert!(
                line.is_some_and(|line| !line.ends_with(" 0")) || start.contains("dispatched"),
                "{start}: {line:?}"
            );
        }
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.rsplit_once(' ').is_some_and(|(_, value)| value.parse::<f64>().is_ok()), "{line}");
        }
    }
}
