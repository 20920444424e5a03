//! Pods of a kind are spread over domains: as a rule, or as a wish.

use std::sync::{Arc, LazyLock};

use super::MAX_SCORE;
use super::taint_toleration::admits;
use crate::counters::{Pick, Question};
use crate::node::Node;
use crate::pod::{Pod, SpreadConstraint};
use crate::profile::SpreadDefaulting;
use crate::selector::Selector;
use crate::snapshot::{Column, NodeId, Snapshot};
use crate::symbol::Symbol;
use crate::verdict::{Plugin, Reason, Refusal};

static HOSTNAME: LazyLock<Symbol> = LazyLock::new(|| Symbol::of("kubernetes.io/hostname"));
static ZONE: LazyLock<Symbol> = LazyLock::new(|| Symbol::of("topology.kubernetes.io/zone"));

/// Sums of scores that are divided beforehand, at most.
const TABLE: i64 = 4096;

/// Whether a constraint counts the pods of every node.
fn counts_all(constraint: &SpreadConstraint, pod: &Pod) -> bool {
    !constraint.honor_taints && (!constraint.honor_affinity || pod.spec.selection.is_everything())
}

/// Whether a constraint counts the pods of a node.
fn counts(constraint: &SpreadConstraint, pod: &Pod, node: &Node) -> bool {
    (!constraint.honor_affinity || pod.spec.selection.matches(node))
        && (!constraint.honor_taints || admits(&pod.spec, node))
}

fn question(constraint: &SpreadConstraint, pod: &Pod) -> Question {
    let mut selector = constraint.selector.clone();
    for key in &constraint.match_keys {
        if let Some(value) = pod.labels.get(*key) {
            selector.require_one(*key, value, true);
        }
    }
    let pick = Pick { namespaces: [pod.namespace].into(), namespace_selector: None, selector };
    Question { picks: [pick].into(), skip_deleting: true }
}

/// Which nodes have every topology key.
fn complete(columns: &[Arc<Column>], id: NodeId) -> bool {
    columns.iter().all(|c| c.of(id).is_some())
}

#[derive(Clone)]
struct Rule {
    constraint: SpreadConstraint,
    question: Question,
    own: i64,
    column: Arc<Column>,
    /// Matching pods by domain; `None` for domains without a node that counts.
    matching: Vec<Option<i64>>,
    least: i64,
}

impl Rule {
    fn find_least(&mut self) {
        let domains = self.matching.iter().flatten().count() as i64;
        let least = self.matching.iter().flatten().min().copied();
        // Too few domains: the missing ones count as empty. None at all: no node can be too full.
        self.least = if domains < self.constraint.min_domains { 0 } else { least.unwrap_or(i64::from(i32::MAX)) };
    }
}

/// The rules (`DoNotSchedule`) of one pod over the cluster.
#[derive(Clone)]
pub struct Hard(Vec<Rule>);

impl Hard {
    /// `None` when the pod has no such rules.
    pub fn prepare(snapshot: &mut Snapshot, pod: &Pod) -> Option<Self> {
        let (constraints, _) = constraints(snapshot, pod, true);
        if constraints.is_empty() {
            return None;
        }
        let wanted = || constraints.iter();
        let columns: Vec<_> = wanted().map(|c| snapshot.column(c.topology)).collect();
        let mut rules = Vec::with_capacity(columns.len());
        for (constraint, column) in wanted().zip(&columns) {
            let question = question(constraint, pod);
            let (all, only) = (counts_all(constraint, pod), columns.len() == 1);
            let plain = all && (only || columns.iter().all(|c| c.complete));
            // Where every node counts, the sums are there already.
            let mut matching = match plain {
                true => snapshot.domain_counts(&question, column).into_iter().map(Some).collect(),
                false => vec![None; column.domains],
            };
            let by_node = if plain { Vec::new() } else { snapshot.counts(&question) };
            for (at, count) in by_node.iter().enumerate() {
                let id = NodeId(at as u32);
                let Some(domain) = column.of(id) else { continue };
                if (only || complete(&columns, id)) && (all || counts(constraint, pod, snapshot.node(id))) {
                    *matching[domain].get_or_insert(0) += i64::from(*count);
                }
            }
            let own = i64::from(question.picks[0].selector.matches(&pod.labels));
            let mut rule =
                Rule { constraint: constraint.clone(), question, own, column: column.clone(), matching, least: 0 };
            rule.find_least();
            rules.push(rule);
        }
        Some(Self(rules))
    }

    pub fn filter(&self, id: NodeId) -> Result<(), Refusal> {
        for rule in &self.0 {
            let Some(domain) = rule.column.of(id) else {
                return Err(Refusal::unresolvable(Plugin::PodTopologySpread, Reason::SpreadLabel));
            };
            if rule.matching[domain].unwrap_or(0) + rule.own - rule.least > rule.constraint.max_skew {
                return Err(Refusal::resolvable(Plugin::PodTopologySpread, Reason::Spread));
            }
        }
        Ok(())
    }

    /// Supposes that another pod came to a node (1) or left it (-1).
    pub fn suppose(&mut self, snapshot: &Snapshot, pod: &Pod, other: &Pod, id: NodeId, by: i64) {
        let columns: Vec<_> = self.0.iter().map(|r| r.column.clone()).collect();
        if !complete(&columns, id) {
            return;
        }
        for rule in &mut self.0 {
            let Some(domain) = rule.column.of(id) else { continue };
            if rule.question.matches(other, &snapshot.namespaces) && counts(&rule.constraint, pod, snapshot.node(id)) {
                *rule.matching[domain].get_or_insert(0) += by;
                rule.find_least();
            }
        }
    }
}

