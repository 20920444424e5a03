//! Which flow a request belongs to: the served FlowSchemas, in the order of their precedence, matched as upstream does.
//!
//! Every answer says which schema and which priority level it was taken under, and both are counted. Nothing is held back:
//! levels' limits are not enforced. Follows `k8s.io/apiserver/pkg/util/flowcontrol` (rule, conc_alloc aside).

mod standard;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use client::metrics::{Histogram, head};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use crate::authn::User;
use crate::authz::Attributes;
use crate::server::ApiServer;
pub(crate) use standard::wanted;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const SCHEMAS: &str = "flowschemas";
const LEVELS: &str = "prioritylevelconfigurations";
const SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
/// Upper bounds of execution times, seconds: upstream's.
static BOUNDS: [f64; 14] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0];

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct FlowSchema {
    spec: Spec,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    matching_precedence: i64,
    priority_level_configuration: Named,
    rules: Vec<Rule>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Named {
    name: String,
    namespace: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Rule {
    subjects: Vec<Subject>,
    resource_rules: Vec<ResourceRule>,
    non_resource_rules: Vec<PathRule>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Subject {
    user: Option<Named>,
    group: Option<Named>,
    service_account: Option<Named>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ResourceRule {
    verbs: Vec<String>,
    api_groups: Vec<String>,
    resources: Vec<String>,
    cluster_scope: bool,
    namespaces: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PathRule {
    verbs: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
}

/// A list that is the star alone takes everything.
fn has(list: &[String], item: &str) -> bool {
    matches!(list, [star] if star == "*") || list.iter().any(|x| x == item)
}

impl Subject {
    fn is(&self, user: &User) -> bool {
        let account = |named: &Named| {
            user.service_account().is_some_and(|(namespace, name)| {
                namespace == named.namespace && (named.name == "*" || named.name == name)
            })
        };
        self.user.as_ref().is_some_and(|u| u.name == "*" || u.name == user.name)
            || self.group.as_ref().is_some_and(|g| g.name == "*" || user.in_group(&g.name))
            || self.service_account.as_ref().is_some_and(account)
    }
}

impl Rule {
    fn matches(&self, user: &User, a: &Attributes<'_>) -> bool {
        self.subjects.iter().any(|subject| subject.is(user))
            && match a.path {
                Some(path) => self.non_resource_rules.iter().any(|rule| rule.matches(a.verb, path)),
                None => self.resource_rules.iter().any(|rule| rule.matches(a)),
            }
    }
}

impl PathRule {
    fn matches(&self, verb: &str, path: &str) -> bool {
        let below = |url: &String| {
            let start = url.strip_suffix('*').unwrap_or(url);
            let start = start.strip_suffix('/').unwrap_or(start);
            url == "*" || url == path || path.strip_prefix(start).is_some_and(|rest| rest.starts_with('/'))
        };
        has(&self.verbs, verb) && self.non_resource_urls.iter().any(below)
    }
}

impl ResourceRule {
    fn matches(&self, a: &Attributes<'_>) -> bool {
        let named = |said: &String| match said.split_once('/') {
            None => a.subresource.is_empty() && said == a.resource,
            Some((resource, sub)) => resource == a.resource && sub == a.subresource,
        };
        has(&self.verbs, a.verb)
            && has(&self.api_groups, a.group)
            && (matches!(&self.resources[..], [star] if star == "*") || self.resources.iter().any(named))
            && if a.namespace.is_empty() { self.cluster_scope } else { has(&self.namespaces, a.namespace) }
    }
}

/// What was done under one schema, however often it was read anew.
struct Counts {
    executing: AtomicI64,
    took: Histogram<14>,
}

/// A schema that is in force.
pub struct Flow {
    name: Box<str>,
    rules: Vec<Rule>,
    uids: [Option<HeaderValue>; 2],
    counts: Arc<Counts>,
}

/// A request under way.
pub struct Executing {
    flow: Arc<Flow>,
    began: Instant,
}

impl Executing {
    /// Says in an answer what it was taken under.
    pub fn tell(&self, headers: &mut HeaderMap) {
        for (name, uid) in [SCHEMA_UID, LEVEL_UID].into_iter().zip(&self.flow.uids) {
            if let Some(uid) = uid {
                headers.insert(name, uid.clone());
            }
        }
    }
}

impl Drop for Executing {
    fn drop(&mut self) {
        let counts = &self.flow.counts;
        counts.executing.fetch_sub(1, Ordering::Relaxed);
        counts.took.observe(self.began.elapsed());
    }
}

#[derive(Default)]
struct Index {
    /// Newest revision of each of the two kinds at the time it was built.
    built_at: [u64; 2],
    /// By precedence, then name.
    flows: Vec<Arc<Flow>>,
}

/// All schemas.
#[derive(Default)]
pub struct FlowControl {
    index: RwLock<Arc<Index>>,
    /// By schema and level.
    counts: Mutex<BTreeMap<(Box<str>, Box<str>), Arc<Counts>>>,
}

impl FlowControl {
    fn index(&self, server: &ApiServer) -> Arc<Index> {
        let catalog = server.catalog();
        let caches = [SCHEMAS, LEVELS].map(|plural| catalog.find(GROUP, plural).and_then(|s| s.cache.clone()));
        let built_at = std::array::from_fn(|at| caches[at].as_ref().map_or(0, |cache| cache.newest()));
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner).clone();
        if index.built_at == built_at {
            return index;
        }
        let [schemas, levels] = caches.map(|cache| cache.map(|c| c.list(c.prefix()).items).unwrap_or_default());
        let levels: HashMap<&str, &str> = levels.iter().map(|level| (&*level.meta.name, &*level.meta.uid)).collect();
        let mut flows = Vec::new();
        for object in &schemas {
            let Ok(FlowSchema { spec }) = serde_json::from_slice(object.raw()) else { continue };
            // A schema without its level is not in force.
            let level = spec.priority_level_configuration.name.into_boxed_str();
            let Some(level_uid) = levels.get(&*level) else { continue };
            let uids = [&*object.meta.uid, level_uid].map(|uid| HeaderValue::from_str(uid).ok());
            let counts = self.counts_of(&object.meta.name, &level);
            let flow = Flow { name: object.meta.name.clone(), rules: spec.rules, uids, counts };
            flows.push((spec.matching_precedence, Arc::new(flow)));
        }
        flows.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
        let index = Arc::new(Index { built_at, flows: flows.into_iter().map(|(_, flow)| flow).collect() });
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = index.clone();
        index
    }

    fn counts_of(&self, schema: &str, level: &str) -> Arc<Counts> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Counts { executing: AtomicI64::new(0), took: Histogram::new(&BOUNDS) });
        counts.entry((schema.into(), level.into())).or_insert_with(new).clone()
    }

    /// Takes a request under the first schema that wants it.
    pub fn take(&self, server: &ApiServer, user: &User, a: &Attributes<'_>) -> Option<Executing> {
        let index = self.index(server);
        let flow = index.flows.iter().find(|flow| flow.rules.iter().any(|rule| rule.matches(user, a)))?.clone();
        flow.counts.executing.fetch_add(1, Ordering::Relaxed);
        Some(Executing { flow, began: Instant::now() })
    }

    /// What was counted, as text.
    pub fn write_page(&self, out: &mut String) {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all = || {
            counts.iter().map(|((schema, level), counts)| {
                (format!("flow_schema=\"{schema}\",priority_level=\"{level}\""), counts)
            })
        };
        let name = "apiserver_flowcontrol_dispatched_requests_total";
        head(out, name, "counter", "[BETA] Requests that were let through.");
        for (labels, counts) in all() {
            let executing = counts.executing.load(Ordering::Relaxed).max(0) as u64;
            let _ = writeln!(out, "{name}{{{labels}}} {}", counts.took.count() + executing);
        }
        let name = "apiserver_flowcontrol_current_executing_requests";
        head(out, name, "gauge", "[BETA] Requests under way.");
        for (labels, counts) in all() {
            let _ = writeln!(out, "{name}{{{labels}}} {}", counts.executing.load(Ordering::Relaxed));
        }
        let name = "apiserver_flowcontrol_request_execution_seconds";
        head(out, name, "histogram", "[ALPHA] Seconds until an answer began.");
        for (labels, counts) in all() {
            counts.took.write(out, name, &labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Fixture, admin, node};

    #[tokio::test]
    async fn requests_are_taken_under_the_schema_upstream_would() {
        let f = Fixture::start().await;
        let resource = |verb, group, resource, subresource, namespace| Attributes {
            verb,
            group,
            version: "v1",
            resource,
            subresource,
            namespace,
            ..Attributes::default()
        };
        let check = |user: &User, a: Attributes<'_>, expect: &str| {
            let taken = f.server.flow_control().take(&f.server, user, &a);
            let flow = taken.as_ref().map_or("", |taken| &taken.flow.name);
            assert_eq!(flow, expect, "{} {a:?}", user.name);
        };
        let someone = User::new("u", &["system:authenticated"]);
        let account = |name: &str| User::new(name, &["system:serviceaccounts", "system:authenticated"]);
        check(&admin(), resource("get", "", "pods", "", "n"), "exempt");
        check(&someone, Attributes::path("get", "/healthz"), "probes");
        check(&someone, Attributes::path("get", "/healthz/etcd"), "probes");
        check(&someone, Attributes::path("get", "/healthzx"), "global-default");
        check(&someone, resource("list", "", "pods", "", ""), "global-default");
        check(&User::new("u", &[]), resource("list", "", "pods", "", ""), "");
        check(&node("a"), resource("update", "", "nodes", "status", ""), "system-node-high");
        check(&node("a"), resource("get", "", "pods", "", "n"), "system-nodes");
        check(
            &User::new("system:kube-scheduler", &["system:authenticated"]),
            resource("update", "coordination.k8s.io", "leases", "", "kube-system"),
            "system-leader-election",
        );
        let kube = account("system:serviceaccount:kube-system:x");
        check(&kube, resource("list", "", "pods", "", ""), "kube-system-service-accounts");
        let other = account("system:serviceaccount:default:x");
        check(&other, resource("list", "", "pods", "", ""), "service-accounts");

        let schema = json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": "mine"},
            "spec": {"matchingPrecedence": 50, "priorityLevelConfiguration": {"name": "none"}, "rules": [{
                "subjects": [{"kind": "User", "user": {"name": "u"}}],
                "resourceRules": [{"verbs": ["*"], "apiGroups": [""], "resources": ["pods"], "namespaces": ["n"]}],
            }]},
        });
        f.create("flowcontrol.apiserver.k8s.io/v1/flowschemas", "", schema).await.unwrap();
        check(&someone, resource("get", "", "pods", "", "n"), "global-default");
        let level = json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
            "metadata": {"name": "none"}, "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}},
        });
        f.create("flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations", "", level).await.unwrap();
        check(&someone, resource("get", "", "pods", "", "n"), "mine");
        check(&someone, resource("get", "", "pods", "", "m"), "global-default");
        check(&someone, resource("get", "", "pods", "log", "n"), "global-default");
        let mut page = String::new();
        f.server.flow_control().write_page(&mut page);
        let counted =
            "apiserver_flowcontrol_dispatched_requests_total{flow_schema=\"mine\",priority_level=\"none\"} 1\n";
        assert!(page.contains(counted), "{page}");
    }
}
