//! Facts about pods that several controllers share: active, ready, available, which goes first; and the pod a template
//! makes. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::Patch;
use client::time::rfc3339;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use meta::{Object, Status};
use serde_json::{Value, json};

use crate::plan::Action;
use crate::pod_facts::{Condition, Facts};

/// A pod with its facts.
#[derive(Clone, Debug)]
pub struct PodView {
    pub object: Arc<Object>,
    pub facts: Arc<Facts>,
}

/// Views of objects that are pods.
pub fn views(objects: Vec<Arc<Object>>) -> Result<Vec<PodView>, Status> {
    objects.into_iter().map(PodView::new).collect()
}

impl PodView {
    pub fn new(object: Arc<Object>) -> Result<Self, Status> {
        let facts = object.typed().map_err(|e| Status::internal(format!("pod {}: {e}", object.meta.key())))?;
        Ok(Self { object, facts })
    }

    pub fn name(&self) -> &str {
        &self.object.meta.name
    }

    pub fn phase(&self) -> &str {
        &self.facts.phase
    }

    pub fn is_succeeded(&self) -> bool {
        self.phase() == "Succeeded"
    }

    pub fn is_failed(&self) -> bool {
        self.phase() == "Failed"
    }

    pub fn is_finished(&self) -> bool {
        self.is_succeeded() || self.is_failed()
    }

    pub fn is_terminating(&self) -> bool {
        self.object.meta.deletion_timestamp.is_some()
    }

    /// Neither finished nor on its way out.
    pub fn is_active(&self) -> bool {
        !self.is_finished() && !self.is_terminating()
    }

    pub fn node(&self) -> &str {
        &self.facts.node
    }

    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.facts.conditions.iter().find(|c| c.kind == kind)
    }

    pub fn is_ready(&self) -> bool {
        self.condition("Ready").is_some_and(|c| c.status == "True")
    }

    /// When it became ready; `None` when it is not.
    pub fn ready_since(&self) -> Option<Timestamp> {
        let ready = self.condition("Ready").filter(|c| c.status == "True")?;
        Some(ready.last_transition_time.unwrap_or(Timestamp::MIN))
    }

    /// Ready for at least so many seconds.
    pub fn is_available(&self, min_ready_seconds: i32, now: Timestamp) -> bool {
        self.is_ready() && self.available_in(min_ready_seconds, now).is_none()
    }

    /// How long a ready pod still has to stay ready to be available.
    pub fn available_in(&self, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
        if min_ready_seconds <= 0 {
            return None;
        }
        let left = i64::from(min_ready_seconds) - seconds_between(self.ready_since()?, now);
        (left > 0).then(|| Duration::from_secs(left.unsigned_abs()))
    }

    pub fn created(&self) -> Timestamp {
        client::time::parse(&self.object.meta.creation_timestamp).unwrap_or(Timestamp::MIN)
    }

    pub fn max_restarts(&self) -> i32 {
        self.facts.max_restarts
    }

    fn deletion_cost(&self) -> i32 {
        let cost = self.facts.annotation("controller.kubernetes.io/pod-deletion-cost");
        cost.and_then(|c| c.parse().ok()).unwrap_or(0)
    }

    /// Tells something in the pod's status: the rest stays as others write it meanwhile, unless there is a newer version.
    pub fn tell(&self, status: Value) -> Action {
        let metadata =
            json!({"uid": &*self.object.meta.uid, "resourceVersion": self.object.resource_version.to_string()});
        let patch = Patch::Strategic(json!({"metadata": metadata, "status": status}));
        Action::patch(&crate::replicas::pods_resource(), &self.object, "status", patch)
    }

    /// A condition as [`PodView::tell`] takes it; `None` when the pod says the same already.
    pub fn to_say(&self, kind: &str, state: &str, reason: &str, message: &str, now: Timestamp) -> Option<Value> {
        let known = self.condition(kind).filter(|c| c.status == state);
        if known.is_some_and(|c| c.reason.as_deref().unwrap_or_default() == reason) {
            return None;
        }
        let since = known.and_then(|c| c.last_transition_time).unwrap_or(now);
        let (since, reason, message) = (rfc3339(since), some(reason), some(message));
        Some(json!({"type": kind, "status": state, "reason": reason, "message": message, "lastTransitionTime": since}))
    }
}

