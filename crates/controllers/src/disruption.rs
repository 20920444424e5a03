//! The status of PodDisruptionBudgets: how many healthy pods there are, should be, and so how many may go; and the word
//! taken back that a pod is to go, when it did not. The plans are pure; only scales of foreign kinds are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client::{Change, Client, Informer};
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use k8s_openapi::api::core::v1::ReplicationController;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use meta::{LabelSelector, Object, Status};
use serde_json::{Map, Value, json};

use crate::conditions::{self, Condition};
use crate::plan::{Action, Note, Plan};
use crate::pod_facts;
use crate::pods::{self, PodView, seconds_between};
use crate::rollout::scaled;
use crate::runner::{Ask, Controller, own_key};
use crate::scale::{Kinds, kind_of};
use crate::{Context, decoded, owners, status_of};

/// Seconds an evicted pod may take to show that it is going, before its eviction counts as failed.
const DISRUPTION_TIMEOUT: i64 = 120;
/// How soon controllers whose scale could not be told are asked again.
const SCALE_RETRY: Duration = Duration::from_secs(10);
/// The condition of a pod that is to be disrupted.
const TARGET: &str = "DisruptionTarget";
/// Keys of budgets and of pods share a queue.
const STALE: &str = "pod:";
/// And those of pods that more than one budget selects.
const MANY: &str = "many:";

/// Whether a budget is in relation to what the pods' controllers want.
fn needs_scale(spec: &PodDisruptionBudgetSpec) -> bool {
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// Nothing may go while it is not known how many there should be.
pub fn fail_safe(object: &Object, why: &str, now: Timestamp) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    let said = format!("Failed to calculate the number of expected pods: {why}");
    plan.note(Note::warning(object, "CalculateExpectedPodCountFailed", said));
    let known = status_of(object)?;
    let mut status = if known.is_object() { known.clone() } else { json!({}) };
    status["disruptionsAllowed"] = 0.into();
    for field in ["currentHealthy", "desiredHealthy", "expectedPods"] {
        if status.get(field).is_none() {
            status[field] = 0.into();
        }
    }
    let failed = Condition { kind: "DisruptionAllowed", status: "False", reason: "SyncFailed", message: why };
    conditions::update(&mut status, failed, now);
    if status != known {
        plan.act(Action::status(&client::gvr_of::<PodDisruptionBudget>(), object, status)?);
    }
    plan.again_after(SCALE_RETRY);
    Ok(plan)
}

/// Takes back that a pod is to be disrupted when nothing came of it.
pub fn plan_stale(pod: &PodView, now: Timestamp) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    let Some(condition) = stale_condition(pod) else { return Ok(plan) };
    let since = condition.last_transition_time.unwrap_or(Timestamp::MIN);
    let left = DISRUPTION_TIMEOUT - seconds_between(since, now);
    if left > 0 {
        plan.again_after(Duration::from_secs(left.unsigned_abs()));
        return Ok(plan);
    }
    if let Some(reset) = pod.to_say(TARGET, "False", "", "", now) {
        plan.act(pod.tell(json!({"conditions": [reset]})));
    }
    Ok(plan)
}

/// The word that a pod is to be disrupted, where it may turn out to be idle. What a kubelet says of its own doing holds.
fn stale_condition(pod: &PodView) -> Option<&pod_facts::Condition> {
    let condition = pod.condition(TARGET).filter(|c| c.status == "True")?;
    let by_kubelet = condition.reason.as_deref() == Some("TerminationByKubelet");
    (pod.is_active() && !by_kubelet).then_some(condition)
}

