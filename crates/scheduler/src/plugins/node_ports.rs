//! Ports of the host go to one pod each.

use crate::node::Node;
use crate::pod::Spec;
use crate::verdict::{Plugin, Reason, Refusal};

pub fn filter(spec: &Spec, node: &Node) -> Result<(), Refusal> {
    let taken = spec.ports.iter().any(|wanted| node.ports.iter().any(|used| used.conflicts(wanted)));
    if taken { Err(Refusal::resolvable(Plugin::NodePorts, Reason::Ports)) } else { Ok(()) }
}
