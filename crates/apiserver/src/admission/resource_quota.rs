//! ResourceQuota: what a namespace may hold, charged before it is created.
//!
//! The usage in a quota's status is checked and raised in one compare-and-swap, so two creates can never share the last
//! of it. What is charged and then not created, and what is deleted, the quota controller gives back. Follows
//! `k8s.io/apiserver/pkg/admission/plugin/resourcequota` and the evaluators of `pkg/quota/v1`.

use std::collections::BTreeMap;

use async_trait::async_trait;
use meta::quantity::Quantity;
use meta::{Request, Status, Value, Verb};

use super::amounts::{self, Amounts, list};
use super::{Attributes, Operation, Plugin, Write};
use crate::pipeline::Target;
use crate::pipeline::write::Change;
use crate::server::ApiServer;

pub struct ResourceQuota;

/// Kinds of the core group that quotas also know by their bare name.
const BARE: [&str; 6] =
    ["services", "persistentvolumeclaims", "secrets", "configmaps", "replicationcontrollers", "resourcequotas"];
/// Resources a quota that names them makes every container state.
const STATED: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

#[async_trait]
impl Plugin for ResourceQuota {
    fn concerns(&self, server: &ApiServer, a: &Attributes<'_>) -> bool {
        is_counted(a) && server.has_any("", "resourcequotas")
    }

    async fn validate(&self, write: &Write<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Write { server, a, old } = *write;
        let Some(object) = object else { return Ok(()) };
        Box::pin(charge(server, a, object, old)).await
    }
}

/// Charges what a write adds to the quotas of its namespace.
async fn charge(server: &ApiServer, a: &Attributes<'_>, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    let namespace = &*a.target.request.namespace;
    let held = server.lookup_all("", "resourcequotas", namespace);
    if held.is_empty() {
        return Ok(());
    }
    let what = Asked::of(a, object, old);
    if what.usage.values().all(|q| q.sign() <= 0) {
        return Ok(());
    }
    let check = |quota: &Value| {
        what.check(quota).map_err(|why| a.forbid(object["metadata"]["name"].as_str().unwrap_or_default(), why))
    };
    let check_all = || -> Result<Vec<String>, Status> {
        let mut charged = Vec::new();
        for quota in server.lookup_all("", "resourcequotas", namespace) {
            let body = quota.value().map_err(Status::internal)?;
            if check(&body)?.is_some() {
                charged.push(quota.meta.name.to_string());
            }
        }
        Ok(charged)
    };
    let charged = match check_all() {
        // What was given back may not have arrived here yet.
        Err(_) => {
            server.await_newest().await?;
            check_all()?
        }
        Ok(charged) => charged,
    };
    if a.dry_run {
        return Ok(());
    }
    let catalog = server.catalog();
    let served = catalog.find("", "resourcequotas").ok_or_else(Status::unknown_path)?;
    let version = served.resource.storage_version();
    let caller = crate::bootstrap::loopback();
    for name in charged {
        let request =
            Request::new(Verb::Update, served.resource.gvr(&version.name), namespace, &name).subresource("status");
        let charge = |quota: &mut Value| {
            if let Some(used) = check(quota)? {
                for (resource, amount) in used {
                    quota["status"]["used"][resource] = amount.to_string().into();
                }
            }
            Ok(())
        };
        match server
            .change(Target { caller: &caller, served, version, request: &request }, Change::Server(&charge))
            .await
        {
            // A quota deleted meanwhile asks for nothing.
            Err(status) if status.is(meta::Reason::NotFound) => {}
            Err(status) => return Err(status),
            Ok(_) => {}
        }
    }
    Ok(())
}

fn is_counted(a: &Attributes<'_>) -> bool {
    let request = a.target.request;
    if request.namespace.is_empty() || a.target.served.cache.is_none() {
        return false;
    }
    let core = |plural: &str| a.target.group().is_empty() && a.target.plural() == plural;
    match (a.operation, &*request.subresource) {
        (Operation::Create, "") => true,
        (Operation::Update, "") => core("services") || core("persistentvolumeclaims"),
        (Operation::Update, "resize") => core("pods"),
        _ => false,
    }
}

