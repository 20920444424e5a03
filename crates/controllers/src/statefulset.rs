//! StatefulSets: numbered pods with a name, a host name and volumes of their own, started in order and stopped in
//! reverse. The plan is pure and takes one step where order demands it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::Change;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PodTemplateSpec};
use meta::{Object, Status};
use serde_json::{Value, json};

use crate::history::{self, HASH_LABEL, History};
use crate::owners::{self, BY_CONTROLLER, ORPHANS};
use crate::plan::{Action, Note, Plan};
use crate::pod_facts;
use crate::pods::{self, PodView};
use crate::replicas::pods_resource;
use crate::rollout::scaled;
use crate::runner::{Controller, own_key};
use crate::{Context, conditions, decoded, status_of};

/// What revisions of StatefulSets are labelled with; their pods carry the revision's whole name.
const REVISION_LABEL: &str = "controller.kubernetes.io/hash";
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// How soon a claim that goes with a pod that is gone is looked at again.
const STALE_CLAIM: Duration = Duration::from_secs(1);

pub struct World<'a> {
    pub pods: &'a [PodView],
    pub history: History,
    pub claim: &'a dyn Fn(&str) -> Option<Arc<Object>>,
}

fn ordinal(set: &Object, pod: &str) -> Option<i64> {
    let number = pod.strip_prefix(&*set.meta.name)?.strip_prefix('-')?;
    (number == "0" || !number.starts_with('0')).then(|| number.parse().ok())?
}

/// What is to be created.
#[derive(Default)]
struct Missing {
    claims: Vec<Action>,
    pods: Vec<Action>,
    /// A pod waits for the claim of its predecessor to go.
    waits: bool,
}

struct Work<'a> {
    object: &'a Object,
    spec: &'a StatefulSetSpec,
    world: World<'a>,
    now: Timestamp,
    plan: Plan,
    start: i64,
    end: i64,
    /// Status as known.
    known: Value,
    current: String,
    update: String,
}

pub fn plan(object: &Object, spec: &StatefulSetSpec, world: World<'_>, now: Timestamp) -> Result<Plan, Status> {
    let known = status_of(object)?;
    let start = i64::from(spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0));
    let update = world.history.name.clone();
    let current = known["currentRevision"].as_str().filter(|r| !r.is_empty()).unwrap_or(&update).to_string();
    let end = start + i64::from(spec.replicas.unwrap_or(1));
    let mut work = Work { object, spec, world, now, plan: Plan::nothing(), start, end, known, current, update };
    work.plan.stop_at_failure = true;
    work.plan.actions.append(&mut work.world.history.actions);
    // Counted before acting, so that a refused pod does not keep it from being written.
    work.report()?;
    if object.meta.deletion_timestamp.is_none() && !work.world.history.collided {
        work.keep_claims();
        work.step()?;
        let live = work.world.pods.iter().filter_map(|p| p.object.meta.label(HASH_LABEL)).map(Into::into);
        let live = live.chain([work.current.clone(), work.update.clone()]).collect();
        let limit = spec.revision_history_limit.unwrap_or(10);
        work.plan.actions.extend(history::clean_up(&work.world.history, limit, &live));
    }
    Ok(work.plan)
}

