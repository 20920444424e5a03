//! How long kubelets may believe what they have of Secrets and ConfigMaps: the longer, the more nodes there are.

use client::{Change, Patch};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Context;
use crate::plan::{Action, Plan};
use crate::runner::Controller;

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

pub fn ttl(cx: &Context) -> Controller {
    let nodes = cx.informers.get::<Node>();
    let (of, everything) = (nodes.clone(), nodes.clone());
    let (reached, told) = (AtomicUsize::new(0), AtomicUsize::new(0));
    Controller::new("ttl-controller", move |ask| {
        let mut plan = Plan::nothing();
        let at = step(reached.load(Ordering::Relaxed), of.len());
        reached.store(at, Ordering::Relaxed);
        let Some(object) = of.get(&ask.key) else { return Ok(plan) };
        let wanted = STEPS[at].2.to_string();
        let node = crate::decoded::<Node>(&object)?;
        let known = node.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION));
        if known != Some(&wanted) {
            let patch = json!({"metadata": {"annotations": {ANNOTATION: wanted}}});
            plan.act(Action::patch(&client::gvr_of::<Node>(), &object, "", Patch::Merge(patch)));
        }
        Ok(plan)
    })
    .watch(&nodes, move |change: &Change| {
        let now = step(told.load(Ordering::Relaxed), everything.len());
        // At a new step every node hears of it.
        if told.swap(now, Ordering::Relaxed) != now {
            return everything.list(None).iter().map(|n| n.meta.key()).collect();
        }
        match (&change.old, &change.new) {
            (None, Some(_)) => vec![change.key.to_string()],
            (Some(old), Some(new)) => {
                let mark = |o: &meta::Object| {
                    o.typed::<Node>().ok().and_then(|n| n.metadata.annotations.as_ref()?.get(ANNOTATION).cloned())
                };
                if mark(old) == mark(new) { Vec::new() } else { vec![change.key.to_string()] }
            }
            _ => Vec::new(),
        }
    })
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
}
