//! What every plugin thinks of every node for one pod: placement, told in full.
//!
//! Slower than [`Core::schedule`] by design, and for people and proofs: nothing is remembered, left out or picked at random. Both ask
//! the same plugins, so the node that is chosen is always among the best here.

use std::sync::Arc;

use crate::core::{Core, Prepared, filter_alone, with_nominated};
use crate::plugins::dynamic_resources::Obstacle;
use crate::plugins::{
    image_locality, inter_pod_affinity, node_affinity, node_resources_balanced_allocation, node_resources_fit,
    pod_topology_spread, taint_toleration,
};
use crate::pod::Pod;
use crate::snapshot::NodeId;
use crate::verdict::{Plugin, Refusal, WhyNot};

/// A node that would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Liked {
    pub id: NodeId,
    pub total: i64,
    /// Weighted scores by plugin, in upstream's order.
    pub scores: Vec<(&'static str, i64)>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Assessment {
    /// The best first, then by name.
    pub feasible: Vec<Liked>,
    pub refused: Vec<(NodeId, Refusal)>,
    /// What stands in the way wherever the pod would go.
    pub pod: Option<(Plugin, String)>,
    /// What went wrong, if something did.
    pub fault: Option<String>,
    /// A claim's key that may be let go to help.
    pub to_let_go: Option<Arc<str>>,
}

impl Assessment {
    /// The same as a refusal; `None` when there are nodes that would do.
    pub fn why_not(&self, pod: &Pod, nodes: usize) -> Option<WhyNot> {
        (self.feasible.is_empty() || self.fault.is_some()).then(|| self.told(pod, nodes))
    }

    /// All that was refused, whether or not some nodes would do.
    pub fn told(&self, pod: &Pod, nodes: usize) -> WhyNot {
        let (fault, to_let_go) = (self.fault.clone(), self.to_let_go.clone());
        let mut why = WhyNot { nodes, pod: self.pod.clone(), fault, to_let_go, ..WhyNot::default() };
        why.extended = pod.spec.requests.extended.iter().map(|e| e.name.to_string()).collect();
        for (_, refusal) in &self.refused {
            *why.refusals.entry(*refusal).or_insert(0) += 1;
        }
        why
    }
}

impl Core {
    /// See the module.
    pub fn assess(&mut self, pod: &Pod) -> Assessment {
        let mut out = Assessment::default();
        let prepared = match Prepared::new(&mut self.snapshot, pod) {
            Ok(prepared) => prepared,
            Err(why) => {
                (out.pod, out.fault) = (why.pod, why.fault);
                return out;
            }
        };
        let mut feasible = Vec::new();
        for id in self.snapshot.ids() {
            let node = self.snapshot.node(id);
            let verdict = filter_alone(&pod.spec, node)
                .and_then(|()| prepared.filter(&self.snapshot, id, node))
                .and_then(|()| with_nominated(&self.snapshot, &self.nominations, pod, id));
            match verdict {
                Ok(()) => feasible.push(id),
                Err(refusal) => out.refused.push((id, refusal)),
            }
        }
        if let Some(devices) = &prepared.devices {
            out.fault = devices.fault().map(|why| WhyNot::of_devices(Obstacle::Fault(why), 0).to_string());
            out.to_let_go = devices.to_let_go(pod).map(|c| c.0.clone());
        }
        let mut columns = self.scores(pod, &feasible);
        if let Some(devices) = &prepared.devices {
            let mut liked = vec![0; feasible.len()];
            devices.score(&self.snapshot, &feasible, &mut liked, pod.spec.profile.weights.dynamic_resources);
            columns.push(("DynamicResources", liked));
        }
        let mut room = vec![0; feasible.len()];
        prepared.score_volumes(&self.snapshot, pod, &feasible, &mut room);
        columns.push(("VolumeBinding", room));
        for (at, id) in feasible.into_iter().enumerate() {
            let scores: Vec<_> = columns.iter().map(|(name, of)| (*name, of[at])).collect();
            out.feasible.push(Liked { id, total: scores.iter().map(|s| s.1).sum(), scores });
        }
        let snapshot = &self.snapshot;
        out.feasible.sort_by_key(|l| (-l.total, snapshot.node(l.id).name.clone()));
        out
    }

    /// Weighted scores of each plugin for nodes that would do.
    fn scores(&mut self, pod: &Pod, nodes: &[NodeId]) -> Vec<(&'static str, Vec<i64>)> {
        let (spec, weights) = (&pod.spec, pod.spec.profile.weights);
        let alone = |score: &dyn Fn(NodeId) -> i64| nodes.iter().map(|id| score(*id)).collect::<Vec<_>>();
        let weighted = |raw: Vec<i64>, weight: i64| raw.into_iter().map(|s| s * weight).collect::<Vec<_>>();
        let snapshot = &self.snapshot;
        let taints = alone(&|id| taint_toleration::score(spec, snapshot.node(id)));
        let most = taints.iter().max().copied().unwrap_or(0);
        let taints = taints.into_iter().map(|s| taint_toleration::normalize(s, most)).collect();
        let affinity = alone(&|id| node_affinity::score(spec, snapshot.node(id)));
        let most = affinity.iter().max().copied().unwrap_or(0);
        let affinity = affinity.into_iter().map(|s| node_affinity::normalize(s, most)).collect();
        let mut out = vec![
            ("TaintToleration", weighted(taints, weights.taint_toleration)),
            ("NodeAffinity", weighted(affinity, weights.node_affinity)),
            (
                "NodeResourcesFit",
                weighted(alone(&|id| node_resources_fit::score(spec, snapshot.node(id))), weights.node_resources_fit),
            ),
            (
                "NodeResourcesBalancedAllocation",
                weighted(
                    alone(&|id| node_resources_balanced_allocation::score(spec, snapshot.node(id))),
                    weights.node_resources_balanced_allocation,
                ),
            ),
            (
                "ImageLocality",
                weighted(alone(&|id| image_locality::score(spec, snapshot.node(id), snapshot)), weights.image_locality),
            ),
        ];
        let mut spread = vec![0; nodes.len()];
        pod_topology_spread::score(&mut self.snapshot, pod, nodes, &mut spread, weights.pod_topology_spread);
        let mut near = vec![0; nodes.len()];
        inter_pod_affinity::score(&mut self.snapshot, pod, nodes, &mut near, weights.inter_pod_affinity);
        out.extend([("PodTopologySpread", spread), ("InterPodAffinity", near)]);
        out
    }
}
