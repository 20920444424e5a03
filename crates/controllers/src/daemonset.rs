//! DaemonSets: a pod on every node that fits. The plan is pure; placing the pods is the scheduler's, by an affinity to the
//! one node each pod is made for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::{Node, PodSpec, Toleration};
use meta::{Object, Status};
use serde_json::{Value, json};

use crate::history::{self, HASH_LABEL, History};
use crate::nodes;
use crate::owners::{self, BY_CONTROLLER, ORPHANS};
use crate::plan::{Action, Note, Plan};
use crate::pod_facts;
use crate::pods::{self, PodView};
use crate::replicas::{create_pod, delete_pod, pods_resource};
use crate::rollout::scaled;
use crate::runner::{Controller, own_key};
use crate::{Context, conditions, decoded, status_of};

/// How long failed pods of one node are kept from being replaced: doubles with each, forgotten after twice the most.
const FAILED_POD_BACKOFF: Backoff = Backoff { first: 1, most: 900 };
/// Pods created or deleted by one plan.
const BURST: usize = 250;

/// Tolerations every daemon pod has: (key, effect).
const TOLERATED: &[(&str, &str)] = &[
    (nodes::NOT_READY, "NoExecute"),
    (nodes::UNREACHABLE, "NoExecute"),
    (nodes::DISK_PRESSURE, "NoSchedule"),
    (nodes::MEMORY_PRESSURE, "NoSchedule"),
    (nodes::PID_PRESSURE, "NoSchedule"),
    (nodes::UNSCHEDULABLE, "NoSchedule"),
];

fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut out = spec.tolerations.clone().unwrap_or_default();
    let network = (spec.host_network == Some(true)).then_some(&(nodes::NETWORK_UNAVAILABLE, "NoSchedule"));
    for (key, effect) in TOLERATED.iter().chain(network) {
        let same = |t: &Toleration| {
            t.key.as_deref() == Some(key)
                && t.operator.as_deref() == Some("Exists")
                && t.effect.as_deref() == Some(effect)
        };
        if !out.iter().any(same) {
            let some = |text: &str| Some(text.to_string());
            out.push(Toleration {
                key: some(key),
                operator: some("Exists"),
                effect: some(effect),
                ..Toleration::default()
            });
        }
    }
    out
}

/// The node a daemon pod is for: where it runs, or what its affinity names.
fn target_node(pod: &PodView) -> Option<&str> {
    if !pod.node().is_empty() {
        return Some(pod.node());
    }
    let affinity = pod.facts.shape.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let field = terms.first()?.match_fields.as_ref()?.iter().find(|f| f.key == "metadata.name")?;
    field.values.as_ref()?.first().map(String::as_str)
}

/// The affinity that names one node, in place of whatever names nodes in the template.
fn pin(affinity: Value, node: &str) -> Value {
    let mut affinity = if affinity.is_object() { affinity } else { json!({}) };
    let by_name = json!([{"key": "metadata.name", "operator": "In", "values": [node]}]);
    let required = &mut affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    // Terms are alternatives: each gets the name.
    match required.get_mut("nodeSelectorTerms").and_then(Value::as_array_mut).filter(|t| !t.is_empty()) {
        Some(terms) => terms.iter_mut().for_each(|t| *t = json!({"matchFields": by_name})),
        None => *required = json!({"nodeSelectorTerms": [{"matchFields": by_name}]}),
    }
    affinity
}

pub struct World<'a> {
    pub nodes: &'a [(Arc<Object>, Arc<Node>)],
    pub pods: &'a [PodView],
    pub history: History,
    pub taken: &'a dyn Fn(&str) -> bool,
    /// How long a failed pod of a node must stay yet; asked once a pod that would be removed.
    pub holds_back: &'a dyn Fn(&str) -> Option<Duration>,
}

/// Delays that double, in seconds.
struct Backoff {
    first: i64,
    most: i64,
}

/// When failed pods of a set were removed from nodes last, and the delay since: by (set's uid, node).
#[derive(Default)]
struct Removals(Mutex<BTreeMap<(String, String), (Timestamp, i64)>>);

