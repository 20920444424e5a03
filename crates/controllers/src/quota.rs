//! What ResourceQuotas count: usage, from all objects of a namespace. Admission counts up with each creation; this
//! counts anew, so that deletions are seen and mistakes do not stay.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Client, Informer, Informers};
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, ReplicationController, ResourceQuota, ResourceQuotaSpec, ResourceRequirements,
    Secret, Service,
};
use meta::quantity::Quantity;
use meta::{Gvr, Object, Status};
use serde_json::{Value, json};

use crate::plan::{Action, Plan};
use crate::pod_facts::{self, Amounts, Container, Shape};
use crate::pods::PodView;
use crate::runner::{Ask, Controller, own_key};
use crate::{Context, decoded, status_of};

/// How often everything is counted anew, as upstream does.
const RESYNC: Duration = Duration::from_secs(300);
/// How often resources are counted whose changes are not watched here.
const POLL: Duration = Duration::from_secs(2);

/// A count that is lower than what admission charged is believed when no charge came for so long: what was charged last
/// may not be here yet to be counted.
const QUIET: Duration = Duration::from_millis(300);
/// Or when it stayed lower for so long, however busy the namespace is.
const LOWER_AT_LAST: Duration = Duration::from_secs(5);

type Usage = BTreeMap<String, Quantity>;

fn add(usage: &mut Usage, name: impl Into<String>, amount: &Quantity) {
    let sum = usage.entry(name.into()).or_insert_with(Quantity::zero);
    *sum = sum.add(amount);
}

fn one() -> Quantity {
    Quantity::from_int(1)
}

fn amounts(list: Option<&Amounts>) -> Usage {
    list.into_iter().flatten().filter_map(|(name, q)| Some((name.clone(), q.0.parse().ok()?))).collect()
}

/// A pod's effective requests or limits: the sum of its containers and sidecars, or its largest init step, and overhead.
fn effective(spec: &Shape, of: impl Fn(&ResourceRequirements) -> Option<&Amounts>) -> Usage {
    let mut sum = Usage::new();
    let each = |c: &Container| amounts(c.resources.as_ref().and_then(&of));
    for container in spec.containers() {
        each(container).iter().for_each(|(n, q)| add(&mut sum, n.as_str(), q));
    }
    let mut sidecars = Usage::new();
    let mut steps = Usage::new();
    for container in spec.init_containers.iter().flatten() {
        let own = each(container);
        if container.restart_policy.as_deref() == Some("Always") {
            own.iter().for_each(|(n, q)| {
                add(&mut sum, n.as_str(), q);
                add(&mut sidecars, n.as_str(), q);
            });
            continue;
        }
        for (name, amount) in own {
            let with = sidecars.get(&name).map_or(amount.clone(), |s| s.add(&amount));
            let most = steps.entry(name).or_insert_with(Quantity::zero);
            if with > *most {
                *most = with;
            }
        }
    }
    for (name, amount) in steps {
        let total = sum.entry(name).or_insert_with(Quantity::zero);
        if amount > *total {
            *total = amount;
        }
    }
    if let Some(pod_level) = spec.resources.as_ref().and_then(&of) {
        sum.extend(amounts(Some(pod_level)));
    }
    amounts(spec.overhead.as_ref()).iter().for_each(|(n, q)| add(&mut sum, n.as_str(), q));
    sum
}

fn count_pod(usage: &mut Usage, pod: &PodView) {
    add(usage, "count/pods", &one());
    if pod.is_finished() {
        return;
    }
    let spec = &pod.facts.shape;
    add(usage, "pods", &one());
    for (name, amount) in effective(spec, |r| r.requests.as_ref()) {
        // Requests go by the bare name too, where that was allowed first.
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            add(usage, name.as_str(), &amount);
        }
        if name.starts_with("hugepages-") {
            add(usage, name.as_str(), &amount);
        }
        add(usage, format!("requests.{name}"), &amount);
    }
    for (name, amount) in effective(spec, |r| r.limits.as_ref()) {
        add(usage, format!("limits.{name}"), &amount);
    }
}

