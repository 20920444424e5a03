//! The core of ReplicaSets and ReplicationControllers: so many pods of one template, and the status that says so. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use meta::{Gvr, LabelSelector, Object, Status};
use serde_json::Value;

use crate::conditions::{self, Condition};
use crate::plan::{Action, Note, Plan};
use crate::pods::{self, PodView};

/// Pods created or deleted by one plan; the rest comes with the next.
const BURST: usize = 500;

/// What keeps the replicas, of either kind.
pub struct Set<'a> {
    pub resource: Gvr,
    pub object: &'a Object,
    pub replicas: i64,
    pub min_ready_seconds: i32,
    pub template: &'a PodTemplateSpec,
    pub status: Value,
}

/// The world a set is planned in.
pub struct World<'a> {
    /// Claimed by the set, whatever their state.
    pub pods: &'a [PodView],
    /// Pods of the set's kin (the same Deployment) by node: crowded nodes lose pods first.
    /// Asked only when some must go.
    pub crowd: &'a dyn Fn() -> BTreeMap<String, usize>,
    /// Whether a pod's name is in use.
    pub taken: &'a dyn Fn(&str) -> bool,
    /// Why the last plan failed.
    pub failure: Option<&'a Status>,
}

pub fn pods_resource() -> Gvr {
    Gvr::new("", "v1", "pods")
}

/// Deletes a pod and tells so on behalf of its owner.
pub fn delete_pod(owner: &Object, pod: &PodView) -> Action {
    Action::delete(&pods_resource(), &pod.object)
        .done(Note::normal(owner, "SuccessfulDelete", format!("Deleted pod: {}", pod.name())))
        .failed(Note::warning(owner, "FailedDelete", "Error deleting: {}"))
}

/// Creates a pod and tells so on behalf of its owner.
pub fn create_pod(owner: &Object, body: Value) -> Action {
    Action::create(&pods_resource(), &owner.meta.namespace, body)
        .may_exist()
        .done(Note::normal(owner, "SuccessfulCreate", "Created pod: {}"))
        .failed(Note::warning(owner, "FailedCreate", "Error creating: {}"))
}

pub fn plan(set: &Set<'_>, world: &World<'_>, now: Timestamp) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    let active: Vec<&PodView> = world.pods.iter().filter(|p| p.is_active()).collect();
    let have = active.len();
    let want = usize::try_from(set.replicas).unwrap_or(0);
    if set.object.meta.deletion_timestamp.is_none() {
        if have < want {
            plan.act(Action::slow_start(creations(set, world, (want - have).min(BURST))?));
        } else if have > want {
            let (mut victims, crowd) = (active.clone(), (world.crowd)());
            victims.sort_by(|a, b| pods::deletion_order(a, b, &crowd, now));
            let deletions = victims.into_iter().take((have - want).min(BURST)).map(|p| delete_pod(set.object, p));
            plan.act(Action::slow_start(deletions.collect()));
        }
    }
    let status = status(set, world, &active, now);
    if status != set.status {
        plan.act(Action::status(&set.resource, set.object, status)?);
    }
    if let Some(soonest) = active.iter().filter_map(|p| p.available_in(set.min_ready_seconds, now)).min() {
        plan.again_after(soonest + Duration::from_millis(500));
    }
    Ok(plan)
}

fn creations(set: &Set<'_>, world: &World<'_>, count: usize) -> Result<Vec<Action>, Status> {
    let prefix = pods::name_prefix(&set.object.meta.name);
    let uids = world.pods.iter().map(|p| &*p.object.meta.uid);
    let names = pods::fresh_names(&prefix, &set.object.meta.uid, uids, world.taken, count);
    let alike = pods::from_template(set.template, set.object, "", &prefix)?;
    let each = names.into_iter().map(|name| {
        let mut body = alike.clone();
        body["metadata"]["name"] = name.into();
        create_pod(set.object, body)
    });
    Ok(each.collect())
}

fn status(set: &Set<'_>, world: &World<'_>, active: &[&PodView], now: Timestamp) -> Value {
    let mut status = if set.status.is_object() { set.status.clone() } else { Value::Object(Default::default()) };
    let template_labels = set.template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    let labelled =
        LabelSelector::from_map(template_labels.into_iter().flatten().map(|(k, v)| (k.as_str(), v.as_str())));
    let counted = |want: &dyn Fn(&PodView) -> bool| active.iter().filter(|p| want(p)).count() as i64;
    status["replicas"] = active.len().into();
    conditions::count(&mut status, "fullyLabeledReplicas", counted(&|p| labelled.matches(&p.object.meta.labels)));
    conditions::count(&mut status, "readyReplicas", counted(&|p| p.is_ready()));
    conditions::count(&mut status, "availableReplicas", counted(&|p| p.is_available(set.min_ready_seconds, now)));
    if &*set.resource.resource == "replicasets" {
        let terminating = world.pods.iter().filter(|p| p.is_terminating() && !p.is_finished()).count();
        status["terminatingReplicas"] = terminating.into();
    }
    status["observedGeneration"] = set.object.meta.generation.into();
    let want = usize::try_from(set.replicas).unwrap_or(0);
    match world.failure {
        Some(failure) if active.len() != want => {
            let reason = if active.len() < want { "FailedCreate" } else { "FailedDelete" };
            let message = failure.message.as_str();
            conditions::set(&mut status, Condition { kind: "ReplicaFailure", status: "True", reason, message }, now);
        }
        _ => conditions::remove(&mut status, "ReplicaFailure"),
    }
    status
}
