//! Features that a pod needs and nodes declare: where one is not declared, the pod would not be what it says.

use crate::node::Node;
use crate::pod::Spec;
use crate::verdict::{Plugin, Reason, Refusal};
use crate::view::{PodSpecView, RuleView};

/// Features pods may need, as nodes call them.
const FEATURES: [&str; 2] = ["RestartAllContainersOnContainerExits", "UserNamespacesHostNetworkSupport"];

/// A set of them, as bits in that order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Features(u8);

impl Features {
    fn of(has: [bool; FEATURES.len()]) -> Self {
        Self(has.into_iter().enumerate().fold(0, |bits, (at, has)| bits | u8::from(has) << at))
    }

    /// What a node declares; what nobody here asks for is left out.
    pub fn declared(names: &[Box<str>]) -> Self {
        Self::of(FEATURES.map(|f| names.iter().any(|n| **n == *f)))
    }

    /// What a pod needs.
    pub fn needed(spec: &PodSpecView) -> Self {
        let all = |r: &RuleView| &*r.action == "RestartAllContainers";
        let mut containers = spec.containers.iter().chain(&spec.init_containers);
        let restarts = containers.any(|c| c.restart_policy_rules.iter().any(all));
        Self::of([restarts, spec.host_network && spec.host_users == Some(false)])
    }

    /// Their names, joined.
    pub fn names(self) -> String {
        let named = FEATURES.iter().enumerate().filter(|(at, _)| self.0 >> at & 1 == 1);
        named.map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
    }
}

pub fn filter(spec: &Spec, node: &Node) -> Result<(), Refusal> {
    let missing = Features(spec.features.0 & !node.features.0);
    if missing == Features::default() {
        return Ok(());
    }
    Err(Refusal::unresolvable(Plugin::NodeDeclaredFeatures, Reason::Undeclared(missing)))
}