/// `scale`: the replicas wanted by the pods' controllers, for budgets in relation to them.
pub fn plan(
    object: &Object,
    spec: &PodDisruptionBudgetSpec,
    pods: &[PodView],
    scale: i64,
    now: Timestamp,
) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    let known = status_of(object)?;
    let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (scale, (scale - scaled(Some(most), scale, true)).max(0)),
        (None, Some(IntOrString::Int(least))) => (pods.len() as i64, i64::from(*least)),
        (None, Some(least)) => (scale, scaled(Some(least), scale, true)),
        (None, None) => (pods.len() as i64, 0),
    };
    // Evictions granted that do not show yet; those that never came to be are forgotten.
    let mut disrupted = Map::new();
    for (name, at) in known["disruptedPods"].as_object().into_iter().flatten() {
        let Some(pod) = pods.iter().find(|p| p.name() == name).filter(|p| !p.is_terminating()) else { continue };
        let Some(since) = at.as_str().and_then(client::time::parse) else { continue };
        let left = DISRUPTION_TIMEOUT - seconds_between(since, now);
        if left > 0 {
            disrupted.insert(name.clone(), at.clone());
            plan.again_after(Duration::from_secs(left.unsigned_abs()));
        } else {
            let said = format!("Pod was expected by PDB {} to be deleted but it wasn't", object.meta.key());
            plan.note(Note::warning(&pod.object, "NotDeleted", said));
        }
    }
    let healthy =
        pods.iter().filter(|p| p.is_ready() && !p.is_terminating() && !disrupted.contains_key(p.name())).count() as i64;
    let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
    let mut status = if known.is_object() { known.clone() } else { json!({}) };
    for (field, number) in [
        ("currentHealthy", healthy),
        ("desiredHealthy", desired),
        ("expectedPods", expected),
        ("disruptionsAllowed", allowed),
        ("observedGeneration", object.meta.generation),
    ] {
        status[field] = number.into();
    }
    match (disrupted.is_empty(), status.as_object_mut()) {
        (true, Some(map)) => drop(map.remove("disruptedPods")),
        _ => status["disruptedPods"] = Value::Object(disrupted),
    }
    let (state, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    conditions::update(&mut status, Condition { kind: "DisruptionAllowed", status: state, reason, message: "" }, now);
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition["observedGeneration"] = object.meta.generation.into();
    }
    if pods.is_empty() && known.is_null() {
        plan.note(Note::normal(object, "NoPods", "No matching pods found"));
    }
    if needs_scale(spec) && pods.iter().any(|p| p.object.meta.controller().is_none()) {
        let said = format!(
            "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the status of \
             the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods \
             please set \".spec.minAvailable\" field of the PDB to an integer value.",
            shown(spec)
        );
        plan.note(Note::warning(object, "UnmanagedPods", said));
    }
    if status != known {
        plan.act(Action::status(&client::gvr_of::<PodDisruptionBudget>(), object, status)?);
    }
    Ok(plan)
}

/// A budget's selector as upstream's messages show it.
fn shown(spec: &PodDisruptionBudgetSpec) -> String {
    let Some(selector) = &spec.selector else { return "nil".into() };
    let mut text = String::from("&LabelSelector{MatchLabels:map[string]string{");
    for (key, value) in selector.match_labels.iter().flatten() {
        text += &format!("{key}: {value},");
    }
    text += "},MatchExpressions:[]LabelSelectorRequirement{";
    for rule in selector.match_expressions.iter().flatten() {
        let values = rule.values.as_deref().unwrap_or_default().join(" ");
        text += &format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", rule.key, rule.operator);
    }
    text + "},}"
}

/// Budgets select nothing without a selector and everything with an empty one.
fn selector_of(object: &Object) -> LabelSelector {
    owners::spec_selector(object)
}

/// The budgets among some that select a pod.
fn budgets_of<'b>(budgets: &'b [Arc<Object>], pod: &Object) -> Vec<&'b Arc<Object>> {
    budgets.iter().filter(|b| selector_of(b).matches(&pod.meta.labels)).collect()
}