/// One write, as quotas see it.
struct Asked<'a> {
    /// What it adds.
    usage: Amounts,
    object: &'a Value,
    pod: bool,
}

impl<'a> Asked<'a> {
    fn of(a: &Attributes<'_>, object: &'a Value, old: Option<&Value>) -> Self {
        let (group, plural) = (a.target.group(), a.target.plural());
        let mut usage = usage(group, plural, object);
        if let Some(old) = old {
            for (name, before) in self::usage(group, plural, old) {
                let after = usage.remove(&name).unwrap_or_else(Quantity::zero);
                usage.insert(name, after.sub(&before));
            }
        }
        usage.retain(|_, amount| !amount.is_zero());
        Self { usage, object, pod: group.is_empty() && plural == "pods" }
    }

    /// The new `used` of what a quota is charged with, nothing when it does not apply, or the refusal.
    fn check(&self, quota: &Value) -> Result<Option<Amounts>, String> {
        let name = quota["metadata"]["name"].as_str().unwrap_or_default();
        if !self.is_covered(quota) {
            return Ok(None);
        }
        let (hard, used) = (amounts::of(&quota["status"]["hard"]), amounts::of(&quota["status"]["used"]));
        if self.pod {
            self.is_stated(&hard).map_err(|why| format!("failed quota: {name}: {why}"))?;
        }
        let requested: Amounts =
            self.usage.iter().filter(|(n, _)| hard.contains_key(*n)).map(|(n, q)| (n.clone(), q.clone())).collect();
        let unknown: Vec<&str> = requested.keys().filter(|n| !used.contains_key(*n)).map(String::as_str).collect();
        if !unknown.is_empty() {
            return Err(format!("status unknown for quota: {name}, resources: {}", unknown.join(",")));
        }
        if requested.is_empty() {
            return Ok(None);
        }
        let total: Amounts = requested.iter().map(|(n, q)| (n.clone(), used[n].add(q))).collect();
        let over = |n: &String| requested[n].sign() > 0 && total[n] > hard[n];
        let only = |amounts: &Amounts| -> Amounts {
            amounts
                .iter()
                .filter(|(n, _)| total.contains_key(*n) && over(n))
                .map(|(n, q)| (n.clone(), q.clone()))
                .collect()
        };
        let exceeded = only(&requested);
        if !exceeded.is_empty() {
            let [requested, used, hard] = [exceeded, only(&used), only(&hard)].map(|list| amounts::print(&list));
            return Err(format!("exceeded quota: {name}, requested: {requested}, used: {used}, limited: {hard}"));
        }
        Ok(Some(total))
    }

