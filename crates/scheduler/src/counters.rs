//! How many pods of a kind each node has, kept current as pods come and go.
//!
//! Spreading and affinity ask the same counts for pod after pod. Each question (namespaces and selectors) is counted once
//! over the cluster and from then on adjusted with each pod placed or removed. The questions asked longest ago are
//! forgotten, so the upkeep is bounded.

use std::collections::HashMap;
use std::sync::Arc;

use crate::pod::{Pod, Term};
use crate::selector::Selector;
use crate::snapshot::{Column, NodeId, Placed};
use crate::symbol::{Labels, Symbol, SymbolMap};

/// Questions kept; each costs four bytes a node and a comparison with every pod placed.
const KEPT: usize = 64;

/// Pods of some namespaces that a selector picks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pick {
    pub namespaces: Box<[Symbol]>,
    pub namespace_selector: Option<Selector>,
    pub selector: Selector,
}

impl Pick {
    /// A term's pods, seen from the pod that has the term.
    pub fn of_term(term: &Term, owner: &Pod) -> Self {
        let mut selector = term.selector.clone();
        for (keys, equal) in [(&term.match_keys, true), (&term.mismatch_keys, false)] {
            for key in keys {
                if let Some(value) = owner.labels.get(*key) {
                    selector.require_one(*key, value, equal);
                }
            }
        }
        let own = term.namespaces.is_empty() && term.namespace_selector.is_none();
        let namespaces = if own { [owner.namespace].into() } else { term.namespaces.clone() };
        Self { namespaces, namespace_selector: term.namespace_selector.clone(), selector }
    }

    pub fn matches(&self, pod: &Pod, namespaces: &SymbolMap<Labels>) -> bool {
        let within = self.namespaces.contains(&pod.namespace)
            || self.namespace_selector.as_ref().is_some_and(|s| {
                s.is_everything() || namespaces.get(&pod.namespace).is_some_and(|labels| s.matches(labels))
            });
        within && self.selector.matches(&pod.labels)
    }
}

/// A question: pods that all picks pick.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    pub picks: Box<[Pick]>,
    /// Pods on their way out do not count.
    pub skip_deleting: bool,
}

impl Question {
    pub fn matches(&self, pod: &Pod, namespaces: &SymbolMap<Labels>) -> bool {
        !(self.skip_deleting && pod.deleting) && self.picks.iter().all(|p| p.matches(pod, namespaces))
    }
}

struct Answer {
    by_node: Vec<i32>,
    /// The same by domain of topology keys that were asked about.
    by_domain: Vec<(Arc<Column>, Vec<i64>)>,
    used: u64,
}

/// See the module.
#[derive(Default)]
pub struct Counters {
    answers: HashMap<Question, Answer>,
    clock: u64,
}

impl Counters {
    /// A pod came to a node (1) or left it (-1).
    pub(crate) fn note(&mut self, pod: &Pod, node: NodeId, by: i32, namespaces: &SymbolMap<Labels>) {
        for (question, answer) in &mut self.answers {
            if question.matches(pod, namespaces) {
                if answer.by_node.len() <= node.index() {
                    answer.by_node.resize(node.index() + 1, 0);
                }
                answer.by_node[node.index()] += by;
                for (column, counts) in &mut answer.by_domain {
                    if let Some(domain) = column.of(node) {
                        counts[domain] += i64::from(by);
                    }
                }
            }
        }
    }

    /// What selectors over namespaces pick may be different now.
    pub(crate) fn namespaces_changed(&mut self) {
        self.answers.retain(|q, _| q.picks.iter().all(|p| p.namespace_selector.is_none()));
    }

    fn answer<'a>(
        &mut self,
        question: &Question,
        placed: impl Iterator<Item = &'a Placed>,
        namespaces: &SymbolMap<Labels>,
    ) -> Option<&mut Answer> {
        self.clock += 1;
        if !self.answers.contains_key(question) {
            if self.answers.len() >= KEPT
                && let Some(oldest) = self.answers.iter().min_by_key(|(_, a)| a.used).map(|(q, _)| q.clone())
            {
                self.answers.remove(&oldest);
            }
            let mut by_node = Vec::new();
            for placed in placed.filter(|p| question.matches(&p.pod, namespaces)) {
                let at = placed.node.index();
                if by_node.len() <= at {
                    by_node.resize(at + 1, 0);
                }
                by_node[at] += 1;
            }
            self.answers.insert(question.clone(), Answer { by_node, by_domain: Vec::new(), used: 0 });
        }
        let answer = self.answers.get_mut(question)?;
        answer.used = self.clock;
        Some(answer)
    }
}

impl crate::snapshot::Snapshot {
    /// Counts by node of the pods a question picks.
    pub fn counts(&mut self, question: &Question) -> Vec<i32> {
        let mut counters = std::mem::take(&mut self.counters);
        let answer = counters.answer(question, self.all_placed(), &self.namespaces);
        let mut out = answer.map(|a| a.by_node.clone()).unwrap_or_default();
        self.counters = counters;
        out.resize(self.nodes().len(), 0);
        out
    }

    /// Counts by domain of a topology key.
    pub fn domain_counts(&mut self, question: &Question, column: &Arc<Column>) -> Vec<i64> {
        let mut counters = std::mem::take(&mut self.counters);
        let answer = counters.answer(question, self.all_placed(), &self.namespaces);
        let out = answer.map(|answer| answer.by_domain(column).to_vec());
        self.counters = counters;
        out.unwrap_or_else(|| vec![0; column.domains])
    }
}

impl Answer {
    fn by_domain(&mut self, column: &Arc<Column>) -> &[i64] {
        let known = self.by_domain.iter().position(|(c, _)| Arc::ptr_eq(c, column));
        let at = known.unwrap_or_else(|| {
            // Columns that nodes have changed since are of no use any more.
            self.by_domain.retain(|(c, _)| Arc::strong_count(c) > 1);
            let mut counts = vec![0; column.domains];
            for (at, count) in self.by_node.iter().enumerate().filter(|(_, c)| **c != 0) {
                if let Some(domain) = column.of(NodeId(at as u32)) {
                    counts[domain] += i64::from(*count);
                }
            }
            self.by_domain.push((column.clone(), counts));
            self.by_domain.len() - 1
        });
        &self.by_domain[at].1
    }
}
