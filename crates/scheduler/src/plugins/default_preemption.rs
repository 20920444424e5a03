//! Making room for a pod by removing less important ones.
//!
//! Nodes that refuse the pod whatever runs on them are left alone. On the others, all less important pods are supposed
//! away, and then as many as possible taken back, the most important first, those under a disruption budget before the
//! rest. Of the nodes found, the one is chosen where the least is lost. Follows upstream's `DefaultPreemption`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rand::Rng;

use client::Change;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;

use crate::core::{Core, Prepared, filter_alone};
use crate::node::Node;
use crate::pod::Pod;
use crate::selector::Selector;
use crate::snapshot::{NodeId, PodId, Snapshot};
use crate::symbol::Symbol;
use crate::verdict::{Refusal, WhyNot};
use crate::world::view;

/// A disruption budget.
#[derive(Clone, Debug, PartialEq)]
struct Budget {
    namespace: Symbol,
    selector: Selector,
    allowed: i64,
    /// Names of pods whose disruption is counted already.
    disrupted: Box<[Box<str>]>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BudgetView {
    spec: BudgetSpec,
    status: BudgetStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BudgetSpec {
    selector: Option<LabelSelector>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BudgetStatus {
    disruptions_allowed: i64,
    disrupted_pods: Option<HashMap<Box<str>, serde_json::Value>>,
}

/// The disruption budgets there are.
#[derive(Default)]
pub struct Budgets(HashMap<Arc<str>, Budget>);

impl Budgets {
    pub fn take(&mut self, change: &Change) {
        let Some((object, budget)) = change.new.as_ref().and_then(|o| Some((o, view::<BudgetView>(o)?))) else {
            self.0.remove(&change.key);
            return;
        };
        let budget = Budget {
            namespace: Symbol::of(&object.meta.namespace),
            selector: Selector::compile(budget.spec.selector.as_ref()),
            allowed: budget.status.disruptions_allowed,
            disrupted: budget.status.disrupted_pods.into_iter().flatten().map(|(name, _)| name).collect(),
        };
        self.0.insert(change.key.clone(), budget);
    }

    /// Which of these pods, by index, a budget would be broken for. Those before count against it.
    pub fn broken_by<'a>(&self, pods: impl Iterator<Item = &'a Pod>) -> Vec<bool> {
        let mut allowed: HashMap<&Arc<str>, i64> = HashMap::new();
        let mut out = Vec::new();
        for pod in pods {
            let mut broken = false;
            let (_, name) = meta::object::split_key(&pod.key);
            let matching = self.0.iter().filter(|(_, b)| {
                b.namespace == pod.namespace
                    && !b.selector.is_everything()
                    && b.selector.matches(&pod.labels)
                    && !b.disrupted.iter().any(|d| **d == *name)
            });
            for (key, budget) in matching {
                let left = allowed.entry(key).or_insert(budget.allowed);
                *left -= 1;
                broken |= *left < 0;
            }
            out.push(broken);
        }
        out
    }
}

/// Who must go, and from where.
#[derive(Clone, Debug)]
pub struct Plan {
    pub node: NodeId,
    /// The most important first.
    pub victims: Vec<Pod>,
    /// Less important pods that waited for room on the node, and now wait in vain.
    pub displaced: Vec<Pod>,
    pub broken_budgets: usize,
}

/// A node where room can be made.
pub struct Candidate {
    pub id: NodeId,
    pub victims: Vec<Pod>,
    pub broken_budgets: usize,
}

impl Candidate {
    /// Smaller is better.
    fn cost(&self) -> impl Ord + '_ {
        let highest = self.victims.first().map_or(0, Pod::priority);
        // Shifted to be positive, so that more victims never cost less.
        let sum: i64 = self.victims.iter().map(|v| i64::from(v.priority()) - i64::from(i32::MIN)).sum();
        let earliest = self.victims.iter().filter(|v| v.priority() == highest).map(Pod::begun).min();
        (self.broken_budgets, highest, sum, self.victims.len(), Reverse(earliest))
    }
}

/// The candidate where the least is lost.
pub fn choose(core: &Core, pod: &Pod, candidates: Vec<Candidate>) -> Option<Plan> {
    let best = candidates.into_iter().min_by(|a, b| a.cost().cmp(&b.cost()))?;
    let displaced = core.nominations.behind(core.snapshot.node(best.id).symbol, pod).cloned().collect();
    Some(Plan { node: best.id, victims: best.victims, displaced, broken_budgets: best.broken_budgets })
}

/// A node as it would be without some of its pods.
struct Trial<'a> {
    snapshot: &'a Snapshot,
    pod: &'a Pod,
    id: NodeId,
    node: Node,
    prepared: Prepared,
}

impl Trial<'_> {
    fn without(&mut self, id: PodId, other: &Pod) {
        self.node.give_back(other);
        self.node.pods.retain(|p| *p != id);
        self.prepared.suppose(self.snapshot, self.pod, other, self.id, -1);
    }

    fn with(&mut self, id: PodId, other: &Pod) {
        self.node.take(other);
        self.node.pods.push(id);
        self.prepared.suppose(self.snapshot, self.pod, other, self.id, 1);
    }

    fn verdict(&self) -> Result<(), Refusal> {
        filter_alone(&self.pod.spec, &self.node)?;
        self.prepared.filter(self.snapshot, self.id, &self.node)
    }
}