impl<'a> Work<'a> {
    fn revision<'p>(&self, pod: &'p PodView) -> &'p str {
        pod.object.meta.label(HASH_LABEL).unwrap_or_default()
    }

    fn in_order(&self) -> bool {
        self.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    fn min_ready(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }

    fn is_running_and_ready(&self, pod: &PodView) -> bool {
        pod.phase() == "Running" && pod.is_ready()
    }

    fn is_available(&self, pod: &PodView) -> bool {
        self.is_running_and_ready(pod) && pod.is_available(self.min_ready(), self.now)
    }

    fn by_ordinal(&self) -> BTreeMap<i64, &'a PodView> {
        self.world.pods.iter().filter_map(|p| Some((ordinal(self.object, p.name())?, p))).collect()
    }

    fn partition(&self) -> i64 {
        let rolling = self.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        rolling.and_then(|r| r.partition).map_or(0, i64::from)
    }

    fn is_on_delete(&self) -> bool {
        self.spec.update_strategy.as_ref().is_some_and(|s| s.type_.as_deref() == Some("OnDelete"))
    }

    /// Whether a new pod of this ordinal is still made of the current revision rather than the update.
    fn is_before_update(&self, ordinal: i64) -> bool {
        if self.current == self.update || self.is_on_delete() {
            return false;
        }
        let at = ordinal - self.start;
        let not_yet = self.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref()).is_none();
        if not_yet {
            at < self.known["currentReplicas"].as_i64().unwrap_or(0)
        } else {
            ordinal < self.start + self.partition()
        }
    }

    fn deletion(&self, pod: &PodView) -> Action {
        let about = format!("Pod {} in StatefulSet {}", pod.name(), self.object.meta.name);
        Action::delete(&pods_resource(), &pod.object)
            .done(Note::normal(self.object, "SuccessfulDelete", format!("delete {about} successful")))
            .failed(Note::warning(self.object, "FailedDelete", format!("delete {about} failed error: {{}}")))
    }

    fn delete(&mut self, pod: &PodView) {
        let deletion = self.deletion(pod);
        self.plan.act(deletion);
    }

    /// Takes the steps that may be taken now.
    fn step(&mut self) -> Result<(), Status> {
        let pods = self.by_ordinal();
        let in_order = self.in_order();
        let first_unhealthy = pods
            .iter()
            .find(|(at, p)| {
                (self.start..self.end).contains(at) && (!self.is_running_and_ready(p) || p.is_terminating())
            })
            .map(|(at, _)| *at);
        let (mut missing, mut deletions) = (Missing::default(), Vec::new());
        for at in self.start..self.end {
            let Some(pod) = pods.get(&at) else {
                self.create(at, &mut missing)?;
                if in_order {
                    break;
                }
                continue;
            };
            if pod.is_finished() {
                if !pod.is_terminating() {
                    let said = format!(
                        "StatefulSet {} is recreating {} Pod {}",
                        self.object.meta.key(),
                        pod.phase().to_lowercase(),
                        pod.name()
                    );
                    self.plan.note(Note::warning(self.object, "RecreatingFailedPod", said));
                    self.delete(pod);
                }
                if in_order {
                    return Ok(());
                }
                continue;
            }
            let claims = self.missing_claims(at)?;
            if !in_order {
                missing.claims.extend(claims);
                continue;
            }
            self.at_once(claims);
            if pod.is_terminating() || !self.is_running_and_ready(pod) {
                return Ok(());
            }
            if !self.is_available(pod) {
                if let Some(wait) = pod.available_in(self.min_ready(), self.now) {
                    self.plan.again_after(wait + Duration::from_millis(200));
                }
                return Ok(());
            }
        }
        let created = !missing.pods.is_empty() || missing.waits;
        // Claims first: a pod that is there without its claims would wait for them.
        self.at_once(missing.claims);
        self.at_once(missing.pods);
        if in_order && created {
            return Ok(());
        }
        let condemned: Vec<(i64, &PodView)> =
            pods.iter().rev().filter(|(at, _)| !(self.start..self.end).contains(at)).map(|(a, p)| (*a, *p)).collect();
        let first_unhealthy = first_unhealthy.or_else(|| {
            condemned.iter().rev().find(|(_, p)| !self.is_running_and_ready(p) || p.is_terminating()).map(|(at, _)| *at)
        });
        for (at, pod) in condemned {
            if pod.is_terminating() {
                if in_order {
                    return Ok(());
                }
                continue;
            }
            // One that is not well stops only when it is the first such: those before it must be well.
            if in_order && !self.is_available(pod) && first_unhealthy != Some(at) {
                return Ok(());
            }
            let deletion = self.deletion(pod);
            if in_order {
                self.plan.act(deletion);
                return Ok(());
            }
            deletions.push(deletion);
        }
        self.at_once(deletions);
        self.roll(&pods);
        Ok(())
    }

    /// Writes that need not wait for each other.
    fn at_once(&mut self, actions: Vec<Action>) {
        if !actions.is_empty() {
            self.plan.act(Action::slow_start(actions));
        }
    }

    /// Replaces pods of older revisions, from the highest ordinal down to the partition.
    fn roll(&mut self, pods: &BTreeMap<i64, &PodView>) {
        if self.is_on_delete() {
            return;
        }
        let rolling = self.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let allowed = rolling
            .and_then(|r| r.max_unavailable.as_ref())
            .map_or(1, |m| scaled(Some(m), self.end - self.start, false).max(1));
        let mut unavailable = 0;
        for at in (self.start..self.end).rev() {
            match pods.get(&at) {
                Some(pod) if !pod.is_terminating() && self.is_available(pod) => {}
                _ => unavailable += 1,
            }
        }
        let mut room = allowed - unavailable;
        for at in (self.start + self.partition()..self.end).rev() {
            let Some(pod) = pods.get(&at) else { return };
            if pod.is_terminating() {
                if allowed == 1 {
                    return;
                }
                continue;
            }
            if self.revision(pod) != self.update {
                let broken = !self.is_available(pod);
                if !broken && room <= 0 {
                    // What is broken further down may be what takes the room: it is replaced, and there is room again.
                    continue;
                }
                self.delete(pod);
                if allowed == 1 {
                    return;
                }
                room -= i64::from(!broken);
            } else if !self.is_available(pod) && allowed == 1 {
                return;
            }
        }
    }

    fn claim_names(&self, at: i64) -> Vec<(String, &'a PersistentVolumeClaim)> {
        let templates = self.spec.volume_claim_templates.iter().flatten();
        let name = |t: &PersistentVolumeClaim| t.metadata.name.clone().unwrap_or_default();
        templates.map(|t| (format!("{}-{}-{at}", name(t), self.object.meta.name), t)).collect()
    }

    /// Claims that are missing, before the pod that needs them.
    fn missing_claims(&self, at: i64) -> Result<Vec<Action>, Status> {
        let mut actions = Vec::new();
        for (name, template) in self.claim_names(at) {
            if (self.world.claim)(&name).is_some() {
                continue;
            }
            let mut body = serde_json::to_value(template).map_err(Status::internal)?;
            body["apiVersion"] = "v1".into();
            body["kind"] = "PersistentVolumeClaim".into();
            let labels = self.spec.selector.match_labels.clone().unwrap_or_default();
            let mut all = template.metadata.labels.clone().unwrap_or_default();
            all.extend(labels);
            body["metadata"] = json!({"name": name, "namespace": &*self.object.meta.namespace, "labels": all});
            if let Some(annotations) = &template.metadata.annotations {
                body["metadata"]["annotations"] = json!(annotations);
            }
            if self.retention(true) == "Delete" {
                body["metadata"]["ownerReferences"] = json!([self.owner_of_claim()]);
            }
            if let Some(map) = body.as_object_mut() {
                map.remove("status");
            }
            let about =
                format!("Claim {name} Pod {}-{at} in StatefulSet {}", self.object.meta.name, self.object.meta.name);
            let action = Action::create(&client::gvr_of::<PersistentVolumeClaim>(), &self.object.meta.namespace, body)
                .may_exist()
                .done(Note::normal(self.object, "SuccessfulCreate", format!("create {about} success")))
                .failed(Note::warning(self.object, "FailedCreate", format!("create {about} failed error: {{}}")));
            actions.push(action);
        }
        Ok(actions)
    }

    /// Whether a claim of this ordinal goes with a pod that is gone: the next pod must not begin with it.
    fn has_stale_claim(&self, at: i64) -> bool {
        let pod = format!("{}-{at}", self.object.meta.name);
        self.claim_names(at).iter().any(|(name, _)| {
            (self.world.claim)(name).is_some_and(|claim| {
                let mut owners = claim.meta.owner_references.iter();
                claim.meta.deletion_timestamp.is_some() || owners.any(|o| o.kind == "Pod" && o.name == pod)
            })
        })
    }

    fn retention(&self, when_deleted: bool) -> &str {
        let policy = self.spec.persistent_volume_claim_retention_policy.as_ref();
        let word = policy.and_then(|p| if when_deleted { p.when_deleted.as_deref() } else { p.when_scaled.as_deref() });
        word.unwrap_or("Retain")
    }

    fn owner_of_claim(&self) -> Value {
        let o = self.object;
        json!({"apiVersion": &*o.api_version, "kind": &*o.kind, "name": &*o.meta.name, "uid": &*o.meta.uid, "controller": true, "blockOwnerDeletion": true})
    }

    /// Claims belong to the set, or to a pod about to go for good, as the retention policy says; unless somebody else has them.
    fn keep_claims(&mut self) {
        let retains = self.retention(true) == "Retain" && self.retention(false) == "Retain";
        let resource = client::gvr_of::<PersistentVolumeClaim>();
        for (at, pod) in self.by_ordinal() {
            let condemned = !(self.start..self.end).contains(&at);
            for (name, _) in self.claim_names(at) {
                let Some(claim) = (self.world.claim)(&name) else { continue };
                let owners = || claim.meta.owner_references.iter();
                let names = |r: &meta::OwnerReference, of: &Object| r.kind == *of.kind && r.name == *of.meta.name;
                let is_ours = |r: &meta::OwnerReference| names(r, self.object) || names(r, &pod.object);
                let by_set = owners().any(|r| *r.uid == *self.object.meta.uid);
                let by_pod = owners().any(|r| *r.uid == *pod.object.meta.uid);
                // Of a set or a pod of these names that was before: the claim is the garbage collector's.
                let of_the_past = owners().any(|r| {
                    names(r, self.object) && *r.uid != *self.object.meta.uid
                        || names(r, &pod.object) && *r.uid != *pod.object.meta.uid
                });
                let another = owners().any(|r| r.controller == Some(true) && !is_ours(r));
                if !retains && (of_the_past || another) {
                    let said = format!(
                        "PersistentVolumeClaim {name} has a conflicting OwnerReference that acts as a manging controller, the retention policy is ignored for this claim"
                    );
                    self.plan.note(Note::warning(self.object, "ConflictingController", said));
                }
                if of_the_past {
                    continue;
                }
                let alone = retains || !another;
                let want_pod = alone && condemned && self.retention(false) == "Delete";
                let want_set = alone && self.retention(true) == "Delete" && !want_pod;
                let controls = owners().all(|r| r.controller == Some(true) || !is_ours(r));
                if by_set == want_set && by_pod == want_pod && controls {
                    continue;
                }
                let others = claim
                    .meta
                    .owner_references
                    .iter()
                    .filter(|r| *r.uid != *self.object.meta.uid && *r.uid != *pod.object.meta.uid);
                let mut references: Vec<Value> = others.map(owners::reference_value).collect();
                if want_set {
                    references.push(self.owner_of_claim());
                }
                if want_pod {
                    references.push(owners::controller_ref(&pod.object));
                }
                let metadata =
                    json!({"resourceVersion": claim.resource_version.to_string(), "ownerReferences": references});
                self.plan.act(Action::patch(
                    &resource,
                    &claim,
                    "",
                    client::Patch::Merge(json!({"metadata": metadata})),
                ));
            }
        }
    }

    fn create(&mut self, at: i64, missing: &mut Missing) -> Result<(), Status> {
        if self.has_stale_claim(at) {
            missing.waits = true;
            self.plan.again_after(STALE_CLAIM);
            return Ok(());
        }
        missing.claims.extend(self.missing_claims(at)?);
        let before = self.is_before_update(at);
        let revision = if before { &self.current } else { &self.update };
        let kept = self
            .world
            .history
            .known
            .iter()
            .find(|r| before && *r.meta.name == **revision)
            .map(|r| history::template(r));
        let old: Option<PodTemplateSpec> = kept.and_then(|t| serde_json::from_value(t).ok());
        let template = old.as_ref().unwrap_or(&self.spec.template);
        let name = format!("{}-{at}", self.object.meta.name);
        let mut body = pods::from_template(template, self.object, &name, &format!("{}-", self.object.meta.name))?;
        let labels = &mut body["metadata"]["labels"];
        labels[POD_NAME] = name.as_str().into();
        labels[POD_INDEX] = at.to_string().into();
        labels[HASH_LABEL] = revision.as_str().into();
        body["spec"]["hostname"] = name.as_str().into();
        if let Some(service) = self.spec.service_name.as_deref().filter(|s| !s.is_empty()) {
            body["spec"]["subdomain"] = service.into();
        }
        let mut volumes: Vec<Value> = body["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        for (claim, template) in self.claim_names(at) {
            let volume = template.metadata.name.clone().unwrap_or_default();
            volumes.retain(|v| v["name"] != *volume);
            volumes.push(json!({"name": volume, "persistentVolumeClaim": {"claimName": claim}}));
        }
        if !volumes.is_empty() {
            body["spec"]["volumes"] = volumes.into();
        }
        let about = format!("Pod {name} in StatefulSet {}", self.object.meta.name);
        let action = Action::create(&pods_resource(), &self.object.meta.namespace, body)
            .done(Note::normal(self.object, "SuccessfulCreate", format!("create {about} successful")))
            .failed(Note::warning(self.object, "FailedCreate", format!("create {about} failed error: {{}}")));
        missing.pods.push(action);
        Ok(())
    }

    fn report(&mut self) -> Result<(), Status> {
        let mut status = if self.known.is_object() { self.known.clone() } else { json!({}) };
        // Pods that have not been taken in by a node count as well; those on their way out only as replicas.
        let pods = self.world.pods;
        let count = |want: &dyn Fn(&PodView) -> bool| pods.iter().filter(|p| want(p)).count() as i64;
        let alive = |p: &PodView| !p.is_terminating() && !p.is_finished();
        let ready = count(&|p| self.is_running_and_ready(p));
        let available = count(&|p| self.is_available(p));
        let replicas = pods.len() as i64;
        let updated = count(&|p| alive(p) && self.revision(p) == self.update);
        let mut current = count(&|p| alive(p) && self.revision(p) == self.current);
        for pod in pods {
            if let Some(wait) = pod.available_in(self.min_ready(), self.now) {
                self.plan.again_after(wait + Duration::from_millis(200));
            }
        }
        if !self.is_on_delete() && updated == replicas && ready == replicas && replicas == self.end - self.start {
            current = updated;
            self.current = self.update.clone();
        }
        status["replicas"] = replicas.into();
        status["availableReplicas"] = available.into();
        conditions::count(&mut status, "readyReplicas", ready);
        conditions::count(&mut status, "updatedReplicas", updated);
        conditions::count(&mut status, "currentReplicas", current);
        status["currentRevision"] = self.current.as_str().into();
        status["updateRevision"] = self.update.as_str().into();
        status["observedGeneration"] = self.object.meta.generation.into();
        let collisions = status["collisionCount"].as_i64().unwrap_or(0) + i64::from(self.world.history.collided);
        status["collisionCount"] = collisions.into();
        if status != self.known {
            self.plan.act(Action::status(&client::gvr_of::<StatefulSet>(), self.object, status)?);
        }
        Ok(())
    }
}