    /// Every container must state what a quota bounds.
    fn is_stated(&self, hard: &Amounts) -> Result<(), String> {
        let spec = &self.object["spec"];
        let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let whole = &spec["resources"];
        for container in list(spec, "initContainers").iter().chain(list(spec, "containers")) {
            for resource in STATED.into_iter().filter(|r| hard.contains_key(*r)) {
                let (field, plain) = match resource.split_once('.') {
                    Some((field, plain)) => (field, plain),
                    None => ("requests", resource),
                };
                if container["resources"][field].get(plain).is_none() && whole[field].get(plain).is_none() {
                    missing.entry(resource).or_default().push(container["name"].as_str().unwrap_or_default());
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let each: Vec<String> = missing
            .into_iter()
            .map(|(resource, containers)| format!("{resource} for: {}", containers.join(",")))
            .collect();
        Err(format!("must specify {}", each.join("; ")))
    }

    fn is_covered(&self, quota: &Value) -> bool {
        let spec = &quota["spec"];
        let expressions = list(&spec["scopeSelector"], "matchExpressions");
        let scopes = list(spec, "scopes");
        if !self.pod {
            return scopes.is_empty() && expressions.is_empty();
        }
        let pod = &self.object["spec"];
        scopes.iter().filter_map(Value::as_str).all(|scope| in_scope(pod, scope))
            && expressions.iter().all(|e| match e["scopeName"].as_str().unwrap_or_default() {
                "PriorityClass" => {
                    let class = pod["priorityClassName"].as_str().filter(|c| !c.is_empty());
                    let listed = class.is_some_and(|class| list(e, "values").iter().any(|v| v == class));
                    match e["operator"].as_str().unwrap_or_default() {
                        "In" => listed,
                        "NotIn" => !listed,
                        "Exists" => class.is_some(),
                        _ => class.is_none(),
                    }
                }
                scope => in_scope(pod, scope),
            })
    }
}

fn in_scope(pod: &Value, scope: &str) -> bool {
    let terminating = pod["activeDeadlineSeconds"].as_i64().is_some_and(|s| s >= 0);
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "CrossNamespacePodAffinity" => reaches_out(pod),
        _ => true,
    }
}

fn is_best_effort(pod: &Value) -> bool {
    let asks = |resources: &Value| {
        ["requests", "limits"]
            .iter()
            .flat_map(|field| amounts::of(&resources[*field]))
            .any(|(name, q)| matches!(&*name, "cpu" | "memory") && !q.is_zero())
    };
    !asks(&pod["resources"])
        && !list(pod, "containers").iter().chain(list(pod, "initContainers")).any(|c| asks(&c["resources"]))
}

/// Whether a pod's affinity looks at other namespaces.
fn reaches_out(pod: &Value) -> bool {
    let term = |term: &Value| !list(term, "namespaces").is_empty() || term["namespaceSelector"].is_object();
    ["podAffinity", "podAntiAffinity"].iter().map(|field| &pod["affinity"][*field]).any(|affinity| {
        list(affinity, "requiredDuringSchedulingIgnoredDuringExecution").iter().any(term)
            || list(affinity, "preferredDuringSchedulingIgnoredDuringExecution")
                .iter()
                .any(|w| term(&w["podAffinityTerm"]))
    })
}

/// What one object counts for.
fn usage(group: &str, plural: &str, object: &Value) -> Amounts {
    let one = Quantity::from_int(1);
    let mut out = Amounts::new();
    let counted = if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") };
    out.insert(counted, one.clone());
    if !group.is_empty() {
        return out;
    }
    if BARE.contains(&plural) {
        out.insert(plural.into(), one.clone());
    }
    let spec = &object["spec"];
    match plural {
        "pods" => {
            out.insert("pods".into(), one);
            for (name, amount) in amounts::of_pod(spec, "requests") {
                if matches!(&*name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
                    out.insert(name.clone(), amount.clone());
                }
                out.insert(format!("requests.{name}"), amount);
            }
            for (name, amount) in amounts::of_pod(spec, "limits") {
                out.insert(format!("limits.{name}"), amount);
            }
        }
        "services" => {
            let ports = Quantity::from_int(list(spec, "ports").len() as i64);
            let kind = spec["type"].as_str().unwrap_or_default();
            if kind == "LoadBalancer" {
                out.insert("services.loadbalancers".into(), one);
            }
            if kind == "NodePort" || (kind == "LoadBalancer" && spec["allocateLoadBalancerNodePorts"] != false) {
                out.insert("services.nodeports".into(), ports);
            }
        }
        "persistentvolumeclaims" => {
            let class = spec["storageClassName"].as_str().filter(|c| !c.is_empty());
            let in_class = |what: &str| class.map(|class| format!("{class}.storageclass.storage.k8s.io/{what}"));
            out.extend(in_class("persistentvolumeclaims").map(|name| (name, one)));
            if let Some(amount) = amounts::of(&spec["resources"]["requests"]).remove("storage") {
                out.extend(in_class("requests.storage").map(|name| (name, amount.clone())));
                out.insert("requests.storage".into(), amount);
            }
        }
        _ => {}
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn checks() {
        let quota = |hard: Value, used: Value, spec: Value| json!({"metadata": {"name": "q"}, "spec": spec, "status": {"hard": hard, "used": used}});
        let pod = |cpu: &str| json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}}]}});
        let bare = json!({"spec": {"containers": [{"name": "c"}]}});
        for (object, quota, expect) in [
            (
                pod("1"),
                quota(json!({"pods": "2", "cpu": "2"}), json!({"pods": "1", "cpu": "1"}), json!({})),
                "cpu=2,pods=2",
            ),
            (
                pod("2"),
                quota(json!({"pods": "2", "cpu": "2"}), json!({"pods": "1", "cpu": "1"}), json!({})),
                "exceeded quota: q, requested: cpu=2, used: cpu=1, limited: cpu=2",
            ),
            (
                pod("1"),
                quota(
                    json!({"pods": "1", "requests.cpu": "500m"}),
                    json!({"pods": "1", "requests.cpu": "0"}),
                    json!({}),
                ),
                "exceeded quota: q, requested: pods=1,requests.cpu=1, used: pods=1,requests.cpu=0, limited: pods=1,requests.cpu=500m",
            ),
            (
                bare.clone(),
                quota(json!({"limits.memory": "1Gi", "cpu": "1"}), json!({}), json!({})),
                "failed quota: q: must specify cpu for: c; limits.memory for: c",
            ),
            (
                bare.clone(),
                quota(json!({"pods": "1"}), json!({}), json!({})),
                "status unknown for quota: q, resources: pods",
            ),
            (
                bare.clone(),
                quota(json!({"pods": "1"}), json!({"pods": "1"}), json!({"scopes": ["NotBestEffort"]})),
                "-",
            ),
            (
                bare.clone(),
                quota(json!({"pods": "1"}), json!({"pods": "0"}), json!({"scopes": ["BestEffort", "NotTerminating"]})),
                "pods=1",
            ),
            (
                bare.clone(),
                quota(
                    json!({"pods": "1"}),
                    json!({"pods": "0"}),
                    json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["x"]}]}}),
                ),
                "-",
            ),
            (bare, quota(json!({"services": "1"}), json!({"services": "0"}), json!({})), "-"),
        ] {
            let asked = Asked { usage: usage("", "pods", &object), object: &object, pod: true };
            let said = match asked.check(&quota) {
                Ok(None) => "-".to_string(),
                Ok(Some(total)) => amounts::print(&total),
                Err(why) => why,
            };
            assert_eq!(said, expect, "{object} {quota}");
        }
    }

    #[test]
    fn usages() {
        let ports = json!([{"port": 1}, {"port": 2}]);
        for (group, plural, object, expect) in [
            ("apps", "deployments", json!({}), "count/deployments.apps=1"),
            ("", "secrets", json!({}), "count/secrets=1,secrets=1"),
            (
                "",
                "services",
                json!({"spec": {"type": "NodePort", "ports": ports}}),
                "count/services=1,services=1,services.nodeports=2",
            ),
            (
                "",
                "services",
                json!({"spec": {"type": "LoadBalancer", "ports": ports, "allocateLoadBalancerNodePorts": false}}),
                "count/services=1,services=1,services.loadbalancers=1",
            ),
            (
                "",
                "persistentvolumeclaims",
                json!({"spec": {"storageClassName": "g", "resources": {"requests": {"storage": "1Gi"}}}}),
                "count/persistentvolumeclaims=1,g.storageclass.storage.k8s.io/persistentvolumeclaims=1,g.storageclass.storage.k8s.io/requests.storage=1Gi,persistentvolumeclaims=1,requests.storage=1Gi",
            ),
        ] {
            assert_eq!(amounts::print(&usage(group, plural, &object)), expect);
        }
    }
}
