//! Where one pod goes: filters, then scores, over a snapshot.
//!
//! [`Core::schedule`] is a function of the snapshot, the pod, the nominations and the given randomness; it changes nothing
//! but what it remembers to be faster. What plugins say of a node alone is remembered per [`Spec`] and asked again only
//! for nodes that changed, so a pod like the last one costs one look at the node the last one got, and a pass over
//! numbers.

use std::collections::HashMap;
use std::sync::Arc;

use rand::Rng;

use crate::node::Node;
use crate::plugins::default_preemption::Budgets;
use crate::plugins::dynamic_resources::Obstacle;
use crate::plugins::inter_pod_affinity::{self, Required};
use crate::plugins::pod_topology_spread::{self, Hard};
use crate::plugins::{
    MAX_SCORE, dynamic_resources, image_locality, node_affinity, node_declared_features, node_ports,
    node_resources_balanced_allocation, node_resources_fit, node_unschedulable, node_volume_limits, taint_toleration,
    volume_binding, volume_restrictions, volume_zone,
};
use crate::pod::{Pod, Spec};
use crate::profile::Weights;
use crate::ranking::Ranking;
use crate::snapshot::{NodeId, Snapshot};
use crate::symbol::{Symbol, SymbolMap};
use crate::timing::{Ended, Point, Timing, Unwatched, Watch};
use crate::verdict::{Plugin, Plugins, Reason, Refusal, WhyNot};

/// The largest sum of scores by which nodes are ranked: each number up to it takes some bytes. Weights that go beyond cost a
/// look at every node for each pod.
const MOST_RANKED: i64 = 65_536;