pub fn stateful_sets(cx: &Context) -> Controller {
    let (sets, all_pods) = (cx.informers.get::<StatefulSet>(), pod_facts::informer(&cx.informers));
    let (claims, revisions) = (cx.informers.get::<PersistentVolumeClaim>(), cx.informers.get::<ControllerRevision>());
    owners::index(&all_pods);
    owners::index(&revisions);
    let (of, of_pods, of_claims, of_revisions) = (sets.clone(), all_pods.clone(), claims.clone(), revisions.clone());
    let to_set = owners::to_controllers("StatefulSet", &sets, owners::spec_selector);
    Controller::new("statefulset-controller", move |ask| {
        let Some(object) = of.get(&ask.key) else { return Ok(Plan::nothing()) };
        let set = decoded::<StatefulSet>(&object)?;
        let selector = owners::spec_selector(&object);
        let namespace = &object.meta.namespace;
        let get = |informer: &client::Informer, name: &str| informer.get(&meta::object::object_key(namespace, name));
        let claimed = owners::claim(
            &pods_resource(),
            &object,
            &selector,
            of_pods.by_index(BY_CONTROLLER, &object.meta.uid),
            of_pods.by_index(ORPHANS, namespace),
            |o| ordinal(&object, &o.meta.name).is_some(),
        );
        let views = pods::views(claimed.objects)?;
        let owned = of_revisions.by_index(BY_CONTROLLER, &object.meta.uid);
        let history = history::sync(&object, REVISION_LABEL, owned, |name| get(&of_revisions, name).is_some())?;
        let claim = |name: &str| get(&of_claims, name);
        let mut plan = plan(&object, &set.spec, World { pods: &views, history, claim: &claim }, ask.now)?;
        plan.actions.splice(0..0, claimed.actions);
        Ok(plan)
    })
    .watch(&sets, own_key)
    .watch(&all_pods, move |change: &Change| to_set(change))
    .watch(&revisions, owners::to_controller("StatefulSet"))
    .read(&claims)
}
