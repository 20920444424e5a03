//! Facts about nodes: conditions, taints and who tolerates them, and whether a pod's selectors allow a node. Pure.

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration};
use meta::Object;

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
pub const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
pub const DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";
pub const PID_PRESSURE: &str = "node.kubernetes.io/pid-pressure";
pub const NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let empty = |t: &Option<String>| t.as_deref().unwrap_or_default().is_empty();
    let effect = empty(&toleration.effect) || toleration.effect.as_deref() == Some(&taint.effect);
    let key = empty(&toleration.key) || toleration.key.as_deref() == Some(&taint.key);
    let value = match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Lt" | "Gt" => {
            let number = |t: &Option<String>| t.as_deref().unwrap_or_default().parse::<i64>().ok();
            match (number(&toleration.value), number(&taint.value)) {
                (Some(wanted), Some(has)) if toleration.operator.as_deref() == Some("Lt") => has < wanted,
                (Some(wanted), Some(has)) => has > wanted,
                _ => false,
            }
        }
        _ => {
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
                && !empty(&toleration.key)
        }
    };
    effect && key && value
}

/// The first taint of these effects that none of the tolerations covers.
pub fn untolerated<'t>(taints: &'t [Taint], tolerations: &[Toleration], effects: &[&str]) -> Option<&'t Taint> {
    taints
        .iter()
        .find(|taint| effects.contains(&taint.effect.as_str()) && !tolerations.iter().any(|t| tolerates(t, taint)))
}

fn requirement_holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|v| values.iter().any(|x| x == v));
    let compare = |holds: fn(i64, i64) -> bool| {
        let bound = values.first().and_then(|v| v.parse().ok());
        value.and_then(|v| v.parse().ok()).zip(bound).is_some_and(|(v, b)| holds(v, b))
    };
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|v, b| v > b),
        "Lt" => compare(|v, b| v < b),
        _ => false,
    }
}

fn term_holds(term: &NodeSelectorTerm, node: &Object) -> bool {
    let (expressions, fields) =
        (term.match_expressions.as_deref().unwrap_or_default(), term.match_fields.as_deref().unwrap_or_default());
    // A term without requirements selects nothing.
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| requirement_holds(r, node.meta.label(&r.key)))
        && fields.iter().all(|r| requirement_holds(r, (r.key == "metadata.name").then_some(&*node.meta.name)))
}

/// Whether a pod's nodeSelector and required node affinity allow a node.
pub fn selects(spec: &PodSpec, node: &Object) -> bool {
    let by_labels = spec.node_selector.iter().flatten().all(|(k, v)| node.meta.label(k) == Some(v));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    by_labels && required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term_holds(t, node)))
}

/// A node condition's status; `None` when it has none of that type.
pub fn condition<'n>(node: &'n Node, kind: &str) -> Option<&'n k8s_openapi::api::core::v1::NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

pub fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
}