/// Plugins that score a node alone.
type Weigher = (&'static str, fn(&Weights) -> i64);
const ALONE: [Weigher; 5] = [
    ("NodeResourcesFit", |w| w.node_resources_fit),
    ("NodeResourcesBalancedAllocation", |w| w.node_resources_balanced_allocation),
    ("ImageLocality", |w| w.image_locality),
    ("NodeAffinity", |w| w.node_affinity),
    ("TaintToleration", |w| w.taint_toleration),
];

/// Specs whose verdicts are remembered; each costs some 40 bytes a node.
const REMEMBERED: usize = 32;

/// What plugins that look at one node say about it.
#[derive(Clone, Copy, Debug)]
enum Local {
    Absent,
    Refused(Refusal),
    Passed { taints: u16, affinity: i32, fixed: i32 },
}

/// Whether the plugins that look at one node let the pod on it, whatever is elsewhere.
pub fn filter_alone(spec: &Spec, node: &Node) -> Result<(), Refusal> {
    filter_watched(spec, node, &mut Unwatched)
}

fn filter_watched(spec: &Spec, node: &Node, watch: &mut impl Watch) -> Result<(), Refusal> {
    let mut on = |plugin, verdict: fn(&Spec, &Node) -> Result<(), Refusal>| {
        if spec.profile.has(plugin) { watch.filter(plugin, || verdict(spec, node)) } else { Ok(()) }
    };
    if spec.selection.names_others(node.symbol) && spec.profile.has(Plugin::NodeAffinity) {
        // Upstream does not even look at them.
        return Err(Refusal::unresolvable(Plugin::NodeAffinity, Reason::OtherNodes));
    }
    on(Plugin::NodeUnschedulable, node_unschedulable::filter)?;
    on(Plugin::TaintToleration, taint_toleration::filter)?;
    on(Plugin::NodeAffinity, node_affinity::filter)?;
    on(Plugin::NodePorts, node_ports::filter)?;
    on(Plugin::NodeDeclaredFeatures, node_declared_features::filter)?;
    on(Plugin::NodeResourcesFit, node_resources_fit::filter)
}

fn look(spec: &Spec, node: &Node, snapshot: &Snapshot, watch: &mut impl Watch) -> Local {
    if !node.present {
        return Local::Absent;
    }
    if let Err(refusal) = filter_watched(spec, node, watch) {
        return Local::Refused(refusal);
    }
    let weights = &spec.profile.weights;
    let mut scored = |weight: i64, plugin, score: &dyn Fn() -> i64| {
        if weight == 0 { 0 } else { watch.score(plugin, score) }
    };
    let fixed = weights.node_resources_fit
        * scored(weights.node_resources_fit, "NodeResourcesFit", &|| node_resources_fit::score(spec, node))
        + weights.node_resources_balanced_allocation
            * scored(weights.node_resources_balanced_allocation, "NodeResourcesBalancedAllocation", &|| {
                node_resources_balanced_allocation::score(spec, node)
            })
        + weights.image_locality
            * scored(weights.image_locality, "ImageLocality", &|| image_locality::score(spec, node, snapshot));
    let affinity = scored(weights.node_affinity, "NodeAffinity", &|| node_affinity::score(spec, node));
    let taints = scored(weights.taint_toleration, "TaintToleration", &|| taint_toleration::score(spec, node));
    let affinity = i32::try_from(affinity).unwrap_or(i32::MAX);
    let taints = u16::try_from(taints).unwrap_or(u16::MAX);
    Local::Passed { taints, affinity, fixed: fixed as i32 }
}

fn look_timed(spec: &Spec, node: &Node, snapshot: &Snapshot, timing: &mut Timing) -> Local {
    if timing.looks_at_node() { look(spec, node, snapshot, timing) } else { look(spec, node, snapshot, &mut Unwatched) }
}

struct Evaluation {
    spec: Arc<Spec>,
    version: u64,
    image_epoch: u64,
    nodes: Vec<Local>,
    /// By what plugins that look at one node alone think of it; nobody is in it where the weights are too large for that.
    ranking: Ranking,
    ranks: bool,
    /// Nodes that passed and are asked for, or would rather not: their scores depend on the others'.
    relative: usize,
    used: u64,
}

impl Local {
    fn is_relative(&self) -> bool {
        matches!(self, Self::Passed { taints, affinity, .. } if *taints != 0 || *affinity != 0)
    }
}

impl Evaluation {
    fn of(spec: &Arc<Spec>) -> Self {
        Self {
            spec: spec.clone(),
            version: 0,
            image_epoch: u64::MAX,
            nodes: Vec::new(),
            ranking: Ranking::default(),
            ranks: {
                let w = &spec.profile.weights;
                let most = w.node_resources_fit + w.node_resources_balanced_allocation + w.image_locality;
                most * MAX_SCORE <= MOST_RANKED
            },
            relative: 0,
            used: 0,
        }
    }

    fn set(&mut self, id: NodeId, local: Local) {
        let old = std::mem::replace(&mut self.nodes[id.index()], local);
        self.relative = self.relative + usize::from(local.is_relative()) - usize::from(old.is_relative());
        let score = if let Local::Passed { fixed, .. } = local { u32::try_from(fixed).ok() } else { None };
        let score = score.filter(|_| self.ranks);
        self.ranking.set(id, score);
    }

    fn update(&mut self, snapshot: &Snapshot, timing: &mut Timing) {
        let changed = snapshot.changed_since(self.version).filter(|_| self.image_epoch == snapshot.image_epoch);
        self.nodes.resize(snapshot.nodes().len(), Local::Absent);
        match changed {
            Some(changed) => {
                for id in changed {
                    self.set(id, look_timed(&self.spec, snapshot.node(id), snapshot, timing));
                }
            }
            None => {
                for (at, node) in snapshot.nodes().iter().enumerate() {
                    self.set(NodeId(at as u32), look_timed(&self.spec, node, snapshot, timing));
                }
            }
        }
        self.version = snapshot.version();
        self.image_epoch = snapshot.image_epoch;
    }
}

/// The verdicts remembered, by the spec's address.
#[derive(Default)]
struct Evaluations {
    known: HashMap<usize, Evaluation>,
    clock: u64,
}

impl Evaluations {
    fn current(&mut self, snapshot: &Snapshot, spec: &Arc<Spec>, timing: &mut Timing) -> &Evaluation {
        self.clock += 1;
        let address = Arc::as_ptr(spec) as usize;
        if !self.known.contains_key(&address)
            && self.known.len() >= REMEMBERED
            && let Some(oldest) = self.known.iter().min_by_key(|(_, e)| e.used).map(|(at, _)| *at)
        {
            self.known.remove(&oldest);
        }
        let evaluation = self.known.entry(address).or_insert_with(|| Evaluation::of(spec));
        evaluation.update(snapshot, timing);
        evaluation.used = self.clock;
        evaluation
    }
}

/// Pods that wait for room being made on a node.
#[derive(Default)]
pub struct Nominations {
    by_node: SymbolMap<Vec<Pod>>,
    of_pod: HashMap<Arc<str>, Symbol>,
}

impl Nominations {
    /// Notes that a pod waits for a node; `None` that it no longer does.
    pub fn set(&mut self, pod: &Pod, node: Option<Symbol>) {
        if let Some(old) = self.of_pod.remove(&pod.key)
            && let Some(pods) = self.by_node.get_mut(&old)
        {
            pods.retain(|p| p.key != pod.key);
            if pods.is_empty() {
                self.by_node.remove(&old);
            }
        }
        if let Some(node) = node {
            self.of_pod.insert(pod.key.clone(), node);
            self.by_node.entry(node).or_default().push(pod.clone());
        }
    }

    pub fn node_of(&self, key: &str) -> Option<Symbol> {
        self.of_pod.get(key).copied()
    }

    /// Pods to make room for before this one.
    pub fn ahead<'a>(&'a self, node: &Node, pod: &'a Pod) -> impl Iterator<Item = &'a Pod> + 'a {
        let there = self.by_node.get(&node.symbol).into_iter().flatten();
        there.filter(|p| p.priority() >= pod.priority() && p.key != pod.key)
    }

    /// Nominated to a node with less priority than the pod.
    pub fn behind<'a>(&'a self, node: Symbol, pod: &'a Pod) -> impl Iterator<Item = &'a Pod> + 'a {
        self.by_node.get(&node).into_iter().flatten().filter(|p| p.priority() < pod.priority())
    }
}

