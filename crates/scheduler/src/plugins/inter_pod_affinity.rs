//! Pods that want to be near others, or away from them; and others that want to be away from, or near, this one.

use std::sync::Arc;

use super::MAX_SCORE;
use crate::counters::{Pick, Question};
use crate::pod::{Pod, Term};
use crate::snapshot::{Column, NodeId, Snapshot};
use crate::symbol::{Symbol, SymbolMap};
use crate::verdict::{Plugin, Reason, Refusal};

/// Pods by domain of one topology key.
#[derive(Clone)]
struct Tally {
    column: Arc<Column>,
    by_domain: Vec<i64>,
}

impl Tally {
    fn new(column: Arc<Column>) -> Self {
        Self { by_domain: vec![0; column.domains], column }
    }

    /// The pods a question picks.
    fn of(snapshot: &mut Snapshot, question: &Question, topology: Symbol) -> Self {
        let column = snapshot.column(topology);
        Self { by_domain: snapshot.domain_counts(question, &column), column }
    }

    fn is_empty(&self) -> bool {
        self.by_domain.iter().all(|n| *n == 0)
    }

    fn add(&mut self, id: NodeId, amount: i64) {
        if let Some(domain) = self.column.of(id) {
            self.by_domain[domain] += amount;
        }
    }

    fn at(&self, id: NodeId) -> i64 {
        self.column.of(id).map_or(0, |d| self.by_domain[d])
    }

    fn add_all(&mut self, other: &Self, weight: i64) {
        self.by_domain.iter_mut().zip(&other.by_domain).for_each(|(sum, count)| *sum += count * weight);
    }
}

fn question(picks: impl IntoIterator<Item = Pick>) -> Question {
    Question { picks: picks.into_iter().collect(), skip_deleting: false }
}

/// The required terms about one pod over the cluster: its own, and those of pods already placed.
#[derive(Clone)]
pub struct Required {
    affinity: Option<(Question, Vec<Tally>)>,
    /// Whether the pod satisfies its own affinity, so that it may be the first of its kind.
    own: bool,
    /// Whether there is no pod of those it wants to be near.
    none: bool,
    anti: Vec<(Question, Tally)>,
    /// Terms of placed pods that this pod would violate, by topology key.
    existing: SymbolMap<Tally>,
}

/// The anti-affinity terms of a placed pod that pick this one.
fn against<'a>(snapshot: &'a Snapshot, other: &'a Pod, pod: &'a Pod) -> impl Iterator<Item = &'a Term> + 'a {
    let anti = other.spec.terms.iter().flat_map(|t| &t.anti);
    anti.filter(move |term| term.picks(other, pod, &snapshot.namespaces))
}

impl Required {
    /// `None` when no term bears on the pod.
    pub fn prepare(snapshot: &mut Snapshot, pod: &Pod) -> Option<Self> {
        let terms = pod.spec.terms.as_deref();
        let mut existing: SymbolMap<Tally> = SymbolMap::default();
        for alike in snapshot.with_terms() {
            for term in against(snapshot, &alike.pod, pod) {
                let tally = existing.entry(term.topology).or_insert_with(|| Tally::new(snapshot.column(term.topology)));
                alike.by_node.iter().for_each(|(id, count)| tally.add(*id, *count));
            }
        }
        let has_own = terms.is_some_and(|t| !t.affinity.is_empty() || !t.anti.is_empty());
        if !has_own && existing.is_empty() {
            return None;
        }
        let mut out = Self { affinity: None, own: false, none: false, anti: Vec::new(), existing };
        let Some(terms) = terms else { return Some(out) };
        if !terms.affinity.is_empty() {
            let question = question(terms.affinity.iter().map(|t| Pick::of_term(t, pod)));
            let tallies: Vec<_> = terms.affinity.iter().map(|t| Tally::of(snapshot, &question, t.topology)).collect();
            out.own = question.matches(pod, &snapshot.namespaces);
            out.none = tallies.iter().all(Tally::is_empty);
            out.affinity = Some((question, tallies));
        }
        for term in &terms.anti {
            let question = question([Pick::of_term(term, pod)]);
            let tally = Tally::of(snapshot, &question, term.topology);
            out.anti.push((question, tally));
        }
        Some(out)
    }

    fn near_enough(&self, id: NodeId) -> bool {
        let Some((_, tallies)) = &self.affinity else { return true };
        if tallies.iter().any(|t| t.column.of(id).is_none()) {
            return false;
        }
        self.own && self.none || tallies.iter().all(|t| t.at(id) > 0)
    }