/// Why a node cannot be made to do.
enum Hopeless {
    NoVictims,
    Refused(Refusal),
}

impl Core {
    /// What to do for a pod that no node would have; or why there is nothing to be done.
    pub fn preempt(&mut self, pod: &Pod, why: &WhyNot, rng: &mut impl Rng) -> Result<Plan, String> {
        let candidates = self.candidates(pod, why, rng)?;
        choose(self, pod, candidates).ok_or_else(|| "no candidate node for preemption".into())
    }

    /// Where room can be made, at least one node; or why nowhere.
    pub fn candidates(&mut self, pod: &Pod, why: &WhyNot, rng: &mut impl Rng) -> Result<Vec<Candidate>, String> {
        if !pod.spec.profile.preempts {
            return Err(String::new());
        }
        if !pod.spec.preempts {
            return Err("not eligible due to preemptionPolicy=Never.".into());
        }
        let nodes = self.snapshot.present();
        let mut told: BTreeMap<String, usize> = BTreeMap::new();
        let prepared = match &why.pod {
            Some(_) => None,
            None => Prepared::new(&mut self.snapshot, pod).ok(),
        };
        let mut open = Vec::new();
        if let Some(prepared) = &prepared {
            let snapshot = &self.snapshot;
            let refusal = |id| {
                filter_alone(&pod.spec, snapshot.node(id))
                    .and_then(|()| prepared.filter(snapshot, id, snapshot.node(id)))
            };
            let ids = snapshot.ids().filter(|id| !why.closed.contains(id));
            open.extend(ids.filter(|id| refusal(*id).map_or_else(|r| r.resolvable, |()| true)));
        }
        if let Some(waits_for) = self.nominations.node_of(&pod.key).and_then(|n| self.snapshot.node_id(n))
            && open.contains(&waits_for)
            && self.snapshot.pods_on(waits_for).any(|(_, p)| p.deleting && p.priority() < pod.priority())
        {
            return Err("not eligible due to a terminating pod on the nominated node.".into());
        }
        if nodes > open.len() {
            told.insert("Preemption is not helpful for scheduling".into(), nodes - open.len());
        }
        let mut candidates: Vec<Candidate> = Vec::new();
        if let (Some(prepared), false) = (&prepared, open.is_empty()) {
            let (percent, least) = pod.spec.profile.candidates;
            let enough = (open.len() * percent / 100).max(least);
            let offset = rng.random_range(0..open.len());
            for at in 0..open.len() {
                match self.candidate(pod, prepared, open[(offset + at) % open.len()]) {
                    Ok(candidate) => candidates.push(candidate),
                    Err(Hopeless::NoVictims) => {
                        *told.entry("No preemption victims found for incoming pod".into()).or_insert(0) += 1
                    }
                    Err(Hopeless::Refused(refusal)) => {
                        refusal.reason.each(&why.extended_names(), |text| *told.entry(text).or_insert(0) += 1)
                    }
                }
                if candidates.len() >= enough && candidates.iter().any(|c| c.broken_budgets == 0) {
                    break;
                }
            }
        }
        if candidates.is_empty() {
            let mut parts: Vec<String> = told.into_iter().map(|(text, n)| format!("{n} {text}")).collect();
            parts.sort_unstable();
            return Err(format!("0/{nodes} nodes are available: {}.", parts.join(", ")));
        }
        Ok(candidates)
    }

    /// The fewest and least important pods whose absence would let the pod on a node.
    fn candidate(&self, pod: &Pod, prepared: &Prepared, id: NodeId) -> Result<Candidate, Hopeless> {
        let node = self.snapshot.node(id);
        let mut less: Vec<(PodId, &Pod)> =
            self.snapshot.pods_on(id).filter(|(_, p)| p.priority() < pod.priority()).collect();
        if less.is_empty() {
            return Err(Hopeless::NoVictims);
        }
        less.sort_by(|(_, a), (_, b)| b.priority().cmp(&a.priority()).then_with(|| a.begun().cmp(&b.begun())));
        let mut trial = Trial { snapshot: &self.snapshot, pod, id, node: node.clone(), prepared: prepared.clone() };
        for other in self.nominations.ahead(node, pod) {
            trial.node.take(other);
        }
        less.iter().for_each(|(id, p)| trial.without(*id, p));
        trial.verdict().map_err(Hopeless::Refused)?;
        let broken = self.budgets.broken_by(less.iter().map(|(_, p)| *p));
        let (mut victims, mut broken_budgets) = (Vec::new(), 0);
        for protected in [true, false] {
            for ((id, other), _) in less.iter().zip(&broken).filter(|(_, b)| **b == protected) {
                trial.with(*id, other);
                if trial.verdict().is_err() {
                    trial.without(*id, other);
                    victims.push((*other).clone());
                    broken_budgets += usize::from(protected);
                }
            }
        }
        if victims.is_empty() {
            return Err(Hopeless::NoVictims);
        }
        victims.sort_by_key(|v| Reverse(v.priority()));
        Ok(Candidate { id, victims, broken_budgets })
    }
}
