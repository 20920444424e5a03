//! Nodes whose CPU and memory are used in like measure are liked.

use super::MAX_SCORE;
use crate::node::Node;
use crate::pod::Spec;

/// Pods that ask for neither CPU nor memory leave the balance as it is, so they have no say.
pub fn score(spec: &Spec, node: &Node) -> i64 {
    if spec.requests.cpu == 0 && spec.requests.memory == 0 {
        return 0;
    }
    let has = &node.allocatable;
    let fraction = |wanted: i64, has: i64| (has != 0).then(|| (wanted as f64 / has as f64).min(1.0));
    let cpu = fraction(node.requested.cpu + spec.requests.cpu, has.cpu);
    let memory = fraction(node.requested.memory + spec.requests.memory, has.memory);
    let deviation = match (cpu, memory) {
        (Some(cpu), Some(memory)) => (cpu - memory).abs() / 2.0,
        _ => 0.0,
    };
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}