/// What the volume plugins prepared.
#[derive(Clone)]
struct Volumes {
    restrictions: volume_restrictions::State,
    limits: node_volume_limits::State,
    binding: volume_binding::State,
}

/// What plugins prepared about a pod over the whole cluster.
#[derive(Clone)]
pub struct Prepared {
    volumes: Option<Volumes>,
    hard: Option<Hard>,
    required: Option<Required>,
    pub devices: Option<dynamic_resources::State>,
    within: Option<(Symbol, Symbol)>,
    filters: Plugins,
}

impl Prepared {
    /// An error stands in the way wherever the pod would go.
    pub fn new(snapshot: &mut Snapshot, pod: &Pod) -> Result<Self, Box<WhyNot>> {
        Self::timed(snapshot, pod, &mut Timing::default())
    }

    fn timed(snapshot: &mut Snapshot, pod: &Pod, timing: &mut Timing) -> Result<Self, Box<WhyNot>> {
        let profile = pod.spec.profile.clone();
        let nodes = snapshot.present();
        let obstacle = |plugin, why| Box::new(WhyNot { nodes, pod: Some((plugin, why)), ..WhyNot::default() });
        let devices = if !pod.wants_devices() || !profile.has(Plugin::DynamicResources) {
            None
        } else {
            let prepare = || dynamic_resources::State::prepare(&snapshot.devices, pod);
            let state = timing.once("DynamicResources", Point::PreFilter, prepare);
            Some(state.map_err(|obstacle| WhyNot::of_devices(obstacle, nodes))?)
        };
        if pod.spec.grouped && !snapshot.places_groups {
            let why = "the pod is one of a group (spec.schedulingGroup): the feature gate GenericWorkload is off";
            return Err(obstacle(Plugin::GangScheduling, why.into()));
        }
        let volumes = if pod.volumes.is_empty() {
            None
        } else {
            let prepare = || volume_binding::State::prepare(&snapshot.storage, pod);
            let binding = match timing.once("VolumeBinding", Point::PreFilter, prepare) {
                Err(why) if profile.has(Plugin::VolumeBinding) => return Err(obstacle(Plugin::VolumeBinding, why)),
                Err(_) => volume_binding::State::default(),
                Ok(state) => state,
            };
            let restrictions = timing.once("VolumeRestrictions", Point::PreFilter, || {
                volume_restrictions::State::prepare(&snapshot.storage, pod, &binding)
            });
            let limits =
                timing.once("NodeVolumeLimits", Point::PreFilter, || node_volume_limits::State::prepare(snapshot, pod));
            Some(Volumes { restrictions, limits, binding })
        };
        let mut hard = None;
        if profile.has(Plugin::PodTopologySpread) {
            hard = timing.once("PodTopologySpread", Point::PreFilter, || Hard::prepare(snapshot, pod));
        }
        let mut required = None;
        if profile.has(Plugin::InterPodAffinity) {
            required = timing.once("InterPodAffinity", Point::PreFilter, || Required::prepare(snapshot, pod));
        }
        Ok(Self { volumes, hard, required, devices, within: snapshot.within, filters: profile.filters })
    }

