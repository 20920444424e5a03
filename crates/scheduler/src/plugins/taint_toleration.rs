//! Taints refuse pods that do not tolerate them; those that only ask nicely make a node less liked.

use super::MAX_SCORE;
use crate::node::{Node, Taint};
use crate::pod::{Effect, Spec};
use crate::verdict::{Plugin, Reason, Refusal};

fn tolerated(spec: &Spec, taint: &Taint) -> bool {
    spec.tolerations.iter().any(|t| t.tolerates(taint))
}

/// Whether no taint keeps the pod away.
pub fn admits(spec: &Spec, node: &Node) -> bool {
    node.taints.iter().all(|t| t.effect == Effect::PreferNoSchedule || tolerated(spec, t))
}

pub fn filter(spec: &Spec, node: &Node) -> Result<(), Refusal> {
    if admits(spec, node) { Ok(()) } else { Err(Refusal::unresolvable(Plugin::TaintToleration, Reason::Taint)) }
}

/// Taints that would rather not have the pod.
pub fn score(spec: &Spec, node: &Node) -> i64 {
    node.taints.iter().filter(|t| t.effect == Effect::PreferNoSchedule && !tolerated(spec, t)).count() as i64
}

/// Fewer is better; `most` is the largest score among the nodes in question.
pub fn normalize(score: i64, most: i64) -> i64 {
    if most == 0 { MAX_SCORE } else { MAX_SCORE - MAX_SCORE * score / most }
}
