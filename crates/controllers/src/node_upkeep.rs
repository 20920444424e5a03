//! What nodes carry for others and nobody waits for: how long kubelets may believe what they have of Secrets and
//! ConfigMaps (the longer, the more nodes there are), and labels under their names from before.
//!
//! A new node is written several times in its first moments, some of it by whoever put up a whole object and so took this
//! away again. So a node is let settle first, and then gets all of it in one write.

use client::{Change, Patch};
use k8s_openapi::api::core::v1::Node;
use meta::Object;
use serde_json::{Map, Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::Context;
use crate::plan::{Action, Plan};
use crate::runner::Controller;

/// How long after a change a node is looked at.
const SETTLED_AFTER: Duration = Duration::from_secs(3);
/// Labels that follow others: their names from before, which some still select by.
const LABELS: &[(&str, &str)] =
    &[("beta.kubernetes.io/os", "kubernetes.io/os"), ("beta.kubernetes.io/arch", "kubernetes.io/arch")];

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";
/// (a step is left for the one before below so many nodes, for the next above so many, seconds); the ranges overlap, so
/// that a cluster at a border does not change its mind with every node.
const STEPS: &[(usize, usize, u32)] =
    &[(0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, 10_000, 300), (9000, usize::MAX, 600)];

/// The step for so many nodes, coming from another.
fn step(mut at: usize, nodes: usize) -> usize {
    while nodes > STEPS[at].1 {
        at += 1;
    }
    while at > 0 && nodes < STEPS[at].0 {
        at -= 1;
    }
    at
}

/// The labels a node should have and does not.
fn missing_labels(node: &Object) -> Map<String, Value> {
    let wanted = LABELS.iter().filter_map(|(old, new)| Some((*old, node.meta.label(new)?)));
    wanted.filter(|(old, value)| node.meta.label(old) != Some(value)).map(|(k, v)| (k.into(), v.into())).collect()
}

/// What the node says of it; the outer `None`: it cannot be read.
fn mark(node: &Object) -> Option<Option<String>> {
    let node = node.typed::<Node>().ok()?;
    Some(node.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION).cloned()))
}

/// What is to be written of a node, if anything; `seconds` where the annotation is kept.
pub fn upkeep(node: &Object, seconds: Option<u32>, labels: bool) -> Option<Value> {
    let mut metadata = Map::new();
    if let (Some(seconds), Some(known)) = (seconds.map(|s| s.to_string()), mark(node))
        && known.as_ref() != Some(&seconds)
    {
        metadata.insert("annotations".into(), json!({ANNOTATION: seconds}));
    }
    let missing = if labels { missing_labels(node) } else { Map::new() };
    if !missing.is_empty() {
        metadata.insert("labels".into(), missing.into());
    }
    (!metadata.is_empty()).then(|| json!({"metadata": metadata}))
}

pub fn ttl(cx: &Context) -> Controller {
    let labels = cx.runs("node-lifecycle-controller");
    let nodes = cx.informers.get::<Node>();
    let (of, everything) = (nodes.clone(), nodes.clone());
    let (reached, told) = (AtomicUsize::new(0), AtomicUsize::new(0));
    Controller::new("ttl-controller", move |ask| {
        let mut plan = Plan::nothing();
        let at = step(reached.load(Ordering::Relaxed), of.len());
        reached.store(at, Ordering::Relaxed);
        let Some(node) = of.get(&ask.key) else { return Ok(plan) };
        if let Some(patch) = upkeep(&node, Some(STEPS[at].2), labels) {
            plan.act(Action::patch(&client::gvr_of::<Node>(), &node, "", Patch::Merge(patch)));
        }
        Ok(plan)
    })
    .watch(&nodes, move |change: &Change| {
        let now = step(told.load(Ordering::Relaxed), everything.len());
        // At a new step every node hears of it.
        if told.swap(now, Ordering::Relaxed) != now {
            return everything.list(None).iter().map(|n| n.meta.key()).collect();
        }
        match &change.new {
            Some(node) if upkeep(node, Some(STEPS[now].2), labels).is_some() => vec![change.key.to_string()],
            _ => Vec::new(),
        }
    })
    .settling(SETTLED_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps() {
        for (at, nodes, expect) in
            [(0, 5, 0), (0, 101, 1), (1, 95, 1), (1, 89, 0), (0, 700, 2), (5, 10, 0), (0, 20_000, 5)]
        {
            assert_eq!(step(at, nodes), expect, "{at} {nodes}");
        }
    }

    #[test]
    fn one_write_for_all_that_is_missing() {
        let label = json!({"kubernetes.io/os": "linux"});
        let both = json!({"kubernetes.io/os": "linux", "beta.kubernetes.io/os": "linux"});
        let old = json!({"beta.kubernetes.io/os": "linux"});
        let said = json!({ANNOTATION: "15"});
        for (labels, annotations, seconds, keeps_labels, expect) in [
            (&label, json!({}), Some(15), true, json!({"annotations": said, "labels": old})),
            (&label, said.clone(), Some(15), true, json!({"labels": old})),
            (&both, said.clone(), Some(30), true, json!({"annotations": {ANNOTATION: "30"}})),
            (&label, json!({}), None, true, json!({"labels": old})),
            (&label, said.clone(), Some(15), false, Value::Null),
            (&both, said.clone(), Some(15), true, Value::Null),
        ] {
            let node = json!({"apiVersion": "v1", "kind": "Node",
                              "metadata": {"name": "n", "labels": labels, "annotations": annotations}});
            let node = Object::from_value(&node).unwrap();
            let found = upkeep(&node, seconds, keeps_labels).map_or(Value::Null, |p| p["metadata"].clone());
            assert_eq!(found, expect, "{labels} {annotations}");
        }
    }
}
