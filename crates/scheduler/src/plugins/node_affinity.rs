//! The nodes a pod asks for by label or name, and those it would like.

use super::MAX_SCORE;
use crate::node::Node;
use crate::pod::Spec;
use crate::verdict::{Plugin, Reason, Refusal};

pub fn filter(spec: &Spec, node: &Node) -> Result<(), Refusal> {
    if spec.profile.added_affinity.as_ref().is_some_and(|added| !added.matches(node)) {
        return Err(Refusal::unresolvable(Plugin::NodeAffinity, Reason::EnforcedNodeAffinity));
    }
    if spec.selection.matches(node) {
        return Ok(());
    }
    Err(Refusal::unresolvable(Plugin::NodeAffinity, Reason::NodeAffinity))
}

/// The weights of the preferences the node meets.
pub fn score(spec: &Spec, node: &Node) -> i64 {
    let all = spec.preferences.iter().chain(&spec.profile.added_preferences);
    all.filter(|p| p.matches(node)).map(|p| p.weight).sum()
}

/// `most` is the largest score among the nodes in question.
pub fn normalize(score: i64, most: i64) -> i64 {
    if most == 0 { score } else { MAX_SCORE * score / most }
}