/// The rules (`DoNotSchedule`) or wishes of a pod: its own or, if it has none of either kind, the default ones. With the
/// wishes comes whether nodes must have all their keys.
fn constraints(snapshot: &Snapshot, pod: &Pod, hard: bool) -> (Vec<SpreadConstraint>, bool) {
    if !pod.spec.spread.is_empty() {
        return (pod.spec.spread.iter().filter(|c| c.hard == hard).cloned().collect(), true);
    }
    let whole = matches!(pod.spec.profile.spread, SpreadDefaulting::List(_));
    let Some(defaults) = defaults(pod, hard) else { return (Vec::new(), whole) };
    let Some(selector) = snapshot.spread_defaults.selector(pod) else { return (Vec::new(), whole) };
    (defaults.into_iter().map(|d| SpreadConstraint { selector: selector.clone(), ..d }).collect(), whole)
}

/// The profile's default constraints of a kind, without their selectors; `None` when there are none.
fn defaults(pod: &Pod, hard: bool) -> Option<Vec<SpreadConstraint>> {
    match &pod.spec.profile.spread {
        SpreadDefaulting::List(list) => {
            let wanted: Vec<_> = list.iter().filter(|c| c.hard == hard).cloned().collect();
            (!wanted.is_empty()).then_some(wanted)
        }
        SpreadDefaulting::System => {
            let usual = |topology: Symbol, max_skew| SpreadConstraint {
                topology,
                max_skew,
                hard: false,
                selector: Selector::nothing(),
                match_keys: Box::default(),
                min_domains: 1,
                honor_affinity: true,
                honor_taints: false,
            };
            (!hard).then(|| vec![usual(*HOSTNAME, 3), usual(*ZONE, 5)])
        }
    }
}

/// Whether the pod has wishes to score nodes by.
pub fn scores(snapshot: &Snapshot, pod: &Pod) -> bool {
    if !pod.spec.spread.is_empty() {
        return pod.spec.spread.iter().any(|c| !c.hard);
    }
    let some = match &pod.spec.profile.spread {
        SpreadDefaulting::System => true,
        SpreadDefaulting::List(list) => list.iter().any(|c| !c.hard),
    };
    some && snapshot.spread_defaults.selector(pod).is_some()
}

/// Adds the weighted, normalized scores of the nodes in question to their totals.
pub fn score(snapshot: &mut Snapshot, pod: &Pod, nodes: &[NodeId], totals: &mut [i64], weight: i64) {
    let (wishes, whole) = constraints(snapshot, pod, false);
    if wishes.is_empty() {
        return;
    }
    let columns: Vec<_> = wishes.iter().map(|c| snapshot.column(c.topology)).collect();
    let ignored = |id: NodeId| whole && !complete(&columns, id);
    let scored = nodes.iter().filter(|id| !ignored(**id)).count();
    let mut raw = vec![0.0f64; nodes.len()];
    for (wish, column) in wishes.iter().zip(&columns) {
        let by_node = snapshot.counts(&question(wish, pod));
        let offset = (wish.max_skew - 1) as f64;
        let log = |domains: usize| ((domains + 2) as f64).ln();
        if wish.topology == *HOSTNAME {
            let factor = log(scored);
            for (sum, id) in raw.iter_mut().zip(nodes).filter(|(_, id)| column.of(**id).is_some()) {
                *sum += f64::from(by_node[id.index()]) * factor + offset;
            }
            continue;
        }
        // Only domains of nodes in question count; those without the label are one more.
        let mut matching: Vec<Option<i64>> = vec![None; column.domains];
        let mut domains = 0;
        let mut unlabeled = false;
        for id in nodes.iter().filter(|id| !ignored(**id)) {
            match column.of(*id) {
                Some(domain) if matching[domain].is_none() => {
                    matching[domain] = Some(0);
                    domains += 1;
                }
                Some(_) => {}
                None => unlabeled = true,
            }
        }
        if domains == 0 {
            continue;
        }
        let all = counts_all(wish, pod);
        for (at, pods) in by_node.iter().enumerate().filter(|(_, n)| **n != 0) {
            let id = NodeId(at as u32);
            if let Some(domain) = column.of(id)
                && let Some(count) = &mut matching[domain]
                && !ignored(id)
                && (all || counts(wish, pod, snapshot.node(id)))
            {
                *count += i64::from(*pods);
            }
        }
        let factor = log(domains + usize::from(unlabeled));
        for (sum, id) in raw.iter_mut().zip(nodes) {
            if let Some(count) = column.of(*id).and_then(|d| matching[d]) {
                *sum += count as f64 * factor + offset;
            }
        }
    }
    // Rounded half up: the sums are not negative.
    let rounded: Vec<i64> = raw.iter().map(|sum| (sum + 0.5) as i64).collect();
    let (mut least, mut most) = (i64::MAX, 0);
    for (sum, _) in rounded.iter().zip(nodes).filter(|(_, id)| !ignored(**id)) {
        (least, most) = (least.min(*sum), most.max(*sum));
    }
    let score = |sum: i64| if most == 0 { MAX_SCORE } else { MAX_SCORE * (most + least - sum) / most };
    // Many nodes share few sums, and divisions are dear.
    let table: Vec<i64> =
        if most >= least && most - least < TABLE { (least..=most).map(score).collect() } else { Vec::new() };
    for ((total, sum), _) in totals.iter_mut().zip(&rounded).zip(nodes).filter(|(_, id)| !ignored(**id)) {
        *total += weight * table.get((sum - least) as usize).copied().unwrap_or_else(|| score(*sum));
    }
}
