//! Nodes are liked whose resources a pod brings to be used in more like measure.

use super::MAX_SCORE;
use crate::node::Node;
use crate::pod::Spec;
use crate::profile::Resource;

/// What the pod asks for of a resource, what is used already, and what there is.
fn amounts(resource: Resource, spec: &Spec, node: &Node) -> (i64, i64, i64) {
    let (wanted, used, has) = (&spec.requests, &node.requested, &node.allocatable);
    match resource {
        Resource::Cpu => (wanted.cpu, used.cpu, has.cpu),
        Resource::Memory => (wanted.memory, used.memory, has.memory),
        Resource::Ephemeral => (wanted.ephemeral, used.ephemeral, has.ephemeral),
        Resource::Other(name) => (wanted.extended(name), used.extended(name), has.extended(name)),
    }
}

/// How even a use is: full marks where all resources are used in the same measure, half where nothing could be less even.
fn evenness(fractions: impl Iterator<Item = f64> + Clone) -> i64 {
    // Of two, the deviation is half their difference; each form keeps upstream's rounding.
    let deviation = match fractions.clone().count() {
        0 | 1 => 0.0,
        2 => fractions.reduce(|a, b| a - b).map_or(0.0, |d| d.abs() / 2.0),
        many => {
            let mean = fractions.clone().sum::<f64>() / many as f64;
            (fractions.map(|f| (f - mean) * (f - mean)).sum::<f64>() / many as f64).sqrt()
        }
    };
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}

/// What the pod makes of the balance: three quarters where it leaves it as it is. Pods that ask for none of the resources
/// have no say.
pub fn score(spec: &Spec, node: &Node) -> i64 {
    let all = spec.profile.balanced.iter().map(|resource| (*resource, amounts(*resource, spec, node)));
    if all.clone().all(|(_, (wanted, ..))| wanted == 0) {
        return 0;
    }
    let counted = all
        .filter(|(resource, (wanted, _, has))| *has != 0 && (*wanted != 0 || !matches!(resource, Resource::Other(_))));
    let fraction = |used: i64, has: i64| (used as f64 / has as f64).min(1.0);
    let before = evenness(counted.clone().map(|(_, (_, used, has))| fraction(used, has)));
    let after = evenness(counted.map(|(_, (wanted, used, has))| fraction(used + wanted, has)));
    MAX_SCORE / 2 + (MAX_SCORE / 2 + after - before) / 2
}
