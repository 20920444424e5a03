//! Nodes whose resources are used in like measure are liked.

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

/// Pods that ask for none of the resources leave the balance as it is, so they have no say.
pub fn score(spec: &Spec, node: &Node) -> i64 {
    let resources = &spec.profile.balanced;
    let mut asks = false;
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    let (mut first, mut second) = (0.0, 0.0);
    for resource in resources {
        let (wanted, used, has) = amounts(*resource, spec, node);
        asks |= wanted > 0;
        if has == 0 || (wanted == 0 && matches!(resource, Resource::Other(_))) {
            continue;
        }
        let fraction = ((used + wanted) as f64 / has as f64).min(1.0);
        (first, second) = (second, fraction);
        count += 1.0;
        sum += fraction;
        squares += fraction * fraction;
    }
    if !asks {
        return 0;
    }
    // Of two, the deviation is half their difference; the exact form keeps upstream's rounding.
    let deviation = match count as usize {
        0 | 1 => 0.0,
        2 => f64::abs(first - second) / 2.0,
        _ => (squares / count - (sum / count) * (sum / count)).max(0.0).sqrt(),
    };
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}