/// In a patch null takes away.
fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// Whole seconds from one time to another, negative when it is the other way round.
pub fn seconds_between(from: Timestamp, to: Timestamp) -> i64 {
    to.as_second().saturating_sub(from.as_second())
}

/// Ages are compared by order of magnitude, so that which of many equals goes is left to chance (their uids).
fn age_rank(since: Timestamp, now: Timestamp) -> i64 {
    let seconds = seconds_between(since, now);
    if seconds <= 0 { 0 } else { i64::from(64 - seconds.leading_zeros()) }
}

/// Which pods to delete first when there are too many: those that matter least. `crowd` says how many pods of the same
/// owner (and its kin) run on a node.
pub fn deletion_order(a: &PodView, b: &PodView, crowd: &BTreeMap<String, usize>, now: Timestamp) -> Ordering {
    let phase = |p: &PodView| match p.phase() {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let crowd_of = |p: &PodView| crowd.get(p.node()).copied().unwrap_or(0);
    let ready_age = |p: &PodView| p.ready_since().map_or(0, |t| age_rank(t, now));
    (!a.node().is_empty())
        .cmp(&!b.node().is_empty())
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| a.is_ready().cmp(&b.is_ready()))
        .then_with(|| a.deletion_cost().cmp(&b.deletion_cost()))
        .then_with(|| crowd_of(b).cmp(&crowd_of(a)))
        .then_with(|| ready_age(a).cmp(&ready_age(b)))
        .then_with(|| b.max_restarts().cmp(&a.max_restarts()))
        .then_with(|| age_rank(a.created(), now).cmp(&age_rank(b.created(), now)))
        .then_with(|| a.object.meta.uid.cmp(&b.object.meta.uid))
}

/// The pod a template makes for its controller: labels, annotations, finalizers and spec of the template.
pub fn from_template(template: &PodTemplateSpec, owner: &Object, name: &str, prefix: &str) -> Result<Value, Status> {
    let metadata = template.metadata.as_ref();
    let mut body = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "generateName": prefix, "namespace": &*owner.meta.namespace,
            "ownerReferences": [crate::owners::controller_ref(owner)],
        },
    });
    if let Some(labels) = metadata.and_then(|m| m.labels.as_ref()) {
        body["metadata"]["labels"] = json!(labels);
    }
    if let Some(annotations) = metadata.and_then(|m| m.annotations.as_ref()) {
        body["metadata"]["annotations"] = json!(annotations);
    }
    if let Some(finalizers) = metadata.and_then(|m| m.finalizers.as_ref()) {
        body["metadata"]["finalizers"] = json!(finalizers);
    }
    body["spec"] = serde_json::to_value(&template.spec).map_err(Status::internal)?;
    Ok(body)
}

/// Longest prefix of a generated name: 63 minus the five characters of its end.
const MAX_PREFIX: usize = 58;

/// `owner-`, shortened so that five characters more still make a name.
pub fn name_prefix(owner: &str) -> String {
    let prefix = format!("{owner}-");
    prefix[..prefix.len().min(MAX_PREFIX)].to_string()
}

/// `count` names with a prefix that are the same for the same world: repeating a plan cannot create anything twice. A
/// world in which one of the known objects is another makes other names.
pub fn fresh_names<'a>(
    prefix: &str,
    owner_uid: &str,
    known_uids: impl Iterator<Item = &'a str>,
    taken: impl Fn(&str) -> bool,
    count: usize,
) -> Vec<String> {
    let mut uids: Vec<&str> = known_uids.collect();
    uids.sort_unstable();
    let world = crate::hash::fnv64(uids.join(",").as_bytes());
    (0usize..)
        .map(|i| format!("{prefix}{}", crate::hash::suffix(&format!("{owner_uid}/{world:x}/{i}"))))
        .filter(|name| !taken(name))
        .take(count)
        .collect()
}
