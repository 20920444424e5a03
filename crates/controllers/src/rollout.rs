//! The core of Deployments: which ReplicaSets there should be and how large. Pure.
//!
//! The sets are held as small models that the steps below change; what changed is written at the end, each set once.
//! Rounding, proportions, condition reasons and messages follow upstream, since `kubectl rollout` and people read them.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use meta::{Gvr, Object, Status};
use serde_json::{Value, json};

use crate::conditions::{self};
use crate::plan::{Action, Note, Plan};

pub const HASH_LABEL: &str = "pod-template-hash";
pub const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations a ReplicaSet does not take over from its Deployment.
const NOT_COPIED: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// Bytes of the revision history annotation.
const MAX_HISTORY: usize = 2000;

/// One ReplicaSet, as far as rollouts care.
#[derive(Clone)]
pub struct Set {
    pub object: Arc<Object>,
    pub typed: Arc<ReplicaSet>,
    pub replicas: i64,
    pub min_ready: i64,
    pub annotations: BTreeMap<String, String>,
    pub actual: i64,
    pub ready: i64,
    pub available: i64,
    pub terminating: i64,
}

impl Set {
    pub fn new(object: Arc<Object>) -> Result<Self, Status> {
        let typed = crate::decoded::<ReplicaSet>(&object)?;
        let (spec, status) = (&typed.spec, typed.status.as_ref());
        let number = |n: Option<Option<i32>>| i64::from(n.flatten().unwrap_or(0));
        Ok(Self {
            replicas: i64::from(spec.replicas.unwrap_or(1)),
            min_ready: number(Some(spec.min_ready_seconds)),
            annotations: typed.metadata.annotations.clone().unwrap_or_default(),
            actual: status.map_or(0, |s| i64::from(s.replicas)),
            ready: number(status.map(|s| s.ready_replicas)),
            available: number(status.map(|s| s.available_replicas)),
            terminating: number(status.map(|s| s.terminating_replicas)),
            object,
            typed,
        })
    }

    pub fn name(&self) -> &str {
        &self.object.meta.name
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.typed.spec.template.as_ref()
    }

    fn number(&self, annotation: &str) -> Option<i64> {
        self.annotations.get(annotation)?.parse().ok()
    }

    fn revision(&self) -> i64 {
        self.number(REVISION).unwrap_or(0)
    }

    fn age(&self) -> (&str, &str) {
        (&self.object.meta.creation_timestamp, self.name())
    }

    fn is_old_news(&self) -> bool {
        let observed = self.typed.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
        self.actual == 0
            && self.replicas == 0
            && self.object.meta.generation <= observed
            && self.object.meta.deletion_timestamp.is_none()
    }
}

type OldPodsRunning = Box<dyn Fn(Option<&str>) -> bool>;

/// The world a Deployment is planned in.
pub struct World {
    /// Its own sets, claimed.
    pub sets: Vec<Set>,
    /// Whether pods of other sets than the one named still run (asked only by Recreate).
    pub old_pods_running: OldPodsRunning,
    /// What has the name of a set to be created.
    pub named: Box<dyn Fn(&str) -> bool>,
    pub failure: Option<Arc<Status>>,
}

fn sets_resource() -> Gvr {
    client::gvr_of::<ReplicaSet>()
}

/// An `IntOrString` of a total.
pub fn scaled(value: Option<&IntOrString>, total: i64, round_up: bool) -> i64 {
    match value {
        None => 0,
        Some(IntOrString::Int(n)) => i64::from(*n),
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let whole = percent.saturating_mul(total);
            if round_up { (whole + 99).div_euclid(100) } else { whole.div_euclid(100) }
        }
    }
}

fn without_hash(template: Option<&PodTemplateSpec>) -> PodTemplateSpec {
    let mut out = template.cloned().unwrap_or_default();
    if let Some(metadata) = &mut out.metadata {
        if let Some(labels) = &mut metadata.labels {
            labels.remove(HASH_LABEL);
        }
        // Empty and absent mean the same.
        metadata.labels = metadata.labels.take().filter(|l| !l.is_empty());
        metadata.annotations = metadata.annotations.take().filter(|a| !a.is_empty());
        metadata.creation_timestamp = None;
    }
    out.metadata.get_or_insert_default();
    out
}