    /// Plugins that have something to say about some node.
    fn asked(&self, spec: &Spec) -> Plugins {
        let mut out = self.filters;
        let mut unless = |asked: bool, plugins: &[Plugin]| {
            if !asked {
                plugins.iter().for_each(|p| out.remove(*p));
            }
        };
        use Plugin::*;
        unless(false, &[SchedulingGates, GangScheduling]);
        unless(!spec.selection.is_everything(), &[NodeAffinity]);
        unless(!spec.ports.is_empty(), &[NodePorts]);
        unless(self.volumes.is_some(), &[VolumeRestrictions, NodeVolumeLimits, VolumeBinding, VolumeZone]);
        unless(self.hard.is_some(), &[PodTopologySpread]);
        unless(self.required.is_some(), &[InterPodAffinity]);
        unless(self.devices.is_some(), &[DynamicResources]);
        out
    }

    /// Adds what the room for its volumes is worth.
    pub fn score_volumes(&self, snapshot: &Snapshot, pod: &Pod, nodes: &[NodeId], totals: &mut [i64]) {
        if let Some(volumes) = &self.volumes {
            volumes.binding.score(snapshot, &pod.spec.profile, nodes, totals);
        }
    }

    /// Whether every node will do, as far as this goes.
    fn is_empty(&self) -> bool {
        self.volumes.is_none()
            && self.hard.is_none()
            && self.required.is_none()
            && self.devices.is_none()
            && self.within.is_none()
    }

    /// The node is given apart, since it may be supposed to be other than it is.
    pub fn filter(&self, snapshot: &Snapshot, id: NodeId, node: &Node) -> Result<(), Refusal> {
        self.filter_watched(snapshot, id, node, &mut Unwatched)
    }

    fn filter_watched(
        &self,
        snapshot: &Snapshot,
        id: NodeId,
        node: &Node,
        watch: &mut impl Watch,
    ) -> Result<(), Refusal> {
        if let Some((key, value)) = self.within
            && node.labels.get(key) != Some(value)
        {
            return Err(Refusal::unresolvable(Plugin::GangScheduling, Reason::OutsideDomain));
        }
        if let Some(volumes) = &self.volumes {
            let mut on = |plugin, verdict: &dyn Fn() -> Result<(), Refusal>| {
                if self.filters.contains(plugin) { watch.filter(plugin, verdict) } else { Ok(()) }
            };
            on(Plugin::VolumeRestrictions, &|| volumes.restrictions.filter(node))?;
            on(Plugin::NodeVolumeLimits, &|| volumes.limits.filter(snapshot, node))?;
            on(Plugin::VolumeBinding, &|| volumes.binding.filter(&snapshot.storage, node))?;
            on(Plugin::VolumeZone, &|| volume_zone::filter(&volumes.binding, node))?;
        }
        if let Some(hard) = &self.hard {
            watch.filter(Plugin::PodTopologySpread, || hard.filter(id))?;
        }
        if let Some(required) = &self.required {
            watch.filter(Plugin::InterPodAffinity, || required.filter(id))?;
        }
        match &self.devices {
            Some(devices) => watch.filter(Plugin::DynamicResources, || devices.filter(snapshot, node)),
            None => Ok(()),
        }
    }

