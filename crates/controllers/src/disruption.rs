//! The status of PodDisruptionBudgets: how many healthy pods there are, should be, and so how many may go. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::{Change, Informer};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use meta::{LabelSelector, Object, Status};
use serde_json::{Map, Value, json};

use crate::conditions::{self, Condition};
use crate::plan::{Action, Note, Plan};
use crate::pods::{self, PodView, seconds_between};
use crate::rollout::scaled;
use crate::runner::{Controller, own_key};
use crate::{Context, decoded, owners, status_of};

/// Seconds an evicted pod may take to show that it is going, before its eviction counts as failed.
const DISRUPTION_TIMEOUT: i64 = 120;

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
    if status != known {
        plan.act(Action::status(&client::gvr_of::<PodDisruptionBudget>(), object, status)?);
    }
    Ok(plan)
}

/// Budgets select nothing without a selector and everything with an empty one.
fn selector_of(object: &Object) -> LabelSelector {
    owners::spec_selector(object)
}

/// The replicas wanted by all controllers of some pods.
struct Scales {
    deployments: Arc<Informer>,
    replica_sets: Arc<Informer>,
    stateful_sets: Arc<Informer>,
    replication_controllers: Arc<Informer>,
}

impl Scales {
    /// (uid of the controller that has a scale, its replicas)
    fn of(&self, namespace: &str, owner: &meta::OwnerReference) -> Option<(String, i64)> {
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

    fn sum(&self, pods: &[PodView]) -> i64 {
        let mut scales = BTreeMap::new();
        for pod in pods {
            if let Some(owner) = pod.object.meta.controller()
                && let Some((uid, replicas)) = self.of(&pod.object.meta.namespace, owner)
            {
                scales.insert(uid, replicas);
            }
        }
        scales.values().sum()
    }
}

pub fn disruption(cx: &Context) -> Controller {
    let (budgets, all_pods) = (cx.informers.get::<PodDisruptionBudget>(), cx.informers.get::<Pod>());
    let scales = Scales {
        deployments: cx.informers.get::<Deployment>(),
        replica_sets: cx.informers.get::<ReplicaSet>(),
        stateful_sets: cx.informers.get::<StatefulSet>(),
        replication_controllers: cx.informers.get::<ReplicationController>(),
    };
    let watched = [&scales.deployments, &scales.replica_sets, &scales.stateful_sets, &scales.replication_controllers]
        .map(Clone::clone);
    let (of, of_pods, for_pods, for_scales) = (budgets.clone(), all_pods.clone(), budgets.clone(), budgets.clone());
    let mut controller = Controller::new("disruption-controller", move |ask| {
        let Some(object) = of.get(&ask.key) else { return Ok(Plan::nothing()) };
        let budget = decoded::<PodDisruptionBudget>(&object)?;
        let Some(spec) = &budget.spec else { return Ok(Plan::nothing()) };
        let views = pods::views(of_pods.list_selected(Some(&object.meta.namespace), &selector_of(&object)))?;
        let scale = scales.sum(&views);
        plan(&object, spec, &views, scale, ask.now)
    })
    .watch(&budgets, own_key)
    .watch(&all_pods, move |change: &Change| {
        let Some(namespace) = change.object().map(|o| o.meta.namespace.clone()) else { return Vec::new() };
        let selects = |b: &Arc<Object>| {
            [&change.old, &change.new].into_iter().flatten().any(|p| selector_of(b).matches(&p.meta.labels))
        };
        for_pods.list(Some(&namespace)).iter().filter(|b| selects(b)).map(|b| b.meta.key()).collect()
    });
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
