//! What a pod asks for must fit into what the node has left; the emptier the node, the better it is liked.

use super::MAX_SCORE;
use crate::node::Node;
use crate::pod::Spec;
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
    check(Shortage::CPU, wanted.cpu, used.cpu, has.cpu);
    check(Shortage::MEMORY, wanted.memory, used.memory, has.memory);
    check(Shortage::EPHEMERAL, wanted.ephemeral, used.ephemeral, has.ephemeral);
    for (at, e) in wanted.extended.iter().enumerate() {
        let bit = Shortage::EXTENDED << at.min(Shortage::MAX_EXTENDED - 1);
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

/// The share left over, of CPU and memory alike (upstream's `LeastAllocated`).
pub fn score(spec: &Spec, node: &Node) -> i64 {
    let (mut sum, mut resources) = (0, 0);
    let has = &node.allocatable;
    for (has, wanted) in [(has.cpu, node.assumed.0 + spec.assumed.0), (has.memory, node.assumed.1 + spec.assumed.1)] {
        if has == 0 {
            continue;
        }
        resources += 1;
        if wanted <= has {
            sum += (i128::from(has - wanted) * i128::from(MAX_SCORE) / i128::from(has)) as i64;
        }
    }
    if resources == 0 { 0 } else { sum / resources }
}