/// Says of a pod that several budgets select it: an eviction asks for exactly one.
pub fn plan_many(pod: &Object, budgets: &[Arc<Object>]) -> Plan {
    let mut plan = Plan::nothing();
    if let [first, _, ..] = budgets_of(budgets, pod)[..] {
        let said = format!(
            "Pod {:?}/{:?} matches multiple PodDisruptionBudgets.  Chose {:?} arbitrarily.",
            &*pod.meta.namespace, &*pod.meta.name, &*first.meta.name
        );
        plan.note(Note::warning(pod, "MultiplePodDisruptionBudgets", said));
    }
    plan
}

/// Finds the replicas wanted by the controllers of pods.
struct Scales {
    deployments: Arc<Informer>,
    replica_sets: Arc<Informer>,
    stateful_sets: Arc<Informer>,
    replication_controllers: Arc<Informer>,
    client: Client,
    kinds: Kinds,
}

impl Scales {
    /// (uid of the controller that has a scale, its replicas), of kinds known here.
    fn known(&self, namespace: &str, owner: &meta::OwnerReference) -> Option<(String, i64)> {
        let key = meta::object::object_key(namespace, &owner.name);
        let is = |o: &Arc<Object>| *o.meta.uid == *owner.uid;
        match owner.kind.as_str() {
            "ReplicaSet" => {
                let set = self.replica_sets.get(&key).filter(is)?;
                if let Some(above) = set.meta.controller().filter(|c| c.kind == "Deployment") {
                    let deployment = self.deployments.get(&meta::object::object_key(namespace, &above.name))?;
                    let replicas = deployment.typed::<Deployment>().ok()?.spec.replicas.unwrap_or(1);
                    return Some((above.uid.clone(), i64::from(replicas)));
                }
                Some((owner.uid.clone(), i64::from(set.typed::<ReplicaSet>().ok()?.spec.replicas.unwrap_or(1))))
            }
            "StatefulSet" => {
                let set = self.stateful_sets.get(&key).filter(is)?;
                Some((owner.uid.clone(), i64::from(set.typed::<StatefulSet>().ok()?.spec.replicas.unwrap_or(1))))
            }
            "ReplicationController" => {
                let set = self.replication_controllers.get(&key).filter(is)?;
                let replicas = set.typed::<ReplicationController>().ok()?.spec.as_ref()?.replicas.unwrap_or(1);
                Some((owner.uid.clone(), i64::from(replicas)))
            }
            _ => None,
        }
    }

    /// The same of any kind, by its scale.
    async fn asked(&self, namespace: &str, owner: &meta::OwnerReference) -> Result<Option<(String, i64)>, String> {
        let kind = CrossVersionObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: owner.kind.clone(),
            name: owner.name.clone(),
        };
        let resource = kind_of(&self.client, &self.kinds, &kind).await.map_err(|s| s.message)?;
        let api = self.client.dynamic(resource.clone()).namespaced(namespace);
        match api.get_subresource(&owner.name, "scale").await {
            Ok(scale) if *scale.meta.uid != *owner.uid => Ok(None),
            Ok(scale) => {
                let body = scale.value().map_err(|e| e.to_string())?;
                Ok(Some((owner.uid.clone(), body["spec"]["replicas"].as_i64().unwrap_or(0))))
            }
            // Either the object is not there, or its kind has no scale.
            Err(status) if status.is_not_found() => match api.get_opt(&owner.name).await {
                Ok(Some(_)) => Err(format!("{} does not implement the scale subresource", resource.group_resource())),
                Ok(None) => Ok(None),
                Err(status) => Err(status.message),
            },
            Err(status) => Err(status.message),
        }
    }

    /// The sum over all controllers of some pods; pods without one do not count.
    async fn sum(&self, pods: &[PodView]) -> Result<i64, String> {
        let mut scales = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for pod in pods {
            let Some(owner) = pod.object.meta.controller().filter(|o| seen.insert(o.uid.clone())) else { continue };
            let namespace = &pod.object.meta.namespace;
            let found = match self.known(namespace, owner) {
                Some(found) => Some(found),
                None => self.asked(namespace, owner).await?,
            };
            let (uid, replicas) = found.ok_or_else(|| format!("found no controllers for pod {:?}", pod.name()))?;
            scales.insert(uid, replicas);
        }
        Ok(scales.values().sum())
    }
}