    pub fn filter(&self, id: NodeId) -> Result<(), Refusal> {
        if !self.near_enough(id) {
            return Err(Refusal::unresolvable(Plugin::InterPodAffinity, Reason::Affinity));
        }
        if self.anti.iter().any(|(_, tally)| tally.at(id) > 0) {
            return Err(Refusal::resolvable(Plugin::InterPodAffinity, Reason::AntiAffinity));
        }
        if self.existing.values().any(|tally| tally.at(id) > 0) {
            return Err(Refusal::resolvable(Plugin::InterPodAffinity, Reason::ExistingAntiAffinity));
        }
        Ok(())
    }

    /// Supposes that another pod came to a node (1) or left it (-1).
    pub fn suppose(&mut self, snapshot: &Snapshot, pod: &Pod, other: &Pod, id: NodeId, by: i64) {
        if let Some((question, tallies)) = &mut self.affinity
            && question.matches(other, &snapshot.namespaces)
        {
            tallies.iter_mut().for_each(|t| t.add(id, by));
            self.none = tallies.iter().all(Tally::is_empty);
        }
        for (question, tally) in &mut self.anti {
            if question.matches(other, &snapshot.namespaces) {
                tally.add(id, by);
            }
        }
        for term in against(snapshot, other, pod) {
            if let Some(tally) = self.existing.get_mut(&term.topology) {
                tally.add(id, by);
            }
        }
    }
}

/// The terms of a placed pod by which others are liked, with what they are worth.
fn liking(other: &Pod, hard: i64) -> impl Iterator<Item = (i64, &Term)> {
    let terms = other.spec.terms.as_deref().into_iter();
    terms.flat_map(move |terms| {
        let required = terms.affinity.iter().filter(move |_| hard > 0).map(move |t| (hard, t));
        let preferred = terms.preferred.iter().map(|(w, t)| (*w, t));
        required.chain(preferred).chain(terms.preferred_anti.iter().map(|(w, t)| (-*w, t)))
    })
}

/// Whether nodes may differ by what pods there are worth to this one, or it to them.
pub fn scores(snapshot: &Snapshot, pod: &Pod) -> bool {
    let own = pod.spec.terms.as_deref().is_some_and(|t| !t.preferred.is_empty() || !t.preferred_anti.is_empty());
    let hard = pod.spec.profile.hard_pod_affinity_weight;
    own || snapshot
        .with_terms()
        .any(|alike| liking(&alike.pod, hard).any(|(_, term)| term.picks(&alike.pod, pod, &snapshot.namespaces)))
}

/// Adds the weighted, normalized scores of the nodes in question to their totals.
pub fn score(snapshot: &mut Snapshot, pod: &Pod, nodes: &[NodeId], totals: &mut [i64], weight: i64) {
    let mut worth: SymbolMap<Tally> = SymbolMap::default();
    let profile = &pod.spec.profile;
    // A pod without wishes of its own need not hear those of others, if the profile says so.
    let own = pod.spec.terms.as_deref().is_some_and(|t| !t.preferred.is_empty() || !t.preferred_anti.is_empty());
    if profile.ignore_preferred_terms_of_existing_pods && !own {
        return;
    }
    for alike in snapshot.with_terms() {
        for (weight, term) in liking(&alike.pod, profile.hard_pod_affinity_weight) {
            if term.picks(&alike.pod, pod, &snapshot.namespaces) {
                let tally = worth.entry(term.topology).or_insert_with(|| Tally::new(snapshot.column(term.topology)));
                alike.by_node.iter().for_each(|(id, count)| tally.add(*id, *count * weight));
            }
        }
    }
    if let Some(terms) = pod.spec.terms.as_deref() {
        let preferred = terms.preferred.iter().map(|(w, t)| (*w, t));
        for (weight, term) in preferred.chain(terms.preferred_anti.iter().map(|(w, t)| (-*w, t))) {
            let counted = Tally::of(snapshot, &question([Pick::of_term(term, pod)]), term.topology);
            let column = counted.column.clone();
            worth.entry(term.topology).or_insert_with(|| Tally::new(column)).add_all(&counted, weight);
        }
    }
    if worth.is_empty() {
        return;
    }
    let worth: Vec<Tally> = worth.into_values().collect();
    let raw: Vec<i64> = nodes.iter().map(|id| worth.iter().map(|t| t.at(*id)).sum()).collect();
    let (least, most) = (raw.iter().min().copied().unwrap_or(0), raw.iter().max().copied().unwrap_or(0));
    if most == least {
        return;
    }
    for (total, raw) in totals.iter_mut().zip(&raw) {
        *total += weight * (MAX_SCORE as f64 * ((raw - least) as f64 / (most - least) as f64)) as i64;
    }
}