/// A rollout being planned.
pub struct Rollout<'a> {
    pub object: &'a Object,
    pub deployment: &'a Deployment,
    pub spec: &'a DeploymentSpec,
    pub want: i64,
    pub surge: i64,
    pub unavailable: i64,
    pub now: Timestamp,
    /// The set of the current template, when there is one.
    pub new: Option<Set>,
    pub old: Vec<Set>,
    pub status: Value,
    pub plan: Plan,
    pub before: BTreeMap<String, i64>,
}

/// What one Deployment wants done now.
pub fn plan(object: &Object, deployment: &Deployment, world: World, now: Timestamp) -> Result<Plan, Status> {
    let spec = &deployment.spec;
    let status = crate::status_of(object)?;
    if spec.selector == Default::default() {
        let mut plan = Plan::nothing();
        plan.note(Note::warning(
            object,
            "SelectingAll",
            "This deployment is selecting all pods. A non-empty selector is required.",
        ));
        return Ok(plan);
    }
    let want = i64::from(spec.replicas.unwrap_or(1));
    let rolling = spec.strategy.as_ref().is_none_or(|s| s.type_.as_deref() != Some("Recreate"));
    let (mut surge, mut unavailable) = (0, 0);
    if rolling {
        let bounds = spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        surge = scaled(bounds.and_then(|b| b.max_surge.as_ref()), want, true);
        unavailable = scaled(bounds.and_then(|b| b.max_unavailable.as_ref()), want, false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        unavailable = unavailable.min(want);
    }
    let wanted = without_hash(Some(&spec.template));
    let mut sets = world.sets;
    sets.sort_by(|a, b| a.age().cmp(&b.age()));
    let before = sets.iter().map(|s| (s.name().to_string(), s.replicas)).collect();
    let new = sets.iter().position(|s| without_hash(s.template()) == wanted).map(|at| sets.remove(at));
    let mut rollout = Rollout {
        object,
        deployment,
        spec,
        want,
        surge,
        unavailable,
        now,
        new,
        old: sets,
        status,
        plan: Plan::nothing(),
        before,
    };
    rollout.plan.stop_at_failure = true;
    if object.meta.deletion_timestamp.is_some() {
        rollout.finish(false)?;
        return Ok(rollout.plan);
    }
    rollout.note_pause();
    rollout.sync_new_set();
    let paused = spec.paused == Some(true);
    let scaling = rollout.all().any(|s| s.replicas > 0 && s.number(DESIRED).is_some_and(|d| d != want));
    if paused || scaling {
        rollout.scale();
        if paused {
            rollout.clean_up();
        }
        rollout.finish(false)?;
    } else if rolling {
        if rollout.new.is_none() {
            return rollout.create_new_set(&world.named, world.failure.as_deref());
        }
        if !rollout.scale_new_set() && !rollout.scale_old_sets() && rollout.is_complete(&rollout.status) {
            rollout.clean_up();
        }
        rollout.finish(true)?;
    } else {
        let mut stopped = false;
        for set in &mut rollout.old {
            stopped |= set.replicas != 0;
            set.replicas = 0;
        }
        let running = rollout.old.iter().any(|s| s.actual > 0)
            || (world.old_pods_running)(rollout.new.as_ref().map(|s| &*s.object.meta.uid));
        if !stopped && !running {
            if rollout.new.is_none() {
                return rollout.create_new_set(&world.named, world.failure.as_deref());
            }
            if let Some(new) = &mut rollout.new {
                new.replicas = want;
            }
            if rollout.is_complete(&rollout.status) {
                rollout.clean_up();
            }
        }
        rollout.finish(true)?;
    }
    Ok(rollout.plan)
}

impl Rollout<'_> {
    pub fn all(&self) -> impl Iterator<Item = &Set> {
        self.old.iter().chain(&self.new)
    }

    fn total(&self) -> i64 {
        self.all().map(|s| s.replicas).sum()
    }

    fn next_revision(&self) -> i64 {
        self.old.iter().map(Set::revision).max().unwrap_or(0) + 1
    }

    /// Brings the current set's annotations up to date, its revision above all.
    fn sync_new_set(&mut self) {
        let next = self.next_revision();
        let min_ready = i64::from(self.spec.min_ready_seconds.unwrap_or(0));
        let copied = self.copied_annotations();
        let Some(new) = &mut self.new else { return };
        new.min_ready = min_ready;
        new.annotations.extend(copied);
        let known = new.annotations.get(REVISION).cloned();
        if new.revision() < next {
            new.annotations.insert(REVISION.into(), next.to_string());
            if let Some(known) = known {
                let history = new.annotations.entry(REVISION_HISTORY.into()).or_default();
                let mut revisions: Vec<&str> =
                    history.split(',').filter(|r| !r.is_empty()).chain([known.as_str()]).collect();
                while revisions.join(",").len() > MAX_HISTORY {
                    revisions.remove(0);
                }
                *history = revisions.join(",");
            }
        }
        let name = new.name().to_string();
        if self.deadline().is_some() && conditions::get(&self.status, "Progressing").is_none() {
            self.progressing("True", "FoundNewReplicaSet", &format!("Found new replica set \"{name}\""));
        }
    }

    fn copied_annotations(&self) -> BTreeMap<String, String> {
        let mut out = self.deployment.metadata.annotations.clone().unwrap_or_default();
        out.retain(|k, _| !NOT_COPIED.contains(&k.as_str()));
        out
    }

    fn size_annotations(&self) -> [(String, String); 2] {
        [(DESIRED.into(), self.want.to_string()), (MAX.into(), (self.want + self.surge).to_string())]
    }

    /// How large the current set may be now, given its present size.
    fn allowed_new(&self, present: i64) -> i64 {
        let room = self.want + self.surge - self.total();
        if room <= 0 { present } else { present + room.min(self.want - present) }
    }

    fn create_new_set(mut self, named: &dyn Fn(&str) -> bool, failure: Option<&Status>) -> Result<Plan, Status> {
        let collisions = self.status["collisionCount"].as_i64().and_then(|c| i32::try_from(c).ok());
        let hash = crate::hash::template_hash(&self.spec.template, collisions);
        let name = format!("{}-{hash}", self.object.meta.name);
        if named(&name) {
            // Another template's set has the name: the next hash is another.
            self.status["collisionCount"] = (collisions.unwrap_or(0) + 1).into();
            self.plan.act(Action::status(&client::gvr_of::<Deployment>(), self.object, self.status.clone())?);
            return Ok(self.plan);
        }
        let size = match self.surge + self.unavailable {
            0 => self.want,
            _ => self.allowed_new(0),
        };
        let mut template = serde_json::to_value(&self.spec.template).map_err(Status::internal)?;
        template["metadata"]["labels"][HASH_LABEL] = hash.as_str().into();
        let mut selector = serde_json::to_value(&self.spec.selector).map_err(Status::internal)?;
        selector["matchLabels"][HASH_LABEL] = hash.as_str().into();
        let revision = self.next_revision();
        let mut annotations = self.copied_annotations();
        annotations.insert(REVISION.into(), revision.to_string());
        annotations.extend(self.size_annotations());
        let body = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": name, "namespace": &*self.object.meta.namespace, "labels": template["metadata"]["labels"],
                "annotations": annotations, "ownerReferences": [crate::owners::controller_ref(self.object)],
            },
            "spec": {
                "replicas": size, "minReadySeconds": self.spec.min_ready_seconds.unwrap_or(0),
                "selector": selector, "template": template,
            },
        });
        let mut create = Action::create(&sets_resource(), &self.object.meta.namespace, body).may_exist();
        if size > 0 {
            let said = format!("Scaled up replica set {name} from 0 to {size}");
            create = create.done(Note::normal(self.object, "ScalingReplicaSet", said));
        }
        let said = format!("Failed to create new replica set \"{name}\": {{}}");
        create = create.failed(Note::warning(self.object, "ReplicaSetCreateError", said));
        if let Some(failure) = failure
            && self.deadline().is_some()
            && self.progressing_reason() != "ReplicaSetCreateError"
        {
            // Said first: if creating fails again, this has been said at least.
            let said = format!("Failed to create new replica set \"{name}\": {}", failure.message);
            self.progressing("False", "ReplicaSetCreateError", &said);
            self.plan.act(Action::status(&client::gvr_of::<Deployment>(), self.object, self.status.clone())?);
            self.plan.act(create);
            return Ok(self.plan);
        }
        self.plan.act(create);
        if self.deadline().is_some() {
            self.progressing("True", "NewReplicaSetCreated", &format!("Created new replica set \"{name}\""));
        }
        self.status["observedGeneration"] = self.object.meta.generation.into();
        // Nothing is of the new template yet: who follows the rollout must not take the old set's pods for its end.
        conditions::count(&mut self.status, "updatedReplicas", 0);
        self.report(&revision.to_string())?;
        Ok(self.plan)
    }

    /// Tells how the Deployment is, in one write with its revision, which follows its current set's. Upstream, too, writes
    /// that annotation with the status: written with the rest it would count as a new generation.
    fn report(&mut self, revision: &str) -> Result<(), meta::Status> {
        let mut body = self.object.value().map_err(meta::Status::internal)?;
        body["status"] = self.status.clone();
        body["metadata"]["annotations"][REVISION] = revision.into();
        self.plan.act(Action::update_subresource(&client::gvr_of::<Deployment>(), self.object, "status", body));
        Ok(())
    }

    /// A change of size, while paused or in the middle of a rollout: all sets grow or shrink in proportion.
    fn scale(&mut self) {
        self.resize();
        // Sizes are annotated for all active sets, also those that stay as they are: some of a rollout's writes may have
        // failed when others had not, and a size of the past would look like one to be scaled for ever.
        let annotations = self.size_annotations();
        for set in
            self.old.iter_mut().chain(self.new.as_mut()).filter(|s| self.before.get(&*s.object.meta.name) > Some(&0))
        {
            set.annotations.extend(annotations.clone());
        }
    }

    fn resize(&mut self) {
        let active = self.all().filter(|s| s.replicas > 0).count();
        let want = self.want;
        if active <= 1 {
            let mut candidates: Vec<&mut Set> = self.old.iter_mut().rev().collect();
            candidates.splice(0..0, self.new.as_mut());
            let at = candidates.iter().position(|s| s.replicas > 0).unwrap_or(0);
            if let Some(set) = candidates.into_iter().nth(at) {
                set.replicas = want;
            }
            return;
        }
        let saturated = self
            .new
            .as_ref()
            .is_some_and(|n| n.replicas == want && n.number(DESIRED) == Some(want) && n.available == want);
        if saturated {
            self.old.iter_mut().for_each(|s| s.replicas = 0);
            return;
        }
        if self.surge + self.unavailable > 0 {
            self.scale_in_proportion();
        }
    }

    fn scale_in_proportion(&mut self) {
        let (want, surge) = (self.want, self.surge);
        let allowed = if want > 0 { want + surge } else { 0 };
        let to_add = allowed - self.total();
        let reported = self.status["replicas"].as_i64().unwrap_or(0);
        let mut sets: Vec<&mut Set> = self.old.iter_mut().chain(self.new.as_mut()).filter(|s| s.replicas > 0).collect();
        // Larger first; of equals the newer when growing, the older when shrinking.
        sets.sort_by(|a, b| {
            let by_age = a.age().cmp(&b.age());
            b.replicas.cmp(&a.replicas).then(if to_add > 0 { by_age.reverse() } else { by_age })
        });
        let mut added = 0;
        for set in &mut sets {
            let left = to_add - added;
            if left == 0 {
                break;
            }
            let share = if want == 0 {
                -set.replicas
            } else {
                let base = set.number(MAX).unwrap_or(reported).max(1);
                let size = (set.replicas * (want + surge)) as f64 / base as f64;
                size.round() as i64 - set.replicas
            };
            let share = if to_add > 0 { share.min(left) } else { share.max(left) };
            set.replicas += share;
            added += share;
        }
        if let Some(first) = sets.first_mut() {
            first.replicas = (first.replicas + to_add - added).max(0);
        }
    }

    fn scale_new_set(&mut self) -> bool {
        let Some(present) = self.new.as_ref().map(|n| n.replicas) else { return false };
        let size = if present > self.want { self.want } else { self.allowed_new(present) };
        if let Some(new) = &mut self.new {
            new.replicas = size;
        }
        size != present
    }

    fn scale_old_sets(&mut self) -> bool {
        let Some(new) = &self.new else { return false };
        let minimum = self.want - self.unavailable;
        let mut unhealthy_left = self.total() - minimum - (new.replicas - new.available);
        if self.old.iter().all(|s| s.replicas == 0) || unhealthy_left <= 0 {
            return false;
        }
        let mut scaled = false;
        // First those that do not work anyway,
        for set in self.old.iter_mut().filter(|s| s.replicas > s.available) {
            let fewer = unhealthy_left.min(set.replicas - set.available);
            set.replicas -= fewer;
            unhealthy_left -= fewer;
            scaled |= fewer > 0;
        }
        // then as many as are available beyond the minimum.
        let mut left = self.all().map(|s| s.available).sum::<i64>() - minimum;
        for set in &mut self.old {
            let fewer = left.min(set.replicas).max(0);
            set.replicas -= fewer;
            left -= fewer;
            scaled |= fewer > 0;
        }
        scaled
    }

    /// Deletes the oldest sets beyond the history limit.
    fn clean_up(&mut self) {
        let Some(limit) = self.spec.revision_history_limit.filter(|l| *l != i32::MAX) else { return };
        let mut sets: Vec<&Set> = self.old.iter().filter(|s| s.object.meta.deletion_timestamp.is_none()).collect();
        sets.sort_by(|a, b| a.revision().cmp(&b.revision()).then_with(|| a.age().cmp(&b.age())));
        let beyond = sets.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        for set in sets.into_iter().take(beyond).filter(|s| s.is_old_news()) {
            self.plan.actions.push(Action::delete(&sets_resource(), &set.object));
        }
    }

    /// Writes the sets that changed, then the status, then the revision.
    fn finish(&mut self, rolling_out: bool) -> Result<(), Status> {
        let annotations = self.size_annotations();
        let sets: Vec<Set> = self.old.iter().chain(&self.new).cloned().collect();
        for mut set in sets {
            let from = self.before.get(set.name()).copied().unwrap_or(set.replicas);
            if from != set.replicas {
                set.annotations.extend(annotations.clone());
            }
            let same_ready = i64::from(set.typed.spec.min_ready_seconds.unwrap_or(0)) == set.min_ready;
            let same_notes =
                set.typed.metadata.annotations.as_ref().map_or(set.annotations.is_empty(), |a| *a == set.annotations);
            if from == set.replicas && same_ready && same_notes {
                continue;
            }
            let mut body = set.object.value().map_err(Status::internal)?;
            body["spec"]["replicas"] = set.replicas.into();
            body["spec"]["minReadySeconds"] = set.min_ready.into();
            body["metadata"]["annotations"] = json!(set.annotations);
            let mut update = Action::update(&sets_resource(), &set.object, body);
            if from != set.replicas {
                let direction = if set.replicas > from { "up" } else { "down" };
                let said = format!("Scaled {direction} replica set {} from {from} to {}", set.name(), set.replicas);
                update = update.done(Note::normal(self.object, "ScalingReplicaSet", said));
            }
            self.plan.act(update);
        }
        let known = crate::status_of(self.object)?;
        self.count(&known);
        if rolling_out {
            self.judge_progress(&known);
        }
        let said = self.deployment.metadata.annotations.as_ref().and_then(|a| a.get(REVISION));
        let revision = self.new.as_ref().and_then(|n| n.annotations.get(REVISION)).or(said).cloned();
        match revision {
            Some(revision) if self.status != known || said != Some(&revision) => self.report(&revision)?,
            None if self.status != known => {
                self.plan.act(Action::status(&client::gvr_of::<Deployment>(), self.object, self.status.clone())?);
            }
            _ => {}
        }
        Ok(())
    }
}