impl Removals {
    /// How long to wait yet; `None` when a pod may be removed, which is then remembered.
    fn holds_back(&self, set: &str, node: &str, now: Timestamp) -> Option<Duration> {
        let Backoff { first, most } = FAILED_POD_BACKOFF;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (at, _)| pods::seconds_between(*at, now) <= 2 * most);
        let last = all.entry((set.into(), node.into())).or_insert((Timestamp::MIN, 0));
        let left = last.1 - pods::seconds_between(last.0, now);
        if left > 0 {
            return Some(Duration::from_secs(left.unsigned_abs()));
        }
        *last = (now, (last.1 * 2).clamp(first, most));
        None
    }
}

struct Work<'a> {
    object: &'a Object,
    spec: &'a DaemonSetSpec,
    world: World<'a>,
    now: Timestamp,
    plan: Plan,
    delete: BTreeMap<String, &'a PodView>,
    create: BTreeSet<&'a str>,
    by_node: BTreeMap<&'a str, Vec<&'a PodView>>,
}

pub fn plan(object: &Object, spec: &DaemonSetSpec, world: World<'_>, now: Timestamp) -> Result<Plan, Status> {
    let mut by_node: BTreeMap<&str, Vec<&PodView>> = BTreeMap::new();
    for pod in world.pods {
        if let Some(node) = target_node(pod) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    let mut work = Work {
        object,
        spec,
        now,
        plan: Plan::nothing(),
        delete: BTreeMap::new(),
        create: BTreeSet::new(),
        by_node,
        world,
    };
    work.plan.actions.append(&mut work.world.history.actions);
    if object.meta.deletion_timestamp.is_none() && !work.world.history.collided {
        work.place();
        if spec.update_strategy.as_ref().is_none_or(|s| s.type_.as_deref() != Some("OnDelete")) {
            work.roll();
        }
        work.carry_out()?;
        let live = world_revisions(work.world.pods, &work.world.history);
        let limit = spec.revision_history_limit.unwrap_or(10);
        work.plan.actions.extend(history::clean_up(&work.world.history, limit, &live));
    }
    work.report()?;
    Ok(work.plan)
}

/// Revisions pods live by.
fn world_revisions(pods: &[PodView], history: &History) -> BTreeSet<String> {
    let hashes: BTreeSet<&str> = pods.iter().filter_map(|p| p.object.meta.label(HASH_LABEL)).collect();
    let used = |r: &&Arc<Object>| r.meta.label(HASH_LABEL).is_some_and(|h| hashes.contains(h));
    history.known.iter().filter(used).map(|r| r.meta.name.to_string()).collect()
}

impl<'a> Work<'a> {
    fn template_spec(&self) -> Option<&PodSpec> {
        self.spec.template.spec.as_ref()
    }

    /// (whether a pod should start there, whether one that runs there may stay)
    fn fits(&self, node: &(Arc<Object>, Arc<Node>)) -> (bool, bool) {
        let Some(spec) = self.template_spec() else { return (false, false) };
        let named = spec.node_name.as_deref().filter(|n| !n.is_empty()).is_none_or(|n| *n == *node.0.meta.name);
        if !named || !nodes::selects(spec, &node.0) {
            return (false, false);
        }
        let tolerations = tolerations(spec);
        let tolerated = |effects: &[&str]| nodes::untolerated(nodes::taints(&node.1), &tolerations, effects).is_none();
        (tolerated(&["NoSchedule", "NoExecute"]), tolerated(&["NoExecute"]))
    }

    fn is_updated(&self, pod: &PodView) -> bool {
        pod.object.meta.label(HASH_LABEL) == Some(&self.world.history.hash)
    }

    fn min_ready(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }

    fn is_available(&self, pod: &PodView) -> bool {
        pod.is_available(self.min_ready(), self.now)
    }

    fn desired(&self) -> i64 {
        self.world.nodes.iter().filter(|n| self.fits(n).0).count() as i64
    }

    fn bound(&self, surge: bool) -> i64 {
        let Some(bounds) = self.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref()) else {
            return i64::from(!surge);
        };
        let value = if surge { &bounds.max_surge } else { &bounds.max_unavailable };
        scaled(value.as_ref(), self.desired(), true)
    }

    fn remove(&mut self, pod: &'a PodView) {
        self.delete.insert(pod.name().to_string(), pod);
    }

    /// One pod on each node that fits; ended and surplus ones go.
    fn place(&mut self) {
        let surging = self.bound(true) > 0;
        let all_nodes = self.world.nodes;
        for node in all_nodes {
            let name = &*node.0.meta.name;
            let (start, stay) = self.fits(node);
            let here = self.by_node.get(name).cloned().unwrap_or_default();
            if !stay {
                here.into_iter().filter(|p| !p.is_terminating()).for_each(|p| self.remove(p));
                continue;
            }
            if here.is_empty() {
                if start {
                    self.create.insert(name);
                }
                continue;
            }
            let mut running = Vec::new();
            for pod in here.into_iter().filter(|p| !p.is_terminating()) {
                if !pod.is_finished() {
                    running.push(pod);
                    continue;
                }
                // Kubelets may refuse the pod again and again: then each successor waits longer.
                if pod.is_failed()
                    && let Some(wait) = (self.world.holds_back)(name)
                {
                    self.plan.again_after(wait);
                    continue;
                }
                let key = pod.object.meta.key();
                self.plan.note(if pod.is_failed() {
                    let said = format!("Found failed daemon pod {key} on node {name}, will try to kill it");
                    Note::warning(self.object, "FailedDaemonPod", said)
                } else {
                    let said = format!("Found succeeded daemon pod {key} on node {name}, will try to delete it");
                    Note::normal(self.object, "SucceededDaemonPod", said)
                });
                self.remove(pod);
            }
            running.sort_by(|a, b| {
                a.node().is_empty().cmp(&b.node().is_empty()).then_with(|| a.created().cmp(&b.created()))
            });
            if !surging {
                running.into_iter().skip(1).for_each(|p| self.remove(p));
                continue;
            }
            if running.is_empty() {
                if start {
                    self.create.insert(name);
                }
                continue;
            }
            let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|p| self.is_updated(p));
            new.iter().skip(1).chain(old.iter().skip(1)).for_each(|p| self.remove(p));
            if let (Some(new), Some(old)) = (new.first(), old.first())
                && (!old.is_ready() || self.is_available(new))
            {
                self.remove(old);
            }
        }
        // Pods for nodes that are gone and that were never scheduled: nobody else would delete them.
        let known: BTreeSet<&str> = all_nodes.iter().map(|n| &*n.0.meta.name).collect();
        let lost: Vec<&PodView> =
            self.by_node.iter().filter(|(n, _)| !known.contains(*n)).flat_map(|(_, p)| p.clone()).collect();
        lost.into_iter().filter(|p| p.node().is_empty() && !p.is_terminating()).for_each(|p| self.remove(p));
    }

    /// Replaces pods of older templates, within the bounds of the strategy.
    fn roll(&mut self) {
        let (surge, unavailable) = (self.bound(true), self.bound(false));
        // Nodes whose pod is gone and whose next one this very plan makes.
        let mut in_progress = if surge == 0 { self.create.len() as i64 } else { 0 };
        let (mut forced, mut candidates) = (Vec::new(), Vec::new());
        for (node, here) in &self.by_node {
            let alive: Vec<&PodView> =
                here.iter().copied().filter(|p| !p.is_terminating() && !self.delete.contains_key(p.name())).collect();
            let (new, old): (Vec<&PodView>, Vec<&PodView>) = alive.into_iter().partition(|p| self.is_updated(p));
            match (new.as_slice(), old.as_slice()) {
                ([], []) if surge == 0 => in_progress += 1,
                ([new], []) if surge == 0 => in_progress += i64::from(!self.is_available(new)),
                ([new], [_]) if surge > 0 => in_progress += i64::from(!self.is_available(new)),
                ([], [old]) if !self.is_available(old) => forced.push((*node, *old)),
                ([], [old]) => candidates.push((*node, *old)),
                ([_], []) | ([], []) => {}
                _ => in_progress += 1,
            }
        }
        let room = usize::try_from(if surge > 0 { surge } else { unavailable } - in_progress).unwrap_or(0);
        for (node, old) in forced.into_iter().chain(candidates.into_iter().take(room)) {
            if surge > 0 {
                self.create.insert(node);
            } else {
                self.remove(old);
            }
        }
    }

    fn carry_out(&mut self) -> Result<(), Status> {
        let uids = || self.world.pods.iter().map(|p| &*p.object.meta.uid);
        let prefix = pods::name_prefix(&self.object.meta.name);
        let mut creations = Vec::new();
        for node in self.create.iter().take(BURST) {
            let seed = format!("{}/{node}", self.object.meta.uid);
            let names = pods::fresh_names(&prefix, &seed, uids(), self.world.taken, 1);
            let name = names.first().map(String::as_str).unwrap_or_default();
            let mut body = pods::from_template(&self.spec.template, self.object, name, &prefix)?;
            body["metadata"]["labels"][HASH_LABEL] = self.world.history.hash.as_str().into();
            let generation = self.object.value().map_err(Status::internal)?["metadata"]["annotations"]["deprecated.daemonset.template.generation"].take();
            if let Some(generation) = generation.as_str() {
                body["metadata"]["labels"]["pod-template-generation"] = generation.into();
            }
            if let Some(spec) = self.template_spec() {
                body["spec"]["tolerations"] = json!(tolerations(spec));
            }
            let affinity = body["spec"]["affinity"].take();
            body["spec"]["affinity"] = pin(affinity, node);
            creations.push(create_pod(self.object, body));
        }
        let deletions: Vec<Action> = self.delete.values().take(BURST).map(|p| delete_pod(self.object, p)).collect();
        if !deletions.is_empty() {
            self.plan.act(Action::slow_start(deletions));
        }
        if !creations.is_empty() {
            self.plan.act(Action::slow_start(creations));
        }
        Ok(())
    }

    fn report(&mut self) -> Result<(), Status> {
        let known = status_of(self.object)?;
        let mut status = if known.is_object() { known.clone() } else { json!({}) };
        let mut counts = [0i64; 6];
        let [desired, current, misplaced, ready, updated, available] = &mut counts;
        for node in self.world.nodes {
            let here: Vec<&&PodView> = self.by_node.get(&*node.0.meta.name).into_iter().flatten().collect();
            if !self.fits(node).0 {
                *misplaced += i64::from(!here.is_empty());
                continue;
            }
            *desired += 1;
            let newest = here.iter().max_by_key(|p| p.created());
            *current += i64::from(!here.is_empty());
            *ready += i64::from(here.iter().any(|p| p.is_ready()));
            *available += i64::from(here.iter().any(|p| self.is_available(p)));
            *updated += i64::from(newest.is_some_and(|p| self.is_updated(p)));
            for pod in here {
                if let Some(wait) = pod.available_in(self.min_ready(), self.now) {
                    self.plan.again_after(wait + Duration::from_millis(500));
                }
            }
        }
        let [desired, current, misplaced, ready, updated, available] = counts;
        for (field, count) in [
            ("currentNumberScheduled", current),
            ("numberMisscheduled", misplaced),
            ("desiredNumberScheduled", desired),
            ("numberReady", ready),
        ] {
            status[field] = count.into();
        }
        conditions::count(&mut status, "updatedNumberScheduled", updated);
        conditions::count(&mut status, "numberAvailable", available);
        conditions::count(&mut status, "numberUnavailable", desired - available);
        status["observedGeneration"] = self.object.meta.generation.into();
        if self.world.history.collided {
            status["collisionCount"] = (status["collisionCount"].as_i64().unwrap_or(0) + 1).into();
        }
        if status != known {
            self.plan.act(Action::status(&client::gvr_of::<DaemonSet>(), self.object, status)?);
        }
        Ok(())
    }
}