fn is_best_effort(spec: &Shape) -> bool {
    let asks = |list: Option<&Amounts>| {
        amounts(list).iter().any(|(n, q)| matches!(n.as_str(), "cpu" | "memory") && !q.is_zero())
    };
    let all = spec.containers().iter().chain(spec.init_containers.iter().flatten());
    !all.filter_map(|c| c.resources.as_ref()).any(|r| asks(r.requests.as_ref()) || asks(r.limits.as_ref()))
}

fn reaches_out(spec: &Shape) -> bool {
    let affinity = spec.affinity.as_ref();
    let value = affinity
        .and_then(|a| serde_json::to_value((&a.pod_affinity, &a.pod_anti_affinity)).ok())
        .unwrap_or_default()
        .to_string();
    value.contains("\"namespaceSelector\":{") || value.contains("\"namespaces\":[\"")
}

/// Whether a quota's scopes cover a pod.
fn covers(quota: &ResourceQuotaSpec, pod: &PodView) -> bool {
    let spec = &pod.facts.shape;
    let holds = |scope: &str| match scope {
        "Terminating" => spec.active_deadline_seconds.is_some_and(|s| s >= 0),
        "NotTerminating" => spec.active_deadline_seconds.is_none_or(|s| s < 0),
        "BestEffort" => is_best_effort(spec),
        "NotBestEffort" => !is_best_effort(spec),
        "CrossNamespacePodAffinity" => reaches_out(spec),
        _ => true,
    };
    let by_scope = quota.scopes.iter().flatten().all(|s| holds(s));
    let expressions = quota.scope_selector.as_ref().and_then(|s| s.match_expressions.as_deref()).unwrap_or_default();
    by_scope
        && expressions.iter().all(|e| match e.scope_name.as_str() {
            "PriorityClass" => {
                let class = spec.priority_class_name.as_deref().filter(|c| !c.is_empty());
                let listed = || class.is_some_and(|c| e.values.iter().flatten().any(|v| v == c));
                match e.operator.as_str() {
                    "In" => listed(),
                    "NotIn" => !listed(),
                    "Exists" => class.is_some(),
                    _ => class.is_none(),
                }
            }
            scope => holds(scope),
        })
}

fn count_service(usage: &mut Usage, object: &Object) {
    add(usage, "services", &one());
    let Ok(service) = object.typed::<Service>() else { return };
    let Some(spec) = &service.spec else { return };
    let ports = spec.ports.as_ref().map_or(0, Vec::len) as i64;
    match spec.type_.as_deref() {
        Some("NodePort") => add(usage, "services.nodeports", &Quantity::from_int(ports)),
        Some("LoadBalancer") => {
            add(usage, "services.loadbalancers", &one());
            if spec.allocate_load_balancer_node_ports != Some(false) {
                add(usage, "services.nodeports", &Quantity::from_int(ports));
            }
        }
        _ => {}
    }
}

fn count_claim(usage: &mut Usage, object: &Object) {
    add(usage, "persistentvolumeclaims", &one());
    let Ok(claim) = object.typed::<PersistentVolumeClaim>() else { return };
    let Some(spec) = &claim.spec else { return };
    let class = spec.storage_class_name.as_deref().filter(|c| !c.is_empty());
    let asked = amounts(spec.resources.as_ref().and_then(|r| r.requests.as_ref())).remove("storage");
    if let Some(class) = class {
        add(usage, format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), &one());
    }
    if let Some(amount) = asked {
        add(usage, "requests.storage", &amount);
        if let Some(class) = class {
            add(usage, format!("{class}.storageclass.storage.k8s.io/requests.storage"), &amount);
        }
    }
}

