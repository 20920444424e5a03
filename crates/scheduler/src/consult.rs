//! Placement with others' advice: the plugins' view of all nodes, then the extenders', then the choice.
//!
//! Slower than the core alone by the calls it makes, one pod at a time, as upstream does it.

use std::sync::Arc;

use client::Informer;
use meta::Object;
use rand::Rng;

use crate::core::Core;
use crate::extender::{Extender, Victims, prioritize};
use crate::plugins::default_preemption::{Candidate, Plan, choose};
use crate::pod::Pod;
use crate::snapshot::NodeId;
use crate::symbol::Symbol;
use crate::verdict::WhyNot;

/// The best node for a pod in everybody's view; or why there is none.
pub async fn place(
    core: &mut Core,
    extenders: &[&Extender],
    nodes: &Informer,
    pod: &Pod,
    object: &Object,
) -> Result<NodeId, Box<WhyNot>> {
    let assessment = core.assess(pod);
    let present = core.snapshot.present();
    if let Some(why) = assessment.why_not(pod, present) {
        return Err(why.into());
    }
    let snapshot = &core.snapshot;
    let with_object =
        assessment.feasible.iter().filter_map(|l| Some((l.id, l.total, nodes.get(&snapshot.node(l.id).name)?)));
    let mut left: Vec<(NodeId, i64, Arc<Object>)> = with_object.collect();
    let mut why = assessment.told(pod, present);
    for extender in extenders {
        if left.is_empty() {
            break;
        }
        let objects: Vec<_> = left.iter().map(|l| l.2.clone()).collect();
        let filtered = match extender.filter(object, &objects).await {
            Ok(filtered) => filtered,
            Err(why) if extender.is_ignorable() => {
                tracing::info!("extender passed over: {why}");
                continue;
            }
            Err(fault) => return Err(Box::new(WhyNot { nodes: present, fault: Some(fault), ..WhyNot::default() })),
        };
        for (node, (reason, resolvable)) in filtered.refused {
            *why.others.entry(reason).or_insert(0) += 1;
            why.closed.extend(core.snapshot.node_id(Symbol::of(&node)).filter(|_| !resolvable));
        }
        left.retain(|(.., node)| filtered.kept.iter().any(|k| **k == *node.meta.name));
    }
    match left.as_slice() {
        [] => return Err(why.into()),
        [only] => return Ok(only.0),
        _ => {}
    }
    let nominated = core.nominations.node_of(&pod.key).or(pod.nominated).and_then(|n| core.snapshot.node_id(n));
    if let Some(id) = nominated.filter(|id| left.iter().any(|l| l.0 == *id)) {
        return Ok(id);
    }
    let objects: Vec<_> = left.iter().map(|l| l.2.clone()).collect();
    let likes = prioritize(extenders, object, &objects).await;
    let total = |l: &(NodeId, i64, Arc<Object>)| l.1 + likes.get(&*l.2.meta.name).copied().unwrap_or(0);
    let most = left.iter().map(total).max().unwrap_or(0);
    let best: Vec<NodeId> = left.iter().filter(|l| total(l) == most).map(|l| l.0).collect();
    Ok(best[rand::rng().random_range(0..best.len())])
}

/// Whom to remove for a pod, in everybody's view; or why nobody.
pub async fn preempt(
    core: &mut Core,
    extenders: &[&Extender],
    pods: &Informer,
    pod: &Pod,
    object: &Object,
    why: &WhyNot,
) -> Result<Plan, String> {
    let mut candidates = core.candidates(pod, why, &mut rand::rng())?;
    for extender in extenders.iter().filter(|e| e.preempts()) {
        let victims = |c: &Candidate| Victims {
            node: core.snapshot.node(c.id).name.clone(),
            pods: c.victims.iter().filter_map(|v| pods.get(&v.key)).collect(),
            broken_budgets: c.broken_budgets,
        };
        let victims: Vec<_> = candidates.iter().map(victims).collect();
        let answer = match extender.preempt(object, &victims).await {
            Ok(answer) => answer,
            Err(why) if extender.is_ignorable() => {
                tracing::info!("extender passed over: {why}");
                continue;
            }
            Err(why) => return Err(why),
        };
        candidates = answer.into_iter().filter_map(|(node, uids, broken)| agreed(core, &node, &uids, broken)).collect();
        if candidates.is_empty() {
            break;
        }
    }
    choose(core, pod, candidates).ok_or_else(|| "no candidate node for preemption".into())
}

/// A candidate as an extender left it. One with pods that are not there is none.
fn agreed(core: &Core, node: &str, uids: &[String], broken_budgets: usize) -> Option<Candidate> {
    let id = core.snapshot.node_id(Symbol::of(node))?;
    let find = |uid: &String| core.snapshot.pods_on(id).find(|(_, p)| *p.uid == **uid).map(|(_, p)| p.clone());
    let mut victims = uids.iter().map(find).collect::<Option<Vec<Pod>>>()?;
    victims.sort_by_key(|v| std::cmp::Reverse(v.priority()));
    (!victims.is_empty()).then_some(Candidate { id, victims, broken_budgets })
}
