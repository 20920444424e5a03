//! Pods leave nodes whose `NoExecute` taints they do not tolerate, at once or when their time is over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::Change;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint, Toleration};
use meta::Status;
use serde_json::json;

use crate::node_lifecycle::{BY_NODE, index_pods_by_node};
use crate::nodes;
use crate::plan::{Action, Note, Plan};
use crate::pod_facts::{self, facts};
use crate::pods::{PodView, seconds_between};
use crate::replicas::pods_resource;
use crate::runner::{Controller, own_key};
use crate::{Context, decoded};

/// Seconds a pod that tolerates all taints may stay; `None` for ever.
pub fn may_stay(taints: &[Taint], tolerations: &[Toleration]) -> Option<i64> {
    let mut least: Option<i64> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let tolerating = tolerations.iter().filter(|t| nodes::tolerates(t, taint));
        for seconds in tolerating.filter_map(|t| t.toleration_seconds) {
            least = Some(least.map_or(seconds, |l| l.min(seconds)).max(0));
        }
    }
    least
}

/// Whether tolerations cover all `NoExecute` taints, be it for a time.
pub fn is_tolerated(taints: &[Taint], tolerations: &[Toleration]) -> bool {
    nodes::untolerated(taints, tolerations, &["NoExecute"]).is_none()
}

/// What becomes of one pod on a tainted node, seen tainted first at `since`.
pub fn plan(pod: &PodView, taints: &[Taint], since: Timestamp, now: Timestamp) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    let tolerations = pod.facts.shape.tolerations();
    if is_tolerated(taints, tolerations) {
        let Some(stay) = may_stay(taints, tolerations) else { return Ok(plan) };
        let left = stay - seconds_between(since, now);
        if left > 0 {
            plan.again_after(Duration::from_secs(left.unsigned_abs()));
            return Ok(plan);
        }
    }
    evict(&mut plan, pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint", now);
    let said = format!("Marking for deletion Pod {}", pod.object.meta.key());
    plan.note(Note::normal(&pod.object, "TaintManagerEviction", said));
    Ok(plan)
}

/// Says why a pod is disrupted, then deletes it.
pub fn evict(plan: &mut Plan, pod: &PodView, reason: &str, message: &str, now: Timestamp) {
    if let Some(condition) = pod.to_say("DisruptionTarget", "True", reason, message, now).filter(|_| !pod.is_finished())
    {
        plan.act(pod.tell(json!({"conditions": [condition]})));
    }
    plan.act(Action::delete(&pods_resource(), &pod.object));
}

pub fn taint_eviction(cx: &Context) -> Controller {
    let (all_nodes, all_pods) = (cx.informers.get::<Node>(), pod_facts::informer(&cx.informers));
    index_pods_by_node(&all_pods);
    let (of_nodes, of, by_node) = (all_nodes.clone(), all_pods.clone(), all_pods.clone());
    // When a pod's node was first seen tainted, for taints that do not say; entries go with their pods or taints.
    let first_seen: Mutex<HashMap<String, Timestamp>> = Mutex::default();
    Controller::new("taint-eviction-controller", move |ask| {
        let forget = || {
            first_seen.lock().unwrap_or_else(PoisonError::into_inner).remove(&*ask.key);
            Ok(Plan::nothing())
        };
        let Some(object) = of.get(&ask.key).filter(|o| o.meta.deletion_timestamp.is_none()) else { return forget() };
        let pod = PodView::new(object)?;
        let Some(node) = of_nodes.get(pod.node()) else { return forget() };
        let node = decoded::<Node>(&node)?;
        let taints: Vec<Taint> = nodes::taints(&node).iter().filter(|t| t.effect == "NoExecute").cloned().collect();
        if taints.is_empty() || pod.is_finished() {
            return forget();
        }
        let seen =
            *first_seen.lock().unwrap_or_else(PoisonError::into_inner).entry(ask.key.to_string()).or_insert(ask.now);
        let told = taints.iter().filter_map(|t| t.time_added.as_ref()).map(|t| t.0).min();
        plan(&pod, &taints, told.map_or(seen, |t| t.min(seen)), ask.now)
    })
    .watch(&all_pods, own_key_when_placed)
    .watch(&all_nodes, move |change| {
        let no_execute = |o: &Arc<meta::Object>| {
            o.typed::<Node>()
                .ok()
                .map(|n| nodes::taints(&n).iter().filter(|t| t.effect == "NoExecute").cloned().collect::<Vec<_>>())
        };
        let (old, new) = (change.old.as_ref().and_then(no_execute), change.new.as_ref().and_then(no_execute));
        match new {
            Some(new) if Some(&new) != old.as_ref() => {
                by_node.by_index(BY_NODE, &change.key).iter().map(|p| p.meta.key()).collect()
            }
            _ => Vec::new(),
        }
    })
    .workers(cx.options.concurrency)
}

/// Pods matter when they come to a node, when their tolerations change and when they are gone, not with each status.
fn own_key_when_placed(change: &Change) -> Vec<String> {
    let seen = |o: &Arc<meta::Object>| {
        let facts = facts(o)?;
        Some((facts.node.clone(), facts.shape.tolerations.clone()))
    };
    match (&change.old, &change.new) {
        (Some(old), Some(new)) if seen(old) == seen(new) && old.meta.uid == new.meta.uid => Vec::new(),
        _ => own_key(change),
    }
}
