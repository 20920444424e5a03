//! How many pods of a kind each node has, kept current as pods come and go.
//!
//! Spreading and affinity ask the same counts for pod after pod. Each question (namespaces and selectors) is counted once
//! over the cluster and from then on adjusted with each pod placed or removed. The questions asked longest ago are
//! forgotten, so the upkeep is bounded.

use std::collections::HashMap;

use crate::pod::{Pod, Term};
use crate::selector::Selector;
use crate::snapshot::{NodeId, Placed};
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
            }
        }
    }

    /// What selectors over namespaces pick may be different now.
    pub(crate) fn namespaces_changed(&mut self) {
        self.answers.retain(|q, _| q.picks.iter().all(|p| p.namespace_selector.is_none()));
    }

    /// Counts by node; nodes beyond the end have none.
    pub fn by_node<'a>(
        &mut self,
        question: &Question,
        placed: impl Iterator<Item = &'a Placed>,
        namespaces: &SymbolMap<Labels>,
    ) -> &[i32] {
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
            self.answers.insert(question.clone(), Answer { by_node, used: 0 });
        }
        let clock = self.clock;
        match self.answers.get_mut(question) {
            Some(answer) => {
                answer.used = clock;
                &answer.by_node
            }
            None => &[],
        }
    }
}

impl crate::snapshot::Snapshot {
    /// Counts by node of the pods a question picks.
    pub fn counts(&mut self, question: &Question) -> Vec<i32> {
        let mut counters = std::mem::take(&mut self.counters);
        let mut out = counters.by_node(question, self.all_placed(), &self.namespaces).to_vec();
        self.counters = counters;
        out.resize(self.nodes().len(), 0);
        out
    }
}