    /// Supposes that another pod came to a node (1) or left it (-1).
    pub fn suppose(&mut self, snapshot: &Snapshot, pod: &Pod, other: &Pod, id: NodeId, by: i64) {
        if let Some(volumes) = &mut self.volumes {
            volumes.restrictions.suppose(other, by);
        }
        if let Some(hard) = &mut self.hard {
            hard.suppose(snapshot, pod, other, id, by);
        }
        if let Some(required) = &mut self.required {
            required.suppose(snapshot, pod, other, id, by);
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Core {
    pub snapshot: Snapshot,
    pub nominations: Nominations,
    pub budgets: Budgets,
    pub timing: Timing,
    evaluations: Evaluations,
}

/// Counts refusals; runs of the same one are cheap.
#[derive(Default)]
struct Refusals(Vec<(Refusal, usize)>);

impl Refusals {
    fn count(&mut self, refusal: Refusal) {
        match self.0.iter_mut().find(|r| r.0 == refusal) {
            Some(known) => known.1 += 1,
            None => self.0.push((refusal, 1)),
        }
    }
}

impl Core {
    /// The best node for a pod, a random one among equals; or why there is none.
    pub fn schedule(&mut self, pod: &Pod, rng: &mut impl Rng) -> Result<NodeId, Box<WhyNot>> {
        let extended = || pod.spec.requests.extended.iter().map(|e| e.name.to_string()).collect();
        let nodes = self.snapshot.present();
        if nodes == 0 {
            return Err(Box::default());
        }
        self.timing.begin();
        let prepared = Prepared::timed(&mut self.snapshot, pod, &mut self.timing);
        self.timing.lap(Point::PreFilter, Ended::of(&prepared.as_ref().map(|_| ()), Ended::Unresolvable));
        let prepared = prepared?;
        if self.timing.on {
            self.timing.filtered = prepared.asked(&pod.spec);
        }
        // A pod that names its one node (as those of daemon sets do) needs no look at the others.
        let mut refusals = Refusals::default();
        let alone;
        let weights = pod.spec.profile.weights;
        let only = pod.spec.selection.only_name().filter(|_| pod.spec.profile.has(Plugin::NodeAffinity));
        let (from, local) = match only.map(|name| self.snapshot.node_id(name)) {
            None => {
                let evaluation = self.evaluations.current(&self.snapshot, &pod.spec, &mut self.timing);
                // Where only the nodes themselves are liked or not, the best are known already.
                let snapshot = &self.snapshot;
                if evaluation.relative == 0
                    && self.nominations.by_node.is_empty()
                    && prepared.devices.is_none()
                    && !prepared.volumes.as_ref().is_some_and(|v| v.binding.scores(&pod.spec.profile))
                    && (weights.pod_topology_spread == 0 || !pod_topology_spread::scores(snapshot, pod))
                    && (weights.inter_pod_affinity == 0 || !inter_pod_affinity::scores(snapshot, pod))
                {
                    let best = if prepared.is_empty() {
                        evaluation.ranking.best(rng)
                    } else {
                        evaluation.ranking.first(rng, |id| prepared.filter(snapshot, id, snapshot.node(id)).is_ok())
                    };
                    if let Some(best) = best {
                        self.timing.lap(Point::Filter, Ended::Success);
                        return Ok(best);
                    }
                }
                (0, evaluation.nodes.as_slice())
            }
            Some(id) => {
                alone = id.map(|id| look_timed(&pod.spec, self.snapshot.node(id), &self.snapshot, &mut self.timing));
                let there = usize::from(matches!(alone, Some(Local::Refused(_) | Local::Passed { .. })));
                if nodes > there {
                    let refusal = Refusal::unresolvable(Plugin::NodeAffinity, Reason::OtherNodes);
                    refusals.0.push((refusal, nodes - there));
                }
                (id.map_or(0, NodeId::index), alone.as_slice())
            }
        };
        let (mut feasible, mut totals) = (Vec::with_capacity(local.len()), Vec::with_capacity(local.len()));
        // Nodes that are asked for or would rather not: their place among the feasible ones, and how much.
        let mut special: Vec<(usize, i64, i64)> = Vec::new();
        let (mut most_taints, mut most_affinity) = (0, 0);
        let nominations = !self.nominations.by_node.is_empty();
        for (at, local) in local.iter().enumerate() {
            let id = NodeId((from + at) as u32);
            let (taints, affinity, fixed) = match *local {
                Local::Absent => continue,
                Local::Refused(refusal) => {
                    refusals.count(refusal);
                    continue;
                }
                Local::Passed { taints, affinity, fixed } => (i64::from(taints), i64::from(affinity), i64::from(fixed)),
            };
            let node = self.snapshot.node(id);
            let rest = if !prepared.is_empty() && self.timing.looks_at_node() {
                prepared.filter_watched(&self.snapshot, id, node, &mut self.timing)
            } else {
                prepared.filter(&self.snapshot, id, node)
            };
            let rest = rest.and_then(|()| {
                if nominations { with_nominated(&self.snapshot, &self.nominations, pod, id) } else { Ok(()) }
            });
            if let Err(refusal) = rest {
                refusals.count(refusal);
                continue;
            }
            if taints != 0 || affinity != 0 {
                special.push((feasible.len(), taints, affinity));
                (most_taints, most_affinity) = (most_taints.max(taints), most_affinity.max(affinity));
            }
            feasible.push(id);
            totals.push(fixed);
        }
        if let Some(why) = prepared.devices.as_ref().and_then(|d| d.fault()) {
            self.timing.lap(Point::Filter, Ended::Error);
            return Err(WhyNot::of_devices(Obstacle::Fault(why), nodes).into());
        }
        self.timing.lap(Point::Filter, Ended::Success);
        match feasible.as_slice() {
            [] => {
                return Err(Box::new(WhyNot {
                    nodes,
                    to_let_go: prepared.devices.as_ref().and_then(|d| d.to_let_go(pod)).map(|c| c.0.clone()),
                    refusals: refusals.0.into_iter().collect(),
                    extended: extended(),
                    ..WhyNot::default()
                }));
            }
            [only] => return Ok(*only),
            _ => {}
        }
        // The node where room was made for it is what the pod waited for.
        if let Some(node) = self.nominations.node_of(&pod.key).or(pod.nominated).and_then(|n| self.snapshot.node_id(n))
            && feasible.binary_search(&node).is_ok()
        {
            return Ok(node);
        }
        // What all others get is the same for all, so only the difference counts.
        let usual = taint_toleration::normalize(0, most_taints);
        for (at, taints, affinity) in special {
            totals[at] += weights.taint_toleration * (taint_toleration::normalize(taints, most_taints) - usual)
                + weights.node_affinity * node_affinity::normalize(affinity, most_affinity);
        }
        let timing = &mut self.timing;
        if timing.on {
            timing.scored.extend(ALONE.iter().filter(|(_, weight)| weight(&weights) != 0).map(|(name, _)| *name));
        }
        let together = |plugin, timing: &mut Timing, score: &mut dyn FnMut()| {
            if timing.on {
                timing.scored.push(plugin);
            }
            timing.once(plugin, Point::Score, score);
        };
        if let Some(devices) = &prepared.devices {
            together("DynamicResources", timing, &mut || {
                devices.score(&self.snapshot, &feasible, &mut totals, weights.dynamic_resources);
            });
        }
        if prepared.volumes.is_some() {
            together("VolumeBinding", timing, &mut || {
                prepared.score_volumes(&self.snapshot, pod, &feasible, &mut totals);
            });
        }
        if weights.pod_topology_spread != 0 {
            let weight = weights.pod_topology_spread;
            together("PodTopologySpread", timing, &mut || {
                pod_topology_spread::score(&mut self.snapshot, pod, &feasible, &mut totals, weight);
            });
        }
        if weights.inter_pod_affinity != 0 {
            let weight = weights.inter_pod_affinity;
            together("InterPodAffinity", timing, &mut || {
                inter_pod_affinity::score(&mut self.snapshot, pod, &feasible, &mut totals, weight);
            });
        }
        timing.lap(Point::Score, Ended::Success);
        Ok(feasible[best(&totals, rng)])
    }

    /// What is to be done about a pod's claims when it goes to a node it was found to fit.
    pub fn volume_steps(&self, pod: &Pod, id: NodeId) -> Vec<volume_binding::Step> {
        if pod.volumes.is_empty() || !pod.spec.profile.has(Plugin::VolumeBinding) {
            return Vec::new();
        }
        let state = volume_binding::State::prepare(&self.snapshot.storage, pod);
        state.ok().and_then(|s| s.steps(&self.snapshot.storage, self.snapshot.node(id)).ok()).unwrap_or_default()
    }

    /// What is to be done about a pod's claims on devices when it goes to a node it was found to fit.
    pub fn device_steps(&self, pod: &Pod, id: NodeId) -> Vec<dynamic_resources::Step> {
        if !pod.wants_devices() || !pod.spec.profile.has(Plugin::DynamicResources) {
            return Vec::new();
        }
        let state = dynamic_resources::State::prepare(&self.snapshot.devices, pod);
        state.ok().and_then(|s| s.steps(&self.snapshot, pod, self.snapshot.node(id)).ok()).unwrap_or_default()
    }
}

/// Whether the pod fits beside those for whom room is being made.
pub(crate) fn with_nominated(
    snapshot: &Snapshot,
    nominations: &Nominations,
    pod: &Pod,
    id: NodeId,
) -> Result<(), Refusal> {
    let node = snapshot.node(id);
    let mut ahead = nominations.ahead(node, pod).peekable();
    if ahead.peek().is_none() {
        return Ok(());
    }
    let mut fuller = node.clone();
    ahead.for_each(|p| fuller.take(p));
    filter_alone(&pod.spec, &fuller)
}

/// The index of the largest, a random one among equals.
fn best(totals: &[i64], rng: &mut impl Rng) -> usize {
    let (mut most, mut equals) = (i64::MIN, 0);
    for total in totals {
        if *total > most {
            (most, equals) = (*total, 1);
        } else if *total == most {
            equals += 1;
        }
    }
    let pick = if equals > 1 { rng.random_range(0..equals) } else { 0 };
    totals.iter().enumerate().filter(|(_, t)| **t == most).nth(pick).map_or(0, |(at, _)| at)
}