/// The informers of what is counted by name.
struct Sources {
    pods: Arc<Informer>,
    services: Arc<Informer>,
    claims: Arc<Informer>,
    /// (name in quotas, informer)
    plain: Vec<(&'static str, Arc<Informer>)>,
}

impl Sources {
    fn usage(&self, namespace: &str, quota: &ResourceQuotaSpec) -> Result<Usage, Status> {
        let mut usage = Usage::new();
        let scoped = quota.scopes.as_ref().is_some_and(|s| !s.is_empty()) || quota.scope_selector.is_some();
        for object in self.pods.list(Some(namespace)) {
            let pod = PodView::new(object)?;
            if !scoped || covers(quota, &pod) {
                count_pod(&mut usage, &pod);
            }
        }
        if scoped {
            return Ok(usage);
        }
        self.services.list(Some(namespace)).iter().for_each(|o| count_service(&mut usage, o));
        self.claims.list(Some(namespace)).iter().for_each(|o| count_claim(&mut usage, o));
        for (name, informer) in &self.plain {
            add(&mut usage, *name, &Quantity::from_int(informer.list(Some(namespace)).len() as i64));
        }
        for name in
            ["services", "persistentvolumeclaims", "secrets", "configmaps", "replicationcontrollers", "resourcequotas"]
        {
            if let Some(amount) = usage.get(name).cloned() {
                usage.insert(format!("count/{name}"), amount);
            }
        }
        Ok(usage)
    }
}

/// Resources behind `count/resource.group`, as discovery told; forgotten names are asked for again.
#[derive(Default)]
struct Counted(Mutex<BTreeMap<String, Gvr>>);

impl Counted {
    /// Counts what a quota names beyond the known, from informers. Whether there was any.
    async fn count(
        &self,
        cx: &(Client, Arc<Informers>),
        namespace: &str,
        hard: &Amounts,
        usage: &mut Usage,
    ) -> Result<bool, Status> {
        let names: Vec<&String> = hard.keys().filter(|n| n.starts_with("count/") && !usage.contains_key(*n)).collect();
        let known = |name: &str| self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if names.iter().any(|n| known(n).is_none()) {
            let found = cx.0.discover().await?;
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let countable =
                found.resources.iter().filter(|r| r.preferred && r.namespaced && r.can("list") && r.can("watch"));
            *all = countable.map(|r| (format!("count/{}", r.resource.group_resource()), r.resource.clone())).collect();
        }
        for name in &names {
            if let Some(resource) = known(name) {
                let informer = cx.1.metadata_of(&resource);
                informer.synced().await;
                usage.insert(name.to_string(), Quantity::from_int(informer.list(Some(namespace)).len() as i64));
            }
        }
        Ok(!names.is_empty())
    }
}

/// Writes the usage of what the quota bounds.
fn plan(object: &Object, hard: &Amounts, usage: &Usage) -> Result<Plan, Status> {
    let known = status_of(object)?;
    let used: BTreeMap<&String, String> =
        hard.keys().map(|name| (name, usage.get(name).map_or_else(|| "0".into(), ToString::to_string))).collect();
    let mut plan = Plan::nothing();
    let same_used = used.len() == known["used"].as_object().map_or(0, serde_json::Map::len)
        && used.iter().all(|(name, amount)| {
            let old = Quantity::from_value(&known["used"][name.as_str()]).ok();
            known["used"].get(name.as_str()).is_some() && old == amount.parse().ok()
        });
    let wanted: Value = json!(hard);
    if !same_used || known["hard"] != wanted {
        plan.act(Action::status(&client::gvr_of::<ResourceQuota>(), object, json!({"hard": wanted, "used": used}))?);
    }
    Ok(plan)
}

/// Whether a count says less of anything than the status does.
fn lowers(object: &Object, usage: &Usage) -> Result<bool, Status> {
    let known = status_of(object)?;
    let lower = |(name, told): (&String, &Value)| {
        let counted = usage.get(name).cloned().unwrap_or_else(Quantity::zero);
        Quantity::from_value(told).is_ok_and(|told| counted < told)
    };
    Ok(known["used"].as_object().into_iter().flatten().any(lower))
}

/// Quotas whose count is lower than their status: since when, and the version they had and since when.
#[derive(Default)]
struct Lower(Mutex<BTreeMap<String, (Timestamp, u64, Timestamp)>>);

impl Lower {
    /// How long to wait yet before a lower count is written; `None` when it may be.
    fn wait(&self, key: &str, version: u64, now: Timestamp) -> Option<Duration> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, seen, since) = all.entry(key.to_string()).or_insert((now, version, now));
        if *seen != version {
            (*seen, *since) = (version, now);
        }
        let passed = |from: Timestamp| now.duration_since(from).unsigned_abs();
        if passed(*since) >= QUIET || passed(*first) >= LOWER_AT_LAST {
            all.remove(key);
            return None;
        }
        Some(QUIET.saturating_sub(passed(*since)).max(Duration::from_millis(10)))
    }

    fn forget(&self, key: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

pub fn resource_quotas(cx: &Context) -> Controller {
    let quotas = cx.informers.get::<ResourceQuota>();
    let plain = vec![
        ("secrets", cx.informers.metadata_of(&client::gvr_of::<Secret>())),
        ("configmaps", cx.informers.metadata_of(&client::gvr_of::<ConfigMap>())),
        ("replicationcontrollers", cx.informers.get::<ReplicationController>()),
        ("resourcequotas", quotas.clone()),
    ];
    let sources = Arc::new(Sources {
        pods: pod_facts::informer(&cx.informers),
        services: cx.informers.get::<Service>(),
        claims: cx.informers.get::<PersistentVolumeClaim>(),
        plain,
    });
    let (of, counted) = (quotas.clone(), sources.clone());
    let others = Arc::new((Counted::default(), (cx.client.clone(), cx.informers.clone())));
    let lower = Arc::new(Lower::default());
    let reconcile = move |ask: Ask| {
        let (of, others, sources, lower) = (of.clone(), others.clone(), counted.clone(), lower.clone());
        async move {
            let Some(object) = of.get(&ask.key) else {
                lower.forget(&ask.key);
                return Ok(Plan::nothing());
            };
            let quota = decoded::<ResourceQuota>(&object)?;
            let Some(spec) = &quota.spec else { return Ok(Plan::nothing()) };
            let hard = spec.hard.clone().unwrap_or_default();
            let mut usage = sources.usage(&object.meta.namespace, spec)?;
            let polled = others.0.count(&others.1, &object.meta.namespace, &hard, &mut usage).await?;
            // A quota whose bounds are new is told at once: nothing was charged to it before.
            let told = quota.status.as_ref().and_then(|s| s.hard.as_ref()) == Some(&hard);
            if told && lowers(&object, &usage)? {
                if let Some(wait) = lower.wait(&ask.key, object.resource_version, ask.now) {
                    let mut plan = Plan::nothing();
                    plan.again_after(wait);
                    return Ok(plan);
                }
            } else {
                lower.forget(&ask.key);
            }
            let mut plan = plan(&object, &hard, &usage)?;
            plan.again_after(if polled { POLL } else { RESYNC });
            Ok(plan)
        }
        .boxed()
    };
    let mut controller = Controller::with_io("resourcequota-controller", reconcile).watch(&quotas, own_key);
    let informers = [&sources.pods, &sources.services, &sources.claims]
        .into_iter()
        .chain(sources.plain.iter().take(3).map(|(_, i)| i));
    for informer in informers {
        let quotas = quotas.clone();
        controller = controller.watch(informer, move |change| {
            let Some(object) = change.object() else { return Vec::new() };
            // Most namespaces have no quota: then nothing more is looked at. Of changes only those count that free
            // or take something: coming, going, ending.
            let held = quotas.list(Some(&object.meta.namespace));
            let counts = match (&change.old, &change.new) {
                (Some(old), Some(new)) => {
                    let ended = |o: &Arc<Object>| PodView::new(o.clone()).is_ok_and(|p| p.is_finished());
                    old.meta.generation != new.meta.generation
                        || (&*new.kind == "Pod" && ended(old) != ended(new))
                        || &*new.kind == "Service"
                }
                _ => true,
            };
            if counts { held.iter().map(|q| q.meta.key()).collect() } else { Vec::new() }
        });
    }
    controller
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_counts_wait_for_quiet() {
        let at = |ms: i64| Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap();
        let lower = Lower::default();
        assert!(lower.wait("q", 1, at(0)).is_some());
        assert!(lower.wait("q", 2, at(200)).is_some(), "charged meanwhile");
        assert!(lower.wait("q", 2, at(450)).is_some());
        assert!(lower.wait("q", 2, at(500)).is_none());
        let busy = (0..60).map(|i| lower.wait("b", i, at(i as i64 * 100)).is_none()).position(|done| done);
        assert_eq!(busy, Some(50), "a busy namespace is told at last");
    }
}