pub fn daemon_sets(cx: &Context) -> Controller {
    let (sets, all_pods) = (cx.informers.get::<DaemonSet>(), pod_facts::informer(&cx.informers));
    let (all_nodes, revisions) = (cx.informers.get::<Node>(), cx.informers.get::<ControllerRevision>());
    owners::index(&all_pods);
    owners::index(&revisions);
    let (of, of_pods, of_nodes, of_revisions) = (sets.clone(), all_pods.clone(), all_nodes.clone(), revisions.clone());
    let (everywhere, removals) = (sets.clone(), Removals::default());
    Controller::new("daemonset-controller", move |ask| {
        let Some(object) = of.get(&ask.key) else { return Ok(Plan::nothing()) };
        let set = decoded::<DaemonSet>(&object)?;
        let selector = owners::spec_selector(&object);
        if selector.is_everything() {
            let mut plan = Plan::nothing();
            plan.note(Note::warning(
                &object,
                "SelectingAll",
                "This daemon set is selecting all pods. A non-empty selector is required.",
            ));
            return Ok(plan);
        }
        let namespace = &object.meta.namespace;
        let claimed = owners::claim(
            &pods_resource(),
            &object,
            &selector,
            of_pods.by_index(BY_CONTROLLER, &object.meta.uid),
            of_pods.by_index(ORPHANS, namespace),
            |_| true,
        );
        let views = pods::views(claimed.objects)?;
        let nodes = of_nodes.list(None).into_iter().map(|o| Ok((o.clone(), decoded::<Node>(&o)?)));
        let nodes: Vec<_> = nodes.collect::<Result<_, Status>>()?;
        let has = |informer: &client::Informer, name: &str| {
            informer.get(&meta::object::object_key(namespace, name)).is_some()
        };
        let owned = of_revisions.by_index(BY_CONTROLLER, &object.meta.uid);
        let history = history::sync(&object, HASH_LABEL, owned, |name| has(&of_revisions, name))?;
        let taken = |name: &str| has(&of_pods, name);
        let holds_back = |node: &str| removals.holds_back(&object.meta.uid, node, ask.now);
        let world = World { nodes: &nodes, pods: &views, history, taken: &taken, holds_back: &holds_back };
        let mut plan = plan(&object, &set.spec, world, ask.now)?;
        plan.actions.splice(0..0, claimed.actions);
        Ok(plan)
    })
    .watch(&sets, own_key)
    .watch(&all_pods, owners::to_controllers("DaemonSet", &sets, owners::spec_selector))
    .watch(&revisions, owners::to_controller("DaemonSet"))
    .watch(&all_nodes, move |change| {
        // Heartbeats change nothing about where daemons run.
        let seen =
            |o: &Arc<Object>| o.typed::<Node>().ok().map(|n| (nodes::taints(&n).to_vec(), o.meta.labels.clone()));
        match (&change.old, &change.new) {
            (Some(old), Some(new)) if seen(old) == seen(new) => Vec::new(),
            _ => everywhere.list(None).iter().map(|s| s.meta.key()).collect(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_daemons_come_back_slower() {
        let (removals, start) = (Removals::default(), Timestamp::from_second(1_800_000_000).unwrap());
        let held = |second: i64| {
            let now = start + jiff::SignedDuration::from_secs(second);
            removals.holds_back("set", "node", now).map(|d| d.as_secs())
        };
        let seen: Vec<Option<u64>> = [0, 0, 1, 2, 3, 6, 7, 1500, 1501].into_iter().map(held).collect();
        let expect = [None, Some(1), None, Some(1), None, Some(1), None, None, Some(1)];
        assert_eq!(seen[..7], expect[..7]);
        assert_eq!((seen[7], seen[8]), (None, Some(15)), "not forgotten yet");
        assert_eq!(removals.holds_back("set", "other", start), None);
    }
}