pub fn disruption(cx: &Context) -> Controller {
    let (budgets, all_pods) = (cx.informers.get::<PodDisruptionBudget>(), pod_facts::informer(&cx.informers));
    let scales = Arc::new(Scales {
        deployments: cx.informers.get::<Deployment>(),
        replica_sets: cx.informers.get::<ReplicaSet>(),
        stateful_sets: cx.informers.get::<StatefulSet>(),
        replication_controllers: cx.informers.get::<ReplicationController>(),
        client: cx.client.clone(),
        kinds: Kinds::default(),
    });
    let watched = [&scales.deployments, &scales.replica_sets, &scales.stateful_sets, &scales.replication_controllers]
        .map(Clone::clone);
    let (of, of_pods, for_pods, for_scales) = (budgets.clone(), all_pods.clone(), budgets.clone(), budgets.clone());
    let reconcile = move |ask: Ask| {
        let (of, of_pods, scales) = (of.clone(), of_pods.clone(), scales.clone());
        async move {
            if let Some(key) = ask.key.strip_prefix(STALE) {
                let Some(object) = of_pods.get(key) else { return Ok(Plan::nothing()) };
                return plan_stale(&PodView::new(object)?, ask.now);
            }
            if let Some(key) = ask.key.strip_prefix(MANY) {
                let Some(pod) = of_pods.get(key) else { return Ok(Plan::nothing()) };
                return Ok(plan_many(&pod, &of.list(Some(&pod.meta.namespace))));
            }
            let Some(object) = of.get(&ask.key) else { return Ok(Plan::nothing()) };
            let budget = decoded::<PodDisruptionBudget>(&object)?;
            let Some(spec) = &budget.spec else { return Ok(Plan::nothing()) };
            let views = pods::views(of_pods.list_selected(Some(&object.meta.namespace), &selector_of(&object)))?;
            let scale = if needs_scale(spec) { scales.sum(&views).await } else { Ok(0) };
            match scale {
                Ok(scale) => plan(&object, spec, &views, scale, ask.now),
                Err(why) => fail_safe(&object, &why, ask.now),
            }
        }
        .boxed()
    };
    let mut controller = Controller::with_io("disruption-controller", reconcile).watch(&budgets, own_key).watch(
        &all_pods,
        move |change: &Change| {
            let Some(object) = change.object() else { return Vec::new() };
            let selects = |b: &Arc<Object>| {
                [&change.old, &change.new].into_iter().flatten().any(|p| selector_of(b).matches(&p.meta.labels))
            };
            let budgets = for_pods.list(Some(&object.meta.namespace));
            let mut keys: Vec<String> = budgets.iter().filter(|b| selects(b)).map(|b| b.meta.key()).collect();
            let many = |pod: &Option<Arc<Object>>| pod.as_ref().is_some_and(|p| budgets_of(&budgets, p).len() > 1);
            if many(&change.new) && !many(&change.old) {
                keys.push(format!("{MANY}{}", change.key));
            }
            let stale = |o: &Arc<Object>| PodView::new(o.clone()).is_ok_and(|p| stale_condition(&p).is_some());
            if change.new.as_ref().is_some_and(stale) {
                keys.push(format!("{STALE}{}", change.key));
            }
            keys
        },
    );
    for informer in watched {
        let budgets = for_scales.clone();
        // Scales matter when the spec changes, not with each status.
        controller = controller.watch(&informer, move |change| match (&change.old, &change.new) {
            (Some(old), Some(new)) if old.meta.generation == new.meta.generation => Vec::new(),
            _ => change
                .object()
                .map(|o| budgets.list(Some(&o.meta.namespace)).iter().map(|b| b.meta.key()).collect())
                .unwrap_or_default(),
        });
    }
    controller
}
