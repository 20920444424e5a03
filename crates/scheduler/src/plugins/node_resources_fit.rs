//! What a pod asks for must fit into what the node has left; the emptier the node (or the fuller, as the profile has it),
//! the better it is liked.

use super::MAX_SCORE;
use crate::node::Node;
use crate::pod::Spec;
use crate::profile::{Resource, Strategy};
use crate::verdict::{Plugin, Reason, Refusal, Shortage};

pub fn filter(spec: &Spec, node: &Node) -> Result<(), Refusal> {
    let mut short = 0;
    // Whether the node would do if it were empty.
    let mut hopeless = false;
    if node.count >= node.pods_allowed {
        short |= Shortage::PODS;
    }
    let wanted = &spec.requests;
    let mut check = |bit: u32, wanted: i64, used: i64, has: i64| {
        if wanted > 0 && wanted > has - used {
            short |= bit;
            hopeless |= wanted > has;
        }
    };
    let (used, has) = (&node.requested, &node.allocatable);
    let fit = &spec.profile.fit;
    check(Shortage::CPU, wanted.cpu, used.cpu, has.cpu);
    check(Shortage::MEMORY, wanted.memory, used.memory, has.memory);
    check(Shortage::EPHEMERAL, wanted.ephemeral, used.ephemeral, has.ephemeral);
    for (at, e) in wanted.extended.iter().enumerate().filter(|(_, e)| !fit.ignores(&e.name)) {
        let bit = Shortage::EXTENDED << at.min(Shortage::MAX_EXTENDED - 1);
        // Devices are to make up for it.
        let by_devices = has.extended(e.resource) == 0 && spec.delegated.contains(&e.resource);
        if by_devices && spec.profile.has(Plugin::DynamicResources) {
            continue;
        }
        check(bit, e.amount, used.extended(e.resource), has.extended(e.resource));
    }
    if short == 0 {
        return Ok(());
    }
    Err(Refusal {
        plugin: Plugin::NodeResourcesFit,
        reason: Reason::Insufficient(Shortage(short)),
        resolvable: !hopeless,
    })
}

/// What a resource has, and what would be used of it; `None` when it does not count: the node has none of it, or it is
/// nothing usual and the pod asks for none. Scoring assumes amounts for what asks for no CPU or memory.
fn use_of(resource: Resource, spec: &Spec, node: &Node) -> Option<(i64, i64)> {
    let (has, used) = match resource {
        Resource::Cpu => (node.allocatable.cpu, node.assumed.0 + spec.assumed.0),
        Resource::Memory => (node.allocatable.memory, node.assumed.1 + spec.assumed.1),
        Resource::Ephemeral => (node.allocatable.ephemeral, node.requested.ephemeral + spec.requests.ephemeral),
        Resource::Other(name) => {
            let wanted = spec.requests.extended(name);
            if wanted == 0 {
                return None;
            }
            (node.allocatable.extended(name), node.requested.extended(name) + wanted)
        }
    };
    (has > 0).then_some((has, used))
}

/// A broken line's height at a point.
pub fn height(line: &[(i64, i64)], at: i64) -> i64 {
    let mut before: Option<(i64, i64)> = None;
    for point in line {
        if at <= point.0 {
            return before.map_or(point.1, |b| b.1 + (point.1 - b.1) * (at - b.0) / (point.0 - b.0));
        }
        before = Some(*point);
    }
    before.map_or(0, |b| b.1)
}

/// How well the node's use would please the profile's strategy.
pub fn score(spec: &Spec, node: &Node) -> i64 {
    let fit = &spec.profile.fit;
    let (mut sum, mut weights) = (0, 0);
    let share = |part: i64, has: i64| (i128::from(part) * i128::from(MAX_SCORE) / i128::from(has)) as i64;
    for (resource, weight) in &fit.resources {
        let Some((has, used)) = use_of(*resource, spec, node) else { continue };
        let score = match &fit.strategy {
            Strategy::LeastAllocated if used > has => 0,
            Strategy::LeastAllocated => share(has - used, has),
            Strategy::MostAllocated => share(used.min(has), has),
            Strategy::RequestedToCapacityRatio(line) => {
                let score = height(line, if used > has { 100 } else { share(used, has) });
                if score == 0 {
                    continue;
                }
                score
            }
        };
        sum += score * weight;
        weights += weight;
    }
    match fit.strategy {
        _ if weights == 0 => 0,
        // Rounded half up.
        Strategy::RequestedToCapacityRatio(_) => (2 * sum + weights) / (2 * weights),
        _ => sum / weights,
    }
}
